"""What a hidden state emits: the parameters, the distribution and the M-step of each kind of observation."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.models.mixtures.mixture import spread_rows

__all__ = ["EMISSIONS", "BernoulliEmission", "CategoricalEmission", "Emission", "GaussianEmission"]


class Emission(nn.Module):
    """p(x_t | z_t = k), one entry after another independent given k.

    Arguments:
        states: K.
        dimensions: D, entries of a step.
        count: pseudo-count of each outcome, added in the M-step.
    """

    support: constraints.Constraint

    def __init__(self, states: int, dimensions: int, count: float) -> None:
        super().__init__()
        self.states, self.dimensions, self.count = states, dimensions, count

    def of(self, z: Tensor) -> TorchDistributionMixin:
        """The entries' distribution given states of any shape: batch shape that of the states, and [D] behind it if D > 1."""
        raise NotImplementedError

    def _at(self, table: Tensor, z: Tensor) -> Tensor:
        return table[z] if self.dimensions > 1 else table[z].squeeze(-1)

    def start(self, x: Tensor, seen: Tensor) -> None:
        """Draw a start; x and seen [N, D]."""
        raise NotImplementedError

    def maximise(self, x: Tensor, seen: Tensor, weights: Tensor) -> None:
        """The M-step in place; x, seen [N, D], weights [N, K]."""
        raise NotImplementedError

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' prior up to a constant, []."""
        raise NotImplementedError


class CategoricalEmission(Emission):
    """x ~ Categorical(softmax(logits_k)); `logits` [K, values]."""

    def __init__(self, states: int, dimensions: int, count: float, values: int) -> None:
        super().__init__(states, dimensions, count)
        self.values, self.support = values, constraints.integer_interval(0, values - 1)
        self.logits = nn.Parameter(torch.randn(states, values))

    def of(self, z: Tensor) -> TorchDistributionMixin:
        return dist.Categorical(logits=self.logits[z])

    def start(self, x: Tensor, seen: Tensor) -> None:
        self.logits.copy_(dist.Dirichlet(torch.ones_like(self.logits)).sample().clamp_min(1e-3).log())

    def maximise(self, x: Tensor, seen: Tensor, weights: Tensor) -> None:
        hits = nn.functional.one_hot(x.long().clamp_min(0), self.values).to(weights) * seen.unsqueeze(-1)  # [N, D, V]
        counts = torch.einsum("nk,ndv->kv", weights, hits) + self.count
        share = counts / counts.sum(-1, keepdim=True).clamp_min(torch.finfo(counts.dtype).tiny)
        self.logits.copy_(share.clamp_min(torch.finfo(share.dtype).tiny).log())

    def log_prior(self) -> Tensor:
        return self.count * self.logits.log_softmax(-1).sum()


class BernoulliEmission(Emission):
    """x_d ~ Bernoulli(sigmoid(logits_kd)); `logits` [K, D]."""

    support = constraints.boolean

    def __init__(self, states: int, dimensions: int, count: float) -> None:
        super().__init__(states, dimensions, count)
        self.logits = nn.Parameter(torch.randn(states, dimensions))

    def of(self, z: Tensor) -> TorchDistributionMixin:
        return dist.Bernoulli(logits=self._at(self.logits, z))

    def start(self, x: Tensor, seen: Tensor) -> None:
        self.logits.copy_(torch.rand_like(self.logits).mul(0.8).add(0.1).logit())

    def maximise(self, x: Tensor, seen: Tensor, weights: Tensor) -> None:
        ones = weights.mT @ (x * seen) + self.count
        total = weights.mT @ seen.to(weights) + 2 * self.count
        theta = torch.where(total > 0, ones / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
        eps = torch.finfo(theta.dtype).eps
        self.logits.copy_(theta.clamp(eps, 1 - eps).logit())

    def log_prior(self) -> Tensor:
        log_theta = nn.functional.logsigmoid(self.logits)
        return self.count * (2 * log_theta - self.logits).sum()


class GaussianEmission(Emission):
    """x_d ~ N(mean_kd, variance_kd); `mean`, `log_variance` [K, D]."""

    support = constraints.real

    def __init__(self, states: int, dimensions: int, count: float, floor: float) -> None:
        super().__init__(states, dimensions, count)
        self.floor = floor
        self.mean = nn.Parameter(torch.randn(states, dimensions))
        self.log_variance = nn.Parameter(torch.zeros(states, dimensions))

    def of(self, z: Tensor) -> TorchDistributionMixin:
        return dist.Normal(self._at(self.mean, z), (0.5 * self._at(self.log_variance, z)).exp())

    def start(self, x: Tensor, seen: Tensor) -> None:
        """Means at k-means++ seeds of the steps that are all seen, variances those of the data."""
        whole = x[seen.all(-1)]
        whole = whole if len(whole) else x
        self.mean.copy_(whole[spread_rows(whole, self.states)])
        self.log_variance.copy_(whole.var(0, correction=0).clamp_min(self.floor).log().expand_as(self.log_variance))

    def maximise(self, x: Tensor, seen: Tensor, weights: Tensor) -> None:
        there = seen.to(weights)
        total = (weights.mT @ there).clamp_min(torch.finfo(weights.dtype).tiny)  # [K, D]
        mean = weights.mT @ (x * there) / total
        spread = (weights.T[:, :, None] * there * (x - mean[:, None]).square()).sum(1) / total
        self.mean.copy_(mean)
        self.log_variance.copy_(spread.clamp_min(self.floor).log())

    def log_prior(self) -> Tensor:
        return self.mean.new_zeros(())


def _made(kind: str, states: int, dimensions: int, count: float, values: int | None, floor: float) -> Emission:
    if kind == "categorical":
        return CategoricalEmission(states, dimensions, count, int(values or 0))
    if kind == "bernoulli":
        return BernoulliEmission(states, dimensions, count)
    return GaussianEmission(states, dimensions, count, floor)


EMISSIONS: dict[str, Any] = {
    kind: lambda *args, kind=kind: _made(kind, *args) for kind in ("categorical", "bernoulli", "gaussian")
}
