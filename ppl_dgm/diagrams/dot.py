"""A scene in Graphviz's DOT, every node pinned where our layout put it, so that crossing plates stay
whole."""

import re

from .scene import NodeMark, Scene

__all__ = ["dot"]

_SHAPE = {
    "latent": 'shape=circle, width=0.389, fixedsize=true, style=filled, fillcolor=white',
    "observed": 'shape=circle, width=0.389, fixedsize=true, style=filled, fillcolor="#bfbfbf"',
    "deterministic": "shape=doublecircle, width=0.33, fixedsize=true, style=filled, fillcolor=white",
    "parameter": "shape=circle, width=0.072, fixedsize=true, style=filled, fillcolor=black",
    "factor": "shape=square, width=0.125, fixedsize=true, style=filled, fillcolor=black",
    "input": "shape=plaintext, margin=0.02",
}  # fmt: skip


def dot(scene: Scene) -> str:
    """The text of a .dot file. `neato -n2 -Tsvg x.dot` draws it (so does `dot`: the file names its
    engine)."""
    lines = [
        "digraph {",
        "  graph [layout=neato, splines=true, outputorder=nodesfirst];",
        '  node [fontname="Times-Italic", fontsize=12, pin=true];',
        "  edge [arrowsize=0.7];",
    ]
    for plate in scene.plates:
        left, bottom, right, top = plate.box
        size = f"width={(right - left) / 72:.3f}, height={(top - bottom) / 72:.3f}, fixedsize=true"
        label = f'label={_quoted(_plain(plate.label.tex))}, labelloc=b, fontname="Times-Roman", fontsize=10'
        middle = f'pos="{(left + right) / 2:.1f},{(bottom + top) / 2:.1f}!"'
        name = _quoted(f"plate {plate.name}" + (f" {plate.piece + 1}" if plate.piece else ""))
        lines.append(f"  {name} [shape=box, style=rounded, {size}, {label}, {middle}];")
    lines += [f"  {_quoted(name)} [{_attributes(node)}];" for name, node in scene.nodes.items()]
    for edge in scene.edges:
        style = {"guide": " [style=dashed, constraint=false]", "factor": " [arrowhead=none]"}.get(edge.kind, "")
        lines.append(f"  {_quoted(edge.source)} -> {_quoted(edge.target)}{style};")
    return "\n".join([*lines, "}"]) + "\n"


def _attributes(node: NodeMark) -> str:
    text = _plain(node.label.tex)
    label = f"label={_quoted(text)}" if node.side == "in" else f'label="", xlabel={_quoted(text)}'
    if node.note:
        label += f", xlabel={_quoted(_plain(node.note.tex))}"
    strong = ", penwidth=2.4" if node.strong else ""
    return f'{_SHAPE[node.kind]}, {label}, pos="{node.x:.1f},{node.y:.1f}!"{strong}'


_SIGNS = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε",
    "zeta": "ζ", "eta": "η",
    "theta": "θ", "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π",
    "rho": "ρ",
    "sigma": "σ", "tau": "τ", "upsilon": "υ", "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ",
    "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Upsilon": "Υ", "Phi": "Φ",
    "Psi": "Ψ", "Omega": "Ω", "times": "×", "ldots": "…", "sim": "~", "log": "log", "exp": "exp",
    "backslash": "\\",
}  # fmt: skip


def _plain(tex: str) -> str:
    """Mathematics as plain text: Greek letters and signs as characters, subscripts after an underscore."""
    text = re.sub(r"\\(mathrm|mathcal)\{((?:[^{}\\]|\\.)*)\}", r"\2", tex)
    text = re.sub(r"\\([A-Za-z]+) ?", lambda found: _SIGNS.get(found[1], found[1]), text)
    text = re.sub(r"\\,|\\ ", " ", text)
    text = re.sub(r"_\{([^{}]*)\}", r"_\1", text).replace("^{+}", "+").replace("^{}", "^")
    return re.sub(r"\\([_%#&${}^])", r"\1", text)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
