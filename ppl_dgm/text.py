"""Plain text for terminals, notebooks and messages: tables and lists."""

from collections.abc import Iterable, Sequence

__all__ = ["listed", "table"]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns aligned by spaces; numbers to the right, words to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [bool(cells) and all(_is_number(line[i]) for line in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(list(header)), line(["-" * w for w in widths]), *map(line, cells)])


def listed(items: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more: "a, b, c and 4 more"."""
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def _is_number(cell: str) -> bool:
    return (
        cell in ("", "-")
        or cell.replace("±", "")
        .replace(".", "")
        .replace("-", "")
        .replace(" ", "")
        .replace("e", "")
        .replace("+", "")
        .isdigit()
    )
