"""Cutset networks: a decision tree over a few variables with Chow-Liu trees at its leaves, deterministic throughout."""

import math

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.evaluate.baselines import PairCounts, maximum_spanning_tree, mutual_information, pair_counts

from .counted import CountedCircuit

__all__ = ["learn_cutset"]


def learn_cutset(
    x: Tensor, values: int, max_depth: int = 10, min_rows: int = 30, tried: int = 8, penalty: float = 1.0
) -> CountedCircuit:
    """Learn the structure and the counts of a cutset network.

    A node asks for the value of one variable, of the `tried` ones that tell the most of all others, the one that raises
    the likelihood most; the rows that agree go on below. It stays a Chow-Liu tree where no question pays for its
    parameters by the Bayesian information criterion.

    Arguments:
        x: [n, D] categories 0 to K - 1.
        values: K.
        max_depth: questions above a leaf.
        min_rows: fewer rows are not divided.
        tried: candidates at each node.
        penalty: times log(n) / 2 is the price of a parameter in nats.

    Raises:
        ProgramError: an option is out of range.

    Source: T. Rahman, P. Kothalkar and V. Gogate (2014), Cutset networks; N. Di Mauro, A. Vergari and F. Esposito
    (2015), Learning accurate cutset networks by exploiting decomposability.
    """
    if max_depth < 0 or min_rows < 2 or tried < 1 or penalty < 0:
        raise ProgramError(
            f"cutset: max_depth {max_depth} and penalty {penalty} must be at least 0, min_rows {min_rows} at least 2, "
            f"and tried {tried} at least 1."
        )
    made, price = CountedCircuit(values), 0.5 * penalty * math.log(max(len(x), 2))

    def grow(rows: Tensor, scope: list[int], depth: int) -> str:
        leaf = _Leaf(rows[:, scope], values)
        if depth == 0 or len(rows) < min_rows or len(scope) < 2:
            return leaf.write(made, scope)
        best, question = 0.0, -1
        for i in leaf.telling(tried):
            others = [j for j in range(len(scope)) if j != i]
            gain = -leaf.score(price)
            for k in range(values):
                part = rows[rows[:, scope[i]] == k]
                if len(part):
                    here = _Leaf(part[:, [scope[j] for j in others]], values)
                    gain += len(part) * math.log(len(part) / len(rows)) + here.score(price)
            gain -= price * (values - 1)
            if gain > best:
                best, question = gain, i
        if question < 0:
            return leaf.write(made, scope)
        variable, rest = scope[question], [v for v in scope if v != scope[question]]
        parts = [rows[rows[:, variable] == k] for k in range(values)]
        branches = [made.product([made.indicator(variable, k), grow(p, rest, depth - 1)]) for k, p in enumerate(parts)]
        return made.sum(branches, [len(part) for part in parts], variable)

    grow(x, list(range(x.shape[1])), max_depth)
    return made


class _Leaf:
    """A Chow-Liu tree of some rows."""

    def __init__(self, x: Tensor, values: int) -> None:
        self.values, self.rows, self.width = values, len(x), x.shape[1]
        self.counts: PairCounts = pair_counts(x, torch.ones_like(x, dtype=torch.bool), values)
        self.information = mutual_information(self.counts).fill_diagonal_(0)
        self.parents = maximum_spanning_tree(self.information) if self.rows else [-1] * self.width

    def telling(self, count: int) -> list[int]:
        """The variables with the largest information about all others together."""
        return self.information.sum(0).topk(min(count, self.width)).indices.tolist()

    def score(self, price: float) -> float:
        """The largest log likelihood of the rows, less the price of the parameters; nats."""
        singles = self.counts.singles
        entropy = float(torch.xlogy(singles, singles / max(self.rows, 1)).sum())
        edges = [(d, above) for d, above in enumerate(self.parents) if above >= 0]
        told = sum(float(self.information[d, above]) for d, above in edges)
        parameters = (self.width - len(edges)) * (self.values - 1) + len(edges) * self.values * (self.values - 1)
        return entropy + self.rows * told - price * parameters

    def write(self, made: CountedCircuit, scope: list[int]) -> str:
        """The tree's nodes: a product for each value of each variable, sums between them; returns the root."""
        children: list[list[int]] = [[] for _ in scope]
        for d, above in enumerate(self.parents):
            if above >= 0:
                children[above].append(d)
        tops = [d for d, above in enumerate(self.parents) if above < 0]
        order = list(tops)
        for d in order:
            order += children[d]
        sums: dict[int, list[str]] = {}  # for each variable the sum for each value of its parent
        for d in reversed(order):
            above = self.parents[d]
            table = self.counts.pairs[above, d] if above >= 0 else self.counts.singles[d][None]
            if children[d]:
                below = [
                    made.product([made.indicator(scope[d], k), *(sums[c][k] for c in children[d])])
                    for k in range(self.values)
                ]
                sums[d] = [made.sum(below, row, scope[d]) for row in table.tolist()]
            else:
                sums[d] = [made.input(scope[d], row) for row in table.tolist()]
        return made.product([sums[d][0] for d in tops])
