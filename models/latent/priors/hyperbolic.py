"""HyperbolicPrior: a Gaussian around the centre of hyperbolic space."""

import math
from typing import Any

import torch
from torch import nn

from ppl_dgm.distributions import WrappedNormal
from ppl_dgm.errors import ProgramError

from .prior import Encode, Prior, positive_count

__all__ = ["HyperbolicPrior"]


class HyperbolicPrior(Prior):
    """p(z) = WrappedNormal(0, s I) in the Poincare ball |z| < 1, for the posterior "wrapped-normal".

    Volume grows exponentially with distance, as the number of nodes of a tree does with depth, so that trees fit into few
    dimensions. How strongly space is curved at the scale of the prior is s: curvature -c with unit scale is s = sqrt(c), and s
    near zero is a flat space.

    Arguments:
        latent: L, at least 2.
        scale: s; learned from there on where `learned`.
        learned: whether s is a parameter.

    Raises:
        ProgramError: latent is less than 2, or scale is not positive.

    Source: Mathieu et al. (2019), Continuous hierarchical representations with Poincare variational auto-encoders.
    """

    def __init__(self, latent: int, scale: float = 1.0, learned: bool = False) -> None:
        super().__init__(positive_count("latent, for hyperbolic space,", latent, 2))
        if not 0 < scale < math.inf:
            raise ProgramError(f"scale is {scale!r}; give a positive number.")
        value = torch.tensor(math.log(scale))
        self.log_scale: Any = nn.Parameter(value) if learned else None
        self.scale = scale

    def distribution(self, encode: Encode | None = None) -> Any:
        scale = self.zeros + self.scale if self.log_scale is None else self.log_scale.exp().expand(self.latent)
        return WrappedNormal(self.zeros, scale)
