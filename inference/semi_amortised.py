"""SemiAmortised: learning with the guide's distributions refined by gradient steps before each step of the parameters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.inference.learning.bounds import GuideLearner
from ppl_dgm.inference.learning.local import LocalProgram, check_independent, local_sites
from ppl_dgm.inference.learning.particles import Particles
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.inference.refined import Refined
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score
from ppl_dgm.tasks import evaluating

__all__ = ["SemiAmortised"]


@algorithm("semi-amortised")
@dataclass(frozen=True)
class SemiAmortised(GuideLearner):
    """Semi-amortised variational inference: the ELBO at local parameters l_k that gradient steps have improved,

        l_0 = guide(x),      l_(t+1) = l_t + step_size clip( d ELBO(x; l_t) / d l_t ),      ascent of ELBO(x; l_steps)

    by the parameters of model and guide, through the refinement itself where `through` is on. Local parameters are those
    of the guide's distributions, on unconstrained scales. A guide learned so is one to refine from: answer with `Refined`.

    Arguments:
        steps: refinement steps k.
        step_size: of a refinement step.
        clip_step: largest norm of a refinement gradient, for each example and site's parameter.
        through: differentiate through the refinement (second derivatives); otherwise the steps count as constants.
        particles: draws for each example at each step; the noise of a single one is more than a few steps gain.
        Others: see `GradientLearner`. Validation refines too.

    Raises:
        TaskUnavailable: no guide, or one that `Refined` cannot refine.

    Source: Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-amortized variational autoencoders.
    """

    particles: int = 8
    steps: int = 5
    step_size: float = 0.1
    clip_step: float = 5.0
    through: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("steps", is_count(self.steps, 1), "a whole number, at least 1"),
            ("step_size", self.step_size > 0, "positive"),
            ("clip_step", self.clip_step > 0, "positive"),
        )

    @property
    def aim(self) -> str:
        return f"-ELBO after {self.steps} refinement steps, nats per example"

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """The bound with refined distributions; see `Refined`."""
        return Refined().evidence(program, *args, **kwargs)

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        with evaluating(program):  # dropout is no dependence between sites
            check_independent(program, batch, {})

    def objective(self, program: Program, total: int) -> "_RefinedELBO":
        return _RefinedELBO(program, self)

    def validation(self, program: Program, total: int) -> Objective:
        objective = _RefinedELBO(program, self)

        def value(*batch: Any) -> Tensor:
            with torch.enable_grad():
                return objective(*batch).detach()

        return value


class _RefinedELBO:
    """Minus the ELBO at refined local parameters, averaged over the examples of a batch."""

    def __init__(self, program: Program, options: SemiAmortised) -> None:
        self.program, self.options = program, options

    def __call__(self, *batch: Any) -> Tensor:
        options = self.options
        sites, numbers = local_sites(self.program, batch, {}, checked=False)
        local = LocalProgram(self.program, sites, len(batch))
        particles = Particles(local, options.particles)
        for _ in range(options.steps):
            numbers = [u if u.requires_grad else u.requires_grad_() for u in numbers]
            bound = particles(*batch, *numbers).log_weights.mean(0).sum()
            gradients = torch.autograd.grad(bound, numbers, create_graph=options.through, allow_unused=True)
            numbers = [
                u
                if g is None
                else u + options.step_size * _clipped(g if options.through else g.detach(), options.clip_step)
                for u, g in zip(numbers, gradients, strict=True)
            ]
        return -particles(*batch, *numbers).log_weights.mean()


def _clipped(gradient: Tensor, most: float) -> Tensor:
    """Each row's gradient, no longer than that."""
    norm = (gradient.reshape(len(gradient), -1).square().sum(1) + 1e-12).sqrt()
    return gradient * (most / norm).clamp(max=1.0).reshape(-1, *(1,) * (gradient.dim() - 1))
