"""Planar: stretches space across one plane, for each row of a batch, with an inverse."""

import math
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from .tanh_root import tanh_root

__all__ = ["Planar"]

_MARGIN = 1e-3  # of the determinant's smallest value over zero, so that rounding cannot reach zero


class Planar(Transform):
    """y = x + u' tanh(w^T x + b),  log|det J| = log(1 + (1 - tanh^2(w^T x + b)) w^T u').

    The map is invertible for w^T u' > -1, which u' = u + (m(w^T u) - w^T u) w / |w|^2 ensures for any u, with
    m(a) = softplus(a + log(e - 1)) - 1. The constant log(e - 1), which the source does not have, makes u = 0 the identity.

    Unlike `pyro.distributions.transforms.Planar` it can be inverted anywhere: along w the map is a monotone function of one
    variable, whose root `tanh_root` finds.

    Arguments:
        u, w: [..., D] each.
        b: [...].

    Source: Rezende and Mohamed (2015), Variational inference with normalizing flows, appendix A.

    Example:
        >>> layer = Planar(torch.tensor([2.0, 0]), torch.tensor([1.0, 1]), torch.tensor(0.5))
        >>> x = torch.tensor([1.0, 2.0])
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-5)
        True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        length = w.square().sum(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
        free = (w * u).sum(-1, keepdim=True)
        allowed = torch.nn.functional.softplus(free + math.log(math.e - 1)).clamp_min(_MARGIN) - 1
        self.w, self.b = w, b
        self.u = u + (allowed - free) * w / length
        self.inner = (self.w * self.u).sum(-1)  # w^T u', [...]; from u' as rounded

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Planar) and self.u is other.u

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * torch.tanh((self.w * x).sum(-1) + self.b).unsqueeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        along = tanh_root((self.w * y).sum(-1), self.inner, torch.ones_like(self.inner), self.b)
        return y - self.u * torch.tanh(along + self.b).unsqueeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 + h' w^T u'), [...]."""
        h = torch.tanh((self.w * x).sum(-1) + self.b)
        return torch.log1p((1 - h.square()) * self.inner)
