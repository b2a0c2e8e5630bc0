"""Likelihood: what a decoder's output says about an observation, and how observations enter an encoder."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..errors import ProgramError

__all__ = ["LIKELIHOODS", "Likelihood"]

LIKELIHOODS = ("categorical", "bernoulli", "gaussian")


class Likelihood(nn.Module):
    """p(x | features), independent over the D observed dimensions:

    - `categorical`: x_d ~ Categorical(softmax(features_d)), with V features for each dimension;
    - `bernoulli`: x_d ~ Bernoulli(sigmoid(features_d));
    - `gaussian`: x_d ~ Normal(features_d, s_d), with one learned scale s_d for each dimension, at least
      `floor`, so that no dimension that is constant in the data sends the density to infinity.

    Arguments:
        name: one of `LIKELIHOODS`.
        observed: D.
        values: V, for `categorical` only.
        floor: the smallest s_d, in the units of x, for `gaussian` only.

    Attributes:
        features: how many numbers a decoder has to give.
        support: where one entry of x lies.

    Raises:
        ProgramError: the name is unknown, or `values` does not go with it.
    """

    def __init__(self, name: str, observed: int, values: int | None = None, floor: float = 1e-3) -> None:
        super().__init__()
        if name not in LIKELIHOODS:
            raise ProgramError(f"likelihood {name!r} is unknown; choose one of {', '.join(LIKELIHOODS)}.")
        if name == "categorical" and (values is None or values < 2):
            raise ProgramError(
                f"likelihood 'categorical' needs values, the number of categories (at least 2), "
                f"but values is {values!r}."
            )
        if name != "categorical" and values is not None and not (name == "bernoulli" and values == 2):
            raise ProgramError(f"likelihood {name!r} has no number of values, but values is {values!r}; leave it out.")
        if floor <= 0:
            raise ProgramError(f"floor, the gaussian's smallest standard deviation, is {floor!r}; make it positive.")
        self.name, self.observed, self.values, self.floor = name, observed, values, floor
        self.features = observed * (values or 1) if name == "categorical" else observed
        if name == "gaussian":
            self.free_scale = nn.Parameter(torch.full((observed,), 0.5))  # softplus(0.5) is about 1

    @property
    def support(self) -> constraints.Constraint:
        if self.name == "categorical":
            return constraints.integer_interval(0, (self.values or 0) - 1)
        return constraints.boolean if self.name == "bernoulli" else constraints.real

    @property
    def scale(self) -> Tensor:
        """The gaussian's standard deviations s_d, [D]."""
        return self.floor + nn.functional.softplus(self.free_scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The distribution of x for features [batch, features]: batch shape [batch], event shape [D]."""
        if self.name == "categorical":
            return dist.Categorical(logits=features.unflatten(-1, (self.observed, -1))).to_event(1)
        if self.name == "bernoulli":
            return dist.Bernoulli(logits=features).to_event(1)
        return dist.Normal(features, self.scale).to_event(1)

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x for an encoder, [batch, D]: categories and bits mapped onto [-1, 1], real numbers as they are."""
        x = x.to(dtype)
        return x if self.name == "gaussian" else x * (2.0 / ((self.values or 2) - 1)) - 1.0

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """x in the type that the distribution's log density takes."""
        return None if x is None else x.long() if self.name == "categorical" else x.to(dtype)
