"""One run measured against a reference: what it spent, its bias as it went, effective draws, distances, evidence."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import arviz
import numpy as np
import torch
from torch import Tensor

from ppl_dgm.inference.comparing.distances import (
    b_squared,
    maximum_mean_discrepancy,
    median_distance,
    sliced_wasserstein,
    standardised_error,
    thinned,
)
from ppl_dgm.inference.comparing.references import Reference, column_weights, flat_coordinates, weighted_moments
from ppl_dgm.results import Posterior

__all__ = ["FUNCTIONS", "LOW_BIAS", "Expectations", "Spent", "Yardstick", "measure", "reached", "values_of"]

FUNCTIONS = ("x", "square", "quantile")  # of each coordinate, whose averages are compared with their expectations
LOW_BIAS = 0.01  # of b^2: what a hundred independent draws give
_POINTS = 120  # of a curve that is kept
_COLUMNS = 256  # coordinates at a time
_ROWS = 1000  # draws that distances are computed from


# -- what a run spent --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Gradients (of all chains) and seconds, up to each draw of all chains.

    An evaluation of the log density without its gradient counts as much as one with it.

    Attributes:
        gradients, seconds: [draw] up to and with each draw; one element for a method whose draws come all at once. Seconds
            are without recording and compiling.
        gradients_before, seconds_before: before the first draw that is kept.
        compile_seconds: recording and compiling.
        at_once: whether all was spent before the first draw.
    """

    gradients: Tensor
    seconds: Tensor
    gradients_before: float
    seconds_before: float
    compile_seconds: float
    at_once: bool

    @classmethod
    def by(cls, posterior: Posterior, method: Any, wall: float) -> "Spent":
        """Of a run: gradients of the draws are told apart by the statistic `n_steps`, else shared out evenly.

        Arguments:
            method: the algorithm; one that has a warm-up is a chain.
            wall: seconds by the clock, for methods that count none.
        """
        cost, stats = posterior.cost, posterior.stats
        compile_seconds = float(cost.compile_seconds)
        seconds = max((cost.seconds or wall) - compile_seconds, 0.0)
        total = float(cost.gradients + getattr(cost, "evaluations", 0))
        chain = "n_steps" in stats or hasattr(method, "warmup") or cost.warmup_seconds > 0
        if not chain or posterior.log_weights is not None or not posterior.draws:
            whole = torch.tensor([total]).double(), torch.tensor([seconds]).double()
            return cls(*whole, total, seconds, compile_seconds, True)
        draws = next(iter(posterior.draws.values())).shape[1]
        weight, sampling = _shares(posterior, method, draws)
        before = max(total - sampling, 0.0)
        sampling_seconds = min(float(cost.sampling_seconds) or seconds, seconds)
        share = weight.cumsum(0) / weight.sum()
        seconds_before = seconds - sampling_seconds
        return cls(
            before + sampling * share, seconds_before + sampling_seconds * share, before, seconds_before,
            compile_seconds, False,
        )  # fmt: skip

    def up_to(self, unit: str) -> Tensor:
        """What was spent up to each draw, in "gradients" or "seconds", [draw]."""
        return self.gradients if unit == "gradients" else self.seconds

    def cut(self, draws: int) -> "Spent":
        """The same up to that many draws."""
        kept = self.gradients[:draws], self.seconds[:draws]
        return Spent(*kept, self.gradients_before, self.seconds_before, self.compile_seconds, self.at_once)


def _shares(posterior: Posterior, method: Any, draws: int) -> tuple[Tensor, float]:
    """The relative cost of each draw of all chains, [draw], and the evaluations of all draws together."""
    cost, counts = posterior.cost, posterior.stats.get("n_steps")
    without = float(getattr(cost, "evaluations", 0))
    before = float(getattr(cost, "warmup_gradients", 0))
    total = float(cost.gradients) + without
    even = torch.ones(draws, dtype=torch.float64)
    if without > cost.gradients:  # a method without gradients: each of its steps costs the same
        return even, total * draws / (draws + int(getattr(method, "warmup", 0)))
    if counts is None or tuple(counts.shape[1:]) != (draws,) or not bool((counts > 0).any()):
        if before or not cost.warmup_seconds:
            return even, total - before
        return even, total * cost.sampling_seconds / (cost.warmup_seconds + cost.sampling_seconds)
    steps = counts.detach().cpu().double()
    alone = float(steps.sum())
    sampling = total - before if before else min(alone, total)
    # chains in step wait for the longest trajectory, and those that wait are evaluated too
    weight = steps.amax(0) if sampling > 1.01 * alone else steps.sum(0)
    return weight.clamp(min=1e-9), sampling


# -- expectations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectations:
    """Of one function of every coordinate.

    Attributes:
        labels: names of the coordinates (for quantiles with the probability).
        expectation, variance, mcse: [k].
    """

    labels: list[str]
    expectation: Tensor
    variance: Tensor
    mcse: Tensor


class Yardstick:
    """What the draws of some sites are compared with: expectations of functions of them, and reference draws.

    Arguments:
        reference: moments, quantiles, draws.
        sites: those to be compared; of the others nothing is used.

    Coordinates whose expectation or variance is not finite are left out.
    """

    def __init__(self, reference: Reference, sites: list[str]) -> None:
        self.reference = reference
        self.sites = [site for site in sites if site in reference.mean or site in reference.quantiles]
        self.drawn = [site for site in sites if site in (reference.draws or {})]
        self.parts: dict[str, dict[str, Expectations]] = {name: {} for name in FUNCTIONS}
        for site in self.sites:
            for name in FUNCTIONS:
                found = _expectations(reference, site, name)
                if found is not None and found.labels:
                    self.parts[name][site] = found
        self.parts = {name: part for name, part in self.parts.items() if part}

    def count(self, name: str) -> int:
        """How many averages are compared for one function."""
        return sum(len(part.labels) for part in self.parts[name].values())

    def floor(self, name: str) -> float:
        """The largest b^2 that the reference's own error makes, max MCSE^2 / variance: below it nothing can be told."""
        ratios = [part.mcse.square() / part.variance for part in self.parts[name].values()]
        return float(torch.cat(ratios).nan_to_num(0.0).max())

    def blocks(self, name: str, posterior: Posterior) -> Iterator[tuple[Tensor, Expectations, Tensor | None]]:
        """Values of a function at the draws, [chain, draw, <= 256], what is expected of them, and log weights."""
        values = values_of(posterior)
        for site, part in self.parts[name].items():
            x = flat_coordinates(values[site])
            weights = column_weights(posterior, tuple(values[site].shape[2:]))
            for begin in range(0, len(part.labels), _COLUMNS):
                some = slice(begin, begin + _COLUMNS)
                chosen, block = _apply(self.reference, site, name, x, some)
                piece = Expectations(part.labels[some], part.expectation[some], part.variance[some], part.mcse[some])
                columns = weights if weights is None or weights.dim() == 1 else weights[:, chosen]
                yield block, piece, columns


def values_of(posterior: Posterior) -> dict[str, Tensor]:
    """{site: [chain, draw, *shape]}, latent and deterministic."""
    return {**posterior.deterministic, **posterior.draws}


def _expectations(reference: Reference, site: str, name: str) -> Expectations | None:
    labels = _labels(site, reference.shapes[site])
    if name == "quantile":
        table = reference.quantiles.get(site, {})
        if not table:
            return None
        flat = torch.stack([quantile.flatten() for quantile in table.values()]).flatten()
        p = torch.tensor(list(table), dtype=torch.float64).repeat_interleave(len(labels))
        named = [f"{label} below its {100 * q:g} % quantile" for q in table for label in labels]
        assert len(flat) == len(named)
        return Expectations(named, p, p * (1 - p), torch.zeros_like(p))
    fields = {"x": ("mean", "variance", "mcse_mean"), "square": ("square", "square_variance", "mcse_square")}[name]
    tables = [getattr(reference, key) for key in fields]
    if any(site not in table for table in tables):
        return None
    expectation, variance, mcse = (table[site].flatten() for table in tables)
    keep = _kept(expectation, variance)
    suffix = "" if name == "x" else "²"
    named = [label + suffix for label, good in zip(labels, keep.tolist(), strict=True) if good]
    return Expectations(named, expectation[keep], variance[keep], mcse[keep].nan_to_num(0.0))


def _kept(expectation: Tensor, variance: Tensor) -> Tensor:
    return expectation.isfinite() & variance.isfinite()


def _apply(reference: Reference, site: str, name: str, x: Tensor, some: slice) -> tuple[Tensor, Tensor]:
    """Which columns of x stand behind these elements of the expectations, and the function of them."""
    if name == "quantile":
        table = reference.quantiles[site]
        limits = torch.stack([quantile.flatten() for quantile in table.values()]).flatten()[some]
        chosen = torch.arange(x.shape[2]).repeat(len(table))[some]
        return chosen, (x[..., chosen] <= limits).double()
    first = ("mean", "variance") if name == "x" else ("square", "square_variance")
    keep = _kept(*(getattr(reference, key)[site].flatten() for key in first))
    chosen = keep.nonzero()[:, 0][some]
    values = x[..., chosen]
    return chosen, values if name == "x" else values.square()


def _labels(site: str, shape: tuple[int, ...]) -> list[str]:
    if not shape:
        return [site]
    return [f"{site}[{', '.join(map(str, index))}]" for index in np.ndindex(*shape)]


# -- one run -----------------------------------------------------------------------------------------------------------


def measure(posterior: Posterior, spent: Spent, yardstick: Yardstick) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that is compared of one run.

    Returns:
        a record of numbers (see `ppl_dgm.inference.comparing.comparison.Comparison`), and the curve {column: list}.
    """
    shape = next(iter(posterior.draws.values())).shape[:2] if posterior.draws else (0, 0)
    record: dict[str, Any] = {
        "kind": posterior.kind, "weighted": posterior.log_weights is not None, "at_once": spent.at_once,
        "how": posterior.how, "chains": shape[0], "draws": shape[1],
        "gradients": float(spent.gradients[-1]), "warmup_gradients": 0.0 if spent.at_once else spent.gradients_before,
        "seconds": float(spent.seconds[-1]), "warmup_seconds": 0.0 if spent.at_once else spent.seconds_before,
        "compile_seconds": spent.compile_seconds,
        "evaluations": float(getattr(posterior.cost, "evaluations", 0)),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of divisions by the zero variance of constant elements
        curve = _curve(posterior, spent, yardstick)
        record |= _at_the_end(curve, spent, yardstick)
        record |= _worst_error(posterior, yardstick, spent.at_once)
        record |= _effective(posterior, yardstick, spent)
        record |= _distances(posterior, yardstick)
        record |= _evidence(posterior, yardstick.reference)
        record["findings"] = posterior.diagnose()
    diverging = posterior.stats.get("diverging")
    record["divergences"] = math.nan if diverging is None else float(diverging.sum())
    return record, _thinned_curve(curve, spent)


def _curve(posterior: Posterior, spent: Spent, yardstick: Yardstick) -> dict[str, Tensor]:
    """b^2 of the average over all draws so far, {function_max: [draw], function_mean: [draw]}."""
    curve = {}
    for name in yardstick.parts:
        largest = torch.zeros(len(spent.gradients), dtype=torch.float64)
        total = torch.zeros_like(largest)
        for values, part, weights in yardstick.blocks(name, posterior):
            if spent.at_once:
                average = weighted_average(values, weights)[None]  # [1, k]
            else:
                count = torch.arange(1, values.shape[1] + 1, dtype=torch.float64)
                average = values.mean(0).cumsum(0) / count[:, None]  # [draw, k]
            b2 = b_squared(average, part.expectation, part.variance).nan_to_num(torch.inf, posinf=torch.inf)
            largest = torch.maximum(largest, b2.amax(1))
            total = total + b2.sum(1)
        curve[f"{name}_max"], curve[f"{name}_mean"] = largest, total / yardstick.count(name)
    return curve


def weighted_average(values: Tensor, log_weights: Tensor | None) -> Tensor:
    """Over chains and draws, [chain, draw, k] -> [k]."""
    if log_weights is None:
        return values.mean((0, 1))
    flat = values.flatten(0, 1)
    return (torch.softmax(log_weights, 0).reshape(len(flat), -1) * flat).sum(0)


def reached(curve: Tensor, spent: Tensor, low: float = LOW_BIAS) -> float:
    """What was spent when b^2 fell below `low` for good; infinite if it ends above.

    Arguments:
        curve, spent: [draw].

    Source: the criterion of Hoffman and Sountsov (2022), at the last crossing.
    """
    above = (curve >= low).nonzero()
    if not len(above):
        return float(spent[0])
    last = int(above[-1])
    return math.inf if last + 1 == len(curve) else float(spent[last + 1])


def _at_the_end(curve: dict[str, Tensor], spent: Spent, yardstick: Yardstick) -> dict[str, float]:
    record = {f"b2_{name}": float(values[-1]) for name, values in curve.items()}
    record |= {f"b2_{name}_floor": yardstick.floor(name) for name in yardstick.parts}
    moments: list[str] = [name for name in ("x", "square") if name in yardstick.parts]
    ruling = moments or (["quantile"] if "quantile" in yardstick.parts else [])
    for which in ("max", "mean"):
        if ruling:  # the largest: symmetric modes show in x alone, widths in x^2
            values = torch.stack([curve[f"{name}_{which}"] for name in ruling]).amax(0)
            record |= _crossings(f"reach_{which}", values, spent, max(map(yardstick.floor, ruling)) < LOW_BIAS)
        if "square" in moments:
            alone = _crossings(
                f"reach_square_{which}", curve[f"square_{which}"], spent, yardstick.floor("square") < LOW_BIAS
            )
            record |= {name: value for name, value in alone.items() if not name.endswith("_seconds")}
    return record


def _crossings(name: str, values: Tensor, spent: Spent, judged: bool) -> dict[str, float]:
    """What was spent when a curve fell below LOW_BIAS: gradients, those without warm-up, seconds.

    Arguments:
        values: b^2 up to each draw, [draw].
        judged: whether the reference is good enough to tell.
    """
    counted = judged and float(spent.gradients[-1]) > 0  # gradients say nothing of a method that takes none
    at = reached(values, spent.gradients)
    return {
        name: at if counted else math.nan,
        f"{name}_sampling": at - spent.gradients_before if counted and not spent.at_once else math.nan,
        f"{name}_seconds": reached(values, spent.seconds) if judged else math.nan,
    }


def _thinned_curve(curve: dict[str, Tensor], spent: Spent) -> dict[str, Any]:
    draws = len(spent.gradients)
    chosen = torch.logspace(0, math.log10(draws), _POINTS, dtype=torch.float64).round().long().clamp(1, draws).unique()
    chosen = chosen - 1
    table = {"draw": (chosen + 1).tolist(), "gradients": spent.gradients[chosen].tolist()}
    table |= {"seconds": spent.seconds[chosen].tolist()}
    return table | {name: values[chosen].tolist() for name, values in curve.items()}


def _worst_error(posterior: Posterior, yardstick: Yardstick, at_once: bool) -> dict[str, Any]:
    """The largest error in units of its and the reference's standard errors combined, and where it is."""
    worst, where = 0.0, ""
    populations = at_once and posterior.log_weights is None and posterior.kind != "exact"
    for name in yardstick.parts:
        for values, part, weights in yardstick.blocks(name, posterior):
            average, variance, stderr = weighted_moments(values, weights)
            if populations and len(values) > 1:
                stderr = _between(values, variance)
            count = values.shape[0] * values.shape[1]
            stderr = torch.where(
                stderr > 0, stderr, (part.variance / count).sqrt()
            )  # where no draw differs from another
            z = (
                standardised_error(average, stderr, part.expectation, part.mcse)
                .abs()
                .nan_to_num(-1.0, posinf=torch.inf)
            )
            if len(z) and float(z.max()) > worst:
                worst, where = float(z.max()), part.labels[int(z.argmax())]
    return {"worst_error": worst if yardstick.parts else math.nan, "worst_coordinate": where}


def _between(values: Tensor, variance: Tensor) -> Tensor:
    """Standard errors from the spread between several populations of particles, pooled over coordinates, [k]."""
    chains, count = values.shape[:2]
    moves = variance > 0
    ratio = (values.mean(1).var(0) * count / variance)[moves]
    inflation = max(float(ratio.mean()), 1.0) if len(ratio) else 1.0
    return (variance * inflation / (chains * count)).sqrt()


def _effective(posterior: Posterior, yardstick: Yardstick, spent: Spent) -> dict[str, float]:
    """Smallest bulk and tail ESS and largest R-hat over the compared coordinates; (sum w)^2 / sum w^2 of weights."""
    record = {"ess_bulk": math.nan, "ess_tail": math.nan, "r_hat": math.nan}
    values = values_of(posterior)
    if posterior.log_weights is not None:
        weights = torch.softmax(posterior.log_weights.double(), 0)
        record["ess_bulk"] = float((1 / weights.square().sum(0)).min())
    elif (not spent.at_once or posterior.kind == "exact") and yardstick.sites:
        columns = [column for site in yardstick.sites for column in _columns(values[site])]
        if columns and columns[0].shape[1] >= 4:
            record["ess_bulk"] = min(float(arviz.ess(column, method="bulk")) for column in columns)
            record["ess_tail"] = min(float(arviz.ess(column, method="tail")) for column in columns)
            record["r_hat"] = max(float(arviz.rhat(column)) for column in columns)
    for which in ("bulk", "tail"):
        ess = record[f"ess_{which}"]
        for unit, amount in (("gradient", float(spent.gradients[-1])), ("second", float(spent.seconds[-1]))):
            record[f"ess_{which}_per_{unit}"] = ess / amount if amount > 0 else math.nan
    return record


def _columns(draws: Tensor) -> list[np.ndarray]:
    """Each element of a site that changes, [chain, draw]."""
    x = np.moveaxis(flat_coordinates(draws).numpy(), 2, 0)
    return [np.ascontiguousarray(column) for column in x if np.ptp(column) > 0 and np.isfinite(column).all()]


def _distances(posterior: Posterior, yardstick: Yardstick) -> dict[str, float]:
    """To one half of the reference draws; the floor is the other half's, with as many draws.

    Coordinates are divided by half the width of the reference's central 68 %, which is one standard deviation of a
    normal distribution.
    """
    names = ("sliced_wasserstein", "sliced_wasserstein_floor", "mmd", "mmd_floor")
    record = dict.fromkeys(names, math.nan)
    if not yardstick.drawn:
        return record
    assert yardstick.reference.draws is not None
    pool = torch.cat(
        [
            yardstick.reference.draws[site].double().reshape(len(yardstick.reference.draws[site]), -1)
            for site in yardstick.drawn
        ],
        1,
    )
    values = values_of(posterior.unweighted())
    drawn = torch.cat([flat_coordinates(values[site]).flatten(0, 1) for site in yardstick.drawn], 1)
    if not bool(drawn.isfinite().all()) or len(drawn) < 2 or len(pool) < 4:
        return record
    centre, scale = pool.median(0).values, _scale(pool)
    half, other = (thinned((pool[i::2] - centre) / scale, _ROWS) for i in (0, 1))
    drawn = thinned((drawn - centre) / scale, _ROWS)
    other = thinned(other, len(drawn))
    record["sliced_wasserstein"] = sliced_wasserstein(drawn, half)
    record["sliced_wasserstein_floor"] = sliced_wasserstein(other, half)
    width = median_distance(half)
    if width > 0:
        record["mmd"] = maximum_mean_discrepancy(drawn, half, width)
        record["mmd_floor"] = maximum_mean_discrepancy(other, half, width)
    return record


def _scale(pool: Tensor) -> Tensor:
    low, high = torch.quantile(pool, torch.tensor([0.16, 0.84], dtype=pool.dtype), 0)
    scale = (high - low) / 2
    scale = torch.where(scale > 0, scale, pool.std(0))
    return torch.where(scale > 0, scale, 1.0)


def _evidence(posterior: Posterior, reference: Reference) -> dict[str, Any]:
    """log Z in nats, summed over examples where there is one for each, and its difference from the reference's."""
    record: dict[str, Any] = {
        "log_evidence": math.nan, "log_evidence_stderr": math.nan, "log_evidence_kind": "", "log_evidence_error": math.nan,
    }  # fmt: skip
    score, truth = posterior.log_evidence, reference.log_evidence
    if score is None:
        return record
    record["log_evidence"], record["log_evidence_kind"] = float(score.value.double().sum()), score.kind
    if score.stderr is not None:
        record["log_evidence_stderr"] = float(score.stderr.double().square().sum().sqrt())
    if truth is not None:
        record["log_evidence_error"] = record["log_evidence"] - float(truth.value.double().sum())
    return record
