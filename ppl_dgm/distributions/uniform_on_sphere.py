"""UniformOnSphere: every direction alike; and the divergence of a von Mises-Fisher distribution from it."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import register_kl

from .von_mises_fisher import Sphere, VonMisesFisher

__all__ = ["UniformOnSphere"]


class UniformOnSphere(TorchDistribution):
    """p(x) = Gamma(D/2) / (2 pi^(D/2)) on |x| = 1 in R^D, with respect to the sphere's area.

    Arguments:
        centre: zeros, [..., D], D >= 2: they carry the sizes, the number type and the device.

    Source: K. Mardia and P. Jupp (2000), Directional Statistics, section 9.3.1.

    Example:
        >>> UniformOnSphere(torch.zeros(3)).log_prob(torch.tensor([0.0, 0.0, 1.0]))  # -log 4 pi
        tensor(-2.5310)
    """

    arg_constraints: dict[str, Any] = {}
    support = Sphere()
    has_rsample = True

    def __init__(self, centre: Tensor, validate_args: bool | None = None) -> None:
        self.centre = centre
        super().__init__(centre.shape[:-1], centre.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "UniformOnSphere":
        new = type(self)(self.centre.expand(*batch_shape, *self.event_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The centre, [..., D]."""
        return self.centre

    @property
    def log_area(self) -> float:
        """log(2 pi^(D/2) / Gamma(D/2)), the distribution's entropy in nats."""
        half = self.event_shape[0] / 2
        return math.log(2) + half * math.log(math.pi) - math.lgamma(half)

    def entropy(self) -> Tensor:
        """Nats, the batch's shape."""
        return self.centre.new_full(self.batch_shape, self.log_area)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -self.log_area)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        x = torch.randn(shape, dtype=self.centre.dtype, device=self.centre.device)
        return x / x.norm(dim=-1, keepdim=True)


@register_kl(VonMisesFisher, UniformOnSphere)
def _kl_von_mises_fisher_uniform(p: VonMisesFisher, q: UniformOnSphere) -> Tensor:
    """kappa A_D(kappa) + log C_D(kappa) + log area, which the direction does not enter."""
    return (q.log_area - p.entropy_in_double()).to(p.concentration.dtype)
