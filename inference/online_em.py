"""OnlineEM: expectation maximisation on minibatches, and circuits that grow while they learn."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.options import require, rows_alone
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Fit

__all__ = ["OnlineEM"]

_STALE = 6  # passes without gain that end a stage early


@algorithm("online-em")
@dataclass(frozen=True)
class OnlineEM:
    """Expectation maximisation with running averages of the sufficient statistics.

        s <- (1 - step_t) s + step_t E[statistics of a batch],        theta = argmax given s,        step_t = (t + 2)^-decay

    Each stage ends with steps over all rows; then a program that has `grow` splits its units in two, and the next
    stage begins. The kept weights are the best on `valid`, else the last.

    A program offers `em_statistics(x) -> (mean log likelihood, statistics of x, scaled to one row)`,
    `em_maximise(statistics, rows)` and, optionally, `em_start(x)` and `grow(noise) -> bool`.

    Arguments:
        epochs: passes over the data in minibatches, in each stage.
        batch_size: rows of a minibatch.
        decay: of the step sizes, in (0.5, 1].
        polish: steps over all rows at the end of each stage, at most; they end when a step gains less than `tolerance`.
        tolerance: nats per example.
        patience: stages without a better validation likelihood before growing stops.
        noise: standard deviation of the logarithms by which split units differ.
        warm_start: begin from the program's present weights.
        grow: split units between stages, where the program can; False: one stage.

    Raises:
        TaskUnavailable: the program has no sufficient statistics to offer.

    Source: O. Cappé and E. Moulines (2009), On-line expectation-maximization for latent data models.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.OnlineEM(epochs=10, batch_size=256)
    """

    epochs: int = 10
    batch_size: int = 256
    decay: float = 0.6
    polish: int = 10
    tolerance: float = 1e-3
    patience: int = 1
    noise: float = 1.0
    warm_start: bool = False
    grow: bool = True

    def __post_init__(self) -> None:
        require(
            self,
            ("epochs", self.epochs >= 0, "at least 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("decay", 0.5 < self.decay <= 1, "above 0.5 and at most 1"),
            ("polish", self.polish >= 0, "at least 0"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
            ("patience", self.patience >= 1, "at least 1"),
            ("noise", self.noise > 0, "above 0"),
        )

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`. The history has one row per pass over the data."""
        valid = rows_alone(self, valid)
        if not hasattr(program, "em_statistics"):
            other = "em" if hasattr(program, "em_step") else "svi"
            raise TaskUnavailable(f"{program.name!r} has no em_statistics; learn it with method={other!r}.")
        run = _Run(self, program, data, valid)
        if hasattr(program, "em_start") and not self.warm_start:
            program.em_start(data)
        grow = getattr(program, "grow", None) if self.grow else None
        with progress(f"learn {program.name}", None) as run.report:
            stale, stopped = 0, "the units are as many as allowed"
            while True:
                before = run.best
                self._stage(run)
                stale = 0 if run.best < before else stale + 1
                if valid is not None and stale >= self.patience:
                    stopped = "more units gained nothing on validation"
                    break
                if grow is None or not grow(self.noise):
                    break
        if valid is not None:
            program.load_state_dict(run.state)
        cost = Cost(run.steps, time.perf_counter() - run.begun, path="closed form")
        aim = "-log likelihood, nats per example"
        return Fit(program, pd.DataFrame(run.rows), stopped, cost, aim, {"rows": len(data)})

    def _stage(self, run: "_Run") -> None:
        """Passes in minibatches, then over all rows, with the units there are."""
        program, data, t = run.program, run.data, 0
        run.begin_stage()
        statistics: tuple[Tensor, ...] | None = None
        for _ in range(self.epochs):
            total = 0.0
            for batch in torch.randperm(len(data), device=data.device).split(self.batch_size):
                value, new = program.em_statistics(data[batch])
                size = (t + 2) ** -self.decay if statistics is not None else 1.0
                statistics = new if statistics is None else tuple(map(_blend(size), statistics, new))
                program.em_maximise(statistics, len(data))
                total, t = total + float(value) * len(batch), t + 1
                run.steps += 1
            run.note(total / len(data))
            if run.stale >= _STALE:
                break
        previous = -math.inf
        for _ in range(self.polish):
            value, statistics = program.em_statistics(data)
            program.em_maximise(statistics, len(data))
            run.steps += 1
            run.note(float(value))
            if float(value) - previous < self.tolerance or run.stale >= _STALE:
                break
            previous = float(value)


class _Run:
    """What a run has seen."""

    def __init__(self, method: OnlineEM, program: Program, data: Tensor, valid: Tensor | None) -> None:
        self.method, self.program, self.data, self.valid = method, program, data, valid
        self.rows: list[dict[str, float]] = []
        self.best = self.stage_best = math.inf
        self.stale, self.stage, self.steps = 0, -1, 0
        self.state: dict[str, Tensor] = {}
        self.begun = time.perf_counter()
        self.report: Any = None

    def begin_stage(self) -> None:
        self.stage, self.stale, self.stage_best = self.stage + 1, 0, math.inf

    def note(self, likelihood: float) -> None:
        """One pass is over: judge the weights, keep them if they are the best."""
        row = {"epoch": len(self.rows) + 1, "stage": self.stage, "objective": -likelihood}
        judged = -likelihood
        if self.valid is not None:
            judged = row["valid"] = -float(self.program.log_density(self.valid).mean().value)
        self.stale = 0 if judged < self.stage_best else self.stale + 1
        self.stage_best = min(judged, self.stage_best)
        if judged < self.best:
            self.best = judged
            if self.valid is not None:
                self.state = {name: value.clone() for name, value in self.program.state_dict().items()}
        row["seconds"] = time.perf_counter() - self.begun
        self.rows.append(row)
        self.report(**{name: row[name] for name in ("objective", "valid") if name in row})


def _blend(size: float) -> Any:
    return lambda old, new: old.lerp(new, size)
