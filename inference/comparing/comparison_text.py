"""A comparison in words: the report that is printed, and the sentences that say which numbers cannot be compared."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ppl_dgm.inference.comparing.measuring import LOW_BIAS
from ppl_dgm.text import table

__all__ = ["ACCURACY", "notes", "report"]

# columns of the table that are given with their lowest and highest value over seeds
ACCURACY = (
    "b2_x_max", "b2_x_mean", "b2_square_max", "b2_square_mean", "b2_quantile_max", "b2_quantile_mean",
    "reach_max", "reach_mean", "reach_max_sampling", "reach_mean_sampling", "ess_bulk", "ess_tail",
    "sliced_wasserstein", "mmd", "worst_error", "log_evidence_error",
)  # fmt: skip
_BIASED = 4.0  # standard errors beyond which chance is no explanation
_UNEQUAL = 2.0  # ratio of gradients beyond which runs without a budget are said to be unequal
_R_HAT = 1.01
_NAMED = 4


# -- the report --------------------------------------------------------------------------------------------------------


def report(comparison: Any) -> str:
    """The tables and notes of a `Comparison`."""
    found, settings = comparison.table, comparison.settings
    seeds = settings["seeds"]
    spread = "medians over seeds [lowest, highest]" if len(seeds) > 1 else "one seed"
    budget = settings["budget"]
    allowed = f"{budget[0]:g} {budget[1]} each" if budget else "each method's own length"
    coordinates = settings["coordinates"]
    head = (
        f"{settings['program']}, {coordinates} coordinate{'s' * (coordinates != 1)} of {', '.join(settings['sites']) or 'no site'}; "
        f"{allowed}; seeds {', '.join(map(str, seeds))}: {spread}\nreference: {comparison.reference.how}{_floor(comparison.runs)}"
    )
    good = found[found["seeds"] > 0]
    parts = [head, *(part for part in (_accuracy(good), _cost(good), _chains(good)) if part)]
    if comparison.notes:
        parts.append("Notes\n" + "\n".join(f"- {note}" for note in comparison.notes))
    return "\n\n".join(parts)


def _accuracy(found: pd.DataFrame) -> str:
    columns = {
        "b² of x": "b2_x_max", "b² of x²": "b2_square_max", "mean over x²": "b2_square_mean",
        "b² of quantiles": "b2_quantile_max", "error in SE": "worst_error", "sliced W": "sliced_wasserstein", "MMD": "mmd",
    }  # fmt: skip
    alone = ("b2_square_mean", "mmd")  # without their range
    beside = {"sliced W": "sliced_wasserstein_floor", "MMD": "mmd_floor"}
    header, rows = ["Accuracy"], [[str(method)] for method in found.index]
    for title, name in columns.items():
        if name not in found or found[name].isna().all():
            continue
        header.append(title)
        for row, (_, values) in zip(rows, found.iterrows(), strict=True):
            row.append(_short(values[name]) if name in alone else _ranged(values, name))
        if title in beside:
            header.append("(floor)")
            for row, (_, values) in zip(rows, found.iterrows(), strict=True):
                row.append(_short(values[beside[title]]))
    return table(header, rows) if len(header) > 1 and rows else ""


def _cost(found: pd.DataFrame) -> str:
    header = [
        "Cost", "gradients", "of them warm-up", f"until b² < {LOW_BIAS}", "without warm-up", "mean until", "seconds", "recording",
    ]  # fmt: skip
    rows = []
    for method, values in found.iterrows():
        reach = [
            _ranged(values, name, whole=True) if name in values else "-"
            for name in ("reach_max", "reach_max_sampling", "reach_mean")
        ]
        spent = [_short(values[name], True) for name in ("gradients", "warmup_gradients")]
        rows.append([str(method), *spent, *reach, _short(values["seconds"]), _short(values["compile_seconds"])])
    return table(header, rows) if rows else ""


def _chains(found: pd.DataFrame) -> str:
    header = [
        "Draws", "kind", "chains x draws", "bulk ESS", "tail ESS", "per 1000 gradients", "per second", "R-hat", "divergent", "findings",
        "log Z error",
    ]  # fmt: skip
    rows = []
    for method, v in found.iterrows():
        per_gradient = [_short(1000 * v[f"ess_{which}_per_gradient"]) for which in ("bulk", "tail")]
        per_second = [_short(v[f"ess_{which}_per_second"]) for which in ("bulk", "tail")]
        kind = f"{v['kind']}, weighted" if v["weighted"] else v["kind"]
        rows.append(
            [
                str(method), kind, f"{v['chains']:.0f} x {v['draws']:.0f}", _short(v["ess_bulk"], True), _short(v["ess_tail"], True),
                _both(per_gradient), _both(per_second), "-" if math.isnan(v["r_hat"]) else f"{v['r_hat']:.3f}",
                _short(v["divergences"], True), v["findings"],
                _ranged(v, "log_evidence_error"),
            ]
        )  # fmt: skip
    return table(header, rows) if rows else ""


def _both(pair: list[str]) -> str:
    return "-" if pair == ["-", "-"] else " / ".join(pair)


def _ranged(values: pd.Series, name: str, whole: bool = False) -> str:
    middle = _short(values[name], whole)
    low, high = (_short(values[f"{name}_{end}"], whole) for end in ("low", "high"))
    return middle if low == high else f"{middle} [{low}, {high}]"


def _short(value: float, whole: bool = False) -> str:
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "never" if whole else "inf"
    return f"{value:.0f}" if whole else f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"


def _floor(runs: pd.DataFrame) -> str:
    """The reference's own error, as b^2, beside it."""
    shown = []
    for name, title in (("b2_x_floor", "x"), ("b2_square_floor", "x²")):
        if name in runs and runs[name].notna().any():
            shown.append(f"{float(runs[name].max()):.1g} of {title}")
    if not shown or all(text.startswith("0 ") for text in shown):
        return "; its moments are exact" if shown else ""
    return f"; its own error makes a b² of up to {', '.join(shown)}"


# -- the sentences -----------------------------------------------------------------------------------------------------


def notes(comparison: Any) -> list[str]:
    """What to know before two rows of a `Comparison` are compared, a sentence each, the gravest first."""
    runs = comparison.runs
    good = runs[runs["failed"] == ""]
    found = _failures(runs)
    if not len(good):
        return found
    found += _biased(good) + _approximate(good) + _unlike(good) + _budgets(comparison, good) + _sites(comparison, good)
    found += _relabelled(good)
    return found + _reference(comparison, good) + _evidence(comparison, good) + _health(good)


def _failures(runs: pd.DataFrame) -> list[str]:
    bad, found = runs[runs["failed"] != ""], []
    for method, rows in bad.groupby("method", sort=False):
        for reason, some in rows.groupby("failed", sort=False):
            every = len(some) == len(runs[runs["method"] == method])
            seeds = "" if every else f" with seed {', '.join(map(str, some['seed']))}"
            found.append(f"{method} gave no result{seeds}: {_ended(str(reason))}")
    return found


def _biased(good: pd.DataFrame) -> list[str]:
    found = []
    for method, rows in good.groupby("method", sort=False):
        errors = rows["worst_error"].dropna() if "worst_error" in rows else rows.iloc[:0]
        if not len(errors) or not float(errors.median()) > _BIASED:
            continue
        worst = rows.loc[errors.idxmax()]
        asymptotic = worst["kind"] == "asymptotic"
        why = "it has not converged, or its own error is underestimated" if asymptotic else "it is biased"
        found.append(
            f"{method} is off by more than its and the reference's errors explain: {worst['worst_error']:.1f} standard errors at "
            f"{worst['worst_coordinate']}, so {why}."
        )
    return found


def _approximate(good: pd.DataFrame) -> list[str]:
    names = _named(good[(good["kind"] == "approximate") & ~good["weighted"]])
    if not names:
        return []
    them = "their" if " and " in names else "its"
    return [
        f"{names}: approximate, so that {them} bias does not vanish with more draws or gradients; effective draws, where given, "
        "are of the approximation, not of the posterior."
    ]


def _unlike(good: pd.DataFrame) -> list[str]:
    """Kinds of draws whose effective numbers mean different things; methods without gradients."""
    found = []
    weighted, populations = (
        _named(good[good["weighted"]]),
        good["at_once"] & (good["kind"] == "asymptotic") & ~good["weighted"],
    )
    if weighted:
        found.append(
            f"{weighted}: weighted draws, whose ESS (sum w)^2 / sum w^2 knows only the weights that were seen; it cannot be compared "
            "with that of chains."
        )
    if bool(populations.any()):
        found.append(
            f"{_named(good[populations])}: particles that came all at once, not chains, so there is no ESS or R-hat to compare; judge "
            "them by b² and distances."
        )
    none = _named(good[good["gradients"] == 0])
    if none:
        found.append(f"{none}: no gradients were counted; compare seconds (reach_max_seconds).")
    without = _named(good[(good["evaluations"] > 0.1 * good["gradients"]) & (good["gradients"] > 0)])
    if without:
        found.append(
            f"{without}: log densities without gradients are counted as gradients, though each costs about a third to a half of one."
        )
    return found


def _budgets(comparison: Any, good: pd.DataFrame) -> list[str]:
    budget = comparison.settings["budget"]
    found = [
        f"{method}: {_ended(note)}"
        for method, rows in good.groupby("method", sort=False)
        for note in dict.fromkeys(rows["budget_note"])
        if note
    ]
    if budget is None:
        spent = good[good["gradients"] > 0].groupby("method", sort=False)["gradients"].median()
        if len(spent) > 1 and spent.max() > _UNEQUAL * spent.min():
            found.append(
                f"The runs are unequal, from {spent.min():.0f} gradients ({spent.idxmin()}) to {spent.max():.0f} ({spent.idxmax()}): "
                f"compare the gradients until b² < {LOW_BIAS}, read the curves at one abscissa, or give a budget, but do not compare "
                "final errors."
            )
        return found
    unit = "gradients" if budget[1] == "gradients" else "seconds"
    short = good[(good[unit] < 0.8 * budget[0]) & (good[unit] > 0)]
    if len(short):
        found.append(
            f"{_named(short)}: used less than the budget ({', '.join(f'{v:.3g}' for v in short.groupby('method', sort=False)[unit].median())} "
            f"of {budget[0]:g} {unit}), since a method whose draws come at once ends when it is done."
        )
    return found


def _sites(comparison: Any, good: pd.DataFrame) -> list[str]:
    found = []
    for text, rows in good[good["left_out"] != ""].groupby("left_out", sort=False):
        found.append(f"{_named(rows)}: not compared: {text}.")
    sets = good.groupby("compared", sort=False)
    if len(sets) > 1:
        told = "; ".join(f"{_named(rows)} on {text or 'no site'}" for text, rows in sets)
        found.append(f"The methods are compared on different sites, so their rows are not comparable: {told}.")
    how = good[good["how"].str.contains("summed out", regex=False)]
    if len(how):
        found.append(f"{_named(how)}: discrete sites are summed out, so there are no draws of them to compare.")
    return found


def _relabelled(good: pd.DataFrame) -> list[str]:
    """Label switching: how often components stood in another order."""
    if "relabelled" not in good or not good["relabelled"].notna().any():
        return []
    shares = good.groupby("method", sort=False)["relabelled"].median().dropna()
    told = ", ".join(f"{method} {100 * share:.0f} %" for method, share in shares.items())
    return [
        f"Labels of components have no meaning, so they were put in one order before draws were compared; of the draws "
        f"that were permuted to match their run's pivot: {told}."
    ]


def _reference(comparison: Any, good: pd.DataFrame) -> list[str]:
    reference, found = comparison.reference, []
    if reference.findings:
        found.append(f"The reference itself is in doubt: {reference.findings[0]}")
    if not reference.mean and not reference.quantiles:
        found.append("The reference has no moments, so only distances are compared.")
    elif not reference.mean:
        found.append("The target has no moments; b² is of the chances of being below the reference's quantiles.")
    floors = {name: good[f"b2_{name}_floor"].max() for name in ("x", "square") if f"b2_{name}_floor" in good}
    if any(floor >= LOW_BIAS for floor in floors.values()):
        found.append(
            f"The reference's own error makes a b² of {max(floors.values()):.2g}, so b² < {LOW_BIAS} cannot be judged: make a longer one."
        )
    within = [
        str(method)
        for method, rows in good.groupby("method", sort=False)
        if any(0 < rows[f"b2_{name}_max"].median() < 2 * floor for name, floor in floors.items())
    ]
    if within:
        found.append(f"{_listed(within)}: b² is within the reference's own error, so it cannot be told from zero.")
    if reference.draws is None:
        found.append("The reference has no draws, so there are no distances; reference=dgm.NUTS(...) makes some.")
    elif any(word in reference.how for word in ("NUTS", "HMC")):
        found.append(
            f"The reference is a run itself ({reference.how}): what it misses, a method that misses it too is not blamed for."
        )
    return found


def _evidence(comparison: Any, good: pd.DataFrame) -> list[str]:
    having = good[good["log_evidence"].notna()]
    found = []
    if len(having) and comparison.reference.log_evidence is None:
        values = having.groupby("method", sort=False)["log_evidence"].median()
        told = ", ".join(f"{method} {value:.2f}" for method, value in values.items())
        found.append(f"The reference has no log evidence to compare with; the methods' own are {told} nats.")
    if comparison.reference.log_evidence is not None:
        lacking = good[~good["method"].isin(set(having["method"]))]
        if len(lacking):
            found.append(f"{_named(lacking)}: no log evidence.")
    bounds = having[~having["log_evidence_kind"].isin(("exact", "estimate"))]
    for kind, rows in bounds.groupby("log_evidence_kind", sort=False):
        found.append(
            f"{_named(rows)}: the log evidence is {kind.replace('_', ' ')}, so its error is a gap, not a mistake."
        )
    return found


def _health(good: pd.DataFrame) -> list[str]:
    """What `diagnose` says, the first finding of each method."""
    found = []
    for method, rows in good.groupby("method", sort=False):
        told = [finding for findings in rows["findings"] for finding in findings]
        if told:
            seeds = sum(bool(findings) for findings in rows["findings"])
            found.append(
                f"{method} (diagnosis, {seeds} of {len(rows)} run{'s' * (len(rows) > 1)}): {_ended(told[0].split('; ')[0])}"
            )
    return found


# -- words -------------------------------------------------------------------------------------------------------------


def _named(rows: pd.DataFrame) -> str:
    return _listed(dict.fromkeys(map(str, rows["method"])))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."
