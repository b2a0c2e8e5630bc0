"""CAVI: coordinate ascent variational inference, for programs that know the best factor given the others."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Fit

__all__ = ["CAVI"]


@algorithm("cavi")
@dataclass(frozen=True)
class CAVI:
    """Coordinate ascent on the evidence lower bound over a product q(z) = prod_i q_i(z_i) of conjugate factors,

        q_i  proportional to  exp( E_(q without i) [ log p(x, z) ] ),    one factor after another.

    No step lowers the bound, which is on the evidence of all rows together, the parameters' priors included: bounds of
    programs of different size are a guide to their evidence. A program offers `cavi_step(x) -> bound after the step` in nats,
    which updates all factors in place, and optionally `cavi_start(x)`, which draws a start.

    Arguments:
        steps: most passes over the factors per start.
        restarts: starts from `cavi_start`; the best bound is kept.
        tolerance: stop when a step raises the bound by less than this, in nats per example.

    Raises:
        TaskUnavailable: the program has no `cavi_step`.
        NumericalError: the bound fell by more than rounding, or is not finite.

    Source: C. Bishop (2006), PRML, 10.1; D. Blei, A. Kucukelbir and J. McAuliffe (2017), Variational inference.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.randn(100, 1) * torch.tensor([1.0, 2.0, -1.0, 0.5]) + 0.3 * torch.randn(100, 4)
        >>> fit = dgm.learn(dgm.models.BayesianPCA(4, 3), x, method=dgm.CAVI(steps=200), seed=0)
        >>> fit.program.dimensions
        1
    """

    steps: int = 1000
    restarts: int = 1
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        require(
            self,
            ("steps", is_count(self.steps, 1), "a whole number from 1"),
            ("restarts", is_count(self.restarts, 1), "a whole number from 1"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
        )

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`. The validation split is not needed: the bound does not over-fit."""
        if not hasattr(program, "cavi_step"):
            raise TaskUnavailable(
                f"{program.name!r} does not know its conjugate factors (a method cavi_step); learn it with method='svi'."
            )
        if args:
            raise ProgramError(f"CAVI takes the data alone, not {len(args)} more arguments; leave them out.")
        begun = time.perf_counter()
        can_start = hasattr(program, "cavi_start")
        best: tuple[float, dict[str, Tensor], list[dict[str, float]], str] | None = None
        ends, taken = [], 0
        with progress(f"learn {program.name}", (self.restarts if can_start else 1) * self.steps) as report:
            for _ in range(self.restarts if can_start else 1):
                if can_start:
                    program.cavi_start(data)
                rows, stopped = self._climb(program, data, report, begun)
                taken += len(rows)
                ends.append(rows[-1]["bound"])
                if best is None or ends[-1] > best[0]:
                    state = {name: value.clone() for name, value in program.state_dict().items()}
                    best = (ends[-1], state, rows, stopped)
        assert best is not None
        program.load_state_dict(best[1])
        cost = Cost(taken, time.perf_counter() - begun, path="closed form")
        notes = {"log_evidence_bound": best[0], "restarts": ends}
        objective = "-evidence lower bound, parameters included, nats per example"
        return Fit(program, pd.DataFrame(best[2]), best[3], cost, objective, notes)

    def _climb(self, program: Any, data: Tensor, report: Any, begun: float) -> tuple[list[dict[str, float]], str]:
        rows: list[dict[str, float]] = []
        previous = -math.inf
        for step in range(1, self.steps + 1):
            bound = float(program.cavi_step(data))
            slack = 1e4 * torch.finfo(program.dtype).eps * (1 + abs(bound))
            if not math.isfinite(bound) or bound < previous - slack:
                found = f"fell by {previous - bound:.3g} nats" if math.isfinite(bound) else f"is {bound}"
                raise NumericalError(
                    f"CAVI of {program.name!r}: the bound {found} in step {step}, which coordinate ascent cannot do; use "
                    "float64 (program.double()), or check the program's cavi_step."
                )
            objective = -bound / len(data)
            rows.append({"epoch": step, "objective": objective, "bound": bound, "seconds": time.perf_counter() - begun})
            report(objective=objective)
            if bound - previous < self.tolerance * len(data):
                return rows, f"a step gained less than {self.tolerance:g} nats per example"
            previous = bound
        return rows, f"all {self.steps} steps done"
