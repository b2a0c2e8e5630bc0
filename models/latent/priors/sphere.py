"""SpherePrior: all directions alike."""

from typing import Any

from ppl_dgm.distributions import UniformOnSphere

from .prior import Encode, Prior, positive_count

__all__ = ["SpherePrior"]


class SpherePrior(Prior):
    """p(z) uniform on |z| = 1 in R^L, for von Mises-Fisher posteriors; see `UniformOnSphere`.

    Arguments:
        latent: L, at least 2.

    Raises:
        ProgramError: latent is less than 2.

    Source: Davidson et al. (2018); Tomczak (2024), section 5.4.2.3.
    """

    def __init__(self, latent: int) -> None:
        super().__init__(positive_count("latent, for the sphere,", latent, 2))

    def distribution(self, encode: Encode | None = None) -> Any:
        return UniformOnSphere(self.zeros)
