"""JunctionTree: messages between the cliques of a triangulated graph."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.messages.answers import MessagePosterior, tree_evidence, tree_posterior
from ppl_dgm.inference.messages.cluster_tree import ClusterTree
from ppl_dgm.inference.messages.factor_graph import FactorGraph
from ppl_dgm.inference.messages.trees import junction_tree
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score

__all__ = ["JunctionTree"]


@algorithm("junction-tree")
@dataclass(frozen=True)
class JunctionTree:
    """Exact marginals and evidence of discrete sites by messages on a tree of cliques.

    The moral graph is triangulated, its maximal cliques are joined by a spanning tree with the largest separators, and
    each clique multiplies its factors with what its neighbours sent (Shafer-Shenoy, so that nothing is divided).

    Arguments:
        triangulation: "min-fill", "min-degree", "minimal" (networkx's MCS-M) or an elimination order.
        largest: entries of the largest clique that may be made.
        draws: joint posterior draws.

    Raises:
        TaskUnavailable: a latent site cannot be listed, or a clique would be larger than `largest`.

    Source: S. Lauritzen and D. Spiegelhalter (1988); G. Shafer and P. Shenoy (1990).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> net = dgm.models.BayesianNetwork.sprinkler()
        >>> post = dgm.infer(net, method=dgm.JunctionTree(), grass=1)
        >>> round(float(post.tables["rain"][0, 1]), 4)
        0.7079
    """

    triangulation: str | Sequence[str] = "min-fill"
    largest: int = 2**24
    draws: int = 1000

    def __post_init__(self) -> None:
        known = ("min-fill", "min-degree", "minimal")
        require(
            self,
            ("triangulation", not isinstance(self.triangulation, str) or self.triangulation in known,
             f"one of {', '.join(known)} or a list of variables"),
            ("largest", is_count(self.largest, 1), "a whole number, at least 1"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
        )  # fmt: skip

    @torch.no_grad()
    def run(self, program: Program, *args: Any, **kwargs: Any) -> MessagePosterior:
        """The posterior; see `ppl_dgm.infer`. Observations of probability zero get no draws."""
        begun = time.perf_counter()
        tree, how = self.tree(FactorGraph.from_program(program, *args, **kwargs))
        return tree_posterior(program, tree, self.draws, how, begun)

    @torch.no_grad()
    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """log p(x) alone, [batch] or []."""
        return tree_evidence(*self.tree(FactorGraph.from_program(program, *args, **kwargs)))

    def tree(self, graph: FactorGraph) -> tuple[ClusterTree, str]:
        """The tree of cliques, and what it is in words."""
        tree = junction_tree(graph, self.triangulation)
        width = max((len(cluster.scope) for cluster in tree.clusters.values()), default=1) - 1
        if tree.entries > self.largest:
            widest = max(tree.clusters.values(), key=lambda cluster: len(cluster.scope))
            raise TaskUnavailable(
                f"{graph.name!r}: triangulated by {self.triangulation}, it has a clique of {len(widest.scope)} variables "
                f"and a table of {tree.entries:.3g} entries, more than largest={self.largest:.3g}; take "
                "dgm.BeliefPropagation(loopy=True) for approximate marginals, method='gibbs' for draws, or raise largest."
            )
        return tree, f"junction tree, {len(tree.clusters)} cliques, width {width}"
