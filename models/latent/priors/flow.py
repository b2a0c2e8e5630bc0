"""FlowPrior: a RealNVP on the latent variables."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Permute
from torch import Tensor, nn

from ppl_dgm.transforms import BoundedCoupling, coupling_network

from .prior import Encode, Prior, positive_count

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    """z = f(e) with e ~ N(0, I) and f affine couplings, between which the halves of z swap places; exact,

        log p(z) = log N(f^{-1}(z) | 0, I) + log|det df^{-1}/dz|,

    where the log-determinant is one number for each z. It starts as N(0, I).

    Arguments:
        latent: L, at least 2.
        flows: number of couplings.
        hidden: units of each of a coupling's two hidden layers.
        bound: largest |log-scale| of a coupling.

    Raises:
        ProgramError: latent is less than 2, as a coupling needs two halves, or another size is not positive.

    Source: Dinh, Sohl-Dickstein and Bengio (2017); Tomczak (2024), section 5.4.1.8.
    """

    order: Tensor
    back: Tensor

    def __init__(self, latent: int, flows: int = 4, hidden: int = 64, bound: float = 2.0) -> None:
        super().__init__(positive_count("latent, for the flow prior,", latent, 2))
        positive_count("flows", flows)
        kept = latent // 2
        self.couplings = nn.ModuleList(
            BoundedCoupling(kept, coupling_network(kept, latent - kept, (hidden, hidden)), bound) for _ in range(flows)
        )
        order = torch.arange(latent).roll(kept)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def distribution(self, encode: Encode | None = None) -> Any:
        layers: list[Any] = []
        for coupling in self.couplings:
            swap = Permute(self.order, cache_size=0)
            swap.inv_permutation = self.back
            layers += [coupling, swap]
        return dist.TransformedDistribution(dist.Normal(self.zeros, 1.0).to_event(1), layers)
