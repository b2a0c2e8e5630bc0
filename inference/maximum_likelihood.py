"""Maximum likelihood by gradient, for programs whose log density is differentiable in closed form."""

from dataclasses import dataclass

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.training import GradientLearner, Objective
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm

__all__ = ["MaximumLikelihood"]


@algorithm("maximum-likelihood")
@dataclass(frozen=True)
class MaximumLikelihood(GradientLearner):
    """Minimise -1/N sum_n log p(x_n), the forward KL divergence from the data up to a constant, by gradient steps.

    For programs with a method `log_prob(x) -> Tensor` [batch] in nats: mixtures (log-sum-exp), flows, circuits.

    Arguments: see `GradientLearner`.

    Raises:
        TaskUnavailable: the program has no `log_prob`.
    """

    @property
    def aim(self) -> str:
        return "-log p(x), nats per example"

    def prepare(self, program: Program, batch: tuple) -> Program:
        if not hasattr(program, "log_prob"):
            raise TaskUnavailable(
                f"{program.name!r} has no log density in closed form to climb; learn it with method='svi', which maximises a lower bound."
            )
        return program

    def objective(self, program: Program, total: int) -> Objective:
        return lambda *batch: -program.log_prob(*batch).mean()
