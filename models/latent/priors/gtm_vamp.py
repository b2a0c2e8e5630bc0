"""GTMVampPrior: pseudo-inputs that a network draws on a grid."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.distributions import FiniteMixture
from ppl_dgm.errors import ProgramError
from ppl_dgm.nn import mlp

from .gtm import grid_points
from .prior import Encode, Prior, positive_count
from .vamp import given

__all__ = ["GTMVampPrior"]


class GTMVampPrior(Prior):
    """p(z) = sum_k w_k q(z | g(u_k)), with u_k the points of a fixed grid and g a network into the inputs of the encoder.

    g ends in low + (high - low) sigmoid, so that its pseudo-inputs never leave the range of the data.

    Arguments:
        latent: L.
        observed: D, entries of a pseudo-input.
        points, dimensions, span: of the grid, see `GTMPrior`.
        hidden: units of each of the network's two hidden layers (tanh).
        low, high: the range of every entry on the encoder's scale, until `start` gives data.

    Raises:
        ProgramError: a size is not positive, or low is not below high.

    Source: Tomczak (2024), section 5.4.1.7, eq. (5.53).
    """

    needs_encoder = True
    grid: Tensor
    low: Tensor
    high: Tensor
    started: Tensor

    def __init__(
        self,
        latent: int,
        observed: int,
        points: int = 4,
        dimensions: int = 2,
        span: float = 1.0,
        hidden: int = 64,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        super().__init__(latent)
        positive_count("observed", observed)
        if not low < high:
            raise ProgramError(
                f"low is {low!r} and high is {high!r}; give the range of the encoder's inputs, low first."
            )
        self.register_buffer("grid", grid_points(points, dimensions, span), persistent=False)  # [K, C]
        self.network = mlp(dimensions, observed, (hidden, hidden), "tanh")
        self.logits = nn.Parameter(torch.zeros(len(self.grid)))
        self.register_buffer("low", torch.full((observed,), float(low)))
        self.register_buffer("high", torch.full((observed,), float(high)))
        self.register_buffer("started", torch.tensor(False))

    def pseudo_inputs(self) -> Tensor:
        """g(u_k), [K, D]."""
        return self.low + (self.high - self.low) * torch.sigmoid(self.network(self.grid))

    def distribution(self, encode: Encode | None = None) -> Any:
        return FiniteMixture(self.logits, given(encode, type(self))(self.pseudo_inputs()))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Take each entry's range from data x [n, D] on the encoder's scale, unless that has been done before; where the grid
        begins is the data's mean.
        """
        if bool(self.started):
            return
        self.low.copy_(x.amin(0))
        self.high.copy_(x.amax(0))
        width = self.high - self.low
        middle = ((x.mean(0) - self.low) / torch.where(width > 0, width, 1.0)).clamp(0.01, 0.99)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(torch.logit(middle))
        self.started.fill_(True)
