"""A scene as a Mermaid flowchart, for pages that draw those; Mermaid lays it out itself."""

from collections.abc import Iterable

from .dot import _plain
from .scene import PlateMark, Scene

__all__ = ["mermaid"]

_SHAPE = {
    "latent": "(({}))",
    "observed": "(({}))",
    "deterministic": "((({})))",
    "parameter": "[{}]",
    "factor": "[{}]",
    "input": "[{}]",
}
_CLASS = {"observed": "observed", "parameter": "plain", "input": "plain", "factor": "factor"}


def mermaid(scene: Scene, orientation: str = "down") -> str:
    """The text of a .mmd file.

    A node of Mermaid lies in one subgraph only: where plates cross, each region that they cut out is a
    subgraph that names them all.
    """
    identifiers = {name: f"n{i}" for i, name in enumerate(scene.nodes)}
    lines = [f"flowchart {'LR' if orientation == 'right' else 'TD'}"]
    regions: dict[tuple[str, ...], list[str]] = {}
    for name in scene.nodes:
        regions.setdefault(_path(name, scene.plates), []).append(name)
    sizes = {plate.name: _plain(plate.label.tex) for plate in scene.plates}
    _region((), regions, scene, identifiers, sizes, lines, 1)
    for edge in scene.edges:
        arrow = {"guide": "-.->", "factor": "---"}.get(edge.kind, "-->")
        lines.append(f"  {identifiers[edge.source]} {arrow} {identifiers[edge.target]}")
    lines += [
        "  classDef default fill:#fff,stroke:#000,color:#000",
        "  classDef observed fill:#bfbfbf,stroke:#000,color:#000",
        "  classDef plain fill:none,stroke:none,color:#000",
        "  classDef factor fill:#000,stroke:#000,color:#fff",
    ]
    for style in ("observed", "plain", "factor"):
        of_style = [identifiers[n] for n, node in scene.nodes.items() if _CLASS.get(node.kind) == style]
        if of_style:
            lines.append(f"  class {','.join(of_style)} {style}")
    return "\n".join(lines) + "\n"


def _path(name: str, plates: Iterable[PlateMark]) -> tuple[str, ...]:
    """A node's subgraphs from the outside in: its plates, those that cross joined into one."""
    mine = {p.name: p for p in plates if name in p.members}
    members = {key: frozenset().union(*(p.members for p in plates if p.name == key)) for key in mine}
    path: list[list[str]] = []
    for key in sorted(mine, key=lambda k: (-len(members[k]), k)):
        crossed = next((group for group in path if any(not members[key] <= members[other] for other in group)), None)
        if crossed is None:
            path.append([key])
        else:
            crossed.append(key)
    return tuple("&".join(sorted(group)) for group in path)


def _region(
    here: tuple[str, ...], regions: dict[tuple[str, ...], list[str]], scene: Scene,
    identifiers: dict[str, str], sizes: dict[str, str],
    lines: list[str], depth: int,
) -> None:  # fmt: skip
    indent = "  " * depth
    for name in regions.get(here, []):
        node = scene.nodes[name]
        lines.append(indent + identifiers[name] + _SHAPE[node.kind].format('"' + _safe(_plain(node.label.tex)) + '"'))
    for key in dict.fromkeys(
        path[: len(here) + 1] for path in regions if len(path) > len(here) and path[: len(here)] == here
    ):
        title = ", ".join(sizes[plate] for plate in key[-1].split("&"))
        number = sum(line.lstrip().startswith("subgraph") for line in lines)
        lines.append(f'{indent}subgraph p{number}["{_safe(title)}"]')
        _region(key, regions, scene, identifiers, sizes, lines, depth + 1)
        lines.append(f"{indent}end")


def _safe(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
