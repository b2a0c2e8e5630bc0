"""MixtureOfCategoricals: a weighted sum of K fully factorised categorical distributions."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError

from .mixture import Mixture, filled

__all__ = ["MixtureOfCategoricals"]

_PRIORS = ("uniform", "marginal")
_ENTRIES = 2**22  # entries of [rows, D * V] held at a time, so that memory stays flat


class MixtureOfCategoricals(Mixture):
    """p(x) = sum_k w_k prod_d theta_kd[x_d].

    With `values=2` it is the mixture of Bernoullis. On digits, 97.7 nats per test image with the options that
    are best on the validation split: 30 components, `pseudo_count=1.0`, `prior="marginal"`, ten restarts.

    Arguments:
        observed: D, entries of an example.
        values: V, each entry is an integer from 0 to V - 1.
        components: K.
        pseudo_count: added to each expected count in the M-step, on average over the values; EM then finds
            the posterior mode under the prior theta_kd ~ Dirichlet(1 + pseudo_count V m_d). 0 is maximum
            likelihood.
        prior: where the pseudo-counts lie: m_d uniform, or the marginal of entry d in the data that
            `em_start` saw.
        missing: whether the data may have holes, marked by -1 or NaN.

    Attributes:
        logits: [K, D, V], theta = softmax(logits).
        pseudo_counts: [D, V], pseudo_count V m_d.

    Raises:
        ProgramError: an argument out of range.

    Source: J. Tomczak (2024), Deep Generative Modeling, 2.3.4; C. Bishop (2006), PRML, 9.3.3.

    Example:
        >>> import ppl_dgm as dgm
        >>> digits = dgm.data.digits()
        >>> fit = dgm.learn(dgm.models.MixtureOfCategoricals(64, 17, 10), digits, seed=0)
        >>> dgm.score(fit.program, digits.valid).kind
        'exact'
    """

    values: int
    pseudo_counts: Tensor

    def __init__(
        self,
        observed: int,
        values: int,
        components: int,
        pseudo_count: float = 0.3,
        prior: str = "uniform",
        missing: bool = False,
    ) -> None:
        super().__init__(observed, components, missing)
        if values < 1:
            raise ProgramError(f"values must be at least 1, but it is {values}.")
        if not 0 <= pseudo_count < math.inf:
            raise ProgramError(f"pseudo_count must be a number from 0, but it is {pseudo_count!r}.")
        if prior not in _PRIORS:
            raise ProgramError(f"prior must be one of {', '.join(_PRIORS)}, but it is {prior!r}.")
        self.values, self.pseudo_count, self.prior = values, pseudo_count, prior
        self.support = constraints.integer_interval(0, values - 1)
        self.logits = nn.Parameter(0.1 * torch.randn(components, observed, values))
        self.register_buffer("pseudo_counts", torch.full((observed, values), float(pseudo_count)))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """prod_d Categorical(theta_kd)."""
        return dist.Categorical(logits=self.logits[k]).to_event(1)

    def as_data(self, x: Tensor) -> Tensor:
        return x.nan_to_num(-1).long() if x.is_floating_point() else x.long()

    @property
    def components_free_count(self) -> int:
        return self.components * self.observed * (self.values - 1)

    @property
    def log_theta(self) -> Tensor:
        """log theta_kd[v] in nats, [K, D, V]."""
        return self.logits.log_softmax(-1)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) = sum_d log theta_kd[x_d] in nats, [batch, K], as one product of matrices."""
        table = self.log_theta.flatten(1).mT  # [D * V, K]
        return torch.cat([self._one_hot(part) @ table for part in self._parts(x)])

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, _ENTRIES // self.pseudo_counts.numel()))

    def _one_hot(self, x: Tensor) -> Tensor:
        """1[x_nd = v], [n, D * V]; all zero for what is missing."""
        first = torch.arange(self.observed, device=x.device) * self.values  # where entry d's columns begin
        blank = torch.zeros(len(x), self.pseudo_counts.numel(), device=x.device, dtype=self.dtype)
        return blank.scatter_(1, x.clamp_min(0) + first, (x >= 0).to(self.dtype))

    # -- expectation maximisation ----------------------------------------------------------------------------

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' Dirichlet prior up to a constant, in nats, []; EM adds it."""
        return (self.pseudo_counts * self.log_theta).sum()

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Components from the rows nearest to k-means++ seeds, pulled half-way to the data's marginals."""
        x = self.as_data(x)
        if self.prior == "marginal":
            counts = self._counts(x, torch.ones(len(x), 1, device=x.device, dtype=self.dtype)).squeeze(0) + 0.3
            marginal = counts / counts.sum(-1, keepdim=True)  # [D, V], no value impossible
            self.pseudo_counts.copy_(self.pseudo_count * self.values * marginal)
        entries = x.to(self.dtype)
        self.maximise(x, self.near_seeds(filled(entries.masked_fill(x < 0, torch.nan))))

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any = None) -> tuple[Tensor, ...]:
        """sum_n r_nk 1[x_nd = v], [K, D, V]."""
        return (self._counts(x, responsibilities.to(self.dtype)),)

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any = None) -> None:
        """theta_kd[v] proportional to sum_n r_nk 1[x_nd = v] + pseudo_counts_d[v]; uniform without counts."""
        counts = statistics[0].to(self.dtype) + self.pseudo_counts  # [K, D, V]
        total = counts.sum(-1, keepdim=True)
        tiny = torch.finfo(self.dtype).tiny
        theta = torch.where(total > tiny, counts / total.clamp_min(tiny), 1 / self.values)
        self.logits.copy_(theta.clamp_min(tiny).log())  # finite also where a value was never seen

    def _counts(self, x: Tensor, responsibilities: Tensor) -> Tensor:
        """sum_n r_nk 1[x_nd = v], [K, D, V]."""
        parts = zip(self._parts(x), self._parts(responsibilities))
        sums = sum(share.mT @ self._one_hot(part) for part, share in parts)
        return torch.as_tensor(sums).reshape(-1, *self.pseudo_counts.shape)
