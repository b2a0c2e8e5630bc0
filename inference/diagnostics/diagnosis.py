"""What is wrong with a posterior, in sentences that say what to try."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_dgm.inference.diagnostics.chain_checks import (
    has,
    listed,
    mixing,
    nested_r_hat,
    sampled,
    separate_modes,
    stuck,
    tails,
)
from ppl_dgm.inference.diagnostics.mode_search import unseen_modes
from ppl_dgm.inference.diagnostics.psis import pareto_shape, reliable_k
from ppl_dgm.results import Posterior

__all__ = ["CHECKS", "Check", "diagnose", "nested_r_hat"]

_ESS = 100
_BFMI = 0.3
_SHARE = 0.2  # of the chains whose energy may be low by chance
_LOW_ACCEPTANCE = 0.2
_LEFT_BEHIND = 0.1  # acceptance of a chain that hardly moves while the others do
_SWAP = 0.1  # of the pair of temperatures that exchanges least
_FAMILIES = 20  # prior draws whose descendants are left, or a fiftieth of the particles
_ENERGY_VARIANCE = 0.05  # per dimension

Check = Callable[[Posterior], list[str]]


def diagnose(posterior: Posterior, search: bool = True) -> list[str]:
    """Look for the known signs that draws do not stand for the posterior.

    Of draws of a sampler: NaN; chains that never move; rank-normalised split R-hat above 1.01 (nested R-hat where the
    statistic `superchain` says which chains started together); bulk or tail effective sample size below 100 per chain,
    400 in all for four chains or more; chains in separate modes; tails so heavy that the mean may not exist; and, where
    the program is known, modes that a search from widely dispersed points finds and no chain has visited. Of its
    statistics: low energy fraction (BFMI), divergences, trajectories cut short, low acceptance, chains left behind,
    temperatures that do not exchange or are not gone through, particles of few ancestors, large energy errors of an
    unadjusted sampler. Of weighted draws and approximations: the Pareto shape of the weights, their effective sample size,
    other modes, the Stein discrepancy.

    Arguments:
        search: look for unvisited modes, at the cost of at most a tenth of the gradients that the run took.

    Returns:
        One sentence for each finding, with the remedy; empty when nothing was found, which is no proof that
        all is well: what no chain and no climb has come near cannot be seen.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021); Vehtari, Simpson, Gelman, Yao and Gabry
    (2024); Betancourt (2017); Margossian et al. (2024).
    """
    found = _not_finite(posterior)
    if found or not posterior.draws:
        return found
    found = [sentence for check in CHECKS for sentence in check(posterior)]
    return found + (unseen_modes(posterior) if search and sampled(posterior) else [])


def _of_chains(check: Check) -> Check:
    """A check for the draws of a sampler alone."""
    return lambda posterior: check(posterior) if posterior.log_weights is None and sampled(posterior) else []


def _not_finite(posterior: Posterior) -> list[str]:
    bad = [name for name, draws in posterior.draws.items() if draws.is_floating_point() and bool(draws.isnan().any())]
    if not bad:
        return []
    return [
        f"{listed(bad)} {has(bad)} draws that are NaN; look for a site whose density is NaN with "
        "dgm.check, and for divisions by zero."
    ]


# -- statistics of the sampler -------------------------------------------------------------------------------


def _energy(posterior: Posterior) -> list[str]:
    """BFMI of each chain; where there are many, a few are low by chance."""
    if "energy" not in posterior.stats or posterior.stats["energy"].shape[1] < _ESS // 2:
        return []  # the estimate of a short chain says nothing
    energy = posterior.stats["energy"].double()  # [chain, draw]
    fraction = energy.diff(dim=1).square().mean(1) / energy.var(1)
    low = (fraction < _BFMI).nonzero().flatten().tolist()
    if len(low) < max(1.0, _SHARE * len(energy)):
        return []
    worst = [f"chain {chain} ({float(fraction[chain]):.2f})" for chain in low]
    return [
        f"The energy changes too little from draw to draw: BFMI is below {_BFMI} in {listed(worst)}, so "
        "heavy tails or funnels are explored slowly; use a non-centred parameterisation."
    ]


def _counted(posterior: Posterior, name: str) -> str | None:
    """`3 of 4000 draws (0.1 %)`, or None where a flag is never set or not there."""
    if name not in posterior.stats:
        return None
    flags = posterior.stats[name]
    count, total = int(flags.sum()), flags.numel()
    return f"{count} of {total} draws ({100 * count / total:.1f} %)" if count else None


def _divergences(posterior: Posterior) -> list[str]:
    some = _counted(posterior, "diverging")
    if some is None:
        return []
    return [
        f"{some} ended in a divergence, so a region of high curvature is missing from the draws; use a non-centred "
        "parameterisation, or a target_accept nearer to 1 (0.95, say)."
    ]


def _cut_short(posterior: Posterior) -> list[str]:
    found = []
    some = _counted(posterior, "reached_max_treedepth")
    if some is not None:
        found.append(
            f"{some} used the longest trajectory allowed; the draws are valid but costly: raise max_tree_depth, scale "
            "the parameters alike, or use dense=True."
        )
    some = _counted(posterior, "reached_max_steps")
    if some is not None and float(posterior.stats["reached_max_steps"].double().mean()) > _SHARE:
        found.append(
            f"{some} took as many steps as max_steps allows, so that trajectories are shorter than wanted and draws "
            "depend on one another; raise max_steps, or rewrite the program (heavy tails and funnels make steps small)."
        )
    return found


def _acceptance(posterior: Posterior) -> list[str]:
    """Overall, where a sampler aims at more (those that give an energy or count steps do), and chain by chain."""
    rates = posterior.stats.get("acceptance_rate")
    if rates is None or rates.shape[1] < 4:
        return []
    mean = rates.double().mean(1)  # [chain]
    overall = float(mean.mean())
    if overall < _LOW_ACCEPTANCE and "n_steps" in posterior.stats:
        return [
            f"Only {100 * overall:.0f} % of the proposals are accepted: the step size does not fit; use a longer warmup, "
            "or give a smaller step_size."
        ]
    behind = (mean < _LEFT_BEHIND).nonzero().flatten().tolist()
    if not behind or overall < 2 * _LEFT_BEHIND:
        return []
    which = [f"chain {chain} ({100 * float(mean[chain]):.0f} %)" for chain in behind]
    return [
        f"Nearly every proposal is rejected in {listed(which)} though not in the others: the step size is too large where "
        "they are, in a narrow part of the posterior; use a target_accept nearer to 1, or rewrite the program."
    ]


def _left_low(posterior: Posterior) -> list[str]:
    """Chains whose log density lies below everything that the others have visited."""
    if "lp" not in posterior.stats or posterior.stats["lp"].shape[0] < 3 or posterior.stats["lp"].shape[1] < 4:
        return []
    lp = posterior.stats["lp"].double()
    high, usual = lp.amax(1), lp.mean(1).median()
    spread = lp.std(1).median()
    low = (high < usual - 10 * spread.clamp(min=1.0)).nonzero().flatten().tolist()
    if not low:
        return []
    which = [f"chain {chain} ({float(lp[chain].mean()):.4g})" for chain in low]
    return [
        f"The log density of {listed(which)} stays far below that of the other chains ({float(usual):.4g}): they hang in a "
        "negligible mode or have not arrived; use a longer warmup or other starts, and do not average over them."
    ]


def _swaps(posterior: Posterior) -> list[str]:
    rates = posterior.stats.get("lowest_swap_rate", posterior.stats.get("swap_rate"))
    if rates is None or float(rates.double().mean()) >= _SWAP:
        return []
    return [
        f"The ladder of temperatures is broken: neighbours hardly exchange their states (rate {float(rates.double().mean()):.3f}), "
        "so that the hot chains do not help the cold one; use more temperatures, or a longer warmup."
    ]


def _round_trips(posterior: Posterior) -> list[str]:
    trips = posterior.stats.get("round_trips")
    if trips is None:
        return []
    without = int((trips[:, -1] == 0).sum())
    if without < max(1.0, _SHARE * len(trips)):
        return []
    return [
        f"No state has gone from the cold end to the hot one and back in {without} of {len(trips)} chains, so that what they "
        "say of the mass of each mode is where they started; take more draws, or use another number of temperatures."
    ]


def _relocations(posterior: Posterior) -> list[str]:
    moved = posterior.stats.get("relocated")
    if moved is None or float((moved.amax(1) > 0).double().mean()) < _SHARE:
        return []
    count = int((moved.amax(1) > 0).sum())
    return [
        f"{count} of {len(moved)} chains were moved in warm-up from places of negligible density to those of others, so "
        "that they are no independent starts; look for modes that the starts fell into."
    ]


def _unadjusted(posterior: Posterior) -> list[str]:
    variance = posterior.stats.get("energy_variance")
    if variance is None or not float(variance.double().mean()) > _ENERGY_VARIANCE:
        return []
    return [
        f"The sampler makes no Metropolis correction and its energy errors are large (variance "
        f"{float(variance.double().mean()):.2g} per dimension), so that the draws are biased; use smaller steps, or "
        "method='adjusted-mclmc' or 'nuts'."
    ]


def _ancestors(posterior: Posterior) -> list[str]:
    ancestors = posterior.stats.get("ancestor")
    if ancestors is None:
        return []
    fewest = min(len(row.unique()) for row in ancestors)
    count = ancestors.shape[1]
    if fewest >= min(max(_FAMILIES, count // 50), count // 2):
        return []
    return [
        f"All {count} particles of a run descend from {fewest} of those it began with, so that modes may have "
        "died out; use more particles, or more moves at each temperature."
    ]


# -- weighted draws and approximations -----------------------------------------------------------------------


def _weights(posterior: Posterior) -> list[str]:
    log_weights = posterior.log_weights
    told = posterior.stats.get("pareto_k")
    if log_weights is None and told is None:
        return []
    found = []
    draws = len(log_weights) if log_weights is not None else next(iter(posterior.draws.values())).shape[1]
    if log_weights is not None and not bool(log_weights.isfinite().reshape(draws, -1).any(0).all()):
        return [
            "Every weight of some observation is zero; the guide proposes only points of no density: check its support."
        ]
    if told is not None:  # of the weights before they were smoothed
        shape = told[0, 0].double().flatten().cpu()
    else:
        assert log_weights is not None
        shape = pareto_shape(log_weights).double().flatten().cpu()
    limit = reliable_k(draws)
    if bool((shape > limit).any()):
        what = _whose(int((shape > limit).sum()), len(shape))
        found.append(
            f"The largest of {what} have a heavy tail (Pareto k up to {float(shape.max()):.2f}, reliable below "
            f"{limit:.2f}), so {_remedy(posterior)[0]}."
        )
    if log_weights is not None:
        found += _few(log_weights.double().reshape(draws, -1), _remedy(posterior)[1])
    return found


def _remedy(posterior: Posterior) -> tuple[str, str]:
    """What a heavy tail of the weights means and asks for, and what too few effective draws do."""
    if posterior.how.startswith("annealed importance sampling"):
        return (
            "the annealing is too fast to be corrected by weights; use more temperatures, or method='tempered-smc'",
            "use more temperatures, or more particles",
        )
    return (
        "the approximation is too far from the posterior to be corrected by weights; use a guide nearer to the posterior, "
        "or a sampler",
        "take more draws, or learn a better guide first",
    )


def _few(log_weights: Tensor, remedy: str) -> list[str]:
    effective = 1 / torch.softmax(log_weights, 0).square().sum(0)
    few = effective < min(_ESS, len(log_weights))
    if not bool(few.any()):
        return []
    return [
        f"The effective sample size of {_whose(int(few.sum()), len(effective))} is down to {float(effective.min()):.1f} of "
        f"{len(log_weights)} draws; {remedy}."
    ]


def _whose(count: int, batch: int) -> str:
    return "the weights" if batch == 1 else f"the weights of {count} of {batch} observations"


def _other_modes(posterior: Posterior) -> list[str]:
    others = posterior.stats.get("other_modes")
    count = 0 if others is None else int(others.max())
    if not count:
        return []
    return [
        f"The approximation describes one mode, and {count} more {'was' if count == 1 else 'were'} found; use "
        "method='parallel-tempering' or 'tempered-smc'."
    ]


def _discrepancy(posterior: Posterior) -> list[str]:
    if "ksd" not in posterior.stats or "ksd_independent" not in posterior.stats:
        return []
    ksd, independent = (float(posterior.stats[name].double().mean()) for name in ("ksd", "ksd_independent"))
    if not ksd > independent or not math.isfinite(independent):
        return []
    return [
        f"The particles fit the gradient of the density worse than as many independent draws would (Stein discrepancy "
        f"{ksd:.2g} against {independent:.2g}); take more steps, or more particles."
    ]


# each looks at one thing; a new one is a function here
CHECKS: tuple[Check, ...] = (
    _of_chains(stuck), _of_chains(mixing), _of_chains(separate_modes), _left_low, _of_chains(tails),
    _energy, _divergences, _cut_short, _acceptance, _swaps, _round_trips, _relocations, _unadjusted, _ancestors,
    _weights, _other_modes, _discrepancy,
)  # fmt: skip
