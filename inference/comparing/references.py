"""References: what a posterior's moments are, how well that is known, and draws from it where there are some."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import torch
from torch import Tensor

from ppl_dgm.errors import FileError, TaskUnavailable
from ppl_dgm.files import load_json, save_json
from ppl_dgm.inference.comparing.distances import thinned
from ppl_dgm.inference.comparing.scalars import MOMENTS, listed_moments
from ppl_dgm.results import Posterior, Score

__all__ = ["Reference", "column_weights", "finite_json", "flat_coordinates", "weighted_moments", "with_infinities"]

_DRAWS = 4000  # draws that a reference keeps, and that are made of a program that can be run forward
_FORMAT = "ppl-dgm reference 1"


@dataclass(frozen=True)
class Reference:
    """A posterior's first two moments, elementwise, with their Monte Carlo standard errors (MCSE).

    Attributes:
        name: of the posterior.
        how: where the numbers come from, in words.
        mean, square: {site: E[x], E[x^2]}.
        variance, square_variance: {site: Var[x], Var[x^2]}.
        mcse_mean, mcse_square: {site: standard errors of mean and square}; zero where they are exact.
        quantiles: {site: {probability: quantile}}, exact, for distributions without moments.
        draws: {site: [draw, *shape]}, near to independent; None where there are none.
        log_evidence: log p(observations) with its kind, where known.
        findings: what `diagnose` said of the run that it comes from.
    """

    name: str
    how: str
    mean: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)
    variance: dict[str, Tensor] = field(default_factory=dict)
    square_variance: dict[str, Tensor] = field(default_factory=dict)
    mcse_mean: dict[str, Tensor] = field(default_factory=dict)
    mcse_square: dict[str, Tensor] = field(default_factory=dict)
    quantiles: dict[str, dict[float, Tensor]] = field(default_factory=dict)
    draws: dict[str, Tensor] | None = None
    log_evidence: Score | None = None
    findings: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{site: shape of its value}."""
        known = {site: tuple(value.shape[1:]) for site, value in (self.draws or {}).items()}
        known |= {site: tuple(next(iter(table.values())).shape) for site, table in self.quantiles.items()}
        return known | {site: tuple(value.shape) for site, value in self.mean.items()}

    @property
    def exact(self) -> bool:
        """Whether the moments have no Monte Carlo error."""
        errors = [*self.mcse_mean.values(), *self.mcse_square.values()]
        return bool(self.mean) and not any(bool((error != 0).any()) for error in errors)

    def __repr__(self) -> str:
        shown = ", ".join(f"{site} {list(shape)}" for site, shape in self.shapes.items())
        return f"Reference({self.name!r}: {shown}; {self.how})"

    # -- where it comes from -------------------------------------------------------------------------------------------

    @classmethod
    def from_posterior(cls, posterior: Posterior, name: str = "") -> "Reference":
        """The moments of draws, with the MCSE of chains by ArviZ's effective sample size (weighted ones by their
        weights), or of closed forms, where the posterior has them.
        """
        parts: dict[str, Any] = {key: {} for key in MOMENTS}
        for site, draws in posterior.draws.items():
            for key, value in _moments(posterior, site, draws).items():
                parts[key][site] = value
        plain = posterior.unweighted()
        kept = {site: thinned(value.detach().cpu().flatten(0, 1), _DRAWS) for site, value in plain.draws.items()}
        findings = posterior.diagnose() if posterior.kind != "exact" else []
        return cls(
            name or "a posterior", posterior.how or "draws", **parts, draws=kept or None,
            log_evidence=posterior.log_evidence, findings=findings,
        )  # fmt: skip

    @classmethod
    def from_target(cls, target: Any) -> "Reference":
        """What a target knows: moments, quantiles, evidence, and exact independent draws where it can make them.

        Arguments:
            target: a `ppl_dgm.inference.targets.Target`, or an object with its attributes.
        """
        parts: dict[str, Any] = {key: _double(getattr(target, key, {})) for key in MOMENTS}
        for key, like in (("mcse_mean", "mean"), ("mcse_square", "square")):
            for site, value in parts[like].items():
                parts[key].setdefault(site, torch.zeros_like(value))
        try:
            draws = {site: value.detach().cpu() for site, value in target.sample(_DRAWS, seed=0).items()}
        except (AttributeError, TaskUnavailable):
            draws = None
        quantiles = {site: _double(table) for site, table in getattr(target, "quantiles", {}).items()}
        evidence = getattr(target, "log_evidence", None)
        if evidence is not None and not isinstance(evidence, Score):
            evidence = Score(torch.as_tensor(evidence, dtype=torch.float64), "exact", how="closed form")
        made = getattr(target, "made", {})
        how = f"a stored long run ({_shortly(made)})" if made else "closed form"
        return cls(str(target.name), how, **parts, quantiles=quantiles, draws=draws, log_evidence=evidence)

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote, or an entry of a posteriordb folder (names, means and mean squares with their MCSE).

        Raises:
            FileError: the file is missing, damaged, or neither of the two.
        """
        content = load_json(path)
        if isinstance(content, dict) and content.get("format") == _FORMAT:
            try:
                return cls.restored(with_infinities(content))
            except (KeyError, TypeError, ValueError) as error:
                raise FileError(f"{path} is a damaged reference ({error!r}); save it again.") from None
        if isinstance(content, dict) and {"mean", "mean_squared"} <= content.keys():
            try:
                return _from_posteriordb(content)
            except (KeyError, TypeError, ValueError) as error:
                raise FileError(f"{path} is a damaged entry of posteriordb ({error!r}); fetch it again.") from None
        raise FileError(
            f"{path} is neither a reference that Reference.save wrote nor an entry of posteriordb with 'mean' and "
            "'mean_squared'; give one of these."
        )

    def save(self, path: str | Path, draws: int = 0) -> None:
        """Write a JSON file, whole or not at all.

        Arguments:
            draws: how many draws to write besides the moments.
        """
        content = self.plain()
        if draws and self.draws is not None:
            content["draws"] = {site: thinned(value, draws).tolist() for site, value in self.draws.items()}
        save_json(path, finite_json(content))

    def plain(self) -> dict[str, Any]:
        """All but the draws, as JSON has it."""
        content: dict[str, Any] = {"format": _FORMAT, "name": self.name, "how": self.how}
        content |= {key: {s: v.tolist() for s, v in getattr(self, key).items()} for key in MOMENTS}
        content["quantiles"] = {s: {str(p): q.tolist() for p, q in t.items()} for s, t in self.quantiles.items()}
        if self.log_evidence is not None:
            score = self.log_evidence
            stderr = None if score.stderr is None else score.stderr.tolist()
            content["log_evidence"] = {
                "value": score.value.tolist(), "stderr": stderr, "kind": score.kind, "how": score.how,
            }  # fmt: skip
        return content | {"findings": self.findings}

    @classmethod
    def restored(cls, content: dict[str, Any]) -> "Reference":
        """The inverse of `plain`."""
        evidence = None
        if content.get("log_evidence"):
            stored = content["log_evidence"]
            stderr = None if stored["stderr"] is None else torch.tensor(stored["stderr"], dtype=torch.float64)
            value = torch.tensor(stored["value"], dtype=torch.float64)
            evidence = Score(value, stored["kind"], stderr, stored["how"])
        return cls(
            content["name"], content["how"], **{key: _double(content[key]) for key in MOMENTS},
            quantiles={s: {float(p): q for p, q in _double(t).items()} for s, t in content["quantiles"].items()},
            draws=_double(content["draws"]) if "draws" in content else None,
            log_evidence=evidence, findings=list(content["findings"]),
        )  # fmt: skip


def _double(values: dict[Any, Any]) -> dict[Any, Tensor]:
    return {site: torch.as_tensor(value, dtype=torch.float64).detach().cpu() for site, value in values.items()}


def _shortly(made: dict[str, Any]) -> str:
    """The method and its options, of the notes that a stored run keeps."""
    plain = [f"{key} {value}" for key, value in made.items() if isinstance(value, (str, int)) and len(str(value)) < 60]
    return ", ".join(plain[:4])


# -- moments -----------------------------------------------------------------------------------------------------------


def flat_coordinates(draws: Tensor) -> Tensor:
    """Draws [chain, draw, *shape] as [chain, draw, d], in double precision on the CPU."""
    return draws.detach().cpu().double().reshape(*draws.shape[:2], -1)


def weighted_moments(x: Tensor, log_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and MCSE of the mean of each column of x, [chain, draw, d] -> each [d].

    Of weighted draws the MCSE is sqrt(sum_s w_s^2 (x_s - mean)^2) with normalised weights; of chains, by ArviZ's
    effective sample size of the mean.

    Arguments:
        log_weights: [draw] or [draw, d], for chains in one row.
    """
    if log_weights is not None:
        flat = x.flatten(0, 1)
        weights = torch.softmax(log_weights, 0).reshape(len(flat), -1)  # [draw, 1 or d]
        mean = (weights * flat).sum(0)
        square_error = (flat - mean).square()
        return mean, (weights * square_error).sum(0), (weights * weights * square_error).sum(0).sqrt()
    mean, variance = x.mean((0, 1)), x.flatten(0, 1).var(0)
    if not bool(torch.isfinite(variance).all()) or x.shape[1] < 4:
        return mean, variance, torch.full_like(mean, math.nan)
    return mean, variance, torch.tensor([_mcse(column) for column in np.moveaxis(x.numpy(), 2, 0)]).to(mean)


def _mcse(column: np.ndarray) -> float:
    """Of one coordinate, [chain, draw]; zero where it never changes."""
    return float(arviz.mcse(column)) if np.ptp(column) > 0 else 0.0


def column_weights(posterior: Posterior, shape: tuple[int, ...]) -> Tensor | None:
    """The log weights of a site of that shape, [draw] or [draw, d], in double precision on the CPU."""
    if posterior.log_weights is None:
        return None
    weights = posterior.log_weights.detach().cpu().double()
    if weights.dim() == 1:
        return weights
    spread = weights.reshape(weights.shape + (1,) * (len(shape) + 1 - weights.dim()))
    return spread.expand(len(weights), *shape).reshape(len(weights), -1)


def _moments(posterior: Posterior, site: str, draws: Tensor) -> dict[str, Tensor]:
    """The moments of one site: of its closed form, if there is one, else of its draws."""
    shape = tuple(draws.shape[2:])
    x, weights = flat_coordinates(draws), column_weights(posterior, shape)
    mean, variance, mcse_mean = weighted_moments(x, weights)
    square, square_variance, mcse_square = weighted_moments(x.square(), weights)
    found = dict(zip(MOMENTS, (mean, square, variance, square_variance, mcse_mean, mcse_square), strict=True))
    found = {key: value.reshape(shape) for key, value in found.items()}
    known = (posterior.exact or {}).get(site)
    closed = None if known is None else _closed_form(known, shape)
    if closed is not None:
        zero = torch.zeros(shape, dtype=torch.float64)
        mean, variance = closed
        found |= {"mean": mean, "variance": variance, "square": variance + mean.square()}
        found |= {"mcse_mean": zero, "mcse_square": zero}
    return found


def _closed_form(distribution: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    try:
        mean, variance = distribution.mean.detach().cpu().double(), distribution.variance.detach().cpu().double()
    except (AttributeError, NotImplementedError):
        return None
    fits = tuple(mean.shape) == shape == tuple(variance.shape)
    return (mean, variance) if fits and bool((mean + variance).isfinite().all()) else None


# -- posteriordb -------------------------------------------------------------------------------------------------------


def _from_posteriordb(content: dict[str, Any]) -> Reference:
    tables = [
        dict(zip(table["names"], zip(table[value], table["mcse_mean"], strict=True), strict=True))
        for table, value in ((content["mean"], "mean_value"), (content["mean_squared"], "mean_squared_value"))
    ]
    how = str(content.get("source", "posteriordb"))
    return Reference(str(content.get("name", "posteriordb")), how, **listed_moments(*tables))  # type: ignore[arg-type]


# -- JSON --------------------------------------------------------------------------------------------------------------

_NOT_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def finite_json(value: Any) -> Any:
    """As JSON has it: numbers that are not finite become {"number": "nan"}."""
    if isinstance(value, dict):
        return {str(name): finite_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_json(item) for item in value]
    if isinstance(value, Tensor):
        return finite_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    return value


def with_infinities(value: Any) -> Any:
    """The inverse of `finite_json`."""
    if isinstance(value, dict):
        if value.keys() == {"number"}:
            return _NOT_NUMBERS[value["number"]]
        return {name: with_infinities(item) for name, item in value.items()}
    return [with_infinities(item) for item in value] if isinstance(value, list) else value
