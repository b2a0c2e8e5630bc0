"""Reading a Pyro trace: which nodes are sites, which of them are latent, and where the plate over the data stands."""

from typing import Any

from torch import Tensor

__all__ = ["data_dim", "is_site", "latent_sites", "sites"]


def is_site(node: dict) -> bool:
    """Whether a node is a random or deterministic variable (not a plate's subsampling, a factor or a parameter)."""
    return (
        node["type"] == "sample"
        and type(node["fn"]).__name__ not in ("_Subsample", "Unit")
        and isinstance(node["value"], Tensor)
    )


def sites(trace: Any) -> dict[str, dict]:
    """{name: node} of the random and deterministic variables, in the order in which they ran."""
    return {name: node for name, node in trace.nodes.items() if is_site(node)}


def latent_sites(trace: Any) -> dict[str, dict]:
    """{name: node} of what is drawn and not observed."""
    return {name: node for name, node in sites(trace).items() if not node["is_observed"]}


def data_dim(node: dict) -> int | None:
    """The batch dimension (negative) that the plate `data` holds at a site, or None where the site is outside it."""
    return next((frame.dim for frame in node["cond_indep_stack"] if frame.name == "data"), None)
