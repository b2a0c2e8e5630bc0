"""UniformCell: unit-width noise that turns a category into a point of its cell, safely in floating point."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["UniformCell"]

_ONE = torch.Size()


class UniformCell(dist.Uniform):
    """v ~ Uniform(x, x + 1), strictly inside the cell [x, x + 1).

    In float32 the sum x + u rounds up to x + 1 about once in a million draws, where the floor of v is no
    longer x and one such entry makes a whole batch's bound minus infinity; and u is exactly 0 once in 16
    million. Both draws are moved to the next number inside.
    """

    def rsample(self, sample_shape: Any = _ONE) -> Tensor:
        v = super().rsample(sample_shape)
        tiny = torch.finfo(v.dtype).eps / 4
        return torch.minimum(torch.maximum(v, self.low + tiny), torch.nextafter(self.high, self.low))
