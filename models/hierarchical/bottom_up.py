"""BottomUpVAE: L latent levels whose posterior runs from the data upwards, against the direction of the model."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.networks import check_levels
from ppl_dgm.models.latent.parts import make_prior
from ppl_dgm.models.latent.vae import DRAWS, VAE, variational_method
from ppl_dgm.nn import make_likelihood, mlp
from ppl_dgm.program import Answer, Program

__all__ = ["BottomUpVAE"]

_CLIP = (-14.0, 6.0)  # of log-variances


class BottomUpVAE(Program):
    """L levels of latent variables, a deep latent Gaussian model, with the posterior of a Markov chain upwards,

        model: z_L ~ p(z_L),  z_l ~ N(mu_l(z_{l+1}), s_l^2(z_{l+1})),  x ~ p(x | decoder(z_1));
        guide: q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}),  all diagonal Gaussians.

    The bound's terms beside the reconstruction are expectations over draws: z_l of the model depends on z_{l+1}, which the guide draws
    after z_l, so that only the topmost divergence KL(q(z_L | z_{L-1}) || p(z_L)) is analytic given the draws. Closed
    forms of the levels below, as for a single level, would be of another quantity: learn it with `SVI(elbo="trace")`.

    The levels far from x tend to be left unused (see `ppl_dgm.diagnose_latents`); `TopDownVAE` is the remedy, `GreedyLayerwise`, one level
    after another, another.

    Arguments:
        observed: D, the number of observed dimensions.
        values: number of categories V of each dimension, for likelihoods of whole numbers.
        latents: dimensions of z_1, ..., z_L, from the level next to x upwards; at least two.
        hidden: units of each hidden layer.
        likelihood: a name of `ppl_dgm.nn.LIKELIHOODS` or a module; see `VAE`.
        prior: of z_L: a name, a distribution or a module; see `VAE`. None is N(0, I).
        depth: hidden layers of every network; 0 makes them linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        encoder_dropout: probability of dropping an input or a hidden unit of q(z_1 | x) while learning.
        decoder_dropout: probability of dropping a hidden unit of the decoder while learning.
        floor: the smallest scale of likelihoods that have one, in the units of x; None is their own default.
        prior_options, likelihood_options: of the named parts.

    Sites: `zL`, ..., `z1`, `x` [D]. Score: a lower bound by importance weighting, 512 draws.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.

    Source: Rezende et al. 2014 (deep latent Gaussian models); Tomczak 2024, section 5.5.2.1.

    Example:
        >>> import ppl_dgm as dgm
        >>> sorted(dgm.sample(BottomUpVAE(observed=64, values=17), 5, seed=0))
        ['x', 'z1', 'z2']
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latents: Sequence[int] = (16, 8),
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.4,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latents = check_levels("BottomUpVAE", latents, depth)
        layers, self.levels = (hidden,) * depth, len(latents)
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        inputs = getattr(self.likelihood, "inputs", observed)  # what the encoder sees of a row
        self.prior_of_top = make_prior(prior, latents[-1], "standard", inputs, prior_options or {})
        if hasattr(self.prior_of_top, "model") or getattr(self.prior_of_top, "needs_encoder", False):
            raise ProgramError(
                f"BottomUpVAE: the prior {prior!r} needs one latent level alone; give the VAE that prior, or choose another."
            )
        self.corruption = nn.Dropout(encoder_dropout)
        for level in range(1, self.levels + 1):
            size = 2 * latents[level - 1]
            below = inputs if level == 1 else latents[level - 2]
            dropout = encoder_dropout if level == 1 else 0.0
            setattr(self, f"encoder_{level}", mlp(below, size, layers, activation, dropout))
            if level < self.levels:
                setattr(self, f"prior_{level}", mlp(latents[level], size, layers, activation))
        self.decoder = mlp(latents[0], self.likelihood.features, layers, activation, decoder_dropout)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z_L ~ p(z_L); z_l ~ N(mu_l(z_{l+1}), s_l^2(z_{l+1})); x ~ likelihood(decoder(z_1))."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample(f"z{self.levels}", self.prior_of_top.distribution())
            for level in range(self.levels - 1, 0, -1):
                z = pyro.sample(f"z{level}", gaussian(getattr(self, f"prior_{level}")(z)))  # [batch, latent]
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z_1 ~ N(encoder_1(x)); z_l ~ N(encoder_l(z_{l-1}))."""
        below = self.corruption(self.likelihood.scaled(x, self.dtype))
        with pyro.plate("data", len(x)):
            for level in range(1, self.levels + 1):
                below = pyro.sample(f"z{level}", gaussian(getattr(self, f"encoder_{level}")(below)))
        return below

    def start(self, x: Tensor) -> None:
        """Where learning begins: scales of a table's columns."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)

    # -- levels, for greedy learning -------------------------------------------------------------------------

    def stage(self, level: int) -> Program:
        """The program of the lowest `level` levels, under the prior N(0, I), on this program's own parameters."""
        if level == self.levels:
            return self
        config = {**self.config, "likelihood": self.likelihood, "prior": None, "prior_options": None}
        config["likelihood_options"] = None
        latents = config.pop("latents")[:level]
        if level == 1:
            return VAE(**config, latent=latents[0], encoder=self.encoder_1, decoder=self.decoder).train(self.training)
        part = type(self)(**config, latents=latents)
        for name in [
            "decoder",
            *(f"encoder_{i}" for i in range(1, level + 1)),
            *(f"prior_{i}" for i in range(1, level)),
        ]:
            setattr(part, name, getattr(self, name))
        return part.train(self.training)

    def stage_parameters(self, level: int) -> list[nn.Parameter]:
        """What stage `level` has that the stages below do not."""
        below = [self.decoder, self.likelihood] if level == 1 else [getattr(self, f"prior_{level - 1}")]
        top = [self.prior_of_top] if level == self.levels else []
        return [p for part in (getattr(self, f"encoder_{level}"), *below, *top) for p in part.parameters()]

    @torch.no_grad()
    def begin_stage(self, level: int) -> None:
        """Put a level on top such that p(z_{level - 1} | z_level) = N(0, I) and q(z_level | z_{level - 1}) = N(0, I)."""
        for network in (getattr(self, f"prior_{level - 1}"), getattr(self, f"encoder_{level}")):
            network[-1].weight.zero_()
            network[-1].bias.zero_()

    def default_method(self, task: str) -> Any:
        return variational_method(task, elbo="trace")

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised posterior, level by level upwards"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound, by draws"),
        }


def gaussian(features: Tensor) -> dist.TorchDistribution:
    """N(loc, diag exp(log_variance)) from both side by side, [batch, 2 latent]: batch shape [batch], event shape [latent]."""
    loc, log_variance = features.chunk(2, -1)
    return dist.Normal(loc, (0.5 * log_variance.clamp(*_CLIP)).exp()).to_event(1)
