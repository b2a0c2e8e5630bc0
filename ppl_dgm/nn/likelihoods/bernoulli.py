"""BernoulliLikelihood: every dimension a bit."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .likelihood import Likelihood

__all__ = ["BernoulliLikelihood"]


class BernoulliLikelihood(Likelihood):
    """x_d ~ Bernoulli(sigmoid(features_d)).

    Arguments:
        observed: D.
        values: 2 or None.

    Raises:
        ProgramError: another number of values.
    """

    name = "bernoulli"

    def __init__(self, observed: int, values: int | None = None) -> None:
        super().__init__(observed, values)
        if values != 2:
            self._no_values()
        self.features = observed

    @property
    def support(self) -> constraints.Constraint:
        return constraints.boolean

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=features).to_event(1)

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return 2.0 * x.to(dtype) - 1.0
