"""SylvesterPosterior: what the three Sylvester flows share; they differ in how they make their orthogonal matrices."""

import torch
from torch import Tensor

from ppl_dgm.distributions import Pushforward
from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count
from ppl_dgm.transforms import Sylvester

from .posterior import AmortisedPosterior, factorised_normal, triangular

__all__ = ["SylvesterPosterior"]

_LARGEST = 0.999  # |r_mm r~_mm| stays below its square, so that determinants stay above 0.001


class SylvesterPosterior(AmortisedPosterior):
    """z_t = z_{t-1} + Q_t R_t tanh(R~_t Q_t^T z_{t-1} + b_t), z_0 ~ N(loc, diag exp(log_variance)).

    R_t and R~_t are upper triangular, their diagonals within (-1, 1) by tanh, which makes each step invertible. Q_t (as far
    as it is free), R_t, R~_t and b_t are all features: fully amortised, with M (M + 2) numbers a step besides those of Q_t.

    Arguments:
        latent: dimensions L of z.
        steps: how many.
        units: M, columns of Q.
        free: numbers that each Q takes.
        **counts: further options to check, which must be whole numbers from 1 on.

    Raises:
        ProgramError: one is not.

    Source: van den Berg, Hasenclever, Tomczak and Welling (2018), Sylvester normalizing flows for variational inference.
    """

    def __init__(self, latent: int, steps: int, units: int, free: int, **counts: int) -> None:
        for name, value in {"steps": steps, "units": units, **counts}.items():
            if not is_count(value, 1):
                raise ProgramError(f"{type(self).__name__}: {name} is {value!r}; give a whole number, at least 1.")
        upper = units * (units + 1) // 2
        super().__init__(latent, latent, latent, steps * free, steps * upper, steps * upper, steps * units)
        self.steps, self.units = steps, units

    def orthogonal(self, free: Tensor) -> tuple[Tensor, Tensor | None]:
        """The Q of all T steps, from [batch, T, free] to [batch, T, L, M]; and which of them cannot be used, [batch, T], if any."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Pushforward:
        loc, log_variance, *rest = self.parts(features)
        free, r, r_tilde, b = (part.unflatten(-1, (self.steps, part.shape[-1] // self.steps)) for part in rest)
        q, failed = self.orthogonal(free)
        r, r_tilde = self._triangular(r), self._triangular(r_tilde)
        if failed is not None:
            r = r.masked_fill(failed[..., None, None], 0.0)  # then the step is the identity
        each = zip(*(part.unbind(dim) for part, dim in ((q, -3), (r, -3), (r_tilde, -3), (b, -2))))
        return Pushforward(factorised_normal(loc, log_variance), [Sylvester(*parts) for parts in each])

    def _triangular(self, numbers: Tensor) -> Tensor:
        """R or R~ of all steps, [batch, T, M, M], with bounded diagonals."""
        diagonal, above = numbers[..., : self.units], numbers[..., self.units :]
        return triangular(torch.cat([_LARGEST * torch.tanh(diagonal), above], -1), self.units)
