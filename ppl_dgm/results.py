"""What the verbs return: Score, Fit and Posterior; how they are saved, loaded and handed to ArviZ."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.distributions import Distribution

from .errors import FileError, ProgramError
from .files import load_json, load_tensors, save_json, save_tensors
from .randomness import seeded

__all__ = ["KINDS", "Cost", "Fit", "Mean", "Posterior", "Score"]

KINDS = ("exact", "lower_bound", "upper_bound", "estimate", "unnormalised", "unavailable")


class Mean(NamedTuple):
    """An average over examples.

    Attributes:
        value: nats per example.
        stderr: standard error of the average over examples, in nats (NaN for one example).
        kind: one of `KINDS`.
    """

    value: float
    stderr: float
    kind: str

    def __str__(self) -> str:
        spread = "" if math.isnan(self.stderr) else f" ± {self.stderr:.2f}"
        return f"{self.value:.2f}{spread} ({self.kind.replace('_', ' ')})"


@dataclass(frozen=True)
class Score:
    """The log density of each example, in nats, and how exact it is.

    Attributes:
        value: [batch] nats per example.
        kind: `exact`; `lower_bound` or `upper_bound` of the exact value (in expectation, where it is a Monte Carlo average);
            `estimate` (unbiased on the probability scale); `unnormalised` (exact up to one constant); `unavailable`.
        stderr: [batch] Monte Carlo standard error of each value, where there is one.
        how: the method, in words.
        stats: what else the method says of each example, {name: [batch]}: `ess`, the effective sample size of its importance
            weights, and `pareto_k`, the shape of their tail (above 0.7 the value is not to be trusted).
    """

    value: Tensor
    kind: str
    stderr: Tensor | None = None
    how: str = ""
    stats: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ProgramError(f"a score's kind must be one of {', '.join(KINDS)}, not {self.kind!r}.")

    def __len__(self) -> int:
        return self.value.numel()

    def __repr__(self) -> str:
        how = f", {self.how}" if self.how else ""
        return f"Score({self.mean()}, {len(self)} example{'s' * (len(self) != 1)}{how})"

    def mean(self) -> Mean:
        """The average over examples, with its standard error over examples (sampling of the data, not Monte Carlo)."""
        value = self.value.detach().double().flatten()
        spread = float(value.std() / math.sqrt(value.numel())) if value.numel() > 1 else math.nan
        return Mean(float(value.mean()), spread, self.kind)

    def bits_per_dim(self, dimensions: int) -> Tensor:
        """-value / (dimensions ln 2), [batch]."""
        return -self.value / (dimensions * math.log(2))

    def __sub__(self, other: "Score") -> Tensor:
        """Difference in nats, [batch].

        Raises:
            ProgramError: the two are of different kinds, so that the difference would mean nothing definite.
        """
        if self.kind != other.kind:
            raise ProgramError(
                f"a score of kind {self.kind!r} minus one of kind {other.kind!r} is neither a bound nor an estimate; "
                "subtract their .value if that is what you want."
            )
        return self.value - other.value


@dataclass
class Cost:
    """What a run took.

    Attributes:
        steps: optimiser steps, sweeps or draws.
        seconds: all of it, wall clock.
        compile_seconds: the part spent recording or compiling graphs.
        gradients: evaluations of the gradient of the log density, summed over chains.
        warmup_seconds, sampling_seconds: the two phases of a sampler.
        warmup_gradients: the part of `gradients` that warm-up took.
        evaluations: evaluations of the log density without its gradient, summed over chains.
        path: which path ran: "recorded" (the pure tensor graph), "python" (Pyro's handlers at each step) or "closed form".
    """

    steps: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    gradients: int = 0
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    warmup_gradients: int = 0
    evaluations: int = 0
    path: str = "python"

    @classmethod
    def restored(cls, numbers: dict[str, Any]) -> "Cost":
        """From a file; what another version wrote and this one does not know is left out."""
        return cls(**{f.name: numbers[f.name] for f in fields(cls) if f.name in numbers})


@dataclass
class Fit:
    """A learned program.

    Attributes:
        program: holds the best parameters.
        history: one row per epoch: `epoch`, `objective` (nats per example, to be minimised), `valid`, `seconds`, and what the learner adds.
        stopped: why learning ended, in words.
        cost: steps and seconds.
        objective: what was minimised, in words.
        notes: choices that the learner made, e.g. a pseudo-count chosen on validation.
    """

    program: Any
    history: pd.DataFrame
    stopped: str
    cost: Cost
    objective: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Fit({self.program.name}, {self.cost.steps} steps in {self.cost.seconds:.1f} s, {self.stopped})"

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, `weights.safetensors` and `history.json` to a folder; files are replaced whole."""
        folder = Path(folder)
        program = self.program
        config = {
            "format": 1,
            "program": type(program).__name__,
            "config": program.config if _is_plain(program.config) else None,
            "guide": type(program.guide).__name__ if isinstance(getattr(program, "guide", None), AutoGuide) else None,
            "stopped": self.stopped,
            "objective": self.objective,
            "cost": vars(self.cost),
            "notes": self.notes if _is_plain(self.notes) else {k: str(v) for k, v in self.notes.items()},
        }
        save_tensors(folder / "weights.safetensors", program.state_dict())
        save_json(folder / "history.json", self.history.to_dict(orient="list"))
        save_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: str | Path, program: Any = None, args: tuple = ()) -> "Fit":
        """Read what `save` wrote.

        Arguments:
            folder: the run folder.
            program: an object to put the weights into; needed where the program is not one of the zoo.
            args: the model's arguments, for one run where parameters are made on first use (autoguides).

        Raises:
            FileError: a file is missing or damaged, or the program is not of the zoo and none was given.
        """
        from .program import as_program

        folder = Path(folder)
        config, history = load_json(folder / "config.json"), load_json(folder / "history.json")
        if (
            not isinstance(config, dict)
            or not {"program", "config", "stopped", "objective", "cost", "notes"} <= config.keys()
        ):
            raise FileError(f"{folder / 'config.json'} does not describe a learned program; is {folder} a run folder?")
        if (
            not isinstance(history, dict)
            or len({len(column) for column in history.values() if isinstance(column, list)}) > 1
        ):
            raise FileError(f"{folder / 'history.json'} is no table of epochs; restore it from an earlier copy.")
        state, _ = load_tensors(folder / "weights.safetensors")
        if program is None:
            program = _rebuild(config, folder)
        program = as_program(program)
        if not program.has_guide and config.get("guide"):  # the one that learn has added
            program = as_program(program, config["guide"])
        guide = getattr(program, "guide", None)
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None and not args:
            raise FileError(
                f"{type(guide).__name__} makes its parameters when it first runs; pass load(folder, program=..., args=(the model's arguments,))."
            )
        if args:
            with torch.no_grad(), seeded(0), program.running():
                program.run_guide(*args) if program.has_guide else program.run_model(*args)
        program.load_parameters(state)
        return cls(
            program,
            pd.DataFrame(history),
            config["stopped"],
            Cost.restored(config["cost"]),
            config["objective"],
            config["notes"],
        )

    def posterior(self, *args: Any, draws: int = 1000, seed: int | None = None, **kwargs: Any) -> "Posterior":
        """Draws from the learned guide for these arguments."""
        from .registry import resolve
        from .tasks import infer

        return infer(self.program, *args, method=resolve("amortised", draws=draws), seed=seed, **kwargs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _rebuild(config: dict, folder: Path) -> Any:
    import ppl_dgm.models as zoo

    if config["program"] not in zoo.names():
        raise FileError(
            f"the program {config['program']!r} in {folder} is not one of the zoo; pass load(folder, program=your_program)."
        )
    if config["config"] is None:
        raise FileError(f"{folder} does not hold the constructor's arguments; pass load(folder, program=your_program).")
    try:
        return zoo.find(config["program"])(**config["config"])
    except TypeError as error:
        raise FileError(
            f"the arguments in {folder / 'config.json'} do not make a {config['program']} ({error}); restore the file."
        ) from None


@dataclass
class Posterior:
    """A posterior over latent sites given observations.

    Attributes:
        draws: {site: [chain, draw, *shape]}.
        exact: {site: distribution}, where the posterior is known in closed form.
        deterministic: {site: [chain, draw, *shape]}, computed from the draws.
        log_weights: [draw] or [draw, batch] unnormalised log importance weights in nats; None for unweighted draws.
        log_evidence: log p(observations), where the method gives it.
        stats: per-draw statistics of the sampler, {name: [chain, draw]}.
        cost: what it took.
        how: the method, in words.
        kind: `exact`, `asymptotic` (a convergent sampler), or `approximate`.
        program, arguments: the program, and its (args, kwargs) with the observations; a file does not hold them.
    """

    draws: dict[str, Tensor]
    exact: dict[str, Distribution] | None = None
    deterministic: dict[str, Tensor] = field(default_factory=dict)
    log_weights: Tensor | None = None
    log_evidence: Score | None = None
    stats: dict[str, Tensor] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    how: str = ""
    kind: str = "approximate"
    program: Any = field(default=None, repr=False)
    arguments: tuple[tuple, dict[str, Any]] | None = field(default=None, repr=False)
    _log_likelihood: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {list(value.shape)}" for name, value in self.draws.items())
        return f"Posterior({sites}; {self.kind}, {self.how})"

    def mean(self, site: str) -> Tensor:
        """Posterior mean of a site: closed form where known, else the (weighted) average of the draws."""
        if self.exact is not None and site in self.exact:
            try:
                mean = self.exact[site].mean
                if not mean.isnan().any():
                    return mean
            except NotImplementedError:
                pass
        if site not in self.draws:
            raise ProgramError(f"the posterior has no site {site!r}; it has {', '.join(self.draws)}.")
        draws = self.draws[site]
        values = draws.flatten(0, 1).double()  # [draw, *shape]
        dtype = (
            draws.dtype if draws.is_floating_point() else torch.get_default_dtype()
        )  # counts and categories have fractional means
        if self.log_weights is None:
            return values.mean(0).to(dtype)
        weights = torch.softmax(self.log_weights.double(), 0)  # [draw] or [draw, batch]
        return (values * weights.reshape(weights.shape + (1,) * (values.dim() - weights.dim()))).sum(0).to(dtype)

    def unweighted(self, seed: int | None = 0) -> "Posterior":
        """The same posterior with equal weights: as many draws, drawn again in proportion to their weights."""
        if self.log_weights is None:
            return self
        with seeded(seed):
            picked = torch.distributions.Categorical(
                logits=self.log_weights.mT if self.log_weights.dim() > 1 else self.log_weights
            )
            rows = picked.sample((len(self.log_weights),))  # [draw] or [draw, batch]

        def again(values: Tensor) -> Tensor:
            values = values.flatten(0, 1)
            index = rows.reshape(rows.shape + (1,) * (values.dim() - rows.dim())).expand(values.shape)
            return values.gather(0, index)[None]

        drawn = {name: again(value) for name, value in self.draws.items()}
        computed = {name: again(value) for name, value in self.deterministic.items()}
        plain = replace(
            self, draws=drawn, deterministic=computed, log_weights=None, stats={}, how=f"{self.how}, resampled"
        )
        known = self._log_likelihood
        if known is not None and all(v.shape[2 : 1 + rows.dim()] == rows.shape[1:] for v in known.values()):
            plain._log_likelihood = {name: again(value) for name, value in known.items()}
        return plain

    def summary(self, **kwargs: Any) -> pd.DataFrame:
        """ArviZ's table: mean, sd, interval, MCSE, bulk and tail ESS, rank-normalised R-hat; deterministic sites too.

        Of weighted draws, the ESS is (sum w)^2 / sum w^2 and the MCSE of the mean sqrt(sum w^2 (x - mean)^2) / sum w.

        Arguments:
            **kwargs: go to `arviz.summary`.
        """
        from .arviz_groups import summary

        return summary(self, **kwargs)

    def diagnose(self) -> list[str]:
        """What is wrong, one sentence each with what to try; empty when nothing was found."""
        from .inference.diagnostics.diagnosis import diagnose

        return diagnose(self)

    def to_arviz(self, *, predictive: bool = False, log_likelihood: bool = False, seed: int | None = 0) -> Any:
        """An ArviZ object (`InferenceData` of ArviZ 0.x, `DataTree` of 1.x).

        Groups: posterior (deterministic sites included), sample_stats; where the posterior knows its program,
        observed_data; log_likelihood where it has been computed; the rest on request. Weighted draws are resampled,
        since ArviZ knows no weights (see `unweighted`).

        Arguments:
            predictive: draw the observations anew for the group posterior_predictive.
            log_likelihood: compute that group.
            seed: of what is drawn.
        """
        from .arviz_groups import to_arviz

        return to_arviz(self, predictive, log_likelihood, seed)

    # -- against the observations --------------------------------------------------------------------------------------

    @property
    def log_likelihood(self) -> dict[str, Tensor]:
        """log p(y_i | z) of each observation at each draw, {observed site: [chain, draw, *batch]}, in nats.

        Computed when first asked for, and kept; sites that were summed out are summed out here too, as
        `ppl_dgm.inference.diagnostics.pointwise` says.

        Raises:
            ProgramError: the posterior was loaded from a file without it, and knows no program.
            TaskUnavailable: summed-out sites tie all observations together.
        """
        if self._log_likelihood is None:
            from .inference.diagnostics.pointwise import pointwise_log_likelihood

            self._log_likelihood = pointwise_log_likelihood(self)
        return self._log_likelihood

    @property
    def has_log_likelihood(self) -> bool:
        """Whether the log likelihood has been computed."""
        return self._log_likelihood is not None

    def keep_log_likelihood(self, values: dict[str, Tensor] | None) -> None:
        """Take values computed elsewhere, {observed site: [chain, draw, *batch]}; None forgets those that there are."""
        self._log_likelihood = values

    def loo(self, site: str | None = None, **kwargs: Any) -> Any:
        """Leave-one-out cross-validation by ArviZ's PSIS-LOO: sum_i log p(y_i | the other observations), in nats.

        Two programs for the same data are compared by `arviz.compare({"a": first.loo(), "b": second.loo()})`.

        Arguments:
            site: the observed site; by default the observations of all of them.
            **kwargs: go to `arviz.loo`; `pointwise` is True unless given.

        Returns:
            ArviZ's ELPDData, with `elpd_loo`, `se`, `p_loo`, `loo_i` and `pareto_k`. Observations whose k is too large
            for the estimate to be trusted are named in a warning.

        Source: Vehtari, Gelman and Gabry (2017).
        """
        from .inference.diagnostics.cross_validation import loo

        return loo(self, site, **kwargs)

    def waic(self, site: str | None = None) -> "Score":
        """The widely applicable information criterion of each observation, on the scale of `loo`, in nats.

            log mean_s p(y_i | z_s) - var_s log p(y_i | z_s)

        `loo` is more robust and knows when it fails.

        Source: Watanabe (2010).
        """
        from .inference.diagnostics.cross_validation import waic

        return waic(self, site)

    def check(self, statistic: Any = None, *, site: str | None = None, draws: int = 1000, seed: int | None = 0) -> Any:
        """A posterior predictive check: replicated data against the observed; see `inference.diagnostics.predictive_checks`."""
        from .inference.diagnostics.predictive_checks import predictive_check

        return predictive_check(self, statistic, site=site, draws=draws, seed=seed)

    def predict(self, *args: Any, seed: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
        """Posterior predictive draws of the observed and deterministic sites, {site: [chain * draw, *shape]}.

        Raises:
            ProgramError: the posterior was loaded from a file and does not know its program; set `.program`.
        """
        if self.program is None:
            raise ProgramError("this posterior does not know its program; set posterior.program = your_program.")
        from .tasks import predict

        return predict(self, *args, seed=seed, **kwargs)

    def save(self, folder: str | Path) -> None:
        """Write `posterior.safetensors` (draws, weights, statistics, parameters of closed forms, and the log likelihood
        where it has been computed) and notes in the same file; the program and its arguments are not in it.
        """
        from .posterior_files import write_posterior

        write_posterior(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Posterior":
        """Read what `save` wrote.

        Raises:
            FileError: the file is missing or damaged.
        """
        from .posterior_files import read_posterior

        return read_posterior(folder)
