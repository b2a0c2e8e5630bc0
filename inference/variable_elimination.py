"""VariableElimination: discrete sites summed out one after another, in an order chosen beforehand."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.inference.messages.answers import MessagePosterior, tree_evidence, tree_posterior
from ppl_dgm.inference.messages.cluster_tree import ClusterTree
from ppl_dgm.inference.messages.elimination import HEURISTICS, Elimination, plan_elimination
from ppl_dgm.inference.messages.factor_graph import FactorGraph
from ppl_dgm.inference.messages.trees import bucket_tree
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program, as_program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score

__all__ = ["VariableElimination"]


@algorithm("variable-elimination")
@dataclass(frozen=True)
class VariableElimination:
    """Exact marginals and evidence of discrete sites: multiply what holds a variable, sum the variable out, go on.

        log p(x) = log sum_{z_n} ... sum_{z_1} prod_f f(z_f)

    Each product is a bucket; the buckets form a tree, and one way back over it gives the marginals of all sites. The
    cost is exponential in the induced width of the order alone, which `plan` tells before anything is computed. The
    posterior's `messages` are the tables that were passed on.

    Arguments:
        order: "min-fill", "min-degree", or all the variables in the order wanted.
        largest: entries of the largest table that may be made.
        draws: joint posterior draws.

    Raises:
        TaskUnavailable: a latent site cannot be listed, or a table would be larger than `largest`.

    Source: N. Zhang and D. Poole (1994); R. Dechter (1999), Bucket elimination.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ppl_dgm as dgm
        >>> def alarm(rang):
        ...     burglar = pyro.sample("burglar", dist.Bernoulli(0.01))
        ...     pyro.sample("rang", dist.Bernoulli(0.05 + 0.9 * burglar), obs=rang)
        >>> post = dgm.infer(alarm, torch.tensor(1.0), method=dgm.VariableElimination())
        >>> print(post.explain())
           from     to        over  values
        -  -------  --------  ----  ------
        1  burglar  evidence     -   0.059
    """

    order: str | Sequence[str] = "min-fill"
    largest: int = 2**24
    draws: int = 1000

    def __post_init__(self) -> None:
        require(
            self,
            ("order", not isinstance(self.order, str) or self.order in HEURISTICS, "min-fill, min-degree or a list"),
            ("largest", is_count(self.largest, 1), "a whole number, at least 1"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
        )

    @torch.no_grad()
    def plan(self, program: Any, *args: Any, **kwargs: Any) -> Elimination:
        """The order, its induced width and its largest table, without making it; print it."""
        program = as_program(program)
        with program.running():
            return plan_elimination(FactorGraph.from_program(program, *args, **kwargs), self.order)

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
        """The tree of buckets, and what it is in words."""
        plan = plan_elimination(graph, self.order)
        plan.refuse_above(self.largest, graph.name)
        return bucket_tree(graph, plan), f"variable elimination, {plan.heuristic}, induced width {plan.width}"
