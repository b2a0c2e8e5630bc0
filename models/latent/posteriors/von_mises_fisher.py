"""VonMisesFisherPosterior: directions around a mean direction, for latent variables on a sphere."""

import torch
from torch import Tensor, nn

from ppl_dgm.distributions import VonMisesFisher
from ppl_dgm.distributions.von_mises_fisher import Sphere
from ppl_dgm.errors import ProgramError

from .posterior import AmortisedPosterior

__all__ = ["VonMisesFisherPosterior"]


class VonMisesFisherPosterior(AmortisedPosterior):
    """q(z | x) = C_L(kappa) exp(kappa mu . z) on |z| = 1, mu = v / |v|, kappa = 0.01 + L softplus(k), with v and k features.

    kappa grows with L since the mean length of the mean vector is a function of kappa / L, about. With a uniform prior on the
    sphere the divergence is known in closed form, and is a function of kappa alone.

    Arguments:
        latent: dimensions L >= 2 of the space around the sphere.

    Source: Davidson, Falorsi, De Cao, Kipf and Tomczak (2018), Hyperspherical variational auto-encoders; Tomczak 2024, section
    5.4.2.3, whose eq. (5.68) lacks the ratio of Bessel functions.

    Example:
        >>> VonMisesFisherPosterior(3)(torch.randn(5, 4)).rsample().shape
        torch.Size([5, 3])
    """

    prior = "sphere"
    support = Sphere()

    def __init__(self, latent: int) -> None:
        super().__init__(latent, latent, 1)
        if latent < 2:
            raise ProgramError(f"VonMisesFisherPosterior: latent is {latent}; a sphere needs at least 2 dimensions.")

    def forward(self, features: Tensor) -> VonMisesFisher:  # [batch, L + 1]
        v, k = self.parts(features)
        length = v.norm(dim=-1, keepdim=True)
        axis = torch.eye(
            1, self.latent, dtype=v.dtype, device=v.device
        )  # the direction of a vector of zeros, which has none
        mu = torch.where(length > 0, v / length.clamp_min(torch.finfo(v.dtype).tiny), axis)
        return VonMisesFisher(mu, 0.01 + self.latent * nn.functional.softplus(k.squeeze(-1)))
