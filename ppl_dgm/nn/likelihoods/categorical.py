"""CategoricalLikelihood: every dimension a category of its own."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .likelihood import Likelihood

__all__ = ["CategoricalLikelihood"]


class CategoricalLikelihood(Likelihood):
    """x_d ~ Categorical(softmax(features_d)), with V features for each dimension; no order among the values is assumed.

    Arguments:
        observed: D.
        values: V.

    Raises:
        ProgramError: values is missing or less than 2.
    """

    name = "categorical"

    def __init__(self, observed: int, values: int | None = None) -> None:
        super().__init__(observed, values)
        self._needs_values()
        self.features = observed * (values or 0)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, (self.values or 0) - 1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Categorical(logits=features.unflatten(-1, (self.observed, -1))).to_event(1)

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if x is None else x.long()
