"""How far draws are from a reference: squared bias, standardised errors, sliced Wasserstein, maximum mean discrepancy."""

import math

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError

__all__ = [
    "b_squared",
    "maximum_mean_discrepancy",
    "median_distance",
    "sliced_wasserstein",
    "standardised_error",
    "thinned",
    "wasserstein",
]

_ROWS = 512  # rows of a kernel matrix that are held at a time


def b_squared(estimate: Tensor, expectation: Tensor, variance: Tensor) -> Tensor:
    """Squared bias over variance, elementwise, for any function f of the draws.

        b^2 = (mean_s f(z_s) - E f)^2 / Var f

    N independent draws have E b^2 = 1 / N, so that b^2 = 0.01 is what a hundred of them would give.

    Arguments:
        estimate, expectation, variance: of the same shape, or to be broadcast. Where the variance is zero, b^2 is zero
            for the right value and infinite for any other.

    Source: Hoffman and Sountsov (2022), Tuning-free generalized Hamiltonian Monte Carlo.
    """
    error = (estimate - expectation).square()
    constant = torch.where(error == 0, 0.0, torch.inf).to(error)
    return torch.where(variance > 0, error / variance, constant)


def standardised_error(estimate: Tensor, stderr: Tensor, expectation: Tensor, reference_stderr: Tensor) -> Tensor:
    """(estimate - expectation) / sqrt(stderr^2 + reference_stderr^2), elementwise.

    A standard normal variable if both are unbiased. Where both standard errors are zero, zero for equal values and
    infinite for others.
    """
    error = estimate - expectation
    return torch.where(error == 0, 0.0, error / torch.hypot(stderr, reference_stderr))


def wasserstein(x: Tensor, y: Tensor, p: float = 1.0) -> Tensor:
    """The Wasserstein distance between samples on the line, exactly, whatever their sizes.

        W_p = ( integral_0^1 |Fx^-1(u) - Fy^-1(u)|^p du )^(1/p)

    Arguments:
        x, y: [..., n] and [..., m].
        p: at least 1.

    Returns:
        [...].
    """
    x, y = x.sort(-1).values, y.sort(-1).values
    n, m = x.shape[-1], y.shape[-1]
    if n == m:
        return (x - y).abs().pow(p).mean(-1).pow(1 / p)
    # both quantile functions are constant between neighbouring multiples of 1 / n and 1 / m: count in units of 1 / (n m)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    weight = ((ends - begins).double() / (n * m)).to(x)
    gap = x[..., (begins // m).to(x.device)] - y[..., (begins // n).to(x.device)]
    return (gap.abs().pow(p) * weight).sum(-1).pow(1 / p)


def sliced_wasserstein(x: Tensor, y: Tensor, p: float = 1.0, projections: int = 128, seed: int = 0) -> float:
    """The Wasserstein distance of two samples, averaged over directions.

        SW_p = ( E_theta W_p(theta . x, theta . y)^p )^(1/p),        theta uniform on the unit sphere

    For N(0, I) and N(m, I): SW_2 = |m| / sqrt(d).

    Arguments:
        x, y: [n, d] and [m, d].
        p: at least 1.
        projections: directions; one will do for d = 1.
        seed: of the directions, which are the same at each call; torch's own random state is left alone.

    Returns:
        the distance, in the units of x.

    Source: Bonneel, Rabin, Peyré and Pfister (2015).
    """
    _check(x, y)
    count = projections if x.shape[1] > 1 else 1
    directions = torch.randn(x.shape[1], count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(x)
    along = wasserstein((x @ directions).mT, (y @ directions).mT, p)  # [projection]
    return float(along.pow(p).mean().pow(1 / p))


def median_distance(x: Tensor) -> float:
    """The median distance between two different rows of x, [n, d]: the usual width of a kernel."""
    distances = torch.pdist(x)
    return float(distances.median()) if len(distances) else math.nan


def maximum_mean_discrepancy(x: Tensor, y: Tensor, width: float | None = None) -> float:
    """The distance of two samples' mean embeddings under a Gaussian kernel, by its unbiased estimate.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),        k(x, y) = exp(-|x - y|^2 / (2 width^2))

    The estimate of MMD^2 is unbiased for independent draws, so that it can be negative; the root of its positive part
    is returned. Since the kernel is bounded, heavy tails do no harm.

    Arguments:
        x, y: [n, d] and [m, d], two rows each at least.
        width: of the kernel; by default the median distance between rows of y.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012).
    """
    _check(x, y)
    if min(len(x), len(y)) < 2:
        raise ProgramError("maximum_mean_discrepancy needs two draws of each sample; give more draws.")
    width = median_distance(y) if width is None else width
    if not width > 0:
        raise ProgramError(f"maximum_mean_discrepancy: the width of the kernel must be positive, but it is {width:g}.")
    n, m = len(x), len(y)
    within = (_kernel_sum(x, x, width) - n) / (n * (n - 1)) + (_kernel_sum(y, y, width) - m) / (m * (m - 1))
    return math.sqrt(max(within - 2 * _kernel_sum(x, y, width) / (n * m), 0.0))


def _kernel_sum(x: Tensor, y: Tensor, width: float) -> float:
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in x.split(_ROWS):
        squares = torch.cdist(rows, y).square()
        total += (squares / (-2 * width**2)).exp().sum(dtype=torch.float64)
    return float(total)


def thinned(draws: Tensor, count: int) -> Tensor:
    """At most so many rows of draws [n, ...], evenly spaced."""
    if len(draws) <= count:
        return draws
    return draws[torch.linspace(0, len(draws) - 1, count, device=draws.device).round().long()]


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ProgramError(
            f"the samples have shapes {tuple(x.shape)} and {tuple(y.shape)}, but they must be [n, d] and [m, d]; "
            "flatten each draw to one row."
        )
