"""Region circuits over categorical variables: upward and downward passes as batched matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .evaluator import FLOOR, draw, in_chunks, log_or_floor, restore_zero
from .evidence import DenseEvidence, TableEvidence, table_evidence
from .log_passes import Lookup, exponentiated
from .regions import RegionPlan

__all__ = ["Tensorised", "root_values", "units_in_use"]


def _largest(values: Tensor, index: Tensor, count: int) -> Tensor:
    """The largest of the rows with each index, [pairs, n] -> [count, n]; -1 where there is none."""
    empty = values.new_full((count, values.shape[1]), -1)
    return empty.scatter_reduce(0, index[:, None].expand_as(values), values, "amax")


@dataclass(frozen=True)
class Tensorised:
    """A region circuit over categorical variables, with its weights.

    Attributes:
        plan: the compiled region graph.
        leaves: [L, S, K] log probabilities of the values under each unit of each leaf region.
        weights: for each group of sums, [F, S, P S] log weights (the root: [1, 1, P S]).
    """

    plan: RegionPlan
    leaves: Tensor
    weights: tuple[Tensor, ...]

    @property
    def variables(self) -> int:
        return self.plan.graph.variables

    @property
    def values(self) -> int:
        return self.leaves.shape[2]

    @property
    def units(self) -> int:
        """S."""
        return self.leaves.shape[1]

    @property
    def overlap(self) -> str | None:
        return "the units of its regions are mixtures over the same values"

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.leaves, *self.weights)

    def with_tables(self, *tables: Tensor) -> "Tensorised":
        return replace(self, leaves=tables[0], weights=tables[1:])

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return TableEvidence.apply(self.plan, *self._codes(x, observed), self.leaves, *self.weights)

    def expected_counts(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The log evidence [n], and the gradients of its sum with respect to the tables: how often each entry is used.

        One upward and one downward pass, where autograd would go up twice.
        """
        tables = tuple(table.detach() for table in self.tables)
        ones = tables[0].new_ones(len(x))
        return table_evidence(self.plan, *self._codes(x, observed), tables[0], tables[1:], ones)

    def _codes(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, bool]:
        """The rows with K for missing entries, and whether there may be any."""
        return (x, False) if observed is None else (torch.where(observed, x, self.values), True)

    def log_event(self, allowed: Tensor) -> Tensor:
        def chunk(allowed: Tensor) -> Tensor:
            sets = allowed.permute(1, 2, 0)[self.plan.leaf_variable].to(self.leaves)  # [L, K, n]
            leaves = torch.bmm(self.leaves.exp(), sets).transpose(1, 2)  # [L, n, S]
            return root_values(self.plan, log_or_floor(leaves), self.weights)

        return in_chunks(chunk, self.size + len(self.leaves) * self.values, allowed)

    def marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(self._marginals, self.size, x, observed)

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(self._complete, self.size, x, observed)

    def maximise(self, x: Tensor, observed: Tensor) -> Tensor:
        raise NotImplementedError("a region circuit is not deterministic")

    @property
    def size(self) -> int:
        """Numbers per row in all that the two passes keep; chunks that fit the cache are twice as fast."""
        return 4 * max(self.plan.products, len(self.leaves)) * self.units

    def leaf_values(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log value of each leaf's units; missing entries are summed out, [L, n, S]."""
        table = self.leaves.clamp(min=FLOOR)
        value = Lookup.apply(table, x.T[self.plan.leaf_variable])
        if observed is None:
            return value
        total = table.logsumexp(-1)[:, None]  # [L, 1, S]
        return torch.where(observed.T[self.plan.leaf_variable][..., None], value, total)

    def _marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        linear = tuple(weight.detach().exp() for weight in self.weights)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self.leaf_values(x, observed).detach().clone().requires_grad_()
            value = DenseEvidence.apply(self.plan, leaves, *linear)
            flow = torch.autograd.grad(value.sum(), leaves)[0]  # how probable it is that a unit is in use
        chance = torch.bmm(flow, self.leaves.detach().softmax(-1)).transpose(0, 1)  # [n, L, K]
        missing = chance.new_zeros(len(x), self.variables, self.values)
        missing.index_add_(1, self.plan.leaf_variable, chance)
        known = torch.nn.functional.one_hot(x, self.values).to(missing)
        return torch.where(observed[..., None], known, missing)

    def _complete(self, x: Tensor, observed: Tensor) -> Tensor:
        """Pick the units in use, then values; [n, D]."""
        unit = units_in_use(self.plan, self.leaf_values(x, observed), self.weights)
        drawn = draw(self.leaves.clamp(min=FLOOR)[torch.arange(len(unit), device=x.device)[:, None], unit.clamp(min=0)])
        drawn = torch.where(unit >= 0, drawn, -1)
        return torch.where(observed, x, _largest(drawn, self.plan.leaf_variable, self.variables).T)


def root_values(plan: RegionPlan, leaves: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """log value of the root, [n], whatever the leaves are.

    Arguments:
        leaves: [L, n, S] log value of each unit of each leaf region.
        weights: for each group of sums, [F, S, P S] log weights.
    """
    return restore_zero(DenseEvidence.apply(plan, leaves, *(weight.exp() for weight in weights)))


def units_in_use(plan: RegionPlan, leaves: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A draw of which unit of each leaf region is in use given the leaves' log values, from the root down.

    Arguments:
        leaves, weights: as in `root_values`.

    Returns:
        [L, n] int64; -1 where a region is in no chosen product.
    """
    rows, units = torch.arange(leaves.shape[1], device=leaves.device), leaves.shape[2]
    products = leaves.new_zeros(plan.products, *leaves.shape[1:])
    products.index_add_(0, plan.leaf_target, leaves[plan.leaf_source])
    for group, weight in zip(plan.groups[:-1], weights):
        scaled, largest = exponentiated(products, group.products)
        value = (torch.bmm(scaled, weight.exp().transpose(1, 2)).log() + largest).clamp_(min=FLOOR)
        products.index_add_(0, group.target, value[group.source])
    chosen = torch.full((plan.products, len(rows)), -1, device=leaves.device)  # the unit that is in use; -1: none
    for group, weight in zip(reversed(plan.groups), reversed(weights)):
        count, width = group.products.shape
        if group.is_root:
            unit = torch.zeros(1, len(rows), dtype=torch.long, device=leaves.device)
        else:
            unit = _largest(chosen[group.target], group.source, count)
        value = products[group.products.flatten()].unflatten(0, (count, width)).transpose(1, 2).flatten(2)
        region = torch.arange(count, device=leaves.device)[:, None]
        pick = draw(weight.clamp(min=FLOOR)[region, unit.clamp(min=0)] + value)  # [F, n]
        product = group.products[region, pick // units]
        current = chosen[product, rows]
        chosen[product, rows] = torch.where(unit >= 0, pick % units, current)
    return _largest(chosen[plan.leaf_target], plan.leaf_source, leaves.shape[0])
