"""Aggressive: SVI in which the guide keeps up with the model until the latent code has stopped gaining information."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_dgm.inference.learning.information import encoder_information
from ppl_dgm.inference.learning.particles import Particles, guides_own, in_parts, row_count
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.inference.svi import SVI
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.tasks import evaluating

__all__ = ["Aggressive"]

_CHECKED = 10  # steps of the guide between two looks at whether they still help


@algorithm("aggressive")
@dataclass(frozen=True)
class Aggressive(SVI):
    """Stochastic variational inference with aggressive steps of the guide: against a posterior that collapses because the
    guide lags behind the model.

    Before every step of the model the guide alone takes steps on random batches until ten of them no longer lower the
    loss, or `inner` are done. At the end of each epoch the mutual information of examples and codes is estimated; when it has
    stopped growing, learning goes on as in `SVI`.

    Arguments:
        inner: steps of the guide before one of the model, at most.
        rows: examples for the estimate of the mutual information (all their pairs are evaluated).
        Others: see `SVI`.

    The history has the columns `information`, the estimate in nats, and `aggressive`, 1 for the epochs that were.

    Raises:
        TaskUnavailable: no guide, or sites outside the plate `data`.

    Source: He, Spokoyny, Neubig and Berg-Kirkpatrick (2019), Lagging inference networks and posterior collapse.
    """

    inner: int = 100
    rows: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("inner", is_count(self.inner, 1), "a whole number, at least 1"),
            ("rows", is_count(self.rows, 2), "a whole number, at least 2"),
        )

    def prepare(self, program: Program, batch: tuple) -> Program:
        row_count(batch)
        program = super().prepare(program, batch)
        with program.running():
            Particles(program, 1).check(batch)
        return program

    def objective(self, program: Program, total: int) -> Objective:
        objective: Any = super().objective(program, total)
        # whether still aggressive, whether this epoch was, and the information at its end: a checkpoint holds them
        lag = objective.lag = torch.tensor([1.0, 1.0, -torch.inf], dtype=torch.float64)
        objective.live.append(lag)
        objective.columns = lambda: {"information": float(lag[2]), "aggressive": float(lag[1])}
        return objective

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        return _Told(super().gradients(program, objective, parameters), objective.lag)

    def _one_epoch(
        self, program: Program, arguments: tuple, total: int, batch_size: int, step: Any, optimiser: Any,
        parameters: Sequence[Tensor], state: Any,
    ) -> float:  # fmt: skip
        lag = step.function.lag
        lag[1] = lag[0]
        if lag[1]:
            with seeded(0):
                own = guides_own(program, next(in_parts(arguments, batch_size)), parameters)
            step = _GuideFirst(self, step, arguments, total, batch_size, optimiser, parameters, own)
        mean = super()._one_epoch(program, arguments, total, batch_size, step, optimiser, parameters, state)
        with seeded(0), evaluating(program):
            information = float(encoder_information(program, next(in_parts(arguments, self.rows))))
        lag[0], lag[2] = float(bool(lag[1]) and information > float(lag[2])), information
        return mean


class _Told:
    """The loss and its gradients, with the objective's memory."""

    def __init__(self, function: Callable[..., tuple], lag: Tensor) -> None:
        self.function, self.lag = function, lag

    def __call__(self, *batch: Any) -> tuple:
        return self.function(*batch)


class _GuideFirst:
    """A step of the model alone, after the guide has caught up with it."""

    def __init__(
        self, options: Aggressive, step: Any, arguments: tuple, total: int, batch_size: int, optimiser: Any,
        parameters: Sequence[Tensor], own: list[bool],
    ) -> None:  # fmt: skip
        self.options, self.step, self.arguments, self.total, self.batch_size = (
            options,
            step,
            arguments,
            total,
            batch_size,
        )
        self.optimiser, self.parameters, self.own = optimiser, parameters, own

    def __call__(self, *batch: Any) -> tuple:
        device = self.parameters[0].device
        mine = [p for p, owned in zip(self.parameters, self.own, strict=True) if owned]
        best, summed = float("inf"), 0.0
        for i in range(1, self.options.inner + 1):
            rows = torch.randint(self.total, (self.batch_size,), device=device)
            some = tuple(
                a[rows] if isinstance(a, Tensor) and a.dim() and len(a) == self.total else a for a in self.arguments
            )
            loss, *gradients = self.step(*some)
            for parameter, gradient, owned in zip(self.parameters, gradients, self.own, strict=True):
                parameter.grad = gradient if owned else None
            if self.options.clip is not None:
                torch.nn.utils.clip_grad_norm_(mine, self.options.clip)
            self.optimiser(mine) if isinstance(self.optimiser, PyroOptim) else self.optimiser.step()
            summed += float(loss)
            if i % _CHECKED == 0:
                if summed >= best:
                    break
                best, summed = summed, 0.0
        loss, *gradients = self.step(*batch)
        return (loss, *(None if owned else g for g, owned in zip(gradients, self.own, strict=True)))
