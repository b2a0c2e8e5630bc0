"""A metric of a diagonal and a few directions: what a dense one gains, at a cost that is linear in the coordinates."""

import torch
from torch import Tensor

from ppl_dgm.inference.chains.hamiltonian import Metric

__all__ = ["LowRankMetric", "geometric_mean_root", "leading_directions", "low_rank_metric", "restored_metric"]

_DIRECTIONS = 128  # looked for among the draws, and as many among the gradients
_POINTS = 12  # points for each direction that is looked for
_CUTOFF = 2.0  # directions whose variance is further from 1 than this factor are kept


class LowRankMetric(Metric):
    """S = D (I + U (diag(l)^(1/2) - I) U^T): the covariance D (I + U (diag(l) - I) U^T) D.

    Every operation takes O(d k) numbers for each chain, against d^2 of a dense metric.

    Arguments:
        scale: the diagonal of D, [d].
        vectors: U, k orthonormal directions in the coordinates z / D, [d, k].
        values: l, the variance along each of them, [k].
    """

    def __init__(self, scale: Tensor, vectors: Tensor, values: Tensor) -> None:
        super().__init__(scale)
        self.vectors, self.values = vectors.contiguous(), values.contiguous()
        self._stretch = self._stretched(values.sqrt() - 1)
        self._shrink = self._stretched(values.rsqrt() - 1)

    def _stretched(self, factors: Tensor) -> Tensor:
        """U diag(factors), transposed: [k, d]."""
        return (self.vectors * factors).T.contiguous()

    def push(self, r: Tensor) -> Tensor:
        return torch.addmm(r, r @ self.vectors, self._stretch) * self.scale

    def pull(self, gradient: Tensor) -> Tensor:
        scaled = gradient * self.scale
        return torch.addmm(scaled, scaled @ self.vectors, self._stretch)

    def whiten(self, z: Tensor) -> Tensor:
        scaled = z / self.scale
        return torch.addmm(scaled, scaled @ self.vectors, self._shrink)

    def add_push(self, z: Tensor, r: Tensor, step: float) -> Tensor:
        return torch.addcmul(z, torch.addmm(r, r @ self.vectors, self._stretch), self.scale, value=step)

    def add_pull(self, r: Tensor, gradient: Tensor, step: float) -> Tensor:
        return r.add(self.pull(gradient), alpha=step)

    def to(self, dtype: torch.dtype) -> Metric:
        return LowRankMetric(self.scale.to(dtype), self.vectors.to(dtype), self.values.to(dtype))

    def tensors(self) -> dict[str, Tensor]:
        return {"metric": self.scale, "metric vectors": self.vectors, "metric values": self.values}


def restored_metric(tensors: dict[str, Tensor]) -> Metric:
    """The metric whose `tensors()` these are."""
    if "metric vectors" in tensors:
        return LowRankMetric(tensors["metric"], tensors["metric vectors"], tensors["metric values"])
    return Metric(tensors["metric"])


def leading_directions(rows: Tensor, count: int) -> Tensor:
    """Orthonormal directions along which the rows [n, d] spread most, [d, count]: their leading singular vectors.

    Of the smaller of the two Gram matrices where that is small, else by four subspace iterations from random directions.
    """
    n, d = rows.shape
    if d <= 4 * count:
        return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -count:]
    if n <= 4 * count:
        vectors = torch.linalg.eigh(rows @ rows.T).eigenvectors[:, -count:]
        return torch.linalg.qr(rows.T @ vectors).Q
    basis = torch.randn(d, count + 16, dtype=rows.dtype, device=rows.device)
    for _ in range(4):
        basis = torch.linalg.qr(rows.T @ (rows @ basis)).Q
    values = torch.linalg.eigh((rows @ basis).T @ (rows @ basis))
    return basis @ values.eigenvectors[:, -count:]


def low_rank_metric(scale: Tensor, z: Tensor, gradient: Tensor) -> Metric:
    """The directions in which a diagonal metric is wrong, and how wrong, from points and gradients.

    Where the points spread more than the diagonal says, or the gradients do, a direction is looked for: the
    leading singular vectors of every other point and of its gradients. The other half of the points says
    what variance there is in the subspace of all of these, as the geometric mean of the draws' covariance
    and the inverse of the gradients'. A direction that chance alone has picked is then found to have unit
    variance, and is left out; so is every eigenvalue between 1 / 2 and 2. A target without correlation keeps its
    diagonal.

    Arguments:
        scale: the diagonal metric's scales, [d].
        z, gradient: centred and divided by the scales, or multiplied with them, [n, d].

    Returns:
        a `LowRankMetric`, or the diagonal one where it does well.

    Source: Seyboldt, Carlson and Carpenter (2026), arXiv 2603.18845, section 4; the two halves are of here.
    """
    n, d = z.shape
    count = min(_DIRECTIONS, n // _POINTS, d // 2)
    if count < 1:
        return Metric(scale)
    spread, slope = leading_directions(z[::2], count), leading_directions(gradient[::2], count)
    basis = torch.linalg.qr(torch.cat([spread, slope], 1)).Q  # [d, k]
    z, gradient = z[1::2], gradient[1::2]
    a, b = z @ basis, gradient @ basis  # [n / 2, k]
    root = geometric_mean_root(a.T @ a / len(a), b.T @ b / len(b))
    rest = (z.square().sum() - a.square().sum()) / (gradient.square().sum() - b.square().sum())
    level = rest.sqrt() if d > basis.shape[1] else torch.ones_like(rest)  # variance in the directions left over
    values, vectors = torch.linalg.eigh(root @ root)
    values = values / level
    far = (values > _CUTOFF) | (values < 1 / _CUTOFF)
    if not bool(far.any()) or not bool(values.isfinite().all()) or not 0 < float(level) < torch.inf:
        return Metric(scale)
    return LowRankMetric(scale * level.sqrt(), basis @ vectors[:, far], values[far])


def geometric_mean_root(a: Tensor, b: Tensor) -> Tensor:
    """The symmetric square root of the matrix C with C b C = a, for positive definite a and b, [d, d]."""
    values, vectors = torch.linalg.eigh(b)
    values = values.clamp(min=values[-1] * 1e-14)
    half = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors * values.rsqrt()) @ vectors.T
    mean = inverse @ _root(half @ a @ half) @ inverse
    return _root((mean + mean.T) / 2)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * values.clamp(min=values[-1] * 1e-14).sqrt()) @ vectors.T
