"""Mathematics as outlines: each symbol is set once by matplotlib and then reused, which makes many names
cheap."""

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path

__all__ = ["Line", "line", "measure"]

_EM = 100.0  # outlines are kept at this size
_FONT = FontProperties(family="cmr10", size=_EM, math_fontfamily="cm")  # Computer Modern, which matplotlib brings along
_ATOM = re.compile(
    r"\\mathrm\{(?P<roman>(?:[^{}\\]|\\.)*)\}"
    r"|_\{(?P<below>(?:[^{}\\]|\\[^{}]|\\mathrm\{(?:[^{}\\]|\\.)*\}|\\[{}])*)\}"
    r"|(?P<symbol>\\mathcal\{[A-Z]\}(?:\^\{[^{}]*\})?|\\[A-Za-z]+ ?|\\[^A-Za-z]|.)"
)
_SPACES = {"\\,": 0.167, "\\ ": 0.333, " ": 0.0}
_WIDE = {"\\sim": 0.278, "\\times": 0.25, "=": 0.278}  # space on both sides, in em
_SCRIPT, _DROP = 0.7, 0.16  # size and depth of subscripts, in em


@dataclass(frozen=True)
class Line:
    """A line of mathematics at a size of 1: its outline from the left end of the base line, width, height
    and depth."""

    outline: Path
    width: float
    above: float
    below: float


@lru_cache(maxsize=4096)
def line(tex: str) -> Line:
    """Sets mathematics without dollars: what `labels` writes, that is words, symbols, subscripts and
    spaces."""
    parts, x = _set(tex, 1.0, 0.0)
    if not parts:
        return Line(Path(np.zeros((0, 2))), x, 0.0, 0.0)
    outline = Path.make_compound_path(*parts)
    shapes = np.concatenate([np.asarray(part.vertices)[part.codes != Path.CLOSEPOLY] for part in parts])
    return Line(outline, x, max(float(shapes[:, 1].max()), 0.0), max(-float(shapes[:, 1].min()), 0.0))


def measure(tex: str, size: float) -> tuple[float, float, float]:
    """Width, height above and depth below the base line, in points."""
    made = line(tex)
    return made.width * size, made.above * size, made.below * size


def _set(tex: str, size: float, y: float) -> tuple[list[Path], float]:
    """Outlines of the symbols side by side, and the width."""
    parts: list[Path] = []
    x = 0.0
    for found in _ATOM.finditer(tex):
        if found["below"] is not None:
            inner, width = _set(found["below"], size * _SCRIPT, y - _DROP * size)
            parts += [Path(np.asarray(p.vertices) + np.array([x, 0.0]), p.codes) for p in inner]
            x += width + 0.03 * size
            continue
        symbol = found["symbol"]
        if symbol in _SPACES:
            x += _SPACES[symbol] * size
            continue
        wide = _WIDE.get((symbol or "").strip(), 0.0) if size == 1.0 else 0.0
        after = 0.167 * size if symbol == "," and size == 1.0 else 0.0
        outline, width = _roman(found["roman"]) if symbol is None else _symbol(symbol.strip())
        x += wide * size
        if len(np.asarray(outline.vertices)):
            parts.append(Path(np.asarray(outline.vertices) * size + np.array([x, y]), outline.codes))
        x += (width + wide) * size + after
    return parts, x


@lru_cache(maxsize=1024)
def _roman(word: str) -> tuple[Path, float]:
    """A word set upright."""
    if word.isascii() and word.isalnum():
        return _outline(word, False)
    try:
        return _outline(rf"$\mathrm{{{word}}}$", True)
    except ValueError:  # matplotlib knows fewer signs than LaTeX
        return _outline(re.sub(r"\\(?:backslash )?", "", word), False, FontProperties(family="DejaVu Serif", size=_EM))


@lru_cache(maxsize=1024)
def _symbol(tex: str) -> tuple[Path, float]:
    return _outline(f"${tex}$", True)


def _outline(text: str, math: bool, font: FontProperties = _FONT) -> tuple[Path, float]:
    vertices, codes = text_to_path.get_text_path(font, text, ismath=math)  # type: ignore[arg-type]
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=math)  # type: ignore[arg-type]
    return Path(np.asarray(vertices, dtype=float).reshape(-1, 2) / _EM, np.asarray(codes, dtype=Path.code_type)), float(
        width
    ) / _EM
