"""ResampledPrior: N(0, I), reshaped by a learned chance of accepting each draw."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ppl_dgm.nn import mlp

from .prior import Encode, Prior, positive_count

__all__ = ["ResampledPrior", "TruncatedRejection"]


class TruncatedRejection(dist.TorchDistribution):
    """Draws from pi = N(0, I) until one is accepted, with probability a(z), and the T-th in any case:

        p(z) = pi(z) [a(z) (1 - (1 - Z)^{T-1}) / Z + (1 - Z)^{T-1}],    Z = E_pi a.

    Arguments:
        prior: the `ResampledPrior`, which knows a and Z.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, prior: "ResampledPrior", validate_args: bool | None = None) -> None:
        self.prior = prior
        super().__init__(torch.Size(), prior.zeros.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TruncatedRejection":
        new = self._get_checked_instance(TruncatedRejection, _instance)
        new.prior = self.prior
        super(TruncatedRejection, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_z, log_rest = self.prior.log_normaliser()
        log_last = (self.prior.tries - 1) * log_rest  # that every one of T - 1 draws is rejected
        log_first = torch.log(-torch.expm1(log_last.clamp(max=-torch.finfo(log_last.dtype).tiny)))
        accepted = self.prior.log_acceptance(value) + log_first - log_z
        log_pi = dist.Normal(self.prior.zeros, 1.0, validate_args=False).log_prob(value).sum(-1)
        total = log_pi + torch.logaddexp(accepted, log_last)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            like = self.prior.zeros
            shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
            z = torch.randn(shape, dtype=like.dtype, device=like.device)
            accepted = torch.zeros(shape[:-1], dtype=torch.bool, device=like.device)
            # a fixed number of rounds: nothing depends on values, so that vmap and recording can follow
            for _ in range(self.prior.tries - 1):
                log_a = self.prior.log_acceptance(z)
                accepted = accepted | (torch.rand_like(log_a).log() < log_a)
                z = torch.where(accepted.unsqueeze(-1), z, torch.randn_like(z))
            return z


class ResampledPrior(Prior):
    """p(z) of `TruncatedRejection`, with a(z) = sigmoid(network(z)) learned: the prior gives up what the posteriors leave empty.

    The density is exact given Z, the mean acceptance. While learning, Z is estimated anew for each call from `draws` normal
    draws, and its gradient with it. In evaluation mode `points` fixed points stand for them, scrambled Sobol points under the
    normal quantile function, so that a score is a function of its data; `normaliser` says how far Z may be off. An error of Z
    by a factor of 1 + e moves every log p(z) by about -e, on average upwards (by Jensen's inequality, e^2 / 2).

    Arguments:
        latent: L.
        tries: T, at least 2. The prior reaches at most T times the density of N(0, I), and a draw costs T passes of the
            network.
        hidden: units of each of the network's two hidden layers.
        draws: for Z while learning.
        points: for Z in evaluation mode.

    Raises:
        ProgramError: a size is out of range.

    Source: Bauer and Mnih (2019), Resampled priors for variational autoencoders.
    """

    nodes: Tensor

    caveat = ", the prior's normaliser Z estimated (see `normaliser`)"

    def __init__(self, latent: int, tries: int = 100, hidden: int = 64, draws: int = 1024, points: int = 16384) -> None:
        super().__init__(latent)
        self.tries = positive_count("tries", tries, 2)
        self.draws = positive_count("draws", draws, 2)
        positive_count("points", points, 2)
        self.network = mlp(latent, 1, (hidden, hidden), "silu")
        cube = torch.quasirandom.SobolEngine(latent, scramble=True, seed=0).draw(points, dtype=torch.float64)
        tiny = 1e-12
        nodes = torch.special.ndtri(cube.clamp(tiny, 1 - tiny)).to(self.zeros.dtype)
        self.register_buffer("nodes", nodes, persistent=False)  # [points, L]

    def distribution(self, encode: Encode | None = None) -> Any:
        return TruncatedRejection(self)

    def log_acceptance(self, z: Tensor) -> Tensor:
        """log a(z), [...], for z [..., L]."""
        return logsigmoid(self.network(z).squeeze(-1))

    def log_normaliser(self) -> tuple[Tensor, Tensor]:
        """log Z and log(1 - Z), [] each."""
        nodes = self.nodes
        if self.training:
            nodes = torch.randn(self.draws, self.latent, dtype=nodes.dtype, device=nodes.device)
        logit = self.network(nodes).squeeze(-1)
        count = torch.log(torch.ones_like(logit).sum())
        return logsigmoid(logit).logsumexp(0) - count, logsigmoid(-logit).logsumexp(0) - count

    @torch.no_grad()
    def normaliser(self) -> tuple[Tensor, Tensor]:
        """Z from the fixed points, and the standard error that as many independent draws would have; the points, which are
        spread evenly, are mostly nearer.
        """
        a = self.log_acceptance(self.nodes).exp()
        return a.mean(), a.std() / len(a) ** 0.5
