"""Metropolis-adjusted microcanonical sampling: isokinetic trajectories of random length, accepted by the work done."""

import math
from dataclasses import dataclass

import torch

from ppl_dgm.inference.chains.adaptation import Adaptation
from ppl_dgm.inference.chains.hamiltonian import DIVERGED, Density, Metric, Point
from ppl_dgm.inference.chains.isokinetic import (
    INTEGRATORS,
    directions,
    energy_change,
    isokinetic_trajectory,
    require_two,
)
from ppl_dgm.inference.chains.sampling import Drawn, HamiltonianSampler, Kernel
from ppl_dgm.inference.chees import LearnedTrajectory
from ppl_dgm.inference.hmc import halton
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["AdjustedMCLMC", "IsokineticTrajectory"]


class IsokineticTrajectory(LearnedTrajectory):
    """A fresh direction, an isokinetic trajectory of random length, a Metropolis step at its end."""

    name = "adjusted microcanonical Langevin"

    def __init__(self, length: float | None, integrator: str, max_steps: int) -> None:
        self.learns, self.integrator = length is None, integrator
        super().__init__(length or math.pi / 2, 1.0, max_steps)

    def steps(self, step: float, t: int) -> int:
        """Integrator steps of trajectory t: the same for all chains, and chosen without looking at where they are."""
        return min(max(math.ceil(2 * halton(t) * self.length / step), 1), self.max_steps)

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        u, steps = directions(point.z), self.steps(step, t)
        end, u_end, work = isokinetic_trajectory(density, metric, point, u, step, steps, self.integrator)
        change = energy_change(point, end, work)
        accept = (-change).exp().clamp(max=1.0)
        new = point.moved(end, torch.rand_like(accept) < accept)
        if learning and self.learns:
            self.learn(density, metric, point, end, u_end * math.sqrt(density.dim), accept, steps * step, t)
        stats = {"diverging": change > DIVERGED, "energy_change": change / density.dim, "n_steps": steps}
        return Drawn(new, accept, {**stats, "length": self.length})

    def settle(self) -> None:
        if self.learns:
            super().settle()


@algorithm("adjusted-mclmc")
@dataclass(frozen=True)
class AdjustedMCLMC(HamiltonianSampler):
    """Metropolis-adjusted microcanonical sampling (MAMS): exact draws from dynamics whose momenta keep their length.

    Each draw takes a direction u uniform on the sphere, follows the isokinetic dynamics (see `isokinetic_trajectory`)
    for a random number of steps, and is accepted with probability

        min(1, exp(-W)),        W = work of the turns of u - (log p(z') - log p(z)).

    The step leaves the posterior invariant whatever the step size. Warm-up learns step size (dual averaging on the mean
    acceptance of all chains), metric and mean length of a trajectory from all chains. The length climbs
    the criterion of `ChEES`; a rule from autocorrelations, as published for a single chain, would need longer warm-up.

    Arguments:
        chains: chains that run at once; the length is learned from all of them, so take 16 or more.
        target_accept: mean acceptance that the step size is adapted to.
        length: mean length of a trajectory, in units in which each coordinate of the metric moves by about one;
            None to learn it. Multiplied with sqrt(d), it is the L of the source.
        integrator: "minimal-norm" (two gradients a step, of half the error per gradient), or "leapfrog" (one).
        max_steps: integrator steps of a trajectory, at most. The number is uniform on [1, 2 length / step size].
        warmup, draws, metric, step_size, backend, dtype, checkpoint: see `HMC`.

    Returns, in `Posterior.stats`, for each draw: `lp`, `acceptance_rate`, `step_size`, `n_steps` and `diverging` as for
    `HMC`, `length`, and `energy_change` (W / d, nats).

    Raises:
        TaskUnavailable: there is one coordinate only, on which a direction cannot turn.

    Source: Robnik, Cohn-Gordon and Seljak (2025), Metropolis adjusted microcanonical Hamiltonian Monte Carlo, arXiv
    2503.01707; the integrator of Omelyan, Mryglod and Folk (2003).
    """

    chains: int = 64
    warmup: int = 300
    draws: int = 300
    target_accept: float = 0.9
    length: float | None = None
    integrator: str = "minimal-norm"
    max_steps: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        enough = self.chains >= 2 or self.length is not None
        require(self, ("chains", enough, "at least 2 where the length is learned, since that is done across chains"))
        require(self, ("length", self.length is None or self.length > 0, "positive, or None to learn it"))
        require(self, ("integrator", self.integrator in INTEGRATORS, f"one of {', '.join(map(repr, INTEGRATORS))}"))
        require(self, ("max_steps", self.max_steps >= 1, "at least 1"))

    def adaptation(self, density: Density) -> Adaptation:
        require_two("AdjustedMCLMC", density.dim)
        return super().adaptation(density)

    def kernel(self) -> Kernel:
        return IsokineticTrajectory(self.length, self.integrator, self.max_steps)
