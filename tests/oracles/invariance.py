"""Whether a kernel leaves a density invariant: start from exact draws, take some steps, and look for a difference."""

import math
from typing import Any

import torch
from torch import Tensor

from oracles.densities import Handmade
from ppl_dgm.inference.chains.hamiltonian import Metric, Point

__all__ = ["bimodal", "bimodal_draws", "bimodal_shares", "steps_from", "z_scores"]

_EDGES = torch.linspace(-4, 4, 15).double()


def _bimodal(z: Tensor) -> Tensor:
    """A mixture with weights 0.3 and 0.7, means -1.5 and 1, deviations 0.3 and 0.8, unnormalised."""
    x = z[:, 0]
    left = -0.5 * ((x + 1.5) / 0.3).square() + math.log(0.3 / 0.3)  # weight / deviation
    right = -0.5 * ((x - 1.0) / 0.8).square() + math.log(0.7 / 0.8)
    return torch.logaddexp(left, right)


def bimodal() -> Handmade:
    """A density in one dimension with two unequal modes."""
    return Handmade(_bimodal, 1)


def bimodal_draws(count: int) -> Tensor:
    """Exact draws from it, [count, 1]."""
    left = torch.rand(count) < 0.3
    noise = torch.randn(count).double()
    return torch.where(left, -1.5 + 0.3 * noise, 1.0 + 0.8 * noise)[:, None]


def bimodal_shares() -> tuple[Tensor, Tensor]:
    """The edges of cells, and the probability of each by quadrature, those outside included."""
    x = torch.linspace(-8, 8, 160_001).double()
    weight = _bimodal(x[:, None]).exp()
    cell = torch.bucketize(x, _EDGES)
    shares = torch.zeros(len(_EDGES) + 1).double().index_add_(0, cell, weight)
    return _EDGES, shares / shares.sum()


def z_scores(x: Tensor, edges: Tensor, shares: Tensor) -> Tensor:
    """How many standard errors the share of independent values in each cell is off, [cell]."""
    found = torch.bincount(torch.bucketize(x, edges), minlength=len(shares)) / len(x)
    return (found - shares) / (shares * (1 - shares) / len(x)).sqrt()


def steps_from(kernel: Any, density: Handmade, z: Tensor, step: float, count: int, scale: float = 1.0) -> Point:
    """Where the chains [chain, d] are after so many steps of the kernel, without any learning."""
    metric = Metric(torch.full((density.dim,), scale, dtype=z.dtype))
    point = Point.at(density, z)
    with torch.no_grad():
        for t in range(count):
            point = kernel.step(density, metric, point, step, t, False).point
    return point
