"""Simulation-based calibration: does an algorithm's posterior cover the truth as often as it says?"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import DgmError, FileError, ProgramError, TaskUnavailable
from ppl_dgm.files import load_json, save_json
from ppl_dgm.inference.diagnostics.chain_checks import sampled
from ppl_dgm.inference.diagnostics.replicating import Replication, Simulator
from ppl_dgm.inference.diagnostics.uniformity import bands, chi_square_p, kolmogorov_smirnov_p, shape_in_words
from ppl_dgm.progress import progress
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import resolve
from ppl_dgm.results import Posterior
from ppl_dgm.text import listed

__all__ = ["LOG_LIKELIHOOD", "Calibration", "calibrate"]

LOG_LIKELIHOOD = "log likelihood"
COVERAGES = (0.5, 0.8, 0.95)
_LEVEL = 0.05  # of the verdict, over all quantities together
_FEW = 50  # replications below which only gross errors are seen
_FAILURES = (DgmError, RuntimeError, ValueError, ArithmeticError, AssertionError, NotImplementedError, IndexError)

Quantity = Callable[[dict[str, Tensor]], Tensor]


def calibrate(
    program: Any,
    *args: Any,
    method: Any = None,
    guide: Any = None,
    sites: list[str] | None = None,
    quantities: dict[str, Quantity] | None = None,
    observe: Callable[[dict[str, Tensor]], tuple] | None = None,
    replications: int = 200,
    draws: int = 99,
    seed: int | None = None,
    **kwargs: Any,
) -> "Calibration":
    """Simulation-based calibration of an algorithm on a program.

    In each replication a truth and data are drawn together, z*, x* ~ p(z) p(x | z), and the posterior given x* is
    inferred. If it is exact, the rank of z* among independent posterior draws is uniform, for every function of z and
    x; the log likelihood is always among the functions, as it sees what each coordinate alone does not.

    Arguments:
        program: a `Program` or any callable Pyro model, with proper priors.
        *args, **kwargs: go to the model as in `infer`. What the program observes there is replaced by data drawn
            from it; the values do not matter, their shapes do. The rest (covariates, sizes) is kept.
        method: the algorithm, as in `infer`: a name, or an object with its options.
        guide: a guide to use instead of the program's.
        sites: latent sites whose elements are ranked; by default all that the posterior has draws of.
        quantities: {name: function}, further functions of {site: [draw, *shape]} to [draw].
        observe: {observed site: drawn value} to the model's positional arguments, for programs whose observations are not
            found by themselves (a guide that reads them from a transformed argument).
        replications: how often; 100 show gross errors, 1000 subtle ones.
        draws: of each posterior that are ranked, at most: fewer where the effective sample size is smaller.
        seed: random seed.

    Returns:
        A `Calibration`.

    Raises:
        TaskUnavailable: the program cannot be drawn from (flat priors, factors), observes nothing, or every replication
            failed.
        ProgramError: a wrong option, or no such site.

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman (2018); Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková,
    Gelman and Vehtari (2023).

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def coin(heads):
        ...     bias = pyro.sample("bias", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        ...     pyro.sample("heads", dist.Binomial(10, torch.tensor([0.2, 0.5, 0.9])[bias]), obs=heads)
        >>> result = calibrate(coin, torch.tensor(7.0), method="exact", replications=50, seed=0)
        >>> result.ok
        True
    """
    _require("replications", replications, 10)
    _require("draws", draws, 9)
    if sites is not None and not sites:
        raise ProgramError("calibrate: sites is empty; name at least one latent site, or leave it out.")
    simulator = Simulator(program, args, kwargs, guide=guide, observe=observe)
    outcomes: list[_Outcome] = []
    failures: list[str] = []
    name = _described(method)
    with seeded(seed):
        given = simulator.draw(replications)
        seeds = torch.randint(2**31, (replications,)).tolist()
        with progress(f"calibrating {name.partition('(')[0]}", replications) as report:
            for index, replication in enumerate(given):
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        outcomes.append(
                            _replicate(simulator, replication, method, sites, quantities, draws, seeds[index])
                        )
                except _Wrong as error:
                    raise ProgramError(str(error)) from None
                except _FAILURES as error:
                    failures.append(
                        f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
                    )
                report(failed=float(len(failures)))
    if not outcomes:
        raise TaskUnavailable(f"calibrate: every one of {replications} replications failed; the first: {failures[0]}")
    return _collected(outcomes, failures, simulator.program.name, name, draws)


def _require(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ProgramError(f"calibrate: {name} must be a whole number, at least {least}, but it is {value!r}.")


def _described(method: Any) -> str:
    """A name, or an algorithm with the options that differ from its defaults."""
    if method is None or isinstance(method, str):
        return method or "the default method"
    method = resolve(method)
    if not is_dataclass(method):
        return type(method).__name__
    said = [f"{f.name}={getattr(method, f.name)!r}" for f in fields(method) if getattr(method, f.name) != f.default]
    return f"{type(method).__name__}({', '.join(said)})"


class _Wrong(Exception):
    """The call is wrong, in every replication alike."""


# -- one replication -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """Of each quantity: its place in (0, 1) among the draws, the draws' mean and deviation, and the truth."""

    place: dict[str, float]
    mean: dict[str, float]
    deviation: dict[str, float]
    truth: dict[str, float]
    effective: float


def _replicate(
    simulator: Simulator, replication: Replication, method: Any, sites: list[str] | None,
    quantities: dict[str, Quantity] | None, draws: int, seed: int,
) -> _Outcome:  # fmt: skip
    posterior = simulator.infer(replication, method, seed)
    names = list(posterior.draws) if sites is None else sites
    unknown = [name for name in names if name not in posterior.draws]
    if unknown:
        known = ", ".join(map(repr, posterior.draws))
        raise _Wrong(f"calibrate: the posterior has no draws of a site {unknown[0]!r}; it has {known}.")
    if not posterior.draws:
        raise TaskUnavailable("the posterior has no draws.")
    posterior, effective = _independent(posterior, draws)
    held = {name: posterior.draws[name].flatten(0, 1).detach() for name in posterior.draws}
    with seeded(seed + 1):
        drawn, truth = {}, {}
        for name in names:
            true = replication.latent[name].to(held[name])
            for label, values, value in _elements(name, held[name], true):
                drawn[label], truth[label] = values, value
        for label, function in (quantities or {}).items():
            drawn[label] = _evaluated(label, function, held).double()
            one = {name: replication.latent[name].to(held[name])[None] for name in held}
            truth[label] = float(_evaluated(label, function, one))
        likelihood = _log_likelihoods(posterior, {name: replication.latent[name].to(held[name]) for name in held})
        if likelihood is not None:
            drawn[LOG_LIKELIHOOD], truth[LOG_LIKELIHOOD] = likelihood
        place = {label: _place(drawn[label], truth[label]) for label in drawn}
    return _Outcome(
        place,
        {label: float(values.mean()) for label, values in drawn.items()},
        {label: float(values.std()) for label, values in drawn.items()},
        truth,
        effective,
    )


def _independent(posterior: Posterior, draws: int) -> tuple[Posterior, float]:
    """At most so many nearly independent draws, [1, draw], and the effective sample size of all that there were."""
    chains, length = next(iter(posterior.draws.values())).shape[:2]
    effective = float(chains * length)
    if posterior.log_weights is not None:
        weights = torch.softmax(posterior.log_weights.double(), 0)
        effective = float((1 / weights.square().sum(0)).min())
        posterior = posterior.unweighted(seed=None)
        kept = torch.randperm(length)
    else:
        if sampled(posterior) and length >= 4:
            effective = min(effective, _least_effective(posterior))
        order = torch.arange(chains * length).reshape(chains, length)
        kept = order.T.flatten()  # neighbours are of different chains
    count = max(1, min(draws, int(effective), len(kept)))
    if posterior.log_weights is None and chains * length > count:
        kept = kept[torch.linspace(0, len(kept) - 1, count).round().long()]
    index = kept[:count]
    some = {name: value.flatten(0, 1)[index.to(value.device)][None] for name, value in posterior.draws.items()}
    computed = {
        name: value.flatten(0, 1)[index.to(value.device)][None] for name, value in posterior.deterministic.items()
    }
    thinned = replace(posterior, draws=some, deterministic=computed, stats={}, log_weights=None)
    return thinned, effective


def _least_effective(posterior: Posterior) -> float:
    import arviz

    from ppl_dgm.arviz_groups import from_groups

    moving = {n: v for n, v in posterior.draws.items() if v.is_floating_point()} or posterior.draws
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sizes = arviz.ess(from_groups({"posterior": moving}))
    values = [float(v) for site in sizes.data_vars.values() for v in site.to_numpy().ravel()]
    finite = [v for v in values if math.isfinite(v)]
    return max(1.0, min(finite, default=1.0))


def _elements(name: str, values: Tensor, true: Tensor) -> list[tuple[str, Tensor, float]]:
    """(label, [draw], truth) of each element of a site."""
    if true.shape != values.shape[1:]:
        raise _Wrong(
            f"calibrate: site {name!r} has shape {tuple(true.shape)} where the program draws it and "
            f"{tuple(values.shape[1:])} in the posterior; leave it out with sites=[...]."
        )
    if true.dim() == 0:
        return [(name, values.double(), float(true))]
    index = torch.cartesian_prod(*(torch.arange(size) for size in true.shape)).reshape(-1, true.dim()).tolist()
    flat, flat_true = values.flatten(1).double(), true.flatten().double()
    return [
        (f"{name}[{', '.join(map(str, i))}]", flat[:, k], float(flat_true[k]))
        for k, i in enumerate(index)
        if not bool((flat[:, k] == flat_true[k]).all())  # constant by construction
    ]


def _evaluated(label: str, function: Quantity, values: dict[str, Tensor]) -> Tensor:
    result = function(values)
    count = len(next(iter(values.values())))
    if not isinstance(result, Tensor) or result.shape != (count,):
        shape = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise _Wrong(f"calibrate: quantity {label!r} must give one number for each draw, [{count}], but gave {shape}.")
    return result


def _log_likelihoods(posterior: Posterior, truth: dict[str, Tensor]) -> tuple[Tensor, float] | None:
    """log p(x | z) at the draws and at the truth; None where summed-out sites tie the observations together."""
    both = {name: torch.cat([value, truth[name][None, None]], 1) for name, value in posterior.draws.items()}
    try:
        values = replace(posterior, draws=both, deterministic={}).log_likelihood
    except TaskUnavailable:
        return None
    if not values:
        return None
    total = sum(value.double().flatten(2).sum(2) if value.dim() > 2 else value.double() for value in values.values())
    assert isinstance(total, Tensor)
    return total[0, :-1], float(total[0, -1])


def _place(values: Tensor, truth: float) -> float:
    """(rank + uniform) / (draws + 1), ties broken at random: exactly uniform where truth and draws are exchangeable."""
    below = int((values < truth).sum())
    equal = int((values == truth).sum())
    rank = below + (int(torch.randint(equal + 1, ())) if equal else 0)
    return (rank + float(torch.rand((), dtype=torch.float64))) / (len(values) + 1)


def _collected(outcomes: list[_Outcome], failures: list[str], program: str, method: str, draws: int) -> "Calibration":
    labels = [label for label in outcomes[0].place if all(label in o.place for o in outcomes)]

    def gathered(what: str) -> dict[str, list[float]]:
        return {label: [getattr(outcome, what)[label] for outcome in outcomes] for label in labels}

    return Calibration(
        program, method, draws, gathered("place"), gathered("mean"), gathered("deviation"), gathered("truth"),
        [outcome.effective for outcome in outcomes], failures,
    )  # fmt: skip


# -- all of them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """What simulation-based calibration found.

    Attributes:
        program, method: what was calibrated.
        draws: of each posterior that were ranked, at most.
        place: {quantity: [replication]}, where the truth lies among the draws, (rank + u) / (draws + 1) with u uniform:
            itself uniform on (0, 1) if the posterior is right.
        mean, deviation, truth: {quantity: [replication]} of the draws, and what was drawn from the prior.
        effective: [replication], the effective sample size of each posterior.
        failures: what the replications that failed said; they are in none of the others.
    """

    program: str
    method: str
    draws: int
    place: dict[str, list[float]] = field(repr=False)
    mean: dict[str, list[float]] = field(repr=False)
    deviation: dict[str, list[float]] = field(repr=False)
    truth: dict[str, list[float]] = field(repr=False)
    effective: list[float] = field(repr=False)
    failures: list[str] = field(default_factory=list, repr=False)

    @property
    def replications(self) -> int:
        """How many succeeded."""
        return len(self.effective)

    @property
    def table(self) -> pd.DataFrame:
        """One row per quantity.

        Columns: `verdict`; `p` (the empirical distribution of the places leaves simultaneous bands that far by chance),
        `p_ks`, `p_chi2`; `coverage_50`, ... (the share of truths in the central interval, whose standard error is
        sqrt(c (1 - c) / replications)); `z_mean`, `z_sd` (of (posterior mean - truth) / posterior sd, 0 and about 1 when
        right); `contraction` (1 - posterior variance / prior variance, averaged).
        """
        rows, verdicts = {}, self.verdicts
        for label, values in self.place.items():
            u = torch.tensor(values, dtype=torch.float64)
            mean, sd, truth = (
                torch.tensor(t[label], dtype=torch.float64) for t in (self.mean, self.deviation, self.truth)
            )
            z = ((mean - truth) / sd)[sd > 0]
            prior = truth.var()
            rows[label] = {
                "verdict": verdicts[label],
                "p": bands(len(values)).p_value(u),
                "p_ks": kolmogorov_smirnov_p(u),
                "p_chi2": chi_square_p(u),
                **{f"coverage_{round(100 * c)}": float(((u - 0.5).abs() <= c / 2).double().mean()) for c in COVERAGES},
                "z_mean": float(z.mean()) if len(z) else math.nan,
                "z_sd": float(z.std()) if len(z) > 1 else math.nan,
                "contraction": float(1 - sd.square().mean() / prior) if prior > 0 else math.nan,
            }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def verdicts(self) -> dict[str, str]:
        """{quantity: what is wrong with its posterior, or "fine"}.

        A quantity is complained about if its p, times the number of quantities, is below 0.05.
        """
        found = {}
        for label, values in self.place.items():
            u = torch.tensor(values, dtype=torch.float64)
            wrong = bands(len(values)).p_value(u) * len(self.place) < _LEVEL
            found[label] = _words(shape_in_words(u), label == LOG_LIKELIHOOD) if wrong else "fine"
        return found

    @property
    def ok(self) -> bool:
        """Whether every quantity is fine and no replication failed."""
        return not self.failures and all(verdict == "fine" for verdict in self.verdicts.values())

    @property
    def sentences(self) -> list[str]:
        """The verdict in words, failures and small numbers included."""
        verdicts = self.verdicts
        said: dict[str, list[str]] = {}
        for label, verdict in verdicts.items():
            said.setdefault(verdict, []).append(label)
        found = [
            f"{listed(labels)}: the posterior of {self.method} is {verdict}."
            for verdict, labels in said.items()
            if verdict != "fine"
        ]
        n = self.replications
        if not found:
            error = math.sqrt(0.25 / n)
            found.append(
                f"Nothing is wrong that {n} replications can show: the ranks of all {len(verdicts)} quantities are as "
                f"uniform as chance leaves them (the coverage of a 50 % interval is known to ± {200 * error:.0f} points)."
            )
        if n < _FEW:
            found.append(f"Only {n} replications: gross errors alone can be seen; take at least {_FEW}.")
        if self.failures:
            total = n + len(self.failures)
            found.append(
                f"{len(self.failures)} of {total} replications failed and are left out, which may flatter the rest; "
                f"the first said: {self.failures[0]}"
            )
        short = sum(size < self.draws for size in self.effective)
        if short:
            found.append(
                f"{short} of {n} posteriors had fewer effective draws than the {self.draws} to be ranked (the least "
                f"{min(self.effective):.0f}), so fewer of theirs were; take more draws for finer ranks."
            )
        return found

    def __str__(self) -> str:
        head = f"{self.program}, {self.method}: {self.replications} replications"
        return "\n".join([head, *self.sentences, "", self.table.round(3).to_string()])

    def plot(self, path: str | Path | None = None) -> Any:
        """The empirical distribution of the places minus the diagonal, with simultaneous 95 % bands, for each quantity.

        Returns:
            the matplotlib Figure, written to `path` if one is given.
        """
        from ppl_dgm.plots import save, uniformity

        places = {label: torch.tensor(values, dtype=torch.float64) for label, values in self.place.items()}
        figure = uniformity(places, self.verdicts, f"{self.program}: calibration over {self.replications} replications")
        if path is not None:
            save(figure, path)
        return figure

    def save(self, path: str | Path) -> None:
        """Write one JSON file."""
        save_json(path, {"format": 1, **vars(self)})

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote.

        Raises:
            FileError: the file is missing, damaged, or holds something else.
        """
        held = load_json(path)
        if not isinstance(held, dict) or "place" not in held:
            raise FileError(f"{path} holds no calibration; was it written by Calibration.save?")
        try:
            return cls(**{name: value for name, value in held.items() if name != "format"})
        except TypeError as error:
            raise FileError(f"{path} is not the calibration of this version ({error}); run it again.") from None


def _words(shape: list[str], joint: bool) -> str:
    if joint:  # which side is which says nothing about one coordinate
        return "wrong jointly: the log likelihood at the truth does not rank as one more draw's"
    words = {
        "high": "biased to low values",
        "low": "biased to high values",
        "edges": "over-confident (too narrow)",
        "middle": "under-confident (too wide)",
    }
    return " and ".join(words[s] for s in shape) or "wrong in shape, though not in its centre or width"
