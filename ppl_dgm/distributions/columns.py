"""Columns: one row of a table whose columns are of different kinds, independent of one another."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..errors import ProgramError

__all__ = ["Columns"]


class Columns(TorchDistribution):
    """p(x) = prod_g p_g(x at the places of group g): a product of distributions over groups of columns.

    A row is one vector of real numbers, with the codes 0, 1, ... of categories as numbers among them. The density is with
    respect to length for columns of real numbers and to counting for the others.

    Arguments:
        groups: pairs of a distribution with event shape [columns of the group] and those columns' places, a tensor of
            integers; all batch shapes are alike, and every column has one group.
        dtype: of a row.

    Raises:
        ProgramError: a column has no group, or two.

    Example:
        >>> import pyro.distributions as dist
        >>> numbers = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> codes = dist.Categorical(logits=torch.zeros(1, 3)).to_event(1)
        >>> row = Columns([(numbers, torch.tensor([0, 2])), (codes, torch.tensor([1]))], torch.float32)
        >>> row.log_prob(torch.tensor([0.0, 2.0, 0.0]))
        tensor(-2.9365)
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, groups: Sequence[tuple[Any, Tensor]], dtype: torch.dtype) -> None:
        self.groups, self.dtype = list(groups), dtype
        count = sum(len(places) for _, places in self.groups)
        self._order = torch.cat([places for _, places in self.groups]).argsort()
        batch = torch.broadcast_shapes(*[group.batch_shape for group, _ in self.groups])
        if any(group.event_shape != places.shape for group, places in self.groups):
            raise ProgramError(
                "Columns: a group's event shape is not the number of its places; give one place per column."
            )
        super().__init__(batch, torch.Size([count]), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":
        new = self._get_checked_instance(Columns, _instance)
        new.groups = [(group.expand(batch_shape), places) for group, places in self.groups]
        new.dtype, new._order = self.dtype, self._order
        super(Columns, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats of rows [..., D]."""
        return torch.stack([group.log_prob(value.index_select(-1, places)) for group, places in self.groups]).sum(0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            drawn = [group.expand(self.batch_shape).sample(sample_shape).to(self.dtype) for group, _ in self.groups]
            return torch.cat(drawn, -1).index_select(-1, self._order).reshape(shape + self.event_shape)
