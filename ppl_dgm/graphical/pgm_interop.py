"""Structures to and from pgmpy, where it is installed."""

import importlib
from typing import Any

import networkx as nx

from ..errors import ProgramError, TaskUnavailable

__all__ = ["from_pgmpy", "to_pgmpy"]


def to_pgmpy(structure: Any) -> Any:
    """The variables and their edges as a pgmpy `DAG`; latent sites become its latents.

    Raises:
        TaskUnavailable: pgmpy is not installed, or factors leave no directed graph over the variables alone.
    """
    try:
        DAG = importlib.import_module("pgmpy.base").DAG
    except ImportError:
        raise TaskUnavailable(
            "to_pgmpy needs pgmpy, which is not installed: pip install pgmpy; "
            ".graph is a networkx DiGraph that works without it."
        ) from None
    factors = structure.kind("factor")
    if factors:
        raise TaskUnavailable(
            f"pgmpy's DAG has no factors, but there is {factors[0]!r}; use .moral(), a networkx Graph."
        )
    graph = structure.graph.subgraph(structure.variables)
    dag = DAG(list(graph.edges), latents=set(structure.kind("latent")))
    dag.add_nodes_from(graph.nodes)
    return dag


def from_pgmpy(cls: Any, network: Any) -> Any:
    """A structure with the nodes and edges of a network; its `latents`, if it names any, are latent, and
    the others observed.

    Raises:
        ProgramError: the network is not an acyclic directed graph.
    """
    if not isinstance(network, nx.DiGraph) or not nx.is_directed_acyclic_graph(network):
        raise ProgramError(
            "from_pgmpy takes an acyclic directed graph (a pgmpy DAG or network, or a networkx DiGraph)."
        )
    latents = getattr(network, "latents", None)
    graph = nx.DiGraph()
    for node in nx.topological_sort(network):
        kind = "observed" if latents and node not in latents else "latent"
        graph.add_node(
            str(node),
            kind=kind,
            dist="",
            shape=(),
            event_shape=(),
            support="",
            discrete=True,
            plates=(),
            size=1,
            markov=False,
            enumerated=False,
            masked=False,
            sometimes=False,
        )
    graph.add_edges_from(((str(u), str(v)) for u, v in network.edges), found_by="provenance")
    return cls(type(network).__name__, graph)
