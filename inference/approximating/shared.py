"""Many draws from one run of a guide: its networks see each example once, however many draws are made for it."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

__all__ = ["ManyDraws"]


class ManyDraws(Messenger):
    """Inside it each sample statement over B examples draws `count` values for each, those of one example side by side:
    [B, *event] becomes [B * count, *event], as if every row of the data had been repeated.

    Right for a guide with one statement, of whose value nothing in the guide depends.

    Arguments:
        count: draws of each example.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample":
            msg["fn"] = _SideBySide(msg["fn"], self.count)


class _SideBySide(TorchDistribution):
    """`count` independent draws from each of B distributions, batch shape [B * count].

    What the base computes once for a row (an orthogonal matrix, a factor) then serves all draws of it. A base that remembers
    its last draw is asked for the density of that very tensor.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base: Any, count: int) -> None:
        self.base, self.count = base, count
        self._value: Tensor | None = None
        self._inner: Tensor | None = None
        super().__init__(torch.Size([base.batch_shape[0] * count]), base.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @property
    def support(self) -> Any:  # type: ignore[override]
        return self.base.support

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._flat(self.base.sample((*sample_shape, self.count)), len(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._flat(self.base.rsample((*sample_shape, self.count)), len(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        dim = value.dim() - len(self.event_shape) - 1
        if value is self._value:
            assert self._inner is not None
            inner = self._inner
        else:
            inner = value.unflatten(dim, (-1, self.count)).movedim(dim + 1, dim)
        return self.base.log_prob(inner).movedim(dim, dim + 1).flatten(dim, dim + 1)

    def _flat(self, inner: Tensor, dim: int) -> Tensor:  # [*sample_shape, count, B, *event]
        self._inner, self._value = inner, inner.movedim(dim, dim + 1).flatten(dim, dim + 1)
        return self._value
