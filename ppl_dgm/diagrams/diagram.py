"""diagram: a program drawn as a plate diagram, and the object that holds the picture."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppl_dgm.errors import FileError, ProgramError

from . import figure as pictures
from .constants import constant_distributions
from .dot import dot
from .layout import layout, read
from .mermaid import mermaid
from .scene import Scene
from .tikz import tikz

__all__ = ["Diagram", "diagram"]

_FORMATS = (".svg", ".png", ".pdf", ".tex", ".dot", ".mmd")


def diagram(
    program: Any,
    *args: Any,
    guide: bool = True,
    distributions: bool = False,
    orientation: str = "down",
    highlight: Any = (),
    positions: Mapping[str, tuple[float, float]] | None = None,
    size: float | tuple[float, float] | None = None,
    **kwargs: Any,
) -> "Diagram":
    """A program as a plate diagram in the textbook's manner.

    Latent sites are white circles, observed ones grey, deterministic ones double; factors are black
    squares, parameters dots, inputs
    bare names; plates are rounded boxes with name and size at the lower right; what the guide conditions on
    is dashed.

    Arguments:
        program: a `Program`, a callable Pyro model, or a `Structure`.
        *args, **kwargs: go to the model, as for `structure`.
        guide: whether to draw the guide, if there is one.
        distributions: whether to write each site's distribution beside it.
        orientation: "down", parents above children, or "right".
        highlight: names of nodes to stress, with the edges between neighbours of a list (a trail) or all
            members of a set; the
            answer of `Structure.d_separated` stands for its active trail.
        positions: {name: (x, y)} for nodes that shall stand elsewhere, in points, y upwards
            (`Diagram.positions` are the present ones).
        size: width in inches, or (width, height) that the picture must fit into; by default letters have 13
            points.

    Returns:
        A `Diagram`, which notebooks show.

    Raises:
        ProgramError: the program cannot run on these arguments, or an option is unknown.

    Source: C. Bishop (2006), Pattern Recognition and Machine Learning, 8.1; L. Dietz (2010), the
        tikz-bayesnet library.

    Example:
        >>> import ppl_dgm as dgm
        >>> picture = dgm.diagram(dgm.models.VAE(observed=4, values=2))
        >>> sorted(picture.scene.nodes)
        ['decoder', 'encoder', 'x', 'z']
    """
    structure, constants = program, None
    if not hasattr(program, "graph") or not hasattr(program, "plates"):
        from ppl_dgm.graphical import structure as find_structure

        structure = find_structure(program, *args, guide=guide, **kwargs)
        constants = constant_distributions(program, *args, **kwargs) if distributions else None
    elif args or kwargs:
        raise ProgramError(
            "a structure is drawn as it is; give the arguments to dgm.structure, or hand in the program."
        )
    scene = read(structure, guide, distributions, constants)
    _highlight(scene, highlight)
    layout(scene, orientation, positions)
    return Diagram(scene, orientation, size, getattr(structure, "name", ""))


def _highlight(scene: Scene, highlight: Any) -> None:
    """Stresses nodes, and edges between neighbours of a trail or among a set."""
    if not isinstance(highlight, (str, set, frozenset, list, tuple)) and hasattr(highlight, "trail"):
        highlight = highlight.trail
    names = [highlight] if isinstance(highlight, str) else list(highlight or ())
    unknown = sorted(str(name) for name in names if name not in scene.nodes)
    if unknown:
        raise ProgramError(
            f"highlight names {unknown[0]!r}, which is not in the diagram; it has {', '.join(scene.nodes)}."
        )
    for name in names:
        scene.nodes[name].strong = True
    if isinstance(highlight, (set, frozenset)):
        joined = {(a, b) for a in names for b in names}
    else:
        joined = {pair for a, b in pairwise(names) for pair in ((a, b), (b, a))}
    for edge in scene.edges:
        edge.strong = edge.kind != "guide" and (edge.source, edge.target) in joined
    scene.dimmed = bool(names)


class Diagram:
    """A plate diagram: save it, or read its places.

    Attributes:
        scene: everything in it with its place, in points, y upwards.
        orientation: "down" or "right".
        name: of the program.
    """

    def __init__(
        self,
        scene: Scene,
        orientation: str = "down",
        size: float | tuple[float, float] | None = None,
        name: str = "",
    ) -> None:
        self.scene, self.orientation, self.name = scene, orientation, name
        self._scale = _scale(scene.size, size)

    @property
    def positions(self) -> dict[str, tuple[float, float]]:
        """Where the nodes stand: a start for positions of one's own."""
        return {name: (node.x, node.y) for name, node in self.scene.nodes.items()}

    def figure(self) -> Figure:
        """A matplotlib figure, to be changed at will."""
        return pictures.draw(self.scene, self._scale)

    def save(self, path: str | Path, dpi: float = 300) -> Path:
        """Writes the picture; the ending of the name gives the format.

        Arguments:
            path: ends in .svg, .png, .pdf, .tex (a LaTeX document), .dot or .mmd.
            dpi: dots per inch of a .png.

        Returns:
            The path.

        Raises:
            FileError: another ending.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in _FORMATS:
            raise FileError(f"{path.name} does not say its format: the name must end in {', '.join(_FORMATS)}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending in (".svg", ".png", ".pdf"):
            pictures.save(self.figure(), path, dpi)
        else:
            texts = {".tex": lambda: self.tikz(standalone=True), ".dot": self.dot, ".mmd": self.mermaid}
            path.write_text(texts[ending](), encoding="utf-8")
        return path

    def tikz(self, standalone: bool = False) -> str:
        r"""TikZ in the manner of tikz-bayesnet, styles included; it needs `\usetikzlibrary{arrows.meta}`.

        Arguments:
            standalone: make it a document that pdflatex compiles as it is.
        """
        return tikz(self.scene, standalone)

    def dot(self) -> str:
        """Graphviz, every node pinned where it is here."""
        return dot(self.scene)

    def mermaid(self) -> str:
        """A Mermaid flowchart; Mermaid places the nodes itself."""
        return mermaid(self.scene, self.orientation)

    @cached_property
    def _svg(self) -> str:
        return pictures.svg(self.figure())

    def _repr_svg_(self) -> str:
        return self._svg

    def __repr__(self) -> str:
        plates = {plate.name for plate in self.scene.plates}
        counts = {"node": len(self.scene.nodes), "edge": len(self.scene.edges), "plate": len(plates)}
        words = [f"{count} {thing}{'' if count == 1 else 's'}" for thing, count in counts.items()]
        return f"Diagram of {self.name or 'a structure'}: {', '.join(words)}"


def _scale(natural: tuple[float, float], size: Iterable[float] | float | None) -> float:
    if size is None:
        return 1.0
    wanted = (size, float("inf")) if isinstance(size, (int, float)) else tuple(size)
    if len(wanted) != 2 or min(wanted) <= 0:
        raise ProgramError(f"size is {size!r}; give a width in inches, or (width, height).")
    return min(72 * w / n for w, n in zip(wanted, natural))
