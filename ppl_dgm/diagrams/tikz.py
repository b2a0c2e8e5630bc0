"""A scene as TikZ, in the manner of tikz-bayesnet; its styles come along, so that stock LaTeX compiles it."""

from .scene import Curve, EdgeMark, NodeMark, Scene

__all__ = ["tikz"]

_STYLES = r"""  latent/.style={circle, draw, fill=white, inner sep=0pt, minimum size=28pt},
  obs/.style={latent, fill=gray!25},
  det/.style={latent, double, double distance=1.6pt, minimum size=27pt},
  const/.style={rectangle, inner sep=2pt},
  param/.style={circle, fill=black, inner sep=0pt, minimum size=5.2pt},
  factor/.style={rectangle, fill=black, inner sep=0pt, minimum size=9pt},
  plate/.style={draw, rounded corners=5pt},
  caption/.style={inner sep=0pt, anchor=base west},
  edge/.style={-{Latex[length=6pt, width=5pt]}},
  guide/.style={edge, dashed},
  link/.style={},
  strong/.style={line width=2pt}"""
_STYLE = {
    "latent": "latent",
    "observed": "obs",
    "deterministic": "det",
    "parameter": "param",
    "factor": "factor",
    "input": "const",
}
_EDGE = {"model": "edge", "guide": "guide", "factor": "link"}


def tikz(scene: Scene, standalone: bool = False) -> str:
    r"""A `tikzpicture` that needs `\usetikzlibrary{arrows.meta}`; `standalone` makes it a document of its
    own."""
    names = {name: f"n{i}" for i, name in enumerate(scene.nodes)}
    lines = [r"\begin{tikzpicture}[x=1pt, y=1pt, line width=0.6pt,", _STYLES + "]"]
    for plate in scene.plates:
        left, bottom, right, top = plate.box
        lines.append(rf"  \draw[plate] {_at(left, bottom)} rectangle {_at(right, top)}; % plate {_comment(plate.name)}")
        lines.append(_caption(plate.label.x, plate.label.y, plate.label.tex, plate.label.size))
    for name, node in scene.nodes.items():
        lines += _node(node, names[name])
    for edge in scene.edges:
        if len(edge.curve):
            lines.append(_edge(edge, names))
    lines.append(r"\end{tikzpicture}")
    text = "\n".join(lines)
    if not standalone:
        return text + "\n"
    width, height = scene.size
    # the page is the picture, by plain TeX's own means: the standalone class is not part of a small LaTeX
    return (
        "\\documentclass{article}\n\\usepackage{tikz}\n\\usetikzlibrary{arrows.meta}\n"
        f"\\pagestyle{{empty}}\\parindent=0pt\\topskip=0pt\n\\hoffset=-1in\\voffset=-1in\n"
        f"\\oddsidemargin=0pt\\topmargin=0pt\\headheight=0pt\\headsep=0pt\\maxdepth=0pt\\parskip=0pt\n"
        f"\\pdfpagewidth={width:.1f}pt\\pdfpageheight={height:.1f}pt"
        f"\\textwidth={width:.1f}pt\\textheight={height + 20:.1f}pt\n"
        f"\\begin{{document}}\n{text}\n\\end{{document}}\n"
    )


def _at(x: float, y: float) -> str:
    return f"({x:.1f},{y:.1f})"


def _comment(name: str) -> str:
    return " ".join(name.split())


def _letters(size: float) -> str:
    return rf"font=\fontsize{{{size:.0f}}}{{{size * 1.2:.0f}}}\selectfont"


def _caption(x: float, y: float, tex: str, size: float) -> str:
    return rf"  \node[caption, {_letters(size)}] at {_at(x, y)} {{${tex}$}};"


def _node(node: NodeMark, identifier: str) -> list[str]:
    style = _STYLE[node.kind] + (", strong" if node.strong else "")
    inside = f"${node.label.tex}$" if node.side == "in" else ""
    letters = ", " + _letters(node.label.size) if inside else ""
    lines = [
        rf"  \node[{style}{letters}] ({identifier}) at {_at(node.x, node.y)} {{{inside}}};"
        rf" % {_comment(node.name)}"
    ]
    if node.side != "in":
        lines.append(_caption(node.label.x, node.label.y, node.label.tex, node.label.size))
    if node.note:
        lines.append(_caption(node.note.x, node.note.y, node.note.tex, node.note.size))
    return lines


def _edge(edge: EdgeMark, names: dict[str, str]) -> str:
    style = _EDGE[edge.kind] + (", strong" if edge.strong else "")
    if len(edge.curve) == 1 and _is_straight(edge.curve):
        return rf"  \draw[{style}] ({names[edge.source]}) -- ({names[edge.target]});"
    path = _at(*edge.curve[0, 0])
    for segment in edge.curve:
        path += f" .. controls {_at(*segment[1])} and {_at(*segment[2])} .. {_at(*segment[3])}"
    return rf"  \draw[{style}] {path};"


def _is_straight(curve: Curve) -> bool:
    start, one, two, end = curve[0]
    along = end - start
    return all(
        abs(float(along[0] * (p - start)[1] - along[1] * (p - start)[0])) < 1e-3 * float(along @ along + 1e-9)
        for p in (one, two)
    )
