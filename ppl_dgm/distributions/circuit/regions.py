"""Region graphs: circuits whose nodes come in vectors, so that they evaluate as matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import ProgramError

if TYPE_CHECKING:
    from .levels import Layout

__all__ = ["RegionGraph", "RegionPlan", "SumGroup"]


@dataclass(frozen=True)
class RegionGraph:
    """Who is made of whom in a circuit of regions with S units each.

    A leaf region holds S distributions of one variable. A sum region holds S mixtures of all units of its products,
    and a product multiplies the units of its factors one by one:

        sum_j = sum_p sum_k W_{j, (p, k)} prod_{factors f of product p} unit_k(f).

    The last sum region is the root and has one unit. Hidden Chow-Liu trees, random tensorised and image
    circuits are of this form.

    Attributes:
        variables: D.
        leaves: the variable of each leaf region; leaf i has the name i.
        sums: for each sum region its products, each a tuple of names of factors; sum i has the name len(leaves) + i and
            stands after its factors.

    Raises:
        ProgramError: it is not smooth or not decomposable, or a region stands before its factors; the message names
            the region.

    Source: H. Poon and P. Domingos (2011); R. Peharz et al. (2020), Einsum networks.

    >>> RegionGraph(2, (0, 1), (((0, 1),),)).scope(2)
    frozenset({0, 1})
    """

    variables: int
    leaves: tuple[int, ...]
    sums: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        if not self.sums:
            raise ProgramError("a region graph needs at least one sum region, the root.")
        wrong = [v for v in self.leaves if not 0 <= v < self.variables]
        if wrong:
            raise ProgramError(f"a leaf region is over variable {wrong[0]}, but there are {self.variables} variables.")
        if self.scope(self.root) != frozenset(range(self.variables)):
            missing = min(set(range(self.variables)) - self.scope(self.root))
            raise ProgramError(f"the root does not depend on variable {missing}; every variable needs a leaf below it.")

    @property
    def root(self) -> int:
        """The name of the last sum region."""
        return len(self.leaves) + len(self.sums) - 1

    def scope(self, region: int) -> frozenset[int]:
        """The variables that a region depends on."""
        return self._scopes[region]

    @cached_property
    def _scopes(self) -> list[frozenset[int]]:
        scopes = [frozenset((v,)) for v in self.leaves]
        for i, products in enumerate(self.sums):
            name, found = len(self.leaves) + i, []
            if not products:
                raise ProgramError(f"sum region {name} has no product; give it one.")
            for product in products:
                late = [factor for factor in product if not 0 <= factor < name]
                if late or not product:
                    raise ProgramError(f"a product of region {name} has the factors {product}; name earlier regions.")
                parts = [scopes[factor] for factor in product]
                found.append(frozenset().union(*parts))
                if len(found[-1]) < sum(map(len, parts)):
                    twice = min(v for v in found[-1] if sum(v in part for part in parts) > 1)
                    raise ProgramError(
                        f"a product of region {name} is not decomposable: variable {twice} is in two of its factors."
                    )
            if len(set(found)) > 1:
                odd = min(found[0].symmetric_difference(next(s for s in found if s != found[0])))
                raise ProgramError(
                    f"sum region {name} is not smooth: variable {odd} is in some of its products and not in others."
                )
            scopes.append(found[0])
        return scopes


@dataclass(frozen=True)
class SumGroup:
    """Sum regions of one height and one number of products, evaluated as one batched matrix product.

    Attributes:
        regions: [F] which sums (positions in `RegionGraph.sums`).
        products: [F, P] positions of their products among all products.
        source, target: [pairs] which of the F feeds which product above.
        is_root: the root alone, with one unit.
    """

    regions: Tensor
    products: Tensor
    source: Tensor
    target: Tensor
    is_root: bool


@dataclass(frozen=True)
class RegionPlan:
    """A region graph as index tensors.

    Attributes:
        graph: what was compiled.
        leaf_variable: [L].
        leaf_source, leaf_target: [pairs] which leaf feeds which product.
        products: how many products there are.
        groups: of sums, lower ones first; the root is the last.
    """

    graph: RegionGraph
    leaf_variable: Tensor
    leaf_source: Tensor
    leaf_target: Tensor
    products: int
    groups: tuple[SumGroup, ...]

    @cached_property
    def folded(self) -> "Layout":
        """For leaves that are tables."""
        from .levels import Layout

        return Layout.of(self, fold=True)

    @cached_property
    def unfolded(self) -> "Layout":
        """For leaves of any kind."""
        from .levels import Layout

        return Layout.of(self, fold=False)

    @classmethod
    def build(cls, graph: RegionGraph, device: torch.device | str = "cpu") -> "RegionPlan":
        """Number the products, and sort the sums by height."""

        def index(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        leaves = len(graph.leaves)
        numbers: list[list[int]] = []
        feeds: dict[int, list[int]] = {}  # region -> products that it is a factor of
        count = 0
        for products in graph.sums:
            numbers.append(list(range(count, count + len(products))))
            for number, product in zip(numbers[-1], products, strict=True):
                for factor in product:
                    feeds.setdefault(factor, []).append(number)
            count += len(products)
        height = [0] * leaves
        for products in graph.sums:
            height.append(1 + max(height[factor] for product in products for factor in product))
        buckets: dict[tuple[bool, int, int], list[int]] = {}
        for i, products in enumerate(graph.sums):
            is_root = leaves + i == graph.root
            buckets.setdefault((is_root, height[leaves + i], len(products)), []).append(i)
        groups = []
        for (is_root, _, _), members in sorted(buckets.items()):
            pairs = [(f, target) for f, i in enumerate(members) for target in feeds.get(leaves + i, [])]
            source, target = index([f for f, _ in pairs]), index([t for _, t in pairs])
            groups.append(SumGroup(index(members), index([numbers[i] for i in members]), source, target, is_root))
        pairs = [(leaf, target) for leaf in range(leaves) for target in feeds.get(leaf, [])]
        source, target = index([leaf for leaf, _ in pairs]), index([t for _, t in pairs])
        return cls(graph, index(graph.leaves), source, target, count, tuple(groups))
