"""WrappedNormal: the Gaussian of hyperbolic space, in the coordinates of the Poincare ball."""

import math
from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor

__all__ = ["Ball", "WrappedNormal", "from_tangent", "moved", "to_tangent"]

_NEAR = 1e-3  # distances below which two terms of a series are exact to rounding, or nearly so


class Ball(constraints.Constraint):
    """Rows of length less than one."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return value.norm(dim=-1) < 1


class WrappedNormal(TorchDistribution):
    """z = exp_loc(v), v ~ N(0, diag scale^2): a Gaussian in the tangent space at loc, laid onto hyperbolic space (curvature -1),

        log p(z) = log N(v | 0, diag scale^2) + (D - 1) log(r / sinh r) + D log(2 / (1 - |z|^2)),     r = |v|,

    with r the distance of z from loc. The density is with respect to the volume of the ball |z| < 1, in which hyperbolic space is
    drawn; without the last term it would be that of Mathieu et al., with respect to hyperbolic volume. Another curvature -c is
    this one with sqrt(c) times the scale.

    Arguments:
        loc: [..., D], in the ball; its distance from the centre is 2 atanh |loc|.
        scale: [..., D], positive, in units of distance.

    Draws further out than the number type can tell from the border, about 15 from the centre in single precision, are put just
    inside of it.

    Source: Y. Nagano, S. Yamaguchi, Y. Fujita and M. Koyama (2019), A wrapped normal distribution on hyperbolic space for
    gradient-based learning; E. Mathieu, C. Le Lan, C. Maddison, R. Tomioka and Y. Teh (2019), appendix B.

    Example:
        >>> WrappedNormal(torch.zeros(2), torch.ones(2)).sample((5,)).norm(dim=-1).max() < 1
        tensor(True)
    """

    arg_constraints = {"loc": Ball(), "scale": constraints.independent(constraints.positive, 1)}
    support = Ball()
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        self.loc, self.scale = loc.expand(shape), scale.expand(shape)
        self._last: tuple[Tensor, Tensor] | None = None  # a draw and its log density, which is exact near the border
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WrappedNormal":
        shape = (*batch_shape, *self.event_shape)
        new = type(self)(self.loc.expand(shape), self.scale.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        v = self.scale * torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        step = from_tangent(v)
        z = moved(self.loc, step)
        # 1 - |z|^2 from its factors, in none of which digits cancel
        r = v.norm(dim=-1)
        inside = (1 - self.loc.square().sum(-1)).log() - 2 * _log_cosh(r / 2) - _denominator(self.loc, step).log()
        limit = 1 - 4 * torch.finfo(z.dtype).eps
        z = z * (limit / z.norm(dim=-1, keepdim=True).clamp_min(limit))
        self._last = z, self._log_prob(v, r, inside)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None and value is self._last[0]:
            return self._last[1]
        if self._validate_args:
            self._validate_sample(value)
        v = to_tangent(moved(-self.loc, value))
        return self._log_prob(v, v.norm(dim=-1), (1 - value.square().sum(-1)).log())

    def _log_prob(self, v: Tensor, r: Tensor, inside: Tensor) -> Tensor:
        """The log density from the tangent vector, its length and log(1 - |z|^2)."""
        size = self.event_shape[0]
        normal = Normal(torch.zeros_like(self.scale), self.scale, validate_args=False).log_prob(v).sum(-1)
        return normal - (size - 1) * _log_sinh_over(r) + size * (math.log(2) - inside)


def moved(x: Tensor, y: Tensor) -> Tensor:
    """Moebius addition: y, seen from the centre, seen from x; the inverse is `moved(-x, ...)`."""
    dot, xx, yy = (x * y).sum(-1, keepdim=True), x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
    return ((1 + 2 * dot + yy) * x + (1 - xx) * y) / _denominator(x, y).unsqueeze(-1)


def _denominator(x: Tensor, y: Tensor) -> Tensor:
    """1 + 2 x.y + |x|^2 |y|^2 = |x + y|^2 + (1 - |x|^2)(1 - |y|^2), a sum of positive terms."""
    rest = (1 - x.square().sum(-1)) * (1 - y.square().sum(-1))
    return ((x + y).square().sum(-1) + rest).clamp_min(torch.finfo(x.dtype).tiny)


def from_tangent(v: Tensor) -> Tensor:
    """The point of the ball at the distance |v| from the centre, in the direction of v: tanh(|v| / 2) v / |v|."""
    r = v.norm(dim=-1, keepdim=True)
    far = r.clamp_min(_NEAR)
    return torch.where(r < _NEAR, 0.5 - r.square() / 24, (far / 2).tanh() / far) * v


def to_tangent(z: Tensor) -> Tensor:
    """The inverse: 2 atanh(|z|) z / |z|."""
    length = z.norm(dim=-1, keepdim=True)
    far = length.clamp(_NEAR, 1 - torch.finfo(z.dtype).eps)
    return torch.where(length < _NEAR, 2 + 2 * length.square() / 3, 2 * far.atanh() / far) * z


def _log_cosh(r: Tensor) -> Tensor:
    """log cosh r for r >= 0."""
    return r + torch.log1p((-2 * r).exp()) - math.log(2)


def _log_sinh_over(r: Tensor) -> Tensor:
    """log(sinh(r) / r) for r >= 0."""
    far = r.clamp_min(0.05)
    series = r.square() / 6 - r**4 / 180 + r**6 / 2835
    return torch.where(r < 0.05, series, far + torch.log(-torch.expm1(-2 * far)) - math.log(2) - far.log())
