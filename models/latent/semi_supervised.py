"""SemiSupervisedVAE: a VAE with a class beside the code, learned from few labels and many examples (M2)."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.conditional import ConditionalVAE
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.nn import mlp
from ppl_dgm.program import Answer
from ppl_dgm.tasks import evaluating

__all__ = ["SemiSupervisedVAE"]

_CERTAIN = 1e4  # log odds of a class that is known: its probability is one, and its complement's log stays finite


class SemiSupervisedVAE(ConditionalVAE):
    """The model M2,

        y ~ Categorical(w),  z ~ p(z),  x ~ p(x | decoder(z, y));     q(y, z | x) = q(y | x) q(z | x, y).

    Labels are 0, ..., classes - 1, and -1 where there is none. With L(x, y) the evidence lower bound of a labelled example,

        labelled:      L(x, y)                                              <=  log p(x, y),
        unlabelled:    sum_y q(y | x) [ L(x, y) - log q(y | x) ]            <=  log p(x),

    the sum over classes exact (Pyro's parallel enumeration, `SVI(elbo="enum")`), so that no gradient goes through a drawn class.
    Labelled examples teach q(y | x) nothing by their bound; so learning adds, for each of them,

        - alpha log q(y | x),

    a penalty, no part of the model: neither score nor sample know of it. Kingma et al. weigh it with 0.1 N / N_labelled.

    The unlabelled bound draws q(y | x) towards p(y | x) of the decoder, and the decoder starts knowing nothing of the classes. So
    `default_method` warms up both divergences, that of y and that of z, and alpha is large. Unlabelled rows help only where the
    clusters of x are the classes; compare with the program learned from the labelled rows alone.

        learn(program, x, y)      score(program, x)        a bound on log p(x)
        infer(program, x)         score(program, x, y)     a bound on log p(x, y), of log p(x) where y is -1
        program.classify(x)       sample(program, n, given={"y": 3})

    M1 + M2 is the same program on codes: learn a `VAE` of x (M1), take the means of its posterior, then learn this program with
    likelihood="gaussian" on them (M2); an x is drawn by M1's decoder from a code drawn by M2.

    Arguments:
        observed, values, latent, hidden, likelihood, ...: as of `ConditionalVAE`. A posterior must take features of any batch
            shape, [classes, batch, features], as "gaussian" does.
        classes: K.
        alpha: weight of the classification of each labelled example, nats per nat; 0 leaves it out.

    Sites: `y`, `z`, `x`, and `label` where labels are given: the statement that y is the known one.

    Raises:
        ProgramError: parts that do not go together.
        DataError: a label that there is not.

    Source: Kingma, Rezende, Mohamed and Welling (2014), Semi-supervised learning with deep generative models, eq. (6)-(9).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = SemiSupervisedVAE(observed=4, values=3, classes=2, latent=2, hidden=8)
        >>> x, y = torch.randint(0, 3, (20, 4)), torch.tensor([0, 1] + 18 * [-1])
        >>> fit = dgm.learn(program, x, y, method=dgm.PenalisedSVI(elbo="enum", epochs=1), seed=0)
        >>> program.classify(x).shape
        torch.Size([20, 2])
    """

    missing: ClassVar[bool] = True

    def __init__(
        self,
        observed: int,
        classes: int,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        alpha: float = 50.0,
        likelihood: Any = "categorical",
        prior: Any = None,
        posterior: Any = "gaussian",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.2,
        decoder_dropout: float = 0.1,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        posterior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observed, values, classes, None, latent, hidden, likelihood, prior, posterior, encoder, decoder, depth, activation,
            encoder_dropout, decoder_dropout, floor, prior_options, posterior_options, likelihood_options,
        )  # fmt: skip
        if not alpha >= 0:
            raise ProgramError(f"SemiSupervisedVAE: alpha must be at least 0, but it is {alpha!r}.")
        if hasattr(self.prior_of_z, "model"):
            raise ProgramError(
                f"SemiSupervisedVAE: the prior {prior!r} draws sites of its own, which no sum over classes can follow; choose another."
            )
        self.classes, self.alpha = classes, alpha
        self.weight_logits = nn.Parameter(torch.zeros(classes))
        self.classifier = mlp(self.inputs, classes, (hidden,) * depth, activation, encoder_dropout)

    def model(self, x: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> Tensor:  # type: ignore[override]
        """y ~ Categorical(w); z ~ prior; x ~ likelihood(decoder(z, y)); the known labels are y's."""
        rows = n if x is None else len(x)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", rows):
            drawn = pyro.sample("y", dist.Categorical(logits=self.weight_logits))
            if y is not None:
                known = dist.Categorical(logits=_CERTAIN * self.condition.code(drawn)).mask(y >= 0)
                pyro.sample("label", known, obs=y.clamp(min=0))
            z = self.draw_z_given(rows, drawn)
            return pyro.sample("x", self.likelihood(self.decode_given(z, drawn)), obs=observation)

    def guide(self, x: Tensor, y: Tensor | None = None, n: int = 1) -> Tensor:  # type: ignore[override]
        """y ~ q(y | x), certain where a label is known; z ~ q(z | x, y)."""
        inputs = self.corruption(self.likelihood.scaled(x, self.dtype))
        logits = self.classifier(inputs)
        if y is not None:
            logits = torch.where((y >= 0)[:, None], _CERTAIN * self.condition.code(y), logits)
        with pyro.plate("data", len(x)):
            drawn = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            return self.guide_z(inputs, drawn)

    def penalty(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """alpha times -log q(y | x) of the labelled examples, summed, for each example of the batch, in nats, []."""
        if y is None:
            return torch.zeros((), dtype=self.dtype, device=x.device)
        log_q = self.classifier(self.corruption(self.likelihood.scaled(x, self.dtype))).log_softmax(-1)
        return -self.alpha * (log_q * self.condition.code(y)).sum() / len(x)  # the code of a missing label is zero

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y | x), [batch, classes]."""
        with evaluating(self.classifier):
            return self.classifier(self.likelihood.scaled(x.to(self.device), self.dtype)).softmax(-1)

    def check_arguments(self, x: Tensor, y: Any = None, *rest: Any) -> tuple:
        """x, and where there are labels y, one for each."""
        return (x,) if y is None else (x, self.condition.checked(y, len(x), "y"), *rest)

    def default_method(self, task: str) -> Any:
        if task != "learn":
            return variational_method(task)
        from ppl_dgm.inference.penalised import PenalisedSVI

        # Chosen on the validation split of the digits. A classifier follows a decoder that has not yet learned what the classes look
        # like, unless reconstruction comes first: hence the slow warm-up of the divergences of y and z; every class is summed in
        # the guide, none in the model, so that the weight is well defined.
        # No patience: it would hold out rows, and labels are few.
        return PenalisedSVI(
            elbo=TraceEnum_ELBO(max_plate_nesting=1),
            epochs=60,
            batch_size=100,
            lr=5e-3,
            schedule="cosine",
            average=0.99,
            kl_weight=lambda epoch: min(1.0, epoch / 30),
        )

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling, also given y"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised: a classifier, then an encoder of x and y"),
            "learn": Answer("lower_bound", "SVI, every class summed out, and the labelled examples' classification"),
        }
