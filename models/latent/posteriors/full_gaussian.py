"""FullGaussianPosterior: a Gaussian with any covariance."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .posterior import AmortisedPosterior, factorised_normal, triangular

__all__ = ["FullGaussianPosterior"]


class FullGaussianPosterior(AmortisedPosterior):
    """q(z | x) = N(loc, S S^T), S = diag(s) (I + N) with N strictly lower triangular, all of them features.

    L(L+3)/2 features, as many as such a Gaussian has parameters; it can be the exact posterior of a linear Gaussian program.

    Arguments:
        latent: dimensions L of z.

    Source: Kingma and Welling (2019), An introduction to variational autoencoders, section 2.5.1.

    Example:
        >>> import torch
        >>> FullGaussianPosterior(2)(torch.zeros(5, 5)).covariance_matrix[0]
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent, latent, latent, latent * (latent - 1) // 2)

    def forward(self, features: Tensor) -> Any:  # [batch, L (L + 3) / 2]
        loc, log_variance, below = self.parts(features)
        scale = factorised_normal(loc, log_variance).base_dist.scale
        unit = triangular(torch.cat([torch.ones_like(loc), below], -1), self.latent).mT
        return dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * unit)
