"""DiscretisedLogistic and its mixture: ordered integers by the mass that a logistic density puts on their cells."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ..errors import ProgramError

__all__ = ["DiscretisedLogistic", "MixtureOfDiscretisedLogistics"]


class _Levels(dist.TorchDistribution):
    """What distributions over 0, ..., V - 1 (or over all integers) share."""

    loc: Tensor
    values: int | None

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer if self.values is None else constraints.integer_interval(0, self.values - 1)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.values is not None

    def enumerate_support(self, expand: bool = True) -> Tensor:
        levels = self._levels().reshape(-1, *(1,) * len(self.batch_shape))
        return levels.expand(-1, *self.batch_shape) if expand else levels

    @property
    def probs(self) -> Tensor:
        """The V masses, [*batch, V]."""
        return self.log_prob(self.enumerate_support()).exp().movedim(0, -1)

    @property
    def mean(self) -> Tensor:
        """The mean of the rounded variable, which the ends pull inwards."""
        return (self.probs * self._levels()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the rounded variable."""
        return (self.probs * (self._levels() - self.mean[..., None]) ** 2).sum(-1)

    def _levels(self) -> Tensor:
        if self.values is None:
            raise NotImplementedError(
                f"{type(self).__name__}: all integers cannot be listed; give values, their number."
            )
        return torch.arange(self.values, device=self.loc.device)


class DiscretisedLogistic(_Levels):
    """A logistic variable rounded to the nearest integer; of 0, ..., V - 1, the end values take the whole tails.

        P(k) = sigmoid((k + 1/2 - loc) / scale) - sigmoid((k - 1/2 - loc) / scale),

    where the first sigmoid is 1 for k = V - 1 and the second is 0 for k = 0. Without V every integer has its own cell. The
    logarithm never subtracts: with b - a = 1 / scale,

        log(sigmoid(b) - sigmoid(a)) = log sigmoid(b) + log sigmoid(-a) + log(1 - exp(-1 / scale)).

    Arguments:
        loc: mean of the logistic variable, in units of one level; any shape.
        scale: its scale, in the same units, positive; the standard deviation is pi / sqrt(3) times as large.
        values: V, at least 2, or None for all integers.

    Raises:
        ProgramError: values is less than 2.

    Source: Kingma et al. (2016), Improved variational inference with inverse autoregressive flow; Salimans et al. (2017),
    PixelCNN++; Tomczak (2024), section 4.2.3.

    Example:
        >>> DiscretisedLogistic(torch.tensor(1.0), torch.tensor(0.5), 3).log_prob(torch.arange(3)).exp()
        tensor([0.2689, 0.4621, 0.2689])
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self, loc: Tensor, scale: Tensor, values: int | None = None, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.values = _checked("DiscretisedLogistic", values)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretisedLogistic":
        new = self._get_checked_instance(DiscretisedLogistic, _instance)
        shape = torch.Size(batch_shape)
        new.loc, new.scale, new.values = self.loc.expand(shape), self.scale.expand(shape), self.values
        super(DiscretisedLogistic, new).__init__(shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats."""
        if self._validate_args:
            self._validate_sample(value)
        return _log_mass(value.to(self.loc.dtype), self.loc, self.scale, self.values)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            return _rounded(self.loc.expand(shape), self.scale.expand(shape), self.values)


class MixtureOfDiscretisedLogistics(_Levels):
    """P(k) = sum_j w_j P_j(k), with P_j the `DiscretisedLogistic` of loc_j and scale_j.

    Arguments:
        logits: log w_j up to a constant, [..., J].
        loc, scale: of the components, [..., J]; see `DiscretisedLogistic`.
        values: V, at least 2, or None for all integers.

    Raises:
        ProgramError: values is less than 2.

    Source: Salimans et al. (2017), PixelCNN++.

    Example:
        >>> loc, scale = torch.tensor([0.0, 2.0]), torch.tensor([0.1, 0.1])
        >>> MixtureOfDiscretisedLogistics(torch.zeros(2), loc, scale, 3).probs
        tensor([0.4967, 0.0067, 0.4967])
    """

    arg_constraints = {
        "logits": constraints.independent(constraints.real, 1),
        "loc": constraints.independent(constraints.real, 1),
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        values: int | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale = broadcast_all(logits, loc, scale)
        self.values = _checked("MixtureOfDiscretisedLogistics", values)
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixtureOfDiscretisedLogistics":
        new = self._get_checked_instance(MixtureOfDiscretisedLogistics, _instance)
        batch = torch.Size(batch_shape)
        shape = batch + self.loc.shape[-1:]
        new.logits, new.loc, new.scale = self.logits.expand(shape), self.loc.expand(shape), self.scale.expand(shape)
        new.values = self.values
        super(MixtureOfDiscretisedLogistics, new).__init__(batch, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats."""
        if self._validate_args:
            self._validate_sample(value)
        each = _log_mass(value.to(self.loc.dtype).unsqueeze(-1), self.loc, self.scale, self.values)  # [..., J]
        return torch.logsumexp(torch.log_softmax(self.logits, -1) + each, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape)) + self.loc.shape[-1:]
            which = dist.Categorical(logits=self.logits.expand(shape)).sample().unsqueeze(-1)
            loc, scale = (part.expand(shape).gather(-1, which).squeeze(-1) for part in (self.loc, self.scale))
            return _rounded(loc, scale, self.values)


def _log_mass(value: Tensor, loc: Tensor, scale: Tensor, values: int | None) -> Tensor:
    below = logsigmoid((value + 0.5 - loc) / scale)  # log mass below the cell's upper edge
    above = logsigmoid((loc - value + 0.5) / scale)  # log mass above its lower edge
    both = torch.log(-torch.expm1(-1 / scale))
    if values is None:
        return below + above + both
    first, last = value < 0.5, value > values - 1.5
    return below.masked_fill(last, 0.0) + above.masked_fill(first, 0.0) + both.masked_fill(first | last, 0.0)


def _rounded(loc: Tensor, scale: Tensor, values: int | None) -> Tensor:
    u = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).eps / 4)  # a draw of 0 would lie at minus infinity
    drawn = (loc + scale * (u.log() - torch.log1p(-u))).round()
    return (drawn if values is None else drawn.clamp(0, values - 1)).long()


def _checked(name: str, values: int | None) -> int | None:
    if values is not None and (not isinstance(values, int) or values < 2):
        raise ProgramError(f"{name}: values is {values!r}; give the number of levels, at least 2, or None.")
    return values
