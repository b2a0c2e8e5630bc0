"""Discretised logistics: ordered levels, such as grey levels, from few numbers per dimension."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ...distributions.discretised_logistic import DiscretisedLogistic, MixtureOfDiscretisedLogistics
from ...errors import ProgramError
from .likelihood import Likelihood, check_floor

__all__ = ["DiscretisedLogisticLikelihood", "LogisticMixtureLikelihood"]


class DiscretisedLogisticLikelihood(Likelihood):
    """x_d = a logistic variable of location m_d and scale s_d, rounded to 0, ..., V - 1 (see `DiscretisedLogistic`).

    The decoder's numbers a, b are measured in the range of the data: m = (V - 1)(1 + a) / 2 and
    s = floor + (V - 1) softplus(b) / 4.

    Arguments:
        observed: D.
        values: V.
        floor: the smallest s_d, in levels.
        scale: "decoder": s_d(z) from the decoder, which then gives 2 D numbers, location and scale of each dimension together;
            "learned": one s_d for each dimension.

    Raises:
        ProgramError: values is missing, floor is not positive, or scale is something else.

    Source: Kingma et al. (2016); Tomczak (2024), section 4.2.3.
    """

    name = "discretised-logistic"

    def __init__(self, observed: int, values: int | None = None, floor: float = 1e-3, scale: str = "decoder") -> None:
        super().__init__(observed, values)
        self._needs_values()
        if scale not in ("learned", "decoder"):
            raise ProgramError(f"likelihood {self.name!r}: scale is {scale!r}; choose 'learned' or 'decoder'.")
        self.floor, self.scale_from = check_floor(floor), scale
        self.middle = (int(values or 0) - 1) / 2
        self.features = observed if scale == "learned" else 2 * observed
        if scale == "learned":
            self.free_scale = nn.Parameter(torch.zeros(observed))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, (self.values or 0) - 1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        a, b = (features, self.free_scale) if self.scale_from == "learned" else self.each(features).unbind(-1)
        scale = self.floor + self.middle / 2 * softplus(b)
        return DiscretisedLogistic(self.middle * (1 + a), scale, self.values).to_event(1)

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.long()


class LogisticMixtureLikelihood(Likelihood):
    """x_d ~ sum_j w_dj P_dj, a mixture of J discretised logistics for each dimension (see
    `MixtureOfDiscretisedLogistics`).

    The decoder gives 3 J numbers for each dimension: log weights, then a and b of each component as in
    `DiscretisedLogisticLikelihood`. For a decoder that gives zeros, the components' locations are spread evenly over the
    range, so that they differ from the first step on.

    Arguments:
        observed: D.
        values: V.
        components: J.
        floor: the smallest scale, in levels.

    Raises:
        ProgramError: values is missing, components is less than 1, or floor is not positive.

    Source: Salimans, Karpathy, Chen and Kingma (2017), PixelCNN++.
    """

    name = "logistic-mixture"
    places: Tensor

    def __init__(self, observed: int, values: int | None = None, components: int = 3, floor: float = 1e-3) -> None:
        super().__init__(observed, values)
        self._needs_values()
        if not isinstance(components, int) or components < 1:
            raise ProgramError(f"likelihood {self.name!r}: components is {components!r}; give a number of at least 1.")
        self.floor, self.components = check_floor(floor), components
        self.middle = (int(values or 0) - 1) / 2
        self.features = 3 * components * observed
        self.register_buffer("places", torch.linspace(-1, 1, components + 2)[1:-1], persistent=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, (self.values or 0) - 1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        logits, a, b = features.unflatten(-1, (self.observed, 3, self.components)).unbind(-2)  # [batch, D, J] each
        loc = self.middle * (1 + self.places + a)
        scale = self.floor + self.middle / 2 * softplus(b)
        return MixtureOfDiscretisedLogistics(logits, loc, scale, self.values).to_event(1)

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.long()
