"""WrappedNormalPosterior: a Gaussian laid onto hyperbolic space, for codes of data with a hierarchy."""

from torch import Tensor

from ppl_dgm.distributions import WrappedNormal
from ppl_dgm.distributions.wrapped_normal import Ball, from_tangent
from ppl_dgm.errors import ProgramError

from .posterior import AmortisedPosterior

__all__ = ["WrappedNormalPosterior"]

_FURTHEST = 6.0  # distance of a mean from the centre; single precision sees differences up to about 15
_WIDEST = 1.0  # of the log variance


class WrappedNormalPosterior(AmortisedPosterior):
    """q(z | x) = WrappedNormal(loc, s) in the Poincare ball: loc at the end of the feature vector m, drawn from the centre,

        loc = tanh(|m| / 2) m / |m|,  |m| <= 6,       s = exp(log_variance / 2),  log_variance in [-14, 1].

    The decoder is given z in the coordinates of the ball.

    Arguments:
        latent: L, at least 2.

    Source: Nagano et al. (2019); Mathieu et al. (2019).

    Example:
        >>> import torch
        >>> WrappedNormalPosterior(2)(torch.randn(5, 4)).rsample().shape
        torch.Size([5, 2])
    """

    prior = "hyperbolic"
    support = Ball()

    def __init__(self, latent: int) -> None:
        super().__init__(latent, latent, latent)
        if latent < 2:
            raise ProgramError(f"WrappedNormalPosterior: latent is {latent}; hyperbolic space needs at least 2.")

    def forward(self, features: Tensor) -> WrappedNormal:  # [batch, 2 L]
        m, log_variance = self.parts(features)
        m = m * (_FURTHEST / m.norm(dim=-1, keepdim=True).clamp_min(_FURTHEST))
        return WrappedNormal(from_tangent(m), (0.5 * log_variance.clamp(-14.0, _WIDEST)).exp())
