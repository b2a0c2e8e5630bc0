"""MixtureOfCategoricals: a weighted sum of K fully factorised categorical distributions."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.nn.functional import embedding_bag

from ppl_dgm.errors import ProgramError

from .mixture import Mixture, spread_rows

__all__ = ["MixtureOfCategoricals"]


class MixtureOfCategoricals(Mixture):
    """p(x) = sum_k w_k prod_d theta_kd[x_d].

    With `values=2` it is the mixture of Bernoullis. On digits, K = 10: 99.0 nats per test image.

    Arguments:
        observed: D, entries of an example.
        values: V, each entry is an integer from 0 to V - 1.
        components: K.
        pseudo_count: added to each expected count in the M-step, which makes EM find the posterior mode under a
            Dirichlet(1 + pseudo_count) prior on each theta_kd; 0 is maximum likelihood.

    Attributes:
        logits: [K, D, V], theta = softmax(logits).

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

    def __init__(self, observed: int, values: int, components: int, pseudo_count: float = 0.3) -> None:
        super().__init__(observed, components)
        if values < 1:
            raise ProgramError(f"values must be at least 1, but it is {values}.")
        if not 0 <= pseudo_count < math.inf:
            raise ProgramError(f"pseudo_count must be a number from 0, but it is {pseudo_count!r}.")
        self.values, self.pseudo_count = values, pseudo_count
        self.support = constraints.integer_interval(0, values - 1)
        self.logits = nn.Parameter(0.1 * torch.randn(components, observed, values))

    def component(self, k: Tensor) -> Distribution:
        """prod_d Categorical(theta_kd)."""
        return dist.Categorical(logits=self.logits[k]).to_event(1)

    def as_data(self, x: Tensor) -> Tensor:
        return x.long()

    @property
    def log_theta(self) -> Tensor:
        """log theta_kd[v] in nats, [K, D, V]."""
        return self.logits.log_softmax(-1)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) = sum_d log theta_kd[x_d], [batch, K]: D rows of one table, looked up and summed in one pass."""
        table = self.log_theta.flatten(1).mT  # [D * V, K]
        first = torch.arange(self.observed, device=x.device) * self.values  # where pixel d's rows begin
        return embedding_bag(x + first, table, mode="sum")

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' Dirichlet prior up to a constant, in nats, []; EM raises likelihood + prior."""
        return self.pseudo_count * self.log_theta.sum()

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Components from the rows nearest to k-means++ seeds, pulled half-way to the whole data's marginals."""
        x = self.as_data(x)
        entries = x.to(self.dtype)
        seeds = entries[spread_rows(entries, self.components)]  # [K, D]
        nearest = torch.cdist(entries, seeds).argmin(-1)  # [N]
        groups = nn.functional.one_hot(nearest, self.components).to(self.dtype)  # [N, K]
        self.set_weights(torch.full_like(self.weight_logits, 1 / self.components))
        self.maximise(x, 0.5 * groups + 0.5 / self.components)

    @torch.no_grad()
    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """theta_kd[v] = (sum_n r_nk 1[x_nd = v] + pseudo_count) / (N_k + V pseudo_count); without any count, uniform."""
        counts = [responsibilities.mT @ (x == value).to(responsibilities) for value in range(self.values)]  # V of [K, D]
        counts = torch.stack(counts, -1) + self.pseudo_count  # [K, D, V]
        total = counts.sum(-1, keepdim=True)
        tiny = torch.finfo(self.dtype).tiny
        theta = torch.where(total > tiny, counts / total.clamp_min(tiny), 1 / self.values)
        self.logits.copy_(theta.clamp_min(tiny).log())  # finite also where a value was never seen
