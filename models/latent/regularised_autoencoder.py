"""RegularisedAutoencoder: a deterministic auto-encoder that becomes a generative program once a density of its codes is fitted."""

import time
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models.foundations.parts import Law, apart, as_part, shape_of
from ppl_dgm.models.latent.networks import check_count, check_weight, make_network
from ppl_dgm.nn import make_likelihood
from ppl_dgm.program import Answer, Program

__all__ = ["RegularisedAutoencoder"]

_DRAWS = 1000  # of the default score
_ROWS = 4096  # rows that are encoded at once
_REGULARISERS = ("weight-decay", "gradient-penalty", "spectral-norm")
_CORRUPTIONS = ("gaussian", "masking")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)  # whose norm is bounded


class RegularisedAutoencoder(Program):
    """An auto-encoder without a variational bound, and the density of its codes fitted afterwards:

        learn   minimise  -log p(x | decoder(c)) + code_penalty / 2 |c|^2 + strength R(decoder),   c = encoder(x),
        then    fit       p(z) to the codes of the training rows, z = (c - mean) / scale entry by entry,
        and     z ~ p(z),   x ~ p(x | decoder(mean + scale z)).

    R is what keeps the decoder smooth between codes: the squares of its weights, the squared Frobenius norm of its Jacobian at c, or
    nothing but a bound of one on the norm of each layer. Before the density is fitted there is no p(x), and every verb but `learn`
    says so.

    Two classics are options of it. The classical auto-encoder is `code_penalty=0, regulariser=None`: it encodes and
    reconstructs, and a linear one (depth=0) with Gaussian noise of one fixed scale spans the subspace of principal components.
    The denoising auto-encoder has `corruption` above 0: it learns to reconstruct x from x + s e, e ~ N(0, I), and for a
    Gaussian likelihood of one fixed scale its best reconstruction is r(y) = E[x | y], so that

        (r(y) - y) / s^2 = grad_y log p_s(y),

    the score of the data smoothed by that noise (see `smoothed_score`): it estimates where p_s grows, and not p(x).

    Arguments:
        observed, values, likelihood, floor, likelihood_options: as of `VAE`. The scales of "gaussian" are learned; for plain squared
            errors fix them, likelihood_options={"scale": 0.5**0.5}.
        latent: L, entries of a code.
        hidden, depth, activation: of both networks; a depth of 0 makes them linear.
        regulariser: "weight-decay", "gradient-penalty" (an unbiased estimate by one random direction per row), "spectral-norm" or None.
        code_penalty: the weight of |c|^2 / 2; at 1 it is that of a standard normal prior at the mode.
        strength: the weight of R; "spectral-norm" does not look at it.
        corruption: of the encoder's inputs while learning: the standard deviation s of added noise on the encoder's scale, or the
            probability of a zero; 0 for none.
        corruption_kind: "gaussian" or "masking".
        density: a program over rows of L real numbers with a `log_density`, or a distribution; None is a mixture of Gaussians.
        components, covariance: of that mixture, see `MixtureOfGaussians`.
        encoder, decoder: modules from [batch, D] to [batch, L] and from there to [batch, likelihood.features].

    Sites: `z` [L], a code in units of its spread, and `x` [D]. Score: an estimate by simple Monte Carlo with 1000 codes from the
    density; it is much too low where x pins its code down. Posterior: by sampling (NUTS); `encode(x)` is the code itself.

    Raises:
        ProgramError: parts that do not go together, or an option out of range.

    Source: Ghosh, Sajjadi, Vergari, Black and Schoelkopf (2020), From variational to deterministic autoencoders; Vincent (2011), A
    connection between score matching and denoising autoencoders; Tomczak 2024, 5.3.7.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = RegularisedAutoencoder(observed=6, values=3, latent=2, hidden=8, components=2)
        >>> x = torch.randint(0, 3, (40, 6))
        >>> fit = dgm.learn(program, x, method=dgm.TwoStage(epochs=2), seed=0)
        >>> dgm.sample(fit.program, 5, seed=0)["x"].shape, dgm.score(fit.program, x[:3], seed=0).kind
        (torch.Size([5, 6]), 'estimate')
    """

    code_mean: Tensor
    code_scale: Tensor
    fitted: Tensor

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        likelihood: Any = "categorical",
        regulariser: str | None = "weight-decay",
        code_penalty: float = 0.1,
        strength: float = 1e-3,
        corruption: float = 0.0,
        corruption_kind: str = "gaussian",
        density: Any = None,
        components: int = 10,
        covariance: str = "full",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        floor: float | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._check(regulariser, corruption, corruption_kind)
        self.latent = check_count(self.name, "latent", latent)
        self.code_penalty = check_weight(self.name, "code_penalty", code_penalty)
        self.strength = check_weight(self.name, "strength", strength)
        self.regulariser, self.corruption, self.corruption_kind = regulariser, corruption, corruption_kind
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        inputs: int = getattr(self.likelihood, "inputs", observed)
        self.encoder = make_network(encoder, "encoder", inputs, latent, hidden, depth, activation)
        self.decoder = make_network(decoder, "decoder", latent, self.likelihood.features, hidden, depth, activation)
        if regulariser == "spectral-norm":
            for layer in self._layers():
                spectral_norm(layer)
        self.density = self._density(density, components, covariance)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support
        self.register_buffer("code_mean", torch.zeros(latent))
        self.register_buffer("code_scale", torch.ones(latent))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def _check(self, regulariser: str | None, corruption: float, kind: str) -> None:
        if regulariser is not None and regulariser not in _REGULARISERS:
            raise ProgramError(
                f"{self.name}: regulariser is {regulariser!r}; choose {', '.join(_REGULARISERS)}, or None."
            )
        if kind not in _CORRUPTIONS:
            raise ProgramError(f"{self.name}: corruption_kind is {kind!r}; choose 'gaussian' or 'masking'.")
        check_weight(self.name, "corruption", corruption, lambda s: s >= 0 and (kind == "gaussian" or s < 1))

    def _density(self, density: Any, components: int, covariance: str) -> Program:
        if density is None:
            from ppl_dgm.models.mixtures.gaussian import MixtureOfGaussians

            return MixtureOfGaussians(self.latent, components, covariance)
        part = as_part(density)
        if shape_of(part) != (self.latent,):
            raise ProgramError(
                f"{self.name}: density is over examples of shape {shape_of(part)}, but a code has shape ({self.latent},)."
            )
        return part

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ the density of codes; x ~ likelihood(decoder(mean + scale z))."""
        if not bool(self.fitted):
            raise TaskUnavailable(
                f"{self.name} has no density of codes yet, and so no p(x); dgm.learn(program, x) fits it after the networks, and "
                "program.fit_codes(x) alone."
            )
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", Law(self.density))  # [batch, L]
            return pyro.sample("x", self.decode(z), obs=observation)

    def encode(self, x: Tensor) -> Tensor:
        """z for x [batch, D], the codes in units of their spread, [batch, L]."""
        return (self._code(self.likelihood.scaled(x, self.dtype)) - self.code_mean) / self.code_scale

    def decode(self, z: Tensor) -> Any:
        """p(x | z), batch shape [batch], for z [batch, L]."""
        return self.likelihood(self.decoder(self.code_mean + self.code_scale * z))

    def reconstruct(self, x: Tensor) -> Any:
        """p(x' | z) at the code of x: batch shape [batch], event shape [D]; its mean is the usual reconstruction."""
        return self.decode(self.encode(x))

    def _code(self, inputs: Tensor) -> Tensor:
        return self.encoder(inputs)

    @torch.no_grad()
    def smoothed_score(self, x: Tensor) -> Tensor:
        """(r(x) - x) / s^2, the estimate of grad log p_s(x) at x [batch, D], in nats per unit of x.

        Raises:
            TaskUnavailable: the program does not learn to undo Gaussian noise of real numbers.
        """
        if self.corruption_kind != "gaussian" or not self.corruption or self.likelihood.name != "gaussian":
            raise TaskUnavailable(
                f"{self.name}: only a Gaussian likelihood learned with Gaussian corruption above 0 estimates the score."
            )
        x = x.to(self.dtype)
        return (self.reconstruct(x).mean - x) / self.corruption**2

    # -- learning --------------------------------------------------------------------------------------------

    def autoencoding_loss(self, x: Tensor) -> Tensor:
        """What the first stage of learning minimises for each example, in nats, [batch].

        Without gradients, as for validation, R is left out: it depends on no example, or is noisy.
        """
        code = self._code(self._corrupted(self.likelihood.scaled(x, self.dtype)))
        features = self.decoder(code)
        loss = -self.likelihood(features).log_prob(self.likelihood.observation(x, self.dtype))
        loss = loss + self.code_penalty / 2 * code.square().sum(-1)
        if not torch.is_grad_enabled() or not self.strength:
            return loss
        if self.regulariser == "weight-decay":
            return loss + self.strength * sum(layer.weight.square().sum() for layer in self._layers())
        if self.regulariser == "gradient-penalty":
            # v' J for v ~ N(0, I) has the expected squared length |J|_F^2
            direction = torch.randn_like(features)
            slope = torch.autograd.grad((features * direction).sum(), code, create_graph=True)[0]
            return loss + self.strength * slope.square().sum(-1)
        return loss

    def _corrupted(self, inputs: Tensor) -> Tensor:
        if not self.training or not self.corruption:
            return inputs
        if self.corruption_kind == "gaussian":
            return inputs + self.corruption * torch.randn_like(inputs)
        return inputs * torch.bernoulli(torch.full_like(inputs, 1 - self.corruption))

    def _layers(self) -> list[Any]:
        return [layer for layer in self.decoder.modules() if isinstance(layer, _LAYERS)]

    def start(self, x: Tensor) -> None:
        """Units of the columns, for likelihoods that have them."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)

    def fit_codes(self, x: Tensor, valid: Tensor | None = None, method: Any = None) -> dict[str, Any]:
        """The second stage: the density of the codes of x, the networks as they are.

        Arguments:
            x: training rows [N, D].
            valid: rows that choose between fits, or None.
            method: how the density is learned; None is its own method.

        Returns:
            `density`, how the fit ended; `log_density_of_codes`, nats per row; `seconds`.
        """
        from ppl_dgm.tasks import learn

        begun = time.perf_counter()
        with torch.no_grad():
            self.code_mean.zero_()
            self.code_scale.fill_(1.0)
            codes = self._codes(x)
            self.code_mean.copy_(codes.mean(0))
            # an entry that is the same for all rows keeps its unit
            spread = codes.std(0, correction=0)
            self.code_scale.copy_(torch.where(spread > 1e-6 * (1 + codes.abs().amax(0)), spread, 1.0))
            codes = self._codes(x)
            valid = None if valid is None else self._codes(valid[0] if isinstance(valid, tuple) else valid)
        notes: dict[str, Any] = {"density": "given, without parameters to learn"}
        if any(parameter.requires_grad for parameter in self.density.parameters()):
            with apart(), torch.enable_grad():
                notes["density"] = learn(self.density, codes, valid=valid, method=method).stopped
        self.fitted.fill_(True)
        with torch.no_grad():
            value = (Law(self.density).log_prob(codes) - self.code_scale.log().sum()).mean()
        return notes | {"log_density_of_codes": float(value), "seconds": time.perf_counter() - begun}

    def _codes(self, x: Tensor) -> Tensor:
        return torch.cat([self.encode(rows) for rows in x.split(_ROWS)])

    def default_method(self, task: str) -> Any:
        if task == "score":
            from ppl_dgm.inference.importance import SimpleMonteCarlo

            return SimpleMonteCarlo(draws=_DRAWS)
        if task == "learn":
            from ppl_dgm.inference.two_stage import TwoStage

            return TwoStage(epochs=120, patience=25)
        return None

    def answers(self) -> dict[str, Answer]:
        learned = Answer("approximate", "penalised reconstructions, then a density of the codes")
        if not bool(self.fitted):
            no = Answer("unavailable", "the density of the codes is not fitted yet: learn first")
            return {"sample": no, "score": no, "infer": no, "learn": learned}
        return {
            "sample": Answer("exact", "ancestral sampling from the density of the codes"),
            "score": Answer("estimate", f"simple Monte Carlo, K = {_DRAWS}", passes=_DRAWS, depth=1),
            "infer": Answer("asymptotic", "NUTS", passes=None, depth=None),
            "learn": learned,
        }
