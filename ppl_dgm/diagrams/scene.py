"""What a picture is made of: nodes, edges, plates and texts with their places, in points, y upwards."""

from dataclasses import dataclass, field

import numpy as np

from .glyphs import measure

__all__ = [
    "DOT",
    "EDGE",
    "FACTOR",
    "RADIUS",
    "Box",
    "Curve",
    "EdgeMark",
    "NodeMark",
    "PlateMark",
    "Scene",
    "Text",
]

RADIUS = 14.0  # of a circle
DOT = 2.6  # radius of a parameter's dot
FACTOR = 4.5  # half the side of a factor's square
EDGE = 30.0  # least length of an edge between two rows
NAME, NOTE, PLATE = 13.0, 10.0, 10.0  # sizes of the letters

Box = tuple[float, float, float, float]  # left, bottom, right, top
Curve = np.ndarray  # [segment, 4, 2]: cubic Bezier curves, each from where the last one ends


@dataclass
class Text:
    """One line of mathematics; (x, y) is the left end of its base line."""

    tex: str
    size: float
    x: float = 0.0
    y: float = 0.0

    @property
    def extent(self) -> tuple[float, float, float]:
        """Width, height above the base line, depth below it."""
        return measure(self.tex, self.size)

    @property
    def box(self) -> Box:
        width, above, below = self.extent
        return self.x, self.y - below, self.x + width, self.y + above

    def centre(self, x: float, y: float) -> None:
        """Puts the middle of the box at (x, y)."""
        width, above, below = self.extent
        self.x, self.y = x - width / 2, y - (above - below) / 2


@dataclass
class NodeMark:
    """A node as drawn.

    Attributes:
        side: where the name stands: "in" the circle, "right", "left", "above" or "below" it.
        note: the distribution, at the right of the node or below it (`note_below`), or None.
    """

    name: str
    kind: str
    plates: frozenset[str]
    label: Text
    side: str
    order: int
    note: Text | None = None
    note_below: bool = False
    x: float = 0.0
    y: float = 0.0
    strong: bool = False
    guide_only: bool = False

    @property
    def radius(self) -> float:
        return {"parameter": DOT, "factor": FACTOR}.get(self.kind, RADIUS)

    @property
    def half(self) -> tuple[float, float]:
        """Half width and half height of what an edge must stop at."""
        if self.kind == "input":
            width, above, below = self.label.extent
            return width / 2 + 2.0, (above + below) / 2 + 2.0
        return self.radius, self.radius

    @property
    def round(self) -> bool:
        """Whether edges stop at a circle rather than at a rectangle."""
        return self.kind not in ("input", "factor")

    def texts(self) -> list[Text]:
        return [self.label, *([self.note] if self.note else [])]

    def margins(self) -> tuple[float, float, float, float]:
        """What the node and its texts take up to the left, below, to the right and above of its centre."""
        width, height = self.half
        self.place_texts()
        boxes = [text.box for text in self.texts()]
        return (
            max(width, *(self.x - box[0] for box in boxes)),
            max(height, *(self.y - box[1] for box in boxes)),
            max(width, *(box[2] - self.x for box in boxes)),
            max(height, *(box[3] - self.y for box in boxes)),
        )

    def place_texts(self) -> None:
        """Puts the texts where the node is."""
        width, above, below = self.label.extent
        reach_x, reach_y = self.half
        if self.side == "in":
            self.label.centre(self.x, self.y)
        elif self.side in ("above", "below"):
            away = reach_y + 3 + (above + below) / 2
            self.label.centre(self.x, self.y + (away if self.side == "above" else -away))
        else:
            away = reach_x + 3.5 + width / 2
            self.label.centre(self.x + (away if self.side == "right" else -away), self.y)
        if self.note and self.note_below:
            width, above, below = self.note.extent
            start = min(self.label.box[1], self.y - reach_y)
            self.note.centre(self.x, start - 4 - (above + below) / 2)
        elif self.note:
            start = self.label.box[2] if self.side == "right" else self.x + reach_x
            self.note.centre(start + 5 + self.note.extent[0] / 2, self.y)


@dataclass
class PlateMark:
    """A plate as drawn: its rounded box and its label inside the box, at the lower right."""

    name: str
    size: int | None
    members: frozenset[str]
    label: Text
    box: Box = (0.0, 0.0, 0.0, 0.0)
    piece: int = 0  # a plate that cannot be one box is drawn as several, with the same label


@dataclass
class EdgeMark:
    """An edge as drawn; `curve` runs from border to border.

    Attributes:
        kind: "model", "guide" or "factor" (without an arrow head).
    """

    source: str
    target: str
    kind: str
    curve: Curve = field(default_factory=lambda: np.zeros((0, 4, 2)))
    strong: bool = False


@dataclass
class Scene:
    """Everything in a picture. `size` is the canvas in points; its lower left corner is the origin."""

    nodes: dict[str, NodeMark]
    edges: list[EdgeMark]
    plates: list[PlateMark]
    size: tuple[float, float] = (0.0, 0.0)
    dimmed: bool = False  # whether what is not highlighted steps back

    def texts(self) -> list[Text]:
        return [text for node in self.nodes.values() for text in node.texts()] + [plate.label for plate in self.plates]

    def fit(self, margin: float = 6.0) -> None:
        """Moves everything so that the canvas starts at the origin, and sets its size."""
        boxes = [text.box for text in self.texts()] + [plate.box for plate in self.plates]
        boxes += [(n.x - n.half[0], n.y - n.half[1], n.x + n.half[0], n.y + n.half[1]) for n in self.nodes.values()]
        boxes += [(*e.curve.min((0, 1)), *e.curve.max((0, 1))) for e in self.edges if len(e.curve)]
        if not boxes:
            self.size = (2 * margin, 2 * margin)
            return
        left, bottom = min(b[0] for b in boxes) - margin, min(b[1] for b in boxes) - margin
        self.size = (max(b[2] for b in boxes) + margin - left, max(b[3] for b in boxes) + margin - bottom)
        self.shift(-left, -bottom)

    def shift(self, x: float, y: float) -> None:
        """Moves everything."""
        for node in self.nodes.values():
            node.x, node.y = node.x + x, node.y + y
        for text in self.texts():
            text.x, text.y = text.x + x, text.y + y
        for plate in self.plates:
            plate.box = (plate.box[0] + x, plate.box[1] + y, plate.box[2] + x, plate.box[3] + y)
        for edge in self.edges:
            edge.curve = edge.curve + np.array([x, y])
