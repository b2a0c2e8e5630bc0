"""StandardPrior: N(0, I)."""

from typing import Any

import pyro.distributions as dist

from .prior import Encode, Prior

__all__ = ["StandardPrior"]


class StandardPrior(Prior):
    """p(z) = N(z | 0, I): nothing to learn, and a closed-form divergence from a Gaussian posterior.

    Arguments:
        latent: L.

    Source: Kingma and Welling (2014); Tomczak (2024), section 5.4.1.3.
    """

    def distribution(self, encode: Encode | None = None) -> Any:
        return dist.Normal(self.zeros, 1.0).to_event(1)
