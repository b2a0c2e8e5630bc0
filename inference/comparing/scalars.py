"""Scalars named as Stan names them, such as `beta[1,2]`, as arrays, and the moments of arrays that a database lists so."""

import math
import re

import torch
from torch import Tensor

from ppl_dgm.errors import FileError

__all__ = ["MOMENTS", "Values", "as_arrays", "listed_moments", "place"]

Values = dict[str, tuple[float, float]]  # {scalar: (value, its Monte Carlo standard error)}
MOMENTS = ("mean", "square", "variance", "square_variance", "mcse_mean", "mcse_square")


def place(name: str) -> tuple[str, tuple[int, ...]]:
    """The site and the index, counted from zero: `theta[2,1]` is element (1, 0) of theta.

    Raises:
        FileError: it is not of that form.
    """
    found = re.fullmatch(r"([^\[\]]+)(?:\[(\d+(?:,\s*\d+)*)\])?", name)
    if found is None:
        raise FileError(f"the reference names a scalar {name!r}, which is not of the form site[1,2].")
    return found[1], tuple(int(i) - 1 for i in found[2].split(",")) if found[2] else ()


def as_arrays(values: dict[str, float]) -> dict[str, Tensor]:
    """Scalars as arrays, {site: [*shape]} in double precision; elements that are not listed are NaN."""
    cells: dict[str, dict[tuple[int, ...], float]] = {}
    for name, value in values.items():
        site, index = place(name)
        cells.setdefault(site, {})[index] = float(value)
    arrays = {}
    for site, table in cells.items():
        shape = [1 + max(axis) for axis in zip(*table, strict=True)]
        arrays[site] = torch.full(shape, math.nan, dtype=torch.float64)
        for index, value in table.items():
            arrays[site][index] = value
    return arrays


def listed_moments(
    mean: Values, mean_squared: Values, draws: dict[str, Tensor] | None = None
) -> dict[str, dict[str, Tensor]]:
    """The moments of the sites, {one of MOMENTS: {site: [*shape]}}.

    Var[x^2], which posteriordb does not list, comes from the draws; without them it is the squared Monte Carlo error of
    E[x^2] times Var[x] / MCSE[x]^2, the effective number of draws.

    Arguments:
        mean, mean_squared: of each scalar, with their errors.
        draws: {scalar: [chain, draw]}.

    Raises:
        FileError: the means and the mean squares are of different sites.
    """
    (first, mcse_mean), (square, mcse_square) = [
        [as_arrays({name: pair[which] for name, pair in values.items()}) for which in (0, 1)]
        for values in (mean, mean_squared)
    ]
    if first.keys() != square.keys():
        raise FileError("the means and the mean squares are of different sites; fetch the entry again.")
    variance = {site: (square[site] - first[site].square()).clamp(min=0.0) for site in first}
    spread = {site: mcse_square[site].square() * variance[site] / mcse_mean[site].square() for site in first}
    if draws is not None:
        spread = as_arrays({name: float(x.square().var()) for name, x in draws.items() if name in mean})
    return dict(zip(MOMENTS, (first, square, variance, spread, mcse_mean, mcse_square), strict=True))
