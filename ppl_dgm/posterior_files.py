"""A Posterior in one safetensors file: draws, weights, statistics, log likelihood and the parameters of closed forms."""

from pathlib import Path
from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from .errors import FileError, ProgramError
from .files import load_tensors, save_tensors
from .results import Cost, Posterior, Score

__all__ = ["read_posterior", "write_posterior"]

_NAME = "posterior.safetensors"


def write_posterior(posterior: Posterior, folder: str | Path) -> None:
    """Write `posterior.safetensors` into a folder; see `Posterior.save`."""
    groups = {"draws": posterior.draws, "deterministic": posterior.deterministic, "stats": posterior.stats}
    if posterior.has_log_likelihood:
        groups["log_likelihood"] = posterior.log_likelihood
    tensors = {f"{group}/{name}": value for group, values in groups.items() for name, value in values.items()}
    if posterior.log_weights is not None:
        tensors["log_weights"] = posterior.log_weights
    notes: dict[str, Any] = {"format": 1, "how": posterior.how, "kind": posterior.kind, "cost": vars(posterior.cost)}
    evidence = posterior.log_evidence
    if evidence is not None:
        tensors["log_evidence"] = evidence.value
        notes["log_evidence"] = {"kind": evidence.kind, "how": evidence.how}
        if evidence.stderr is not None:
            tensors["log_evidence_stderr"] = evidence.stderr
        tensors |= {f"log_evidence_stats/{name}": value for name, value in evidence.stats.items()}
    notes["exact"] = {k: _describe(v, f"exact/{k}", tensors) for k, v in (posterior.exact or {}).items()}
    save_tensors(Path(folder) / _NAME, tensors, notes)


def read_posterior(folder: str | Path) -> Posterior:
    """What `write_posterior` wrote; see `Posterior.load`."""
    path = Path(folder) / _NAME
    tensors, notes = load_tensors(path)
    if not isinstance(notes, dict) or "kind" not in notes:
        raise FileError(f"{path} holds tensors but no posterior; was it written by Posterior.save?")

    def group(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}

    evidence = None
    if "log_evidence" in notes:
        said = notes["log_evidence"]
        stderr, stats = tensors.get("log_evidence_stderr"), group("log_evidence_stats")
        evidence = Score(tensors["log_evidence"], said["kind"], stderr, said["how"], stats)
    exact = {k: _restore(v, f"exact/{k}", tensors) for k, v in notes["exact"].items()} or None
    posterior = Posterior(
        group("draws"), exact, group("deterministic"), tensors.get("log_weights"), evidence, group("stats"),
        Cost.restored(notes["cost"]), notes["how"], notes["kind"],
    )  # fmt: skip
    posterior.keep_log_likelihood(group("log_likelihood") or None)
    return posterior


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
