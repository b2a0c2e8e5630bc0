"""Chained logistics: grey levels whose neighbours are not independent given the decoder's numbers."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ...distributions import ChainedLogistics
from ...errors import ProgramError
from .likelihood import Likelihood, check_floor

__all__ = ["ChainedLogisticLikelihood"]


class ChainedLogisticLikelihood(Likelihood):
    """x_d ~ sum_j w_dj P_dj as "logistic-mixture", with locations that move with the entries before (see `ChainedLogistics`).

    The decoder gives 3 J numbers for each dimension. The couplings C_de are parameters of their own, zero at first, for the
    entries e before d that lie within `reach` rows and columns of it.

    Arguments:
        observed: D.
        values: V.
        components: J.
        floor: the smallest scale, in levels.
        shape: (height, width) of images; None: x is a sequence.
        reach: how far a coupling goes, in pixels (or entries).

    Raises:
        ProgramError: values is missing, components or reach is less than 1, floor is not positive, or the shape is not D.

    Source: Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++.
    """

    name = "chained-logistic"
    near: Tensor
    places: Tensor

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        components: int = 3,
        floor: float = 1e-3,
        shape: Sequence[int] | None = None,
        reach: int = 1,
    ) -> None:
        super().__init__(observed, values)
        self._needs_values()
        for name, count in (("components", components), ("reach", reach)):
            if not isinstance(count, int) or count < 1:
                raise ProgramError(f"likelihood {self.name!r}: {name} is {count!r}; give a number of at least 1.")
        height, width = shape or (1, observed)
        if height * width != observed:
            raise ProgramError(
                f"likelihood {self.name!r}: shape is {tuple(shape or ())!r}, but x has {observed} entries."
            )
        self.floor, self.components = check_floor(floor), components
        self.middle = (int(values or 0) - 1) / 2
        self.features = 3 * components * observed
        self.register_buffer("places", torch.linspace(-1, 1, components + 2)[1:-1], persistent=False)
        place = torch.stack([torch.arange(observed) // width, torch.arange(observed) % width])  # [2, D]
        near = (place[:, :, None] - place[:, None]).abs().amax(0) <= reach
        self.register_buffer("near", near.tril(-1), persistent=False)  # [D, D]
        self.coupling = nn.Parameter(torch.zeros(observed, observed))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, (self.values or 0) - 1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        logits, a, b = features.unflatten(-1, (self.observed, 3, self.components)).unbind(-2)  # [batch, D, J] each
        coupling = self.coupling * self.near
        # couplings act on how far the levels before lie from the middle of the range
        loc = self.middle * (1 + self.places + a) - self.middle * coupling.sum(-1)[:, None]
        scale = self.floor + self.middle / 2 * softplus(b)
        return ChainedLogistics(logits, loc, scale, coupling, int(self.values or 0))

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.long()
