"""The distributions of sites that depend on nothing, with their numbers: Normal(0, 1)."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.program import as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.tracing import sites

__all__ = ["constant_distributions"]


def constant_distributions(program: Any, *args: Any, **kwargs: Any) -> dict[str, str]:
    """{site: "Normal(0, 1)"} for the sites all of whose arguments are one number each (a covariance: the
    identity).

    The program runs once. Which of its sites depend on nothing is for the caller to know.
    """
    program = as_program(program)
    with program.running(), torch.no_grad(), seeded(0):
        trace = poutine.trace(program.run_model).get_trace(*args, **kwargs)
    found = {name: _written(node["fn"]) for name, node in sites(trace).items()}
    return {name: text for name, text in found.items() if text}


def _written(fn: Any) -> str:
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "Independent",
        "ExpandedDistribution",
        "MaskedDistribution",
    ):
        fn = fn.base_dist
    held = {name: fn.__dict__.get(name, fn.__dict__.get(f"_{name}")) for name in fn.arg_constraints}
    if not any(isinstance(value, Tensor) for value in held.values()):  # a Beta keeps its numbers in a Dirichlet
        held = {name: getattr(fn, name) for name in fn.arg_constraints}
    if "covariance_matrix" in held and "scale_tril" in held:  # one matrix by three names
        held = {"loc": held["loc"], "covariance_matrix": fn.covariance_matrix}
    values = [_number(value) for value in held.values() if isinstance(value, Tensor)]
    if not values or None in values:
        return ""
    return f"{type(fn).__name__}({', '.join(str(value) for value in values)})"


def _number(value: Tensor) -> str | None:
    """The one number that a tensor holds; an identity matrix counts as 1."""
    if value.dim() >= 2 and value.shape[-1] == value.shape[-2] and value.shape[-1] > 1:
        identity = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        return "1" if torch.equal(value, identity.expand_as(value)) else None
    if not value.numel() or not bool((value == value.reshape(-1)[0]).all()):
        return None
    return f"{value.reshape(-1)[0].item():.4g}"
