"""A circuit given as a graph: its parameters, and their EM update."""

from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from ppl_dgm.distributions.circuit.layers import Layered, compile_layers
from ppl_dgm.distributions.circuit.structure import check_structure
from ppl_dgm.errors import ProgramError

__all__ = ["GraphParameters", "graph_from_json", "graph_to_json"]


class GraphParameters(nn.Module):
    """The leaves and sum weights of a checked circuit, both to be learned; zeros of the leaves stay zero.

    Arguments:
        graph: passes `check_structure`.
        values: K.
        pseudo_count: added to the expected counts of each sum node and each leaf, spread evenly; None: none.
    """

    def __init__(self, graph: nx.DiGraph, values: int, pseudo_count: float | None) -> None:
        super().__init__()
        self.structure = check_structure(graph, values)
        self.pseudo_count = pseudo_count
        plan, leaves, weights = compile_layers(self.structure)
        self._plan = plan
        dtype = torch.get_default_dtype()
        self.leaf_logits = nn.Parameter(leaves.to(dtype))
        self.sum_logits = nn.Parameter(weights.to(dtype))

    def evaluator(self) -> Layered:
        """The compiled circuit with the present parameters."""
        return Layered.from_logits(self._plan, self.leaf_logits, self.sum_logits)

    def _apply(self, *args: Any, **kwargs: Any) -> "GraphParameters":
        super()._apply(*args, **kwargs)
        if self.sum_logits.device != self._plan.leaf_variable.device:
            self._plan = compile_layers(self.structure, self.sum_logits.device)[0]
        return self

    def fit_closed_form(self, train: Any, valid: Any) -> dict[str, Any]:
        """
        Raises:
            ProgramError: always; there is no closed form where several paths explain one x.
        """
        raise ProgramError(
            "a circuit given as a graph has no closed-form estimate; learn it with method='em' or 'svi'."
        )

    def em_start(self, x: Tensor, observed: Tensor) -> None:
        """Nothing: EM starts from the weights that the graph came with."""

    @torch.no_grad()
    def em_update(self, expected: tuple[Tensor, ...]) -> None:
        """Leaves and weights from expected counts [I, K] and [E]; nodes that no row uses keep theirs."""
        leaves, weights = expected
        old = self.evaluator()
        a = self.pseudo_count or 0.0
        possible = self.leaf_logits > -torch.inf  # [I, K]
        new = torch.where(possible, leaves + a / possible.sum(-1, keepdim=True), torch.zeros_like(leaves))
        used = new.sum(-1, keepdim=True) > 0
        self.leaf_logits.copy_(torch.where(used, new.log(), old.leaves))
        for layer in old.plan.layers:
            if layer.is_sum:
                counts = torch.cat([weights, weights.new_zeros(1)])[layer.edges]  # [nodes, C]
                counts = counts + a / layer.real.sum(-1, keepdim=True) * layer.real
                used = (counts.sum(-1, keepdim=True) > 0).expand_as(counts)
                former = torch.cat([old.weights, old.weights.new_zeros(1)])[layer.edges]
                mixed = torch.where(used, counts.log() - counts.sum(-1, keepdim=True).log(), former)
                self.sum_logits[layer.edges[layer.real]] = mixed[layer.real]


def graph_to_json(graph: nx.DiGraph) -> dict[str, Any]:
    """A graph as plain numbers, strings and lists; nodes are named by their str."""
    nodes, edges = [], []
    for node, attributes in graph.nodes(data=True):
        nodes.append({"name": str(node)} | {key: _plain(value) for key, value in attributes.items()})
    for above, below, attributes in graph.edges(data=True):
        edges.append([str(above), str(below), *([float(attributes["weight"])] if "weight" in attributes else [])])
    if len({node["name"] for node in nodes}) < len(nodes):
        raise ProgramError("two nodes of the circuit have the same name as text; rename one.")
    return {"nodes": nodes, "edges": edges}


def graph_from_json(plain: dict[str, Any]) -> nx.DiGraph:
    """The graph that `graph_to_json` wrote.

    Raises:
        ProgramError: the dictionary does not describe a graph.
    """
    try:
        graph = nx.DiGraph()
        for node in plain["nodes"]:
            graph.add_node(node["name"], **{key: value for key, value in node.items() if key != "name"})
        for above, below, *weight in plain["edges"]:
            graph.add_edge(above, below, **({"weight": weight[0]} if weight else {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ProgramError(f"structure does not describe a graph ({error!r}); Circuit.from_graph makes one.") from None
    return graph


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
