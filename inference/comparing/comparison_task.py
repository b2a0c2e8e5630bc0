"""What a comparison is of: the program with its arguments, the methods by label, seeds, budget, and the reference."""

import copy
import difflib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ppl_dgm.errors import DgmError, ProgramError, TaskUnavailable
from ppl_dgm.inference.comparing.budgets import Budget, Lengths
from ppl_dgm.inference.comparing.measuring import Spent
from ppl_dgm.inference.comparing.references import Reference
from ppl_dgm.registry import algorithms, resolve
from ppl_dgm.results import Posterior
from ppl_dgm.tasks import infer

__all__ = [
    "LONG_RUN",
    "Task",
    "labelled",
    "reason",
    "seed_numbers",
    "tell",
    "the_budget",
    "the_program",
    "the_reference",
]

LONG_RUN: dict[str, Any] = {"chains": 8, "warmup": 1000, "draws": 1250}  # of NUTS, where no reference is given
_REFERENCE_SEED = 1_000_003  # not one of those that methods run with


@dataclass
class Task:
    """The program with its arguments, to be inferred by any method."""

    program: Any
    args: tuple
    kwargs: dict[str, Any]
    guide: Any
    device: Any
    transform: Callable[[Posterior], Posterior] | None = None

    @property
    def name(self) -> str:
        return str(getattr(self.program, "name", None) or getattr(self.program, "__name__", "the program"))

    def infer(self, method: Any, seed: int) -> tuple[Posterior, Spent]:
        # learners change a program's parameters in place: each run starts from the same ones
        program = copy.deepcopy(self.program) if isinstance(self.program, nn.Module) else self.program
        method = _fresh(method)
        begun = time.perf_counter()
        options = {"method": method, "guide": self.guide, "seed": seed, "device": self.device}
        posterior = infer(program, *self.args, **options, **self.kwargs)
        spent = Spent.by(posterior, method, time.perf_counter() - begun)
        return self.identified(posterior), spent

    def identified(self, posterior: Posterior) -> Posterior:
        """The posterior as it is measured: transformed, or as the program identifies its draws."""
        known = self.transform or getattr(self.program, "identified", None)
        return posterior if known is None or not posterior.draws else known(posterior)

    def attempt(self, plan: Lengths, seed: int) -> tuple[Posterior | None, Spent | None, str]:
        """A run, or the reason why there is none."""
        try:
            posterior, spent = plan.run(lambda method: self.infer(method, seed))
        except Exception as error:  # one method's failure must not lose what the others have done
            return None, None, reason(error)
        if not posterior.draws:
            return None, None, f"it gives no draws ({posterior.how})"
        if next(iter(posterior.draws.values())).shape[1] == 0:
            return None, None, plan.note or "it gives no draws"
        return posterior, spent, ""

    def check(self, reference: Reference) -> None:
        """The reference is of this program's sites: say so before anything is run."""
        from ppl_dgm.tasks import sample

        try:
            known = set(sample(self.program, 1, *self.args, seed=0, device=self.device, **self.kwargs))
        except (DgmError, NotImplementedError, RuntimeError, ValueError):
            return  # flat priors cannot be drawn from; the runs themselves will tell
        if reference.shapes and not known & reference.shapes.keys():
            raise ProgramError(
                f"the reference is of {', '.join(map(repr, reference.shapes))}, but {self.name!r} has the sites "
                f"{', '.join(map(repr, sorted(known)))}; give the reference of this program."
            )


def labelled(methods: Any) -> dict[str, Any]:
    """{label: algorithm object}; those whose module is not to be had keep their name and fail when they run."""
    if isinstance(methods, str) or hasattr(methods, "run"):
        methods = [methods]
    given = dict(methods) if isinstance(methods, Mapping) else {}
    if not given:
        for method in methods:
            label = (
                method if isinstance(method, str) else (method if isinstance(method, type) else type(method)).__name__
            )
            place, count = label, 1
            while place in given:
                count += 1
                place = f"{label} {count}"
            given[place] = method
    if not given:
        raise ProgramError(f"compare: methods is empty; name some of {', '.join(algorithms())}.")
    return {label: resolve(method) for label, method in given.items()}


def seed_numbers(seeds: int | Iterable[int]) -> list[int]:
    """So many seeds from 0, or those that are given."""
    found = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise ProgramError(f"compare: seeds must be a positive number or different whole numbers, but it is {seeds!r}.")
    return found


def the_budget(gradients: float | None, seconds: float | None) -> Budget | None:
    """Of gradients or of seconds; None without either."""
    if gradients is not None and seconds is not None:
        raise ProgramError("compare: budget is of gradients and seconds of time; give one of them.")
    limit = gradients if gradients is not None else seconds
    if limit is not None and not limit > 0:
        raise ProgramError(f"compare: a budget must be positive, but it is {limit!r}.")
    return None if limit is None else Budget(float(limit), "gradients" if gradients is not None else "seconds")


def the_program(program: Any, args: tuple, kwargs: dict) -> tuple[Any, tuple, Any]:
    """The program, its arguments, and the target that they belong to, if any."""
    from ppl_dgm.inference import targets

    target = targets.find(program) if isinstance(program, str) else program
    if not all(hasattr(target, name) for name in ("program", "args", "mean")):
        return program, args, None
    if args or kwargs:
        raise ProgramError(f"compare: the target {target.name!r} has its own arguments; give none besides.")
    return target.program, tuple(target.args), target


def the_reference(given: Any, target: Any, task: Task) -> Reference:
    """What `compare` was given as its reference, or what it makes without one."""
    if given is None and target is not None:
        known = Reference.from_target(target)
        if known.shapes:
            return known
    if given is None:
        return _long_run(task)
    if isinstance(given, Reference):
        return given
    if isinstance(given, Posterior):
        return Reference.from_posterior(task.identified(given))
    if all(hasattr(given, name) for name in ("program", "args", "mean")):
        return Reference.from_target(given)
    if isinstance(given, (str, Path)):
        return _named_reference(given, task)
    return _made(resolve(given), task)


def _named_reference(given: str | Path, task: Task) -> Reference:
    from ppl_dgm.inference import targets

    if Path(given).suffix == ".json" or Path(given).is_file():
        return Reference.load(given)
    key = str(given).lower().replace("_", "-").replace(" ", "-")
    if key in targets.TARGETS:
        return Reference.from_target(targets.find(key))
    if key in algorithms():
        return _made(resolve(key), task)
    close = difflib.get_close_matches(key, [*targets.TARGETS, *algorithms()], 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ProgramError(
        f"reference {str(given)!r} is no file, target or algorithm; {hint}targets: {', '.join(targets.TARGETS)}."
    )


def _long_run(task: Task) -> Reference:
    """The exact posterior where there is one, else draws of NUTS."""
    try:
        return _made(resolve("exact", draws=8000), task)
    except TaskUnavailable:
        tell(f"a long run of NUTS makes the reference: {LONG_RUN}")
        return _made(resolve("nuts", **LONG_RUN), task)


def _made(method: Any, task: Task) -> Reference:
    posterior, _ = task.infer(method, _REFERENCE_SEED)
    return Reference.from_posterior(posterior, task.name)


def _fresh(method: Any) -> Any:
    """The same method with a guide of its own, if it holds a module: what one run has learned, the next must not begin with."""
    guide = getattr(method, "guide", None)
    if not isinstance(guide, nn.Module) or not is_dataclass(method) or isinstance(method, type):
        return method
    models = [vars(part).get("_model") for part in guide.modules()]
    made = copy.deepcopy(guide)
    for part in (guide, made):  # copying one of Pyro's autoguides takes its model from both
        for module, model in zip(part.modules(), models, strict=True):
            if model is not None:
                module._model = model
    return replace(method, guide=made)


# -- words -------------------------------------------------------------------------------------------------------------


def reason(error: BaseException) -> str:
    """An error in one line, with its type where it is none of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, DgmError) else f"{type(error).__name__}: {text}"


def tell(text: str) -> None:
    """Say how far it is, on a terminal."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
