"""Structures made from others: plates written out, and interventions."""

from itertools import product
from typing import Any

import networkx as nx

from ..errors import ProgramError

__all__ = ["intervene", "unroll"]


def intervene(structure: Any, nodes: list[str]) -> Any:
    """The structure with every edge into `nodes` cut; they become inputs, since they are set from outside."""
    graph = structure.graph.copy()
    for node in nodes:
        graph.remove_edges_from(list(graph.in_edges(node)))
        graph.nodes[node].update(kind="input", intervened=True)
    name = f"{structure.name} with do({', '.join(nodes)})"
    return type(structure)(
        name, graph, structure.plates, structure.subsamples, structure.symbolic, None, list(structure.notes)
    )


def unroll(structure: Any, copies: dict[str, int]) -> Any:
    """The structure with plates written out, x[i] for the copies of x, x[i,j] in two plates."""
    for plate, n in copies.items():
        if plate not in structure.plates:
            known = ", ".join(structure.plates) or "none"
            raise ProgramError(f"{structure.name!r} has no plate {plate!r}; it has {known}.")
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise ProgramError(f"unroll: plate {plate!r} takes a positive number of copies, but {n!r} was given.")

    def rest(plates: dict[str, Any]) -> dict[str, Any]:
        return {plate: size for plate, size in plates.items() if plate not in copies}

    guide = None if structure.guide_graph is None else _unrolled(structure.guide_graph, copies)
    symbolic = frozenset(plate for plate in structure.symbolic if plate not in copies)
    return type(structure)(
        structure.name,
        _unrolled(structure.graph, copies),
        rest(structure.plates),
        rest(structure.subsamples),
        symbolic,
        guide,
        list(structure.notes),
    )


def _unrolled(graph: nx.DiGraph, copies: dict[str, int]) -> nx.DiGraph:
    result = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        left = tuple(plate for plate in data["plates"] if plate not in copies)
        for index in _indices(data["plates"], copies):
            result.add_node(_copy(node, index), **{**data, "plates": left, "copy_of": node})
    for parent, child, data in graph.edges(data=True):
        shared = set(graph.nodes[parent]["plates"]) & set(graph.nodes[child]["plates"]) & copies.keys()
        for above in _indices(graph.nodes[parent]["plates"], copies):
            for below in _indices(graph.nodes[child]["plates"], copies):
                if all(above[plate] == below[plate] for plate in shared):
                    result.add_edge(_copy(parent, above), _copy(child, below), **data)
    return result


def _indices(plates: tuple[str, ...], copies: dict[str, int]) -> list[dict[str, int]]:
    mine = [plate for plate in plates if plate in copies]
    return [dict(zip(mine, index)) for index in product(*(range(copies[plate]) for plate in mine))]


def _copy(node: str, index: dict[str, int]) -> str:
    return f"{node}[{','.join(map(str, index.values()))}]" if index else node
