"""The symbolic circuit: a graph of input, sum and product nodes, checked for what makes its queries exact."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from ...errors import ProgramError

__all__ = ["CircuitStructure", "check_structure", "leaf_log_probs"]

KINDS = ("input", "sum", "product")


@dataclass(frozen=True, eq=False)
class CircuitStructure:
    """A circuit that has passed the checks.

    Attributes:
        graph: the DAG; edges point from a node to its children.
        root: the node whose value is p(x).
        order: every node after all of its children.
        scopes: node -> the variables under it.
        variables: D; the root's scope is {0, ..., D - 1}.
        values: K; each variable takes the values 0 to K - 1.
        overlap: why the circuit is not certified to be deterministic, naming a sum node; None where it is.
    """

    graph: nx.DiGraph
    root: Hashable
    order: tuple[Hashable, ...]
    scopes: dict[Hashable, frozenset[int]]
    variables: int
    values: int
    overlap: str | None

    @property
    def deterministic(self) -> bool:
        """Whether at most one child of each sum node is positive for any x, so that max-product is exact."""
        return self.overlap is None


def check_structure(graph: nx.DiGraph, values: int | None = None) -> CircuitStructure:
    """Check that a graph is a smooth and decomposable circuit, whose marginals take one pass.

    A node has the attribute `kind`:

    - "input": a categorical distribution of one `variable` (0 to D - 1), given by `value` (the indicator of
      one value), `probs` or `logits` (K numbers), or nothing (uniform, to be learned);
    - "product": its children have disjoint scopes (decomposable); its value is their product;
    - "sum": its children have one scope (smooth); its value is their mixture, and each edge to a child
      carries the attribute `weight` > 0; the weights of one node sum to one (no weights at all: uniform).

    Determinism is certified where, for every sum node, some variable's possible values differ between any two
    children. That is sufficient, not necessary.

    Arguments:
        graph: the circuit; edges point from a node to its children.
        values: K; inferred from the input nodes where they tell.

    Returns:
        The checked structure.

    Raises:
        ProgramError: the graph is no smooth and decomposable circuit; the message names the node and the
            reason.

    Source: A. Darwiche (2003), A differential approach to inference in Bayesian networks; Y. Choi,
    A. Vergari and G. Van den Broeck (2020), Probabilistic circuits.

    >>> g = nx.DiGraph()
    >>> g.add_node("a", kind="input", variable=0)
    >>> g.add_node("b", kind="input", variable=1)
    >>> g.add_node("s", kind="sum")
    >>> g.add_edges_from([("s", "a"), ("s", "b")])
    >>> check_structure(g, values=2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ppl_dgm.errors.ProgramError: a circuit must be ..., but sum node 's' mixes scopes {0} and {1}: ...
    """
    root = _root(graph)
    order = tuple(reversed(list(nx.topological_sort(graph))))
    for node in order:
        _check_node(graph, node)
    values = _values(graph, values)
    scopes: dict[Hashable, frozenset[int]] = {}
    supports: dict[Hashable, dict[int, frozenset[int]]] = {}
    overlap = None
    for node in order:
        kind, children = graph.nodes[node]["kind"], list(graph.successors(node))
        if kind == "input":
            support = leaf_log_probs(graph, node, values).isfinite().nonzero().flatten().tolist()
            scopes[node] = frozenset([graph.nodes[node]["variable"]])
            supports[node] = {graph.nodes[node]["variable"]: frozenset(support)}
            continue
        scopes[node] = (
            _product_scope(node, children, scopes) if kind == "product" else _sum_scope(node, children, scopes)
        )
        if kind == "sum" and overlap is None:
            overlap = _overlap(node, children, supports)
        supports[node] = {
            v: frozenset().union(*(supports[c][v] for c in children if v in supports[c])) for v in scopes[node]
        }
    variables = len(scopes[root])
    if scopes[root] != frozenset(range(variables)):
        raise ProgramError(
            f"the variables of a circuit must be numbered from 0 without gaps, but the root {root!r} has "
            "the scope "
            f"{_show(scopes[root])}; renumber the input nodes."
        )
    return CircuitStructure(graph, root, order, scopes, variables, values, overlap)


def leaf_log_probs(graph: nx.DiGraph, node: Hashable, values: int) -> Tensor:
    """Logarithms of an input node's K probabilities, [K] float64; -inf for the values that it excludes."""
    attributes = graph.nodes[node]
    if "value" in attributes:
        table = torch.full((values,), -math.inf, dtype=torch.float64)
        table[attributes["value"]] = 0.0
        return table
    if "probs" in attributes:
        return torch.as_tensor(attributes["probs"], dtype=torch.float64).log()
    logits = attributes.get("logits", [0.0] * values)
    return torch.as_tensor(logits, dtype=torch.float64).log_softmax(-1)


def _root(graph: Any) -> Hashable:
    if not isinstance(graph, nx.DiGraph) or len(graph) == 0:
        raise ProgramError(f"a circuit must be a networkx.DiGraph with nodes, but it is {graph!r}.")
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(repr(edge[0]) for edge in nx.find_cycle(graph))
        raise ProgramError(f"a circuit must be acyclic, but its nodes {cycle} form a cycle; remove one of the edges.")
    roots = [node for node in graph if graph.in_degree(node) == 0]
    if len(roots) > 1:
        raise ProgramError(
            f"a circuit must have one root, but the nodes {', '.join(map(repr, roots[:4]))} have no parent; "
            "join them, or remove what is not used."
        )
    return roots[0]


def _check_node(graph: nx.DiGraph, node: Hashable) -> None:
    attributes = graph.nodes[node]
    kind = attributes.get("kind")
    if kind not in KINDS:
        raise ProgramError(f"node {node!r} has kind {kind!r}, but a circuit's node is one of {', '.join(KINDS)}.")
    children = list(graph.successors(node))
    if kind == "input":
        variable = attributes.get("variable")
        if children:
            raise ProgramError(f"input node {node!r} has the child {children[0]!r}, but inputs are leaves.")
        if not isinstance(variable, int) or variable < 0:
            raise ProgramError(f"input node {node!r} has variable={variable!r}, but a number from 0 was expected.")
        return
    if not children:
        raise ProgramError(f"{kind} node {node!r} has no children; give it some, or remove it.")
    if kind == "sum":
        _check_weights(graph, node, children)


def _check_weights(graph: nx.DiGraph, node: Hashable, children: list[Hashable]) -> None:
    weights = [graph.edges[node, child].get("weight") for child in children]
    if all(weight is None for weight in weights):
        return
    if any(weight is None or not float(weight) > 0 for weight in weights):
        raise ProgramError(
            f"sum node {node!r} has the weights {weights}, but each must be positive; drop edges of weight 0."
        )
    total = sum(float(weight) for weight in weights)
    if abs(total - 1) > 1e-5:
        raise ProgramError(
            f"the weights of sum node {node!r} sum to {total:.6g}, but they must sum to 1; divide them by it."
        )


def _values(graph: nx.DiGraph, values: int | None) -> int:
    """K, and that every input node agrees with it."""
    inputs = [(node, data) for node, data in graph.nodes(data=True) if data["kind"] == "input"]
    tables = {
        node: len(data.get("probs", data.get("logits"))) for node, data in inputs if data.keys() & {"probs", "logits"}
    }
    if values is None:
        values = max([*tables.values(), *(data["value"] + 1 for _, data in inputs if "value" in data)], default=0)
    if values < 1:
        raise ProgramError("the input nodes do not tell how many values a variable takes; pass values=K.")
    for node, data in inputs:
        if node in tables and tables[node] != values:
            raise ProgramError(
                f"input node {node!r} has {tables[node]} probabilities, but {values} values were expected."
            )
        if "value" in data and not 0 <= data["value"] < values:
            raise ProgramError(
                f"input node {node!r} indicates the value {data['value']!r}, but values run from 0 to {values - 1}."
            )
        if "probs" in data:
            probs = torch.as_tensor(data["probs"], dtype=torch.float64)
            if bool((probs < 0).any()) or abs(float(probs.sum()) - 1) > 1e-5:
                raise ProgramError(
                    f"the probabilities of input node {node!r} must be positive and sum to 1, but they are "
                    f"{probs.tolist()}."
                )
    return values


def _product_scope(node: Hashable, children: list[Hashable], scopes: dict[Hashable, frozenset[int]]) -> frozenset[int]:
    scope: frozenset[int] = frozenset()
    for child in children:
        if shared := scope & scopes[child]:
            raise ProgramError(
                f"a circuit must be smooth and decomposable, but product node {node!r} multiplies scopes "
                f"{_show(scope)} "
                f"and {_show(scopes[child])} (child {child!r}), which share {_show(shared)}: its children "
                "must not share variables."
            )
        scope |= scopes[child]
    return scope


def _sum_scope(node: Hashable, children: list[Hashable], scopes: dict[Hashable, frozenset[int]]) -> frozenset[int]:
    first = scopes[children[0]]
    for child in children[1:]:
        if scopes[child] != first:
            raise ProgramError(
                f"a circuit must be smooth and decomposable, but sum node {node!r} mixes scopes "
                f"{_show(first)} and "
                f"{_show(scopes[child])}: its children {children[0]!r} and {child!r} must have the same "
                "variables."
            )
    return first


def _overlap(
    node: Hashable, children: list[Hashable], supports: dict[Hashable, dict[int, frozenset[int]]]
) -> str | None:
    """Why a sum node is not certified to be deterministic."""
    for variable in supports[children[0]]:
        possible = [supports[child][variable] for child in children]
        if sum(len(p) for p in possible) == len(frozenset().union(*possible)):
            return None
    return f"no variable tells the children of sum node {node!r} apart"


def _show(scope: frozenset[int]) -> str:
    shown = sorted(scope)
    return "{" + ", ".join(map(str, shown[:8])) + (", ..." if len(shown) > 8 else "") + "}"
