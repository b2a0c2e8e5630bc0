"""VonMisesFisher: the Gaussian of directions, on the unit sphere of any dimension."""

import math
from typing import Any

import torch
from numpy.polynomial.legendre import leggauss
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from .bessel import log_bessel

__all__ = ["Sphere", "VonMisesFisher"]

_PROPOSALS = 32
_RULE = leggauss(48)  # Gauss and Legendre's nodes and weights on [-1, 1]


class Sphere(constraints.Constraint):
    """Rows of length one, to single precision whatever their type."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < 1e-4


class VonMisesFisher(TorchDistribution):
    """p(x) = C_D(kappa) exp(kappa mu . x) on |x| = 1 in R^D, D >= 2.

        log C_D(kappa) = v log kappa - (v + 1) log(2 pi) - log I_v(kappa),    v = D/2 - 1.

    The density is with respect to the sphere's area.

    Arguments:
        direction: mu, [..., D], of length one.
        concentration: kappa, [...], positive; 0 would be uniform.

    Source: K. Mardia and P. Jupp (2000), Directional Statistics; sampling: A. Wood (1994); as a posterior: T. Davidson et al.
    (2018), Hyperspherical variational auto-encoders.

    Example:
        >>> VonMisesFisher(torch.tensor([0.0, 0, 1]), torch.tensor(10.0)).sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints = {"direction": Sphere(), "concentration": constraints.positive}
    support = Sphere()
    has_rsample = True

    def __init__(self, direction: Tensor, concentration: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(direction.shape[:-1], concentration.shape)
        self.direction = direction.expand(*batch, direction.shape[-1])
        self.concentration = concentration.expand(batch)
        self._known: tuple[Tensor, Tensor] | None = None
        self._with_gradient = False
        super().__init__(batch, direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisher":
        batch = torch.Size(batch_shape)
        direction = self.direction.expand(*batch, *self.event_shape)
        return type(self)(direction, self.concentration.expand(batch), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """A_D(kappa) mu, with A_D = I_{D/2} / I_{D/2 - 1}."""
        length = self._bessel()[1].to(self.direction.dtype)
        return length.unsqueeze(-1) * self.direction

    @property
    def log_normaliser(self) -> Tensor:
        """log C_D(kappa), the batch's shape."""
        return self._log_normaliser().to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        """-kappa A_D(kappa) - log C_D(kappa), nats, the batch's shape."""
        return self.entropy_in_double().to(self.concentration.dtype)

    def entropy_in_double(self) -> Tensor:
        """The entropy in float64, for differences with the uniform distribution's, which are small for a small kappa."""
        return -self.concentration.double() * self._bessel()[1] - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        order = self.event_shape[0] / 2 - 1
        return order * self.concentration.double().log() - (order + 1) * math.log(2 * math.pi) - self._bessel()[0]

    def _bessel(self) -> tuple[Tensor, Tensor]:
        """log I_{D/2-1}(kappa) and A_D(kappa), float64, computed once; again if they lack a gradient that is needed."""
        if self._known is None or (torch.is_grad_enabled() and not self._with_gradient):
            self._known = log_bessel(self.event_shape[0] / 2 - 1, self.concentration)
            self._with_gradient = torch.is_grad_enabled()
        return self._known

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_normaliser + self.concentration * (self.direction * value).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """x = cos(t) mu + sin(t) v with v uniform among the directions across mu; gradients flow to mu and kappa.

        The angle t is drawn by rejection (`_angles`) and differentiated implicitly: with F its distribution function,
        dt / dkappa = -(dF / dkappa) / (dF / dt). Unlike a gradient of the accepted proposal this one leaves no term for the
        acceptance, which another estimator would have to add. Second derivatives are not to be trusted.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        kappa = self.concentration.double().expand(shape)
        with torch.no_grad():
            angle = self._angles(kappa)
        if torch.is_grad_enabled() and kappa.requires_grad:
            mean = self._bessel()[1]  # with a gradient, so that the density that follows has it at hand
            with torch.no_grad():
                slope = _angle_slope(angle, kappa, self.event_shape[0], mean)
            angle = angle + slope * (kappa - kappa.detach())
        angle = angle.to(self.direction.dtype).unsqueeze(-1)
        direction = self.direction.expand(*shape, *self.event_shape)
        across = torch.randn_like(direction)
        across = across - (across * direction).sum(-1, keepdim=True) * direction
        across = across / across.norm(dim=-1, keepdim=True)
        x = angle.cos() * direction + angle.sin() * across
        return x / x.norm(dim=-1, keepdim=True)

    def _angles(self, kappa: Tensor) -> Tensor:
        """Angles to mu, of kappa's shape, by rejection from a transformed Beta.

        At least two of three proposals are accepted, so that all of `_PROPOSALS` fail with a probability below 3^-32 < 1e-15;
        then the first of them stands. No Python branch looks at a value.
        """
        rest = self.event_shape[0] - 1
        b = rest / (2 * kappa + (4 * kappa.square() + rest**2).sqrt())
        x0 = (1 - b) / (1 + b)
        top = kappa * x0 + rest * torch.log(4 * b / (1 + b).square())  # 1 - x0^2, without cancellation
        half = torch.full((_PROPOSALS, *kappa.shape, 2), rest / 2, dtype=kappa.dtype, device=kappa.device)
        z, other = torch._sample_dirichlet(half).unbind(-1)  # Beta(rest / 2, rest / 2), and what it lacks to one
        w = (other - b * z) / (other + b * z)
        accepted = kappa * w + rest * torch.log1p(-x0 * w) - top >= torch.rand_like(z).log()
        first = accepted.to(torch.uint8).argmax(0, keepdim=True)
        z, other = z.gather(0, first)[0], other.gather(0, first)[0]
        return 2 * torch.atan2((b * z).sqrt(), other.sqrt())


def _angle_slope(angle: Tensor, kappa: Tensor, size: int, mean: Tensor) -> Tensor:
    """dt / dkappa at angles t of distributions on the sphere in R^size, float64; t keeps its quantile, and mean is E[cos t].

    With q(t) = sin(t)^(D-2) exp(kappa cos t) and A = E[cos t] it is -(1 / q(t)) int_0^t (cos s - A) q(s) ds, and so much over
    the other end. The side of cos t = A on which the integrand has one sign is integrated, to where q has fallen by e^-40, by
    Gauss and Legendre's rule; the relative error is below 1e-9.

    Source: M. Figurnov, S. Mohamed and A. Mnih (2018), Implicit reparameterization gradients.
    """
    smallest = torch.finfo(angle.dtype).tiny

    def fall(at: Tensor) -> Tensor:
        """log q(at) - log q(angle)."""
        sines = at.sin().clamp_min(smallest).log() - angle.sin().clamp_min(smallest).log()
        return (size - 2) * sines + 2 * kappa * torch.sin((angle + at) / 2) * torch.sin((angle - at) / 2)

    near, far = angle, torch.where(angle.cos() > mean, torch.zeros_like(angle), torch.full_like(angle, math.pi))
    for _ in range(20):
        middle = 0.5 * (near + far)
        deep = fall(middle) < -40
        near, far = torch.where(deep, near, middle), torch.where(deep, middle, far)
    column = [-1] + [1] * angle.dim()
    nodes, weights = (torch.tensor(x, dtype=angle.dtype, device=angle.device).view(column) for x in _RULE)
    half = 0.5 * (far - angle)
    at = angle + half * (1 + nodes)
    return half * (weights * (at.cos() - mean) * fall(at).exp()).sum(0)
