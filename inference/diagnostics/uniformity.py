"""Are these numbers uniform on [0, 1]? Simultaneous bands for their empirical distribution function."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import stats
from torch import Tensor

__all__ = ["Bands", "bands", "chi_square_p", "kolmogorov_smirnov_p", "shape_in_words"]

_SIMULATED = 10_000
_STRONG = 2.0  # standard errors from which a moment explains what is wrong


@dataclass(frozen=True)
class Bands:
    """Where the empirical distribution function of n uniform numbers lies, at all points at once.

    Attributes:
        points: z_k, where the function is looked at.
        lower, upper: of it, at each point: it leaves this band anywhere with probability 1 - level.
        level: of the band.
        simulated: the smallest pointwise tail probability of each of many simulated sets, sorted.
    """

    points: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    level: float
    simulated: np.ndarray
    tails: np.ndarray  # [point, count]: twice the smaller tail probability of so many numbers below the point

    def p_value(self, values: Tensor) -> float:
        """The probability that n uniform numbers stray further from the diagonal, somewhere, than these."""
        smallest = _smallest_tail(np.asarray(values.detach().cpu().double())[None], self.points, self.tails)[0]
        return float((1 + np.searchsorted(self.simulated, smallest, side="right")) / (1 + len(self.simulated)))

    def difference(self, values: Tensor) -> np.ndarray:
        """The empirical distribution function minus the diagonal, at each point."""
        ordered = np.sort(np.asarray(values.detach().cpu().double()))
        return np.searchsorted(ordered, self.points, side="right") / len(ordered) - self.points


@lru_cache(maxsize=32)
def bands(n: int, level: float = 0.95, points: int = 100) -> Bands:
    """Simultaneous bands for the empirical distribution function of n independent uniform numbers.

    n F(z_k) is Binomial(n, z_k) at each point; the pointwise level gamma is the one at which, of 10 000 simulated sets
    of n uniform numbers, a share of `level` stays between the quantiles gamma / 2 and 1 - gamma / 2 at all points.

    Source: Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity, section 2.2.

    Example:
        >>> b = bands(200)
        >>> bool((b.lower <= b.points).all() and (b.upper >= b.points).all())
        True
    """
    k = min(n, points)
    z = np.arange(1, k) / k if k > 1 else np.array([0.5])
    counts = np.arange(n + 1)
    below = stats.binom.cdf(counts[None], n, z[:, None])  # [point, count]
    above = stats.binom.sf(counts[None] - 1, n, z[:, None])
    tails = np.minimum(2 * np.minimum(below, above), 1.0)
    generator = np.random.default_rng(0)  # the same bands at every call
    per_batch = max(1, 2_000_000 // n)
    parts = [
        _smallest_tail(generator.random((min(per_batch, _SIMULATED - done), n)), z, tails)
        for done in range(0, _SIMULATED, per_batch)
    ]
    simulated = np.sort(np.concatenate(parts))
    gamma = simulated[int((1 - level) * _SIMULATED)]
    inside = tails >= gamma
    lower = inside.argmax(1) / n
    upper = (n - inside[:, ::-1].argmax(1)) / n
    return Bands(z, lower, upper, level, simulated, tails)


def _smallest_tail(values: np.ndarray, points: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """The smallest pointwise tail probability of each row of values, [set]."""
    cell = np.searchsorted(points, values, side="left")  # a value at a point counts as below it
    sets, k = len(values), len(points)
    histogram = np.bincount((cell + (k + 1) * np.arange(sets)[:, None]).ravel(), minlength=sets * (k + 1))
    counts = histogram.reshape(sets, k + 1).cumsum(1)[:, :k]
    return tails[np.arange(k), counts].min(1)


def kolmogorov_smirnov_p(values: Tensor) -> float:
    """p-value of the Kolmogorov-Smirnov test against the uniform distribution."""
    return float(stats.kstest(np.asarray(values.detach().cpu().double()), "uniform").pvalue)


def chi_square_p(values: Tensor) -> float:
    """p-value of the chi-square test over equal bins of at least ten expected numbers each, at most twenty bins."""
    bins = max(2, min(20, len(values) // 10))
    counts = torch.histc(values.detach().cpu().double(), bins, 0.0, 1.0)
    return float(stats.chisquare(counts.numpy()).pvalue)


def shape_in_words(values: Tensor) -> list[str]:
    """How numbers that should be uniform are not: `low`, `high` (on average), `edges` or `middle` (crowded there).

    The mean of n uniform numbers has standard error 1 / sqrt(12 n), their mean square distance from 1/2 has mean 1/12
    and standard error 1 / sqrt(180 n); what is two of them away is named.
    """
    centred = values.double() - 0.5
    n = len(values)
    shift = float(centred.mean()) * (12 * n) ** 0.5
    spread = (float(centred.square().mean()) - 1 / 12) * (180 * n) ** 0.5
    words = []
    if abs(shift) > _STRONG:
        words.append("high" if shift > 0 else "low")
    if abs(spread) > _STRONG:
        words.append("edges" if spread > 0 else "middle")
    return words
