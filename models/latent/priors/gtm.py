"""GTMPrior: generative topographic mapping, a mixture of Gaussians on a smooth image of a grid."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.distributions import FiniteMixture
from ppl_dgm.errors import ProgramError
from ppl_dgm.nn import mlp

from .prior import Encode, Prior, log_variance_to_scale, positive_count

__all__ = ["GTMPrior", "grid_points"]


class GTMPrior(Prior):
    """p(z) = sum_k w_k N(z | mu(u_k), diag s^2(u_k)), with u_k the K = points^dimensions points of a fixed grid.

    One network gives mean and log-variance for all of them, so that neighbours on the grid are neighbours in latent space.

    Arguments:
        latent: L.
        points: grid points along each axis.
        dimensions: C, of the grid.
        span: the grid runs from -span to span along each axis.
        hidden: units of each of the network's two hidden layers (tanh).

    Raises:
        ProgramError: a size is not positive.

    Source: Bishop, Svensen and Williams (1998), GTM: the generative topographic mapping; Tomczak (2024), section 5.4.1.6, eq.
    (5.50)-(5.52).
    """

    grid: Tensor

    def __init__(self, latent: int, points: int = 4, dimensions: int = 2, span: float = 1.0, hidden: int = 64) -> None:
        super().__init__(latent)
        self.register_buffer("grid", grid_points(points, dimensions, span), persistent=False)  # [K, C]
        self.network = mlp(dimensions, 2 * latent, (hidden, hidden), "tanh")
        self.logits = nn.Parameter(torch.zeros(len(self.grid)))

    def distribution(self, encode: Encode | None = None) -> Any:
        loc, log_variance = self.network(self.grid).chunk(2, -1)  # [K, L] each
        return FiniteMixture(self.logits, dist.Normal(loc, log_variance_to_scale(log_variance)).to_event(1))


def grid_points(points: int, dimensions: int, span: float) -> Tensor:
    """The points^dimensions points of a grid from -span to span, [K, C], the last axis running fastest.

    Raises:
        ProgramError: a size is not positive.

    Example:
        >>> grid_points(2, 2, 1.0).tolist()
        [[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]
    """
    positive_count("points", points, 2)
    positive_count("dimensions", dimensions)
    if not span > 0:
        raise ProgramError(f"span is {span!r}; give half the length of the grid's axes, a positive number.")
    axis = torch.linspace(-span, span, points)
    return torch.stack(torch.meshgrid([axis] * dimensions, indexing="ij"), -1).flatten(0, -2)
