"""tanh_root: the one root of a monotone equation with a hyperbolic tangent, by which planar and Sylvester maps are inverted."""

import math

import torch
from torch import Tensor

__all__ = ["tanh_root"]


def tanh_root(target: Tensor, gain: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """The y with y + gain tanh(slope y + offset) = target, for gain slope > -1, where the left side increases.

    Bisection on [target - |gain|, target + |gain|], as often as the number type has bits, then one step of Newton's. The
    number of steps does not depend on values. First derivatives in all arguments are exact; second ones are not.

    Arguments:
        target, gain, slope, offset: shapes that broadcast.

    Returns:
        The root, in the shape that they broadcast to.

    Example:
        >>> one = torch.ones(())
        >>> tanh_root(one + torch.tanh(one), one, one, 0 * one).sub(1).abs() < 1e-6
        tensor(True)
    """
    with torch.no_grad():
        low, high = target - gain.abs(), target + gain.abs()
        for _ in range(2 - round(math.log2(torch.finfo(target.dtype).eps))):
            middle = 0.5 * (low + high)
            above = middle + gain * torch.tanh(slope * middle + offset) > target
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        start = 0.5 * (low + high)
    h = torch.tanh(slope * start + offset)
    steepness = (1 + gain * slope * (1 - h.square())).detach()
    return start - (start + gain * h - target) / steepness
