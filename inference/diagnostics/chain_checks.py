"""Do the chains agree, and can their average be trusted? R-hat, nested R-hat, effective draws, separate modes, tails."""

import math
import warnings
from typing import Any

import torch
from scipy import stats as distributions
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.diagnostics.psis import pareto_shape, reliable_k
from ppl_dgm.results import Posterior
from ppl_dgm.text import listed

__all__ = [
    "element",
    "has",
    "mixing",
    "nested_r_hat",
    "sampled",
    "separate_modes",
    "stuck",
    "tail_shapes",
    "tails",
]

R_HAT = 1.01
ESS_PER_CHAIN, CHAINS_COUNTED = 100, 4  # 400 in all for four chains or more
_NAMED = 3  # elements that a sentence names; the rest are counted
_NEVER = 1.05  # R-hat that no shortness excuses
_APART = 4.0  # gap between groups of chain means, in standard deviations within chains
_TAIL_DRAWS = 400  # draws from which the shape of a tail is estimated
_FALSE_ALARMS = 0.01  # of nested R-hat at stationarity


def sampled(posterior: Posterior) -> bool:
    """Whether a sampler made the draws, so that neighbours depend on one another and chains must agree.

    A sampler converges ("asymptotic"), or is unadjusted and gives the log density of its draws (`lp`) all the same.
    """
    return posterior.kind == "asymptotic" or "lp" in posterior.stats


# -- the numbers ---------------------------------------------------------------------------------------------


def nested_r_hat(draws: Tensor, superchains: Tensor) -> Tensor:
    """R-hat of groups of chains, where the chains of a group (a superchain) started at the same point.

    With K superchains of M chains of N draws:

        B   = variance over superchains of their means
        W   = mean over superchains of (variance over their chains of the chain means + mean over chains of the variance
              within)
        R-hat = sqrt(1 + B / W),

    each variance unbiased, that of one chain or of one draw zero. Unlike R-hat it converges to 1 in the number of
    chains, however short they are; one draw of each is enough.

    Arguments:
        draws: [chain, draw, *shape].
        superchains: the group of each chain, [chain], any whole numbers; groups of equal size.

    Returns:
        [*shape], NaN where nothing varies.

    Raises:
        ProgramError: fewer than two superchains, unequal ones, or single draws of single chains.

    Source: Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman (2024), Nested R-hat, equations 8 to 11.

    Example:
        >>> x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
        >>> bool(nested_r_hat(x, torch.arange(8) // 4) < 1.5)
        True
    """
    chains, length = draws.shape[:2]
    if superchains.shape != (chains,):
        raise ProgramError(
            f"superchains must name the group of each of {chains} chains, not have shape {tuple(superchains.shape)}."
        )
    order = superchains.to(draws.device).argsort(stable=True)
    groups, sizes = superchains.unique(return_counts=True)
    if len(groups) < 2 or len(sizes.unique()) > 1:
        raise ProgramError(
            f"nested R-hat needs two superchains or more, all of the same size, but they have sizes {sizes.tolist()}."
        )
    many = int(sizes[0])
    if many == 1 and length == 1:
        raise ProgramError("nested R-hat needs two chains in each superchain, or two draws of each chain.")
    x = draws.double()[order].reshape(len(groups), many, *draws.shape[1:])  # [superchain, chain, draw, *shape]
    means = x.mean(2)
    within = x.var(2).mean(1) if length > 1 else torch.zeros_like(means[:, 0])
    between = means.var(1) if many > 1 else torch.zeros_like(means[:, 0])
    w = (within + between).mean(0)
    return (1 + means.mean(1).var(0) / w).sqrt()


def tail_shapes(draws: Tensor) -> Tensor:
    """The generalised Pareto shape k of the heavier tail of the draws, [*shape].

    k >= 1 means that the distribution has no mean, k >= 1/2 that it has no variance, so that averages have no
    standard error; k of a Student-t is 1 over its degrees of freedom.

    Arguments:
        draws: [chain, draw, *shape].

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), section 6.
    """
    x = draws.flatten(0, 1).double()  # [draw, *shape]
    tiny = torch.finfo(torch.float64).tiny
    sides = [pareto_shape((side * x - (side * x).amin(0)).clamp(min=tiny).log()) for side in (1.0, -1.0)]
    return torch.maximum(*sides)


def _ranked(draws: Tensor) -> Tensor:
    """Normal scores of the ranks of each element among the draws of all chains, ties at their average."""
    flat = draws.double().flatten(0, 1).reshape(draws.shape[0] * draws.shape[1], -1)
    ranks = torch.as_tensor(distributions.rankdata(flat.cpu().numpy(), axis=0))
    uniform = (ranks - 0.375) / (len(flat) + 0.25)
    return torch.special.ndtri(uniform).reshape(draws.shape)


# -- sentences -----------------------------------------------------------------------------------------------


def stuck(posterior: Posterior) -> list[str]:
    """Chains that never move. What no chain moves is constant by construction, as are the zeros of a triangle.

    A discrete element may have a posterior so near to 0 or 1 that it never moves: that is a fault only where chains
    stay at different values.
    """
    found: list[str] = []
    apart: list[str] = []
    moves = False
    for name, draws in posterior.draws.items():
        if draws.shape[1] < 2:
            moves = True
            continue
        still = (draws == draws[:, :1]).all(1)  # [chain, *shape]
        if _is_discrete(draws):
            moves = True
            apart += [element(name, index) for index in _disagree(draws[:, 0], still).nonzero().tolist()]
            continue
        constant = (draws == draws[:1, :1]).flatten(0, 1).all(0)  # [*shape]
        moves |= not bool(still.all())
        shown = still & ~constant
        found += [f"{element(name, index[1:])} in chain {index[0]}" for index in shown.nonzero().tolist()]
    if not moves and posterior.draws:
        found = found or [f"{name} in any chain" for name in posterior.draws]
    sentences = []
    if found:
        sentences.append(
            f"The draws never move for {listed(found)}; the step size is wrong or the start was stuck: use a "
            "longer warmup or another seed."
        )
    if apart:
        sentences.append(
            f"Chains never leave different values of {listed(apart)}, discrete, so that how often each counts is an accident "
            "of the starts; sum the site out, or update it together with what it depends on."
        )
    return sentences


def _is_discrete(draws: Tensor) -> bool:
    """Whole numbers, as their type says or because all are, and not all the same."""
    return not draws.is_floating_point() or bool((draws == draws.round()).all() and draws.min() < draws.max())


def _disagree(values: Tensor, still: Tensor) -> Tensor:
    """Where chains that never move have different values, [*shape].

    Arguments:
        values: of the first draw, [chain, *shape].
        still: which chains never move, [chain, *shape].
    """
    values = values.double()
    high, low = (torch.where(still, values, sign * -torch.inf) for sign in (1, -1))
    return high.amax(0) > low.amin(0)


def mixing(posterior: Posterior) -> list[str]:
    """Rank R-hat (nested where the superchains are known), and effective draws of the centre and of the tails.

    400 effective draws in all are enough for four chains or more, 100 for each chain of fewer: what is wanted is that
    the numbers themselves are reliable, and these depend on the total (Vehtari et al. 2021, section 4).
    """
    chains, draws = next(iter(posterior.draws.values())).shape[:2]
    superchains = posterior.stats.get("superchain")
    if draws < 4 and superchains is None:
        return [
            f"There are only {draws} draws in each chain, too few for any diagnosis; ask for at least {ESS_PER_CHAIN}."
        ]
    found = _nested(posterior, superchains[:, 0]) if superchains is not None else []
    if draws < 4:
        return found
    table = _table(posterior)
    if superchains is None:
        found += _disagreement(posterior, table, chains)
    wanted = ESS_PER_CHAIN * min(chains, CHAINS_COUNTED)
    for column, what in (("ess_bulk", "centre"), ("ess_tail", "tails")):
        short = table[column][table[column] < wanted].sort_values()
        if len(short):
            worst = [f"{name} ({value:.0f})" for name, value in short.items()]
            found.append(
                f"Too few effective draws for the {what}: {column.replace('_', ' ')} is below {wanted} for "
                f"{listed(worst)}; take more draws, or rewrite the program so that its sites are less dependent."
            )
    return found


def _disagreement(posterior: Posterior, table: Any, chains: int) -> list[str]:
    r_hat = table["r_hat"][table["r_hat"] > R_HAT].sort_values(ascending=False)
    worst = [f"{name} ({value:.3f})" for name, value in r_hat.items() if value > _expected(posterior, name, chains)]
    if not worst:
        return []
    return [
        f"The {'chains' if chains > 1 else 'halves of the chain'} disagree: rank-normalised R-hat exceeds {R_HAT} for "
        f"{listed(worst)}; use a longer warmup and more draws of each chain, and if it persists look for several modes "
        "or rewrite the program (non-centred, identified parameters)."
    ]


def _expected(posterior: Posterior, name: str, chains: int) -> float:
    """R-hat that short chains which have arrived may well have, for more than four chains.

    The means of half-chains of n effective draws each vary by 1 / n of the variance, however many there are, so that
    R-hat is about sqrt(1 + F / n), F a chi-square over its degrees of freedom. n is judged by what happens within chains:
    those that have not arrived have too short a memory to seem slow, and get no allowance.
    """
    if chains <= CHAINS_COUNTED:
        return R_HAT
    site, _, inside = name.partition("[")
    index: Any = tuple(int(i) for i in inside.rstrip("]").split(",")) if inside else ()
    draws = posterior.draws.get(site)
    if draws is None:
        return R_HAT
    scores = _ranked(draws[(slice(None), slice(None), *index)])  # [chain, draw]
    freedom = 2 * chains - 1
    quantile = float(distributions.chi2.ppf(1 - _FALSE_ALARMS / 10, freedom)) / freedom
    half = scores.shape[1] / 2 / _memory(scores)
    return min(max(R_HAT, math.sqrt(1 + quantile / half)), _NEVER)


def _memory(scores: Tensor) -> float:
    """The integrated autocorrelation time of chains [chain, draw], each around its own mean, to the first lag without any."""
    centred = scores - scores.mean(1, keepdim=True)
    variance, length = centred.square().mean(), scores.shape[1]
    total = 1.0
    for lag in range(1, length // 3):
        correlation = float((centred[:, lag:] * centred[:, :-lag]).mean() / variance)
        if not correlation > 0:
            break
        total += 2 * correlation
    return total


def _nested(posterior: Posterior, superchains: Tensor) -> list[str]:
    """By nested R-hat of ranks, and of ranks of the distance from the median, as rank R-hat does."""
    worst: dict[str, float] = {}
    limit = R_HAT
    for name, draws in posterior.draws.items():
        scores = _ranked(draws)
        folded = _ranked((draws.double().cpu() - draws.double().cpu().flatten(0, 1).median(0).values).abs())
        limit = max(limit, _chance(scores, superchains))
        value = torch.maximum(nested_r_hat(scores, superchains), nested_r_hat(folded, superchains))
        worst |= {element(name, index): float(value[tuple(index)]) for index in (value > R_HAT).nonzero().tolist()}
    shown = [
        f"{name} ({value:.3f})" for name, value in sorted(worst.items(), key=lambda item: -item[1]) if value > limit
    ]
    if not shown:
        return []
    return [
        f"The chains still remember where they started: nested R-hat exceeds {limit:.3f} for {listed(shown)}; use a "
        "longer warmup, and if it persists look for several modes."
    ]


def _chance(scores: Tensor, superchains: Tensor) -> float:
    """What nested R-hat exceeds at stationarity in one case of a hundred.

    B / W is then about F / (M n), F a chi-square over its K - 1 degrees of freedom and n the effective draws of a chain.
    """
    groups, sizes = superchains.unique(return_counts=True)
    flat = scores.reshape(*scores.shape[:2], -1)
    memory = max((_memory(flat[..., k]) for k in range(flat.shape[2])), default=1.0) if scores.shape[1] > 3 else 1.0
    effective = max(1.0, scores.shape[1] / memory)
    freedom = len(groups) - 1
    quantile = float(distributions.chi2.ppf(1 - _FALSE_ALARMS, freedom)) / freedom
    return math.sqrt(1 + quantile / (int(sizes[0]) * effective))


def _table(posterior: Posterior) -> Any:
    """ArviZ's rank R-hat, bulk and tail ESS, one row per element; those of constant elements are NaN and never flagged."""
    import arviz

    from ppl_dgm.arviz_groups import from_groups

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divisions by the zero variance of constant elements
        data = from_groups({"posterior": posterior.draws})
        return arviz.summary(data, kind="diagnostics", round_to="none").astype(float)


def separate_modes(posterior: Posterior) -> list[str]:
    """Chains in groups that lie far apart compared with what each of them explores."""
    worst: tuple[float, str, list[int], list[int], float, float] | None = None
    for name, draws in posterior.draws.items():
        chains, length = draws.shape[:2]
        if chains < 2 or length < 4 or not draws.is_floating_point():
            continue
        x = draws.double().reshape(chains, length, -1)
        centre, spread = x.median(1).values, x.std(1)  # [chain, element]
        ordered, order = centre.sort(0)
        gaps = ordered.diff(dim=0)
        width = spread.median(0).values
        ratio = (gaps / width.clamp(min=torch.finfo(torch.float64).tiny)).nan_to_num(0.0)
        ratio = torch.where(width > 0, ratio, torch.zeros_like(ratio))
        best = int(ratio.argmax())
        cut, k = divmod(best, ratio.shape[1])
        value = float(ratio[cut, k])
        if value > _APART and (worst is None or value > worst[0]):
            index = [int(i) for i in torch.unravel_index(torch.tensor(k), draws.shape[2:])] if draws.dim() > 2 else []
            low, high = order[: cut + 1, k].tolist(), order[cut + 1 :, k].tolist()
            worst = (value, element(name, index), sorted(low), sorted(high), float(ordered[: cut + 1, k].mean()),
                     float(ordered[cut + 1 :, k].mean()))  # fmt: skip
    if worst is None:
        return []
    _, where, low, high, at_low, at_high = worst
    return [
        f"The chains stay in separate modes: {_chains(low)} near {at_low:.3g} and {_chains(high)} near {at_high:.3g} in "
        f"{where}, so that how much each mode counts is an accident of the starts; use method='parallel-tempering' or "
        "'tempered-smc', or fix what the program leaves unidentified."
    ]


def _chains(which: list[int]) -> str:
    if len(which) > _NAMED:
        return f"{len(which)} chains"
    return f"chain{'s' if len(which) > 1 else ''} {', '.join(map(str, which))}"


def tails(posterior: Posterior) -> list[str]:
    """Draws so spread out that their mean is no estimate of anything, or a poor one."""
    missing: list[tuple[float, str]] = []
    poor: list[tuple[float, str]] = []
    for name, draws in posterior.draws.items():
        total = draws.shape[0] * draws.shape[1]
        if not draws.is_floating_point() or total < _TAIL_DRAWS or not bool(draws.isfinite().all()):
            continue
        shape = tail_shapes(draws)
        for index in (shape > reliable_k(total)).nonzero().tolist():
            k = float(shape[tuple(index)])
            if math.isfinite(k):
                (missing if k >= 1 else poor).append((k, element(name, index)))
    if not missing and not poor:
        return []
    names = [f"{name} ({k:.2f})" for k, name in sorted(missing + poor, reverse=True)]
    fate = "may not exist" if missing else "is known far worse than its standard error says"
    return [
        f"The tails of {listed(names)} are so heavy (Pareto k of the draws in parentheses; 1 or more means no mean, 0.5 or "
        f"more no variance) that the mean {fate}; report the median and other quantiles instead."
    ]


# -- words ---------------------------------------------------------------------------------------------------


def element(name: str, index: list[int]) -> str:
    """`name[0, 2]`, or the name alone for a scalar."""
    return name + (f"[{', '.join(map(str, index))}]" if index else "")


def has(items: list[str]) -> str:
    """The verb for so many."""
    return "has" if len(items) == 1 else "have"
