"""AmortisedPosterior: what the variational posteriors of the zoo share."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count

__all__ = ["AmortisedPosterior", "factorised_normal", "triangular"]


class AmortisedPosterior(nn.Module):
    """q(z | x) from the numbers that an encoder makes of x: `forward(features [batch, F])` gives the distribution of z.

    The distribution has batch shape [batch], reparameterised draws, and an exact log density, of any value.

    Arguments:
        latent: dimensions of z.
        *sizes: how many features each part of the distribution's parameters takes, in order.

    Attributes:
        features: F.
        code: how many numbers a decoder gets for one z.
        prior: the name of the prior that goes with it, and `prior_options`, what that prior has to be told.
        support: where z lies.

    Raises:
        ProgramError: `latent` is no positive whole number.
    """

    prior = "standard"
    support: Any = constraints.real_vector

    def __init__(self, latent: int, *sizes: int) -> None:
        super().__init__()
        if not is_count(latent, 1):
            raise ProgramError(f"{type(self).__name__}: latent is {latent!r}; give the dimensions of z, at least 1.")
        self.latent = self.code = latent
        self.sizes, self.features = sizes, sum(sizes)
        self.prior_options: dict[str, Any] = {}

    def parts(self, features: Tensor) -> tuple[Tensor, ...]:
        """The features of each part, [batch, size]."""
        return features.split(self.sizes, -1)


def factorised_normal(loc: Tensor, log_variance: Tensor) -> Any:
    """N(loc, diag exp(log_variance)), batch [batch], event [latent].

    The log-variance is kept in [-14, 6], far outside of what a trained encoder says, so that densities are finite.
    """
    return dist.Normal(loc, (0.5 * log_variance.clamp(-14.0, 6.0)).exp()).to_event(1)


def triangular(numbers: Tensor, size: int) -> Tensor:
    """Upper triangular matrices, [..., size, size], of numbers [..., size (size + 1) / 2]: the diagonal first, then what is above."""
    index = torch.full((size, size), numbers.shape[-1], device=numbers.device)  # elsewhere the zero put at the end
    index.diagonal().copy_(torch.arange(size, device=numbers.device))
    row, column = torch.triu_indices(size, size, 1, device=numbers.device)
    index[row, column] = torch.arange(size, numbers.shape[-1], device=numbers.device)
    return torch.nn.functional.pad(numbers, (0, 1))[..., index]
