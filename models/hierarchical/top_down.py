"""TopDownVAE: two latent levels, a posterior that runs down the generative network (ladder, ResNet-VAE)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.nn import Likelihood, mlp
from ppl_dgm.program import Answer, Program

__all__ = ["TopDownVAE"]

_SHARED = "prior of z1"
_CLIP = (-7.0, 2.0)  # of the log-variances that the posterior adds


class TopDownVAE(Program):
    """Two levels of latent variables and a residual posterior that shares the generative network,

        model: z2 ~ N(0, I),               z1 ~ N(mu1(z2), s1^2(z2)),                 x ~ p(x | decoder(z1));
        guide: z2 ~ N(d_mu2(x), d_s2^2(x)), z1 ~ N(mu1(z2) + d_mu1(x), s1^2(z2) d_s1^2(x)).

    The guide draws in the order of the model and moves the prior of z1 instead of replacing it: log-variances
    are added. Both levels have an analytic divergence, that of z1 given the draw of z2
    (`SVI(elbo="mean_field")` uses them):

        KL_i = 1/2 sum( d_mu_i^2 / s_i^2 + d_s_i^2 - ln d_s_i^2 - 1 ),   with s_2 = 1.

    The corrections come from a bottom-up pass, d_1 from r1 = f1(x) and d_2 from r2 = f2(r1); ln d_s^2 is
    clipped to [-7, 2].

    Arguments:
        observed: D, the number of observed dimensions.
        values: number of categories V of each dimension, for the categorical likelihood.
        latent: dimensions of z2.
        latent_1: dimensions of z1; twice `latent` unless given.
        hidden: units of each hidden layer.
        likelihood: "categorical", "bernoulli" or "gaussian"; see `VAE`.
        depth: hidden layers of f1 and of the decoder (f2 has one); 0 makes every network linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        norm: "batch", "layer" or None: normalisation of every hidden layer.
        encoder_dropout: probability of dropping an input or a hidden unit of the bottom-up pass while
            learning.
        decoder_dropout: probability of dropping a hidden unit of the generative networks while learning.
        prior_hidden: units of the one hidden layer of mu1 and s1.
        floor: the smallest standard deviation of the gaussian likelihood, in the units of x.

    Sites: `z2` [latent], `z1` [latent_1], `x` [D]. Score: a lower bound by importance weighting, 512 draws.

    Raises:
        ProgramError: likelihood and values do not go together, or a size is not positive.

    Source: Sønderby et al. 2016; Kingma et al. 2016; Vahdat and Kautz 2020; Tomczak 2024, section 5.5.2.

    Example:
        >>> import ppl_dgm as dgm
        >>> sorted(dgm.sample(TopDownVAE(observed=64, values=17), 5, seed=0))
        ['x', 'z1', 'z2']
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latent: int = 8,
        latent_1: int | None = None,
        hidden: int = 256,
        likelihood: str = "categorical",
        depth: int = 2,
        activation: str = "leaky_relu",
        norm: str | None = "batch",
        encoder_dropout: float = 0.2,
        decoder_dropout: float = 0.3,
        prior_hidden: int = 64,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ProgramError(f"TopDownVAE: depth is {depth!r}; give the number of hidden layers, 0 or more.")
        below = 2 * latent if latent_1 is None else latent_1
        layers = (hidden,) * depth
        self.latent = latent
        self.likelihood = Likelihood(likelihood, observed, values, floor)
        # generative, shared by model and guide
        prior_layers = (prior_hidden,) if depth else ()
        self.prior_1 = mlp(latent, 2 * below, prior_layers, activation, decoder_dropout, norm)
        self.decoder = mlp(below, self.likelihood.features, layers, activation, decoder_dropout, norm)
        # bottom-up
        width = hidden if depth else observed
        self.corruption = nn.Dropout(encoder_dropout)
        self.features_1 = _features(observed, hidden, depth, activation, encoder_dropout, norm)
        self.features_2 = _features(width, hidden, min(depth, 1), activation, encoder_dropout, norm)
        self.delta_1 = nn.Linear(width, 2 * below)
        self.delta_2 = nn.Linear(width, 2 * latent)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z2 ~ N(0, I); z1 ~ N(mu1(z2), s1^2(z2)); x ~ likelihood(decoder(z1))."""
        zero = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z2 = pyro.sample("z2", dist.Normal(zero, 1.0).to_event(1))  # [batch, latent]
            mu1, log_s1 = self.prior_of_z1(z2)  # [batch, latent_1] each; log-variance
            z1 = pyro.sample("z1", dist.Normal(mu1, (0.5 * log_s1).exp()).to_event(1))
            return pyro.sample("x", self.likelihood(self.decoder(z1)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, n: int = 1) -> tuple[Tensor, Tensor]:
        """z2 ~ N(d_mu2, d_s2^2); z1 ~ N(mu1(z2) + d_mu1, s1^2(z2) d_s1^2): the residual posterior."""
        (d_mu1, d_log_s1), (d_mu2, d_log_s2) = self.deltas(x)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(d_mu2, (0.5 * d_log_s2).exp()).to_event(1))
            mu1, log_s1 = self.prior_of_z1(z2)
            if self.training:
                z2.__dict__[_SHARED] = mu1, log_s1
            z1 = pyro.sample("z1", dist.Normal(mu1 + d_mu1, (0.5 * (log_s1 + d_log_s1)).exp()).to_event(1))
        return z2, z1

    def prior_of_z1(self, z2: Tensor) -> tuple[Tensor, Tensor]:
        """mu1 and ln s1^2, [batch, latent_1] each, for z2 [batch, latent].

        While learning, guide and model must meet the same dropout mask, or they disagree on the prior that
        the guide corrects. So what the guide computed travels with its draw of z2, until the model takes it.
        """
        shared = z2.__dict__.pop(_SHARED, None)
        return shared if shared is not None else self.prior_1(z2).chunk(2, -1)

    def deltas(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The bottom-up pass: means and log-variances that the posterior adds.

        Returns:
            (d_mu1, ln d_s1^2), [batch, latent_1] each, and (d_mu2, ln d_s2^2), [batch, latent] each.
        """
        r1 = self.features_1(self.corruption(self.likelihood.scaled(x, self.dtype)))
        r2 = self.features_2(r1)
        d_mu1, d_log_s1 = self.delta_1(r1).chunk(2, -1)
        d_mu2, d_log_s2 = self.delta_2(r2).chunk(2, -1)
        return (d_mu1, d_log_s1.clamp(*_CLIP)), (d_mu2, d_log_s2.clamp(*_CLIP))

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised residual posterior, top-down"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound, analytic divergences"),
        }


def _features(inputs: int, hidden: int, depth: int, activation: str, dropout: float, norm: str | None) -> nn.Module:
    """`mlp` without its last linear layer: the activations of `depth` hidden layers, from [batch, inputs]."""
    return mlp(inputs, 1, (hidden,) * depth, activation, dropout, norm)[:-1]
