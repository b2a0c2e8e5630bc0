"""Reads a table of categorical entries, of which some may be missing."""

import torch
from torch import Tensor

from ...errors import DataError

__all__ = ["as_rows", "split_missing"]


def split_missing(x: Tensor) -> tuple[Tensor, Tensor]:
    """The categories and which are observed, with no branch on values (so that it can be recorded).

    Arguments:
        x: [..., D] categories of any dtype; negative or NaN: missing.

    Returns:
        The categories [..., D] int64, missing ones set to 0, and the mask [..., D], True where observed.
    """
    observed = x >= 0  # NaN compares as False
    return torch.where(observed, x, torch.zeros_like(x)).long(), observed


def as_rows(x: Tensor, variables: int, values: int, missing: bool = True) -> tuple[Tensor, Tensor]:
    """A checked table of categories.

    Arguments:
        x: [n, D] categories 0 to values - 1 of any dtype; -1 or NaN where an entry is missing.
        variables: D.
        values: how many categories there are.
        missing: whether missing entries are allowed.

    Returns:
        The categories [n, D] int64, missing ones set to 0, and the mask [n, D], True where observed.

    Raises:
        DataError: the table has another width, or an entry is not one of the categories.
    """
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[-1] != variables:
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise DataError(f"x has {found}, but a tensor [rows, {variables}] was expected: one row for each example.")
    if not x.is_floating_point() and len(x) and x.dtype != torch.bool:
        low, high = x.aminmax()
        if bool((low >= 0) & (high < values)):  # the usual case, in one look
            return x.long(), torch.ones_like(x, dtype=torch.bool)
    filled, observed = split_missing(x)
    whole = (filled == x) & (filled < values) | (x == -1)
    wrong = ~(whole | x.isnan()) if x.is_floating_point() else ~whole
    if not missing:
        wrong = wrong | ~observed
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        remedy = "; -1 or NaN marks a missing entry" if missing else ", none of them missing"
        raise DataError(
            f"x[{row}, {column}] is {x[row, column].item()}, but the entries must be whole numbers "
            f"from 0 to {values - 1}{remedy}."
        )
    return filled, observed
