"""A tree of categorical variables (a Chow-Liu tree) evaluated level by level: the circuit's fast path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import networkx as nx
import torch
from torch import Tensor

from ...errors import ProgramError
from .evaluator import FLOOR, Pick, draw, in_chunks, most_probable, restore_zero

__all__ = ["Level", "Tree", "TreePlan", "tree_graph"]


@dataclass(frozen=True)
class Level:
    """The variables at one depth of the tree.

    Attributes:
        nodes: [n] variables.
        above: [n] for each, the position of its parent among the nodes of the level above (0 at the roots).
    """

    nodes: Tensor
    above: Tensor


@dataclass(frozen=True)
class TreePlan:
    """Which variable depends on which, sorted into levels.

    Attributes:
        parents: parent of each variable, -1 for a root.
        levels: roots first.
        parent: [D] the same parents as a tensor, 0 for a root.
        is_root: [D] bool.
    """

    parents: tuple[int, ...]
    levels: tuple[Level, ...]
    parent: Tensor
    is_root: Tensor

    @classmethod
    def build(cls, parents: Sequence[int], device: torch.device | str = "cpu") -> "TreePlan":
        """Sort a forest into levels.

        Arguments:
            parents: for each of the D variables its parent, -1 for a root (several roots: independent trees).

        Raises:
            ProgramError: a parent is no variable, or the parents form a cycle.
        """
        parents = tuple(int(p) for p in parents)
        for variable, parent in enumerate(parents):
            if not -1 <= parent < len(parents):
                raise ProgramError(
                    f"the parent of variable {variable} is {parent}, but there are {len(parents)} "
                    "variables; -1 marks a root."
                )
        children: dict[int, list[int]] = {}
        for variable, parent in enumerate(parents):
            children.setdefault(parent, []).append(variable)
        levels, here = [], [(root, 0) for root in children.get(-1, [])]
        while here:
            nodes, above = zip(*here)
            levels.append(Level(torch.tensor(nodes, device=device), torch.tensor(above, device=device)))
            here = [(child, position) for position, node in enumerate(nodes) for child in children.get(node, [])]
        if sum(len(level.nodes) for level in levels) < len(parents):
            raise ProgramError(f"the parents {list(parents)} form a cycle, but a tree was expected; mark a root by -1.")
        above_all = torch.tensor(parents, device=device)
        return cls(parents, tuple(levels), above_all.clamp(min=0), above_all < 0)


Message = Callable[[Tensor, Tensor], Tensor]


def sum_product(conditionals: Tensor, weights: Tensor) -> Tensor:
    """log sum_k p(k | j) exp(w_k) for each value j of the parent, as one batched matrix product.

    In float64, because the rows are scaled by their largest weight alone: that is exact as long as no
    evidence below outweighs a conditional probability of zero by more than 700 nats.

    Arguments:
        conditionals: [nodes, K, K] log p(k | j) at [node, j, k].
        weights: [n, nodes, K].

    Returns:
        [n, nodes, K].
    """
    largest = weights.detach().amax(-1, keepdim=True)  # [n, nodes, 1]
    total = torch.einsum("njk,bnk->bnj", conditionals.exp(), (weights - largest).exp())
    possible = total > 0
    return torch.where(possible, total.where(possible, 1.0).log(), FLOOR) + largest


def max_product(conditionals: Tensor, weights: Tensor) -> Tensor:
    """log max_k p(k | j) exp(w_k) for each value j of the parent; shapes as in `sum_product`."""
    return (conditionals + weights[:, :, None]).amax(-1)


@dataclass(frozen=True)
class Tree:
    """p(x) = prod_d p(x_d | x_parent(d)) as a smooth, decomposable and deterministic circuit.

    Each value of each variable is a product node over its indicator and its children's sum nodes; each pair
    of a variable and a value of its parent is a sum node (`tree_graph` writes that circuit out). One level of
    the tree is evaluated at a time.

    Attributes:
        plan: who depends on whom.
        log_conditionals: [D, K, K] log p(x_d = k | x_parent = j) at [d, j, k]; a root uses j = 0.
    """

    plan: TreePlan
    log_conditionals: Tensor

    @property
    def overlap(self) -> str | None:
        return None  # deterministic: the indicator of x_d tells the children of its sum nodes apart

    @property
    def variables(self) -> int:
        return self.log_conditionals.shape[0]

    @property
    def values(self) -> int:
        return self.log_conditionals.shape[-1]

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.log_conditionals,)

    def with_tables(self, *tables: Tensor) -> "Tree":
        return replace(self, log_conditionals=tables[0])

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        if observed is None:  # every sum has one term left: look it up
            above = x[:, self.plan.parent].masked_fill(self.plan.is_root, 0)  # [n, D]
            variable = torch.arange(self.variables, device=x.device)
            return self.log_conditionals[variable, above, x].sum(-1)
        return in_chunks(
            lambda *rows: restore_zero(self._log_root(self._upward(self._evidence(*rows)))),
            self._size,
            x,
            observed,
        )

    def log_event(self, allowed: Tensor) -> Tensor:
        return in_chunks(
            lambda rows: restore_zero(self._log_root(self._upward(self._weights(rows)))), self._size, allowed
        )

    def marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        frozen = self.with_tables(self.log_conditionals.detach())
        return in_chunks(frozen._marginals, self._size, x, observed)

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(lambda a, b: self._downward(a, b, sum_product, draw), self._size, x, observed)

    def maximise(self, x: Tensor, observed: Tensor) -> Tensor:
        width = max(len(level.nodes) for level in self.plan.levels)
        size = width * self.values**2
        return in_chunks(lambda a, b: self._downward(a, b, max_product, most_probable), size, x, observed)

    @property
    def _size(self) -> int:
        """Numbers per row in the largest intermediate tensor."""
        return self.variables * self.values

    def _marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            evidence = [part.requires_grad_() for part in self._evidence(x, observed)]
            # d log p(e) / d (log weight of x_d = k) = p(x_d = k | e): Darwiche's differential approach
            parts = torch.autograd.grad(self._log_root(self._upward(evidence)).sum(), evidence)
        order = torch.cat([level.nodes for level in self.plan.levels])
        return torch.cat(parts, 1)[:, order.argsort()].to(self.log_conditionals.dtype)

    def _evidence(self, x: Tensor, observed: Tensor) -> list[Tensor]:
        """Log weight of each value: 0 where possible, log 0 elsewhere; each level [n, nodes, K] float64."""
        return self._weights((x[..., None] == torch.arange(self.values, device=x.device)) | ~observed[..., None])

    def _weights(self, allowed: Tensor) -> list[Tensor]:
        """The same where the flags say what is possible, [n, D, K]."""
        zero = torch.zeros((), dtype=torch.float64, device=allowed.device)
        return [torch.where(allowed[:, level.nodes], zero, FLOOR) for level in self.plan.levels]

    def _upward(self, evidence: list[Tensor], message: Message | None = None) -> list[Tensor]:
        """Log weight of each value given all evidence at and below it; each level [n, nodes, K] float64."""
        levels, message = self.plan.levels, message or sum_product
        conditionals = self.log_conditionals.double().clamp(min=FLOOR)
        weights = list(evidence)
        for depth in range(len(levels) - 1, 0, -1):
            sent = message(conditionals[levels[depth].nodes], weights[depth])
            weights[depth - 1] = weights[depth - 1].index_add(1, levels[depth].above, sent)
        return weights

    def _log_root(self, weights: list[Tensor]) -> Tensor:
        """log p(evidence) from the roots' weights, [n]."""
        roots = self.log_conditionals[self.plan.levels[0].nodes, 0].clamp(min=FLOOR)  # [roots, K]
        return torch.logsumexp(roots + weights[0], -1).sum(-1).to(self.log_conditionals.dtype)

    def _downward(self, x: Tensor, observed: Tensor, message: Message, pick: Pick) -> Tensor:
        """Pick a value for each variable, parents first, [n, D]."""
        weights = self._upward(self._evidence(x, observed), message)
        conditionals = self.log_conditionals.clamp(min=FLOOR)
        chosen, above = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for level, weight in zip(self.plan.levels, weights):
            here = pick(conditionals[level.nodes, above[:, level.above]] + weight)  # [n, nodes]
            chosen, above = chosen.index_copy(1, level.nodes, here), here
        return chosen


def tree_graph(parents: Sequence[int], log_conditionals: Tensor) -> nx.DiGraph:
    """The circuit that a tree stands for, written out node by node.

    Arguments:
        parents: for each variable its parent, -1 for a root.
        log_conditionals: [D, K, K] log p(x_d = k | x_parent = j) at [d, j, k]; a root uses j = 0.

    Returns:
        A graph that `check_structure` takes: "x2=1" an indicator; "p2=1" the product of it and what hangs
        below;
        "s2|0" the sum over the values of x2 given its parent's value 0. Edges of probability 0 are left out.
    """
    variables, values = log_conditionals.shape[0], log_conditionals.shape[-1]
    probs = log_conditionals.detach().double().exp().tolist()
    graph = nx.DiGraph()
    roots = [d for d in range(variables) if parents[d] < 0]
    if len(roots) > 1:
        graph.add_node("root", kind="product")
        graph.add_edges_from(("root", f"s{d}|0") for d in roots)
    for d in range(variables):
        for j in range(values if parents[d] >= 0 else 1):
            graph.add_node(f"s{d}|{j}", kind="sum")
            graph.add_edges_from((f"s{d}|{j}", f"p{d}={k}", {"weight": p}) for k, p in enumerate(probs[d][j]) if p > 0)
        for k in range(values):
            graph.add_node(f"x{d}={k}", kind="input", variable=d, value=k)
            graph.add_node(f"p{d}={k}", kind="product")
            graph.add_edge(f"p{d}={k}", f"x{d}={k}")
            graph.add_edges_from((f"p{d}={k}", f"s{c}|{k}") for c in range(variables) if parents[c] == d)
    return _reachable(graph, "root" if len(roots) > 1 else f"s{roots[0]}|0")


def _reachable(graph: nx.DiGraph, root: str) -> nx.DiGraph:
    """Only what the root uses: values of probability zero leave nodes without a parent."""
    return graph.subgraph(nx.descendants(graph, root) | {root}).copy()
