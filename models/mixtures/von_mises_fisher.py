"""MixtureOfVonMisesFishers: a weighted sum of K clusters of directions on the unit sphere."""

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ppl_dgm.distributions.bessel import log_bessel
from ppl_dgm.distributions.von_mises_fisher import Sphere, VonMisesFisher
from ppl_dgm.errors import ProgramError

from .mixture import Mixture, spread_rows

__all__ = ["MixtureOfVonMisesFishers"]

_LEAST = 1e-6  # concentration of a component that is as good as uniform


class MixtureOfVonMisesFishers(Mixture):
    """p(x) = sum_k w_k C_D(kappa_k) exp(kappa_k mu_k . x) on the unit sphere of R^D.

    The M-step solves A_D(kappa_k) = |sum_n r_nk x_n| / N_k, A_D = I_{D/2} / I_{D/2 - 1}, to rounding.

    Arguments:
        observed: D >= 2, entries of an example, a row of length one.
        components: K.
        ceiling: largest concentration; without it a component that sits on one example has unbounded likelihood.

    Attributes:
        raw_directions: [K, D], mu = raw / |raw|.
        log_concentrations: [K], log kappa.

    Raises:
        ProgramError: an argument out of range.

    Source: A. Banerjee, I. Dhillon, J. Ghosh and S. Sra (2005), Clustering on the unit hypersphere using von
    Mises-Fisher distributions.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.nn.functional.normalize(torch.randn(100, 3), dim=-1)
        >>> dgm.learn(dgm.models.MixtureOfVonMisesFishers(3, 2), x, seed=0).objective
        '-log likelihood, nats per example'
    """

    density_of = "directions x, with respect to the sphere's area"

    def __init__(self, observed: int, components: int, ceiling: float = 1e4) -> None:
        super().__init__(observed, components)
        if observed < 2:
            raise ProgramError(f"observed must be at least 2 for a sphere, but it is {observed}.")
        if not _LEAST < ceiling < math.inf:
            raise ProgramError(f"ceiling must be a positive concentration, but it is {ceiling!r}.")
        self.ceiling, self.support = ceiling, Sphere()
        self.raw_directions = nn.Parameter(torch.randn(components, observed))
        self.log_concentrations = nn.Parameter(torch.zeros(components))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """vMF(mu_k, kappa_k)."""
        return VonMisesFisher(self.directions[k], self.concentrations[k])

    def as_data(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x.to(self.dtype), dim=-1)  # lengths exact in this type too

    @property
    def components_free_count(self) -> int:
        return self.components * self.observed  # a direction has one coordinate less than entries

    @property
    def directions(self) -> Tensor:
        """mu, [K, D]."""
        return nn.functional.normalize(self.raw_directions, dim=-1)

    @property
    def concentrations(self) -> Tensor:
        """kappa, [K], at most the ceiling."""
        return self.log_concentrations.exp().clamp(_LEAST, self.ceiling)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) in nats, [batch, K], as one product of matrices."""
        front = VonMisesFisher(self.directions, self.concentrations).log_normaliser
        return front + x @ (self.concentrations.unsqueeze(-1) * self.directions).mT

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Directions at k-means++ seeds, the concentration of a component of the nearest examples."""
        x = self.as_data(x)
        self.maximise(x, self.near_seeds(x))
        self.raw_directions.copy_(x[spread_rows(x, self.components)])

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any = None) -> tuple[Tensor, ...]:
        """sum_n r_nk [K] and sum_n r_nk x_n [K, D]."""
        return responsibilities.sum(0), responsibilities.mT @ x

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any = None) -> None:
        """mu_k along sum_n r_nk x_n; kappa_k from its length. A component without examples stays where it is."""
        mass, sums = statistics
        length = sums.norm(dim=-1)
        alive = (mass > torch.finfo(self.dtype).tiny * 1e8) & (length > 0)
        raw = sums / torch.where(alive, length, 1.0).unsqueeze(-1)
        self.raw_directions.copy_(torch.where(alive.unsqueeze(-1), raw, self.raw_directions))
        kappa = self._concentration(length.double() / torch.where(alive, mass, 1.0).double())
        self.log_concentrations.copy_(torch.where(alive, kappa.log(), self.log_concentrations))

    def _concentration(self, length: Tensor) -> Tensor:
        """kappa with A_D(kappa) = length within its range, [K]: Newton's steps in log kappa, halving where they leave
        what is known of it; A_D rises."""
        size = self.observed
        low, high = (torch.full_like(length, math.log(end)) for end in (_LEAST, self.ceiling))
        short = length.clamp(1e-12, 1 - 1e-12)
        point = (short * (size - short.square()) / (1 - short.square())).log().clamp(low, high)  # Banerjee et al.
        for _ in range(12):
            kappa = point.exp()
            ratio = log_bessel(size / 2 - 1, kappa)[1]
            low, high = torch.where(ratio < length, point, low), torch.where(ratio < length, high, point)
            slope = kappa * (1 - ratio.square() - (size - 1) / kappa * ratio)  # dA / dlog kappa
            step = point + (length - ratio) / slope.clamp_min(1e-300)
            point = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        return point.exp()
