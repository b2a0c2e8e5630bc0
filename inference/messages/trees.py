"""The three trees that messages are passed on: buckets of an elimination order, cliques, and the factor graph itself."""

from collections.abc import Sequence
from itertools import combinations

import networkx as nx

from ppl_dgm.errors import ProgramError, TaskUnavailable

from .cluster_tree import Cluster, ClusterTree
from .elimination import HEURISTICS, Elimination, plan_elimination
from .factor_graph import FactorGraph
from .log_factor import LogFactor

__all__ = ["bucket_tree", "factor_tree", "junction_tree", "maximal_cliques"]


def bucket_tree(graph: FactorGraph, plan: Elimination) -> ClusterTree:
    """One cluster per variable: what is multiplied when it is summed out; its message goes to the next of its scope.

    Source: R. Dechter (1999), Bucket elimination; K. Kask et al. (2005), Unifying tree decompositions, for the way back.
    """
    rank = {variable: position for position, variable in enumerate(plan.order)}
    held: dict[str, list[LogFactor]] = {variable: [] for variable in plan.order}
    for factor in graph.factors:
        if factor.scope:
            held[min(factor.scope, key=rank.__getitem__)].append(factor)
    clusters, links = [], []
    for variable, scope in zip(reversed(plan.order), reversed(plan.scopes), strict=True):
        clusters.append(Cluster(variable, scope, tuple(held[variable])))
        if len(scope) > 1:
            links.append((variable, min(scope[1:], key=rank.__getitem__), scope[1:]))
    return ClusterTree(graph, clusters, links)


def factor_tree(graph: FactorGraph) -> ClusterTree:
    """The factor graph: a cluster for each variable and each factor; messages are functions of one variable.

    Raises:
        TaskUnavailable: the factor graph has a loop; the message shows it.
    """
    if not graph.is_tree:
        raise TaskUnavailable(
            f"the factor graph of {graph.name!r} has a loop, {' - '.join(graph.loop())}, on which belief propagation is "
            "not exact; take dgm.JunctionTree(), or dgm.BeliefPropagation(loopy=True) for an approximation."
        )
    names = factor_names(graph)
    clusters = [Cluster(variable, (variable,)) for variable in graph.sizes]
    clusters += [Cluster(names[i], factor.scope, (factor,)) for i, factor in enumerate(graph.factors) if factor.scope]
    links = [(variable, names[i], (variable,)) for i, factor in enumerate(graph.factors) for variable in factor.scope]
    return ClusterTree(graph, clusters, links)


def factor_names(graph: FactorGraph) -> list[str]:
    """Each factor's own name, or with a number where several share it."""
    seen: dict[str, int] = {}
    names = []
    for factor in graph.factors:
        base = factor.name or f"f({', '.join(factor.scope)})"
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base} #{seen[base]}")
    return names


def maximal_cliques(graph: FactorGraph, triangulation: str | Sequence[str] = "min-fill") -> list[tuple[str, ...]]:
    """The cliques of a triangulated moral graph, each in the order of the program.

    Arguments:
        triangulation: the edges that an elimination order fills in ("min-fill", "min-degree", or a list of variables),
            or "minimal": no filled edge could be left out (networkx's MCS-M).
    """
    if triangulation == "minimal":
        moral = nx.Graph()
        moral.add_nodes_from(graph.sizes)
        moral.add_edges_from((a, b) for a, others in graph.neighbours().items() for b in others)
        chordal, _ = nx.complete_to_chordal_graph(moral)
        sets = [frozenset(clique) for clique in nx.chordal_graph_cliques(chordal)]
    elif isinstance(triangulation, str) and triangulation not in HEURISTICS:
        raise ProgramError(
            f"triangulation must be one of {', '.join(HEURISTICS)}, minimal, or a list of variables, not "
            f"{triangulation!r}."
        )
    else:
        scopes = [frozenset(scope) for scope in plan_elimination(graph, triangulation).scopes]
        sets = []
        for scope in scopes:  # a later scope that is part of an earlier one is no maximal clique
            if not any(scope <= other for other in sets):
                sets.append(scope)
    rank = {variable: position for position, variable in enumerate(graph.sizes)}
    return sorted((tuple(sorted(clique, key=rank.__getitem__)) for clique in sets), key=lambda c: [rank[v] for v in c])


def junction_tree(graph: FactorGraph, triangulation: str | Sequence[str] = "min-fill") -> ClusterTree:
    """Maximal cliques, joined by a spanning tree whose separators are as large as can be.

    Such a tree has the running intersection, which is checked; each factor stands in the first clique that holds it.

    Source: S. Lauritzen and D. Spiegelhalter (1988); F. Jensen and F. Jensen (1994) for the spanning tree.
    """
    cliques = maximal_cliques(graph, triangulation)
    names = [f"{{{', '.join(clique)}}}" for clique in cliques]
    weights = nx.Graph()
    weights.add_nodes_from(range(len(cliques)))
    sets = [set(clique) for clique in cliques]
    members: dict[str, list[int]] = {variable: [] for variable in graph.sizes}
    for index, clique in enumerate(cliques):
        for variable in clique:
            members[variable].append(index)
    for holders in members.values():
        weights.add_weighted_edges_from((a, b, len(sets[a] & sets[b])) for a, b in combinations(holders, 2))
    spanning = nx.maximum_spanning_tree(weights)
    held: list[list[LogFactor]] = [[] for _ in cliques]
    for factor in graph.factors:
        if factor.scope:
            held[next(i for i in members[factor.scope[0]] if sets[i].issuperset(factor.scope))].append(factor)
    clusters = [Cluster(*parts) for parts in zip(names, cliques, map(tuple, held))]
    links = [(names[a], names[b], tuple(v for v in cliques[a] if v in sets[b])) for a, b in spanning.edges]
    return ClusterTree(graph, clusters, links)
