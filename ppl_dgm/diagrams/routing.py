"""Edges drawn: straight where the way is free, else a gentle curve round nodes and texts; both ends touch
their nodes."""

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush

import numpy as np

from .scene import Box, Curve, EdgeMark, NodeMark, Scene

__all__ = ["points", "route"]

_NODE, _TEXT = 5.0, 2.5  # clear space wanted beside a node, a text
_BULGES = (0.1, 0.16, 0.23, 0.32, 0.42, 0.55, 0.7, 0.9)
_STEPS = 24  # points at which each segment of a curve is checked
_TURNS = 100  # corners looked at on the way round, at most, where nodes are many
_MANY = 60  # nodes
_NEAR = 80.0  # how far from the straight line a way round is looked for


def route(scene: Scene, bends: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    """Sets the curve of every edge of a scene whose nodes and texts have their places.

    Arguments:
        scene: what to draw.
        bends: {(source, target): points} where the layout has kept a way for a long edge.
    """
    obstacles = _Obstacles(scene)
    drawn = _Drawn()
    twice = {(e.source, e.target) for e in scene.edges if e.kind != "guide"}
    later = []
    for edge in scene.edges:
        source, target = scene.nodes[edge.source], scene.nodes[edge.target]
        curved = edge.kind == "guide" and not source.guide_only
        straight = _line(_centre(source), _centre(target))
        if not curved and obstacles.clearance(straight, edge) >= 0:
            edge.curve = clipped(straight, source, target)
            drawn.add(edge)
        else:
            later.append((curved, edge))
    for curved, edge in sorted(later, key=lambda pair: pair[0]):
        way = bends.get((edge.source, edge.target), [])
        apart = curved and ((edge.source, edge.target) in twice or (edge.target, edge.source) in twice)
        edge.curve = _best(scene, edge, obstacles, drawn, way, 0.22 if apart else 0.12 if curved else 0.0)
        drawn.add(edge)


def _best(
    scene: Scene,
    edge: EdgeMark,
    obstacles: "_Obstacles",
    drawn: "_Drawn",
    way: Sequence[tuple[float, float]],
    least: float,
) -> Curve:
    """The cheapest clear curve among arcs, the kept way and the shortest way round; if none is clear, the
    clearest."""
    source, target = scene.nodes[edge.source], scene.nodes[edge.target]
    start, end = _centre(source), _centre(target)
    length = float(np.hypot(*(end - start))) + 1e-9
    found: list[tuple[float, Curve]] = []
    hopeless: list[tuple[float, Curve]] = []

    def consider(curve: Curve, penalty: float) -> bool:
        clear = obstacles.clearance(curve, edge)  # within the edge's own ends there is nothing in the way
        if clear < 0:
            hopeless.append((-clear, curve))
            return False
        curve = clipped(curve, source, target)
        found.append((penalty + drawn.cost(curve, edge), curve))
        return True

    for tried, bulge in enumerate(_BULGES):
        if found and tried > 4:
            break  # it only gets longer
        for side in (1, -1):
            if bulge >= least:
                consider(
                    _arc(start, end, side * bulge * length),
                    length * (1 + 3 * bulge**2) + 40 * bulge + (0 if side > 0 else 0.5),
                )
    if len(way):
        path = np.array([start, *way, end])
        consider(_smooth(path), _path_length(path) + 5)
    detour = bool(found) and min(cost for cost, _ in found) > 1.25 * length + 60
    if not found or (detour and len(scene.nodes) < _MANY):
        around = _way_round(start, end, obstacles, edge)
        if around is not None:
            for curve in (_smooth(around), *(_rounded(around, r) for r in (12.0, 6.0, 2.0))):
                if consider(curve, _path_length(around) + 12):
                    break
    if found:
        return min(found, key=lambda pair: pair[0])[1]
    return clipped(min(hopeless, key=lambda pair: pair[0])[1], source, target)


# -- what is in the way
# -------------------------------------------------------------------------------------------------


class _Obstacles:
    """Circles and boxes that an edge must keep clear of."""

    def __init__(self, scene: Scene) -> None:
        circles, boxes, circle_owners, box_owners = [], [], [], []
        for node in scene.nodes.values():
            if node.round:
                circles.append((node.x, node.y, node.radius + _NODE * (1 if node.radius > 5 else 0.7)))
                circle_owners.append(node.name)
            else:
                width, height = node.half
                boxes.append(_grown((node.x - width, node.y - height, node.x + width, node.y + height), _NODE * 0.6))
                box_owners.append(node.name)
            for text in node.texts():
                if (node.side != "in" or text is node.note) and (node.kind != "input" or text is node.note):
                    boxes.append(_grown(text.box, _TEXT))
                    box_owners.append("")
        for plate in scene.plates:
            boxes.append(_grown(plate.label.box, _TEXT))
            box_owners.append("")
        self.circles = np.array(circles).reshape(-1, 3)
        self.boxes = np.array(boxes).reshape(-1, 4)
        self.circle_owners, self.box_owners = (
            np.array(circle_owners, dtype=object),
            np.array(box_owners, dtype=object),
        )

    def of(self, edge: EdgeMark) -> tuple[np.ndarray, np.ndarray]:
        """The circles [c, 3] and boxes [b, 4] that are not the edge's own ends."""
        keep_circles = (self.circle_owners != edge.source) & (self.circle_owners != edge.target)
        keep_boxes = (self.box_owners != edge.source) & (self.box_owners != edge.target)
        return self.circles[keep_circles], self.boxes[keep_boxes]

    def clearance(self, curve: Curve, edge: EdgeMark) -> float:
        """The least distance of a curve from all obstacles, negative inside one."""
        length = float(np.hypot(*(curve[:, 1:] - curve[:, :-1]).reshape(-1, 2).T).sum()) / len(curve)
        return _clearance(points(curve, int(np.clip(length / 3, _STEPS, 120))), *self.of(edge))


def _clearance(at: np.ndarray, circles: np.ndarray, boxes: np.ndarray) -> float:
    least = 1e9
    if len(circles):
        distance = np.hypot(at[:, None, 0] - circles[:, 0], at[:, None, 1] - circles[:, 1]) - circles[:, 2]
        least = min(least, float(distance.min()))
    if len(boxes):
        x = np.maximum(boxes[:, 0] - at[:, None, 0], at[:, None, 0] - boxes[:, 2])
        y = np.maximum(boxes[:, 1] - at[:, None, 1], at[:, None, 1] - boxes[:, 3])
        outside = np.hypot(np.maximum(x, 0), np.maximum(y, 0))
        least = min(least, float(np.where((x < 0) & (y < 0), np.maximum(x, y), outside).min()))
    return least


class _Drawn:
    """Edges that have their place: others should not run on top of them."""

    def __init__(self) -> None:
        self.lines: list[tuple[EdgeMark, np.ndarray]] = []

    def add(self, edge: EdgeMark) -> None:
        self.lines.append((edge, points(edge.curve)))

    def cost(self, curve: Curve, edge: EdgeMark) -> float:
        """25 for each edge that it crosses, 6 for each point that lies on another edge, 40 where their
        heads come together."""
        at = points(curve)
        low, high = at.min(0) - 4, at.max(0) + 4
        total = 0.0
        for other, line in self.lines:
            if (line.max(0) < low).any() or (line.min(0) > high).any():
                continue
            total += 25.0 * _crossings(at, line)
            middle = (
                at[len(at) // 5 : -len(at) // 5] if {other.source, other.target} & {edge.source, edge.target} else at
            )
            near = np.hypot(middle[:, None, 0] - line[:, 0], middle[:, None, 1] - line[:, 1]).min(1) < 3.5
            total += 6.0 * float(near.sum())
            if other.target == edge.target:
                total += 15.0 * float(np.hypot(*(line[-1] - at[-1])) < 8.0)
        return total


def _crossings(a: np.ndarray, b: np.ndarray) -> int:
    """How often two broken lines cross."""
    p, r = a[:-1, None], np.diff(a, axis=0)[:, None]
    q, s = b[None, :-1], np.diff(b, axis=0)[None]
    cross = r[..., 0] * s[..., 1] - r[..., 1] * s[..., 0]
    gap = q - p
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (gap[..., 0] * s[..., 1] - gap[..., 1] * s[..., 0]) / cross
        u = (gap[..., 0] * r[..., 1] - gap[..., 1] * r[..., 0]) / cross
    return int(((t > 0) & (t < 1) & (u > 0) & (u < 1) & (cross != 0)).sum())


# -- curves
# --------------------------------------------------------------------------------------------------


def points(curve: Curve, steps: int = _STEPS) -> np.ndarray:
    """Points along a curve. [segments * steps + 1, 2]"""
    if not len(curve):
        return np.zeros((1, 2))
    t = np.linspace(0, 1, steps + 1)[:-1, None]
    basis = np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)
    return np.concatenate([(basis @ curve).reshape(-1, 2), curve[-1, 3:]])


def _centre(node: NodeMark) -> np.ndarray:
    return np.array([node.x, node.y])


def _grown(box: Box, by: float) -> Box:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _line(start: np.ndarray, end: np.ndarray) -> Curve:
    return np.array([[start, start + (end - start) / 3, start + (end - start) * 2 / 3, end]])


def _arc(start: np.ndarray, end: np.ndarray, bulge: float) -> Curve:
    """A symmetric curve whose middle lies `bulge` to the left of the line from start to end."""
    along = end - start
    normal = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-9)
    push = normal * bulge * 4 / 3
    return np.array([[start, start + along / 4 + push, start + along * 3 / 4 + push, end]])


def _smooth(path: np.ndarray) -> Curve:
    """A smooth curve through points (cardinal spline, tangents no longer than the shorter neighbour)."""
    tangents = np.zeros_like(path)
    steps = np.diff(path, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])[:, None] + 1e-9
    unit = steps / lengths
    middle = unit[:-1] + unit[1:]
    tangents[1:-1] = middle / (np.hypot(middle[:, 0], middle[:, 1])[:, None] + 1e-9)
    tangents[0], tangents[-1] = unit[0], unit[-1]
    reach = lengths / 3
    return np.stack([path[:-1], path[:-1] + tangents[:-1] * reach, path[1:] - tangents[1:] * reach, path[1:]], axis=1)


def _rounded(path: np.ndarray, radius: float) -> Curve:
    """Straight lines with rounded corners."""
    parts, at = [], path[0]
    for before, corner, after in zip(path, path[1:], path[2:]):
        into, out = corner - before, after - corner
        cut = min(radius, 0.45 * float(np.hypot(*into)), 0.45 * float(np.hypot(*out)))
        enter, leave = corner - into / np.hypot(*into) * cut, corner + out / np.hypot(*out) * cut
        parts += [
            _line(at, enter)[0],
            np.array([enter, enter + (corner - enter) * 2 / 3, leave + (corner - leave) * 2 / 3, leave]),
        ]
        at = leave
    return np.array([*parts, _line(at, path[-1])[0]])


def _path_length(path: np.ndarray) -> float:
    return float(np.hypot(*np.diff(path, axis=0).T).sum())


def clipped(curve: Curve, source: NodeMark, target: NodeMark) -> Curve:
    """The part of a curve between the borders of its two nodes."""
    curve = _cut_start(curve, _inside(source))
    return _reversed(_cut_start(_reversed(curve), _inside(target)))


def _reversed(curve: Curve) -> Curve:
    return curve[::-1, ::-1]


def _inside(node: NodeMark) -> Callable[[np.ndarray], np.ndarray]:
    width, height = node.half
    if node.round:
        return lambda at: np.hypot(at[..., 0] - node.x, at[..., 1] - node.y) < node.radius
    return lambda at: (np.abs(at[..., 0] - node.x) < width) & (np.abs(at[..., 1] - node.y) < height)


def _cut_start(curve: Curve, inside: Callable[[np.ndarray], np.ndarray]) -> Curve:
    """What is left of a curve once it has left a shape that it starts in."""
    within = inside(points(curve))
    if not within[0] or within.all():
        return curve
    last = int(np.flatnonzero(within)[-1])
    segment, low, high = last // _STEPS, last % _STEPS / _STEPS, (last % _STEPS + 1) / _STEPS
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(_at(curve[segment], middle)) else (low, middle)
    return np.concatenate([_split(curve[segment], high)[1][None], curve[segment + 1 :]])


def _at(segment: np.ndarray, t: float) -> np.ndarray:
    return np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]) @ segment


def _split(segment: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
    """De Casteljau's construction: the two halves of a cubic at t."""
    levels = [segment]
    while len(levels[-1]) > 1:
        levels.append(levels[-1][:-1] * (1 - t) + levels[-1][1:] * t)
    return np.array([level[0] for level in levels]), np.array([level[-1] for level in levels[::-1]])


def shortened(curve: Curve, by: float) -> tuple[Curve, np.ndarray]:
    """A curve without its last `by` points of length, and the direction in which its end points."""
    at = points(curve)
    tip = at[-1]
    away = np.hypot(*(at - tip).T)
    far = np.flatnonzero(away > by)
    if not len(far):
        return curve[:0], (tip - at[0]) / (np.hypot(*(tip - at[0])) + 1e-9)
    segment = min(int(far[-1]) // _STEPS, len(curve) - 1)
    low, high = int(far[-1]) / _STEPS - segment, min((int(far[-1]) + 1) / _STEPS - segment, 1.0)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if np.hypot(*(_at(curve[segment], middle) - tip)) > by else (low, middle)
    kept = np.concatenate([curve[:segment], _split(curve[segment], low)[0][None]])
    return kept, (tip - kept[-1, 3]) / by


# -- the way round
# ------------------------------------------------------------------------------------------------------


def _way_round(start: np.ndarray, end: np.ndarray, obstacles: _Obstacles, edge: EdgeMark) -> np.ndarray | None:
    """The shortest broken line past the obstacles, by the corners round them (A*). [points, 2] or None."""
    circles, boxes = obstacles.of(edge)
    turns = _TURNS if len(obstacles.circles) > _MANY else 5 * _TURNS
    low, high = np.minimum(start, end) - _NEAR, np.maximum(start, end) + _NEAR
    circles = circles[((circles[:, :2] > low) & (circles[:, :2] < high)).all(1)]
    boxes = boxes[(boxes[:, 2] > low[0]) & (boxes[:, 0] < high[0]) & (boxes[:, 3] > low[1]) & (boxes[:, 1] < high[1])]
    stops = np.array([start, end, *_corners(circles, boxes)])
    free = np.array([i < 2 or _clearance(stop[None], circles, boxes) > 0 for i, stop in enumerate(stops)])
    stops = stops[free]
    best = {0: 0.0}
    parent: dict[int, int] = {}
    queue = [(float(np.hypot(*(end - start))), 0)]
    done: set[int] = set()
    while queue and len(done) < turns:
        _, here = heappop(queue)
        if here == 1:
            path = [1]
            while path[-1] != 0:
                path.append(parent[path[-1]])
            return stops[path[::-1]]
        if here in done:
            continue
        done.add(here)
        reach = np.hypot(*(stops - stops[here]).T)
        seen = _visible(stops[here], stops, circles, boxes)
        for there in np.flatnonzero(seen).tolist():
            cost = best[here] + float(reach[there]) + 4.0  # a corner costs something
            if there != here and cost < best.get(there, np.inf):
                best[there], parent[there] = cost, here
                heappush(queue, (cost + float(np.hypot(*(end - stops[there]))), there))
    return None


def _corners(circles: np.ndarray, boxes: np.ndarray) -> Iterator[np.ndarray]:
    angles = np.arange(8) * np.pi / 4 + np.pi / 8
    for x, y, radius in circles:
        for angle in angles:
            yield np.array([x, y]) + (radius * 1.12 + 0.5) * np.array([np.cos(angle), np.sin(angle)])
    for left, bottom, right, top in boxes:
        for x, y in (
            (left - 1, bottom - 1),
            (left - 1, top + 1),
            (right + 1, bottom - 1),
            (right + 1, top + 1),
        ):
            yield np.array([x, y])


def _visible(start: np.ndarray, stops: np.ndarray, circles: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Which stops can be reached by a straight line. [stops]"""
    along = stops - start  # [stops, 2]
    clear = np.ones(len(stops), dtype=bool)
    if len(circles):
        to = circles[:, :2] - start  # [circles, 2]
        t = np.clip((along @ to.T) / ((along**2).sum(1)[:, None] + 1e-9), 0, 1)
        gap = np.hypot(*(np.moveaxis(along[:, None] * t[..., None] - to, -1, 0)))
        clear &= (gap >= circles[:, 2] - 1e-6).all(1)
    if len(boxes):
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(np.abs(along) < 1e-9, 1e-9, along)[:, None]  # [stops, 1, 2]
            one, two = (boxes[:, :2] - start) / step, (boxes[:, 2:] - start) / step
        enter = np.minimum(one, two).max(-1)
        leave = np.maximum(one, two).min(-1)
        clear &= ~((enter < leave) & (leave > 0) & (enter < 1)).any(1)
    return clear
