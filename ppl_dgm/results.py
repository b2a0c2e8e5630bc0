"""What the verbs return: Score, Fit and Posterior; how they are saved, loaded and handed to ArviZ."""

import inspect
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro.distributions as dist
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
    """

    value: Tensor
    kind: str
    stderr: Tensor | None = None
    how: str = ""

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
        path: which path ran: "recorded" (the pure tensor graph), "python" (Pyro's handlers at each step) or "closed form".
    """

    steps: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    gradients: int = 0
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    warmup_gradients: int = 0
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
        return replace(
            self, draws=drawn, deterministic=computed, log_weights=None, stats={}, how=f"{self.how}, resampled"
        )

    def summary(self, **kwargs: Any) -> pd.DataFrame:
        """ArviZ's table: mean, sd, interval, MCSE, bulk and tail ESS, rank-normalised R-hat."""
        import arviz

        return arviz.summary(self.to_arviz(), **kwargs)

    def diagnose(self) -> list[str]:
        """What is wrong, one sentence each with what to try; empty when nothing was found."""
        from .inference.diagnosis import diagnose

        return diagnose(self)

    def to_arviz(self) -> Any:
        """An ArviZ object (`InferenceData` of ArviZ 0.x, `DataTree` of 1.x) with the groups posterior and sample_stats.

        Weighted draws are resampled, since ArviZ knows no weights (see `unweighted`).
        """
        import arviz

        if self.log_weights is not None:
            return self.unweighted().to_arviz()
        groups = {"posterior": {k: _numpy(v) for k, v in self.draws.items()}}
        if self.stats:
            groups["sample_stats"] = {k: _numpy(v) for k, v in self.stats.items()}
        if "data" in inspect.signature(arviz.from_dict).parameters:  # ArviZ 1.x takes one dictionary of groups
            return arviz.from_dict(groups)
        return arviz.from_dict(**groups)  # type: ignore[arg-type]

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
        """Write `posterior.safetensors` (draws, weights, statistics, parameters of closed forms) and notes in the same file."""
        tensors = {f"draws/{k}": v for k, v in self.draws.items()} | {
            f"deterministic/{k}": v for k, v in self.deterministic.items()
        }
        tensors |= {f"stats/{k}": v for k, v in self.stats.items()}
        if self.log_weights is not None:
            tensors["log_weights"] = self.log_weights
        notes: dict[str, Any] = {"format": 1, "how": self.how, "kind": self.kind, "cost": vars(self.cost)}
        if self.log_evidence is not None:
            tensors["log_evidence"] = self.log_evidence.value
            notes["log_evidence"] = {"kind": self.log_evidence.kind, "how": self.log_evidence.how}
            if self.log_evidence.stderr is not None:
                tensors["log_evidence_stderr"] = self.log_evidence.stderr
        notes["exact"] = {k: _describe(v, f"exact/{k}", tensors) for k, v in (self.exact or {}).items()}
        save_tensors(Path(folder) / "posterior.safetensors", tensors, notes)

    @classmethod
    def load(cls, folder: str | Path) -> "Posterior":
        """Read what `save` wrote.

        Raises:
            FileError: the file is missing or damaged.
        """
        path = Path(folder) / "posterior.safetensors"
        tensors, notes = load_tensors(path)
        if not isinstance(notes, dict) or "kind" not in notes:
            raise FileError(f"{path} holds tensors but no posterior; was it written by Posterior.save?")

        def group(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}

        evidence = None
        if "log_evidence" in notes:
            evidence = Score(
                tensors["log_evidence"],
                notes["log_evidence"]["kind"],
                tensors.get("log_evidence_stderr"),
                notes["log_evidence"]["how"],
            )
        exact = {k: _restore(v, f"exact/{k}", tensors) for k, v in notes["exact"].items()} or None
        return cls(
            group("draws"), exact, group("deterministic"), tensors.get("log_weights"), evidence, group("stats"),
            Cost.restored(notes["cost"]), notes["how"], notes["kind"],
        )  # fmt: skip


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


# closed forms that a file can hold: name -> the parameters that rebuild it
_STORED = {
    "Normal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Categorical": ("logits",),
    "OneHotCategorical": ("logits",),
    "Bernoulli": ("logits",),
    "Beta": ("concentration1", "concentration0"),
    "Gamma": ("concentration", "rate"),
    "Dirichlet": ("concentration",),
}


def _describe(distribution: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    events = 0
    while type(distribution).__name__ == "Independent":
        events += distribution.reinterpreted_batch_ndims
        distribution = distribution.base_dist
    family = type(distribution).__name__
    if family not in _STORED:
        raise ProgramError(
            f"a posterior of family {family} cannot be written to a file; set posterior.exact = None to save its draws alone."
        )
    for name in _STORED[family]:
        tensors[f"{prefix}/{name}"] = getattr(distribution, name)
    return {"family": family, "event_dims": events}


def _restore(description: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> Distribution:
    family, events = description["family"], description["event_dims"]
    if family not in _STORED:
        raise FileError(f"the file names the distribution {family!r}, which this version cannot rebuild.")
    built = getattr(dist, family)(**{name: tensors[f"{prefix}/{name}"] for name in _STORED[family]})
    return built.to_event(events) if events else built
