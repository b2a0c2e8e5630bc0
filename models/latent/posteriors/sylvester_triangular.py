"""TriangularSylvesterPosterior: Sylvester flows whose triangular matrices change sides."""

import torch
from torch import Tensor

from .sylvester import SylvesterPosterior

__all__ = ["TriangularSylvesterPosterior"]


class TriangularSylvesterPosterior(SylvesterPosterior):
    """The Sylvester flow (`SylvesterPosterior`) with M = L and Q the identity and the reversal of all entries by turns.

    So the steps' matrices Q R Q^T are upper and lower triangular by turns, and Q takes no features.

    Arguments:
        latent: dimensions L of z.
        steps: steps of the flow.

    Source: van den Berg et al. (2018), section 3.4 (T-SNF).

    Example:
        >>> posterior = TriangularSylvesterPosterior(4, steps=2)
        >>> posterior(torch.randn(5, posterior.features)).rsample().shape
        torch.Size([5, 4])
    """

    def __init__(self, latent: int, steps: int = 4) -> None:
        super().__init__(latent, steps, latent, 0)

    def orthogonal(self, free: Tensor) -> tuple[Tensor, Tensor | None]:
        eye = torch.eye(self.latent, dtype=free.dtype, device=free.device)
        both = torch.stack([eye, eye.flip(0)])
        by_turns = both[torch.arange(self.steps, device=free.device) % 2]  # [T, L, L]
        return by_turns.expand(*free.shape[:-2], *by_turns.shape), None
