"""Equal budgets: how long each algorithm may run, by the gradients or seconds that it takes, and where a run is cut."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppl_dgm.inference.comparing.measuring import Spent
from ppl_dgm.results import Posterior

__all__ = ["Budget", "Lengths"]

_SPARE = 1.1  # a run is planned to go so far beyond the budget, so that the cut is the budget itself
_RUNS = 3  # at most, to find the length of one
_ELEMENTS = 2e8  # of draws, at most: what fits in memory
_PILOT_WARMUP, _PILOT_DRAWS = 5, 20  # a pilot is shorter than the run by these
_OTHER_LENGTHS = ("epochs", "steps", "iterations")  # options of methods without draws to lengthen

Run = Callable[[Any], tuple[Posterior, Spent]]


@dataclass(frozen=True)
class Budget:
    """The same amount for every algorithm.

    Attributes:
        limit: how much.
        unit: "gradients" (of all chains, warm-up included) or "seconds" (without recording and compiling).
    """

    limit: float
    unit: str = "gradients"

    def draws(self, spent: Spent) -> int:
        """How many draws of each chain the budget pays for."""
        return int((spent.up_to(self.unit) <= self.limit).sum())

    def before(self, spent: Spent) -> float:
        """What was spent before the first draw."""
        return spent.gradients_before if self.unit == "gradients" else spent.seconds_before

    def __str__(self) -> str:
        return f"{self.limit:g} {self.unit}"


class Lengths:
    """The lengths of one algorithm's runs under a budget, learned from a short pilot and from each run.

    A method keeps its chains and its other options. Where its own warm-up and draws cost more than the budget, both are
    shortened alike; where they cost less, its draws are lengthened. Other methods (Laplace, importance sampling) run as
    they are; of those that are too dear, `epochs`, `steps` or `iterations` are cut down.

    Arguments:
        method: an algorithm object.
        budget: None runs it as it is.
    """

    def __init__(self, method: Any, budget: Budget | None) -> None:
        self.method, self.budget, self.planned = method, budget, budget is None
        self.note = ""

    @property
    def chain(self) -> bool:
        """Whether the method draws one after another, so that its length is that of its warm-up and draws."""
        return all(isinstance(getattr(self.method, name, None), int) for name in ("warmup", "draws"))

    def run(self, infer: Run) -> tuple[Posterior, Spent]:
        """A run, cut where the budget ends; without draws where not even its warm-up was paid for."""
        if self.budget is None:
            return infer(self.method)
        if not self.chain:
            return self._whole(infer)
        if not self.planned:
            self._plan(infer)
        posterior, spent = infer(self.method)
        for _ in range(_RUNS - 1):
            if not self._corrected(posterior, spent):
                break
            posterior, spent = infer(self.method)
        kept = self.budget.draws(spent)
        if not kept:
            self.note = f"a warm-up of {self.method.warmup} steps and the first draw take more than {self.budget}"
        return cut(posterior, kept), spent.cut(max(kept, 1))

    def _plan(self, infer: Run) -> None:
        """First lengths, from what the steps of a short run cost."""
        assert self.budget is not None
        warmup, draws = self.method.warmup, self.method.draws
        short = max(warmup // _PILOT_WARMUP, min(warmup, 50)), max(draws // _PILOT_DRAWS, 10)
        _, spent = infer(dataclasses.replace(self.method, warmup=short[0], draws=short[1]))
        before, total = self.budget.before(spent), float(spent.up_to(self.budget.unit)[-1])
        self.planned = True
        if not total > before:
            return  # it takes none: a budget of gradients says nothing of it
        of_warmup, of_draw = before / max(short[0], 1), (total - before) / short[1]
        share = min(1.0, self.budget.limit / (of_warmup * warmup + of_draw * draws))
        warmup = round(warmup * share)
        left = max(self.budget.limit - of_warmup * warmup, of_draw)
        self._set(warmup, math.ceil(_SPARE * left / of_draw))

    def _corrected(self, posterior: Posterior, spent: Spent) -> bool:
        """Other lengths, where this run fell short of the budget or had no draw within it; whether they changed."""
        assert self.budget is not None
        used = spent.up_to(self.budget.unit)
        before, total = self.budget.before(spent), float(used[-1])
        old = self.method
        if not total > before:
            return False
        if not self.budget.draws(spent):
            if not self.method.warmup or not before:
                return False  # the first draw alone is too dear
            self._set(int(0.6 * self.method.warmup * self.budget.limit / before), self.method.draws)
        elif total < self.budget.limit:
            of_draw = (total - before) / len(used)
            draws = math.ceil(_SPARE * (self.budget.limit - before) / of_draw)
            size = sum(value[:, 0].numel() for value in posterior.draws.values())
            most = max(int(_ELEMENTS / max(size, 1)), self.method.draws)
            if draws > most:
                self.note = (
                    f"more than {most} draws of each chain would not fit in memory, so it stops before {self.budget}"
                )
            self._set(self.method.warmup, min(draws, most))
        return self.method != old

    def _set(self, warmup: int, draws: int) -> None:
        self.method = dataclasses.replace(self.method, warmup=max(warmup, 0), draws=max(draws, 1))

    def _whole(self, infer: Run) -> tuple[Posterior, Spent]:
        """A method whose draws come all at once."""
        assert self.budget is not None
        posterior, spent = infer(self.method)
        used = float(spent.up_to(self.budget.unit)[-1])
        known = [name for name in _OTHER_LENGTHS if isinstance(getattr(self.method, name, None), int)]
        if used > self.budget.limit and known and not self.planned:
            share = self.budget.limit / used
            shorter = {name: max(int(getattr(self.method, name) * share), 1) for name in known}
            self.method = dataclasses.replace(self.method, **shorter)
            posterior, spent = infer(self.method)
            used = float(spent.up_to(self.budget.unit)[-1])
        self.planned = True
        if used > self.budget.limit:
            self.note = f"it took {used:.3g} {self.budget.unit}, more than the budget; choose its options by hand"
        return posterior, spent


def cut(posterior: Posterior, draws: int) -> Posterior:
    """The first draws of each chain."""
    total = next(iter(posterior.draws.values())).shape[1]

    def first(table: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value[:, :draws] if value.dim() > 1 and value.shape[1] == total else value
            for name, value in table.items()
        }

    if draws >= total:
        return posterior
    return dataclasses.replace(
        posterior,
        draws=first(posterior.draws),
        deterministic=first(posterior.deterministic),
        stats=first(posterior.stats),
    )
