"""CUBO: the chi-square upper bound on the log density, as a score and as an objective for the guide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.approximating.weighing import LogMean, Weighing
from ppl_dgm.inference.diagnostics.psis import RELIABLE_K, pareto_shape
from ppl_dgm.inference.importance import collect
from ppl_dgm.inference.learning.bounds import GuideLearner, check_gradient, renyi_bound
from ppl_dgm.inference.learning.particles import Particles, frozen, guides_own, in_parts, row_count
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Fit, Score

__all__ = ["CUBO"]


@algorithm("cubo")
@dataclass(frozen=True)
class CUBO(GuideLearner):
    """The chi upper bound of order n on the log density of each example,

        CUBO_n(x) = (1/n) log E_q [ (p(x, z) / q(z | x))^n ]  >=  log p(x),      equal for q = p(z | x).

    `dgm.learn` fits the guide alone, by descent of exp(n CUBO_n), whose estimate is unbiased, each example's weights
    divided by the largest of its draws; the model's parameters are left as they are, since to lower a bound from above
    makes no model better. The guide becomes wider than the posterior rather than narrower.

    `dgm.score` gives the bound with `sigmas` standard errors added, since the logarithm of an average of few draws lies below
    its limit. Its standard error, and so the bound, are not to be trusted where the weights to the power n have a Pareto
    shape k above 0.7; `Score.stats` has it as `pareto_k`, and `how` says for how many examples.

    Arguments:
        order: n, at least 1; 2 is the chi-square divergence.
        particles: K, draws for each example.
        sigmas: standard errors by which `score` moves the bound upward.
        Others: see `GradientLearner`. The history's objective is CUBO_n itself, per example, in nats.

    Raises:
        TaskUnavailable: no guide; sites outside the plate `data`; for `learn`, a guide that is not reparameterised.

    Source: Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational inference via chi upper bound minimization.
    """

    particles: int = 64
    order: float = 2.0
    sigmas: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("order", self.order >= 1, "at least 1"),
            ("sigmas", self.sigmas >= 0, "a number, at least 0"),
            ("particles", self.particles >= 2, "at least 2"),
        )

    @property
    def aim(self) -> str:
        return f"CUBO of order {self.order:g}, {self.particles} draws, nats per example"

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """The bound of each example; see `ppl_dgm.score`."""
        _, log_weights = collect(Weighing(program, args, kwargs), self.particles)  # [draw, batch] or [draw]
        mean = LogMean()
        mean.add(self.order * log_weights)
        value, stderr, ess = mean.result()
        assert stderr is not None
        stderr = stderr / self.order
        stats = {"ess": ess.to(log_weights)}
        how = f"chi upper bound of order {self.order:g}, K = {self.particles}, plus {self.sigmas:g} stderr"
        if self.particles >= 21:
            k = stats["pareto_k"] = pareto_shape(self.order * log_weights).to(log_weights)
            share = float((k > RELIABLE_K).double().mean())
            how += f", Pareto k above {RELIABLE_K} for {share:.0%} of examples"
        bound = (value / self.order + self.sigmas * stderr).to(log_weights)
        return Score(bound, "upper_bound", stderr.to(log_weights), how, stats=stats)

    def run(self, program: Program, data: Any, *args: Any, valid: Any = None, **kwargs: Any) -> Fit:
        """Learn the guide; see `ppl_dgm.learn`."""
        trial = next(in_parts((data, *args), self.batch_size or row_count((data,))))
        with number_type(program, trial):
            self.prepare(program, trial)  # so that its parameters exist
            parameters = list(program.parameters())
            with program.running():
                own = guides_own(program, trial, parameters)
            if not any(own):
                raise ProgramError(f"CUBO learns the guide's own parameters, and that of {program.name!r} has none.")
            with frozen([p for p, owned in zip(parameters, own, strict=True) if not owned]):
                return super().run(program, data, *args, valid=valid, **kwargs)

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        check_gradient("standard", program, particles, batch)

    def objective(self, program: Program, total: int) -> "_Exponentiated":
        return _Exponentiated(Particles(program, self.particles), self.order)

    def validation(self, program: Program, total: int) -> Objective:
        return self.objective(program, total).value

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        def loss_and_gradients(*batch: Any) -> tuple:
            bound, loss = objective(*batch)
            return (bound.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True))

        return loss_and_gradients


class _Exponentiated:
    """CUBO_n, and the exponentiated bound in units of each example's largest weight, averaged over examples."""

    def __init__(self, particles: Particles, order: float) -> None:
        self.particles, self.order = particles, order

    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        log_weights = self.particles(*batch).log_weights  # [draw, example]
        largest = log_weights.detach().amax(0)
        loss = (self.order * (log_weights - largest)).exp().mean(0) / self.order
        return renyi_bound(log_weights, 1 - self.order).mean(), loss.mean()

    def value(self, *batch: Any) -> Tensor:
        """CUBO_n, for validation."""
        return renyi_bound(self.particles.log_weights(*batch), 1 - self.order).mean()
