"""PlanarPosterior: a Gaussian stretched across planes."""

from torch import Tensor

from ppl_dgm.distributions import Pushforward
from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count
from ppl_dgm.transforms import Planar

from .posterior import AmortisedPosterior, factorised_normal

__all__ = ["PlanarPosterior"]


class PlanarPosterior(AmortisedPosterior):
    """z_t = z_{t-1} + u_t tanh(w_t^T z_{t-1} + b_t), z_0 ~ N(loc, diag exp(log_variance)), with u_t, w_t, b_t features.

    u_t is changed so that each step is invertible (`ppl_dgm.transforms.Planar`).

    Arguments:
        latent: dimensions L of z.
        steps: how many.

    Source: Rezende and Mohamed (2015), Variational inference with normalizing flows.

    Example:
        >>> import torch
        >>> posterior = PlanarPosterior(3, steps=2)
        >>> posterior(torch.randn(5, posterior.features)).rsample().shape
        torch.Size([5, 3])
    """

    def __init__(self, latent: int, steps: int = 4) -> None:
        if not is_count(steps, 1):
            raise ProgramError(f"PlanarPosterior: steps is {steps!r}; give a whole number, at least 1.")
        super().__init__(latent, latent, latent, *((latent, latent, 1) * steps))

    def forward(self, features: Tensor) -> Pushforward:
        loc, log_variance, *rest = self.parts(features)
        steps = [Planar(u, w, b.squeeze(-1)) for u, w, b in zip(rest[::3], rest[1::3], rest[2::3])]
        return Pushforward(factorised_normal(loc, log_variance), steps)
