"""What warm-up learns: the step size by dual averaging, the metric from draws and gradients of all chains."""

import math
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point, metropolis, reasonable_steps, trajectory
from ppl_dgm.inference.chains.low_rank import geometric_mean_root, low_rank_metric, restored_metric

__all__ = [
    "Adaptation",
    "DualAveraging",
    "Form",
    "Warmup",
    "descend",
    "fisher_metric",
    "metric_form",
    "relocated",
    "stranded",
    "windows",
]

_DENSE = 512  # coordinates up to which a metric of d^2 numbers is learned
_PLENTY = (
    6  # points for each coordinate: noise (1 + sqrt(d / n))^2 in a dense metric is then below a low rank's cutoff of 2
)
_KEPT = 20_000_000  # numbers kept of a window; of a longer one every second, third, ... draw


@dataclass
class DualAveraging:
    """Stochastic approximation of the step size at which the mean acceptance is `target`.

        log step_{t+1} = mu - sqrt(t) / (gamma (t + t0)) sum_s (target - acceptance_s)

    One update a step, with the mean acceptance over all chains: an update for each chain would shrink the
    adaptation rate as if one chain had run so much longer.

    Arguments:
        step: where to begin.
        target: mean acceptance to reach.

    Source: Hoffman and Gelman (2014), section 3.2.
    """

    step: float
    target: float
    gamma: float = 0.05
    t0: float = 10.0
    kappa: float = 0.75
    mu: float = math.nan
    count: int = 0
    error: float = 0.0
    log_average: float = 0.0

    def __post_init__(self) -> None:
        if math.isnan(self.mu):
            self.restart(self.step)

    def restart(self, step: float) -> None:
        """Forget everything, and begin from another step size."""
        self.step, self.mu = step, math.log(2 * step)
        self.count, self.error, self.log_average = 0, 0.0, 0.0

    def update(self, acceptance: float) -> float:
        """Takes the mean acceptance of one step of all chains; returns the step size to use next."""
        self.count += 1
        weight = 1 / (self.count + self.t0)
        self.error = (1 - weight) * self.error + weight * (self.target - acceptance)
        log_step = self.mu - math.sqrt(self.count) / self.gamma * self.error
        weight = self.count**-self.kappa
        self.log_average = weight * log_step + (1 - weight) * self.log_average
        self.step = math.exp(log_step)
        return self.step

    @property
    def average(self) -> float:
        """The averaged step size, for use after warm-up."""
        return math.exp(self.log_average) if self.count else self.step


def fisher_metric(z: Tensor, gradient: Tensor, dense: bool, low_rank: bool = False) -> Metric:
    """The metric that is nearest to the target in Fisher divergence, from points and the gradients there.

    The covariance estimate C solves C B C = A with A the covariance of the points and B that of the gradients:
    their geometric mean A # B^-1. For a Gaussian target, C is its covariance without any error as soon as there
    are more points than coordinates, wherever the points are; a covariance of draws would need many
    independent ones. A diagonal C has the entries sd(z) / sd(gradient).

    With few points, A and B are shrunk towards their diagonals by (d / n)^3.

    Arguments:
        z, gradient: [n, d], pooled over chains.
        dense: learn d^2 numbers, where there are more points than coordinates.
        low_rank: learn a diagonal and some directions, otherwise d numbers. With both, a dense metric is learned from
            six points or more for each coordinate: its noise is then below what a low rank leaves unexplained.

    Source: Seyboldt, Carlson and Carpenter (2026), arXiv 2603.18845; the dense form is theirs without the low rank.
    """
    good = z.isfinite().all(1) & gradient.isfinite().all(1)
    dtype, a, b = z.dtype, z[good].double(), gradient[good].double()
    n, d = a.shape
    if n < 2:
        return Metric(torch.ones(d, dtype=dtype, device=z.device))
    a, b = a - a.mean(0), b - b.mean(0)
    spread, slope = a.square().mean(0).sqrt(), b.square().mean(0).sqrt()
    scale = (spread / slope).sqrt()
    scale = torch.where(scale.isfinite() & (scale > 0), scale, 1.0)
    shrink = (d / n) ** 3
    dense = dense and (n >= _PLENTY * d if low_rank else shrink < 1)
    if not dense and not low_rank:
        return Metric(scale.to(dtype))
    a, b = a / scale, b * scale
    try:
        metric = _dense_metric(scale, a, b, shrink) if dense else low_rank_metric(scale, a, b)
    except torch.linalg.LinAlgError:
        return Metric(scale.to(dtype))
    return metric.to(dtype) if metric.finite else Metric(scale.to(dtype))


def _dense_metric(scale: Tensor, a: Tensor, b: Tensor, shrink: float) -> Metric:
    """The geometric mean of the draws' covariance and the inverse of the gradients', each shrunk to its diagonal."""
    n = len(a)
    first, second = a.T @ a / n, b.T @ b / n
    for covariance in (first, second):
        covariance += shrink / (1 - shrink) * covariance.diagonal().clamp(min=1e-12).diag_embed()
    return Metric(scale[:, None] * geometric_mean_root(first, second))


def windows(warmup: int) -> list[int]:
    """The steps after which the metric is learned anew, from the draws since the last of them.

    Each window is half as long again as the one before; the last sixth, at least, is for the step size alone.

    Example:
        >>> windows(300)
        [10, 25, 47, 80, 130, 250]
    """
    end = warmup - max(warmup // 6, min(20, warmup // 2))
    ends, length = [], 10.0
    at = 10
    while at < end:
        ends.append(at)
        length *= 1.5
        at += int(length)
    if not ends:
        return [end] if end >= 5 else []
    if len(ends) > 1 and end - ends[-1] < ends[-1] - ends[-2]:
        ends.pop()
    return [*ends, end]


def descend(density: Density, point: Point, iterations: int, steps: int = 8) -> tuple[Point, list[Point]]:
    """From dispersed starting points to where the posterior's mass is: short trajectories, each chain with its own step size.

    Starting points can differ in curvature by orders of magnitude, so that a step size for all would leave some
    chains where they are. One that is high above its level of energy falls, whatever its step size is adapted to.

    Returns:
        where the chains are, and where they were in the second half of the iterations.
    """
    metric = Metric.identity(density)
    start = torch.full((len(point.z),), 0.1, dtype=point.z.dtype, device=point.z.device)
    step = reasonable_steps(density, metric, point, start)
    seen = []
    for i in range(iterations):
        r = torch.randn_like(point.z)
        end, r_end = trajectory(density, metric, point, r, step[:, None], steps)
        point, accept, _ = metropolis(point, r, end, r_end)
        step = step * ((accept - 0.6) * 1.5).exp()
        if 2 * i >= iterations - 1:
            seen.append(point)
    return point, seen


def stranded(value: Tensor, dim: int) -> Tensor:
    """Which chains are where the posterior has no mass to speak of, [chain], True or False.

    Those whose log density is more than 20 + 10 d nats below the best chain's. A mode so low would matter only if it
    were e^10 times as wide as the best one in every direction; modes that differ in weight alone are never
    concerned.

    Arguments:
        value: log densities, [chain].
        dim: d.
    """
    return ~(value > value.nan_to_num(nan=-torch.inf).max() - (20 + 10 * dim))


def relocated(point: Point, lost: Tensor) -> Point:
    """The chains marked as `lost` [chain] put to the places of others, drawn at random."""
    sound = (~lost).nonzero().flatten()
    places = torch.arange(len(lost), device=lost.device)
    places[lost] = sound[torch.randint(len(sound), (int(lost.sum()),), device=lost.device)]
    return Point(point.z[places], point.value[places], point.gradient[places])


class Adaptation:
    """What a sampler learns in warm-up, and holds fixed afterwards; this one learns nothing.

    Attributes:
        step: the step size now.
        metric: the metric now.
        relocated: how often a stranded chain was put to the place of another one.
    """

    metric: Metric
    relocated: int = 0

    def __init__(self, step: float = 1.0) -> None:
        self._step = step

    @property
    def step(self) -> float:
        """The step size now."""
        return self._step

    def begin(self, density: Density, point: Point) -> Point:
        """Before the first step; returns where the chains begin."""
        self.metric = Metric.identity(density)
        return point

    def update(self, density: Density, point: Point, acceptance: float, t: int) -> tuple[Point, bool]:
        """After step t (from 0) of warm-up: learn from where the chains are and how often they accepted.

        Returns:
            where the chains are now, and whether the metric is another.
        """
        return point, False

    def finish(self) -> None:
        """Warm-up is over."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that changes, as tensors and as what JSON can hold, for a checkpoint."""
        return self.metric.tensors(), {"step": self._step, "relocated": self.relocated}

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.metric, self._step, self.relocated = restored_metric(tensors), notes["step"], notes["relocated"]


@dataclass
class Warmup(Adaptation):
    """The course of warm-up: windows for the metric, and dual averaging of the step size throughout.

    Arguments:
        length: steps of warm-up.
        target: mean acceptance.
        dense: a dense metric, once there are more points than coordinates.
        fixed_step: a step size that stays as it is, or None.
        low_rank: a diagonal and some directions where the metric is not dense, or a diagonal alone.
        gamma: how slowly the step size follows its acceptance; a step size to which a single proposal responds sharply
            swings to and fro at 0.05 when the mean over many chains has hardly any noise.

    Attributes:
        relocated: how often a stranded chain was put to the place of another one.
        thinning: steps from one draw that is kept of this window to the next.
    """

    length: int
    target: float
    dense: bool
    fixed_step: float | None = None
    low_rank: bool = False
    gamma: float = 0.05
    ends: list[int] = field(default_factory=list)
    metric: Metric = field(init=False)
    averaging: DualAveraging = field(init=False)
    relocated: int = 0
    thinning: int = 1

    def __post_init__(self) -> None:
        self.ends = windows(self.length)
        self._z: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def begin(self, density: Density, point: Point) -> Point:
        """First metric and step size, from where the chains are after a short descent."""
        self.metric = Metric.identity(density)
        step = self.fixed_step or 0.1
        self.averaging = DualAveraging(step, self.target, self.gamma)
        if self.length >= 10:
            point, seen = descend(density, point, 10)
            point = self._learn(point, [p.z for p in seen], [p.gradient for p in seen], move=False)
        self._restart(density, point)
        return point

    def update(self, density: Density, point: Point, acceptance: float, t: int) -> tuple[Point, bool]:
        """After step t (from 0): learn from where the chains are and how often they accepted.

        Returns:
            where the chains are now (stranded ones elsewhere), and whether the metric is another.
        """
        if self.fixed_step is None:
            self.averaging.update(acceptance)
        if not self.ends or t >= self.ends[-1]:
            return point, False
        begun = max([0, *[end for end in self.ends if end <= t]])
        stop = min(end for end in self.ends if end > t)
        self.thinning = 1 + 2 * point.z.numel() * (stop - begun) // _KEPT
        if (t - begun) % self.thinning == 0:
            self._z.append(point.z)
            self._gradients.append(point.gradient)
        if t + 1 != stop:
            return point, False
        point = self._learn(point, self._z, self._gradients, move=4 * t >= self.length)
        self._z, self._gradients = [], []
        self._restart(density, point)
        return point, True

    def _learn(self, point: Point, z: list[Tensor], gradients: list[Tensor], move: bool) -> Point:
        """A new metric; where most chains have arrived, from those alone, and with `move` the others follow them."""
        lost = stranded(point.value, point.z.shape[1])
        count = int(lost.sum())
        sound = (~lost).nonzero().flatten()
        if count and len(sound) >= count:
            z, gradients = [rows[sound] for rows in z], [rows[sound] for rows in gradients]
        self.metric = self.estimate(torch.cat(z), torch.cat(gradients))
        if not count or not move:
            return point
        self.relocated += count
        return relocated(point, lost)

    def estimate(self, z: Tensor, gradient: Tensor) -> Metric:
        """A metric from points and the gradients there, [n, d], of all chains in a window."""
        return fisher_metric(z, gradient, self.dense, self.low_rank)

    def _restart(self, density: Density, point: Point) -> None:
        if self.fixed_step is not None:
            return
        start = torch.full((len(point.z),), self.averaging.step, dtype=point.z.dtype, device=point.z.device)
        steps = reasonable_steps(density, self.metric, point, start)
        self.averaging.restart(float(steps.median()))

    @property
    def step(self) -> float:
        """The step size now."""
        return self.averaging.step

    def finish(self) -> None:
        """Settle on the averaged step size."""
        if self.fixed_step is None:
            self.averaging.step = self.averaging.average

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = self.metric.tensors()
        for name, window in (("z", self._z), ("gradients", self._gradients)):
            if window:
                tensors[name] = torch.stack(window)
        return tensors, {"averaging": vars(self.averaging), "relocated": self.relocated}

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        self.metric, self.relocated = restored_metric(tensors), notes["relocated"]
        self.averaging = DualAveraging(**notes["averaging"])
        self._z, self._gradients = (
            list(tensors[name].unbind(0)) if name in tensors else [] for name in ("z", "gradients")
        )


class Form(TypedDict):
    """What kind of metric a `Warmup` learns: its arguments of these names."""

    dense: bool
    low_rank: bool


def metric_form(metric: str, dim: int) -> Form:
    """What "auto", "dense", "low-rank" and "diagonal" mean for so many coordinates.

    A dense metric costs d^2 numbers for each chain and step, a low rank k d: above 512 coordinates, "auto" is of low rank.
    """
    dense = metric == "dense" or (metric == "auto" and dim <= _DENSE)
    return {"dense": dense, "low_rank": metric in ("auto", "low-rank")}
