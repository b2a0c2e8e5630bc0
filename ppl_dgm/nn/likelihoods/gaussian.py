"""GaussianLikelihood: real numbers, each with a mean from the decoder."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ...errors import ProgramError
from .likelihood import Likelihood, check_floor

__all__ = ["GaussianLikelihood"]

_RAW = 0.5  # softplus of it is about 1


class GaussianLikelihood(Likelihood):
    """x_d ~ Normal(mean_d, s_d), with s_d at least `floor`, so that no dimension that is constant in the data sends the
    density to infinity.

    Arguments:
        observed: D.
        floor: the smallest s_d, in the units of x.
        scale: "learned": one s_d for each dimension; "decoder": s_d(z) from the decoder, which then gives 2 D numbers, mean
            and scale of each dimension together (a heteroscedastic Gaussian); a positive number: every s_d, in the units of x,
            nothing of it learned (sqrt(1/2) makes -log p(x) the squared error up to a constant); "fixed": the same with
            `floor` as the number.

    Raises:
        ProgramError: values is given, floor is not positive, or scale is something else.

    Source: Kingma and Welling (2014), appendix C.2.
    """

    name = "gaussian"
    fixed_scale: Tensor

    def __init__(
        self, observed: int, values: int | None = None, floor: float = 1e-3, scale: str | float = "learned"
    ) -> None:
        super().__init__(observed, values)
        self._no_values()
        number = isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0 < scale < math.inf
        if not number and scale not in ("learned", "decoder", "fixed"):
            raise ProgramError(
                f"likelihood 'gaussian': scale is {scale!r}; choose 'learned', 'decoder', 'fixed' or a positive number."
            )
        self.floor, self.scale_from = check_floor(floor), "fixed" if number else scale
        self.features = 2 * observed if scale == "decoder" else observed
        if self.scale_from == "fixed":  # an option and no part of what was learned, so that it is not saved
            self.register_buffer(
                "fixed_scale", torch.full((observed,), float(scale) if number else self.floor), persistent=False
            )
        if scale == "learned":
            self.free_scale = nn.Parameter(torch.full((observed,), _RAW))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    @property
    def scale(self) -> Tensor:
        """The standard deviations s_d, learned or fixed, [D].

        Raises:
            ProgramError: they come from the decoder, one for each x.
        """
        if self.scale_from == "decoder":
            raise ProgramError("the scales come from the decoder: ask the distribution of x for given features.")
        if self.scale_from == "fixed":
            return self.fixed_scale
        return self.floor + softplus(self.free_scale)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        if self.scale_from != "decoder":
            return dist.Normal(features, self.scale).to_event(1)
        mean, raw = self.each(features).unbind(-1)
        return dist.Normal(mean, self.floor + softplus(raw + _RAW)).to_event(1)
