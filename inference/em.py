"""EM: expectation maximisation with restarts, for programs that know their E- and M-step."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.options import require, rows_alone
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Fit

__all__ = ["EM"]


@dataclass
class _Run:
    """One start and what came of it."""

    restart: int
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float = math.inf
    state: dict[str, Tensor] = field(default_factory=dict)
    stopped: str = ""


@algorithm("em")
@dataclass(frozen=True)
class EM:
    """Expectation maximisation: each step raises the mean log likelihood (plus log prior, if any).

        E:  r(z) = p(z | x; theta)        M:  theta = argmax E_r [ log p(x, z; theta) ] + log p(theta)

    A program offers `em_step(x) -> mean log likelihood before the step` and, optionally, `em_start(x)`, which
    draws a start from the data, and `log_prior()`, the log density of its parameters' prior in nats. The kept
    weights are the best on `valid`, else on the training objective, over all steps of all restarts.

    Arguments:
        steps: most steps per start.
        restarts: starts from `em_start`; programs without it start once, from their parameters.
        tolerance: stop when a step raises the objective by less than this, in nats per example.
        patience: stop after so many steps without a better validation likelihood; needs `valid`.
        warm_start: the first start is the program's current parameters.

    Raises:
        TaskUnavailable: the program has no `em_step`.
        NumericalError: the objective fell by more than rounding, which exact EM cannot do, or is not finite.

    Source: A. Dempster, N. Laird and D. Rubin (1977), Maximum likelihood from incomplete data.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.EM(restarts=10, patience=10)
    """

    steps: int = 500
    restarts: int = 1
    tolerance: float = 1e-4
    patience: int | None = None
    warm_start: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            ("steps", self.steps >= 1, "at least 1"),
            ("restarts", self.restarts >= 1, "at least 1"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
            ("patience", self.patience is None or self.patience >= 1, "None or at least 1"),
        )

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`. The history is of the best start; notes has `restarts`."""
        valid = rows_alone(self, valid)
        begun = time.perf_counter()
        self._check(program, valid)
        starts = self.restarts if hasattr(program, "em_start") else 1
        runs: list[_Run] = []
        with progress(f"learn {program.name}", starts * (self.steps + 1)) as report:
            for restart in range(starts):
                if hasattr(program, "em_start") and not (restart == 0 and self.warm_start):
                    program.em_start(data, *args)
                runs.append(_Run(restart))
                self._climb(program, data, args, valid, runs, report, begun)
        best = min(runs, key=lambda run: run.best)
        program.load_state_dict(best.state)
        cost = Cost(sum(len(run.rows) for run in runs), time.perf_counter() - begun, path="closed form")
        notes = {"restarts": [run.best for run in runs], "best_restart": best.restart, "rows": len(data)}
        return Fit(program, pd.DataFrame(best.rows), best.stopped, cost, self._aim(program), notes)

    def _check(self, program: Program, valid: Tensor | None) -> None:
        if not hasattr(program, "em_step"):
            raise TaskUnavailable(
                f"{program.name!r} has no E- and M-step (a method em_step); learn it with method='svi'."
            )
        if self.patience is not None and valid is None:
            raise ProgramError(f"EM: patience={self.patience} watches the validation split; pass valid=....")
        if valid is not None and not hasattr(program, "log_density"):
            raise TaskUnavailable(f"{program.name!r} has no exact log_density to compare on valid; leave valid out.")

    def _climb(
        self,
        program: Program,
        data: Tensor,
        args: tuple,
        valid: Tensor | None,
        runs: list[_Run],
        report: Any,
        begun: float,
    ) -> None:
        """Steps from one start until nothing is gained; fills the last of `runs`."""
        run = runs[-1]
        previous, best_step = -math.inf, 0
        for step in range(self.steps + 1):
            state = {name: value.clone() for name, value in program.state_dict().items()}
            row: dict[str, float] = {"epoch": step}
            held_out = None if valid is None else -float(program.log_density(valid, *args).mean().value)
            prior = float(program.log_prior()) / len(data) if hasattr(program, "log_prior") else 0.0
            likelihood = float(program.em_step(data, *args))  # of the parameters in `state`
            row["objective"] = -likelihood
            if prior:
                row["penalised"] = -(likelihood + prior)
            if held_out is not None:
                row["valid"] = held_out
            row["seconds"] = time.perf_counter() - begun
            self._check_rise(program, likelihood + prior, previous, runs, step)
            run.rows.append(row)
            report(objective=-likelihood, **({} if held_out is None else {"valid": held_out}))
            judged = -(likelihood + prior) if held_out is None else held_out
            if judged < run.best or not run.state:
                run.best, run.state, best_step = judged, state, step
            if self.patience is not None and step - best_step >= self.patience:
                run.stopped = f"no better validation likelihood for {self.patience} steps"
                return
            if likelihood + prior - previous < self.tolerance:
                run.stopped = f"a step gained less than {self.tolerance:g} nats per example"
                return
            previous = likelihood + prior
        run.stopped = f"all {self.steps} steps done"

    def _check_rise(self, program: Program, value: float, previous: float, runs: list[_Run], step: int) -> None:
        """Exact EM never falls; what does is a wrong step or lost precision."""
        slack = 1e4 * torch.finfo(program.dtype).eps * (1 + abs(value))
        if math.isfinite(value) and value >= previous - slack:
            return
        found = f"fell by {previous - value:.3g} nats per example" if math.isfinite(value) else f"is {value}"
        kept = [run for run in runs if run.state]
        fit = None
        if kept:
            best = min(kept, key=lambda run: run.best)
            program.load_state_dict(best.state)
            fit = Fit(program, pd.DataFrame(best.rows), f"the objective {found}", Cost(step), self._aim(program))
        raise NumericalError(
            f"EM of {program.name!r}: the objective {found} in step {step}, which exact EM cannot do; "
            "use float64 (program.double()), or check the program's em_step.", fit,
        )  # fmt: skip

    @staticmethod
    def _aim(program: Program) -> str:
        penalty = (
            ", minus the log prior (column penalised)" if hasattr(program, "log_prior") and program.log_prior() else ""
        )
        return f"-log likelihood, nats per example{penalty}"
