"""RandomWalk: Metropolis's random walk with proposals shaped like the posterior; it needs no gradient."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.inference.chains.adaptation import Adaptation, DualAveraging, Warmup, metric_form
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point
from ppl_dgm.inference.chains.sampling import ChainSampler, Drawn, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["Proposals", "RandomWalk", "pooled_covariance"]

_METRICS = ("auto", "dense", "diagonal")
_SCALE = 2.38  # of proposals, times d^(-1/2): best for a normal posterior in many coordinates
_WORTH = 0.33  # of an independent draw, times 1 / d: what one transition at that scale is worth


def pooled_covariance(z: Tensor, dense: bool, effective: float) -> Metric:
    """A square root of the covariance of the draws of all chains, [n, d], around their common mean.

    A dense one is shrunk towards its diagonal by d / (d + effective).

    Arguments:
        z: [n, d].
        dense: learn d^2 numbers; otherwise d.
        effective: how many independent draws these are worth.
    """
    dtype, z = z.dtype, z[z.isfinite().all(1)].double()
    n, d = z.shape
    if n < 2:
        return Metric(torch.ones(d, dtype=dtype, device=z.device))
    z = z - z.mean(0)
    variance = z.square().mean(0)
    variance = torch.where(variance > 0, variance, 1.0)
    if dense:
        weight = d / (d + effective)
        covariance = (1 - weight) * (z.T @ z / n) + weight * variance.diag()
        root, failed = torch.linalg.cholesky_ex(covariance)
        if not int(failed):
            return Metric(root.to(dtype))
    return Metric(variance.sqrt().to(dtype))


class CovarianceWarmup(Warmup):
    """Windows that learn the covariance of draws, since there are no gradients, and the scale of proposals.

    Arguments:
        steps: transitions that an iteration takes.
    """

    def __init__(self, length: int, target: float, dense: bool, fixed_step: float | None, steps: int) -> None:
        super().__init__(length, target, dense, fixed_step, gamma=0.1)
        self.steps = steps

    def begin(self, density: Density, point: Point) -> Point:
        self.metric = Metric.identity(density)
        self._restart(density, point)
        return point

    def estimate(self, z: Tensor, gradient: Tensor) -> Metric:
        d, chains = z.shape[1], len(self._z[0])
        worth = len(self._z) * self.thinning * self.steps * _WORTH / d  # of each chain
        return pooled_covariance(z, self.dense, chains * (1 + worth))

    def _restart(self, density: Density, point: Point) -> None:
        scale = self.fixed_step or _SCALE / math.sqrt(density.dim)
        self.averaging = DualAveraging(scale, self.target, self.gamma)


class Proposals(Kernel):
    """So many normal proposals around where the chains are, each accepted or refused."""

    name = "random-walk Metropolis"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, density: Any, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        total = torch.zeros_like(point.value)
        for _ in range(self.steps):
            z = metric.add_push(point.z, torch.randn_like(point.z), step)
            value = density.log_prob(z)
            accept = (value - point.value).nan_to_num(nan=-torch.inf, posinf=-torch.inf).exp().clamp(max=1.0)
            taken = torch.rand_like(accept) < accept
            point = point.moved(Point(z, value, point.gradient), taken)
            total = total + accept
        return Drawn(point, total / self.steps, {"n_steps": self.steps})


@algorithm("random-walk")
@dataclass(frozen=True)
class RandomWalk(ChainSampler):
    """Random-walk Metropolis: proposals from a normal around each chain, with the covariance of all chains' draws.

        z' ~ N(z, s^2 C),        s about 2.38 / sqrt(d),

    The log density alone is evaluated, so that it may have jumps and no gradient. Draws become independent after some 3 d
    proposals at best: for more than a few coordinates, anything with gradients is cheaper. The defaults are long enough for
    100 coordinates: 800,000 evaluations, worth some 2000 independent draws.

    Arguments:
        chains: chains that run at once.
        warmup, draws: iterations, of `steps` proposals each.
        steps: proposals from one kept draw to the next.
        target_accept: mean acceptance that s is adapted to; 0.234 moves furthest in many coordinates.
        metric: C is "dense", "diagonal", or "auto": dense up to 512 coordinates.
        step_size: fixes s instead of learning it.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`.

    Returns, in `Posterior.stats`, for each draw: `lp`, `acceptance_rate` (mean over its proposals), `n_steps`,
    `step_size`. `Posterior.cost` counts `evaluations` of the log density; `gradients` is zero.

    Source: Haario, Saksman and Tamminen (2001); the scale: Roberts, Gelman and Gilks (1997).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> post = dgm.infer(coin, torch.tensor(7.0), method=RandomWalk(warmup=50, draws=50), seed=0)
        >>> post.draws["p"].shape, post.cost.gradients
        (torch.Size([16, 50]), 0)
    """

    chains: int = 16
    warmup: int = 500
    draws: int = 2000
    steps: int = 20
    target_accept: float = 0.234
    metric: str = "auto"
    step_size: float | None = None
    needs_gradient: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("steps", isinstance(self.steps, int) and self.steps >= 1, "a whole number, at least 1"),
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
            ("metric", self.metric in _METRICS, f"one of {', '.join(map(repr, _METRICS))}"),
            ("step_size", self.step_size is None or self.step_size > 0, "positive, or None to learn it"),
        )

    def kernel(self) -> Kernel:
        return Proposals(self.steps)

    def adaptation(self, density: Density) -> Adaptation:
        dense = metric_form(self.metric, density.dim)["dense"]
        return CovarianceWarmup(self.warmup, self.target_accept, dense, self.step_size, self.steps)

    def point(self, density: Any, z: Tensor) -> Point:
        return Point(z, density.log_prob(z), torch.zeros_like(z))
