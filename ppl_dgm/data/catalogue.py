"""Data sets by name, for the command line."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from ..errors import DataError
from .dataset import Dataset
from .digits import digits
from .folder import BINARY, binary, mnist
from .items import items
from .tables import SUFFIXES, read
from .toys import checkerboard, eight_gaussians, moons, pinwheel

__all__ = ["load", "names"]

SHIPPED: dict[str, Callable[[], Dataset]] = {
    "digits": digits,
    "moons": moons,
    "eight_gaussians": eight_gaussians,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    "items": items,
}
FROM_FOLDER: dict[str, Callable[[str | os.PathLike | None], Dataset]] = {
    "mnist": mnist,
    "mnist_binary": partial(mnist, binarise="static"),
    **{name: partial(binary, name) for name in BINARY},
}


def names() -> list[str]:
    """Every name that `load` knows."""
    return [*SHIPPED, *FROM_FOLDER]


def load(name: str | os.PathLike, folder: str | os.PathLike | None = None) -> Dataset:
    """A data set by its name, or a user's own file by its path.

    Arguments:
        name: one of `names()` (capitals and hyphens do not matter), or the path of a .csv, .npy, .npz or
            .parquet file, which `read` splits.
        folder: where mnist and the binary sets lie; by default what PPL_DGM_DATA names.

    Raises:
        DataError: the name is unknown, or its data are missing or damaged.

    >>> load("Eight-Gaussians")
    Dataset(eight_gaussians: 2000/500/1000 x 2, float32)
    """
    key = str(name).lower().replace("-", "_")
    if key in SHIPPED:
        return SHIPPED[key]()
    if key in FROM_FOLDER:
        return FROM_FOLDER[key](folder)
    if Path(name).suffix.lower() in SUFFIXES or Path(name).is_file():
        return read(name)
    near = get_close_matches(key, names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DataError(
        f"unknown data set {str(name)!r}; {hint}choose one of {', '.join(names())}, "
        f"or the path of a {', '.join(SUFFIXES)} file."
    )
