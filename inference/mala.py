"""MALA: the Metropolis-adjusted Langevin algorithm, preconditioned, many chains at once."""

from dataclasses import dataclass

import torch

from ppl_dgm.inference.chains.adaptation import Adaptation, Warmup, metric_form
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point, metropolis, trajectory
from ppl_dgm.inference.chains.sampling import Drawn, HamiltonianSampler, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["MALA", "Langevin"]


class Langevin(Kernel):
    """So many Langevin proposals, each accepted or refused: leapfrog steps with a new momentum for each."""

    name = "MALA"

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        total = torch.zeros_like(point.value)
        diverging = torch.zeros_like(point.value, dtype=torch.bool)
        for _ in range(self.steps):
            r = torch.randn_like(point.z)
            end, r_end = trajectory(density, metric, point, r, step, 1)
            point, accept, diverged = metropolis(point, r, end, r_end)
            total, diverging = total + accept, diverging | diverged
        return Drawn(point, total / self.steps, {"diverging": diverging, "n_steps": self.steps})


@algorithm("mala")
@dataclass(frozen=True)
class MALA(HamiltonianSampler):
    """The Metropolis-adjusted Langevin algorithm: a step along the gradient with noise, accepted or refused.

        z' = z + h^2 / 2 C grad log p(z) + h C^(1/2) xi,        xi ~ N(0, I),

    with the learned metric C and step size h, and the acceptance of Metropolis and Hastings. That is a Hamiltonian
    trajectory of one leapfrog step, and costs one gradient. It diffuses: in d coordinates, draws become independent
    after some d^(1/3) steps where the metric fits, and after many more where it does not.

    Arguments:
        chains: chains that run at once.
        warmup, draws: iterations, of `steps` proposals each.
        steps: proposals from one kept draw to the next.
        target_accept: mean acceptance that the step size is adapted to; 0.574 moves furthest in many coordinates.
        metric, step_size: see `HMC`.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`.

    Returns, in `Posterior.stats`, for each draw: `lp`, `acceptance_rate` (mean over its proposals), `diverging`,
    `n_steps`, `step_size`.

    Source: Roberts and Tweedie (1996); the acceptance: Roberts and Rosenthal (1998).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> dgm.infer(coin, torch.tensor(7.0), method=MALA(warmup=50, draws=50), seed=0).draws["p"].shape
        torch.Size([16, 50])
    """

    chains: int = 16
    warmup: int = 300
    draws: int = 300
    target_accept: float = 0.574
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("steps", isinstance(self.steps, int) and self.steps >= 1, "a whole number, at least 1"))

    def kernel(self) -> Kernel:
        return Langevin(self.steps)

    def adaptation(self, density: Density) -> Adaptation:
        form = metric_form(self.metric, density.dim)
        return Warmup(self.warmup, self.target_accept, fixed_step=self.step_size, gamma=0.1, **form)
