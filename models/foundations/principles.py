"""Why the Gaussian: the central limit theorem and the principle of maximum entropy, each as numbers."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy import stats
from torch import Tensor

from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.randomness import seeded

__all__ = ["CentralLimit", "MaximumEntropy", "central_limit", "entropies", "maximum_entropy"]


class CentralLimit(NamedTuple):
    """How far standardised sums are from N(0, 1).

    Attributes:
        distance: Kolmogorov's, the largest difference between the two distribution functions, in [0, 1].
        p_value: of so large a distance if the sums were Gaussian.
        skewness: third standardised moment of the sums; falls like 1 / sqrt(terms).
        excess: fourth standardised moment of the sums less 3; falls like 1 / terms.
    """

    distance: float
    p_value: float
    skewness: float
    excess: float


def central_limit(fn: Any, terms: int, sums: int = 10_000, seed: int | None = None) -> CentralLimit:
    """Sums of independent draws, less their mean and divided by their standard deviation, against N(0, 1).

    Where the distribution says that its variance is not finite (Cauchy), the sums are standardised by their own
    median and quartiles, and stay as they are, however many terms there are.

    Arguments:
        fn: a distribution of single numbers.
        terms: numbers in a sum.
        sums: how many sums.
        seed: random seed.

    Source: P. S. Laplace (1810); A. Lyapunov (1901).

    Example:
        >>> import pyro.distributions as dist
        >>> few, many = (central_limit(dist.Exponential(1.0), terms, seed=0) for terms in (1, 400))
        >>> few.distance > 0.15, many.distance < 0.03
        (True, True)
    """
    with seeded(seed):
        total = torch.zeros(sums, dtype=torch.float64)
        for _ in range(terms):
            total += fn.sample((sums,)).double()
    variance = float(torch.as_tensor(fn.variance))
    if math.isfinite(variance):
        standard = (total - terms * float(fn.mean)) / math.sqrt(terms * variance)
    else:  # as far apart as the quartiles of N(0, 1)
        low, middle, high = torch.quantile(total, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        standard = (total - middle) / ((high - low) / (2 * stats.norm.ppf(0.75)))
    found, values = stats.kstest(standard.numpy(), "norm"), standard.numpy()
    return CentralLimit(
        float(found.statistic), float(found.pvalue), float(stats.skew(values)), float(stats.kurtosis(values))
    )


def entropies(variance: float = 1.0) -> dict[str, float]:
    """Differential entropies in nats of distributions with the same variance, the largest first: the Gaussian's.

    Example:
        >>> {name: round(value, 3) for name, value in entropies().items()}
        {'normal': 1.419, 'logistic': 1.405, 'laplace': 1.347, 'gumbel': 1.328, 'uniform': 1.242, 'exponential': 1.0}
    """
    if not 0 < variance < math.inf:
        raise ProgramError(f"entropies: variance must be a positive number, but it is {variance!r}.")
    s = math.sqrt(variance)
    values = {
        "normal": 0.5 * math.log(2 * math.pi * math.e) + math.log(s),
        "laplace": 1 + math.log(2 * s / math.sqrt(2)),
        "logistic": 2 + math.log(s * math.sqrt(3) / math.pi),
        "uniform": math.log(s * math.sqrt(12)),
        "exponential": 1 + math.log(s),
        "gumbel": 1 + 0.5772156649015329 + math.log(s * math.sqrt(6) / math.pi),
    }
    return dict(sorted(values.items(), key=lambda item: -item[1]))


class MaximumEntropy(NamedTuple):
    """The distribution of largest entropy among those with given expectations.

    Attributes:
        probabilities: of the values, [V]: proportional to exp(sum_i multiplier_i statistic_i(value)).
        multipliers: one for each statistic.
        entropy: in nats.
    """

    probabilities: Tensor
    multipliers: Tensor
    entropy: float


def maximum_entropy(
    values: Tensor,
    statistics: Sequence[Callable[[Tensor], Tensor]] = (),
    targets: Sequence[float] = (),
    steps: int = 200,
) -> MaximumEntropy:
    """The distribution over `values` of largest entropy subject to E statistic_i(x) = target_i.

    No constraint gives the uniform distribution, a mean on 0, 1, ... the geometric, a mean and a second moment on the
    real line the Gaussian. The multipliers minimise log sum_x exp(m . s(x)) - m . target, which is convex; Newton's steps
    are halved until it falls.

    Arguments:
        values: the possible values, [V].
        statistics: functions of the values, [V] -> [V].
        targets: their expectations.
        steps: most Newton steps.

    Raises:
        NumericalError: no distribution over the values has these expectations, or only one on the border.

    Source: E. Jaynes (1957), Information theory and statistical mechanics.

    Example:
        >>> import torch
        >>> found = maximum_entropy(torch.arange(6.0) + 1, [lambda x: x], [4.5])  # Jaynes' die
        >>> [round(p, 3) for p in found.probabilities.tolist()]
        [0.054, 0.079, 0.114, 0.165, 0.24, 0.347]
    """
    if len(statistics) != len(targets):
        raise ProgramError(f"maximum_entropy: {len(statistics)} statistics need as many targets, not {len(targets)}.")
    values = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if not statistics:
        count = len(values)
        return MaximumEntropy(torch.full((count,), 1 / count, dtype=torch.float64), torch.zeros(0), math.log(count))
    table = torch.stack([statistic(values) for statistic in statistics], -1)  # [V, S]
    centre = torch.as_tensor(targets, dtype=torch.float64)
    scale = table.std(0).clamp_min(1e-300)
    table = (table - centre) / scale  # the targets become zero, and the steps of a size
    multipliers = torch.zeros(table.shape[1], dtype=torch.float64)
    for _ in range(steps):
        log_p = (table @ multipliers).log_softmax(0)
        gradient = log_p.exp() @ table
        if float(gradient.abs().max()) < 1e-12:
            break
        hessian = (table * log_p.exp()[:, None]).mT @ table - gradient[:, None] * gradient
        multipliers = _descend(table, multipliers, gradient, hessian)
    log_p = (table @ multipliers).log_softmax(0)
    if not float((log_p.exp() @ table).abs().max()) <= 1e-8:  # also where it is no number
        raise NumericalError(
            f"maximum_entropy: the expectations {list(targets)} are not reached by any distribution with mass on all "
            "values; take targets inside the range of the statistics."
        )
    return MaximumEntropy(log_p.exp(), multipliers / scale, -float((log_p.exp() * log_p).sum()))


def _descend(table: Tensor, at: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:
    """A Newton step, halved until the dual falls."""
    tiny = 1e-12 * hessian.diagonal().max().clamp_min(1e-300) * torch.eye(len(at), dtype=torch.float64)
    step, value, size = torch.linalg.solve(hessian + tiny, gradient), (table @ at).logsumexp(0), 1.0
    while size > 1e-10 and float((table @ (at - size * step)).logsumexp(0)) > float(value) + 1e-14 * abs(float(value)):
        size /= 2
    return at - size * step
