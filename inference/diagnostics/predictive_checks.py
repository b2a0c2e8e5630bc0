"""Posterior predictive checks: does the program, fitted, produce data like those observed?"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import DgmError, ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics.cross_validation import loo_weights
from ppl_dgm.inference.diagnostics.pointwise import Replay
from ppl_dgm.inference.diagnostics.psis import reliable_k
from ppl_dgm.inference.diagnostics.uniformity import bands, shape_in_words
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior
from ppl_dgm.tracing import sites

__all__ = ["STATISTICS", "PredictiveCheck", "predictive_check"]

Statistic = Callable[[Tensor], Tensor]

# name -> a function of all observations of one site, [n], to a number
STATISTICS: dict[str, Statistic] = {
    "mean": lambda y: y.mean(),
    "sd": lambda y: y.std() if len(y) > 1 else torch.full_like(y[0], math.nan),
    "min": lambda y: y.min(),
    "5 %": lambda y: y.quantile(0.05),
    "median": lambda y: y.quantile(0.5),
    "95 %": lambda y: y.quantile(0.95),
    "max": lambda y: y.max(),
}
_EXTREME = 0.01  # p-values nearer to 0 or 1, shared by the statistics of a site, are complained about
_ROWS = 256  # draws that are replicated at a time


def predictive_check(
    posterior: Posterior,
    statistic: str | Statistic | dict[str, Statistic] | None = None,
    *,
    site: str | None = None,
    draws: int = 1000,
    seed: int | None = 0,
) -> "PredictiveCheck":
    """Replicate the observations under posterior draws and compare statistics of them with the observed ones.

    For each statistic T the posterior predictive p-value is P(T(y_rep) > T(y)) + P(T(y_rep) = T(y)) / 2. Near 0 or 1 the
    program cannot produce what was seen. As y has been used to fit, p-values lie nearer to 1/2 than uniform ones: the
    leave-one-out values below do not have that flaw.

    LOO-PIT of an observation y_i is P(y_rep,i < y_i) (+ half of P(=), broken at random) under the posterior without y_i, by
    smoothed importance weights; for a right program they are nearly uniform. Left out where observations have no log
    densities of their own, or events of several numbers.

    Arguments:
        posterior: with its program and arguments, as `infer` leaves it.
        statistic: the name of one of `STATISTICS`, a function of all (unmasked) observations of a site, [n], to a number, or
            {name: function}; by default all of `STATISTICS`.
        site: one observed site; by default all.
        draws: posterior draws that are replicated, at most.
        seed: of the replicated data.

    Returns:
        A `PredictiveCheck`.

    Raises:
        ProgramError: no such site or statistic; the posterior does not know its program.
        TaskUnavailable: the program observes nothing.

    Source: Gelman, Meng and Stern (1996); Gelman et al., Bayesian Data Analysis (2013), chapter 6; LOO-PIT: Gabry,
    Simpson, Vehtari, Betancourt and Gelman (2019).
    """
    functions = _functions(statistic)
    if draws < 1:
        raise ProgramError(f"check: draws must be at least 1, but it is {draws}.")
    chosen, known = _thinned(posterior, draws, seed)
    replay = Replay(chosen)
    observed = replay.observations()
    if not observed:
        raise TaskUnavailable("the program observes nothing for these arguments, so there is nothing to compare with.")
    if site is not None and site not in observed:
        raise ProgramError(f"check: there is no observed site {site!r}; there are {', '.join(map(repr, observed))}.")
    names = list(observed) if site is None else [site]
    replicated = _replicate(replay, names, seed)
    rows, pit, shown, seen = [], {}, {}, {}
    for name in names:
        y, keep = observed[name]["value"], _kept(observed[name])
        new = replicated[name]
        flat, flat_new = y[keep].double(), new[:, keep].double()  # [n], [draw, n]
        if not len(flat):
            continue
        for label, function in functions.items():
            rows.append(_compared(name, label, function, flat, flat_new))
        shown[name], seen[name] = flat_new[:200].cpu(), flat.cpu()
        if known is not None and name in known:
            values = _loo_pit(y, new, known[name], observed[name], keep, seed)
            if values is not None:
                pit[name] = values
    columns = ["site", "statistic", "observed", "replicated", "sd", "p"]
    return PredictiveCheck(
        pd.DataFrame(rows, columns=columns), pit, seen, shown, len(replay.rows[next(iter(replay.rows))])
    )


def _functions(statistic: Any) -> dict[str, Statistic]:
    if statistic is None:
        return STATISTICS
    if isinstance(statistic, str):
        if statistic not in STATISTICS:
            known = ", ".join(map(repr, STATISTICS))
            raise ProgramError(f"check: there is no statistic {statistic!r}; there are {known}, or give a function.")
        return {statistic: STATISTICS[statistic]}
    if callable(statistic):
        return {getattr(statistic, "__name__", "statistic"): statistic}
    if isinstance(statistic, dict) and statistic and all(callable(f) for f in statistic.values()):
        return statistic
    raise ProgramError(f"check: statistic must be a name, a function or {{name: function}}, not {statistic!r}.")


def _thinned(posterior: Posterior, draws: int, seed: int | None) -> tuple[Posterior, dict[str, Tensor] | None]:
    """At most so many equally weighted draws, [1, draw], and the log likelihood at them, if observations have one."""
    if posterior.log_weights is not None:
        posterior = posterior.unweighted(seed)
    if not posterior.draws:
        raise ProgramError("this posterior has no draws, so nothing can be replicated from them.")
    total = math.prod(next(iter(posterior.draws.values())).shape[:2])
    index = torch.linspace(0, total - 1, min(draws, total)).round().long()

    def some(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.flatten(0, 1)[index.to(value.device)][None] for name, value in values.items()}

    thin = replace(posterior, draws=some(posterior.draws), deterministic={}, stats={})
    try:
        known = some(posterior.log_likelihood) if posterior.has_log_likelihood else thin.log_likelihood
    except (DgmError, NotImplementedError):
        known = None
    return thin, known


def _replicate(replay: Replay, names: list[str], seed: int | None) -> dict[str, Tensor]:
    """{site: [draw, *shape]}."""
    from ppl_dgm.tasks import _each

    run = replay.replicated()

    def values(row: dict[str, Tensor]) -> dict[str, Tensor]:
        found = sites(run(row))
        return {name: found[name]["value"] for name in names}

    parts = []
    with replay.running(), seeded(seed):
        for rows in replay.chunks(_ROWS):
            parts.append(_each(values, len(next(iter(rows.values()))), rows))
    return {name: torch.cat([part[name] for part in parts]) for name in names}


def _kept(node: dict[str, Any]) -> Tensor:
    """Which numbers of an observation count: not masked, not missing."""
    value = node["value"]
    keep = ~value.isnan() if value.is_floating_point() else torch.ones_like(value, dtype=torch.bool)
    mask = node["mask"]
    if mask is None or mask is True:
        return keep
    mask = torch.as_tensor(mask, device=value.device)
    events = value.dim() - len(node["fn"].batch_shape)
    return keep & mask.reshape(mask.shape + (1,) * events).expand(value.shape)


def _compared(site: str, label: str, function: Statistic, y: Tensor, new: Tensor) -> list[Any]:
    seen = torch.as_tensor(function(y), dtype=torch.float64)
    if seen.numel() != 1:
        raise ProgramError(f"check: statistic {label!r} must give one number, but gave shape {tuple(seen.shape)}.")
    drawn = torch.stack([torch.as_tensor(function(row), dtype=torch.float64).reshape(()) for row in new]).cpu()
    observed = float(seen)
    p = float((drawn > observed).double().mean() + 0.5 * (drawn == observed).double().mean())
    p = math.nan if math.isnan(observed) else p
    return [site, label, observed, float(drawn.mean()), float(drawn.std()) if len(drawn) > 1 else math.nan, p]


def _loo_pit(
    y: Tensor, new: Tensor, log_likelihood: Tensor, node: dict[str, Any], keep: Tensor, seed: int | None
) -> Tensor | None:
    """[n] of the kept observations; None where there are several numbers in one, or the weights cannot be trusted."""
    likelihood = log_likelihood.flatten(0, 1)  # [draw, *batch]
    if likelihood.shape[1:] != y.shape or node["fn"].event_dim:
        return None
    weights, k = loo_weights(likelihood[:, keep])
    if float((k > reliable_k(len(new))).double().mean()) > 0.1:
        return None
    weights = weights.exp()
    below = (weights * (new[:, keep] < y[keep])).sum(0)
    equal = (weights * (new[:, keep] == y[keep])).sum(0)
    with seeded(seed):
        return (below + torch.rand_like(equal) * equal).clamp(0, 1).cpu()


@dataclass(frozen=True)
class PredictiveCheck:
    """What a posterior predictive check found.

    Attributes:
        table: one row per site and statistic: `observed`, `replicated` (its mean over replications) and `sd`, `p`.
        loo_pit: {site: [n]}, where they could be computed.
        observed: {site: [n]}, the observed numbers.
        replicated: {site: [draw, n]}, some replications of them.
        draws: posterior draws that were replicated.
    """

    table: pd.DataFrame
    loo_pit: dict[str, Tensor] = field(default_factory=dict, repr=False)
    observed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    replicated: dict[str, Tensor] = field(default_factory=dict, repr=False)
    draws: int = 0

    @property
    def sentences(self) -> list[str]:
        """What the program does not reproduce, one sentence each; empty if nothing was found."""
        found = []
        for site, rows in self.table.groupby("site", sort=False):
            limit = max(_EXTREME / len(rows), 0.5 / max(self.draws, 1))
            for row in rows.itertuples():
                if min(row.p, 1 - row.p) <= limit:
                    side = "more" if row.p < 0.5 else "less"
                    found.append(
                        f"The observed {row.statistic} of {site} is {row.observed:.4g}, {side} than the program can produce "
                        f"({row.replicated:.4g} ± {row.sd:.2g}, p = {row.p:.2g}); look for what the likelihood of {site} "
                        "leaves out."
                    )
        for site, values in self.loo_pit.items():
            p = bands(len(values)).p_value(values)
            if p < _EXTREME:
                found.append(f"LOO-PIT of {site} is not uniform (p = {p:.2g}): {_meaning(shape_in_words(values))}.")
        return found

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.sentences

    def __str__(self) -> str:
        said = self.sentences or [
            f"The program reproduces what it was fitted to, as far as these statistics and {self.draws} draws show."
        ]
        return "\n".join([*said, "", self.table.round(4).to_string(index=False)])

    def plot(self, path: str | Path | None = None) -> Any:
        """Observed and replicated distribution functions of each site, and its LOO-PIT against uniform bands.

        Returns:
            the matplotlib Figure, written to `path` if one is given.
        """
        from ppl_dgm.plots import predictive, save

        figure = predictive(self.observed, self.replicated, self.loo_pit)
        if path is not None:
            save(figure, path)
        return figure


def _meaning(shape: list[str]) -> str:
    words = {
        "high": "the observations lie above their predictions",
        "low": "the observations lie below their predictions",
        "edges": "the predictions are too narrow",
        "middle": "the predictions are too wide",
    }
    return " and ".join(words[s] for s in shape) or "the predictions have another shape than the observations"
