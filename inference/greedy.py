"""GreedyLayerwise: a hierarchy of latent variables learned one level after another, from the data upwards."""

import time
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.particles import frozen
from ppl_dgm.inference.learning.training import GradientLearner
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm, resolve
from ppl_dgm.results import Cost, Fit
from ppl_dgm.tasks import evaluating

__all__ = ["GreedyLayerwise"]

_SMALL = 0.1


@algorithm("greedy-layerwise")
@dataclass(frozen=True)
class GreedyLayerwise:
    """Stage l = 1, ..., L learns level l alone, all levels below frozen.

    The program of stage l has the lowest l levels. It begins with level l put on top of the last stage such that the bound
    is what it was: the new prior p(z_{l-1} | z_l) begins as the old p(z_{l-1}), and q(z_l | z_{l-1}) as p(z_l). A better prior
    of z_{l-1} then raises

        E_q [ log p(x, z_1, ..., z_l) - log q(z_1, ..., z_l | x) ]  <=  log p(x).

    What a stage has learned is kept if the bound, estimated on the validation rows (or else the training rows) with a fixed
    seed, is no lower than before it; else its level stays as it began. So no stage lowers the estimate. Lower levels never
    learn from higher ones, unless `joint` lets all of them learn together at the end.

    A program that can be learned so has the number `levels` and methods `stage(l)`, the program of the lowest l levels on the
    same parameters; `stage_parameters(l)`, what is new in it; and `begin_stage(l)`, as above. `BottomUpVAE` and
    `SigmoidBeliefNetwork` have them. (In a top-down posterior the lower levels depend on the higher ones, and a level
    cannot be added on top.)

    Arguments:
        method: a gradient learner, for every stage; None is the program's own.
        joint: a gradient learner for all levels at the end; None leaves it out.

    Returns:
        A `Fit` whose history has the column `stage` (1 to L, then L + 1 for `joint`), and whose `notes["bounds"]` are the estimates
        after each stage, in nats per example (of what `method` calls validation, with the sign turned).

    Raises:
        TaskUnavailable: the program has no levels to learn one by one, or the method no objective to compare.

    Source: Hinton, Osindero and Teh (2006), A fast learning algorithm for deep belief nets; Wu et al. (2021), Greedy hierarchical
    variational autoencoders.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.GreedyLayerwise(method=dgm.SVI(epochs=50), joint=dgm.SVI(epochs=20, lr=3e-4))
    """

    method: Any = None
    joint: Any = None

    def run(self, program: Program, data: Any, *args: Any, valid: Any = None) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        begun = time.perf_counter()
        parts = ("levels", "stage", "stage_parameters", "begin_stage")
        if not all(hasattr(program, part) for part in parts):
            raise TaskUnavailable(
                f"{program.name!r} has no levels to learn one by one ({', '.join(parts)}); BottomUpVAE and "
                "SigmoidBeliefNetwork have."
            )
        method, joint = self._learner(self.method or program.default_method("learn")), None
        if self.joint is not None:
            joint = self._learner(self.joint)
        judged = data if valid is None else valid
        histories, stages, bounds = [], [], []
        for level in range(1, program.levels + 1):
            if level > 1:
                program.begin_stage(level)
            stage = program.stage(level)
            own = {id(parameter) for parameter in program.stage_parameters(level)}
            with frozen([p for p in program.parameters() if id(p) not in own]):
                fit, bound = _no_worse(stage, method, judged, data, args, valid)
            histories.append(fit.history.assign(stage=level))
            stages.append(fit)
            bounds.append(bound)
        if joint is not None:
            fit, bound = _no_worse(program, joint, judged, data, args, valid)
            histories.append(fit.history.assign(stage=program.levels + 1))
            stages.append(fit)
            bounds.append(bound)
        program.eval()
        cost = Cost(
            sum(fit.cost.steps for fit in stages),
            time.perf_counter() - begun,
            sum(fit.cost.compile_seconds for fit in stages),
            gradients=sum(fit.cost.gradients for fit in stages),
            path=stages[-1].cost.path,
        )
        notes = {"bounds": bounds, "rows": stages[-1].notes["rows"]}
        history = pd.concat(histories, ignore_index=True)
        return Fit(program, history, f"all {program.levels} levels done", cost, stages[-1].objective, notes)

    def _learner(self, method: Any) -> GradientLearner:
        learner = resolve(method)
        if not isinstance(learner, GradientLearner):
            raise ProgramError(
                f"GreedyLayerwise: a stage needs a gradient learner, such as SVI, not {type(learner).__name__}."
            )
        if learner.checkpoint is not None:
            raise ProgramError("GreedyLayerwise: checkpoints are of one stage; leave checkpoint out.")
        return replace(learner)


def _no_worse(
    program: Program, method: GradientLearner, judged: Any, data: Tensor, args: tuple, valid: Any
) -> tuple[Fit, float]:
    """Learn, and take it back if that made it worse; the fit, and the bound at the end."""
    with program.running():
        before = -_loss(program, method, judged, args)
        kept = {name: value.clone() for name, value in program.state_dict().items()}
        _stir(program)
        fit = method.run(program, data, *args, valid=valid)
        after = -_loss(program, method, judged, args)
    if after >= before:
        return fit, after
    program.load_state_dict(kept)
    return fit, before


@torch.no_grad()
def _stir(program: Program) -> None:
    """Weights that are learned and all zero get small random values: where two layers are both zero, so is the gradient."""
    for parameter in program.parameters():
        if parameter.requires_grad and parameter.dim() > 1 and not bool(parameter.any()):
            parameter.normal_(0.0, _SMALL)


def _loss(program: Program, method: GradientLearner, judged: Any, args: tuple) -> float:
    """What the method validates, in evaluation mode and under a fixed seed, nats per example."""
    batch = judged if isinstance(judged, tuple) else (judged, *args)
    rows = len(batch[0])
    with torch.no_grad(), seeded(0), evaluating(program):
        return float(method.validation(program, rows)(*batch))
