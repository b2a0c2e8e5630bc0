"""Likelihood: what a decoder's numbers say about an observation, and how observations enter an encoder."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ...errors import ProgramError

__all__ = ["Likelihood", "check_floor"]


class Likelihood(nn.Module):
    """p(x | features), one distribution for each of the kinds in this folder.

    Arguments:
        observed: D, the number of observed dimensions.
        values: how many values a dimension takes, for kinds that count them.

    Attributes:
        features: how many numbers a decoder has to give. Those of one entry of x stand together, entry after entry, so that
            one decoder, a convolutional one say, serves every kind.
        inputs: how many numbers `scaled` gives an encoder; D for every kind but "mixed".

    Raises:
        ProgramError: the sizes do not go together.
    """

    name: ClassVar[str]
    features: int

    def __init__(self, observed: int, values: int | None = None) -> None:
        super().__init__()
        if not isinstance(observed, int) or observed < 1:
            raise ProgramError(
                f"likelihood {self.name!r}: observed is {observed!r}; give the number of dimensions of x."
            )
        self.observed, self.values = observed, values
        self.inputs = observed

    @property
    def support(self) -> constraints.Constraint:
        """Where one entry of x lies."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        """The distribution of x for features [batch, features]: batch shape [batch], event shape [D]."""
        raise NotImplementedError

    def each(self, features: Tensor) -> Tensor:
        """The features of each entry of x, [batch, D, features / D]."""
        return features.unflatten(-1, (self.observed, -1))

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x for an encoder, [batch, inputs]: levels 0, ..., V - 1 mapped onto [-1, 1], real numbers as they are."""
        x = x.to(dtype)
        return x if self.values is None else x * (2.0 / (self.values - 1)) - 1.0

    def observation(self, x: Tensor | None, dtype: torch.dtype) -> Any:
        """x in the type that the distribution's log density takes; None stays None."""
        return None if x is None else x.to(dtype)

    def start(self, x: Tensor) -> None:
        """Set from training rows [n, D] what is simple about them, before learning; most kinds have nothing to set."""

    def _needs_values(self) -> None:
        if not isinstance(self.values, int) or self.values < 2:
            raise ProgramError(
                f"likelihood {self.name!r} needs values, the number of values of each dimension (at least 2), "
                f"but values is {self.values!r}."
            )

    def _no_values(self) -> None:
        if self.values is not None:
            raise ProgramError(
                f"likelihood {self.name!r} has no number of values, but values is {self.values!r}; leave it out."
            )


def check_floor(floor: float) -> float:
    """The smallest scale, if it is one.

    Raises:
        ProgramError: it is not positive.
    """
    if not floor > 0:
        raise ProgramError(f"floor, the smallest scale of the likelihood, is {floor!r}; make it positive.")
    return float(floor)
