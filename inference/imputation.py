"""impute: what is missing of observations, drawn many times from its distribution given what is there."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.particles import Particles, random_nodes, row_dim, row_sums
from ppl_dgm.options import is_count
from ppl_dgm.program import Program, as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.tasks import evaluating

__all__ = ["Imputation", "impute"]

_METHODS = ("exact", "gibbs", "pseudo-gibbs", "importance")
_ROWS = 2**14  # rows of one pass
_FILLINGS = 16  # of the missing entries, for the proposals of importance resampling


@dataclass(frozen=True)
class Imputation:
    """Completed observations.

    Attributes:
        values: [draw, batch, *shape]: the observations, with what was missing drawn anew in each.
        missing: [batch, *shape], True where the entry was missing.
        kind: `exact` (independent draws of what is missing given what is there), `asymptotic` (so in the limit of
            many sweeps or proposals), or `approximate`.
        how: the method, in words.
        stats: {name: [batch]}: `acceptance_rate` of Metropolis within Gibbs, or `ess` of the importance weights.
    """

    values: Tensor
    missing: Tensor
    kind: str
    how: str
    stats: dict[str, Tensor]

    @property
    def mean(self) -> Tensor:
        """[batch, *shape]: the average over draws; the observed entries are as they were."""
        return (
            self.values.double()
            .mean(0)
            .to(self.values.dtype if self.values.is_floating_point() else torch.get_default_dtype())
        )

    @property
    def std(self) -> Tensor:
        """[batch, *shape]: the standard deviation over draws; zero where the entry was observed."""
        return self.values.double().std(0, correction=0).to(self.mean.dtype)

    def __repr__(self) -> str:
        return (
            f"Imputation({len(self.values)} draws of {int(self.missing.sum())} missing entries of {len(self.missing)} "
            f"examples; {self.kind}, {self.how})"
        )


@torch.no_grad()
def impute(
    program: Any,
    x: Tensor,
    missing: Tensor | None = None,
    *args: Any,
    draws: int = 10,
    method: str | None = None,
    sweeps: int | None = None,
    proposals: int = 200,
    start: Tensor | None = None,
    guide: Any = None,
    seed: int | None = None,
    device: Any = None,
) -> Imputation:
    """Multiple imputation: draws of the missing entries given the observed ones, x_mis ~ p(x_mis | x_obs).

    What is missing is taken to be missing at random: that it is missing says nothing of its value.

    - "exact": programs that condition on part of an example themselves: those with a method `impute(x, draws=n)` that takes
      NaN for what is missing (probabilistic PCA); circuits; and those made with `missing=True` whose posterior is exact
      (mixtures).
    - "gibbs": Metropolis within Gibbs. In turns, z' ~ q(z | x_obs, x_mis) is proposed and accepted with probability
      min(1, [p(x, z') q(z | x)] / [p(x, z) q(z' | x)]), then x_mis ~ p(x_mis | z, x_obs). It converges to the truth.
    - "pseudo-gibbs": the same with every proposal accepted. It converges only if the guide is the posterior; it never gets stuck.
    - "importance": proposals z_k from r, the mixture of q(z | x_obs, x_mis) over 16 fillings of some sweeps of Gibbs (one
      filling alone makes r too narrow); one is picked in proportion to p(x_obs, z_k) / r(z_k), then x_mis given it. The
      missing entries are left out of the likelihood: the observed site's distribution is asked entry by entry (or for its
      marginal, where it is multivariate normal). Biased by as much as so many proposals are; `stats` has their `ess`.

    The last three are for any program whose sites lie inside the plate `data`, with a guide, whose observed site has
    independent entries given the latent ones (`Normal(...).to_event(1)`) or is multivariate normal.

    Arguments:
        program: a `Program` or any callable Pyro model; its first argument is x.
        x: [batch, *shape]; what stands at missing entries does not matter.
        missing: [batch, *shape], True where an entry is missing; by default where x is NaN.
        *args: further arguments of the program.
        draws: completed data sets.
        method: one of these names; by default "exact" where the program can, else "gibbs".
        sweeps: before each draw is taken; draws are parallel chains, so that they are independent given the start. By default
            100 ("gibbs" and "pseudo-gibbs"), and 10 for the fillings of "importance".
        proposals: of "importance", for each draw, fresh ones.
        start: [batch, *shape] or [*shape]: values of the missing entries to begin with; by default the average of
            each entry over the examples that have it (rounded for whole numbers).
        guide, seed, device: as in `ppl_dgm.infer`.

    Returns:
        An `Imputation`.

    Raises:
        TaskUnavailable: the method does not exist for this program; the sentence says why.
        DataError: shapes that do not fit, or an observed entry that is not a number.

    Source: Rezende, Mohamed and Wierstra (2014), appendix F (pseudo-Gibbs); Mattei and Frellsen (2018), Leveraging the exact
    likelihood of deep latent variable models; Mattei and Frellsen (2019), MIWAE, for importance resampling.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> ppca = dgm.models.ProbabilisticPCA(4, 2)
        >>> x = torch.tensor([[0.3, torch.nan, 1.0, -0.5]])
        >>> dgm.impute(ppca, x, draws=5, seed=0).values.shape
        torch.Size([5, 1, 4])
    """
    for name, count in (("draws", draws), ("sweeps", 1 if sweeps is None else sweeps), ("proposals", proposals)):
        if not is_count(count, 1):
            raise ProgramError(f"impute: {name} must be a whole number, at least 1, but it is {count!r}.")
    if method is not None and method not in _METHODS:
        raise ProgramError(f"impute: method must be one of {', '.join(map(repr, _METHODS))}, but it is {method!r}.")
    program = as_program(program, guide)
    program = program if device is None else program.to(device)
    x, missing = _marked(x.to(program.device), None if missing is None else missing.to(program.device))
    args = tuple(a.to(program.device) if isinstance(a, Tensor) else a for a in args)
    with seeded(seed), evaluating(program), number_type(program, (x, *args)), program.running():
        exact = _exact(program)
        if exact is None and (method == "exact" or not program.has_guide) and _could_allow_missing(program):
            raise TaskUnavailable(
                f"{program.name!r} was made without missing=True and so cannot leave entries out; make it with missing=True, "
                "which completes examples exactly and needs no guide."
            )
        if method == "exact" and exact is None:
            raise TaskUnavailable(
                f"{program.name!r} cannot condition on part of an example exactly; use method='gibbs' or 'importance'."
            )
        if exact is not None and method in (None, "exact"):
            how, complete = exact
            return Imputation(_filled(x, missing, complete(x, missing, draws)), missing, "exact", how, {})
        filler = _Filler(program, x, missing, args, start)
        if method == "importance":
            return filler.importance(draws, proposals, 10 if sweeps is None else sweeps)
        return filler.gibbs(draws, 100 if sweeps is None else sweeps, metropolis=method != "pseudo-gibbs")


def _marked(x: Tensor, missing: Tensor | None) -> tuple[Tensor, Tensor]:
    """x and where it has holes."""
    if x.dim() < 2:
        raise DataError(f"impute: x has shape {tuple(x.shape)}; give rows of entries, [batch, D].")
    holes = x.isnan() if x.is_floating_point() else torch.zeros_like(x, dtype=torch.bool)
    if missing is None:
        return x, holes
    if missing.shape != x.shape or missing.dtype != torch.bool:
        raise DataError(
            f"impute: missing must be True or False for each entry of x, {tuple(x.shape)}, but it has shape "
            f"{tuple(missing.shape)} and type {missing.dtype}."
        )
    left = holes & ~missing
    if bool(left.any()):
        raise DataError(f"impute: x is NaN at {tuple(left.nonzero()[0].tolist())}, which `missing` says is observed.")
    return x, missing


def _filled(x: Tensor, missing: Tensor, values: Tensor) -> Tensor:
    """x with its holes taken from `values`, [draw, batch, *shape], in the type of x."""
    return torch.where(missing, values.to(x.dtype), x)


# -- programs that can do it exactly ---------------------------------------------------------------------------------


def _exact(program: Program) -> tuple[str, Callable[..., Tensor]] | None:
    """How a program completes examples exactly, in words, and the function (x, missing, draws) -> [draw, batch, *shape]."""
    own: Any = program
    if "draws" in inspect.signature(getattr(program, "impute", lambda: None)).parameters:
        how = f"conditional distribution of {program.name}"
        return how, lambda x, missing, draws: own.impute(_with_nan(x, missing), draws=draws)
    if program.allows_missing and hasattr(program, "simulate"):
        return f"conditional draws of {program.name}", lambda x, missing, draws: _simulated(own, x, missing, draws)
    if program.allows_missing and hasattr(program, "posterior"):
        return (
            "latent sites given what is observed, then what is missing given both",
            lambda x, missing, draws: _by_posterior(own, x, missing, draws),
        )
    return None


def _could_allow_missing(program: Program) -> bool:
    """Whether the program has the option missing=True, was made without it, and would be exact with it."""
    option = "missing" in inspect.signature(type(program).__init__).parameters
    return option and not program.allows_missing and (hasattr(program, "posterior") or hasattr(program, "simulate"))


def _with_nan(x: Tensor, missing: Tensor) -> Tensor:
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.masked_fill(missing, torch.nan)


def _simulated(program: Any, x: Tensor, missing: Tensor, draws: int) -> Tensor:
    rows = _with_nan(x, missing).repeat(draws, 1)
    return program.simulate(len(rows), given={program.site: rows})[program.site].unflatten(0, (draws, len(x)))


def _by_posterior(program: Any, x: Tensor, missing: Tensor, draws: int) -> Tensor:
    """Latent sites from the exact posterior given the seen entries, then the missing entries given both."""
    rows = _with_nan(x, missing).repeat(draws, 1)
    latent = {name: fn.sample() for name, fn in program.posterior(rows).items()}
    fn, _ = _observed(program, latent, (rows.nan_to_num(0.0),))
    return _conditional(fn, x.repeat(draws, 1), missing.repeat(draws, 1)).unflatten(0, (draws, len(x)))


# -- the observed site ---------------------------------------------------------------------------------------------------


def _observed(program: Program, latent: dict[str, Tensor], batch: tuple) -> tuple[Any, str]:
    """The distribution of the observed site given latent values, and its name."""
    with pyro.validation_enabled(False):
        story = poutine.trace(poutine.condition(program.run_model, latent)).get_trace(*batch)
    seen = {n: node for n, node in random_nodes(story).items() if n not in latent}
    if len(seen) != 1 or next(iter(seen.values()))["value"].shape != batch[0].shape:
        raise TaskUnavailable(
            f"{program.name!r} does not observe its first argument at exactly one site (it observes "
            f"{', '.join(map(repr, seen)) or 'none'}), so that nothing says which entries are missing."
        )
    name, node = next(iter(seen.items()))
    return node["fn"], name


def _base(fn: Any) -> Any:
    """The distribution of single entries, or None where they depend on each other."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution") and fn.event_dim:
        fn = fn.base_dist
    return None if fn.event_dim else fn


def _gaussian(fn: Any) -> bool:
    return type(fn).__name__ in ("MultivariateNormal", "LowRankMultivariateNormal")


def _check_observed(program: Program, fn: Any, name: str) -> None:
    if _base(fn) is None and not _gaussian(fn):
        raise TaskUnavailable(
            f"the entries of site {name!r} of {program.name!r} ({type(fn).__name__}) depend on each other given the latent "
            "sites, so that some of them cannot be left out; use a distribution under to_event, or a multivariate normal."
        )


def _conditional(fn: Any, x: Tensor, missing: Tensor) -> Tensor:
    """A draw of every entry given the ones that are there; only the missing entries count, [row, *shape]."""
    drawn = fn.sample().expand(x.shape)
    if not _gaussian(fn):
        return drawn
    # a joint draw y moved by the regression of the missing entries on the seen ones: y + C_ms C_ss^-1 (x - y)_s
    seen = (~missing).to(drawn)
    covariance = fn.covariance_matrix
    within = covariance * seen[:, :, None] * seen[:, None, :] + torch.diag_embed(1 - seen)
    gap = torch.where(missing, torch.zeros_like(drawn), x.to(drawn) - drawn)
    return drawn + (covariance @ torch.linalg.solve(within, gap[..., None]) * missing[..., None])[..., 0]


def _of_seen(fn: Any, x: Tensor, missing: Tensor) -> Tensor:
    """log density of the entries that are there, [row]; the value at the others does not matter."""
    if _gaussian(fn):
        seen = (~missing).to(fn.loc)
        pairs = seen[:, :, None] * seen[:, None, :]
        covariance = fn.covariance_matrix * pairs + torch.diag_embed(1 - seen)
        whitened = torch.where(missing, torch.zeros_like(fn.loc), x.to(fn.loc) - fn.loc)
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(fn.loc), covariance)
        return normal.log_prob(whitened) + 0.5 * math.log(2 * math.pi) * (1 - seen).sum(-1)
    entries = _base(fn).log_prob(x)
    return torch.where(missing, torch.zeros_like(entries), entries).flatten(1).sum(1)


# -- by the guide ----------------------------------------------------------------------------------------------------------


class _Filler:
    """Completes examples of a program with a guide."""

    def __init__(self, program: Program, x: Tensor, missing: Tensor, args: tuple, start: Tensor | None) -> None:
        self.program, self.x, self.missing, self.args = program, x, missing, args
        self.first = torch.where(missing, _start(x, missing, start), x)
        batch = (self.first, *args)
        Particles(program, 2).check(batch)
        found = Particles(program, 1)(*batch)
        fn, name = _observed(program, {n: node["value"] for n, node in found.nodes.items()}, batch)
        _check_observed(program, fn, name)
        self.site = name
        self.dims = {n: row_dim(node) for n, node in found.nodes.items()}

    def _batch(self, x: Tensor, count: int) -> tuple:
        """Arguments for `count` copies of all rows, copy after copy."""
        rows = len(self.x)

        def one(a: Any) -> Any:
            return a.repeat(count, *(1,) * (a.dim() - 1)) if isinstance(a, Tensor) and a.dim() and len(a) == rows else a

        return (x, *(one(a) for a in self.args))

    def gibbs(self, draws: int, sweeps: int, metropolis: bool) -> Imputation:
        """Chains of Metropolis within Gibbs, one for each draw and example."""
        rows, most = len(self.x), max(1, _ROWS // len(self.x))
        parts, rates = [], torch.zeros(rows, dtype=torch.float64, device=self.x.device)
        for begin in range(0, draws, most):
            count = min(most, draws - begin)
            values, accepted = self._chains(count, sweeps, metropolis)
            parts.append(values)
            rates += accepted.double().sum(0)
        how = f"{sweeps} sweeps of {'Metropolis within' if metropolis else 'pseudo-'}{' ' if metropolis else ''}Gibbs with the guide"
        stats = {"acceptance_rate": rates / draws} if metropolis else {}
        kind = "asymptotic" if metropolis else "approximate"
        return Imputation(torch.cat(parts), self.missing, kind, how, stats)

    def _chains(self, count: int, sweeps: int, metropolis: bool) -> tuple[Tensor, Tensor]:
        """Completed examples, [chain, batch, *shape], and how often moves were accepted, [chain, batch]."""
        rows = len(self.x)
        shape = (count, *(1,) * (self.x.dim() - 1))
        seen, holes, x = self.x.repeat(shape), self.missing.repeat(shape), self.first.repeat(shape)
        accepted = torch.zeros(count * rows, device=x.device)
        latent: dict[str, Tensor] = {}
        for sweep in range(sweeps):
            batch = self._batch(x, count)
            proposed, log_q = self._propose(batch)
            if sweep == 0 or not metropolis:
                latent = proposed
                accepted += 1
            else:
                gain = self._joint(proposed, batch) - log_q - self._joint(latent, batch) + self._proposal(latent, batch)
                take = torch.rand_like(gain).log() < gain.nan_to_num(-torch.inf)
                accepted += take
                latent = {n: _choose(take, value, latent[n], self.dims[n]) for n, value in proposed.items()}
            fn, _ = _observed(self.program, latent, batch)
            x = torch.where(holes, _conditional(fn, seen, holes).to(x.dtype), seen)
        return x.unflatten(0, (count, rows)), (accepted / sweeps).unflatten(0, (count, rows))

    def importance(self, draws: int, proposals: int, sweeps: int) -> Imputation:
        """Latent values picked among proposals by the weights of the observed entries alone."""
        rows, device = len(self.x), self.x.device
        most, mixed = max(1, _ROWS // (proposals * rows)), min(_FILLINGS, proposals)
        parts, sizes = [], torch.zeros(rows, dtype=torch.float64, device=device)
        for begin in range(0, draws, most):
            count = min(most, draws - begin)
            # proposals come from a mixture of the guide at several fillings; whatever those are, the weights are right
            fillings = self._chains(count * mixed, sweeps, metropolis=True)[0]  # [draw * filling, batch, *shape]
            draw = torch.arange(count, device=device).repeat_interleave(proposals) * mixed
            which = torch.arange(proposals, device=device).repeat(count) % mixed
            latent, _ = self._propose(self._batch(fillings[draw + which].flatten(0, 1), count * proposals))
            terms = []
            for part in range(mixed):
                there = self._batch(fillings[draw + part].flatten(0, 1), count * proposals)
                share = len(range(part, proposals, mixed)) / proposals
                terms.append(self._proposal(latent, there) + math.log(share))
            holes = self.missing.repeat(count * proposals, *(1,) * (self.x.dim() - 1))
            batch = self._batch(fillings[draw].flatten(0, 1), count * proposals)
            log_weights = self._joint(latent, batch, holes) - torch.stack(terms).logsumexp(0)
            table = (
                log_weights.unflatten(0, (count, proposals, rows)).movedim(1, 2).double()
            )  # [draw, example, proposal]
            weights = torch.softmax(table.nan_to_num(-torch.inf), 2)
            sizes += (1 / weights.square().sum(2)).sum(0)
            picked = torch.multinomial(weights.flatten(0, 1), 1).reshape(count, rows)
            places = (torch.arange(count, device=device)[:, None] * proposals + picked) * rows
            places = (places + torch.arange(rows, device=device)).flatten()
            chosen = {n: v.index_select(self.dims[n] + v.dim(), places) for n, v in latent.items()}
            parts.append(self._completed(chosen, self.x.repeat(count, *(1,) * (self.x.dim() - 1)), count))
        how = f"importance resampling of {proposals} draws from the guide at {mixed} fillings"
        return Imputation(torch.cat(parts), self.missing, "asymptotic", how, {"ess": sizes / draws})

    def _completed(self, latent: dict[str, Tensor], x: Tensor, count: int) -> Tensor:
        """Missing entries drawn given latent values, [draw, batch, *shape]."""
        holes = self.missing.repeat(count, *(1,) * (self.x.dim() - 1))
        start = self.first.repeat(count, *(1,) * (self.x.dim() - 1))
        fn, _ = _observed(self.program, latent, self._batch(start, count))
        return torch.where(holes, _conditional(fn, x, holes).to(x.dtype), x).unflatten(0, (count, len(self.x)))

    # -- densities -------------------------------------------------------------------------------------------------

    def _propose(self, batch: tuple) -> tuple[dict[str, Tensor], Tensor]:
        """Latent values from the guide, and their log density, [row]."""
        with pyro.validation_enabled(False):
            drawn = poutine.trace(self.program.run_guide).get_trace(*batch)
            drawn.compute_log_prob()
        nodes = random_nodes(drawn)
        return {n: node["value"] for n, node in nodes.items()}, _summed(nodes, len(batch[0]))

    def _proposal(self, latent: dict[str, Tensor], batch: tuple) -> Tensor:
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(self.program.run_guide, latent)).get_trace(*batch)
            trace.compute_log_prob()
        return _summed({n: trace.nodes[n] for n in latent}, len(batch[0]))

    def _joint(self, latent: dict[str, Tensor], batch: tuple, missing: Tensor | None = None) -> Tensor:
        """log p(x, z), or with `missing` log p(x_obs, z), [row]."""
        with pyro.validation_enabled(False):
            trace = poutine.trace(poutine.condition(self.program.run_model, latent)).get_trace(*batch)
            trace.compute_log_prob()
        nodes = random_nodes(trace)
        if missing is None:
            return _summed(nodes, len(batch[0]))
        node = nodes.pop(self.site)
        return _summed(nodes, len(batch[0])) + _of_seen(node["fn"], batch[0], missing)


def _summed(nodes: dict[str, Any], rows: int) -> Tensor:
    return torch.stack([row_sums(node, rows) for node in nodes.values()]).sum(0)


def _choose(take: Tensor, new: Tensor, old: Tensor, dim: int) -> Tensor:
    """Rows of the new value where marked, else of the old one; rows lie along `dim`, counted from the right."""
    return torch.where(take.reshape(-1, *(1,) * (-dim - 1)), new, old)


def _start(x: Tensor, missing: Tensor, start: Tensor | None) -> Tensor:
    """Values for the holes to begin with."""
    if start is not None:
        try:
            return start.to(x).expand(x.shape)
        except RuntimeError:
            raise DataError(
                f"impute: start has shape {tuple(start.shape)}; give {tuple(x.shape)} or {tuple(x.shape[1:])}."
            ) from None
    whole = not x.is_floating_point() or bool((x[~missing] == x[~missing].round()).all())
    seen = (~missing).double()
    total = torch.where(missing, torch.zeros_like(seen), x.double()).sum(0)
    mean = total / seen.sum(0).clamp(min=1.0)
    return (mean.round() if whole else mean).to(x.dtype).expand(x.shape)
