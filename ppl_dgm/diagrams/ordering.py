"""The order across: few crossings, and every plate's nodes next to one another, crossing plates included."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

__all__ = ["Ordering", "Segment", "Unit", "pieces"]

_CELLS = 7  # crossing plates with more distinct regions than this are ordered greedily
_BUDGET = 4000  # orders tried, at most


@dataclass
class Unit:
    """What has one place in a row: a node, a stack of parameters beside a plate, or a bend of a long edge
    (no names)."""

    names: tuple[str, ...]
    row: int
    plates: frozenset[str]
    width: float
    pull: float = 0.0  # which side it would rather stand at: negative for the left


@dataclass(frozen=True)
class Segment:
    """A piece of an edge between two units, in neighbouring rows or in the same row."""

    source: int
    target: int
    weight: float = 1.0


class _Box:
    """Units and boxes that stay next to one another; `orders` are the allowed ones of crossing plates
    (None: any)."""

    def __init__(self, children: list["int | _Box"], orders: list[tuple[int, ...]] | None = None) -> None:
        self.children, self.orders = children, orders
        self.original = list(children)

    def units(self) -> Iterator[int]:
        for child in self.children:
            if isinstance(child, _Box):
                yield from child.units()
            else:
                yield child

    def boxes(self) -> Iterator["_Box"]:
        yield self
        for child in self.children:
            if isinstance(child, _Box):
                yield from child.boxes()


def _crossing(a: frozenset[int], b: frozenset[int]) -> bool:
    return bool(a & b) and not a <= b and not b <= a


def _gather(units: list[int], plates: list[frozenset[int]], rows: list[int]) -> _Box:
    """The boxes of nested plates; plates that cross share a box, whose children are the regions that they
    cut out."""
    plates = [p for p in dict.fromkeys(plates) if len(p) > 1 and len(p) < len(units)]
    largest = [p for p in plates if not any(p < q for q in plates)]
    children: list[int | _Box] = []
    taken: set[int] = set()
    for unit in units:
        if unit in taken:
            continue
        family = [p for p in largest if unit in p]
        if not family:
            children.append(unit)
            taken.add(unit)
            continue
        while grown := [p for p in plates if p not in family and any(_crossing(p, q) for q in family)]:
            family += grown
        inside = [u for u in units if any(u in p for p in family)]
        taken.update(inside)
        if len(family) == 1:
            children.append(_gather(inside, [p for p in plates if p < family[0]], rows))
        else:
            children.append(_regions(inside, family, plates, rows))
    return _Box(children)


def _regions(inside: list[int], family: list[frozenset[int]], plates: list[frozenset[int]], rows: list[int]) -> _Box:
    cells: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for unit in inside:
        cells[tuple(unit in p for p in family)].append(unit)
    regions = list(cells.values())
    orders = _cell_orders(list(cells), regions, family, rows)
    rest = [p for p in plates if p not in family]
    return _Box([_gather(region, [p for p in rest if p <= set(region)], rows) for region in regions], orders)


def _cell_orders(
    signatures: list[tuple[bool, ...]],
    regions: list[list[int]],
    family: list[frozenset[int]],
    rows: list[int],
) -> list[tuple[int, ...]]:
    """The orders of the regions in which the fewest plates are interrupted."""
    extents = [(min(rows[u] for u in p), max(rows[u] for u in p)) for p in family]
    beside = [[any(low <= rows[u] <= high for u in region) for low, high in extents] for region in regions]

    def broken(order: tuple[int, ...]) -> int:
        count = 0
        for p in range(len(family)):
            holds = [signatures[c][p] for c in order]
            start, end = holds.index(True), len(holds) - holds[::-1].index(True)
            count += sum(not h and beside[c][p] for h, c in zip(holds[start:end], order[start:end]))
        return count

    if len(regions) > _CELLS:  # regions of many plates in the middle of those that they share
        return [tuple(sorted(range(len(regions)), key=lambda c: [not s for s in signatures[c]]))]
    scored = [(broken(order), order) for order in permutations(range(len(regions)))]
    least = min(score for score, _ in scored)
    return [order for score, order in scored if score == least][:48]


def pieces(units: list[Unit], order: list[int], members: frozenset[int]) -> list[frozenset[int]]:
    """The runs into which an order cuts a plate: one, unless units that are not in it stand between its own
    in its rows."""
    rows = [units[u].row for u in members]
    low, high = min(rows), max(rows)
    runs: list[list[int]] = [[]]
    for unit in order:
        if unit in members:
            runs[-1].append(unit)
        elif runs[-1] and low <= units[unit].row <= high:
            runs.append([])
    return [frozenset(run) for run in runs if run]


class Ordering:
    """Finds the order across of units.

    Arguments:
        units: with their rows and plates.
        segments: edges; those within a row may run over a unit, those between neighbouring rows may cross.
    """

    def __init__(self, units: list[Unit], segments: list[Segment]) -> None:
        self.units = units
        self.rows = np.array([u.row for u in units])
        self.width = np.array([u.width for u in units])
        self.pull = np.array([u.pull for u in units])
        self.anchor = np.arange(len(units))  # what a unit with a pull stands beside
        plates: dict[str, set[int]] = defaultdict(set)
        for i, unit in enumerate(units):
            for plate in sorted(unit.plates):
                plates[plate].add(i)
        self.root = _gather(list(range(len(units))), [frozenset(p) for p in plates.values()], self.rows.tolist())
        down, level = [], []
        for s in segments:
            if self.rows[s.source] == self.rows[s.target]:
                level.append((s.source, s.target, s.weight))
            elif abs(self.rows[s.source] - self.rows[s.target]) == 1:
                ends = (s.source, s.target) if self.rows[s.source] < self.rows[s.target] else (s.target, s.source)
                down.append((*ends, s.weight))
        self.down, self.level = _table(down), _table(level)
        for source, target, _ in level[::-1]:
            self.anchor[source] = target
        self.pairs = self._pairs()
        self.members = [np.flatnonzero(self.rows == row) for row in range(int(self.rows.max(initial=-1)) + 1)]
        into = [self.down[self.rows[self.down[:, 1].astype(int)] == row] for row in range(len(self.members))]
        self.into = [(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2]) for table in into]
        self.budget = max(300, min(_BUDGET, 100_000 // max(len(units), 1)))
        self.tried = 0

    def _pairs(self) -> np.ndarray:
        """Pairs of segments that may cross: those in the same gap that share no end. [pair, 2]"""
        gaps: dict[int, list[int]] = defaultdict(list)
        for i, top in enumerate(self.down[:, 0].astype(int)):
            gaps[int(self.rows[top])].append(i)
        found = [pair for _, gap in sorted(gaps.items()) if len(gap) < 400 for pair in combinations(gap, 2)]
        return np.array(found, dtype=int).reshape(-1, 2)

    def places(self, order: list[int]) -> np.ndarray:
        """Rough places across: each row packed, and shifted to where its parents are. [unit]"""
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        line = np.lexsort((rank, self.rows))
        ends = np.cumsum(self.width[line])
        middle = np.empty(len(order))
        middle[line] = ends - self.width[line] / 2
        for row, members in enumerate(self.members):
            start, end, weight = self.into[row]
            if len(start):
                shift = float(((middle[start] - middle[end]) * weight).sum() / weight.sum())
            else:
                shift = -float(middle[members].mean()) if len(members) else 0.0
            middle[members] += shift
        return middle

    def cost(self, order: list[int]) -> float:
        """Crossings first, then edges over units of their row, then lengths, then the order of the
        program."""
        self.tried += 1
        x = self.places(order)
        total = 0.0
        if len(self.down):
            top, bottom = x[self.down[:, 0].astype(int)], x[self.down[:, 1].astype(int)]
            weight = self.down[:, 2]
            total += 0.012 * float(np.abs(top - bottom) @ weight)
            if len(self.pairs):
                i, j = self.pairs.T
                crossed = (top[i] - top[j]) * (bottom[i] - bottom[j]) < 0
                total += 4.0 * float(np.minimum(weight[i], weight[j]) @ crossed)
        for source, target, weight in self.level.tolist():
            a, b = x[int(source)], x[int(target)]
            row = self.rows == self.rows[int(source)]
            forward = not (self.pull[int(source)] or self.pull[int(target)])  # time runs to the right
            between = row & (x > min(a, b)) & (x < max(a, b))
            total += weight * (3.0 * int(between.sum()) + 0.012 * abs(a - b) + 0.4 * (forward and a > b))
        total -= 0.002 * float((x - x[self.anchor]) @ self.pull)
        rank = np.empty(len(order))
        rank[order] = np.arange(len(order))
        return total + 1e-3 * float(np.abs(rank - np.arange(len(order))).sum()) / len(order)

    def best(self) -> list[int]:
        """The best order found: barycentres first, then each child of each box tried in every place."""
        best = list(self.root.units())
        least = self.cost(best)
        for _ in range(6):
            self._barycentres()
            order = list(self.root.units())
            if (cost := self.cost(order)) < least - 1e-9:
                best, least = order, cost
        rank = {unit: i for i, unit in enumerate(best)}
        self._sort(self.root, {unit: float(i) for unit, i in rank.items()})
        least = self.cost(list(self.root.units()))
        improved = True
        while improved and self.tried < self.budget:
            improved = False
            for box in list(self.root.boxes()):
                least, better = self._improve(box, least)
                improved |= better
        return list(self.root.units())

    def _barycentres(self) -> None:
        x = self.places(list(self.root.units()))
        total, weight = np.zeros(len(x)), np.zeros(len(x))
        for source, target, w in [*self.down.tolist(), *self.level.tolist()]:
            for a, b in ((int(source), int(target)), (int(target), int(source))):
                total[a] += w * x[b]
                weight[a] += w
        wanted = np.where(weight > 0, total / np.maximum(weight, 1e-9), x)
        self._sort(self.root, dict(enumerate((0.5 * wanted + 0.5 * x).tolist())))

    def _sort(self, box: _Box, wanted: dict[int, float]) -> None:
        def key(child: "int | _Box") -> float:
            return float(np.mean([wanted[u] for u in child.units()])) if isinstance(child, _Box) else wanted[child]

        for child in box.children:
            if isinstance(child, _Box):
                self._sort(child, wanted)
        if box.orders is None:
            box.children.sort(key=key)
        else:
            places = [key(child) for child in box.original]
            order = min(box.orders, key=lambda o: sum(i * -places[c] for i, c in enumerate(o)))
            box.children = [box.original[c] for c in order]

    def _improve(self, box: _Box, least: float) -> tuple[float, bool]:
        better = False
        for trial in self._moves(box):
            if self.tried > self.budget:
                break
            before, box.children = box.children, trial(box.children)
            cost = self.cost(list(self.root.units()))
            if cost < least - 1e-9:
                least, better = cost, True
            else:
                box.children = before
        return least, better

    def _moves(self, box: _Box) -> Iterable:
        if box.orders is not None:
            for order in box.orders:
                yield lambda _, order=order: [box.original[c] for c in order]
            return
        for child in list(box.children):
            rows = self._rows_of(child)
            for other in list(box.children):
                if other is not child and rows & self._rows_of(other):
                    for after in (0, 1):
                        yield lambda now, child=child, other=other, after=after: _moved(now, child, other, after)
        yield lambda now: now[::-1]

    def _rows_of(self, child: "int | _Box") -> set[int]:
        units = list(child.units()) if isinstance(child, _Box) else [child]
        rows = self.rows[units]
        return set(range(int(rows.min()), int(rows.max()) + 1))


def _moved(children: list, child: object, other: object, after: int) -> list:
    """`child` taken out and put before or after `other`."""
    rest = [c for c in children if c is not child]
    at = next(i for i, c in enumerate(rest) if c is other) + after
    return [*rest[:at], child, *rest[at:]]


def _table(rows: list[tuple[int, int, float]]) -> np.ndarray:
    return np.array(rows, dtype=float).reshape(-1, 3)
