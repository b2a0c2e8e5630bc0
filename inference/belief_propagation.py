"""BeliefPropagation: messages between variables and factors, exact on trees, approximate with loops."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.messages.answers import MessagePosterior, loopy_posterior, tree_evidence, tree_posterior
from ppl_dgm.inference.messages.cluster_tree import ClusterTree
from ppl_dgm.inference.messages.factor_graph import FactorGraph
from ppl_dgm.inference.messages.loopy import LoopyPassing
from ppl_dgm.inference.messages.trees import factor_tree
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score

__all__ = ["BeliefPropagation"]


@algorithm("belief-propagation")
@dataclass(frozen=True)
class BeliefPropagation:
    """The sum-product algorithm on the factor graph of a program over discrete sites.

        m_{v -> f}(z_v) = prod_{g != f} m_{g -> v}(z_v),      m_{f -> v}(z_v) = sum_{z_f \\ v} f(z_f) prod_{u != v} m_{u -> f}(z_u)

    On a tree two messages along each link give every marginal and the evidence exactly. With loops the same rules are
    applied round and round (`loopy=True`): the beliefs are approximate, log p(x) is estimated by the Bethe free energy
    (`Posterior.bethe`), and the draws are of each variable by itself. On a chain this is forward-backward.

    Arguments:
        loopy: propagate also where the factor graph has loops.
        rounds, damping, tolerance: with loops, the most rounds, the share of the old message that is kept, and the change
            in probability below which it stops.
        draws: posterior draws.

    Raises:
        TaskUnavailable: a latent site cannot be listed, or there are loops and `loopy` is False.

    Source: J. Pearl (1988); F. Kschischang, B. Frey and H.-A. Loeliger (2001).

    Example:
        >>> import ppl_dgm as dgm
        >>> net = dgm.models.BayesianNetwork.abc()
        >>> post = dgm.infer(net, method=dgm.BeliefPropagation(), A=1, C=1)
        >>> post.kind
        'exact'
    """

    loopy: bool = False
    rounds: int = 200
    damping: float = 0.0
    tolerance: float = 1e-6
    draws: int = 1000

    def __post_init__(self) -> None:
        require(
            self,
            ("rounds", is_count(self.rounds, 1), "a whole number, at least 1"),
            ("damping", 0 <= self.damping < 1, "from 0 to below 1"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
        )

    @torch.no_grad()
    def run(self, program: Program, *args: Any, **kwargs: Any) -> MessagePosterior:
        """The posterior; see `ppl_dgm.infer`. Observations of probability zero get no draws."""
        begun = time.perf_counter()
        graph = FactorGraph.from_program(program, *args, **kwargs)
        if graph.is_tree or not self.loopy:
            tree, how = self.tree(graph)
            return tree_posterior(program, tree, self.draws, how, begun)
        passing = LoopyPassing(graph, self.rounds, self.damping, self.tolerance, False)
        state = "converged" if passing.change <= self.tolerance else f"not converged (change {passing.change:.2g})"
        how = f"loopy belief propagation, {passing.rounds} rounds, {state}, draws of each variable by itself"
        return loopy_posterior(program, passing, self.draws, how, begun)

    @torch.no_grad()
    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """log p(x) alone, [batch] or []; of trees only."""
        graph = FactorGraph.from_program(program, *args, **kwargs)
        if self.loopy and not graph.is_tree:
            raise TaskUnavailable(
                f"the factor graph of {graph.name!r} has loops, so that its evidence is no sum of messages; take "
                "method='junction-tree', or `.bethe` of the posterior for an approximation."
            )
        return tree_evidence(*self.tree(graph))

    def tree(self, graph: FactorGraph) -> tuple[ClusterTree, str]:
        """The factor graph as a tree of clusters, and what it is in words."""
        tree = factor_tree(graph)
        return tree, f"belief propagation on a tree of {len(graph.sizes)} variables and {len(graph.factors)} factors"
