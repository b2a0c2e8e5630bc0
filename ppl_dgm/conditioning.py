"""given=: values held fixed while a program runs forward, once it is certain that this is conditioning."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .errors import ProgramError, TaskUnavailable
from .tracing import sites

__all__ = ["Unobserve", "check_given", "fit_given"]

_RUNS = 8


class Unobserve(Messenger):
    """Draw what a program observes, too. Pyro's `uncondition` would also redraw deterministic sites, which a plate then repeats."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] or msg["infer"].get("_deterministic") or type(msg["fn"]).__name__ == "Unit":
            return
        msg["is_observed"], msg["value"], msg["done"] = False, None, False


def fit_given(given: dict[str, Tensor], first: dict[str, Tensor], n: int, stacked: bool) -> dict[str, Tensor]:
    """The given values in the shape and type of their sites.

    Arguments:
        given: {site: value}, one for each draw, or one for all.
        first: {site: value} of one run of the program.
        n: number of draws.
        stacked: one run gives one draw, so that n of them are stacked; else one run draws all n.

    Returns:
        {site: [n, *shape]} if stacked, else {site: value of the shape that the site has in one run}.

    Raises:
        ProgramError: there is no such site, or the value does not fit it.
    """
    fitted = {}
    for name, value in given.items():
        if name not in first:
            raise ProgramError(f"given: the program has no site {name!r}; it has {', '.join(first)}.")
        like = first[name]
        one = like.shape if stacked else like.shape[1:]
        whole = torch.Size((n, *like.shape)) if stacked else like.shape
        if value.shape not in (one, whole):
            raise ProgramError(
                f"given: site {name!r} takes a value of shape {tuple(one)}, or {tuple(whole)} for all {n} draws, not {tuple(value.shape)}."
            )
        cast = value.to(like.dtype)
        if not like.is_floating_point() and not torch.equal(cast.double(), value.double()):
            raise ProgramError(
                f"given: site {name!r} takes whole numbers, but {value.flatten()[0]:g} was given; round them."
            )
        fitted[name] = cast if value.shape == whole else cast.expand(whole)
    return fitted


def check_given(story: Callable, given: dict[str, Tensor], args: tuple, kwargs: dict) -> None:
    """Make sure that to fix these sites and to run the rest forward is to condition on them.

    That is so where the distribution of each given site depends on given sites alone. Dependence is followed through the tensors, and, for
    what leaves them (`.item()`, branches), looked for in repeated runs.

    Arguments:
        story: the model, nothing of it observed.
        given: {site: value}, each of the shape that the site has in one run.

    Raises:
        ProgramError: a value outside its site's support, or a site that is computed from others.
        TaskUnavailable: a given site depends on sites that are not given.
    """
    fixed = poutine.condition(story, given)
    with pyro.validation_enabled(False), _Examining(given):
        traces = [poutine.trace(fixed).get_trace(*args, **kwargs) for _ in range(_RUNS)]
    for name, ancestors in _ancestors(fixed, given, args, kwargs).items():
        if ancestors:
            raise _refusal(
                name,
                " and ".join(f"site {ancestor!r}" for ancestor in sorted(ancestors)) + ", which is not given",
            )
    for name in given:
        found = [_log_prob(trace, name) for trace in traces]
        if any(other is None or not torch.allclose(found[0], other, equal_nan=True) for other in found):  # type: ignore[arg-type]
            raise _refusal(name, "sites that are not given")


def _refusal(name: str, ancestors: str) -> TaskUnavailable:
    return TaskUnavailable(
        f"site {name!r} depends on {ancestors}, so running forward does not condition on it; "
        "use infer(...) for the posterior and .predict() for what follows from it."
    )


def _log_prob(trace: Any, name: str) -> Tensor | None:
    node = trace.nodes.get(name)
    return None if node is None else node["fn"].log_prob(node["value"])


class _Examining(Messenger):
    """Refuses a given value at its site, before anything is computed from it."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        super().__init__()
        self.given = given

    def _pyro_post_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.given and msg["infer"].get("_deterministic"):
            raise ProgramError(f"given: site {name!r} is computed from other sites; give those.")
        if name in self.given and not bool(msg["fn"].support.check(msg["value"]).all()):
            raise ProgramError(
                f"given: the value of site {name!r} lies outside its support, {msg['fn'].support}; give one inside it."
            )


class _Tagging(Messenger):
    """Marks the value of each site that is drawn with its name, which then follows it through torch."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        super().__init__()
        self.given = given

    def _pyro_post_sample(self, msg: Any) -> None:
        drawn = msg["name"] not in self.given and not msg["infer"].get("_deterministic")
        if drawn and type(msg["fn"]).__name__ != "_Subsample" and isinstance(msg["value"], Tensor):
            msg["value"] = ProvenanceTensor(detach_provenance(msg["value"]), frozenset({msg["name"]}))


def _ancestors(fixed: Callable, given: dict[str, Tensor], args: tuple, kwargs: dict) -> dict[str, frozenset]:
    """{given site: the drawn sites on which its log density depends}; empty where torch cannot carry the names along."""
    try:
        with pyro.validation_enabled(False), _Tagging(given):
            trace = poutine.trace(fixed).get_trace(*args, **kwargs)
            found = sites(trace)
            return {name: get_provenance(found[name]["fn"].log_prob(found[name]["value"])) for name in given}
    except (TypeError, RuntimeError, NotImplementedError, AttributeError):
        return {}
