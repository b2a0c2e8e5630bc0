"""Data sets, their splits, and checks of what a user hands in."""

from .catalogue import load, names
from .checks import check_observations, describe_support
from .dataset import Dataset
from .digits import digits
from .folder import binary, mnist
from .items import ITEM_COLUMNS, items
from .tables import read, write
from .toys import checkerboard, eight_gaussians, moons, pinwheel

__all__ = [
    "ITEM_COLUMNS",
    "Dataset",
    "binary",
    "check_observations",
    "checkerboard",
    "describe_support",
    "digits",
    "eight_gaussians",
    "items",
    "load",
    "mnist",
    "moons",
    "names",
    "pinwheel",
    "read",
    "write",
]
