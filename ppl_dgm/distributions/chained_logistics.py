"""ChainedLogistics: levels such as grey levels, each of whose locations moves with the levels before it."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..errors import ProgramError
from .discretised_logistic import MixtureOfDiscretisedLogistics

__all__ = ["ChainedLogistics"]


class ChainedLogistics(dist.TorchDistribution):
    """P(x) = prod_d sum_j w_dj P(x_d | m_dj + sum_{e < d} C_de x_e, s_dj), a chain of mixtures of discretised logistics.

    The linear autoregression C carries what neighbouring levels have in common, such as the two sides of a stroke. The
    density needs one pass, a draw D steps one after another.

    Arguments:
        logits: log w_dj up to a constant, [..., D, J].
        loc, scale: m and s of the components, [..., D, J].
        coupling: C, [D, D]; only what stands below its diagonal counts.
        values: V, at least 2: x_d is one of 0, ..., V - 1.

    Raises:
        ProgramError: values is less than 2, or C is not [D, D].

    Source: Salimans et al. (2017), PixelCNN++, whose colours are chained so.

    Example:
        >>> zero, one = torch.zeros(3, 1), torch.ones(3, 1)
        >>> ChainedLogistics(zero, zero, one, torch.zeros(3, 3), 4).log_prob(torch.zeros(3)).exp().round(decimals=4)
        tensor(0.2412)
    """

    arg_constraints = {
        "logits": constraints.independent(constraints.real, 2),
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
        "coupling": constraints.independent(constraints.real, 2),
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        coupling: Tensor,
        values: int,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        self.coupling, self.values = coupling, values
        size = self.loc.shape[-2]
        if coupling.shape != (size, size):
            raise ProgramError(
                f"ChainedLogistics: coupling has the shape {tuple(coupling.shape)}; give [{size}, {size}]."
            )
        if not isinstance(values, int) or values < 2:
            raise ProgramError(f"ChainedLogistics: values is {values!r}; give the number of levels, at least 2.")
        super().__init__(self.loc.shape[:-2], self.loc.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.values - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ChainedLogistics":
        new = self._get_checked_instance(ChainedLogistics, _instance)
        batch = torch.Size(batch_shape)
        shape = batch + self.loc.shape[-2:]
        new.logits, new.loc, new.scale = self.logits.expand(shape), self.loc.expand(shape), self.scale.expand(shape)
        new.coupling, new.values = self.coupling, self.values
        super(ChainedLogistics, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass in nats, the batch's shape."""
        if self._validate_args:
            self._validate_sample(value)
        before = value.to(self.loc.dtype) @ self.coupling.tril(-1).T  # [..., D]
        each = MixtureOfDiscretisedLogistics(self.logits, self.loc + before[..., None], self.scale, self.values)
        return each.log_prob(value).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One entry after another, int64 [*sample_shape, ..., D]."""
        batch, coupling = torch.Size(sample_shape) + self.batch_shape, self.coupling.tril(-1)
        drawn: list[Tensor] = []
        for d in range(self.event_shape[0]):
            loc = self.loc[..., d, :]
            if drawn:
                loc = loc + (torch.stack(drawn, -1) @ coupling[d, :d])[..., None]
            each = MixtureOfDiscretisedLogistics(self.logits[..., d, :], loc, self.scale[..., d, :], self.values)
            drawn.append(each.expand(batch).sample().to(self.loc.dtype))
        return torch.stack(drawn, -1).long()
