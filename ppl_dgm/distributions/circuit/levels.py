"""A region graph laid out for its passes: who lies next to whom, so that few operations reach all of a level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .regions import RegionPlan

__all__ = ["Fold", "Index", "Layout", "Level", "take"]

Index = slice | Tensor
"""Positions along a first dimension: a slice where they follow each other, which is read without a copy."""


def take(values: Tensor, index: Index) -> Tensor:
    """`values[index]`."""
    return values[index] if isinstance(index, slice) else values.index_select(0, index)


@dataclass(frozen=True)
class Level:
    """One group of sums, its regions sorted by how many factors they have, most first.

    Attributes:
        order: [F] which of the group's regions; None: as they stand.
        width: P products of each region.
        regions, products: where the level lies among all values and all products.
        slots: the j-th factors of the first products that have so many: [m_j P] regions.
        sources, targets: [pairs] regions, and which of the level's products each is a factor of.
        leaves: pairs of [a] products of the level and [a] leaves that are factors of them.
        readers: [pairs] products, of all, that the level's regions are factors of.
        read: [pairs] which of the level's regions; None: one reader each, in their order.
    """

    order: Tensor | None
    width: int
    regions: slice
    products: slice
    slots: tuple[Index, ...]
    sources: Tensor
    targets: Tensor
    leaves: tuple[tuple[Index, Index], ...]
    readers: Tensor
    read: Tensor | None

    def sorted(self, weight: Tensor) -> Tensor:
        """The group's weights [F, ...] in the order of the level."""
        return weight if self.order is None else weight.index_select(0, self.order)

    def restored(self, weight: Tensor) -> Tensor:
        """The other way round."""
        return weight if self.order is None else torch.empty_like(weight).index_copy_(0, self.order, weight)


@dataclass(frozen=True)
class Fold:
    """A group of sums each of whose products is one leaf: over a table of values they are a table themselves.

    Attributes:
        leaves: [F P] the leaves.
        width: P.
        regions: where their tables lie, after those of the leaves.
    """

    leaves: Tensor
    width: int
    regions: slice


@dataclass(frozen=True)
class Layout:
    """A plan's regions in the order of their use.

    The values of all regions lie in one buffer: leaves in the order in which they are read, then sums level by level,
    the root last, then, where products of a region differ in the number of their factors, a region of value one.

    Attributes:
        folds: the first groups, where they are folded.
        levels: the other groups, lower ones first.
        leaf: [L'] the leaves of the levels: a leaf region, or L + the number of a folded sum.
        variable: [L'] of each.
        regions, products: how many there are.
        padded: whether a region of value one is there, the last.
    """

    folds: tuple[Fold, ...]
    levels: tuple[Level, ...]
    leaf: Tensor
    variable: Tensor
    regions: int
    products: int
    padded: bool

    @classmethod
    def of(cls, plan: RegionPlan, fold: bool) -> "Layout":
        """Lay out a plan; with `fold`, its leaves are tables."""
        return _Layouts(plan, fold).made()


class _Layouts:
    """What is known while a plan is laid out."""

    def __init__(self, plan: RegionPlan, fold: bool) -> None:
        self.sums, self.device = plan.graph.sums, plan.leaf_variable.device
        self.count = len(plan.graph.leaves)
        self.variables = list(plan.graph.leaves)
        self.groups = [group.regions.tolist() for group in plan.groups]
        self.leaf_of: dict[int, int] = {i: i for i in range(self.count)}  # region -> leaf, or count + folded sum
        self.folds: list[Fold] = []
        self.place: dict[int, int] = {}  # region -> position among the values
        while fold and self._is_fold(self.groups[0]):
            self._fold(self.groups.pop(0))

    def _is_fold(self, group: list[int]) -> bool:
        products = [product for i in group for product in self.sums[i]]
        single = all(len(product) == 1 and product[0] < self.count for product in products)
        return single and len(self.groups) > 1

    def _fold(self, group: list[int]) -> None:
        begin = len(self.leaf_of)
        for i in group:
            self.leaf_of[self.count + i] = len(self.leaf_of)
            self.variables.append(self.variables[self.sums[i][0][0]])
        leaves = [product[0] for i in group for product in self.sums[i]]
        width = len(self.sums[group[0]])
        self.folds.append(Fold(self._tensor(leaves), width, slice(begin, len(self.leaf_of))))

    def made(self) -> Layout:
        orders = [sorted(range(len(group)), key=lambda f: self._rank(group[f])) for group in self.groups]
        sorted_groups = [[g[f] for f in order] for g, order in zip(self.groups, orders, strict=True)]
        products = [[self._factors(p) for i in group for p in self.sums[i]] for group in sorted_groups]
        leaves: dict[int, int] = {}
        for level in products:
            for j in range(max(map(len, level))):
                for factors in level:
                    if j < len(factors) and factors[j] in self.leaf_of:
                        leaves.setdefault(factors[j], len(leaves))
        self.place |= leaves
        for group in sorted_groups:
            for i in group:
                self.place[self.count + i] = len(self.place)
        readers: dict[int, list[int]] = {}
        for number, factors in enumerate(factors for level in products for factors in level):
            for factor in factors:
                readers.setdefault(factor, []).append(number)
        padded, levels, first = False, [], 0
        for group, order, level in zip(sorted_groups, orders, products, strict=True):
            made, short = self._level(group, order, level, first, len(leaves), readers)
            levels.append(made)
            padded, first = padded or short, first + len(level)
        leaf = [self.leaf_of[region] for region in leaves]
        variable = [self.variables[i] for i in leaf]
        return Layout(
            tuple(self.folds), tuple(levels), self._tensor(leaf), self._tensor(variable),
            len(self.place), first, padded,
        )  # fmt: skip

    def _level(
        self, group: list[int], order: list[int], level: list[list[int]], first: int, leaves: int, readers: dict
    ) -> tuple[Level, bool]:
        width, short = len(self.sums[group[0]]), False
        one = len(self.place)
        most = [max(map(len, level[f * width : (f + 1) * width])) for f in range(len(group))]
        slots: list[Index] = []
        pairs: list[tuple[Index, Index]] = []
        for j in range(max(most)):
            here = level[: width * sum(m > j for m in most)]
            places = [self.place[factors[j]] if j < len(factors) else one for factors in here]
            short = short or one in places
            slots.append(self._index(places))
            read = [(p, place) for p, place in enumerate(places) if place < leaves]
            if read:
                pairs.append((self._index([p for p, _ in read]), self._index([place for _, place in read])))
        feeds = [(self.place[factor], p) for p, factors in enumerate(level) for factor in factors]
        by = [(f, number) for f, i in enumerate(group) for number in readers.get(self.count + i, [])]
        begin = self.place[self.count + group[0]]
        made = Level(
            None if order == sorted(order) else self._tensor(order),
            width,
            slice(begin, begin + len(group)),
            slice(first, first + len(level)),
            tuple(slots),
            self._tensor([source for source, _ in feeds]),
            self._tensor([target for _, target in feeds]),
            tuple(pairs),
            self._tensor([number for _, number in by]),
            None if [f for f, _ in by] == list(range(len(group))) else self._tensor([f for f, _ in by]),
        )
        return made, short

    def _factors(self, product: Sequence[int]) -> list[int]:
        """Leaves first."""
        return sorted(product, key=lambda factor: factor not in self.leaf_of)

    def _rank(self, i: int) -> tuple[int, int]:
        """Most factors first, then most leaves."""
        products = self.sums[i]
        return -max(map(len, products)), -sum(factor in self.leaf_of for factor in products[0])

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def _index(self, values: Sequence[int]) -> Index:
        first = values[0]
        return slice(first, first + len(values)) if list(values) == list(range(first, first + len(values))) \
            else self._tensor(values)  # fmt: skip
