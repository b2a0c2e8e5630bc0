"""What is wrong with a posterior, in sentences that say what to try."""

import math
import warnings
from typing import Any

import torch
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

from ppl_dgm.results import Posterior

__all__ = ["diagnose", "pareto_k"]

_R_HAT = 1.01
_ESS_PER_CHAIN = 100
_BFMI = 0.3
_NAMED = 3  # elements that a sentence names; the rest are counted


def diagnose(posterior: Posterior) -> list[str]:
    """Look for the known signs that draws do not stand for the posterior.

    For draws of a sampler: NaN, chains that never move, rank-normalised split R-hat above 1.01, bulk or tail
    effective sample size below 100 per chain, divergences, trajectories cut short, low energy fraction (BFMI
    below 0.3). For weighted draws: the Pareto shape of the largest weights (above min(0.7, 1 - 1 / log10 S)
    the average is dominated by draws not yet seen) and their effective sample size.

    Returns:
        One sentence for each finding, with the remedy; empty when nothing was found, which is no proof that
        all is well.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021); Vehtari, Simpson, Gelman, Yao and Gabry
    (2024); Betancourt (2017).
    """
    found = _not_finite(posterior)
    if found:
        return found
    if posterior.log_weights is not None:
        return _weights(posterior.log_weights)
    if posterior.kind == "asymptotic":
        found += _stuck(posterior) + _mixing(posterior)
    return found + _energy(posterior.stats) + _divergences(posterior.stats) + _cut_short(posterior.stats)


# -- draws of chains -----------------------------------------------------------------------------------------


def _not_finite(posterior: Posterior) -> list[str]:
    bad = [name for name, draws in posterior.draws.items() if draws.is_floating_point() and bool(draws.isnan().any())]
    if not bad:
        return []
    return [
        f"{_listed(bad)} {_has(bad)} draws that are NaN; look for a site whose density is NaN with "
        "dgm.check, and for divisions by zero."
    ]


def _stuck(posterior: Posterior) -> list[str]:
    stuck = []
    for name, draws in posterior.draws.items():
        if draws.shape[1] > 1:
            still = (draws == draws[:, :1]).all(1)  # [chain, *shape]
            stuck += [f"{_element(name, index[1:])} in chain {index[0]}" for index in still.nonzero().tolist()]
    if not stuck:
        return []
    return [
        f"The draws never move for {_listed(stuck)}; the step size is wrong or the start was stuck: use a "
        "longer warmup or another seed."
    ]


def _mixing(posterior: Posterior) -> list[str]:
    chains, draws = next(iter(posterior.draws.values())).shape[:2]
    if draws < 4:
        return [
            f"There are only {draws} draws in each chain, too few for any diagnosis; ask for at least {_ESS_PER_CHAIN}."
        ]
    table = _table(posterior)
    found = []
    r_hat = table["r_hat"][table["r_hat"] > _R_HAT].sort_values(ascending=False)
    if len(r_hat):
        worst = [f"{name} ({value:.3f})" for name, value in r_hat.items()]
        found.append(
            f"The {'chains' if chains > 1 else 'halves of the chain'} disagree: rank-normalised R-hat "
            f"exceeds {_R_HAT} for {_listed(worst)}; "
            "use a longer warmup and more draws, and if it persists look for several modes or rewrite the "
            "program (non-centred, "
            "identified parameters)."
        )
    for column, what in (("ess_bulk", "centre"), ("ess_tail", "tails")):
        short = table[column][table[column] < _ESS_PER_CHAIN * chains].sort_values()
        if len(short):
            worst = [f"{name} ({value:.0f})" for name, value in short.items()]
            found.append(
                f"Too few effective draws for the {what}: {column.replace('_', ' ')} is below "
                f"{_ESS_PER_CHAIN * chains} "
                f"({_ESS_PER_CHAIN} per chain) for {_listed(worst)}; take more draws, or rewrite the "
                "program so that its sites are less "
                "dependent."
            )
    return found


def _table(posterior: Posterior) -> Any:
    """ArviZ's rank R-hat, bulk and tail ESS, one row per element; those of constant elements are NaN and
    never flagged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divisions by the zero variance of constant elements
        return posterior.summary(kind="diagnostics", round_to="none").astype(float)


# -- statistics of the sampler -------------------------------------------------------------------------------


def _energy(stats: dict[str, Tensor]) -> list[str]:
    if "energy" not in stats or stats["energy"].shape[1] < _ESS_PER_CHAIN // 2:
        return []  # the estimate of a short chain says nothing
    energy = stats["energy"].double()  # [chain, draw]
    fraction = energy.diff(dim=1).square().mean(1) / energy.var(1)
    low = (fraction < _BFMI).nonzero().flatten().tolist()
    if not low:
        return []
    worst = [f"chain {chain} ({float(fraction[chain]):.2f})" for chain in low]
    return [
        f"The energy changes too little from draw to draw: BFMI is below {_BFMI} in {_listed(worst)}, so "
        "heavy tails or funnels are explored "
        "slowly; use a non-centred parameterisation."
    ]


def _divergences(stats: dict[str, Tensor]) -> list[str]:
    if "diverging" not in stats:
        return []
    count, total = int(stats["diverging"].sum()), stats["diverging"].numel()
    if not count:
        return []
    return [
        f"{count} of {total} draws ({100 * count / total:.1f} %) ended in a divergence, so a region of high "
        "curvature is missing from the draws; "
        "use a non-centred parameterisation, or a target_accept nearer to 1 (0.95, say)."
    ]


def _cut_short(stats: dict[str, Tensor]) -> list[str]:
    if "reached_max_treedepth" not in stats:
        return []
    count, total = int(stats["reached_max_treedepth"].sum()), stats["reached_max_treedepth"].numel()
    if not count:
        return []
    return [
        f"{count} of {total} draws ({100 * count / total:.1f} %) used the longest trajectory allowed; the "
        "draws are valid but costly: raise "
        "max_tree_depth, scale the parameters alike, or use dense=True."
    ]


# -- weighted draws ------------------------------------------------------------------------------------------


def _weights(log_weights: Tensor) -> list[str]:
    table = log_weights.double().reshape(len(log_weights), -1)  # [draw, batch]
    draws, batch = table.shape
    where = "the weights" if log_weights.dim() == 1 else "the weights of {} of {} observations"
    found = []
    if not bool(table.isfinite().any(0).all()):
        return [
            "Every weight of some observation is zero; the guide proposes only points of no density: check its support."
        ]
    shape = torch.tensor([pareto_k(column) for column in table.T])
    limit = min(0.7, 1 - 1 / math.log10(draws)) if draws > 10 else 0.0
    heavy = shape > limit
    if bool(heavy.any()):
        found.append(
            f"The largest of {where.format(int(heavy.sum()), batch)} have a heavy tail (Pareto k up to "
            f"{float(shape.max()):.2f}, reliable below "
            f"{limit:.2f}), so the average rests on draws not yet seen; use a guide nearer to the "
            "posterior, or a sampler."
        )
    effective = 1 / torch.softmax(table, 0).square().sum(0)
    few = effective < _ESS_PER_CHAIN
    if bool(few.any()):
        found.append(
            f"The effective sample size of {where.format(int(few.sum()), batch)} is down to "
            f"{float(effective.min()):.1f} of {draws} draws; take "
            "more draws, or learn a better guide first."
        )
    return found


def pareto_k(log_weights: Tensor) -> float:
    """Shape k of the generalised Pareto distribution fitted to the largest weights.

    Arguments:
        log_weights: [draw] unnormalised, in nats.

    Returns:
        k; below 0.5 the weights have a finite variance, above 0.7 averages over them are unreliable. Infinite
        with fewer than 25 draws, which have no tail to fit; minus infinity when all weights are equal.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    """
    count = len(log_weights)
    tail = math.ceil(min(0.2 * count, 3 * math.sqrt(count)))
    if tail < 5:
        return math.inf
    ordered = (log_weights.double() - log_weights.max()).exp().sort().values
    excess = ordered[-tail:] - ordered[-tail - 1]
    excess = excess[excess > 0]
    if len(excess) < 5:
        return -math.inf if float(ordered[-1] - ordered[0]) < 1e-9 or len(excess) == 0 else math.inf
    k, _ = fit_generalized_pareto(excess.cpu())
    return float((len(excess) * k + 5) / (len(excess) + 10))  # the weak prior of the source, towards 0.5


# -- words ---------------------------------------------------------------------------------------------------


def _element(name: str, index: list[int]) -> str:
    return name + (f"[{', '.join(map(str, index))}]" if index else "")


def _listed(items: list[str]) -> str:
    rest = len(items) - _NAMED
    return ", ".join(items[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _has(items: list[str]) -> str:
    return "has" if len(items) == 1 else "have"
