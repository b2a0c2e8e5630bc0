"""Householder: a rotation made of reflections, one for each row of a batch."""

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

__all__ = ["Householder", "reflect"]


class Householder(Transform):
    """y = H_K ... H_1 x with H_k = I - 2 v_k v_k^T / |v_k|^2, a volume-preserving map with a closed inverse.

    U = H_K ... H_1 is orthogonal, and U - I has rank K at most. Every orthogonal D x D matrix is a product of D
    reflections; D - 1 reach it up to the sign of one column only: they cannot make -I, for one.

    Unlike `pyro.distributions.transforms.Householder` it takes its vectors as they are, with a batch shape of their own,
    which is what an encoder gives, and keeps no memory of earlier calls. A vector of zeros reflects nothing.

    Arguments:
        vectors: v_1, ..., v_K, of any length, [..., K, D].

    Source: Tomczak and Welling (2016), Improving variational auto-encoders using Householder flow; Sun and Bischof (1995).

    Example:
        >>> Householder(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))(torch.tensor([3.0, 4.0]))
        tensor([-3., -4.])
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.vectors = vectors

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Householder) and self.vectors is other.vectors

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        return reflect(x, self.vectors)

    def _inverse(self, y: Tensor) -> Tensor:
        return reflect(y, self.vectors.flip(-2))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zeros."""
        return y.new_zeros(y.shape[:-1])

    def matrix(self) -> Tensor:
        """U, [..., D, D]."""
        size = self.vectors.shape[-1]
        eye = torch.eye(size, dtype=self.vectors.dtype, device=self.vectors.device)
        return reflect(eye, self.vectors.unsqueeze(-3)).mT


def reflect(x: Tensor, vectors: Tensor) -> Tensor:
    """H_K ... H_1 x for x [..., D] and vectors [..., K, D]."""
    for v in vectors.unbind(-2):
        length = v.square().sum(-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        x = x - 2 * ((x * v).sum(-1, keepdim=True) / length) * v
    return x
