"""ChEES: Hamiltonian Monte Carlo that learns its trajectory length from all chains, without trees."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.inference.chains.hamiltonian import Metric, Point, fuses
from ppl_dgm.inference.chains.sampling import HamiltonianSampler, Kernel
from ppl_dgm.inference.hmc import JitteredTrajectory
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["ChEES", "LearnedTrajectory", "chees_gradient"]

_RATE, _MEMORY = 0.05, 0.95  # of Adam on the log length: without momentum, as its gradient is noisy
_AVERAGED = 0.95  # memory of the average length that is used after warm-up


def chees_gradient(metric: Metric, start: Point, end: Point, r_end: Tensor, accept: Tensor) -> Tensor:
    """The derivative of the ChEES criterion by the trajectory's length, averaged over chains.

        ChEES = E[(|x' - mean|^2 - |x - mean|^2)^2] / 4,        d/dt = E[(|x' - m'|^2 - |x - m|^2) (x' - m') . r']

    in the metric's coordinates x = S^-1 z, each chain weighted with its acceptance probability.

    Arguments:
        start, end: of the trajectories.
        r_end: momenta at the end, [chain, d].
        accept: [chain].
    """
    return _slope(metric.whiten(start.z), metric.whiten(end.z), r_end, accept)


def fused_gradient(density: Any, x: Tensor, x_end: Tensor, r_end: Tensor, accept: Tensor) -> tuple[Tensor, ...]:
    """`chees_gradient` as a function of tensors alone, in the metric's coordinates."""
    return (_slope(x, x_end, r_end, accept),)


def _slope(x: Tensor, x_end: Tensor, r_end: Tensor, accept: Tensor) -> Tensor:
    finite = x_end.isfinite().all(1) & r_end.isfinite().all(1)
    weight = torch.where(finite, accept, 0.0)
    x_end, r_end = torch.where(finite[:, None], x_end, x), torch.where(finite[:, None], r_end, 0.0)
    total = weight.sum().clamp(min=1e-6)
    x, x_end = x - x.mean(0), x_end - (weight[:, None] * x_end).sum(0) / total
    change = x_end.square().sum(1) - x.square().sum(1)
    return (weight * change * torch.linalg.vecdot(x_end, r_end)).sum() / total


class LearnedTrajectory(JitteredTrajectory):
    """A jittered trajectory whose mean length climbs the ChEES criterion by Adam, on its logarithm."""

    name = "ChEES-HMC"
    remembered = ("length", "squared", "count", "log_average")

    def __init__(self, length: float, jitter: float, max_steps: int) -> None:
        super().__init__(length, jitter, max_steps)
        self.first = length
        self.restart()

    def restart(self) -> None:
        """Other coordinates: what was learned of lengths in the old ones says nothing."""
        self.length = self.first
        self.squared, self.count, self.log_average = 0.0, 0, math.log(self.first)

    def learn(
        self, density: Any, metric: Metric, start: Point, end: Point, r_end: Any, accept: Any, length: float, t: int
    ) -> None:
        if fuses(density, metric):
            x, x_end = metric.whiten(start.z), metric.whiten(end.z)
            slope = density.fused(fused_gradient, x, x_end, r_end, accept, gradients=0)[0]
        else:
            slope = chees_gradient(metric, start, end, r_end, accept)
        gradient = float(slope) * length
        if not math.isfinite(gradient):
            return
        self.count += 1
        self.squared = _MEMORY * self.squared + (1 - _MEMORY) * gradient**2
        size = math.sqrt(self.squared / (1 - _MEMORY**self.count))
        log_length = math.log(self.length) + _RATE * gradient / (size + 1e-12)
        self.length = math.exp(log_length)
        self.log_average = _AVERAGED * self.log_average + (1 - _AVERAGED) * log_length

    def settle(self) -> None:
        self.length = math.exp(self.log_average)


@algorithm("chees")
@dataclass(frozen=True)
class ChEES(HamiltonianSampler):
    """ChEES-HMC: many chains share one jittered trajectory length, learned by gradient on how far a draw moves.

    The criterion is the change in squared distance from the mean; there are no trees, so that all chains do the same
    work at each step. The method of choice for 16 chains or more.

    Arguments:
        chains: chains that run at once; the length is learned from all of them, so take 16 or more.
        target_accept: mean acceptance that the step size is adapted to. 0.9 costs no more gradients per
            effective draw than 0.8 and leaves fewer chains behind where the posterior is narrow.
        jitter: a trajectory's length is uniform on its mean * [1 - jitter, 1 + jitter].
        max_steps: leapfrog steps of a trajectory, at most.
        warmup, draws, metric, step_size: see `HMC`.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`.

    Statistics as for `HMC`.

    Source: Hoffman, Radul and Sountsov (2021), An adaptive MCMC scheme for setting trajectory lengths in HMC. There, the
    coordinates are those of the program and the metric is diagonal; here they are those of the learned metric.
    """

    chains: int = 64
    warmup: int = 300
    draws: int = 300
    target_accept: float = 0.9
    jitter: float = 0.5
    max_steps: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("chains", self.chains >= 2, "at least 2, since the length is learned across chains"))
        require(self, ("jitter", 0 <= self.jitter < 1, "at least 0 and below 1"))
        require(self, ("max_steps", self.max_steps >= 1, "at least 1"))

    def kernel(self) -> Kernel:
        return LearnedTrajectory(math.pi / 2, self.jitter, self.max_steps)
