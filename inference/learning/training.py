"""The loop that every gradient learner shares: batches, steps, early stopping, best weights, checkpoints, progress."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_dgm.errors import DataError, NumericalError, ProgramError
from ppl_dgm.graphs import Recorder, tolerant_pyro
from ppl_dgm.inference.learning.checkpoint import read_checkpoint, write_checkpoint
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Cost, Fit
from ppl_dgm.tasks import evaluating

__all__ = ["GradientLearner", "Objective"]

Objective = Callable[..., Any]  # a tensor to differentiate; for validation, a number will do
_OPTIMISERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "sgd": torch.optim.SGD,
}


@dataclass
class State:
    """All that changes while learning; what a checkpoint holds."""

    epoch: int = 0
    steps: int = 0
    best: float = math.inf
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    average: list[Tensor] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class GradientLearner:
    """Options of the training loop, shared by every learner that follows a gradient.

    A subclass gives the `objective`; the loop does the rest. One step is recorded as a pure tensor graph and replayed; a program that
    cannot be recorded is run by Pyro's handlers at each step, with one warning.

    Arguments:
        epochs: passes over the data, at most.
        batch_size: rows per step; None uses all rows at each step.
        lr: learning rate.
        optim: "adam", "adamw", "adamax" or "sgd"; a callable `parameters -> torch.optim.Optimizer`; or an optimiser of `pyro.optim`.
        schedule: "constant", or "cosine" (the rate falls to zero over `epochs`).
        weight_decay: decoupled for "adamw", an L2 penalty for the others.
        clip: largest norm of the whole gradient; None does not clip.
        average: decay of an exponential moving average of the weights (0.999, say), which is then what is validated and kept; None for none.
        patience: stop after so many epochs without a better validation objective; needs `valid`, else a tenth of the rows is held out.
        backend: "eager" replays the recorded graph, "inductor" compiles it, "python" runs Pyro's handlers at each step.
        checkpoint: a file, written after an epoch whenever `checkpoint_seconds` have passed; a run that finds it there goes on from it.
        checkpoint_seconds: at least so many seconds between two checkpoints.
    """

    epochs: int = 200
    batch_size: int | None = 64
    lr: float = 1e-3
    optim: Any = "adam"
    schedule: str = "constant"
    weight_decay: float = 0.0
    clip: float | None = None
    average: float | None = None
    patience: int | None = None
    backend: str = "eager"
    checkpoint: str | Path | None = None
    checkpoint_seconds: float = 10.0

    def __post_init__(self) -> None:
        require(
            self,
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "None or at least 1"),
            ("lr", self.lr > 0, "positive"),
            ("schedule", self.schedule in ("constant", "cosine"), "'constant' or 'cosine'"),
            ("average", self.average is None or 0 < self.average < 1, "None or between 0 and 1"),
            ("patience", self.patience is None or self.patience >= 1, "None or at least 1"),
            ("backend", self.backend in ("eager", "inductor", "python"), "'eager', 'inductor' or 'python'"),
            (
                "optim",
                not isinstance(self.optim, str) or self.optim in _OPTIMISERS,
                f"one of {', '.join(_OPTIMISERS)}, or an optimiser",
            ),
        )

    # -- what a subclass gives ----------------------------------------------------------------------------------------

    @property
    def aim(self) -> str:
        """What is minimised, in words."""
        return "objective"

    def prepare(self, program: Program, batch: tuple) -> Program:
        """Run the program once, with every check on, so that its parameters exist and a broken one fails now; may wrap it."""
        return program

    def objective(self, program: Program, total: int) -> Objective:
        """A function of a batch: the mean loss per example, in nats, differentiable in the program's parameters.

        Arguments:
            program: in training mode.
            total: the number of rows in the whole data set.

        The function may have a method `begin_epoch(epoch)` to follow a schedule, a method `columns()` with {name: number} of the epoch
        for the history, and a list `live` of tensors of its own that change in place, which checkpoints then hold too.
        """
        raise NotImplementedError

    def validation(self, program: Program, total: int) -> Objective:
        """What is compared on validation data, in evaluation mode and under a fixed seed; the objective, unless overridden."""
        return self.objective(program, total)

    def gradients(self, program: Program, objective: Objective, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        """A function of a batch: the loss and its gradients."""

        def loss_and_gradients(*batch: Tensor) -> tuple:
            loss = objective(*batch)
            return (loss.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True))

        return loss_and_gradients

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self, program: Program, data: Tensor, *args: Any, valid: Any = None, **kwargs: Any) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        begun = time.perf_counter()
        if kwargs:
            raise ProgramError(
                f"{type(self).__name__} passes positional arguments to the program, not {', '.join(kwargs)}; give them in order."
            )
        arguments, valid = self._split((data, *args), valid)
        rows = arguments[0]
        total = len(rows) if isinstance(rows, Tensor) and rows.dim() else 1
        batch_size = min(self.batch_size or total, total)
        start = getattr(
            program, "start", None
        )  # a program may begin from something simple about its data, such as their means
        if start is not None:
            start(rows)
        program.train()
        program = self.prepare(program, _take(arguments, total, torch.arange(batch_size)))
        with program.running():  # also where `prepare` has put a guide around it
            return self._learn(program, arguments, total, batch_size, valid, begun)

    def _learn(self, program: Program, arguments: tuple, total: int, batch_size: int, valid: Any, begun: float) -> Fit:
        parameters = [p for p in program.parameters() if p.requires_grad]
        if not parameters:
            raise ProgramError(
                f"{program.name!r} has no parameters to learn: use pyro.param, pyro.module, or attributes of a Program."
            )
        objective = self.objective(program, total)
        live = [*program.parameters(), *program.buffers(), *getattr(objective, "live", ())]
        step = Step(self.gradients(program, objective, parameters), arguments, live, self.backend)
        optimiser = self._optimiser(parameters)
        validate = None if valid is None else self.validation(program, total)
        state = State(average=[p.detach().clone() for p in parameters] if self.average else [])
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            read_checkpoint(self.checkpoint, program, parameters, optimiser, state, getattr(objective, "live", ()))
            begun -= state.seconds
        stopped = self._epochs(
            program, arguments, total, batch_size, valid, step, objective, validate, optimiser, parameters, state, begun
        )
        if state.best_state:
            program.load_state_dict(state.best_state)
        elif self.average:
            _swap(parameters, state.average)
        program.eval()
        passes = state.epoch * getattr(
            self, "particles", 1
        )  # a pass over the data is one gradient, in however many steps
        cost = Cost(state.steps, time.perf_counter() - begun, step.seconds, gradients=passes, path=step.path)
        notes = {"best_epoch": state.best_epoch, "rows": total}
        return Fit(program, pd.DataFrame(state.rows), stopped, cost, self.aim, notes)

    def _epochs(
        self, program: Program, arguments: tuple, total: int, batch_size: int, valid: Any, step: "Step",
        objective: Objective, validate: Objective | None, optimiser: Any, parameters: Sequence[Tensor], state: State, begun: float,
    ) -> str:  # fmt: skip
        saved = time.perf_counter()
        with progress(f"learn {program.name}", self.epochs, state.epoch) as report:
            while state.epoch < self.epochs:
                if self.patience and state.epoch - state.best_epoch >= self.patience:
                    return f"no better validation objective for {self.patience} epochs"
                state.epoch += 1
                getattr(objective, "begin_epoch", lambda epoch: None)(state.epoch)
                for module in program.modules():  # parts with a schedule of their own, such as a temperature
                    getattr(module, "begin_epoch", lambda epoch, epochs: None)(state.epoch, self.epochs)
                rate = self._set_rate(optimiser, state.epoch)
                mean = self._one_epoch(program, arguments, total, batch_size, step, optimiser, parameters, state)
                row = {"epoch": state.epoch, "objective": mean, "lr": rate} | getattr(objective, "columns", dict)()
                if validate is not None:
                    row["valid"] = self._validate(program, valid, validate, parameters, state)
                row["seconds"] = state.seconds = time.perf_counter() - begun
                state.rows.append(row)
                report(**{k: v for k, v in row.items() if k in ("objective", "valid")})
                if self.checkpoint is not None and (
                    time.perf_counter() - saved >= self.checkpoint_seconds or state.epoch == self.epochs
                ):
                    write_checkpoint(
                        self.checkpoint, program, parameters, optimiser, state, getattr(objective, "live", ())
                    )
                    saved = time.perf_counter()
        return f"all {self.epochs} epochs done"

    def _one_epoch(
        self, program: Program, arguments: tuple, total: int, batch_size: int, step: "Step", optimiser: Any,
        parameters: Sequence[Tensor], state: State,
    ) -> float:  # fmt: skip
        device = parameters[0].device
        order = torch.randperm(total, device=device) if batch_size < total else None
        summed = torch.zeros((), dtype=torch.float64, device=device)
        batch: tuple = ()
        for begin in range(0, total, batch_size):
            batch = arguments if order is None else _take(arguments, total, order[begin : begin + batch_size])
            loss, *gradients = step(*batch)
            if device.type == "cpu" and not math.isfinite(loss):
                self._stop(program, batch, state, float(loss))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if self.clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            optimiser(list(parameters)) if isinstance(optimiser, PyroOptim) else optimiser.step()
            state.steps += 1
            if self.average:
                decay = min(self.average, (1 + state.steps) / (10 + state.steps))  # a short memory at first
                torch._foreach_lerp_(state.average, [p.detach() for p in parameters], 1 - decay)
            summed += loss * min(batch_size, total - begin)
        for parameter in parameters:
            parameter.grad = None
        mean = float(summed) / total
        if not math.isfinite(mean):  # on a GPU the loss is read once an epoch, so that steps need not wait for it
            self._stop(program, batch, state, mean)
        return mean

    def _validate(
        self, program: Program, valid: Any, validate: Objective, parameters: Sequence[Tensor], state: State
    ) -> float:
        if self.average:
            _swap(parameters, state.average)
        with torch.no_grad(), seeded(0), evaluating(program):
            value = float(validate(*valid) if isinstance(valid, tuple) else validate(valid))
        if value < state.best:
            state.best, state.best_epoch = value, state.epoch
            state.best_state = {name: tensor.detach().clone() for name, tensor in program.state_dict().items()}
        if self.average:
            _swap(parameters, state.average)
        return value

    def _stop(self, program: Program, batch: tuple, state: State, loss: float) -> None:
        from ppl_dgm.checking import first_nonfinite

        where = first_nonfinite(program, batch) or "no site alone is to blame: the gradient was"
        if state.best_state:
            program.load_state_dict(state.best_state)
        fit = Fit(
            program,
            pd.DataFrame(state.rows),
            "the objective was not finite",
            Cost(state.steps, state.seconds),
            self.aim,
        )
        raise NumericalError(
            f"learning {program.name!r} stopped in epoch {state.epoch}, step {state.steps + 1}: the objective is {loss}; {where}; "
            f"try a smaller lr than {self.lr:g}, clip=1.0, or data of a smaller scale.", fit,
        )  # fmt: skip

    # -- details ------------------------------------------------------------------------------------------------------

    def _split(self, arguments: tuple, valid: Any) -> tuple[tuple, Any]:
        """Hold out a tenth of the rows where early stopping needs a validation split and there is none."""
        data = arguments[0]
        if isinstance(data, Tensor) and data.dim() and len(data) == 0:
            raise DataError("the data set has no rows; give at least one.")
        if self.patience is None or valid is not None or not isinstance(data, Tensor) or not data.dim():
            return arguments, valid
        if len(data) < 10:
            raise DataError(
                f"patience={self.patience} needs a validation split, and {len(data)} rows are too few to hold one out; pass valid=...."
            )
        order = torch.randperm(len(data), device=data.device)
        held = max(1, len(data) // 10)
        out = _take(arguments, len(data), order[:held])
        return _take(arguments, len(data), order[held:]), out if len(out) > 1 else out[0]

    def _optimiser(self, parameters: Sequence[Tensor]) -> Any:
        if isinstance(self.optim, PyroOptim):
            return self.optim
        if not isinstance(self.optim, str):
            optimiser = self.optim(parameters)
            if not isinstance(optimiser, torch.optim.Optimizer):
                raise ProgramError(
                    f"optim: the callable must return a torch.optim.Optimizer, but it returned a {type(optimiser).__name__}."
                )
            return optimiser
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optim in ("adam", "adamw") and all(p.is_floating_point() for p in parameters):
            options["fused"] = True
        return _OPTIMISERS[self.optim](parameters, **options)

    def _set_rate(self, optimiser: Any, epoch: int) -> float:
        if isinstance(optimiser, PyroOptim) or not isinstance(self.optim, str):
            return math.nan  # the user's own optimiser keeps its own rate
        rate = self.lr
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * (epoch - 1) / self.epochs))
        for group in optimiser.param_groups:
            group["lr"] = rate
        return rate


class Step:
    """One step as a recorded graph, or as plain Python where that is asked for or nothing else works."""

    def __init__(self, function: Callable[..., tuple], arguments: tuple, live: list[Tensor], backend: str) -> None:
        self.function = function
        self.fixed = {i: a for i, a in enumerate(arguments) if not isinstance(a, Tensor)}  # graphs take tensors alone
        self.recorder = Recorder(self._quiet, live, "eager" if backend == "python" else backend)
        if backend == "python":
            self.recorder.path = "python"

    @property
    def path(self) -> str:
        return self.recorder.path

    @property
    def seconds(self) -> float:
        return self.recorder.seconds

    def __call__(self, *batch: Any) -> tuple:
        if self.recorder.path == "python":
            return self.function(*batch)
        return self.recorder(*(a for a in batch if isinstance(a, Tensor)))

    def _quiet(self, *tensors: Tensor) -> tuple:
        """The function while it is recorded: nothing may look at a value."""
        rest = iter(tensors)
        count = len(tensors) + len(self.fixed)
        with tolerant_pyro(), pyro.validation_enabled(False):
            return self.function(*(self.fixed[i] if i in self.fixed else next(rest) for i in range(count)))


def _take(arguments: tuple, total: int, rows: Tensor) -> tuple:
    """A batch: those rows of every tensor that has one row per example."""
    return tuple(a[rows] if isinstance(a, Tensor) and a.dim() and len(a) == total else a for a in arguments)


def _swap(parameters: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Exchange the values of two lists of tensors, in place."""
    with torch.no_grad():
        for one, other in zip(parameters, others, strict=True):
            kept = one.detach().clone()
            one.copy_(other)
            other.copy_(kept)


def checked_run(program: Program, batch: tuple, guide: Callable | None = None) -> Any:
    """One run of guide and model with Pyro's validation on; returns the model's trace."""
    with torch.no_grad(), pyro.validation_enabled(True):
        if guide is None:
            return pyro.poutine.trace(program.run_model).get_trace(*batch)
        drawn = pyro.poutine.trace(guide).get_trace(*batch)
        return pyro.poutine.trace(pyro.poutine.replay(program.run_model, trace=drawn)).get_trace(*batch)
