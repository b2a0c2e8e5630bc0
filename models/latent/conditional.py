"""ConditionalVAE: a VAE of x given a class or other conditions y."""

from typing import Any, ClassVar

import pyro
from torch import Tensor, nn

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models.latent.conditions import Condition, joined
from ppl_dgm.models.latent.networks import make_network
from ppl_dgm.models.latent.posteriors.posterior import factorised_normal
from ppl_dgm.models.latent.vae import DRAWS, VAE, variational_method
from ppl_dgm.nn import mlp
from ppl_dgm.program import Answer

__all__ = ["ConditionalVAE"]

GIVEN_Y = "conditional"


class ConditionalVAE(VAE):
    """A VAE of x given y,

        z ~ p(z) or p(z | y),   x ~ p(x | decoder(z, y)),   q(z | x, y) = posterior(encoder(x, y)).

    y is an input: the program has no belief about it.

        learn(program, x, y)     score(program, x, y)     a lower bound on log p(x | y)
        infer(program, x, y)     sample(program, n, given={"y": y})     x ~ p(x | y)

    Arguments:
        observed, values, latent, hidden, likelihood, posterior: as of `VAE`.
        classes: y is one of so many classes, 0, ..., classes - 1, [batch].
        conditions: y is so many real numbers, [batch, conditions], best standardised. One of the two is needed.
        prior: as of `VAE`, the same for all y; or "conditional", p(z | y) = N(loc(y), diag s^2(y)), both learned. Priors made of
            the encoder ("vamp") do not exist here, since the encoder needs y.
        encoder: a module from the scaled x and the code of y (indicators of the classes) side by side, [batch, D + size].
        decoder: a module from z and the code of y, [batch, latent + size].
        Others: as of `VAE`.

    Sites: `y` (only where it is not given as an argument: any class alike, or N(0, I)), `z`, `x`.

    Raises:
        ProgramError: parts that do not go together.
        DataError: y is missing or does not fit.

    Source: Sohn, Lee and Yan (2015), Learning structured output representation using deep conditional generative models.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = ConditionalVAE(observed=64, values=17, classes=10)
        >>> dgm.sample(program, 5, given={"y": 3}, seed=0)["x"].shape
        torch.Size([5, 64])
        >>> dgm.score(program, torch.zeros(2, 64), torch.tensor([0, 1]), seed=0).kind
        'lower_bound'
    """

    told: ClassVar[str] = "y"  # the site of the condition
    missing: ClassVar[bool] = False

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        classes: int | None = None,
        conditions: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = None,
        posterior: Any = "gaussian",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.4,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        posterior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        given_y = isinstance(prior, str) and prior == GIVEN_Y
        super().__init__(
            observed, values, latent, hidden, likelihood, None if given_y else prior, posterior, None, None, 0, activation,
            encoder_dropout, decoder_dropout, floor, prior_options, posterior_options, likelihood_options,
        )  # fmt: skip
        name = type(self).__name__
        if depth < 0:
            raise ProgramError(f"{name}: depth is {depth!r}; give the number of hidden layers, 0 or more.")
        if getattr(self.prior_of_z, "needs_encoder", False):
            raise ProgramError(
                f"{name}: the prior {prior!r} is made of q(z | x), which here also needs y; choose one without the encoder."
            )
        if given_y and getattr(self.posterior_of_z, "prior", "standard") != "standard":
            raise ProgramError(f"{name}: prior 'conditional' is over real vectors, and posterior {posterior!r} is not.")
        self.condition = Condition(name, classes, conditions, self.missing)
        size, layers = self.condition.size, (hidden,) * depth
        self.code: int = getattr(self.posterior_of_z, "code", latent)
        self.inputs: int = getattr(self.likelihood, "inputs", observed)
        # in the place of the VAE's own networks, which are not told y
        shape = hidden, depth, activation
        inputs, code = self.inputs + size, self.code + size
        self.encoder = make_network(encoder, "encoder", inputs, self.posterior_of_z.features, *shape, encoder_dropout)
        self.decoder = make_network(decoder, "decoder", code, self.likelihood.features, *shape, decoder_dropout)
        self.prior_given_y = mlp(size, 2 * latent, layers[:1], activation) if given_y else None

    def model(self, x: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> Tensor:  # type: ignore[override]
        """y given; z ~ prior; x ~ likelihood(decoder(z, y))."""
        rows = n if x is None else len(x)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", rows):
            if y is None:
                y = pyro.sample(self.told, self.condition.distribution())
            elif x is None:
                y = self.condition.checked(y, rows, self.told)
            z = self.draw_z_given(rows, y)  # [batch, latent]
            return pyro.sample("x", self.likelihood(self.decode_given(z, y)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, y: Tensor, n: int = 1) -> Tensor:  # type: ignore[override]
        """z ~ posterior(encoder(x, y)), amortised."""
        inputs = self.corruption(self.likelihood.scaled(x, self.dtype))
        with pyro.plate("data", len(x)):
            return self.guide_z(inputs, y)

    def guide_z(self, inputs: Tensor, y: Tensor) -> Tensor:
        """The statement z ~ q(z | x, y), inside the plate, for x on the encoder's scale."""
        z = pyro.sample("z", self.encode_given(inputs, y))
        if hasattr(self.prior_of_z, "guide"):
            self.prior_of_z.guide(z)
        return z

    def draw_z_given(self, n: int, y: Tensor) -> Tensor:
        """The statement z ~ p(z | y), inside the plate of n examples."""
        if self.prior_given_y is None:
            return self.draw_z(n)
        loc, log_variance = self.prior_given_y(self.condition.code(y)).chunk(2, -1)
        return pyro.sample("z", factorised_normal(loc, log_variance))

    def encode_given(self, inputs: Tensor, y: Tensor) -> Any:
        """q(z | x, y), batch shape [..., batch], for inputs [batch, D] on the encoder's scale and y [..., batch]."""
        return self.posterior_of_z(self.encoder(joined(inputs, self.condition.code(y))))

    def decode_given(self, z: Tensor, y: Tensor) -> Tensor:
        """Features of the likelihood, [..., batch, features], for z [..., batch, latent] and y [..., batch]."""
        flat = z if z.shape[-1] == self.code else z.flatten(-2)  # discrete variables are several numbers each
        return self.decoder(joined(flat, self.condition.code(y)))

    def check_arguments(self, x: Tensor, y: Any = None, *rest: Any) -> tuple:
        """x and y, with a row of y for each of x; the verbs ask before they begin."""
        if y is None:
            raise DataError(
                f"{self.name} is of x given {self.told}: pass both, as in score(program, x, {self.told}), and for learning "
                f"valid=(x, {self.told})."
            )
        return (x, self.condition.checked(y, len(x), self.told), *rest)

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        told = self.told
        return {
            "sample": Answer("exact", f"ancestral sampling given {told}"),
            "score": Answer(
                "lower_bound", f"log p(x | {told}), importance weighting, K = {DRAWS}", passes=DRAWS, depth=1
            ),
            "infer": Answer("approximate", f"amortised posterior, encoder of x and {told}"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound"),
        }
