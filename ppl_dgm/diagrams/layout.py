"""From a program's graph to a scene in which everything has its place."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppl_dgm.errors import ProgramError

from . import labels
from .coordinates import Placement, set_plate_label
from .glyphs import measure
from .ordering import Ordering, Segment, Unit, pieces
from .routing import route
from .rows import Rows, assign_rows
from .scene import NAME, NOTE, PLATE, RADIUS, EdgeMark, NodeMark, PlateMark, Scene, Text

__all__ = ["layout", "read"]

_SHRINK = (1.0, 0.9, 0.8)  # letter sizes tried to fit a name into its circle
_LONGEST = 125.0  # a distribution written beside a node, in points
_TALLEST = 4  # parameters in one stack


def read(
    structure: Any,
    guide: bool = True,
    distributions: bool = False,
    constants: Mapping[str, str] | None = None,
) -> Scene:
    """The nodes, edges and plates of a structure, without places.

    Arguments:
        structure: has `graph` (a networkx DiGraph with the attributes of `dgm.structure`), `plates` {name:
            size} and, perhaps,
            `guide_graph`.
        guide: whether to draw the guide's edges.
        distributions: whether to write each site's distribution beside it.
        constants: {site: "Normal(0, 1)"}, distributions with arguments for the sites that depend on nothing.
    """
    graph = structure.graph
    recognition = getattr(structure, "guide_graph", None) if guide else None
    nodes: dict[str, NodeMark] = {}
    everything = [(name, data, False) for name, data in graph.nodes(data=True)]
    if recognition is not None:
        everything += [(name, data, True) for name, data in recognition.nodes(data=True) if name not in graph]
        touched = {name for edge in recognition.edges for name in edge}
        everything = [item for item in everything if not item[2] or item[0] in touched]
    letters = labels.indices(list(structure.plates))
    for order, (name, data, guide_only) in enumerate(everything):
        nodes[name] = _node(name, data, order, guide_only)
        if distributions:
            parents = [p for p in (recognition if guide_only and recognition is not None else graph).predecessors(name)]
            if not parents and name in (constants or {}):
                data = {**data, "dist": (constants or {})[name]}
            _annotate(nodes[name], data, parents, letters)
    edges = [
        EdgeMark(u, v, "factor" if "factor" in (nodes[u].kind, nodes[v].kind) else "model") for u, v in graph.edges
    ]
    if recognition is not None:
        edges += [EdgeMark(u, v, "guide") for u, v in recognition.edges if u in nodes and v in nodes]
    edges = [edge for edge in edges if edge.source != edge.target]
    plates = []
    unsized: frozenset[str] = getattr(structure, "symbolic", frozenset())
    for name, number in structure.plates.items():
        size = None if name in unsized else number
        members = frozenset(n for n, node in nodes.items() if name in node.plates)
        if members:
            plates.append(PlateMark(name, size, members, Text(labels.plate_label(name, size), PLATE)))
    return Scene(nodes, edges, plates)


def _node(name: str, data: Mapping[str, Any], order: int, guide_only: bool) -> NodeMark:
    kind = data.get("kind", "latent")
    label = Text(labels.typeset(name), NAME)
    side = "in" if kind == "input" else "right"
    if kind in ("latent", "observed", "deterministic"):
        room = 2 * RADIUS - (8.0 if kind == "deterministic" else 5.0)
        for share in _SHRINK:
            if measure(label.tex, NAME * share)[0] <= room:
                label.size, side = NAME * share, "in"
                break
        else:
            label.size = NOTE + 1
    elif kind in ("parameter", "factor"):
        label.size = NOTE + 1
    return NodeMark(name, kind, frozenset(data.get("plates", ())), label, side, order, guide_only=guide_only)


def _annotate(node: NodeMark, data: Mapping[str, Any], parents: Sequence[str], letters: dict[str, str]) -> None:
    """Writes a site's distribution, or a module's number of parameters, beside it."""
    if node.kind in ("latent", "observed") and data.get("dist"):
        index = "".join(letters.get(plate, "") for plate in data.get("plates", ()))
        shape = data.get("event_shape") or ()
        tex = labels.distribution(node.name, str(data["dist"]), parents, index, shape)
        if measure(tex, NOTE)[0] > _LONGEST:  # the arrows say on what it depends
            tex = labels.distribution(node.name, str(data["dist"]).partition("(")[0], (), index, shape)
        node.note = Text(tex, NOTE)
        if node.side != "in":  # the note names the site, so that its name need not stand there twice
            node.label, node.note = node.note, None
    elif node.kind == "parameter" and data.get("size"):
        node.label.tex += rf"\ \ ({labels.thousands(int(data['size']))})"


def layout(
    scene: Scene, orientation: str = "down", positions: Mapping[str, tuple[float, float]] | None = None
) -> Scene:
    """Gives everything in a scene its place; the same scene always gets the same places.

    Arguments:
        scene: from `read`.
        orientation: "down", parents above children, or "right", parents to the left of children.
        positions: {name: (x, y)} in points, y upwards, for nodes that shall stand there; the rest keep
            their places.

    Raises:
        ProgramError: an unknown orientation or name.
    """
    if orientation not in ("down", "right"):
        raise ProgramError(f'orientation is {orientation!r}; it must be "down" or "right".')
    unknown = [name for name in positions or {} if name not in scene.nodes]
    if unknown:
        raise ProgramError(
            f"positions names {unknown[0]!r}, which is not in the diagram; it has {', '.join(scene.nodes)}."
        )
    right = orientation == "right"
    for node in scene.nodes.values():
        node.note_below = right
        if right and node.side == "right":
            node.side = "below"  # where no edge leaves
    rows = assign_rows(scene.nodes, scene.edges)
    plan = _plan(scene, rows, right)
    if len(plan.pieces) > len(scene.plates):
        rows, plan = _hung(scene, rows, plan, right)
    scene.plates = plan.pieces
    units, order, place_of = plan.units, plan.order, plan.place_of
    _name_sides(scene, rows, units, order, place_of, right)
    placement = Placement(scene, units, order, plan.segments, plan.members, right)
    ways = placement.run()
    if positions:
        _move(scene, positions)
        ways = {}
    route(scene, {edge: [ways[u] for u in chain] for edge, chain in plan.bends.items() if ways})
    scene.fit()
    return scene


def _units(scene: Scene, rows: Rows, right: bool) -> tuple[list[Unit], dict[str, int]]:
    """One unit for each node of the rows; the parameters that stand beside them are stacked, those of one
    child together."""
    children: dict[str, set[str]] = defaultdict(set)
    guided: dict[str, set[str]] = defaultdict(set)
    for edge in scene.edges:
        (guided if edge.kind == "guide" else children)[edge.source].add(edge.target)
    stacks: dict[tuple, list[str]] = defaultdict(list)
    units: list[Unit] = []
    for name, node in scene.nodes.items():
        if name in rows.beside:
            key = (
                tuple(sorted(children[name] or guided[name])),
                rows.row[name],
                node.guide_only,
                node.plates,
            )
            stacks[key].append(name)
        else:
            units.append(Unit((name,), rows.row[name], node.plates, 44.0 if node.radius > 5 else 36.0))
    for (governed, row, guide_only, plates), names in stacks.items():
        # texts of what they govern, and labels of plates in rows that run to the right, leave one side free
        # only
        captioned = right or any(scene.nodes[child].side == "right" or scene.nodes[child].note for child in governed)
        count = 1 if guide_only or captioned or len(names) == 1 else 2
        count = max(count, -(-len(names) // _TALLEST))
        length = -(-len(names) // count)
        for start in range(0, len(names), length):
            left = guide_only or captioned or (count > 1 and start == 0)
            units.append(Unit(tuple(names[start : start + length]), row, plates, 44.0, -1.0 if left else 0.5))
    return units, {name: i for i, unit in enumerate(units) for name in unit.names}


def _segments(
    scene: Scene, rows: Rows, units: list[Unit], place_of: dict[str, int]
) -> tuple[list[Segment], dict[tuple[str, str], list[int]]]:
    """The pieces of the edges, and for each long edge the bends (new units) that keep a way through the
    rows between."""
    extents: dict[str, tuple[int, int]] = {}
    for plate in scene.plates:
        inside = [rows.row[name] for name in plate.members]
        extents[plate.name] = (min(inside), max(inside))
    segments, bends = [], {}
    for edge in scene.edges:
        weight = 0.25 if edge.kind == "guide" else 1.0
        u, v = place_of[edge.source], place_of[edge.target]
        gap = rows.row[edge.target] - rows.row[edge.source]
        beside = {edge.source, edge.target} & rows.beside
        if abs(gap) <= 1 or edge.kind == "guide" or beside:
            segments.append(Segment(u, v, weight * (0.5 if beside else 1.0)))
            continue
        step = 1 if gap > 0 else -1
        chain = []
        for row in range(rows.row[edge.source] + step, rows.row[edge.target], step):
            ends = scene.nodes[edge.source].plates, scene.nodes[edge.target].plates
            plates = frozenset(p for p in ends[0] | ends[1] if extents[p][0] <= row <= extents[p][1])
            crossing = [p for p in ends[0] - ends[1] if p in plates] and [p for p in ends[1] - ends[0] if p in plates]
            units.append(Unit((), row, (ends[0] & ends[1]) if crossing else plates, 12.0))
            chain.append(len(units) - 1)
        segments += [Segment(a, b, weight) for a, b in zip([u, *chain], [*chain, v])]
        bends[edge.source, edge.target] = chain
    return segments, bends


@dataclass
class _Plan:
    """Units in their order, and the plates, each of which may have come out in several pieces."""

    units: list[Unit]
    order: list[int]
    place_of: dict[str, int]
    segments: list[Segment]
    bends: dict[tuple[str, str], list[int]]
    pieces: list[PlateMark]
    members: list[frozenset[int]]


def _plan(scene: Scene, rows: Rows, right: bool) -> _Plan:
    """The order of the units, and the units of each plate. A plate that cannot be one box becomes several."""
    units, place_of = _units(scene, rows, right)
    segments, bends = _segments(scene, rows, units, place_of)
    order = Ordering(units, segments).best()
    marks: list[PlateMark] = []
    members: list[frozenset[int]] = []
    for plate in scene.plates:
        inside = frozenset(i for i, unit in enumerate(units) if plate.name in unit.plates)
        for run in pieces(units, order, inside):
            names = frozenset(name for u in run for name in units[u].names)
            if names:
                piece = sum(mark.name == plate.name for mark in marks)
                marks.append(
                    PlateMark(plate.name, plate.size, names, Text(plate.label.tex, plate.label.size), piece=piece)
                )
                members.append(run)
    return _Plan(units, order, place_of, segments, bends, marks, members)


def _hung(scene: Scene, rows: Rows, plan: _Plan, right: bool) -> tuple[Rows, _Plan]:
    """Tries to keep crossing plates whole by putting what only one of them holds below what they share."""
    for plate in scene.plates:
        own = [name for name in plate.members if scene.nodes[name].plates == {plate.name}]
        shared = [rows.row[name] for name in plate.members if name not in own]
        has_parents = {edge.target for edge in scene.edges if edge.kind != "guide"}
        if not own or not shared or any(name in has_parents or name in rows.beside for name in own):
            continue
        row = {**rows.row, **dict.fromkeys(sorted(own), max(shared) + 1)}
        trial = Rows(row, rows.beside, rows.below | set(own))
        other = _plan(scene, trial, right)
        if len(other.pieces) < len(plan.pieces):
            rows, plan = trial, other
    return rows, plan


def _name_sides(
    scene: Scene, rows: Rows, units: list[Unit], order: list[int], place_of: dict[str, int], right: bool
) -> None:
    """Where names outside their nodes stand: beside a plate on its far side, at a top row's dots above
    them."""
    rank = {unit: i for i, unit in enumerate(order)}
    level = {e.source for e in scene.edges if rows.row[e.source] == rows.row[e.target]} - rows.beside
    down = {e.source for e in scene.edges if rows.row[e.source] < rows.row[e.target]}
    for name in level - down:
        scene.nodes[name].note_below = True
    for edge in scene.edges:
        name = edge.source
        if name in rows.beside and scene.nodes[name].side != "in":
            low = rank[place_of[name]] < rank[place_of[edge.target]]
            scene.nodes[name].side = ("above" if low else "below") if right else ("left" if low else "right")
    for name, node in scene.nodes.items():
        if node.kind == "parameter" and name not in rows.beside and not any(e.target == name for e in scene.edges):
            node.side = "left" if right else "below" if name in rows.below else "above"


def _move(scene: Scene, positions: Mapping[str, tuple[float, float]]) -> None:
    """Puts nodes where the caller wants them, and the plates round them."""
    for name, (x, y) in positions.items():
        scene.nodes[name].x, scene.nodes[name].y = float(x), float(y)
        scene.nodes[name].place_texts()
    for plate in sorted(scene.plates, key=lambda p: len(p.members)):
        boxes = []
        for name in plate.members:
            node = scene.nodes[name]
            left, below, right, above = node.margins()
            boxes.append((node.x - left - 9, node.y - below - 9, node.x + right + 9, node.y + above + 9))
        boxes += [_padded(p.box) for p in scene.plates if p is not plate and p.members < plate.members]
        low = min(b[1] for b in boxes) - 12
        start, end = min(b[0] for b in boxes), max(b[2] for b in boxes)
        end = max(end, start + plate.label.extent[0] + 10)
        plate.box = (start, low, end, max(b[3] for b in boxes))
        set_plate_label(plate)


def _padded(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    return box[0] - 5, box[1] - 5, box[2] + 5, box[3] + 5
