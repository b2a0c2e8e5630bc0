"""OrthogonalSylvesterPosterior: Sylvester flows through a bottleneck of M orthonormal directions."""

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.transforms import bjorck

from .sylvester import SylvesterPosterior

__all__ = ["OrthogonalSylvesterPosterior"]

_TOLERANCE = 1e-3  # of |Q^T Q - I|_F; beyond it the determinant would be wrong by more than that


class OrthogonalSylvesterPosterior(SylvesterPosterior):
    """The Sylvester flow (`SylvesterPosterior`) whose Q [L, M] is made orthonormal by Bjorck's iterations (`bjorck`).

    The iterations start from the first M unit vectors plus L M features. Where they have not come to orthonormal columns
    (possible only if the start nearly lacks full rank) that step of that row is the identity, so that the density is exact
    always.

    Arguments:
        latent: dimensions L of z.
        steps: steps of the flow.
        units: M <= L; half of L unless given.
        iterations: Bjorck's.

    Source: van den Berg et al. (2018), section 3.2 (O-SNF).

    Example:
        >>> posterior = OrthogonalSylvesterPosterior(4, steps=2)
        >>> posterior(torch.randn(5, posterior.features)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(self, latent: int, steps: int = 4, units: int | None = None, iterations: int = 30) -> None:
        units = max(1, latent // 2) if units is None else units
        super().__init__(latent, steps, units, latent * units, iterations=iterations)
        if units > latent:
            raise ProgramError(
                f"OrthogonalSylvesterPosterior: units is {units}, more than the {latent} dimensions of z; give at most those."
            )
        self.iterations = iterations

    def orthogonal(self, free: Tensor) -> tuple[Tensor, Tensor | None]:
        eye = torch.eye(self.units, dtype=free.dtype, device=free.device)
        start = torch.eye(self.latent, self.units, dtype=free.dtype, device=free.device)
        q = bjorck(start + free.unflatten(-1, (self.latent, self.units)), self.iterations)
        failed = (q.mT @ q - eye).detach().square().sum((-2, -1)).sqrt() > _TOLERANCE
        return q, failed
