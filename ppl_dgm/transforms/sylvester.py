"""Sylvester: a residual layer of M units whose determinant costs O(M), for each row of a batch, with an inverse."""

from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from .tanh_root import tanh_root

__all__ = ["Sylvester", "bjorck"]


class Sylvester(Transform):
    """y = x + Q R h(R~ Q^T x + b), h = tanh, with Q's M columns orthonormal and R, R~ upper triangular.

    By Sylvester's identity det(I_D + A B) = det(I_M + B A),

        log|det J| = sum_m log(1 + h'_m r_mm r~_mm),

    and the map is invertible for r_mm r~_mm > -1 / max h' = -1. Neither is checked; both are what the caller sees to.

    Unlike `pyro.distributions.transforms.Sylvester` it takes Q, R, R~ and b with a batch shape of their own, and can be
    inverted: in the coordinates Q^T x the map is triangular, and each entry, last to first, is the root of a monotone
    equation (`tanh_root`).

    Arguments:
        q: Q, [..., D, M], M <= D.
        r, r_tilde: R and R~, [..., M, M]; only their upper triangles are used.
        b: [..., M].

    Source: van den Berg, Hasenclever, Tomczak and Welling (2018), Sylvester normalizing flows for variational inference.

    Example:
        >>> layer = Sylvester(torch.eye(3)[:, :2], torch.full((2, 2), 0.5), torch.full((2, 2), 0.3), torch.zeros(2))
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-5)
        True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, q: Tensor, r: Tensor, r_tilde: Tensor, b: Tensor) -> None:
        super().__init__()
        self.q, self.r, self.r_tilde, self.b = q, r.triu(), r_tilde.triu(), b

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Sylvester) and self.q is other.q and self.b is other.b

    __hash__ = Transform.__hash__

    def call_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det J|, from one pass."""
        h = self._hidden(x)
        return x + self._back(h), self._log_det(h)

    def _call(self, x: Tensor) -> Tensor:
        return x + self._back(self._hidden(x))

    def _inverse(self, y: Tensor) -> Tensor:
        moved = _times(y, self.q).unbind(-1)  # Q^T y
        found: list[Tensor] = []  # Q^T x and h from entry m + 1 on
        units: list[Tensor] = []
        for m in range(self.b.shape[-1] - 1, -1, -1):
            offset, target = self.b[..., m], moved[m]
            for later, (entry, unit) in enumerate(zip(found, units), m + 1):
                offset = offset + self.r_tilde[..., m, later] * entry
                target = target - self.r[..., m, later] * unit
            slope = self.r_tilde[..., m, m]
            root = tanh_root(target, self.r[..., m, m], slope, offset)
            found.insert(0, root)
            units.insert(0, torch.tanh(slope * root + offset))
        return y - self._back(torch.stack(units, -1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_m log(1 + h'_m r_mm r~_mm), [...]."""
        return self._log_det(self._hidden(x))

    def _hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(_times(_times(x, self.q), self.r_tilde.mT) + self.b)  # [..., M]

    def _back(self, h: Tensor) -> Tensor:
        return _times(_times(h, self.r.mT), self.q.mT)  # Q R h, [..., D]

    def _log_det(self, h: Tensor) -> Tensor:
        diagonal = (self.r * self.r_tilde).diagonal(dim1=-2, dim2=-1)
        return torch.log1p((1 - h.square()) * diagonal).sum(-1)


def bjorck(q: Tensor, steps: int = 30) -> Tensor:
    """The orthonormal columns nearest to those of a matrix, by Q <- Q (I + (I - Q^T Q) / 2) from Q / |Q|_F on.

    Each singular value s, below 1 after the division, goes to s (3 - s^2) / 2: up by half as long as it is small, then with
    the square of the distance from 1. Thirty steps reach 1 to single precision from 1e-4 |Q|_F on, and what is smaller stays
    short of 1: a matrix (nearly) without full rank has no nearest orthonormal columns.

    Arguments:
        q: [..., D, M], M <= D.
        steps: how many.

    Returns:
        [..., D, M]; differentiable.

    Source: Bjorck and Bowie (1971), An iterative algorithm for computing the best estimate of an orthogonal matrix; Kovarik
    (1970).
    """
    tiny = torch.finfo(q.dtype).tiny
    q = q / q.square().sum((-2, -1), keepdim=True).clamp_min(tiny).sqrt()
    for _ in range(steps):
        q = 1.5 * q - 0.5 * (q @ (q.mT @ q))
    return q


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """Row vectors times matrices: [..., D] and [..., D, M] give [..., M].

    `matmul` would copy a matrix for every vector that shares it; here the vectors of one matrix become one product.
    """
    return torch.einsum("...d,...dm->...m", x, matrix)
