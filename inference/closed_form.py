"""ClosedForm: learning in one computation, for programs whose maximum likelihood is known."""

import inspect
import time
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.options import rows_alone
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Fit

__all__ = ["ClosedForm"]


@algorithm("closed-form")
@dataclass(frozen=True)
class ClosedForm:
    """The parameters of greatest likelihood, computed rather than searched for.

    A program offers `fit_closed_form(train, *args, valid=valid, **options) -> notes`, which sets its parameters in place;
    args are what else it learns from, such as labels.

    Arguments:
        options: go to `fit_closed_form`.

    Raises:
        TaskUnavailable: the program has no closed form.

    Example:
        >>> import ppl_dgm as dgm
        >>> fit = dgm.learn(dgm.models.ProbabilisticPCA(64, 8), dgm.data.digits(), method="closed-form")
        >>> fit.stopped
        'closed form'
    """

    options: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`. The history has one row; the notes are the program's own."""
        valid = rows_alone(self, valid)
        if not hasattr(program, "fit_closed_form"):
            other = "em" if hasattr(program, "em_step") else "svi"
            raise TaskUnavailable(
                f"{program.name!r} has no closed form (fit_closed_form); learn it with method={other!r}."
            )
        try:
            inspect.signature(program.fit_closed_form).bind(data, *args, valid=valid, **self.options)
        except TypeError as error:
            raise ProgramError(f"the closed form of {program.name!r} does not take these arguments: {error}.") from None
        begun = time.perf_counter()
        notes = program.fit_closed_form(data, *args, valid=valid, **self.options) or {}
        row: dict[str, float] = {"epoch": 1}
        if hasattr(program, "log_density"):
            row["objective"] = -program.log_density(data, *args).mean().value
            if valid is not None:
                row["valid"] = -program.log_density(valid).mean().value
        row["seconds"] = time.perf_counter() - begun
        cost = Cost(1, row["seconds"], path="closed form")
        return Fit(
            program,
            pd.DataFrame([row]),
            "closed form",
            cost,
            "-log likelihood, nats per example",
            dict(notes),
        )
