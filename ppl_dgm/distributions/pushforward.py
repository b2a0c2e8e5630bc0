"""Pushforward: the distribution of a random vector after bijections, which remembers the draw that it made last."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Transform

__all__ = ["Pushforward"]


class Pushforward(TorchDistribution):
    """y = T_n(... T_1(x)), x ~ base, with log p(y) = log base(x) - sum_t log|det J_t|.

    For the value that the same object has drawn last, x and the determinants are remembered, so that an inverse that is
    slow or inexact is not needed; any other value is carried back by the inverses. Unlike the memory of
    `torch.distributions.TransformedDistribution`, which its transforms keep and share with whatever else uses them, this one
    belongs to one distribution and one draw: an expanded distribution and a copy start without, and a draw that was made
    without gradients does not serve a density that needs them.

    Arguments:
        base: batch shape [...], event shape [D].
        transforms: bijections of vectors, whose own batch shapes broadcast with the base's. One that has
            `call_and_log_det(x)` is asked for its value and its determinant at once.

    Source: Rezende and Mohamed (2015), Variational inference with normalizing flows, eq. (13).

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_dgm.transforms import Householder
        >>> p = Pushforward(dist.Normal(torch.ones(2), 1.0).to_event(1), [Householder(torch.tensor([[1.0, 1.0]]))])
        >>> p.log_prob(torch.tensor([-1.0, -1.0]))
        tensor(-1.8379)
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, base: Any, transforms: Sequence[Transform], validate_args: bool | None = None) -> None:
        self.base, self.transforms = base, list(transforms)
        self.forget()
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    def forget(self) -> None:
        """Drop the last draw."""
        self._value: Tensor | None = None
        self._origin: Tensor | None = None
        self._log_det: Any = 0.0
        self._with_gradient = False

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Pushforward":
        batch = torch.Size(batch_shape)
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__getstate__())
        new.base = self.base.expand(batch)
        TorchDistribution.__init__(new, batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._draw(self.base.rsample(torch.Size(sample_shape)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self._draw(self.base.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if value is self._value and (self._with_gradient or not torch.is_grad_enabled()):
            origin, log_det = self._origin, self._log_det
        else:
            origin, log_det = self.origin(value)
        return self.base.log_prob(origin) - log_det

    def origin(self, value: Tensor) -> tuple[Tensor, Any]:
        """The x that becomes this value, [..., D], and the sum of log|det J_t| on its way, [...]."""
        total: Any = 0.0
        for transform in reversed(self.transforms):
            before = transform.inv(value)
            total = total + transform.log_abs_det_jacobian(before, value)
            value = before
        return value, total

    def _draw(self, x: Tensor) -> Tensor:
        self._origin, self._with_gradient = x, torch.is_grad_enabled()
        total: Any = 0.0
        for transform in self.transforms:
            both = getattr(transform, "call_and_log_det", None)
            if both is None:
                y = transform(x)
                log_det = transform.log_abs_det_jacobian(x, y)
            else:
                y, log_det = both(x)
            x, total = y, total + log_det
        self._value, self._log_det = x, total
        return x

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_value": None, "_origin": None, "_log_det": 0.0, "_with_gradient": False}
