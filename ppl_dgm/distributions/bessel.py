"""log_bessel: the modified Bessel function of the first kind in log space, for any order, on any device."""

import math
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["log_bessel"]

_TERMS = 9
_ORDER = 30  # Debye's series is used from this order on, where its remainder is below rounding


def log_bessel(order: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """log I_v(x) and the ratio I_{v+1}(x) / I_v(x), in float64.

    Debye's uniform expansion at an order V >= 30, then downwards by I_{v-1} / I_v = 2v / x + I_{v+1} / I_v, which damps
    errors. Neither overflows, underflows nor loses digits, whatever x > 0, and both can be differentiated.

    Arguments:
        order: v >= 0.
        x: any shape, positive.

    Returns:
        Two tensors of x's shape, relative error about 1e-13 (of log I, absolute where |log I| < 1).

    Source: F. Olver et al., NIST Digital Library of Mathematical Functions, 10.41.3 and 10.29.1.

    Example:
        >>> log_bessel(0.5, torch.tensor(1.0))[0].exp()  # sqrt(2 / pi) sinh 1
        tensor(0.9377, dtype=torch.float64)
    """
    x = x.double()
    steps = max(0, math.ceil(_ORDER - order))
    top = order + steps
    value, above = _debye(top, x), _debye(top + 1, x)
    ratio = (above - value).exp()  # I_{V+1} / I_V
    for v in range(steps, 0, -1):
        ratio = 1 / (2 * (order + v) / x + ratio)
        value = value - ratio.log()
    return value, ratio


def _debye(order: float, x: Tensor) -> Tensor:
    """log I_V(x) by Debye's expansion, for large V."""
    root = torch.hypot(x, torch.full_like(x, order))
    t = order / root
    series = torch.zeros_like(x)
    for k in range(_TERMS - 1, 0, -1):
        series = (series + t**k * _polynomial(_COEFFICIENTS[k][k::2], t.square())) / order  # powers k, k + 2, ..., 3 k
    exponent = root + order * (x.log() - torch.log(order + root))
    return exponent - 0.5 * (2 * math.pi * root).log() + torch.log1p(series)


def _polynomial(coefficients: list[float], t: Tensor) -> Tensor:
    result = torch.zeros_like(t)
    for c in reversed(coefficients):
        result = result * t + c
    return result


def _debye_coefficients() -> list[list[float]]:
    """u_0, u_1, ...: u' = t^2 (1 - t^2) u' / 2 + 1/8 int_0^t (1 - 5 s^2) u(s) ds, as coefficients of powers of t."""
    u, found = [Fraction(1)], []
    for _ in range(_TERMS):
        found.append([float(c) for c in u])
        following = [Fraction(0)] * (len(u) + 3)
        for i, c in enumerate(u):
            following[i + 1] += c * i / 2 + c / (8 * (i + 1))
            following[i + 3] -= c * i / 2 + 5 * c / (8 * (i + 3))
        u = following
    return found


_COEFFICIENTS = _debye_coefficients()
