"""Running a program once with every site's value marked, so that each site knows its direct parents."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..randomness import seeded
from .constants import Parameter, copied, input_leaves
from .provenance import Provenance, mark, sources, unmark

__all__ = [
    "OPAQUE",
    "Record",
    "Recording",
    "Replay",
    "base_name",
    "is_subsample",
    "log_prob",
    "record",
    "state",
]

OPAQUE = object()
_CACHES = {"_inv", "_cached_x_y", "_validate_args", "_backward_hooks", "_forward_hooks"}


@dataclass
class Record:
    """One site of one run.

    Attributes:
        name, kind, fn, value, frames, infer, mask, scale: as in Pyro's trace.
        parents: names that its distribution (a deterministic site: its value) comes from; `Region` for
            positions in an input.
        held: where an observed value itself comes from.
    """

    name: str
    kind: str
    fn: Any
    value: Tensor
    frames: tuple
    infer: dict
    mask: Any
    scale: Any
    held: frozenset = frozenset()
    parents: frozenset = frozenset()


@dataclass
class Recording:
    """One run: its sites in order, the subsampled indices, and what escaped from torch."""

    sites: dict[str, Record] = field(default_factory=dict)
    indices: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] = field(default_factory=dict)
    escaped: set = field(default_factory=set)
    inputs: dict[str, Tensor] = field(default_factory=dict)


def is_subsample(fn: Any) -> bool:
    """Whether a sample statement is a plate's choice of indices."""
    return type(fn).__name__ == "_Subsample"


def base_name(fn: Any) -> str:
    """The distribution's own name, without the wrappers of `.to_event`, `.expand` and `.mask`."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


class _Recorder(Messenger):
    """Writes each site down and marks its value with its own name, in place of all that it was computed
    from.
    """

    def __init__(self, into: Recording) -> None:
        super().__init__()
        self.into = into

    def _pyro_post_sample(self, msg: Any) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        for frame in msg["cond_indep_stack"]:
            self.into.frames.setdefault(frame.name, frame)
        if is_subsample(fn):
            self.into.indices[name] = value
            return
        if not isinstance(value, Tensor):
            return
        with torch._C.DisableTorchFunctionSubclass():
            tagged = value.detach().clone() if not value.requires_grad else value.clone()
        record = Record(
            name,
            _kind(msg),
            fn,
            tagged,
            tuple(msg["cond_indep_stack"]),
            msg["infer"],
            msg["mask"],
            msg["scale"],
        )
        record.held = sources(value) if record.kind in ("observed", "deterministic") else frozenset()
        mark(tagged, [name])
        msg["value"] = tagged
        self.into.sites[name] = record

    def _pyro_post_param(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and not sources(msg["value"]):
            mark(msg["value"], [msg["name"].partition("$$$")[0]])


def _kind(msg: Any) -> str:
    if type(msg["fn"]).__name__ == "Unit" or base_name(msg["fn"]) == "Unit":
        return "factor"
    if msg["infer"].get("_deterministic"):
        return "deterministic"
    return "observed" if msg["is_observed"] else "latent"


def record(
    program: Any,
    story: Callable,
    args: tuple,
    kwargs: dict,
    known: dict[str, Parameter],
    seed: int,
    values: dict[str, Tensor] | None = None,
) -> Recording:
    """Run a model or a guide under provenance.

    Arguments:
        program: whose arguments these are.
        story: what to run.
        known: parameters, marked for the run.
        seed: of the run.
        values: sites that take these values instead of drawing.
    """
    args, kwargs = copied(args, kwargs)
    into = Recording(inputs=input_leaves(program, args, kwargs))
    provenance = Provenance()
    marked = [(tensor, node.name) for node in known.values() for tensor in node.tensors]
    try:
        for tensor, name in marked:
            mark(tensor, [name])
        for name, tensor in into.inputs.items():
            provenance.register(name, tensor)
        with seeded(seed), pyro.validation_enabled(False), torch.no_grad(), provenance:
            with Replay(values or {}), _Recorder(into):
                story(*args, **kwargs)
            into.escaped = set(provenance.escaped)
            for site in into.sites.values():
                site.parents = _parents(site) - {site.name}
    finally:
        for tensor, _ in marked:
            unmark(tensor)
    return into


class Replay(Messenger):
    """Gives sites the values that it holds; deterministic sites keep what they compute."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["infer"].get("_deterministic") and type(msg["fn"]).__name__ != "Unit":
            msg["value"], msg["done"] = self.values[msg["name"]], True


def _parents(site: Record) -> frozenset:
    """Where the site's density comes from; where it has none, all that its distribution holds."""
    around = sources([part for part in (site.mask, site.scale) if isinstance(part, Tensor)])
    if site.kind == "deterministic":
        return site.held | around
    try:
        return sources(site.fn.log_prob(site.value)) | around
    except (NotImplementedError, RuntimeError, ValueError, AttributeError, TypeError, IndexError, KeyError):
        return sources(list(state(site.fn))) | around


def log_prob(fn: Any, value: Tensor) -> Tensor | None:
    """The log density, or None where there is none to be had."""
    try:
        return fn.log_prob(value)
    except Exception:  # whatever a distribution raises at a value from elsewhere
        return None


def state(thing: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """The tensors and numbers that an object (a distribution) holds, in a fixed order; OPAQUE for a
    function, which may hold anything.
    """
    seen = set() if seen is None else seen
    if isinstance(thing, (Tensor, bool, int, float, complex, str)):
        yield thing
    if thing is None or isinstance(thing, (Tensor, bool, int, float, complex, str, type)) or id(thing) in seen:
        return
    seen.add(id(thing))
    parts: list[Any] = []
    if isinstance(thing, (list, tuple)):
        parts = list(thing)
    elif isinstance(thing, dict):
        parts = list(thing.values())
    elif inspect.isroutine(thing):
        yield OPAQUE
    elif hasattr(thing, "__dict__"):
        parts = [value for key, value in vars(thing).items() if key not in _CACHES]
    for part in parts:
        yield from state(part, seen)
