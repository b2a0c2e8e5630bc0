"""Amortised: the guide itself as the posterior."""

from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

from .importance import collect
from .weighing import Weighing

__all__ = ["Amortised"]


@algorithm("amortised")
@dataclass(frozen=True)
class Amortised:
    """The approximate posterior q(z | x): unweighted draws from the guide, in the space of the sites.

    `Importance` weights the same draws, which makes them consistent and gives the evidence.

    Arguments:
        draws: how many.
        chunk: rows (examples x draws) that go through the networks at once; None chooses by size.

    Returns:
        A `Posterior` of kind `approximate` with draws {site: [1, draws, *shape]}.

    Raises:
        TaskUnavailable: there is no guide.
        ProgramError: the guide misses a latent site or draws another one.
    """

    draws: int = 1000
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or self.draws < 1:
            raise ProgramError(f"Amortised: draws must be a positive whole number, but it is {self.draws!r}.")

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        with torch.no_grad():
            draws, _ = collect(Weighing(program, args, kwargs, chunk=self.chunk, model=False), self.draws)
        return Posterior(
            draws, cost=Cost(steps=self.draws), how=f"draws from the guide of {program.name}", program=program
        )
