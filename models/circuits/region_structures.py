"""Region graphs by rule: random, balanced and linear ones over any variables, rectangles and quadrants for images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppl_dgm.distributions.circuit.regions import RegionGraph
from ppl_dgm.errors import ProgramError

__all__ = [
    "REGION_STRUCTURES",
    "binary_tree_regions",
    "linear_regions",
    "poon_domingos_regions",
    "quad_tree_regions",
    "random_regions",
    "regions_named",
]

_MOST_REGIONS = 2_000_000


def random_regions(variables: int, replicas: int = 8, depth: int | None = None, seed: int = 0) -> RegionGraph:
    """A random tensorised circuit (RAT-SPN): a mixture of random binary splits of the variables.

    Each replica has leaves of its own and splits the variables into two random halves, these again, and so on.

    Arguments:
        variables: D.
        replicas: how many random trees the root mixes.
        depth: splits from the root down; what is left is one product of its variables. None: down to one variable.
        seed: of the random halves; torch's generator is left alone.

    Raises:
        ProgramError: an argument is out of range.

    Source: R. Peharz et al. (2020), Random sum-product networks.

    >>> random_regions(4, replicas=1, depth=1).sums[-1]
    ((4, 5),)
    """
    _at_least(1, variables=variables, replicas=replicas, depth=1 if depth is None else depth)
    made = _Builder(variables)
    generator = torch.Generator().manual_seed(seed)
    tops = []
    for _ in range(replicas):
        leaf = [made.leaf(v) for v in range(variables)]
        tops.append(_halves(made, leaf, torch.randperm(variables, generator=generator).tolist(), depth, generator))
    return made.finish(tops)


def binary_tree_regions(variables: int) -> RegionGraph:
    """The variables in their order, halved again and again.

    >>> len(binary_tree_regions(8).sums)
    7
    """
    _at_least(1, variables=variables)
    made = _Builder(variables)
    return made.finish([_halves(made, [made.leaf(v) for v in range(variables)], list(range(variables)), None, None)])


def linear_regions(variables: int) -> RegionGraph:
    """One variable after the other: the law of a hidden Markov chain whose steps have tables of their own.

    >>> linear_regions(3).sums
    (((1, 2),), ((0, 3),))
    """
    _at_least(1, variables=variables)
    made = _Builder(variables)
    leaf = [made.leaf(v) for v in range(variables)]
    below = leaf[-1]
    for v in range(variables - 2, 0, -1):
        below = made.sum([(leaf[v], below)])
    return made.finish([(leaf[0], below) if variables > 1 else (leaf[0],)])


def poon_domingos_regions(height: int, width: int, step: int = 1) -> RegionGraph:
    """All rectangles of an image on a grid; each is a mixture over all ways to cut it in two.

    Rectangles are shared between the larger ones that contain them. A cell of the grid (step x step pixels) is one
    product of its pixels.

    Arguments:
        height, width: of the image in pixels; pixel (i, j) is variable i width + j.
        step: of the grid. There are about (height width / 2 step^2)^2 rectangles.

    Raises:
        ProgramError: an argument is out of range, or there are over two million products.

    Source: H. Poon and P. Domingos (2011), Sum-product networks.

    >>> len(poon_domingos_regions(2, 2).sums)  # two rows, two columns, the whole
    5
    """
    _at_least(1, height=height, width=width, step=step)
    rows, columns = _grid(height, step), _grid(width, step)
    spans = [len(cuts) * (len(cuts) - 1) // 2 for cuts in (rows, columns)]
    if spans[0] * spans[1] * (len(rows) + len(columns)) // 3 > _MOST_REGIONS:
        raise ProgramError(
            f"step is {step}, which gives {spans[0] * spans[1]} rectangles of a {height} x {width} image; take more."
        )
    made = _Builder(height * width)
    pixel = [made.leaf(v) for v in range(height * width)]
    name: dict[tuple[int, int, int, int], int] = {}
    tops: list[tuple[int, ...]] = []
    for down in range(1, len(rows)):
        for across in range(1, len(columns)):
            for i in range(len(rows) - down):
                for j in range(len(columns) - across):
                    box = (i, i + down, j, j + across)
                    cuts: list[tuple[int, ...]] = []
                    cuts += [
                        (name[i, k, j, j + across], name[k, i + down, j, j + across]) for k in range(i + 1, box[1])
                    ]
                    cuts += [(name[i, i + down, j, k], name[i, i + down, k, j + across]) for k in range(j + 1, box[3])]
                    area = _pixels(rows[i], rows[box[1]], columns[j], columns[box[3]], width)
                    tops = cuts or [tuple(pixel[v] for v in area)]
                    if down < len(rows) - 1 or across < len(columns) - 1:  # the whole image is the root
                        name[box] = made.sum(tops) if len(area) > 1 else pixel[area[0]]
    return made.finish(tops)


def quad_tree_regions(height: int, width: int, cuts: str = "both") -> RegionGraph:
    """An image cut into quadrants, these again, and so on down to pixels.

    Arguments:
        height, width: of the image in pixels; pixel (i, j) is variable i width + j.
        cuts: "four": each region is one product of its quadrants; "binary": a product of two halves, top and bottom,
            each of which is cut left and right; "both": a mixture of that and of left and right cut first, which share
            the quadrants.

    Raises:
        ProgramError: an argument is out of range.

    Source: L. Loconte et al. (2024), What is the relationship between tensor factorizations and circuits.

    >>> [len(quad_tree_regions(4, 4, cuts).sums) for cuts in ("four", "binary", "both")]
    [5, 15, 25]
    """
    _at_least(1, height=height, width=width)
    if cuts not in ("both", "binary", "four"):
        raise ProgramError(f"cuts is {cuts!r}, but one of both, binary, four was expected.")
    made = _Builder(height * width)
    pixel = [made.leaf(v) for v in range(height * width)]

    def region(top: int, bottom: int, left: int, right: int) -> int:
        if bottom - top == right - left == 1:
            return pixel[top * width + left]
        return made.sum(products(top, bottom, left, right))

    def joined(*parts: int) -> int:
        """One part is itself; two make a region."""
        return parts[0] if len(parts) == 1 else made.sum([parts])

    def products(top: int, bottom: int, left: int, right: int) -> list[tuple[int, ...]]:
        down, across = _middle(top, bottom), _middle(left, right)
        quadrant = [[region(*d, *a) for a in across] for d in down]
        if cuts == "four" or len(down) == 1 or len(across) == 1:
            return [tuple(part for row in quadrant for part in row)]
        found: list[tuple[int, ...]] = [tuple(joined(*row) for row in quadrant)]
        if cuts == "both":
            found.append(tuple(joined(*column) for column in zip(*quadrant, strict=True)))
        return found

    return made.finish(products(0, height, 0, width))


REGION_STRUCTURES: dict[str, Callable[..., RegionGraph]] = {
    "random": random_regions,
    "binary-tree": binary_tree_regions,
    "linear": linear_regions,
    "poon-domingos": poon_domingos_regions,
    "quad-tree": quad_tree_regions,
}
_IMAGES = ("poon-domingos", "quad-tree")


def regions_named(
    structure: str, variables: int, shape: Sequence[int] | None = None, options: dict[str, Any] | None = None
) -> RegionGraph:
    """The region graph of a structure in `REGION_STRUCTURES`.

    Arguments:
        structure: its name.
        variables: D.
        shape: (height, width) of images, whose product is D; needed by "poon-domingos" and "quad-tree".
        options: further arguments of the builder.

    Raises:
        ProgramError: the shape is missing or does not fit, or the builder refuses an option.
    """
    size: tuple[int, ...] = (variables,)
    if structure in _IMAGES:
        if shape is None or len(shape) != 2 or shape[0] * shape[1] != variables:
            raise ProgramError(
                f"structure {structure!r} cuts images, but shape is {shape!r}; pass shape=(height, width) with "
                f"height x width = {variables}."
            )
        size = (int(shape[0]), int(shape[1]))
    elif shape is not None:
        raise ProgramError(f"structure {structure!r} takes no shape; leave it out, or take one of {_IMAGES}.")
    try:
        return REGION_STRUCTURES[structure](*size, **(options or {}))
    except TypeError as error:
        raise ProgramError(f"structure {structure!r} does not take the options {options} ({error}).") from None


class _Builder:
    """Names leaves and sums while a region graph grows; leaves come first in the names, so they are made first."""

    def __init__(self, variables: int) -> None:
        self.variables = variables
        self.leaves: list[int] = []
        self.sums: list[list[tuple[int, ...]]] = []

    def leaf(self, variable: int) -> int:
        """Leaf i is -1 - i until all are known."""
        self.leaves.append(variable)
        return -len(self.leaves)

    def sum(self, products: list[tuple[int, ...]]) -> int:
        self.sums.append(products)
        return len(self.sums) - 1

    def finish(self, root: list[tuple[int, ...]]) -> RegionGraph:
        first = len(self.leaves)
        sums = tuple(
            tuple(tuple(-1 - f if f < 0 else first + f for f in product) for product in products)
            for products in [*self.sums, root]
        )
        return RegionGraph(self.variables, tuple(self.leaves), sums)


def _halves(
    made: _Builder, leaf: list[int], order: list[int], depth: int | None, generator: torch.Generator | None
) -> tuple[int, ...]:
    """The product at the top of a binary tree over the variables in `order`."""
    if depth == 0 or len(order) <= 2:
        return tuple(leaf[v] for v in order)
    middle, below = (len(order) + 1) // 2, None if depth is None else depth - 1
    factors = []
    for half in (order[:middle], order[middle:]):
        if generator is not None:
            half = [half[i] for i in torch.randperm(len(half), generator=generator)]
        if len(half) == 1:
            factors.append(leaf[half[0]])
        else:
            factors.append(made.sum([_halves(made, leaf, half, below, generator)]))
    return tuple(factors)


def _grid(length: int, step: int) -> list[int]:
    return [*range(0, length, step), length]


def _pixels(top: int, bottom: int, left: int, right: int, width: int) -> list[int]:
    return [i * width + j for i in range(top, bottom) for j in range(left, right)]


def _middle(start: int, end: int) -> list[tuple[int, int]]:
    """The two halves of an interval; an interval of one stays whole."""
    if end - start == 1:
        return [(start, end)]
    middle = (start + end + 1) // 2
    return [(start, middle), (middle, end)]


def _at_least(least: int, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < least:
            raise ProgramError(f"{name} is {number}, but a region graph needs at least {least}.")
