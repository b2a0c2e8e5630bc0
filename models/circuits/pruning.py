"""Pruning: a circuit without the edges that hardly any row uses."""

import networkx as nx
from torch import Tensor

from ppl_dgm.errors import ProgramError

from .circuit import Circuit
from .graph import GraphParameters

__all__ = ["prune"]


def prune(program: Circuit, x: Tensor, share: float = 0.5) -> Circuit:
    """The circuit without a share of its sums' edges, those with the smallest expected counts.

    An edge's expected count is how often the rows use it; dropping edges of count c in all costs about c / n nats per
    row, and the others are scaled up. EM from here takes back what was lost. A region circuit becomes a graph.

    Arguments:
        program: learned; it stays as it is.
        x: [n, D] rows that tell which edges are in use, missing entries -1.
        share: of the sums' edges to drop; each sum keeps its most used one.

    Returns:
        A new program, given as a graph.

    Raises:
        ProgramError: the share does not lie between 0 and 1.

    Source: M. Dang, A. Liu and G. Van den Broeck (2022), Sparse probabilistic circuits via pruning and growing.
    """
    if not 0 < share < 1:
        raise ProgramError(f"share is {share}, but a part of the edges, between 0 and 1, was expected.")
    graph = program.distribution().to_graph()
    whole = Circuit.from_graph(graph, program.values, program.weights.pseudo_count)
    whole = whole.to(next(program.parameters()))
    assert isinstance(whole.weights, GraphParameters)
    _, (_, counts) = whole.em_statistics(x)
    plan, kept = whole.weights.evaluator().plan, whole.weights.structure.graph.copy()
    edges = [(n, child) for n in plan.names if kept.nodes[n]["kind"] == "sum" for child in kept[n]]
    used = dict(zip(edges, counts.tolist(), strict=True))
    ranked = sorted(edges, key=used.__getitem__)
    best = dict(ranked)  # each sum's most used child: the last one wins
    dropped = [edge for edge in ranked if best[edge[0]] != edge[1]][: int(share * len(edges))]
    kept.remove_edges_from(dropped)
    root = whole.weights.structure.root
    kept = nx.DiGraph(kept.subgraph(nx.descendants(kept, root) | {root}))
    for n in best:
        if n in kept:
            total = sum(kept.edges[n, child]["weight"] for child in kept[n])
            for child in kept[n]:
                kept.edges[n, child]["weight"] /= total
    return Circuit.from_graph(kept, program.values, program.weights.pseudo_count).to(next(program.parameters()))
