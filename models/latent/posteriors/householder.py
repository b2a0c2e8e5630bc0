"""HouseholderPosterior: a Gaussian turned by amortised reflections."""

import torch
from torch import Tensor, nn

from ppl_dgm.distributions import ReflectedNormal
from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count

from .posterior import AmortisedPosterior, factorised_normal

__all__ = ["HouseholderPosterior"]


class HouseholderPosterior(AmortisedPosterior):
    """z = H_K ... H_1 z_0, z_0 ~ N(loc, diag exp(log_variance)), H_k = I - 2 v_k v_k^T / |v_k|^2.

    The vectors follow from each other, v_k = W_k v_{k-1} + c_k, from the encoder's last hidden layer v_0 on, so that v_1 is
    among the features. Reflections keep volumes; the posterior is a Gaussian with covariance U diag(s^2) U^T, whose density
    is known in closed form (`ReflectedNormal`), as is its divergence from a factorised Gaussian.

    Arguments:
        latent: dimensions L of z.
        reflections: K. With L, any covariance can be had.

    Source: Tomczak and Welling (2016), Improving variational auto-encoders using Householder flow.

    Example:
        >>> import torch
        >>> HouseholderPosterior(3, reflections=2)(torch.randn(5, 9)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    def __init__(self, latent: int, reflections: int = 4) -> None:
        super().__init__(latent, latent, latent, latent)
        if not is_count(reflections, 1):
            raise ProgramError(
                f"HouseholderPosterior: reflections is {reflections!r}; give a whole number, at least 1."
            )
        self.following = nn.ModuleList(nn.Linear(latent, latent) for _ in range(reflections - 1))

    def forward(self, features: Tensor) -> ReflectedNormal:  # [batch, 3 L]
        loc, log_variance, v = self.parts(features)
        vectors = [v]
        for layer in self.following:
            vectors.append(layer(vectors[-1]))
        base = factorised_normal(loc, log_variance).base_dist
        return ReflectedNormal(base.loc, base.scale, torch.stack(vectors, -2))
