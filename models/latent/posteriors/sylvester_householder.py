"""HouseholderSylvesterPosterior: Sylvester flows with orthogonal matrices made of reflections."""

from torch import Tensor

from ppl_dgm.transforms import Householder

from .sylvester import SylvesterPosterior

__all__ = ["HouseholderSylvesterPosterior"]


class HouseholderSylvesterPosterior(SylvesterPosterior):
    """The Sylvester flow (`SylvesterPosterior`) with M = L and Q a product of H reflections, whose vectors are features.

    Q - I has rank H at most. All L reflections are needed for every orthogonal matrix: L - 1 of them reach each one only up
    to the sign of a column, and cannot make -I.

    Arguments:
        latent: dimensions L of z.
        steps: steps of the flow.
        reflections: H; the smaller of 8 and L unless given.

    Source: van den Berg et al. (2018), section 3.3 (H-SNF).

    Example:
        >>> import torch
        >>> posterior = HouseholderSylvesterPosterior(4, steps=2)
        >>> posterior(torch.randn(5, posterior.features)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(self, latent: int, steps: int = 4, reflections: int | None = None) -> None:
        reflections = min(8, latent) if reflections is None else reflections
        super().__init__(latent, steps, latent, reflections * latent, reflections=reflections)
        self.reflections = reflections

    def orthogonal(self, free: Tensor) -> tuple[Tensor, Tensor | None]:
        return Householder(free.unflatten(-1, (self.reflections, self.latent))).matrix(), None
