"""DiscretisedNormal: a normal distribution over ordered grey levels, by the mass of their cells."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from ..errors import ProgramError

__all__ = ["DiscretisedNormal"]


class DiscretisedNormal(dist.TorchDistribution):
    """A normal variable rounded to the nearest of the values 0, ..., V - 1; the end values take the whole
    tails.

    P(k) = Phi((k + 1/2 - loc) / scale) - Phi((k - 1/2 - loc) / scale), where the first Phi is 1 for k = V - 1
    and the second is 0 for k = 0, so that the V masses add up to one whatever loc and scale are.

    Arguments:
        loc: mean of the normal variable, in units of one grey level; any shape.
        scale: its standard deviation, in the same units, positive.
        values: V, at least 2.

    Source: Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, eq. 13.

    Example:
        >>> DiscretisedNormal(torch.tensor(1.0), torch.tensor(0.5), 3).log_prob(torch.arange(3)).exp()
        tensor([0.1587, 0.6827, 0.1587])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    has_enumerate_support = True

    def __init__(self, loc: Tensor, scale: Tensor, values: int, validate_args: bool | None = None) -> None:
        if not isinstance(values, int) or values < 2:
            raise ProgramError(f"DiscretisedNormal: values is {values!r}; give the number of grey levels, at least 2.")
        self.loc, self.scale = broadcast_all(loc, scale)
        self.values = values
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.values - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretisedNormal":
        new = self._get_checked_instance(DiscretisedNormal, _instance)
        batch_shape = torch.Size(batch_shape)
        new.loc, new.scale, new.values = (
            self.loc.expand(batch_shape),
            self.scale.expand(batch_shape),
            self.values,
        )
        super(DiscretisedNormal, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats; finite far into the tails, where differences of Phi are 0 in floating point."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.loc.dtype)
        low, high = (value - 0.5 - self.loc) / self.scale, (value + 0.5 - self.loc) / self.scale
        first, last = value < 0.5, value > self.values - 1.5
        # both edges are moved to the side where log Phi is accurate: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
        right = low + high > 0
        near, far = torch.where(right, -low, high), torch.where(right, -high, low)
        log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
        gap = (log_far - log_near).clamp(max=-torch.finfo(log_near.dtype).tiny)
        inner = log_near + torch.log(-torch.expm1(gap))
        tail = torch.special.log_ndtr(torch.where(first, high, -low))
        return torch.where(first | last, tail, inner)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            drawn = torch.normal(self.loc.expand(shape), self.scale.expand(shape))
            return drawn.round().clamp(0, self.values - 1).long()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        levels = torch.arange(self.values, device=self.loc.device).reshape(-1, *(1,) * len(self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    @property
    def probs(self) -> Tensor:
        """The V masses, [*batch, V]."""
        levels = torch.arange(self.values, device=self.loc.device)
        parts = DiscretisedNormal(self.loc[..., None], self.scale[..., None], self.values, validate_args=False)
        return parts.log_prob(levels).exp()

    @property
    def mean(self) -> Tensor:
        """The mean of the rounded variable, which the ends pull inwards."""
        return (self.probs * torch.arange(self.values, device=self.loc.device)).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the rounded variable."""
        levels = torch.arange(self.values, device=self.loc.device)
        return (self.probs * (levels - self.mean[..., None]) ** 2).sum(-1)
