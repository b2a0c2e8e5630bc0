"""HMC: Hamiltonian Monte Carlo with trajectories of a given length, many chains at once."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point, decide, kinetic, trajectory
from ppl_dgm.inference.chains.sampling import Drawn, HamiltonianSampler, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["HMC", "JitteredTrajectory", "halton"]


def halton(index: int) -> float:
    """Element `index` (from 0) of the van der Corput sequence in base 2, in (0, 1): evenly spread at every stage.

    Example:
        >>> [halton(i) for i in range(4)]
        [0.5, 0.25, 0.75, 0.125]
    """
    index, value, weight = index + 1, 0.0, 0.5
    while index:
        value += weight * (index & 1)
        index >>= 1
        weight /= 2
    return value


class JitteredTrajectory(Kernel):
    """One trajectory for all chains, of length `length * (1 - jitter + 2 jitter h)` with quasi-random h in (0, 1).

    A length that is always the same can be a multiple of a period of some direction, which then never moves.
    """

    name = "HMC"

    def __init__(self, length: float, jitter: float, max_steps: int) -> None:
        self.length, self.jitter, self.max_steps = length, jitter, max_steps

    def steps(self, step: float, t: int) -> int:
        """Leapfrog steps of trajectory t."""
        length = self.length * (1 - self.jitter + 2 * self.jitter * halton(t))
        return min(max(round(length / step), 1), self.max_steps)

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        r = torch.randn_like(point.z)
        steps = self.steps(step, t)
        end, r_end = trajectory(density, metric, point, r, step, steps)
        new, accept, diverging = decide(density, metric, point, r, end, r_end)
        if learning:
            self.learn(density, metric, point, end, r_end, accept, steps * step, t)
        energy = kinetic(r) - point.value
        stats = {"diverging": diverging, "energy": energy, "n_steps": steps}
        return Drawn(new, accept, {**stats, "reached_max_steps": steps >= self.max_steps})

    def learn(
        self, density: Any, metric: Metric, start: Point, end: Point, r_end: Any, accept: Any, length: float, t: int
    ) -> None:
        """Nothing is learned: the length is given."""


@algorithm("hmc")
@dataclass(frozen=True)
class HMC(HamiltonianSampler):
    """Hamiltonian Monte Carlo: trajectories of a given mean length, a Metropolis step at the end of each.

    All chains move together: chains are the leading dimension of every tensor. Warm-up learns one step size by
    dual averaging on the mean acceptance of all chains, and one metric from the draws and gradients of all.

    Arguments:
        chains: chains that run at once.
        warmup: steps that learn, thrown away.
        draws: draws kept of each chain.
        target_accept: mean acceptance that the step size is adapted to.
        metric: "dense", "low-rank" (a diagonal and the directions in which it is wrong, see `LowRankMetric`),
            "diagonal", or "auto": dense up to 512 coordinates, once there are six points for each to learn it from, and
            low-rank otherwise.
        step_size: fixes the step size instead of learning it.
        length: mean length of a trajectory, in the metric's coordinates, where every direction of the posterior
            has about unit scale: a quarter of a turn, pi / 2, gives independent draws of a Gaussian.
        jitter: a trajectory's length is uniform on length * [1 - jitter, 1 + jitter].
        max_steps: leapfrog steps of a trajectory, at most.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`.

    Returns, in `Posterior.stats`, for each draw: `lp` (log density in the unconstrained space), `energy`
    (Hamiltonian after the momentum was drawn), `acceptance_rate`, `diverging` (energy error above 1000), `n_steps`
    (leapfrog steps), `step_size`.

    Source: Neal (2011).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> dgm.infer(coin, torch.tensor(7.0), method=HMC(warmup=50, draws=50), seed=0).draws["p"].shape
        torch.Size([4, 50])
    """

    length: float = math.pi / 2
    jitter: float = 0.5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("length", self.length > 0, "positive"))
        require(self, ("jitter", 0 <= self.jitter < 1, "at least 0 and below 1"))
        require(self, ("max_steps", self.max_steps >= 1, "at least 1"))

    def kernel(self) -> Kernel:
        return JitteredTrajectory(self.length, self.jitter, self.max_steps)
