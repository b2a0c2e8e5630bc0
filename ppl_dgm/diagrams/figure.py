"""A scene as a matplotlib figure, in black, white and grey."""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path as Outline

from .glyphs import line
from .routing import shortened
from .scene import Curve, EdgeMark, NodeMark, Scene, Text

__all__ = ["draw", "save", "svg"]

LINE = 0.9  # width of lines in points
STRONG = 2.4  # and of highlighted ones
OBSERVED = "0.75"  # 25 % grey
DIM = "0.62"
HEAD = (7.0, 2.5)  # length and half width of an arrow head
CORNER = 5.0  # radius of a plate's corners


def draw(scene: Scene, scale: float = 1.0) -> Figure:
    """The figure, `scale` times its natural size; nothing is shown or written."""
    width, height = scene.size
    figure = Figure(figsize=(width * scale / 72, height * scale / 72))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    for plate in scene.plates:
        _plate(axes, plate.box, scale)
    for edge in scene.edges:
        _edge(axes, edge, scale, scene.dimmed)
    for node in scene.nodes.values():
        _node(axes, node, scale, scene.dimmed)
    for text in scene.texts():
        _text(axes, text)
    return figure


def _plate(axes: Axes, box: tuple[float, float, float, float], scale: float) -> None:
    left, bottom, right, top = box
    style = f"round,pad=0,rounding_size={CORNER}"
    axes.add_artist(
        FancyBboxPatch(
            (left, bottom),
            right - left,
            top - bottom,
            style,
            fill=False,
            lw=0.8 * scale,
            ec="black",
            gid="plate",
        )
    )


def _edge(axes: Axes, edge: EdgeMark, scale: float, dimmed: bool) -> None:
    if not len(edge.curve):
        return
    colour = DIM if dimmed and not edge.strong else "black"
    width = STRONG if edge.strong else LINE
    curve = edge.curve
    if edge.kind != "factor":
        length, half = (size * (1.35 if edge.strong else 1.0) for size in HEAD)
        curve, along = shortened(edge.curve, length)
        tip = edge.curve[-1, 3]
        across = np.array([-along[1], along[0]]) * half
        base = tip - along * length
        head = [tip, base + across, base + along * 0.18 * length, base - across]
        axes.add_artist(Polygon(head, closed=True, fc=colour, ec="none", zorder=2.2, gid="head"))
        curve = np.concatenate([curve, [[base, base, base, base + along * 0.18 * length]]]) if len(curve) else curve
    if len(curve):
        dashes = (0, (4.0 * LINE / width, 2.8 * LINE / width)) if edge.kind == "guide" else "solid"
        axes.add_artist(
            PathPatch(
                _outline(curve),
                fill=False,
                lw=width * scale,
                ec=colour,
                ls=dashes,
                capstyle="butt",
                zorder=2,
                gid="edge",
            )
        )


def _outline(curve: Curve) -> Outline:
    vertices = np.concatenate([curve[0, :1], curve[:, 1:].reshape(-1, 2)])
    return Outline(vertices, [Outline.MOVETO] + [Outline.CURVE4] * (len(vertices) - 1))


def _node(axes: Axes, node: NodeMark, scale: float, dimmed: bool) -> None:
    if node.kind == "input":
        return
    colour = DIM if dimmed and not node.strong else "black"
    width = (STRONG if node.strong else LINE) * scale
    at = (node.x, node.y)
    if node.kind == "parameter":
        axes.add_artist(Circle(at, node.radius, fc=colour, ec=colour, lw=0, zorder=3, gid="node"))
    elif node.kind == "factor":
        corner = (node.x - node.radius, node.y - node.radius)
        axes.add_artist(
            Rectangle(corner, 2 * node.radius, 2 * node.radius, fc=colour, ec=colour, lw=0, zorder=3, gid="node")
        )
    else:
        fill = OBSERVED if node.kind == "observed" else "white"
        # the line lies inside the radius, so that arrow heads touch its outer side
        rim = node.radius - width / scale / 2
        axes.add_artist(Circle(at, rim, fc=fill, ec=colour, lw=width, zorder=3, gid="node"))
        if node.kind == "deterministic":
            axes.add_artist(Circle(at, rim - 2.4, fill=False, ec=colour, lw=LINE * scale, zorder=3, gid="rim"))


def _text(axes: Axes, text: Text) -> None:
    outline = line(text.tex).outline
    placed = Outline(np.asarray(outline.vertices) * text.size + np.array([text.x, text.y]), outline.codes)
    axes.add_artist(PathPatch(placed, fc="black", ec="none", lw=0, zorder=4, gid="text"))


def save(figure: Figure, path: Path, dpi: float) -> None:
    """Writes a figure as .svg, .png or .pdf: the same bytes for the same picture."""
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower(), {})
    with mpl.rc_context({"svg.hashsalt": "ppl_dgm", "svg.fonttype": "path", "pdf.fonttype": 42}):
        figure.savefig(path, dpi=dpi, metadata=metadata)


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "ppl_dgm", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
