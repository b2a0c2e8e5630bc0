"""VonMisesFisher: the Gaussian of directions, on the unit sphere of any dimension."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .bessel import log_bessel

__all__ = ["Sphere", "VonMisesFisher"]


class Sphere(constraints.Constraint):
    """Rows of length one, to single precision whatever their type."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < 1e-4


class VonMisesFisher(TorchDistribution):
    """p(x) = C_D(kappa) exp(kappa mu . x) on |x| = 1 in R^D, D >= 2.

        log C_D(kappa) = v log kappa - (v + 1) log(2 pi) - log I_v(kappa),    v = D/2 - 1.

    The density is with respect to the sphere's area.

    Arguments:
        direction: mu, [..., D], of length one.
        concentration: kappa, [...], positive; 0 would be uniform.

    Source: K. Mardia and P. Jupp (2000), Directional Statistics; sampling: A. Wood (1994).

    Example:
        >>> VonMisesFisher(torch.tensor([0.0, 0, 1]), torch.tensor(10.0)).sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints = {"direction": Sphere(), "concentration": constraints.positive}
    support = Sphere()
    has_rsample = False

    def __init__(self, direction: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(direction.shape[:-1], concentration.shape)
        self.direction = direction.expand(*batch, direction.shape[-1])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisher":
        batch = torch.Size(batch_shape)
        direction = self.direction.expand(*batch, *self.event_shape)
        return type(self)(direction, self.concentration.expand(batch), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """A_D(kappa) mu, with A_D = I_{D/2} / I_{D/2 - 1}."""
        length = log_bessel(self.event_shape[0] / 2 - 1, self.concentration)[1].to(self.direction.dtype)
        return length.unsqueeze(-1) * self.direction

    @property
    def log_normaliser(self) -> Tensor:
        """log C_D(kappa), the batch's shape."""
        order = self.event_shape[0] / 2 - 1
        kappa = self.concentration.double()
        value = order * kappa.log() - (order + 1) * math.log(2 * math.pi) - log_bessel(order, kappa)[0]
        return value.to(self.concentration.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_normaliser + self.concentration * (self.direction * value).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            along = self._cosines(self.concentration.expand(shape).double()).to(self.direction.dtype).unsqueeze(-1)
            direction = self.direction.expand(*shape, *self.event_shape)
            across = torch.randn_like(direction)
            across = across - (across * direction).sum(-1, keepdim=True) * direction
            across = across / across.norm(dim=-1, keepdim=True)
            x = along * direction + (1 - along.square()).clamp_min(0.0).sqrt() * across
            return x / x.norm(dim=-1, keepdim=True)

    def _cosines(self, kappa: Tensor) -> Tensor:
        """mu . x by rejection from a transformed Beta; at least two of three proposals are accepted."""
        rest = self.event_shape[0] - 1
        b = rest / (2 * kappa + (4 * kappa.square() + rest**2).sqrt())
        x0 = (1 - b) / (1 + b)
        top = kappa * x0 + rest * torch.log(4 * b / (1 + b).square())  # 1 - x0^2, without cancellation
        beta = torch.distributions.Beta(torch.full_like(kappa, rest / 2), torch.full_like(kappa, rest / 2))
        found, open_ = torch.zeros_like(kappa), torch.ones_like(kappa, dtype=torch.bool)
        while bool(open_.any()):
            z = beta.sample()
            w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
            good = kappa * w + rest * torch.log1p(-x0 * w) - top >= torch.rand_like(kappa).log()
            found, open_ = torch.where(open_ & good, w, found), open_ & ~good
        return found
