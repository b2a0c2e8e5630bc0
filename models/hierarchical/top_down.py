"""TopDownVAE: L latent levels, a posterior that runs down the generative network (ladder, ResNet-VAE)."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.networks import check_levels, check_network, make_network
from ppl_dgm.models.latent.parts import make_prior
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.nn import make_likelihood, mlp
from ppl_dgm.program import Answer, Program

__all__ = ["TopDownVAE"]

_SHARED = "prior of the level below"
_CLIP = (-7.0, 2.0)  # of the log-variances that the posterior adds
_RANGE = (-14.0, 6.0)  # of the log-variances of the priors: densities stay finite far outside of what is learned


class TopDownVAE(Program):
    """L levels of latent variables and a residual posterior that shares the generative network,

        model: z_L ~ p(z_L),                    z_l ~ N(mu_l(above), s_l^2(above)),                x ~ p(x | decoder(z));
        guide: z_L ~ N(d_mu_L(x), d_s_L^2(x)),  z_l ~ N(mu_l(above) + d_mu_l(x), s_l^2(above) d_s_l^2(x)).

    `above` is z_{l+1} and the decoder sees z_1; with `skip`, all levels above, and all levels. The guide draws in the order of the model and
    moves the prior of z_l instead of replacing it: log-variances are added. Every level has an analytic divergence, given the
    draws above (`SVI(elbo="mean_field")` uses them):

        KL_l = 1/2 sum( d_mu_l^2 / s_l^2 + d_s_l^2 - ln d_s_l^2 - 1 ),   with s_L = 1 under p(z_L) = N(0, I).

    The corrections come from a bottom-up pass, d_l from r_l = f_l(r_{l-1}) with r_0 = x; ln d_s^2 is clipped to [-7, 2].

    Arguments:
        observed: D, the number of observed dimensions.
        values: number of categories V of each dimension, for likelihoods of whole numbers.
        latents: dimensions of z_1, ..., z_L, from the level next to x upwards; at least two.
        hidden: units of each hidden layer.
        likelihood: a name of `ppl_dgm.nn.LIKELIHOODS` or a module; see `VAE`.
        prior: of z_L: a name, a distribution or a module; see `VAE`. None is N(0, I).
        skip: every level reaches the decoder, and the priors of all levels below, directly.
        encoder: a module from [batch, D] to r_1 [batch, width]; a multi-layer perceptron unless given.
        decoder: a module from z_1 (or all levels) to the features of the likelihood; likewise.
        depth: hidden layers of f_1 and of the decoder (every other f has one); 0 makes every network linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        norm: "batch", "layer" or None: normalisation of every hidden layer.
        encoder_dropout: probability of dropping an input or a hidden unit of the bottom-up pass while learning.
        decoder_dropout: probability of dropping a hidden unit of the generative networks while learning.
        prior_hidden: units of the one hidden layer of mu_l and s_l.
        floor: the smallest scale of likelihoods that have one, in the units of x; None is their own default.
        prior_options, likelihood_options: of the named parts.

    Sites: `zL`, ..., `z1`, `x` [D]. Score: a lower bound by importance weighting, 512 draws.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.

    Source: Sønderby et al. 2016; Kingma et al. 2016; Vahdat and Kautz 2020; Tomczak 2024, section 5.5.2.

    Example:
        >>> import ppl_dgm as dgm
        >>> sorted(dgm.sample(TopDownVAE(observed=64, values=17, latents=(16, 8, 4)), 5, seed=0))
        ['x', 'z1', 'z2', 'z3']
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latents: Sequence[int] = (16, 8),
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = None,
        skip: bool = False,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        norm: str | None = "batch",
        encoder_dropout: float = 0.2,
        decoder_dropout: float = 0.3,
        prior_hidden: int = 64,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latents = check_levels("TopDownVAE", latents, depth)
        self.skip = skip
        top = self.levels = len(latents)
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        inputs = getattr(self.likelihood, "inputs", observed)  # what the encoder sees of a row
        self.prior_of_top = make_prior(prior, latents[-1], "standard", inputs, prior_options or {})
        if hasattr(self.prior_of_top, "model"):
            raise ProgramError(
                f"TopDownVAE: the prior {prior!r} draws latent sites of its own; a longer `latents` does that here."
            )
        # generative, shared by model and guide
        for level in range(1, top):
            above = sum(latents[level:]) if skip else latents[level]
            network = mlp(
                above, 2 * latents[level - 1], (prior_hidden,) if depth else (), activation, decoder_dropout, norm
            )
            setattr(self, f"prior_{level}", network)
        code, features = sum(latents) if skip else latents[0], self.likelihood.features
        self.decoder = make_network(
            decoder, "decoder", code, features, hidden, depth, activation, decoder_dropout, norm
        )
        # bottom-up
        self.corruption = nn.Dropout(encoder_dropout)
        self.features_1 = (
            _features(inputs, hidden, depth, activation, encoder_dropout, norm)
            if encoder is None
            else check_network(encoder, "encoder", inputs, hidden)
        )
        width = hidden if depth or encoder is not None else inputs
        for level in range(2, top + 1):
            step = _features(width, width, min(depth, 1), activation, encoder_dropout, norm)
            setattr(self, f"features_{level}", step)
        for level, size in enumerate(latents, 1):
            setattr(self, f"delta_{level}", nn.Linear(width, 2 * size))
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z_L ~ p(z_L); z_l ~ N(mu_l, s_l^2) given the levels above; x ~ likelihood(decoder(z))."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = [pyro.sample(f"z{self.levels}", self.prior_of_top.distribution(self.encode))]  # from the top down
            for level in range(self.levels - 1, 0, -1):
                mu, log_s = self.prior_of(level, z)  # [batch, latent] each; log-variance
                z.append(pyro.sample(f"z{level}", dist.Normal(mu, (0.5 * log_s).exp()).to_event(1)))
            return pyro.sample("x", self.likelihood(self.decode(z)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, n: int = 1) -> list[Tensor]:
        """z_L ~ N(d_mu_L, d_s_L^2); z_l ~ N(mu_l + d_mu_l, s_l^2 d_s_l^2): the residual posterior."""
        deltas = self.deltas(x)
        with pyro.plate("data", len(x)):
            z = [pyro.sample(f"z{self.levels}", _normal(*deltas[-1]))]
            for level in range(self.levels - 1, 0, -1):
                mu, log_s = self.prior_of(level, z)
                if self.training:
                    z[-1].__dict__[_SHARED] = mu, log_s
                d_mu, d_log_s = deltas[level - 1]
                z.append(pyro.sample(f"z{level}", _normal(mu + d_mu, log_s + d_log_s)))
        return z

    def prior_of(self, level: int, above: list[Tensor]) -> tuple[Tensor, Tensor]:
        """mu_l and ln s_l^2, [batch, latent] each, for the levels above, from the top down.

        While learning, guide and model must meet the same dropout mask, or they disagree on the prior that
        the guide corrects. So what the guide computed travels with its draw of z_{l+1}, until the model takes it.
        """
        shared = above[-1].__dict__.pop(_SHARED, None)
        if shared is not None:
            return shared
        seen = torch.cat(above, -1) if self.skip else above[-1]
        mu, log_s = getattr(self, f"prior_{level}")(seen).chunk(2, -1)
        return mu, log_s.clamp(*_RANGE)

    def decode(self, z: list[Tensor]) -> Tensor:
        """Features of the likelihood, [batch, features], for the levels from the top down."""
        return self.decoder(torch.cat(z, -1) if self.skip else z[-1])

    def encode(self, inputs: Tensor) -> Any:
        """q(z_L | x), batch shape [batch], for inputs [batch, D] on the encoder's scale."""
        return _normal(*self._deltas(inputs)[-1])

    def deltas(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The bottom-up pass: means and log-variances that the posterior adds.

        Returns:
            (d_mu_l, ln d_s_l^2) for l = 1, ..., L, [batch, latent] each.
        """
        return self._deltas(self.corruption(self.likelihood.scaled(x, self.dtype)))

    def _deltas(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        found, r = [], inputs
        for level in range(1, self.levels + 1):
            r = getattr(self, f"features_{level}")(r)
            d_mu, d_log_s = getattr(self, f"delta_{level}")(r).chunk(2, -1)
            found.append((d_mu, d_log_s.clamp(*_CLIP)))
        return found

    def start(self, x: Tensor) -> None:
        """Where learning begins: scales of a table's columns, and pseudo-inputs of the top prior at rows of the training data."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)
        if hasattr(self.prior_of_top, "start"):
            self.prior_of_top.start(self.likelihood.scaled(x, self.dtype))

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised residual posterior, top-down"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound, analytic divergences"),
        }


def _normal(mu: Tensor, log_variance: Tensor) -> dist.TorchDistribution:
    """N(mu, diag exp(log_variance)), batch shape [batch], event shape [latent]."""
    return dist.Normal(mu, (0.5 * log_variance).exp()).to_event(1)


def _features(inputs: int, hidden: int, depth: int, activation: str, dropout: float, norm: str | None) -> nn.Module:
    """`mlp` without its last linear layer: the activations of `depth` hidden layers, from [batch, inputs]."""
    return mlp(inputs, 1, (hidden,) * depth, activation, dropout, norm)[:-1]
