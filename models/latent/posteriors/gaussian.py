"""GaussianPosterior: a Gaussian without correlations."""

from typing import Any

from torch import Tensor

from .posterior import AmortisedPosterior, factorised_normal

__all__ = ["GaussianPosterior"]


class GaussianPosterior(AmortisedPosterior):
    """q(z | x) = N(loc, diag exp(log_variance)).

    Arguments:
        latent: dimensions L of z.

    Source: Kingma and Welling (2014), Auto-encoding variational Bayes.

    Example:
        >>> import torch
        >>> GaussianPosterior(2)(torch.zeros(5, 4)).rsample().shape
        torch.Size([5, 2])
    """

    def __init__(self, latent: int) -> None:
        super().__init__(latent, latent, latent)

    def forward(self, features: Tensor) -> Any:  # [batch, 2 L]
        return factorised_normal(*self.parts(features))
