"""Importance sampling: evidence, bounds on it and weighted posteriors from draws of a guide or the prior."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

from .weighing import LogMean, Weighing

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
        delta method, sd(w) / (mean(w) sqrt(K)); `how` names the median effective sample size.

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
        value, stderr, ess = _evidence(Weighing(program, args, kwargs, chunk=self.chunk), self.draws)
        how = f"importance weighting, K = {self.draws}, median ESS {float(ess.median()):.3g}"
        return Score(value, "lower_bound", stderr, how)


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
        value, stderr, ess = _evidence(Weighing(program, args, kwargs, prior=True, chunk=self.chunk), self.draws)
        how = f"simple Monte Carlo, K = {self.draws}, median ESS {float(ess.median()):.3g}"
        return Score(value, "estimate", stderr, how)


@algorithm("importance")
@dataclass(frozen=True)
class Importance:
    """The posterior as weighted draws of the guide, w_k = p(x, z_k) / q(z_k | x), with the evidence mean(w).

    Arguments:
        draws: K.
        chunk: as in `ImportanceWeighted`. All draws are kept, so that memory grows with K.

    Returns:
        A `Posterior` with draws {site: [1, K, *shape]}, log weights [K, batch] (or [K] for a program whose
        examples share latent sites), and the evidence as an estimate.

    Raises:
        As `ImportanceWeighted`.
    """

    draws: int = 1000
    chunk: int | None = None

    def __post_init__(self) -> None:
        _check_draws(self)

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        with torch.no_grad():
            weighing = Weighing(program, args, kwargs, chunk=self.chunk)
            draws, log_weights = collect(weighing, self.draws)
        mean = LogMean()
        mean.add(log_weights)
        value, stderr, ess = mean.result()
        how = f"importance sampling, K = {self.draws}, median ESS {float(ess.median()):.3g}"
        evidence = Score(value.to(log_weights), "estimate", None if stderr is None else stderr.to(log_weights), how)
        return Posterior(
            draws,
            log_weights=log_weights,
            log_evidence=evidence,
            cost=Cost(steps=self.draws),
            how=how,
            program=program,
        )


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


def _evidence(weighing: Weighing, draws: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log mean weight, standard error and effective sample size, each [batch] (or [])."""
    means: dict[int, LogMean] = {}
    dtype = None
    for block in weighing.blocks(draws):
        dtype = block.log_weights.dtype
        means.setdefault(block.rows.start, LogMean()).add(block.log_weights)
    values, errors, sizes = zip(*(means[begin].result() for begin in sorted(means)), strict=True)
    value, ess = torch.cat(values).to(dtype), torch.cat(sizes)
    stderr = torch.cat(errors).to(dtype) if draws > 1 else None
    if weighing.size is None:
        value, ess, stderr = value[0], ess[0], None if stderr is None else stderr[0]
    return value, stderr, ess


def _check_draws(options: Any) -> None:
    if not isinstance(options.draws, int) or options.draws < 1:
        raise ProgramError(
            f"{type(options).__name__}: draws must be a positive whole number, but it is {options.draws!r}."
        )
