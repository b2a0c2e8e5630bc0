"""Where everything stands: a linear program across, stacked margins along, and the boxes of the plates."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from .ordering import Segment, Unit
from .scene import EDGE, PlateMark, Scene

__all__ = ["Placement"]

_GAP = 18.0  # between neighbours of a row
_BEND = 9.0  # between a bend of a long edge and its neighbours
_PAD = 9.0  # between a plate's border and its nodes
_INNER = 5.0  # between the borders of two plates, one in the other
_OUTSIDE = 12.0  # between a plate's border and what is not in it
_STACK = 7.0  # between the parameters of a stack
_FAN = 8  # edges that would run over their end's neighbours, before rows are set further apart
_LABEL = 5.0  # between a plate's label and its border


@dataclass
class Placement:
    """Gives places to units whose rows and order are known.

    Across is to the right (orientation "down") or downwards ("right"); along is the direction in which rows
    follow one another.

    Arguments:
        scene: its nodes and plates get their places.
        units: what stands in the rows.
        order: the units' order across.
        segments: what should be short.
        plates: for each plate of the scene, its units.
        right: whether rows run from left to right.
    """

    scene: Scene
    units: list[Unit]
    order: list[int]
    segments: list[Segment]
    plates: list[frozenset[int]]
    right: bool = False
    rank: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rank = {unit: i for i, unit in enumerate(self.order)}
        self.extent = np.array([self._extent(u) for u in self.units]).reshape(
            -1, 4
        )  # across low, high, along low, high
        self.offsets = [self._stack(u)[0] for u in self.units]
        rows = [[self.units[u].row for u in members] for members in self.plates]
        self.first, self.last = [min(r) for r in rows], [max(r) for r in rows]
        self.nested = {
            (i, j)
            for i, a in enumerate(self.plates)
            for j, b in enumerate(self.plates)
            if i != j and self._holds(i, j, a, b)
        }
        self.crossing = {
            (i, j)
            for i, a in enumerate(self.plates)
            for j, b in enumerate(self.plates)
            if i != j and a & b and (i, j) not in self.nested and (j, i) not in self.nested
        }
        self.strips = [sum(plate.label.extent[1:]) + _LABEL for plate in self.scene.plates]

    @staticmethod
    def _holds(i: int, j: int, a: frozenset[int], b: frozenset[int]) -> bool:
        """Whether plate i goes round plate j; of two with the same members, the first does."""
        return b < a or (a == b and i < j)

    # -- extents
    # ------------------------------------------------------------------------------------------------------

    def _margins(self, name: str) -> tuple[float, float, float, float]:
        left, below, right, above = self.scene.nodes[name].margins()
        return (above, below, left, right) if self.right else (left, right, above, below)

    def _stack(self, unit: Unit) -> tuple[list[float], float]:
        """Where the members of a stack stand along, relative to its middle, and half its length."""
        margins = [self._margins(name) for name in unit.names]
        places, at = [], 0.0
        for _, _, low, high in margins:
            places.append(at + low)
            at += low + high + _STACK
        half = (at - _STACK) / 2
        return [place - half for place in places], half

    def _extent(self, unit: Unit) -> tuple[float, float, float, float]:
        if not unit.names:
            return 1.0, 1.0, 1.0, 1.0
        margins = np.array([self._margins(name) for name in unit.names])
        if len(unit.names) == 1:
            return tuple(margins[0].tolist())
        half = self._stack(unit)[1]
        return float(margins[:, 0].max()), float(margins[:, 1].max()), half, half

    # -- the picture
    # --------------------------------------------------------------------------------------------------

    def run(self) -> dict[int, tuple[float, float]]:
        """Sets the places of the nodes and the boxes of the plates; returns the units' places, in points."""
        if not self.units:
            return {}
        ends, starts = self._levels(self.last), self._levels(self.first)
        if self.right:
            self._make_room_for_labels()
        across, low, high = self._across(ends)
        along = self._along(ends, starts, across)
        lengths = self._ends(along, ends, starts)
        for i, unit in enumerate(self.units):
            places = self.offsets[i] if len(unit.names) > 1 else [0.0]
            for name, offset in zip(unit.names, places):
                node, a, s = self.scene.nodes[name], float(across[i]), float(along[unit.row]) + offset
                node.x, node.y = (s, -a) if self.right else (a, -s)
                node.place_texts()
        for p, plate in enumerate(self.scene.plates):
            box = (
                (lengths[p][0], -high[p], lengths[p][1], -low[p])
                if self.right
                else (low[p], -lengths[p][1], high[p], -lengths[p][0])
            )
            plate.box = tuple(map(float, box))  # type: ignore[assignment]
            set_plate_label(plate)
        middles = [(float(across[i]), float(along[unit.row])) for i, unit in enumerate(self.units)]
        return {i: (s, -a) if self.right else (a, -s) for i, (a, s) in enumerate(middles)}

    def _levels(self, edge_rows: list[int]) -> list[int]:
        """How many borders a plate's border must keep clear of in its row: those of plates inside it and
        some that cross it."""
        level = [0] * len(self.plates)
        for p in self._inner_first():
            inner = [q for q in range(len(level)) if level[q] and edge_rows[q] == edge_rows[p] and self._meets(p, q)]
            level[p] = 1 + max((level[q] for q in inner), default=0)
        return level

    def _inner_first(self) -> list[int]:
        """Plates after those inside them; of two that cross, first the one whose label the other's border
        could meet."""
        last = [max(self.rank[u] for u in members) * (1 if self.right else -1) for members in self.plates]
        left, done = sorted(range(len(self.plates)), key=lambda p: (last[p], len(self.plates[p]), -p)), []
        while left:
            p = next(p for p in left if not any((p, q) in self.nested for q in left))
            left.remove(p)
            done.append(p)
        return done

    def _meets(self, p: int, q: int) -> bool:
        return (p, q) in self.nested or (p, q) in self.crossing

    def _make_room_for_labels(self) -> None:
        """Rows run to the right: a plate must be as long as its label."""
        for p in sorted(range(len(self.plates)), key=lambda p: len(self.plates[p])):
            needed = self.scene.plates[p].label.extent[0] + 2 * _LABEL
            levels = 2 * _PAD + (self.last[p] - self.first[p]) * (EDGE + 2 * 14.0)
            ends = [u for u in self.plates[p] if self.units[u].row == self.last[p]]
            short = needed - levels - 2 * float(self.extent[ends, 2:].max())
            if short > 0:
                self.extent[ends, 2:] += short / 2

    def _along(self, ends: list[int], starts: list[int], across: np.ndarray) -> np.ndarray:
        """The places of the rows: room for nodes, the borders and labels of plates that end or begin
        between them. [row]"""
        count = max(u.row for u in self.units) + 1
        rows = np.array([u.row for u in self.units])
        before, after = np.zeros(count), np.zeros(count)
        np.maximum.at(before, rows, self.extent[:, 2])
        np.maximum.at(after, rows, self.extent[:, 3])
        ending, starting = np.zeros(count), np.zeros(count)
        for p, strip in enumerate(self.strips):
            one = _INNER + (0.0 if self.right else strip)
            ending[self.last[p]] = max(ending[self.last[p]], ends[p] * one + _PAD - _INNER)
            starting[self.first[p]] = max(starting[self.first[p]], starts[p] * _INNER + _PAD - _INNER)
        along, fans = np.zeros(count), self._fans(across)
        for r in range(1, count):
            borders = ending[r - 1] + starting[r]
            least = after[r - 1] + before[r] + max(EDGE, borders + (_OUTSIDE if borders else 0))
            along[r] = along[r - 1] + max(least, fans.get(r, 0.0))
        return along

    def _fans(self, across: np.ndarray) -> dict[int, float]:
        """Rows that many slanting edges enter, and how far below the last row they must be for the edges to
        miss their neighbours."""
        needed: dict[int, list[float]] = defaultdict(list)
        rows: dict[int, list[int]] = defaultdict(list)
        for u in self.order:
            if self.units[u].names:
                rows[self.units[u].row].append(u)
        place = {u: (i, line) for line in rows.values() for i, u in enumerate(line)}
        for s in self.segments:
            for u, v in ((s.source, s.target), (s.target, s.source)):
                if u not in place or v not in place or abs(self.units[u].row - self.units[v].row) != 1:
                    continue
                width, (i, line) = float(across[u] - across[v]), place[v]
                beside = i + (1 if width > 0 else -1)
                if 0 <= beside < len(line) and abs(width) > abs(gap := float(across[line[beside]] - across[v])):
                    clear = 21.0
                    needed[max(self.units[u].row, self.units[v].row)].append(
                        clear * abs(width) / max(gap**2 - clear**2, 1.0) ** 0.5
                    )
        return {row: max(found) for row, found in needed.items() if sum(f > 80 for f in found) > _FAN}

    def _ends(self, along: np.ndarray, ends: list[int], starts: list[int]) -> list[tuple[float, float]]:
        """Where each plate begins and ends along: round its nodes, and clear of the borders within it."""
        found: dict[int, tuple[float, float]] = {}
        for p in self._inner_first():
            begin = min(along[self.units[u].row] - self.extent[u, 2] for u in self.plates[p]) - _PAD
            end = max(along[self.units[u].row] + self.extent[u, 3] for u in self.plates[p]) + _PAD
            strip = 0.0 if self.right else self.strips[p]
            end += strip - (4.0 if strip else 0.0)
            for q, (other_begin, other_end) in found.items():
                if (p, q) in self.nested or (
                    (p, q) in self.crossing and self.first[p] == self.first[q] and starts[p] > starts[q]
                ):
                    begin = min(begin, other_begin - _INNER)
                if (p, q) in self.nested or (
                    (p, q) in self.crossing and self.last[p] == self.last[q] and ends[p] > ends[q]
                ):
                    end = max(end, other_end + _INNER + strip)
            found[p] = (begin, end)
        return [found[p] for p in range(len(self.plates))]

    # -- across
    # -------------------------------------------------------------------------------------------------------

    def _across(self, ends: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places across: short and straight edges, under the order, the plates' extents and their labels'
        room."""
        n, m = len(self.units), len(self.plates)
        program = _Program(n + 2 * m)
        low, high = [n + p for p in range(m)], [n + m + p for p in range(m)]
        self._separate(program, low, high)
        for p in range(m):
            self._plate_borders(program, p, low, high, ends)
        self._lengths(program)
        for p in range(m):
            program.cost[low[p]] -= 0.03
            program.cost[high[p]] += 0.02
        x = program.solve()
        return x[:n], x[low], x[high]

    def _separate(self, program: "_Program", low: list[int], high: list[int]) -> None:
        last: dict[int, int] = {}
        for u in self.order:
            row = self.units[u].row
            if row in last:
                v = last[row]
                both = bool(self.units[u].names) and bool(self.units[v].names)
                program.apart(v, u, self.extent[v, 1] + self.extent[u, 0] + (_GAP if both else _BEND))
                program.cost[u] += 0.01  # a row no wider than the edges ask for
                program.cost[v] -= 0.01
            last[row] = u
        for p, members in enumerate(self.plates):
            left, right = min(self.rank[u] for u in members), max(self.rank[u] for u in members)
            for u in range(len(self.units)):
                if u in members or not self.first[p] <= self.units[u].row <= self.last[p]:
                    continue
                gap = _OUTSIDE if self.units[u].names else _BEND
                if self.rank[u] < left:
                    program.apart(u, low[p], self.extent[u, 1] + gap)
                elif self.rank[u] > right:
                    program.apart(high[p], u, self.extent[u, 0] + gap)
            for q, others in enumerate(self.plates):
                if (
                    not members & others
                    and right < min(self.rank[u] for u in others)
                    and self.first[p] <= self.last[q]
                    and self.first[q] <= self.last[p]
                ):
                    program.apart(high[p], low[q], _OUTSIDE)

    def _plate_borders(self, program: "_Program", p: int, low: list[int], high: list[int], ends: list[int]) -> None:
        members, strip = self.plates[p], self.strips[p] if self.right else 0.0
        for u in members:
            program.apart(low[p], u, self.extent[u, 0] + _PAD)
            program.apart(u, high[p], self.extent[u, 1] + _PAD + strip - (4.0 if strip else 0.0))
        label = self.scene.plates[p].label.extent[0] + 2 * _LABEL
        program.apart(low[p], high[p], sum(self.scene.plates[p].label.extent[1:]) + _PAD if self.right else label)
        for q in range(len(self.plates)):
            if (p, q) in self.nested:
                program.apart(low[p], low[q], _INNER)
                program.apart(high[q], high[p], _INNER + strip)
            elif (p, q) in self.crossing:
                if self._key(p, 0) < self._key(q, 0):
                    program.apart(low[p], low[q], _INNER)
                if self._key(p, 1) > self._key(q, 1):
                    program.apart(high[q], high[p], _INNER + strip)
                self._keep_label_clear(program, p, q, low, high, ends, label)
        if not self.right:
            self._prefer_edges_clear_of_label(program, p, high[p], label)

    def _keep_label_clear(
        self,
        program: "_Program",
        p: int,
        q: int,
        low: list[int],
        high: list[int],
        ends: list[int],
        label: float,
    ) -> None:
        """The label of p ends at p's right border; a border of q that runs down beside it must stay at its
        left."""
        reaches = self.last[q] > self.last[p] or (self.last[q] == self.last[p] and ends[q] > ends[p])
        if self.right or not reaches or self.first[q] > self.last[p]:
            return
        border = low[q] if self._key(p, 1) < self._key(q, 1) else high[q]
        program.apart(border, high[p], label)

    def _key(self, p: int, side: int) -> tuple[int, int]:
        ranks = [self.rank[u] for u in self.plates[p]]
        return (max(ranks) if side else min(ranks)), p

    def _prefer_edges_clear_of_label(self, program: "_Program", p: int, high: int, label: float) -> None:
        """Straight edges that leave a plate at the bottom should pass its label at the left."""
        for s in self.segments:
            inside = [u for u in (s.source, s.target) if u in self.plates[p]]
            outside = [u for u in (s.source, s.target) if u not in self.plates[p]]
            if len(inside) == len(outside) == 1 and self.units[outside[0]].row > self.last[p]:
                short = program.variable(0.3)
                program.apart(inside[0], high, label + 3.0, slack=short)

    def _lengths(self, program: "_Program") -> None:
        ends: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for s in self.segments:
            bends = sum(not self.units[u].names for u in (s.source, s.target))
            level = self.units[s.source].row == self.units[s.target].row
            program.distance({s.source: 1.0, s.target: -1.0}, s.weight * (0.2 if level else (1.0, 2.0, 4.0)[bends]))
            if not level and s.weight >= 1:
                ends[s.source, True].append(s.target)
                ends[s.target, False].append(s.source)
        for (u, _), others in ends.items():
            if len(others) > 1 and self.units[u].names:
                middle = {u: 1.0}
                for v in others:
                    middle[v] = middle.get(v, 0.0) - 1 / len(others)
                program.distance(middle, 0.4)


class _Program:
    """A linear program: minimise the sum of weighted distances under separations."""

    def __init__(self, variables: int) -> None:
        self.cost = [0.0] * variables
        self.entries: list[tuple[int, int, float]] = []
        self.bound: list[float] = []
        self.positive: set[int] = set()

    def variable(self, cost: float) -> int:
        """A new variable of at least zero."""
        self.positive.add(len(self.cost))
        self.cost.append(cost)
        return len(self.cost) - 1

    def _row(self, terms: dict[int, float], bound: float) -> None:
        self.entries += [(len(self.bound), i, value) for i, value in terms.items()]
        self.bound.append(bound)

    def apart(self, before: int, after: int, least: float, slack: int | None = None) -> None:
        """after - before >= least, less the slack if there is one."""
        self._row({before: 1.0, after: -1.0, **({slack: -1.0} if slack is not None else {})}, -float(least))

    def distance(self, terms: dict[int, float], weight: float) -> None:
        """Adds weight times the absolute value of a weighted sum to what is minimised."""
        size = self.variable(weight)
        self._row({**terms, size: -1.0}, 0.0)
        self._row({**{i: -value for i, value in terms.items()}, size: -1.0}, 0.0)

    def solve(self) -> np.ndarray:
        if not self.bound:
            return np.zeros(len(self.cost))
        rows, columns, values = zip(*self.entries)
        matrix = coo_matrix((values, (rows, columns)), (len(self.bound), len(self.cost)))
        limits = [(0, None) if i in self.positive else (-1e5, 1e5) for i in range(len(self.cost))]
        solved = linprog(self.cost, A_ub=matrix.tocsr(), b_ub=self.bound, bounds=limits, method="highs-ds")
        if solved.x is None:
            raise RuntimeError(f"the layout's linear program has no solution: {solved.message}")
        return solved.x


def set_plate_label(plate: PlateMark) -> None:
    """At the lower right, inside the box."""
    width, _, below = plate.label.extent
    plate.label.x, plate.label.y = plate.box[2] - _LABEL - width, plate.box[1] + _LABEL - 1 + below
