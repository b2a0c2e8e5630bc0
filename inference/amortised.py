"""Amortised: the guide itself as the posterior."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer.autoguide import AutoDelta

from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.inference.approximating.weighing import Weighing
from ppl_dgm.inference.diagnostics.psis import pareto_shape
from ppl_dgm.inference.importance import collect, shape_statistic
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

__all__ = ["Amortised"]


@algorithm("amortised")
@dataclass(frozen=True)
class Amortised:
    """The approximate posterior q(z | x): unweighted draws from the guide, in the space of the sites.

    `Importance` weights the same draws, which makes them consistent and gives the evidence.

    Arguments:
        draws: how many.
        chunk: rows (examples x draws) that go through the networks at once; None chooses by size.
        weigh: also compute the importance weights p(x, z) / q(z | x), for the shape of their tail alone; False saves
            the runs of the model.

    Returns:
        A `Posterior` of kind `approximate` with draws {site: [1, draws, *shape]}, and with 21 draws or more the statistic
        `pareto_k`, [1, draws, batch] (or [1, draws] for a program whose examples share latent sites), the same for all draws:
        above 0.7 the guide is far from the posterior (Yao et al. 2018). A point (AutoDelta) has none.

    Raises:
        TaskUnavailable: there is no guide.
        ProgramError: the guide misses a latent site or draws another one.
    """

    draws: int = 1000
    chunk: int | None = None
    weigh: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or self.draws < 1:
            raise ProgramError(f"Amortised: draws must be a positive whole number, but it is {self.draws!r}.")

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        point = isinstance(program.guide, AutoDelta) if program.has_guide else False
        with torch.no_grad():
            weighing = Weighing(
                program, args, kwargs, chunk=self.chunk, model=self.weigh and not point and self.draws >= 21
            )
            try:
                draws, log_weights = collect(weighing, self.draws)
            except NumericalError:  # some draw has no log density: the guide can be drawn from all the same
                weighing = Weighing(program, args, kwargs, chunk=self.chunk, model=False)
                draws, log_weights = collect(weighing, self.draws)
        what = (
            "the point of highest density found by AutoDelta, repeated"
            if point
            else f"draws from the guide of {program.name}"
        )
        stats, told = {}, ""
        if weighing.model:
            k = pareto_shape(log_weights)
            stats = shape_statistic(k, self.draws)
            told = f", Pareto k {float(k):.2f}" if k.numel() == 1 else f", median Pareto k {float(k.median()):.2f}"
        cost = Cost(steps=self.draws, seconds=time.perf_counter() - begun)
        return Posterior(draws, stats=stats, cost=cost, how=what + told, program=program)
