"""PenalisedSVI: the evidence lower bound, weighted, beside a term of the program's own that is no log density."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.inference.svi import SVI
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm

__all__ = ["PenalisedSVI"]


@algorithm("penalised-svi")
@dataclass(frozen=True)
class PenalisedSVI(SVI):
    """Stochastic variational inference of a bound and a penalty,

        minimise over parameters    weight * (-ELBO) + penalty,

    both averages over the examples of a batch. Validation compares the same sum, at kl_weight 1. The sum is no bound on a log
    density unless the penalty is nowhere negative and the weight 1.

    Arguments:
        penalty: a function of the batch (x, ...) to a number [], differentiable in the program's parameters; None is the
            program's own method `penalty`.
        weight: of -ELBO, at least 0.
        Others: see `SVI`; the ELBO must be one of Pyro's that can be differentiated as a whole ("trace", "mean_field", "enum").

    Raises:
        TaskUnavailable: no penalty, or an ELBO without a differentiable loss.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.PenalisedSVI(elbo="mean_field", penalty=lambda x: 0.0 * x.sum(), epochs=10)
    """

    penalty: Callable[..., Tensor] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("weight", self.weight >= 0, "at least 0"))

    @property
    def aim(self) -> str:
        return f"{self.weight:g} x {super().aim} + penalty"

    def prepare(self, program: Program, batch: tuple) -> Program:
        if self.penalty is None and not callable(getattr(program, "penalty", None)):
            raise TaskUnavailable(f"{program.name!r} has no penalty; pass penalty=..., or use method='svi'.")
        return super().prepare(program, batch)

    def objective(self, program: Program, total: int) -> "_Penalised":
        bound: Any = super().objective(program, total)
        if not hasattr(bound.elbo, "differentiable_loss"):
            raise TaskUnavailable(
                f"elbo={self.elbo!r} has no loss to add a penalty to; use 'trace', 'mean_field' or 'enum'."
            )
        return _Penalised(bound, self._penalty(program), self.weight)

    def validation(self, program: Program, total: int) -> Objective:
        bound, penalty = super().validation(program, total), self._penalty(program)
        return lambda *batch: self.weight * bound(*batch) + float(penalty(*batch))

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        return super(SVI, self).gradients(program, objective, parameters)

    def _penalty(self, program: Any) -> Callable[..., Tensor]:
        return program.penalty if self.penalty is None else self.penalty


class _Penalised:
    """The sum for one batch."""

    def __init__(self, bound: Any, penalty: Callable[..., Tensor], weight: float) -> None:
        self.bound, self.penalty, self.weight = bound, penalty, weight
        self.live, self.begin_epoch = bound.live, bound.begin_epoch

    def __call__(self, *batch: Any) -> Tensor:
        return self.weight * self.bound(*batch) + self.penalty(*batch)
