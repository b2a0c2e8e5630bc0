"""SelfVAE: a VAE that draws a coarse version of x first and then, with a code for what is lost, x itself."""

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.conditions import joined
from ppl_dgm.models.latent.parts import make_prior
from ppl_dgm.models.latent.posteriors.posterior import factorised_normal
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.nn import make_likelihood, mlp
from ppl_dgm.options import is_count
from ppl_dgm.program import Answer, Program

__all__ = ["SelfVAE"]


class SelfVAE(Program):
    """The self-supervised VAE: y = d(x) is a deterministic coarse version of x, with whole-number entries,

        u ~ p(u),  y ~ p(y | decoder_y(u)),  z ~ N(mu(u, y), s^2(u, y)),  x ~ p(x | decoder_x(y, z));
        q(u, y, z | x) = q(u | y) delta(y - d(x)) q(z | x, y),        the q over u and z diagonal Gaussians.

    As y is discrete and certain given x, its posterior is a point of entropy zero and nothing but log p(y | u) stands for it:

        log p(x) >= log p(x, y = d(x))
                 >= E_q [ log p(x | y, z) - log q(z | x, y) + log p(z | u, y) + log p(y | u) + log p(u) - log q(u | y) ].

    The first step loses what the decoder spends on examples whose coarse version is not y. (Were y real, log p(x, d(x)) would be a
    density in x and y together and no bound; so real x are coarsened to whole numbers, or not at all.)

        sample(program, n)                         u, then y, then z, then x
        sample(program, n, given={"u": u})         many x of one coarse theme;  u and y given: of one coarse image

    Arguments:
        observed: D, the number of observed dimensions.
        values: V of each dimension, for likelihoods of whole numbers 0 to V - 1.
        reduction: d: "quantise", levels 0 to `levels` - 1 of equal width in place of V; "downscale", rounded means of squares of
            2 by 2 pixels of an image of `shape`; or a function from x [batch, D] to whole numbers [batch, D'], 0 to `levels` - 1.
        levels: number of values of each entry of y; None is 2 for "quantise", V for "downscale".
        shape: (height, width), both even, for "downscale".
        latents: dimensions of z and of u.
        hidden: units of each hidden layer.
        likelihood: of x: a name of `ppl_dgm.nn.LIKELIHOODS` or a module; see `VAE`. That of y is categorical.
        prior: of u: a name, a distribution or a module; see `VAE`. None is N(0, I).
        depth: hidden layers of every network; 0 makes them linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        encoder_dropout: probability of dropping an input or a hidden unit of q(z | x, y) and q(u | y) while learning.
        decoder_dropout: probability of dropping a hidden unit of both decoders while learning.
        floor: the smallest scale of likelihoods that have one, in the units of x; None is their own default.
        prior_options, likelihood_options: of the named parts.

    Sites: `u`, `y`, `z`, `x`. Score: a lower bound by importance weighting, 512 draws.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.

    Source: Gatopoulos and Tomczak (2021), Self-supervised variational auto-encoders; Tomczak 2024, section 5.5.2.4.

    Example:
        >>> import ppl_dgm as dgm
        >>> program = SelfVAE(observed=64, values=17, reduction="downscale", shape=(8, 8))
        >>> {site: tuple(value.shape) for site, value in dgm.sample(program, 5, seed=0).items()}
        {'u': (5, 8), 'y': (5, 16), 'z': (5, 16), 'x': (5, 64)}
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        reduction: str | Callable[[Tensor], Tensor] = "quantise",
        levels: int | None = None,
        shape: tuple[int, int] | None = None,
        latents: Sequence[int] = (16, 8),
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.3,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ProgramError(f"SelfVAE: depth is {depth!r}; give the number of hidden layers, 0 or more.")
        if isinstance(latents, int) or len(latents) != 2 or not all(is_count(size, 1) for size in latents):
            raise ProgramError(
                f"SelfVAE: latents is {latents!r}; give the dimensions of z and of u, two positive numbers."
            )
        layers, (of_z, of_u) = (hidden,) * depth, latents
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support
        inputs = getattr(self.likelihood, "inputs", observed)  # what an encoder sees of a row
        self.reduction, self.shape = reduction, shape
        self.levels = self._levels(levels)
        self.coarse = make_likelihood("categorical", self._coarse_size(), self.levels)
        size = self.coarse.observed
        self.prior_of_u = make_prior(prior, of_u, "standard", size, prior_options or {})
        if hasattr(self.prior_of_u, "model") or getattr(self.prior_of_u, "needs_encoder", False):
            raise ProgramError(f"SelfVAE: the prior {prior!r} needs one latent level alone; choose another.")
        self.corruption = nn.Dropout(encoder_dropout)
        self.encoder_u = mlp(size, 2 * of_u, layers, activation, encoder_dropout)
        self.decoder_y = mlp(of_u, self.coarse.features, layers, activation, decoder_dropout)
        self.prior_z = mlp(of_u + size, 2 * of_z, layers[:1], activation)
        self.encoder_z = mlp(inputs + size, 2 * of_z, layers, activation, encoder_dropout)
        self.decoder_x = mlp(of_z + size, self.likelihood.features, layers, activation, decoder_dropout)

    def reduced(self, x: Tensor) -> Tensor:
        """y = d(x), whole numbers [batch, D']."""
        if callable(self.reduction):
            return self.reduction(x).long()
        if self.reduction == "quantise":
            return x.long() * self.levels // (self.values or 1)
        height, width = self.shape or (0, 0)
        squares = x.to(self.dtype).reshape(-1, 1, height, width)
        means = nn.functional.avg_pool2d(squares, 2).flatten(1)  # [batch, D / 4]
        return (means * ((self.levels - 1) / ((self.values or 2) - 1)) + 0.5).floor().long()

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """u ~ prior; y ~ p(y | u); z ~ p(z | u, y); x ~ p(x | y, z)."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            u = pyro.sample("u", self.prior_of_u.distribution())
            y = self._scaled(pyro.sample("y", self.coarse(self.decoder_y(u))))  # [batch, D']
            z = pyro.sample("z", _gaussian(self.prior_z(joined(u, y))))
            return pyro.sample("x", self.likelihood(self.decoder_x(joined(z, y))), obs=observation)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """u ~ q(u | d(x)); y = d(x); z ~ q(z | x, y)."""
        coarse = self.reduced(x)
        y = self._scaled(coarse)
        seen = self.corruption(self.likelihood.scaled(x, self.dtype))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", _gaussian(self.encoder_u(self.corruption(y))))
            pyro.sample("y", dist.Delta(coarse, event_dim=1))
            pyro.sample("z", _gaussian(self.encoder_z(joined(seen, y))))
            return u

    def start(self, x: Tensor) -> None:
        """Where learning begins: scales of a table's columns."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)

    def _scaled(self, y: Tensor) -> Tensor:
        """y for networks, [batch, D'], on [-1, 1]."""
        return self.coarse.scaled(y, self.dtype)

    def _levels(self, levels: int | None) -> int:
        named = isinstance(self.reduction, str)
        if named and self.reduction not in ("quantise", "downscale"):
            raise ProgramError(
                f"SelfVAE: reduction {self.reduction!r} is unknown; choose 'quantise' or 'downscale', or give a function."
            )
        if named and self.values is None:
            raise ProgramError(
                f"SelfVAE: reduction {self.reduction!r} is of whole numbers and needs values; give a function for real x."
            )
        if levels is None and not named:
            raise ProgramError("SelfVAE: a reduction of your own needs levels, the number of values of its entries.")
        found: Any = levels if levels is not None else 2 if self.reduction == "quantise" else self.values
        if not is_count(found, 2) or (self.reduction == "quantise" and found >= (self.values or 0)):
            raise ProgramError(
                f"SelfVAE: levels is {found!r}; give a whole number, at least 2, and for 'quantise' less than values."
            )
        return int(found)

    @torch.no_grad()
    def _coarse_size(self) -> int:
        """D', found by coarsening zeros."""
        if self.reduction == "downscale":
            shape = self.shape
            if shape is None or len(shape) != 2 or shape[0] * shape[1] != self.observed or shape[0] % 2 or shape[1] % 2:
                raise ProgramError(
                    f"SelfVAE: shape is {shape!r}; give the height and width of an image of {self.observed} pixels, both even."
                )
        found = self.reduced(torch.zeros(2, self.observed or 0))
        if found.dim() != 2 or len(found) != 2:
            raise ProgramError(
                f"SelfVAE: reduction gives the shape {tuple(found.shape)} for an x of shape (2, {self.observed}); it must keep the rows."
            )
        return found.shape[1]

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling: coarse, then fine"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised posteriors of both levels; y is certain"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound, analytic divergences"),
        }


def _gaussian(features: Tensor) -> Any:
    """N(loc, diag exp(log_variance)) from both side by side, [batch, 2 latent]."""
    return factorised_normal(*features.chunk(2, -1))
