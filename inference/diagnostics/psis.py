"""Pareto-smoothed importance sampling: the tail of many sets of weights at once, and how heavy it is."""

import math

import torch
from torch import Tensor

__all__ = ["RELIABLE_K", "LargestWeights", "pareto_shape", "psis", "reliable_k"]

RELIABLE_K = 0.7
_LEAST = 5  # exceedances from which a shape is fitted
_FLAT = 1e-3  # nats within which the weights of a tail count as equal: rounding has no shape
_PRIOR_DRAWS, _PRIOR_K = 10, 0.5  # the source's weak prior on the shape
_BUDGET = 2**22  # numbers held at a time while shapes are fitted


def psis(log_weights: Tensor, relative_efficiency: float = 1.0) -> tuple[Tensor, Tensor]:
    """Importance weights whose largest ones are replaced by quantiles of a generalised Pareto distribution fitted to them.

    The M = min(S/5, 3 sqrt(S/r)) largest of S weights become the expected order statistics of the fitted distribution,
    and none exceeds the largest raw weight. Averages under the smoothed weights have a far smaller variance, and a bias
    that is small where k is.

    Arguments:
        log_weights: [draw, ...] unnormalised, in nats; each trailing index has its own set of weights.
        relative_efficiency: r, effective draws over draws, where the draws are those of a chain.

    Returns:
        the smoothed log weights, [draw, ...], on the scale of the raw ones; and the shape k, [...], double: below 0.5 the
        weights have a finite variance, above min(0.7, 1 - 1 / log10 S) averages over them cannot be trusted. k is
        infinite where there is no tail to fit (fewer than 21 draws, or hardly any of positive weight), minus infinity
        where the largest weights are equal to a thousandth; the weights are then left as they are.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling; the fit is that of Zhang
    and Stephens (2009).

    Example:
        >>> smoothed, k = psis(torch.linspace(-3, 0, 1000))
        >>> smoothed.shape, bool(k < 0.5)
        (torch.Size([1000]), True)
    """
    draws, shape = len(log_weights), log_weights.shape
    table = log_weights.detach().reshape(draws, -1)  # [draw, set]
    tail = _tail_length(draws, relative_efficiency)
    if tail < _LEAST:
        return log_weights, table.new_full(shape[1:], math.inf, dtype=torch.float64)
    parts = [_smoothed(some.double(), tail) for some in table.split(max(1, _BUDGET // draws), 1)]
    weights, k = (torch.cat(part, -1) for part in zip(*parts, strict=True))
    return weights.reshape(shape).to(log_weights.dtype), k.reshape(shape[1:])


def _smoothed(table: Tensor, tail: int) -> tuple[Tensor, Tensor]:
    """`psis` of weights [draw, set]."""
    ordered, order = table.sort(0)
    largest = ordered[-1].clone()
    k, values = _tails(ordered[-tail - 1 :] - largest)
    ordered[-tail:] = values.clamp(max=0.0) + largest
    smoothed = torch.empty_like(ordered).scatter_(0, order, ordered)
    return torch.where(k.isfinite(), smoothed, table), k


def pareto_shape(log_weights: Tensor, relative_efficiency: float = 1.0) -> Tensor:
    """The shape k of `psis` alone, [...], for log weights [draw, ...]."""
    largest = LargestWeights(len(log_weights), relative_efficiency)
    largest.add(log_weights)
    return largest.shape()


def reliable_k(draws: int) -> float:
    """The shape below which an average over this many weighted draws can be trusted, min(0.7, 1 - 1 / log10 S)."""
    return min(RELIABLE_K, 1 - 1 / math.log10(draws)) if draws > 10 else 0.0


class LargestWeights:
    """The largest of weights that arrive in parts: all that the shape of their tail depends on.

    Arguments:
        draws: S, how many there will be.
        relative_efficiency: as in `psis`.
    """

    def __init__(self, draws: int, relative_efficiency: float = 1.0) -> None:
        self.tail = _tail_length(draws, relative_efficiency)
        self.kept: Tensor | None = None  # [at most tail + 1, ...]

    def add(self, log_weights: Tensor) -> None:
        """Take in more log weights, [draw, ...]."""
        known = log_weights if self.kept is None else torch.cat([self.kept, log_weights])
        self.kept = known.topk(min(self.tail + 1, len(known)), 0, sorted=False).values

    @classmethod
    def beside(cls, parts: "list[LargestWeights]") -> "LargestWeights":
        """The sets of all parts, one after the other along the second dimension."""
        whole = cls(0)
        whole.tail = parts[0].tail
        whole.kept = torch.cat([part.kept for part in parts if part.kept is not None], 1)
        return whole

    def shape(self) -> Tensor:
        """k, [...], double; see `psis`."""
        assert self.kept is not None
        shape = self.kept.shape[1:]
        if self.tail < _LEAST:
            return torch.full(shape, math.inf, dtype=torch.float64, device=self.kept.device)
        top = self.kept.double().reshape(len(self.kept), -1).sort(0).values
        return _tails(top - top[-1], smooth=False)[0].reshape(shape)


def _tail_length(draws: int, relative_efficiency: float) -> int:
    return math.ceil(min(0.2 * draws, 3 * math.sqrt(draws / relative_efficiency)))


def _tails(top: Tensor, smooth: bool = True) -> tuple[Tensor, Tensor]:
    """Shapes, [set], and smoothed values, [tail, set], of the largest log weights [tail + 1, set], ascending, at most 0."""
    cutoff = top[0].clamp(min=math.log(torch.finfo(torch.float64).tiny))
    values = top[1:]
    count = (values > cutoff).sum(0)  # equal weights at the cutoff are no exceedances
    k = torch.full_like(cutoff, math.inf)
    smoothed = values.clone()
    for n in count.unique().tolist():  # one number, but for ties
        if n < _LEAST:
            continue
        columns = (count == n).nonzero().flatten()
        for some in columns.split(max(1, _BUDGET // (n * (30 + math.isqrt(n))))):
            base = cutoff[some]
            excess = base.exp() * torch.expm1(values[-n:, some] - base)  # [tail, set]
            k[some], scale = _fit(excess)
            if smooth:
                quantiles = _quantiles(n, k[some], scale)
                smoothed[-n:, some] = torch.log(quantiles + base.exp())
    k = torch.where(k.isnan(), math.inf, k)
    return torch.where(top[-1] - top[0] < _FLAT, -math.inf, k), smoothed


def _fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale, each [set], of generalised Pareto distributions given ascending exceedances [n, set].

    The posterior mean of b = -k/scale under the empirical prior of Zhang and Stephens (2009), on a grid of m points.
    """
    n = len(excess)
    m = 30 + math.isqrt(n)
    steps = torch.arange(1, m + 1, dtype=excess.dtype, device=excess.device)[:, None]
    b = (1 - (m / (steps - 0.5)).sqrt()) / (3 * excess[int(n / 4 + 0.5) - 1]) + 1 / excess[-1]  # [m, set]
    shapes = torch.log1p(-b[:, None] * excess).mean(1)  # [m, set]
    profile = n * (torch.log(-b / shapes) - shapes - 1)
    weights = torch.softmax(profile, 0)
    weights = torch.where(weights >= 10 * torch.finfo(torch.float64).eps, weights, 0.0)
    b = (b * weights).sum(0) / weights.sum(0)
    k = torch.log1p(-b * excess).mean(0)
    return (n * k + _PRIOR_DRAWS * _PRIOR_K) / (n + _PRIOR_DRAWS), -k / b


def _quantiles(n: int, k: Tensor, scale: Tensor) -> Tensor:
    """Quantiles at (i - 1/2)/n, [n, set], of generalised Pareto distributions."""
    probability = ((torch.arange(n, dtype=k.dtype, device=k.device) + 0.5) / n)[:, None]
    exponential = -torch.log1p(-probability)
    return scale * torch.where(k.abs() < 1e-15, exponential, torch.expm1(k * exponential) / k)
