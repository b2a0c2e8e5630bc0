"""MixtureOfPoissons: a weighted sum of K products of Poisson counts."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError

from .mixture import Mixture, entry_sums, filled

__all__ = ["MixtureOfPoissons"]


class MixtureOfPoissons(Mixture):
    """p(x) = sum_k w_k prod_d Poisson(x_d | lambda_kd).

    EM finds the posterior mode under lambda_kd ~ Gamma(1 + c m_d, c), where c is the pseudo-count and m_d the mean of
    entry d in the data that `em_start` saw: as if each component had seen c more examples of the mean. 0 is maximum
    likelihood.

    Arguments:
        observed: D, counts of an example.
        components: K.
        pseudo_count: c.
        floor: smallest rate; a rate of zero would make any count above zero impossible.
        missing: whether the data may have holes, marked by NaN or -1; they are summed out.

    Attributes:
        log_rates: [K, D], log lambda.
        centre: [D], m.

    Raises:
        ProgramError: an argument out of range.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.poisson(torch.tensor([[3.0, 20.0]]).expand(200, 2))
        >>> fit = dgm.learn(dgm.models.MixtureOfPoissons(2, 1, pseudo_count=0.0), x, seed=0)
        >>> bool(torch.allclose(fit.program.rates[0], x.mean(0), atol=1e-4))
        True
    """

    centre: Tensor

    def __init__(
        self, observed: int, components: int, pseudo_count: float = 0.1, floor: float = 1e-6, missing: bool = False
    ) -> None:
        super().__init__(observed, components, missing)
        if not 0 <= pseudo_count < math.inf:
            raise ProgramError(f"pseudo_count must be a number from 0, but it is {pseudo_count!r}.")
        if not 0 < floor < math.inf:
            raise ProgramError(f"floor must be a positive rate, but it is {floor!r}.")
        self.pseudo_count, self.floor = pseudo_count, floor
        self.support = constraints.nonnegative_integer
        self.log_rates = nn.Parameter(0.1 * torch.randn(components, observed))
        self.register_buffer("centre", torch.ones(observed))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """prod_d Poisson(lambda_kd)."""
        return dist.Poisson(self.rates[k]).to_event(1)

    def as_data(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return x.masked_fill(x < 0, torch.nan) if self.allows_missing else x

    @property
    def rates(self) -> Tensor:
        """lambda, [K, D], never below the floor."""
        return self.log_rates.exp().clamp_min(self.floor)

    # -- expectation maximisation ----------------------------------------------------------------------------

    def log_prior(self) -> Tensor:
        """Log density of the Gamma prior up to a constant, in nats, []; EM adds it."""
        return self.pseudo_count * (self.centre * self.rates.log() - self.rates).sum()

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Components from the rows nearest to k-means++ seeds among square roots, pulled half-way to the data's mean."""
        x = self.as_data(x)
        complete = filled(x)
        self.centre.copy_(complete.mean(0))
        self.maximise(x, self.near_seeds(complete.sqrt()))  # roots of counts have about the same variance everywhere

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any = None) -> tuple[Tensor, ...]:
        """Expected counts of entries and their sums, [K, D] each."""
        return entry_sums(x, responsibilities)

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any = None) -> None:
        """lambda_kd = (sum_n r_nk x_nd + c m_d) / (sum_n r_nk + c); without counts it stays where it is."""
        entries, sums = statistics
        total = entries + self.pseudo_count
        some = total > torch.finfo(self.dtype).tiny * 1e8
        rates = torch.where(some, (sums + self.pseudo_count * self.centre) / torch.where(some, total, 1.0), self.rates)
        self.log_rates.copy_(rates.clamp_min(self.floor).log())
