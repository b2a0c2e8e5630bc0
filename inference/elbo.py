"""ELBO: the evidence lower bound of each example, averaged over draws from the guide."""

import math
from dataclasses import dataclass
from typing import Any

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.approximating.weighing import Weighing
from ppl_dgm.inference.importance import collect
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score

__all__ = ["ELBO"]


@algorithm("elbo")
@dataclass(frozen=True)
class ELBO:
    """The evidence lower bound,

        E_q(z|x) [ log p(x, z) - log q(z | x) ] = log p(x) - KL(q(z|x) || p(z|x)),

    estimated without bias by the average over draws from the guide.

    Arguments:
        draws: how many.
        chunk: rows (examples x draws) that go through the networks at once; None chooses by size.

    Returns:
        A `Score` of kind `lower_bound`, per example, or of shape [] for a program whose examples share latent
        sites; `stderr` is the Monte Carlo standard error of the average.

    Raises:
        TaskUnavailable: there is no guide.
        ProgramError: the guide misses a latent site or draws another one.
        NumericalError: a log density is NaN; the message names the site.

    Source: Jordan et al. 1999; Tomczak 2024, section 5.3.
    """

    draws: int = 16
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.draws, int) or self.draws < 1:
            raise ProgramError(f"ELBO: draws must be a positive whole number, but it is {self.draws!r}.")

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`."""
        _, log_weights = collect(
            Weighing(program, args, kwargs, chunk=self.chunk), self.draws
        )  # [draw, batch] or [draw]
        stderr = log_weights.std(0) / math.sqrt(self.draws) if self.draws > 1 else None
        return Score(log_weights.mean(0), "lower_bound", stderr, f"evidence lower bound, {self.draws} draws")
