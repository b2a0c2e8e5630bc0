"""Importance sampling: evidence, bounds on it and weighted posteriors from draws of a guide or the prior."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.approximating.weighing import LogMean, Weighing
from ppl_dgm.inference.diagnostics.psis import RELIABLE_K, LargestWeights, psis, reliable_k
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

__all__ = ["Importance", "ImportanceWeighted", "SimpleMonteCarlo"]


@algorithm("importance-weighted")
@dataclass(frozen=True)
class ImportanceWeighted:
    """The importance-weighted bound on the log density,

        log (1/K) sum_k p(x, z_k) / q(z_k | x)  with  z_k ~ q(z | x),

    whose expectation is at most log p(x), does not decrease in K, and tends to log p(x).

    A program whose latent and observed sites all lie inside the plate `data` has one value per example. Any
    other has one value, of shape []: its examples share latent sites, so that only all of them together have
    a density.

    Arguments:
        draws: K.
        chunk: rows (examples x draws) that go through the networks at once, so that memory stays flat in K
            and in the number of examples; None chooses it by size (some 16 MiB for the widest tensor).

    Returns:
        A `Score` of kind `lower_bound`; `stderr` is the Monte Carlo standard error of the logarithm by the
        delta method, sd(w) / (mean(w) sqrt(K)); `stats` has the effective sample size `ess` and, from 21 draws on, the Pareto
        shape `pareto_k` of the weights of each example; `how` names the median effective sample size and, from 21 draws on, the
        share of examples whose largest weights have a Pareto shape k above 0.7 (or k, for one example): their standard
        error is not to be trusted, and the bound is loose.

    Raises:
        TaskUnavailable: there is no guide.
        ProgramError: the guide misses a latent site or draws another one.
        NumericalError: a log density is NaN; the message names the site.

    Source: Burda, Grosse and Salakhutdinov 2016; Tomczak 2024, eq. (5.32).
    """

    draws: int = 512
    chunk: int | None = None

    def __post_init__(self) -> None:
        _check_draws(self)

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`."""
        value, stderr, told, stats = _evidence(Weighing(program, args, kwargs, chunk=self.chunk), self.draws)
        return Score(value, "lower_bound", stderr, f"importance weighting, {told}", stats)


@algorithm("simple-monte-carlo")
@dataclass(frozen=True)
class SimpleMonteCarlo:
    """The evidence by draws from the prior, log (1/K) sum_k p(x | z_k) with z_k ~ p(z).

    Unbiased for p(x), so that it needs no guide; its variance grows exponentially with what x says about z.

    Arguments:
        draws: K.
        chunk: as in `ImportanceWeighted`.

    Returns:
        A `Score` of kind `estimate`, per example or of shape [] as in `ImportanceWeighted`. A standard error
        that is not small against one nat, or a median effective sample size of a few draws, says that the
        estimate is much too low.

    Source: Tomczak 2024, section 5.3.1.
    """

    draws: int = 1000
    chunk: int | None = None

    def __post_init__(self) -> None:
        _check_draws(self)

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`."""
        weighing = Weighing(program, args, kwargs, prior=True, chunk=self.chunk)
        value, stderr, told, stats = _evidence(weighing, self.draws)
        return Score(value, "estimate", stderr, f"simple Monte Carlo, {told}", stats)


@algorithm("importance")
@dataclass(frozen=True)
class Importance:
    """The posterior as weighted draws of the guide, w_k = p(x, z_k) / q(z_k | x), with the evidence mean(w).

    Arguments:
        draws: K.
        chunk: as in `ImportanceWeighted`. All draws are kept, so that memory grows with K.
        smooth: replace the largest weights by quantiles of the Pareto distribution fitted to them (`psis`), which
            makes averages far steadier for a small bias. The evidence is always that of the raw weights.

    Returns:
        A `Posterior` with draws {site: [1, K, *shape]}, log weights [K, batch] (or [K] for a program whose
        examples share latent sites), the evidence as an estimate, and the statistic `pareto_k`, [1, K, batch] (or
        [1, K]), the Pareto shape of the raw weights, the same for all draws: above min(0.7, 1 - 1 / log10 K) averages
        are not to be trusted.

    Raises:
        As `ImportanceWeighted`.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto smoothed importance sampling.
    """

    draws: int = 1000
    chunk: int | None = None
    smooth: bool = True

    def __post_init__(self) -> None:
        _check_draws(self)

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        with torch.no_grad():
            weighing = Weighing(program, args, kwargs, chunk=self.chunk)
            draws, log_weights = collect(weighing, self.draws)
        smoothed, k = psis(log_weights)
        score = evidence(log_weights, "importance sampling")
        return Posterior(
            draws,
            log_weights=smoothed if self.smooth else log_weights,
            log_evidence=score,
            stats=shape_statistic(k, self.draws),
            cost=Cost(steps=self.draws, seconds=time.perf_counter() - begun),
            how=score.how + (", smoothed" if self.smooth else ""),
            program=program,
        )


def evidence(log_weights: Tensor, how: str) -> Score:
    """The evidence that log weights [draw, ...] estimate, with its standard error, effective sample size and shape k in words."""
    mean = LogMean()
    mean.add(log_weights)
    value, stderr, ess = mean.result()
    largest = LargestWeights(len(log_weights))
    largest.add(log_weights)
    error = None if stderr is None else stderr.to(log_weights)
    told, stats = (
        f"{how}, {_told(len(log_weights), ess, largest)}",
        _stats(len(log_weights), ess, largest, log_weights.dtype),
    )
    return Score(value.to(log_weights), "estimate", error, told, stats)


def _stats(draws: int, ess: Tensor, largest: LargestWeights, dtype: Any) -> dict[str, Tensor]:
    """Effective sample size and, where a shape can be fitted, the shape k of each set of weights."""
    stats = {"ess": ess.to(dtype)}
    if draws >= 21:
        stats["pareto_k"] = largest.shape().to(dtype)
    return stats


def shape_statistic(k: Tensor, draws: int) -> dict[str, Tensor]:
    """The shape k, [...], as a statistic of each draw, [1, draw, ...]; nothing where no shape could be fitted."""
    if bool(k.isposinf().all()) and draws < 21:
        return {}
    return {"pareto_k": k.float().expand(1, draws, *k.shape)}


def collect(weighing: Weighing, draws: int) -> tuple[dict[str, Tensor], Tensor]:
    """All draws, {site: [1, draw, *shape]}, and their log weights, [draw, batch] or [draw]."""
    pieces: dict[int, list[Any]] = {}
    for block in weighing.blocks(draws):
        pieces.setdefault(block.rows.start, []).append(block)
    groups = [pieces[begin] for begin in sorted(pieces)]
    sites = {}
    for name in weighing.names:
        by_rows = [torch.cat([block.sites[name] for block in group]) for group in groups]
        sites[name] = (torch.cat(by_rows, weighing.row_dim(name)) if len(by_rows) > 1 else by_rows[0])[None]
    log_weights = torch.cat([torch.cat([block.log_weights for block in group]) for group in groups], 1)
    return sites, log_weights if weighing.size is not None else log_weights[:, 0]


def _evidence(weighing: Weighing, draws: int) -> tuple[Tensor, Tensor | None, str, dict[str, Tensor]]:
    """Log mean weight and its standard error, each [batch] (or []), and how far to trust them, in words and in numbers."""
    means: dict[int, LogMean] = {}
    tails: dict[int, LargestWeights] = {}
    dtype = None
    for block in weighing.blocks(draws):
        dtype = block.log_weights.dtype
        means.setdefault(block.rows.start, LogMean()).add(block.log_weights)
        tails.setdefault(block.rows.start, LargestWeights(draws)).add(block.log_weights)
    values, errors, sizes = zip(*(means[begin].result() for begin in sorted(means)), strict=True)
    value = torch.cat(values).to(dtype)
    stderr = torch.cat(errors).to(dtype) if draws > 1 else None
    ess, largest = torch.cat(sizes), LargestWeights.beside([tails[begin] for begin in sorted(tails)])
    told, stats = _told(draws, ess, largest), _stats(draws, ess, largest, dtype)
    if weighing.size is None:
        value, stderr = value[0], None if stderr is None else stderr[0]
        stats = {name: number[0] for name, number in stats.items()}
    return value, stderr, told, stats


def _told(draws: int, ess: Tensor, largest: LargestWeights) -> str:
    """Draws, median effective sample size, and the shape k of one set of weights or how often it is too high."""
    text = f"K = {draws}, median ESS {float(ess.median()):.3g}"
    if draws < 21:
        return text
    k = largest.shape().flatten()
    if len(k) > 1:
        return f"{text}, Pareto k above {RELIABLE_K} for {float((k > RELIABLE_K).double().mean()):.0%} of examples"
    return f"{text}, {k_in_words(k[0], draws)}"


def k_in_words(k: Tensor, draws: int) -> str:
    """A shape k, and whether averages over so many draws can be trusted."""
    limit = reliable_k(draws)
    return f"Pareto k {float(k):.2f}" + (f" (above {limit:.2f}: not to be trusted)" if float(k) > limit else "")


def _check_draws(options: Any) -> None:
    if not isinstance(options.draws, int) or options.draws < 1:
        raise ProgramError(
            f"{type(options).__name__}: draws must be a positive whole number, but it is {options.draws!r}."
        )
