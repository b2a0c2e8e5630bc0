"""The two baselines that need no network: independent categoricals, and a Chow-Liu tree."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from ..distributions.circuit.entries import as_rows
from ..errors import ProgramError

__all__ = [
    "ChowLiuTree",
    "IndependentCategorical",
    "PairCounts",
    "maximum_spanning_tree",
    "mutual_information",
    "pair_counts",
]

INDEPENDENT_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
TREE_GRID = (1.0, 3.0, 8.0, 17.0, 34.0, 68.0, 136.0)
MARGINAL_COUNT = 0.1
"""Added to each value's count where a tree's conditionals shrink towards the variable's own distribution."""


@dataclass(frozen=True)
class IndependentCategorical:
    """p(x) = prod_d theta_d(x_d), with theta_d(k) = (N_dk + a) / (N + a K).

    On digits, a = 0.1: 106.3 nats per test image.

    Attributes:
        log_probs: [D, K] float64.
        pseudo_count: a, added to each value's count.
    """

    log_probs: Tensor
    pseudo_count: float

    @classmethod
    def fit(
        cls, train: Tensor, values: int, pseudo_count: float | None = None, valid: Tensor | None = None
    ) -> "IndependentCategorical":
        """Count.

        Arguments:
            train: [n, D] categories 0 to values - 1.
            values: K.
            pseudo_count: a; None: the best of a small grid on `valid`, or 0.1 without one.
            valid: [m, D].

        Raises:
            DataError: an entry is missing or not a category.
            ProgramError: a negative pseudo-count.
        """
        x, _ = as_rows(train, train.shape[-1], values, missing=False)
        counts = torch.nn.functional.one_hot(x, values).sum(0).double()  # [D, K]
        return best_on_validation(
            lambda a: cls(normalise(counts + a).log(), a), INDEPENDENT_GRID, pseudo_count, valid, 0.1
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], for x [batch, D].

        Raises:
            DataError: an entry is missing or not a category.
        """
        rows, _ = as_rows(x, self.log_probs.shape[0], self.log_probs.shape[1], missing=False)
        return self.log_probs[torch.arange(len(self.log_probs), device=x.device), rows].sum(-1)


@dataclass(frozen=True)
class ChowLiuTree:
    """The tree of pairwise dependencies that explains the data best, p(x) = prod_d p(x_d | x_parent(d)).

    The tree is the maximum spanning tree of the mutual informations, and the conditionals shrink towards the
    variable's own distribution q_d: p(x_d = k | x_parent = j) = (N_jk + a q_d(k)) / (N_j + a). On digits,
    with a chosen on the validation split: 96.5 nats per test image.

    Attributes:
        parents: [D] int64, -1 at the root.
        log_conditionals: [D, K, K] float64, log p(x_d = k | x_parent = j) at [d, j, k]; the root uses j = 0.
        pseudo_count: a, virtual observations in each row of a conditional table.

    Source: C. Chow and C. Liu (1968), Approximating discrete probability distributions with dependence trees.
    """

    parents: Tensor
    log_conditionals: Tensor
    pseudo_count: float

    @classmethod
    def fit(
        cls, train: Tensor, values: int, pseudo_count: float | None = None, valid: Tensor | None = None
    ) -> "ChowLiuTree":
        """Find the tree and its conditionals.

        Arguments:
            train: [n, D] categories 0 to values - 1.
            values: K.
            pseudo_count: a; None: the best of a small grid on `valid`, or `values` without one. 0 is maximum
                likelihood.
            valid: [m, D].

        Raises:
            DataError: an entry is missing or not a category.
            ProgramError: a negative pseudo-count.
        """
        counts = pair_counts(*as_rows(train, train.shape[-1], values, missing=False), values)

        def fitted(a: float) -> "ChowLiuTree":
            parents = maximum_spanning_tree(mutual_information(counts, a))
            return cls(torch.tensor(parents), counts.log_conditionals(parents, a), a)

        return best_on_validation(fitted, TREE_GRID, pseudo_count, valid, float(values))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], for x [batch, D].

        Raises:
            DataError: an entry is missing or not a category.
        """
        rows, _ = as_rows(x, len(self.parents), self.log_conditionals.shape[-1], missing=False)
        variable = torch.arange(len(self.parents), device=x.device)
        above = rows[:, self.parents.clamp(min=0)].masked_fill(self.parents < 0, 0)
        return self.log_conditionals[variable, above, rows].sum(-1)


@dataclass(frozen=True)
class PairCounts:
    """How often each pair of values occurs together.

    Attributes:
        pairs: [D, D, K, K] N(x_i = j, x_d = k) at [i, d, j, k], over the rows where both are observed;
            float64.
    """

    pairs: Tensor

    @property
    def singles(self) -> Tensor:
        """N(x_d = k), [D, K]."""
        return self.pairs.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1)

    def marginals(self, pseudo_count: float) -> Tensor:
        """q_d(k), the distribution of each variable alone, smoothed unless pseudo_count is 0, [D, K]."""
        return normalise(self.singles + (MARGINAL_COUNT if pseudo_count > 0 else 0.0))

    def log_conditionals(self, parents: list[int], pseudo_count: float) -> Tensor:
        """log (N_jk + a q_d(k)) / (N_j + a), [D, K, K]; a root's rows are all log q_d."""
        q = self.marginals(pseudo_count)[:, None]  # [D, 1, K]
        below = torch.tensor(parents, device=q.device)
        tables = self.pairs[below.clamp(min=0), torch.arange(len(parents), device=q.device)]  # [D, K, K]
        smooth = tables + pseudo_count * q
        seen = smooth.sum(-1, keepdim=True) > 0
        smooth = torch.where(seen & (below >= 0)[:, None, None], smooth, q.expand_as(smooth))
        return normalise(smooth).log()


def pair_counts(x: Tensor, observed: Tensor, values: int) -> PairCounts:
    """Count all pairs by one matrix product of one-hot codes.

    Arguments:
        x: [n, D] int64.
        observed: [n, D] bool.
        values: K.
    """
    codes = torch.nn.functional.one_hot(x, values).float() * observed[..., None]  # [n, D, K]; counts stay exact to 2^24
    variables = x.shape[1]
    joint = sum((c.flatten(1).T @ c.flatten(1)).double() for c in codes.split(2**20))  # [D K, D K]
    assert isinstance(joint, Tensor)
    return PairCounts(joint.reshape(variables, values, variables, values).transpose(1, 2))


def mutual_information(counts: PairCounts, pseudo_count: float = 0.0) -> Tensor:
    """I(x_i; x_d) in nats of the empirical pair distributions, [D, D].

    Arguments:
        counts: of the data.
        pseudo_count: virtual observations, spread evenly over the K x K cells of each pair.
    """
    joint = counts.pairs + pseudo_count / counts.pairs.shape[-1] ** 2
    joint = joint / joint.sum((-1, -2), keepdim=True).clamp(min=1e-300)
    first, second = joint.sum(-1), joint.sum(-2)  # [D, D, K]
    negative_entropy = torch.xlogy(joint, joint).sum((-1, -2))
    return negative_entropy - torch.xlogy(first, first).sum(-1) - torch.xlogy(second, second).sum(-1)


def maximum_spanning_tree(weights: Tensor) -> list[int]:
    """The heaviest tree over all nodes, rooted at its centre so that it has few levels.

    Arguments:
        weights: [D, D], symmetric.

    Returns:
        Parent of each node, -1 at the root.
    """
    table = weights.double().cpu().numpy().copy()
    count = len(table)
    np.fill_diagonal(table, -np.inf)
    above = np.zeros(count, dtype=int)  # Prim: the neighbour in the tree so far to which each node is nearest
    best, outside = table[0].copy(), np.ones(count, dtype=bool)
    outside[0] = False
    tree: nx.Graph = nx.Graph()
    tree.add_nodes_from(range(count))
    for _ in range(count - 1):
        node = int(np.where(outside, best, -np.inf).argmax())
        if not outside[node]:  # every weight left is minus infinity
            node = int(outside.argmax())
        tree.add_edge(node, int(above[node]))
        outside[node] = False
        nearer = outside & (table[node] > best)
        best[nearer], above[nearer] = table[node][nearer], node
    predecessor = dict(nx.bfs_predecessors(tree, _centre(tree)))
    return [predecessor.get(node, -1) for node in range(count)]


def _centre(tree: nx.Graph) -> int:
    """The node of a tree from which the farthest one is nearest (the lesser of two): peel off leaves until it is left."""
    degree = dict(tree.degree())
    rest, leaves = len(degree), [node for node, edges in degree.items() if edges <= 1]
    while rest > 2:
        rest -= len(leaves)
        inner = []
        for leaf in leaves:
            degree[leaf] = 0
            for node in tree[leaf]:
                if degree[node] > 0:
                    degree[node] -= 1
                    if degree[node] == 1:
                        inner.append(node)
        leaves = inner
    return min(leaves)


def normalise(counts: Tensor) -> Tensor:
    """Divide by the sum over the last dimension; where that is zero, uniform."""
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, counts / total.clamp(min=1e-300), torch.full_like(counts, 1 / counts.shape[-1]))


def best_on_validation(
    fitted: Callable[[float], Any],
    grid: tuple[float, ...],
    pseudo_count: float | None,
    valid: Tensor | None,
    default: float,
) -> Any:
    """The fit with the given pseudo-count, or the one of the grid with the highest mean log_prob on `valid`.

    Raises:
        ProgramError: a negative pseudo-count.
    """
    if pseudo_count is not None and pseudo_count < 0:
        raise ProgramError(
            f"pseudo_count is {pseudo_count}, but a number from 0 was expected; None chooses on validation."
        )
    if pseudo_count is not None or valid is None or len(valid) == 0:
        return fitted(default if pseudo_count is None else float(pseudo_count))
    return max((fitted(a) for a in grid), key=lambda model: float(model.log_prob(valid).mean()))
