"""MixtureOfGaussiansPrior: K Gaussians with diagonal covariances."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from ppl_dgm.distributions import FiniteMixture

from .prior import Encode, Prior, log_variance_to_scale, positive_count

__all__ = ["MixtureOfGaussiansPrior"]


class MixtureOfGaussiansPrior(Prior):
    """p(z) = sum_k w_k N(z | mu_k, diag s_k^2), all learned.

    The components are densities of whole vectors: a draw has one k for all its entries. (The sum of logarithms over the
    entries of one-dimensional mixtures would be another density, with up to K^L modes.)

    Arguments:
        latent: L.
        components: K.
        spread: standard deviation of the means' first values, which are drawn from N(0, spread^2).

    Raises:
        ProgramError: a size is not positive.

    Source: Tomczak (2024), section 5.4.1.4, eq. (5.47).
    """

    def __init__(self, latent: int, components: int = 16, spread: float = 1.0) -> None:
        super().__init__(latent)
        positive_count("components", components)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(spread * torch.randn(components, latent))
        self.log_variance = nn.Parameter(torch.zeros(components, latent))

    def distribution(self, encode: Encode | None = None) -> Any:
        scale = log_variance_to_scale(self.log_variance)
        return FiniteMixture(self.logits, dist.Normal(self.loc, scale).to_event(1))
