"""card: what a program can answer, how exactly, and at what cost, as the tutorial's task tables do."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from .program import Answer, Program, as_program
from .randomness import seeded
from .registry import resolve
from .tasks import evaluating, infer, sample, score
from .text import table
from .tracing import latent_sites

__all__ = ["Card", "card", "count_passes"]

TASKS = ("sample", "score", "infer", "learn")


@dataclass
class Card:
    """Rows task -> Answer, and what was measured.

    Attributes:
        program: its name.
        answers: one `Answer` per task.
        parameters: how many numbers are learned.
        seconds: measured seconds per example, per task; empty where nothing was measured.
        passes: counted runs of the busiest network for one sample; None where it was not counted.
    """

    program: str
    answers: dict[str, Answer]
    parameters: int
    seconds: dict[str, float] = field(default_factory=dict)
    passes: int | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The table as records, for JSON."""
        return [
            {
                "task": task,
                "kind": a.kind,
                "how": a.how,
                "passes": a.passes,
                "depth": a.depth,
                "seconds": self.seconds.get(task),
            }
            for task, a in self.answers.items()
        ]

    def __str__(self) -> str:
        def show(value: Any) -> str:
            return "-" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)

        lines = [[show(value) for value in row.values()] for row in self.rows()]
        header = ("task", "how exact", "how", "passes", "serial depth", "s per example")
        return f"{self.program} ({self.parameters:,} parameters)\n{table(header, [[r[0], r[1].replace('_', ' '), *r[2:]] for r in lines])}"

    __repr__ = __str__


def card(program: Any, *args: Any, guide: Any = None, **kwargs: Any) -> Card:
    """What a program answers to each task: how exactly, by which method, in how many passes, and, given data, in how many seconds.

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: observations; with them, scoring and inference are timed on up to 16 rows. Without them nothing is timed but sampling
            of a zoo program.
        guide: a guide to use instead of the program's.

    Returns:
        A `Card`; print it. `passes` counts the runs of the busiest network per example, `serial depth` how many must wait for one another.

    Example:
        >>> import ppl_dgm as dgm
        >>> print(dgm.card(dgm.models.VAE(observed=64, values=17)))     # doctest: +SKIP
    """
    program = as_program(program, guide)
    known = program.answers()
    answers = {task: known.get(task) or _general(program, task, args, kwargs) for task in TASKS}
    result = Card(program.name, answers, sum(p.numel() for p in program.parameters()))
    forward = program.draws_n or hasattr(program, "simulate")
    if forward or args or kwargs:
        own_args, own_kwargs = ((), {}) if forward else (args, kwargs)
        result.passes = count_passes(program, *own_args, **own_kwargs)
        result.seconds["sample"] = _seconds(sample, program, 16, *own_args, **own_kwargs) / 16
    if args and isinstance(args[0], Tensor) and program.observed is not None:
        few = (args[0][:16], *args[1:])
        for verb in (score, infer):
            if answers[verb.__name__].kind != "unavailable":
                result.seconds[verb.__name__] = _seconds(verb, program, *few, **kwargs) / len(few[0])
    return result


def count_passes(program: Program, *args: Any, **kwargs: Any) -> int | None:
    """How often the busiest network runs for one sample, counted while one is drawn; None where no network (a module) runs."""
    calls: Counter[int] = Counter()
    hooks = [
        m.register_forward_hook(lambda module, *_: calls.update([id(module)]))
        for m in program.modules()
        if m is not program
    ]
    try:
        with torch.no_grad(), evaluating(program):
            sample(program, 1, *args, seed=0, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(calls.values(), default=None)


def _seconds(verb: Any, *args: Any, **kwargs: Any) -> float:
    begun = time.perf_counter()
    verb(*args, seed=0, **kwargs)
    return time.perf_counter() - begun


def _general(program: Program, task: str, args: tuple, kwargs: dict) -> Answer:
    """What the verbs do with a program that does not say it itself."""
    if task == "sample":
        return Answer("exact", "ancestral: the program run forward", None, None)
    if task == "learn":
        method = program.default_method("learn")
        return Answer(
            "approximate", getattr(resolve(method), "aim", "its own learner") if method else "ELBO by SVI", None, None
        )
    try:
        with torch.no_grad(), seeded(0), program.running(), evaluating(program):
            latent = latent_sites(poutine.trace(program.run_model).get_trace(*args, **kwargs))
    except Exception:  # the program needs arguments that it was not given; the card says what it can without running it
        return Answer("unavailable", "give the model's arguments to find out", None, None)
    discrete = all(node["fn"].has_enumerate_support for node in latent.values())
    if task == "score":
        if discrete:
            return Answer("exact", "every latent site summed out" if latent else "nothing is latent")
        if program.has_guide:
            return Answer("lower_bound", "importance weighting with the guide")
        return Answer("unavailable", f"an integral over {', '.join(latent)}; give a guide", None, None)
    if not latent:
        return Answer("unavailable", "nothing is latent for these arguments", None, None)
    if discrete:
        return Answer("exact", "enumeration")
    if program.has_guide:
        return Answer("approximate", "draws from the guide")
    return Answer("asymptotic", "the No-U-Turn sampler", None, None)
