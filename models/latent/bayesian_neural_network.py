"""BayesianNeuralNetwork: a network whose weights are latent variables, for regression and classification with uncertainty."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.distributions import FiniteMixture
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models.latent.networks import check_count, check_weight
from ppl_dgm.nn import ACTIVATIONS
from ppl_dgm.program import Answer, Program

__all__ = ["BayesianNeuralNetwork", "Prediction"]


class Prediction(NamedTuple):
    """What a posterior over weights says of new inputs.

    Attributes:
        mean: of y [batch] or [batch, outputs]; probabilities of the classes [batch, classes].
        epistemic: what more data would take away: the standard deviation of the network's output under the posterior, in units of y;
            for classes the mutual information of y and the weights, in nats, [batch].
        noise: what would stay: the root mean square of the noise, in units of y; for classes the expected entropy of y given the
            weights, in nats, [batch].
    """

    mean: Tensor
    epistemic: Tensor
    noise: Tensor


class BayesianNeuralNetwork(Program):
    """y given inputs u, with a prior on every weight:

        weight_l ~ N(0, prior_scale^2 / fan-in),   bias_l ~ N(0, prior_scale^2),   f = network(u),
        y_n ~ N(f_n, noise^2)    or    Categorical(softmax f_n).

    All examples share the weights, so that only all of them together have a density. u is an input, of which the program has no
    belief; it is the argument after y:

        learn(program, y, u)      Bayes by backprop: a factorised Gaussian over all weights by SVI, minibatches rescaled
        infer(program, y, u)      draws of the weights by NUTS
        predictive(posterior, u)  mean and both uncertainties for new inputs, for a posterior of either
        sample(program, n, None, u)   n functions of the prior, with their y

    Arguments:
        inputs: entries of u.
        hidden: sizes of the hidden layers; none makes it Bayesian linear (or logistic) regression.
        outputs: numbers of y, [batch] where it is one, else [batch, outputs].
        classes: y is one of so many classes instead, [batch].
        noise: standard deviation of the noise in units of y; None is a site `noise` ~ HalfNormal(1) for each output.
        prior_scale: see above.
        prior: "gaussian"; or "scale-mixture", for each weight alike 1/2 N(0, prior_scale^2) + 1/2 N(0, (prior_scale e^-6)^2), which
            lets weights vanish.
        activation: of the hidden layers; see `ppl_dgm.nn.ACTIVATIONS`.

    Sites: `weight_1` [units, inputs], `bias_1` [units], ..., perhaps `noise`, `f` (deterministic), `y`.

    Raises:
        ProgramError: an argument out of range. DataError: y or u does not fit.

    Source: Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), Weight uncertainty in neural networks; MacKay (1992); Neal (1996).
    The uncertainties of classes: Depeweg et al. (2018).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> u = torch.linspace(-1, 1, 20)[:, None]
        >>> program = BayesianNeuralNetwork(inputs=1, hidden=(4,), noise=0.1)
        >>> fit = dgm.learn(program, u[:, 0] ** 2, u, method=dgm.SVI(epochs=20, guide="AutoNormal"), seed=0)
        >>> posterior = fit.posterior(u[:, 0] ** 2, u, draws=50, seed=0)
        >>> program.predictive(posterior, torch.tensor([[0.0], [3.0]])).mean.shape
        torch.Size([2])
    """

    site = "y"

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int] = (50,),
        outputs: int = 1,
        classes: int | None = None,
        noise: float | None = None,
        prior_scale: float = 1.0,
        prior: str = "gaussian",
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        self.inputs = check_count(self.name, "inputs", inputs)
        self.outputs = check_count(self.name, "outputs", outputs)
        self.classes = None if classes is None else check_count(self.name, "classes", classes, 2)
        if classes is not None and (outputs != 1 or noise is not None):
            raise ProgramError(f"{self.name}: classes have neither noise nor several outputs; leave those out.")
        if prior not in ("gaussian", "scale-mixture"):
            raise ProgramError(f"{self.name}: prior is {prior!r}; choose 'gaussian' or 'scale-mixture'.")
        if activation not in ACTIVATIONS:
            raise ProgramError(f"{self.name}: activation {activation!r} is unknown; choose {', '.join(ACTIVATIONS)}.")
        self.noise = None if noise is None else check_weight(self.name, "noise", noise, lambda s: s > 0)
        self.prior_scale = check_weight(self.name, "prior_scale", prior_scale, lambda s: s > 0)
        self.prior, self.activation = prior, ACTIVATIONS[activation]()
        last = outputs if classes is None else classes
        self.sizes = [inputs, *(check_count(self.name, "hidden", size) for size in hidden), last]
        self.register_buffer("one", torch.ones(()), persistent=False)  # carries type and device

    one: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.one.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.one.device

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, y: Tensor | None = None, inputs: Tensor | None = None) -> Tensor:
        """Weights and noise from their priors; y ~ N(network(u), noise^2), or Categorical(softmax network(u))."""
        u = self._checked_inputs(inputs)
        layers = [self._layer(index) for index in range(1, len(self.sizes))]
        noise: Any = self.noise
        if noise is None and self.classes is None:
            noise = pyro.sample("noise", dist.HalfNormal(self.one.expand(self.outputs)).to_event(1))
        with pyro.plate("data", len(u)):
            f = u
            for index, (weight, bias) in enumerate(layers):
                f = (f if index == 0 else self.activation(f)) @ weight.mT + bias  # [batch, units]
            if self.classes is not None:
                f = pyro.deterministic("f", f, event_dim=1)
                return pyro.sample("y", dist.Categorical(logits=f), obs=y)
            if self.outputs == 1:
                f = pyro.deterministic("f", f[..., 0])
                return pyro.sample("y", dist.Normal(f, noise if self.noise else noise[..., 0]), obs=y)
            f = pyro.deterministic("f", f, event_dim=1)
            return pyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)

    def _layer(self, index: int) -> tuple[Tensor, Tensor]:
        """The sites of a layer, counted from one: weights [units, inputs of it] and biases [units]."""
        before, units = self.sizes[index - 1 : index + 1]
        if self.prior == "gaussian":
            scale = self.prior_scale * self.one
            of_weights: Any = dist.Normal(0 * self.one, scale / before**0.5)
            of_biases: Any = dist.Normal(0 * self.one, scale)
        else:
            scales = self.prior_scale * torch.stack([self.one, (-6 * self.one).exp()])
            of_weights = of_biases = FiniteMixture(torch.zeros_like(scales), dist.Normal(0 * scales, scales))
        weight = pyro.sample(f"weight_{index}", of_weights.expand((units, before)).to_event(2))
        return weight, pyro.sample(f"bias_{index}", of_biases.expand((units,)).to_event(1))

    def _checked_inputs(self, inputs: Tensor | None) -> Tensor:
        if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.shape[1] != self.inputs:
            found = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else f"a {type(inputs).__name__}"
            raise DataError(
                f"{self.name} is of y given inputs [batch, {self.inputs}], but the inputs are {found}; pass both, as in "
                "infer(program, y, inputs)."
            )
        return inputs.to(self.one)

    def check_arguments(self, y: Tensor, inputs: Any = None, *rest: Any) -> tuple:
        """y and inputs with as many rows; the verbs ask before they begin."""
        inputs = self._checked_inputs(inputs)
        if y is None:
            return (y, inputs, *rest)
        shape = (len(inputs),) if self.outputs == 1 else (len(inputs), self.outputs)
        if tuple(y.shape) != shape:
            raise DataError(f"y has shape {tuple(y.shape)}, but with these inputs it must have {shape}.")
        if self.classes is None:
            wrong = ~y.isfinite()
        else:
            wrong = (y < 0) | (y >= self.classes) | (y != y.round())
        if bool(wrong.any()):
            row = int(wrong.flatten().nonzero()[0, 0]) // (self.outputs if y.dim() > 1 else 1)
            wanted = "a finite number" if self.classes is None else f"a class from 0 to {self.classes - 1}"
            raise DataError(f"y[{row}] is {y[row].tolist()}, and must be {wanted}.")
        return (y.long() if self.classes is not None else y.to(self.one), inputs, *rest)

    # -- answers ---------------------------------------------------------------------------------------------

    def predictive(self, posterior: Any, inputs: Tensor, seed: int | None = 0) -> Prediction:
        """Mean and uncertainties of y at new inputs [batch, inputs], over the draws of a posterior.

        Arguments:
            posterior: from `infer`, or `posterior` of a `Fit`.
            inputs: [batch, inputs].
            seed: of the resampling of weighted draws.
        """
        plain = posterior.unweighted(seed)
        f = plain.predict(None, self._checked_inputs(inputs), seed=seed)["f"]  # [draw, batch, ...]
        if self.classes is not None:
            each = f.softmax(-1)
            mean = each.mean(0)
            total, expected = torch.special.entr(mean).sum(-1), torch.special.entr(each).sum(-1).mean(0)
            return Prediction(mean, (total - expected).clamp_min(0.0), expected)
        if self.noise is not None:
            noise = torch.full_like(f[0], self.noise)
        else:
            noise = plain.draws["noise"].flatten(0, 1).square().mean(0).sqrt()  # [outputs]
            noise = (noise[0] if self.outputs == 1 else noise).expand_as(f[0])
        return Prediction(f.mean(0), f.std(0), noise)

    def default_method(self, task: str) -> Any:
        if task != "learn":
            return None
        from pyro.infer.autoguide import AutoNormal
        from pyro.infer.autoguide.initialization import init_to_sample

        from ppl_dgm.inference.svi import SVI

        # from a draw of the prior: at zero the units of a layer are alike
        guide = partial(AutoNormal, init_loc_fn=init_to_sample, init_scale=0.05)
        return SVI(guide=guide, epochs=500, batch_size=None, lr=1e-2, schedule="cosine", particles=4)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "weights from their priors, then y given the inputs"),
            "score": Answer(
                "unavailable", "an integral over all weights; with guide=... of a learned program a lower bound"
            ),
            "infer": Answer("asymptotic", "NUTS over all weights", passes=None, depth=None),
            "learn": Answer("lower_bound", "Bayes by backprop: SVI with a factorised Gaussian over all weights"),
        }
