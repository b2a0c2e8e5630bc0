"""compare: one program, many algorithms, several seeds, equal budgets, against a reference."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ppl_dgm.errors import DgmError, FileError
from ppl_dgm.files import load_json, save_json
from ppl_dgm.inference.comparing.budgets import Lengths
from ppl_dgm.inference.comparing.comparison_task import (
    Task,
    labelled,
    reason,
    seed_numbers,
    tell,
    the_budget,
    the_program,
    the_reference,
)
from ppl_dgm.inference.comparing.comparison_text import ACCURACY, notes, report
from ppl_dgm.inference.comparing.measuring import Yardstick, measure, values_of
from ppl_dgm.inference.comparing.references import Reference, finite_json, with_infinities
from ppl_dgm.results import Posterior

__all__ = ["METHODS", "Comparison", "compare"]

METHODS = ("nuts", "chees", "laplace", "pathfinder")
_FORMAT = "ppl-dgm comparison 1"


@dataclass
class Comparison:
    """What `compare` found.

    Attributes:
        runs: one row per method and seed.
        curves: b^2 as each run went on, one row per method, seed and point: `draw`, `gradients` and `seconds` up to it, and
            for each function of the coordinates its largest b^2 over them (`x_max`, `square_max`, `quantile_max`) and its
            mean (`x_mean`, ...). A method whose draws come all at once has one point.
        reference: what it was compared with (loaded from a file, without draws).
        notes: what to know before comparing two rows, a sentence each.
        settings: program, methods, seeds, budget, the sites and the number of coordinates compared.

    The columns of `runs` and `table`:

    - `b2_x_max`, `b2_x_mean`, `b2_square_max`, `b2_square_mean`: squared bias over variance of the averages of x and x^2,
      the largest and the mean over coordinates (see `distances.b_squared`); `b2_..._floor` is what the reference's own
      error makes of it. Where there are no moments, `b2_quantile_...` is of being below a quantile.
    - `reach_max`, `reach_mean`: gradients until those b^2 of x and of x^2 were both below 0.01 for good, infinite if one ends
      above; `..._sampling` without those of warm-up, `..._seconds` in seconds. `reach_square_max`, `reach_square_mean`: by x^2
      alone, as others publish it; it does not see that symmetric modes are visited unequally.
    - `worst_error`: the largest error of a mean or mean square in units of its own and the reference's standard error
      combined; `worst_coordinate`: where.
    - `gradients`, `warmup_gradients`, `seconds`, `warmup_seconds`, `compile_seconds` (not part of `seconds`). A log density
      without its gradient counts as one gradient; `evaluations` says how many there were.
    - `ess_bulk`, `ess_tail`: smallest over coordinates, and per gradient and second, warm-up included; of weighted draws
      (sum w)^2 / sum w^2. `r_hat`: the largest. `divergences`; `findings`: what `diagnose` says.
    - `sliced_wasserstein`, `mmd`: distances to one half of the reference draws, on standardised coordinates; `..._floor`
      the same for as many of the other half.
    - `log_evidence`, `log_evidence_stderr`, `log_evidence_error`: in nats.
    - `relabelled`: the share of draws whose components were put in another order, where labels have no meaning.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    reference: Reference
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per method, best first: medians over the seeds that ran, with `..._low` and `..._high` of those columns
        that say how good it is. First come those that reach b^2 < 0.01, by what they took; then the others by b^2.
        """
        rows = []
        for method in self.settings["methods"]:
            runs = self.runs[self.runs["method"] == method]
            good = runs[runs["failed"] == ""]
            row: dict[str, Any] = {"method": method, "seeds": len(good), "failed": "; ".join(_unique(runs["failed"]))}
            for name in self.runs.columns:
                if (name in row and name != "findings") or name in ("seed", *_LONG):
                    continue
                if pd.api.types.is_numeric_dtype(self.runs[name]) and not pd.api.types.is_bool_dtype(self.runs[name]):
                    values = good[name].dropna()
                    row[name] = float(values.median()) if len(values) else math.nan
                    if name in ACCURACY:
                        row[f"{name}_low"] = float(values.min()) if len(values) else math.nan
                        row[f"{name}_high"] = float(values.max()) if len(values) else math.nan
                elif name == "findings":
                    row[name] = sum(len(found) for found in good[name])
                else:
                    row[name] = good[name].iloc[0] if len(good) else ("" if name in _WORDS else False)
            rows.append(row)
        rows.sort(key=_rank)
        return pd.DataFrame(rows).set_index("method")

    def __str__(self) -> str:
        return report(self)

    def __repr__(self) -> str:
        return f"Comparison({self.settings['program']!r}: {', '.join(self.settings['methods'])}; {self.reference.how})"

    def plot(self, path: str | Path | None = None) -> Any:
        """A figure: b^2 of x^2 (largest and mean over coordinates) against gradients, effective draws, distances.

        Arguments:
            path: a .png, .svg or .pdf file to write; None returns the matplotlib figure.
        """
        from ppl_dgm.comparison_plots import comparison_figure
        from ppl_dgm.plots import save

        figure = comparison_figure(self)
        return figure if path is None else save(figure, path)

    def save(self, path: str | Path) -> None:
        """Write a JSON file, whole or not at all; the draws of the reference are left out."""
        content = {
            "format": _FORMAT,
            "settings": self.settings,
            "notes": self.notes,
            "reference": self.reference.plain(),
            "runs": self.runs.to_dict(orient="list"),
            "curves": self.curves.to_dict(orient="list"),
        }
        save_json(path, finite_json(content))

    @classmethod
    def load(cls, path: str | Path) -> "Comparison":
        """Read what `save` wrote.

        Raises:
            FileError: the file is missing, damaged, or something else.
        """
        content = load_json(path)
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FileError(f"{path} holds no comparison; was it written by Comparison.save?")
        try:
            content = with_infinities(content)
            tables = pd.DataFrame(content["runs"]), pd.DataFrame(content["curves"])
            return cls(*tables, Reference.restored(content["reference"]), content["notes"], content["settings"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{path} is a damaged comparison ({error!r}); make it again.") from None


def compare(
    program: Any,
    *args: Any,
    methods: Sequence[Any] | Mapping[str, Any] = METHODS,
    reference: Any = None,
    seeds: int | Iterable[int] = 3,
    budget: float | None = None,
    seconds: float | None = None,
    guide: Any = None,
    device: Any = None,
    transform: Callable[[Posterior], Posterior] | None = None,
    **kwargs: Any,
) -> Comparison:
    """Run many algorithms on one program, several times each, and measure them against a reference.

    Without a budget each method runs as long as its own options say, and the curves tell what any budget would have
    given. With one, a short pilot finds how long each method may run (its draws are lengthened, or its warm-up and draws
    shortened alike; see `budgets.Lengths`), and the run is cut where the budget ends. Methods take turns, seed by seed, so
    that other work on the machine slows all of them.

    Arguments:
        program: a `Program`, any callable Pyro model, a `Target`, or the name of a target ("funnel").
        *args, **kwargs: go to the model; a target has its own.
        methods: names ("nuts"), algorithm objects (`dgm.NUTS(chains=16)`), or {label: either of them}.
        reference: a `Reference`; a target or its name; a `Posterior`; a file that `Reference.save` wrote or an entry of
            posteriordb; or an algorithm that makes one (`dgm.NUTS(chains=16, draws=5000)`). By default what the target
            knows, else the exact posterior where enumeration or the program gives it, else a long run of NUTS: 8 chains of
            1000 + 1250.
        seeds: how many (0, 1, ...), or which.
        budget: gradients of all chains together, warm-up included.
        seconds: instead, seconds of each run without recording and compiling; such runs do not repeat bit for bit.
        guide, device: as for `infer`.
        transform: done to the posterior of every run, and to the reference if it is one, before it is measured; for
            instance `relabel`, where labels have no meaning. By default the program's own `identified`, if it has one
            (a Bayesian mixture does), else nothing.

    Returns:
        a `Comparison`; a method that fails keeps its row, with the reason.

    Raises:
        ProgramError: an unknown method or target, no method at all, or a reference of other sites.
        DgmError: the program itself, or the long run that was to be the reference, fails.

    Example:
        >>> import ppl_dgm as dgm
        >>> short = {"nuts": dgm.NUTS(warmup=50, draws=50), "laplace": dgm.Laplace()}
        >>> dgm.compare("beta-binomial", methods=short, seeds=1).table["kind"]["nuts"]
        'asymptotic'
    """
    chosen = labelled(methods)
    numbers = seed_numbers(seeds)
    limit = the_budget(budget, seconds)
    program, args, target = the_program(program, args, kwargs)
    task = Task(program, args, kwargs, guide, device, transform)
    truth = the_reference(reference, target, task)
    task.check(truth)
    plans = {label: Lengths(method, limit) for label, method in chosen.items()}
    records: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    common: list[str] = []
    for seed in numbers:
        done = {}
        for number, (label, plan) in enumerate(plans.items()):
            tell(f"[{len(records) + number + 1}/{len(numbers) * len(plans)}] {label}, seed {seed}")
            done[label] = task.attempt(plan, seed)
        common = common or _common(done, truth)
        for label, (posterior, spent, failed) in done.items():
            record, curve = _measured(posterior, spent, failed, truth, common)
            records.append({"method": label, "seed": seed, "options": repr(plans[label].method), **record})
            records[-1]["budget_note"] = plans[label].note
            if curve is not None:
                curves.append(pd.DataFrame({"method": label, "seed": seed, **curve}))
    settings = {
        "program": truth.name if target is not None else task.name, "methods": list(chosen), "seeds": numbers,
        "budget": None if limit is None else [limit.limit, limit.unit], "sites": common,
        "coordinates": sum(math.prod(truth.shapes[site]) for site in common),
    }  # fmt: skip
    runs = _frame(records)
    table = pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=["method", "seed"])
    result = Comparison(runs, table, truth, settings=settings)
    result.notes = notes(result)
    return result


def _measured(
    posterior: Posterior | None, spent: Any, failed: str, truth: Reference, common: list[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What one run came to, and its curve; without a posterior, or where measuring fails, the reason and None."""
    record: dict[str, Any] = {"failed": failed, "findings": []}
    if posterior is None or spent is None:
        return record, None
    try:
        sites = _shared(posterior, truth)
        used = [site for site in common if site in sites] or sites
        found, curve = measure(posterior, spent, Yardstick(truth, used))
    except (DgmError, RuntimeError, ValueError) as error:
        return record | {"failed": reason(error)}, None
    compared = {"compared": ", ".join(used), "left_out": ", ".join(_missing(posterior, truth))}
    return record | found | compared | {"relabelled": _relabelled(posterior)}, curve


# -- sites -------------------------------------------------------------------------------------------------------------


def _shared(posterior: Posterior, reference: Reference) -> list[str]:
    """The reference's sites of which there are draws of the same shape."""
    shapes = {site: tuple(value.shape[2:]) for site, value in values_of(posterior).items()}
    return [site for site, shape in reference.shapes.items() if shapes.get(site) == shape]


def _missing(posterior: Posterior, reference: Reference) -> list[str]:
    """The sites that only one of the two has, or that have other shapes there."""
    shapes = {site: tuple(value.shape[2:]) for site, value in values_of(posterior).items()}
    lost = [
        f"{site} (no draws of it)"
        if site not in shapes
        else f"{site} (of shape {list(shapes[site])}, there {list(shape)})"
        for site, shape in reference.shapes.items()
        if shapes.get(site) != shape
    ]
    return lost + [f"{site} (not in the reference)" for site in posterior.draws if site not in reference.shapes]


def _common(done: dict[str, tuple], reference: Reference) -> list[str]:
    """The sites that every method has; those of all together where no site is in all."""
    having = [_shared(posterior, reference) for posterior, _, _ in done.values() if posterior is not None]
    having = [sites for sites in having if sites]
    shared = [site for site in reference.shapes if having and all(site in sites for sites in having)]
    return shared or [site for site in reference.shapes if any(site in sites for sites in having)]


def _relabelled(posterior: Posterior) -> float:
    """The share of draws whose components were put in another order; NaN where labels mean something."""
    moved = posterior.stats.get("relabelled")
    return math.nan if moved is None else float(moved.double().mean())


# -- details -----------------------------------------------------------------------------------------------------------


def _rank(row: dict[str, Any]) -> tuple[bool, float, float]:
    def number(*names: str) -> float:
        values = [row[name] for name in names if isinstance(row.get(name), float) and not math.isnan(row[name])]
        return values[0] if values else math.inf

    moments = [value for value in (number("b2_x_max"), number("b2_square_max")) if value < math.inf]
    return (
        bool(row["failed"]) and not row["seeds"],
        number("reach_max"),
        max(moments) if moments else number("b2_quantile_max", "mmd"),
    )


def _unique(values: Iterable[str]) -> list[str]:
    return [value for value in dict.fromkeys(values) if value]


def _frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A table whose words are words and whose numbers are numbers, with every column also where all runs have failed."""
    table = pd.DataFrame(records)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, *_WORDS, *_FLAGS, *_NUMBERS])))
    for name in table.columns:
        if name in _WORDS:
            table[name] = [value if isinstance(value, str) else "" for value in table[name]]
        elif name in _FLAGS:
            table[name] = [value is True for value in table[name]]
    return table


_NUMBERS = (
    "chains", "draws", "gradients", "warmup_gradients", "evaluations", "seconds", "warmup_seconds", "compile_seconds",
    "b2_x_max", "b2_x_mean", "b2_square_max", "b2_square_mean", "reach_max", "reach_mean", "reach_square_max",
    "reach_square_mean", "worst_error", "ess_bulk", "ess_tail", "r_hat", "divergences", "sliced_wasserstein", "mmd",
    "log_evidence", "log_evidence_error", "relabelled",
)  # fmt: skip
_FLAGS = ("weighted", "at_once")
_LONG = ("how", "options", "budget_note", "compared", "left_out")  # too long for the table; in the runs
_WORDS = (
    "method", "failed", "kind", "how", "worst_coordinate", "log_evidence_kind", "options", "budget_note", "compared", "left_out",
)  # fmt: skip
