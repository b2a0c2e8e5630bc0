"""What must not happen in a drawing: a list of everything that overlaps, sticks out, or misses what it
should touch."""

from itertools import combinations
from typing import Any

import numpy as np

__all__ = ["faults"]

Box = tuple[float, float, float, float]


def faults(scene: Any) -> list[str]:
    """Sentences on each fault of a scene; none if the drawing is right. Distances in points, computed from
    the outlines alone."""
    found: list[str] = []
    nodes = list(scene.nodes.values())
    for a, b in combinations(nodes, 2):
        if _gap(_outline_box(a), _outline_box(b)) < 2 and (
            not (a.round and b.round) or np.hypot(a.x - b.x, a.y - b.y) < a.radius + b.radius + 2
        ):
            found.append(f"nodes {a.name} and {b.name} overlap")
    texts = [(f"text of {n.name}", t.box, n) for n in nodes for t in n.texts()]
    texts += [(f"label of plate {p.name}", p.label.box, None) for p in scene.plates]
    for (name, box, _), (other, other_box, _) in combinations(texts, 2):
        if _gap(box, other_box) < 1:
            found.append(f"{name} touches {other}")
    for name, box, owner in texts:
        for node in nodes:
            if node is owner and (node.kind == "input" or (node.side == "in" and box == node.label.box)):
                inside = node.kind == "input" or all(
                    np.hypot(x - node.x, y - node.y) < node.radius for x, y in _corners(_shrunk(box, 0.8))
                )
                if not inside:
                    found.append(f"{name} sticks out of its node")
            elif _touches(node, box, 1.0):
                found.append(f"{name} touches node {node.name}")
        for plate in scene.plates:
            if _on_border(plate.box, box, 1.0):
                found.append(f"the border of plate {plate.name} runs through {name}")
    found += _plate_faults(scene) + _edge_faults(scene, texts)
    width, height = scene.size
    boxes = [box for _, box, _ in texts] + [_outline_box(n) for n in nodes] + [p.box for p in scene.plates]
    boxes += [(*_along(e.curve).min(0), *_along(e.curve).max(0)) for e in scene.edges]
    if any(b[0] < 1 or b[1] < 1 or b[2] > width - 1 or b[3] > height - 1 for b in boxes):
        found.append("something lies outside the canvas")
    return found


def _plate_faults(scene: Any) -> list[str]:
    found = []
    for plate in scene.plates:
        left, bottom, right, top = plate.box
        for node in scene.nodes.values():
            boxes = [_outline_box(node), *(t.box for t in node.texts())]
            if node.name in plate.members:
                if not all(left < b[0] and bottom < b[1] and b[2] < right and b[3] < top for b in boxes):
                    found.append(f"{node.name} sticks out of plate {plate.name}")
            elif any(_gap(b, plate.box) < 2 for b in boxes):
                found.append(f"{node.name} lies in plate {plate.name}, of which it is no member")
        label = plate.label.box
        if not (left < label[0] and bottom < label[1] and label[2] < right and label[3] < top):
            found.append(f"the label of plate {plate.name} is not in it")
        if right - label[2] > 8 or label[1] - bottom > 8:
            found.append(f"the label of plate {plate.name} is not at the lower right")
    for a, b in combinations(scene.plates, 2):
        for side in range(4):
            along = [(1, 3), (0, 2)][side % 2]
            shared = min(a.box[along[1]], b.box[along[1]]) - max(a.box[along[0]], b.box[along[0]])
            if abs(a.box[side] - b.box[side]) < 2 and shared > 0:
                found.append(f"borders of plates {a.name} and {b.name} coincide")
        if not a.members & b.members and _gap(a.box, b.box) < 2:
            found.append(f"plates {a.name} and {b.name} overlap, but share no node")
    for name in {plate.name for plate in scene.plates}:
        if sum(plate.name == name for plate in scene.plates) > 1:
            found.append(f"plate {name} is drawn in pieces")
    return found


def _edge_faults(scene: Any, texts: list) -> list[str]:
    found = []
    for edge in scene.edges:
        at, name = _along(edge.curve), f"edge {edge.source} -> {edge.target}"
        for node in scene.nodes.values():
            if node.name not in (edge.source, edge.target) and _hits(node, at, 1.5):
                found.append(f"{name} runs through node {node.name}")
        for text, box, owner in texts:
            inner = owner is not None and owner.name in (edge.source, edge.target)
            if inner and (owner.kind == "input" or owner.side == "in") and box == owner.label.box:
                continue
            if _in_box(at, box, 0.5).any():
                found.append(f"{name} runs through {text}")
        for end, point in ((edge.source, at[0]), (edge.target, at[-1])):
            node = scene.nodes[end]
            away = np.hypot(*(point - (node.x, node.y))) - node.radius
            if not node.round:
                away = max(abs(point[0] - node.x) - node.half[0], abs(point[1] - node.y) - node.half[1])
            if abs(away) > 0.25:
                found.append(f"{name} ends {away:.2f} points off the border of {end}")
        inside = [_hits(scene.nodes[end], at[2:-2], -0.3) for end in (edge.source, edge.target)]
        if any(inside):
            found.append(f"{name} runs back into one of its ends")
    return found


def _along(curve: np.ndarray) -> np.ndarray:
    """Points on cubic Bezier curves, 61 for each."""
    t = np.linspace(0, 1, 61)[:, None]
    return np.concatenate(
        [(1 - t) ** 3 * a + 3 * t * (1 - t) ** 2 * b + 3 * t**2 * (1 - t) * c + t**3 * d for a, b, c, d in curve]
    )


def _outline_box(node: Any) -> Box:
    width, height = node.half
    return node.x - width, node.y - height, node.x + width, node.y + height


def _gap(a: Box, b: Box) -> float:
    """Distance of two boxes along the axis that separates them most; negative if they overlap."""
    return max(a[0] - b[2], b[0] - a[2], a[1] - b[3], b[1] - a[3])


def _corners(box: Box) -> list[tuple[float, float]]:
    return [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]


def _shrunk(box: Box, by: float) -> Box:
    """A text's box without its corners, which no letter fills."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    w, h = (box[2] - box[0]) / 2 * by, (box[3] - box[1]) / 2 * by
    return x - w, y - h, x + w, y + h


def _touches(node: Any, box: Box, gap: float) -> bool:
    if not node.round:
        return _gap(_outline_box(node), box) < gap
    x, y = min(max(node.x, box[0]), box[2]), min(max(node.y, box[1]), box[3])
    return bool(np.hypot(x - node.x, y - node.y) < node.radius + gap)


def _hits(node: Any, at: np.ndarray, gap: float) -> bool:
    if node.round:
        return bool((np.hypot(at[:, 0] - node.x, at[:, 1] - node.y) < node.radius + gap).any())
    return bool(_in_box(at, _outline_box(node), gap).any())


def _in_box(at: np.ndarray, box: Box, gap: float) -> np.ndarray:
    return (at[:, 0] > box[0] - gap) & (at[:, 0] < box[2] + gap) & (at[:, 1] > box[1] - gap) & (at[:, 1] < box[3] + gap)


def _on_border(plate: Box, box: Box, gap: float) -> bool:
    """Whether a box is neither wholly inside nor wholly outside a plate."""
    inside = plate[0] + gap < box[0] and plate[1] + gap < box[1] and box[2] < plate[2] - gap and box[3] < plate[3] - gap
    return not inside and _gap(plate, box) < gap
