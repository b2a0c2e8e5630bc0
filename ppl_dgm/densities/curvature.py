"""The Hessian of a log density at a point: differentiated twice, and checked against differences of the gradient."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["hessian"]

_NUMBERS = 2**22  # of Hessian rows that are differentiated, or of points that are evaluated, at a time


def hessian(density: Any, z: Tensor, rows: int = 2) -> Tensor:
    """The matrix of second derivatives of the log density in R^d.

    The program's density is differentiated twice. Where that is impossible, or disagrees with the change of the gradient
    in a random direction (an operation without a second derivative), it is central differences of the gradient, with
    a relative error of about 1e-10 in float64 and 1e-4 in float32.

    Arguments:
        density: a `LogDensity`, or any object with `value_and_grad`.
        z: the point, [d].
        rows: how many points to evaluate at a time in the check; the number of chains that the density already knows
            saves a recording.

    Returns:
        [d, d], symmetric.
    """
    exact = _twice(density, z) if hasattr(density, "_joint") else None
    if exact is not None and _agrees(density, z, exact, max(rows, 2)):
        return exact
    return _differences(density, z)


def _twice(density: Any, z: Tensor) -> Tensor | None:
    dim = len(z)
    try:
        with torch.enable_grad(), density._context():
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(density._joint.log_joint(z), z, create_graph=True)
            if not gradient.requires_grad:  # a linear density
                return z.new_zeros(dim, dim)
            directions = torch.eye(dim, dtype=z.dtype, device=z.device).split(max(1, _NUMBERS // (64 * dim)))
            parts = [
                torch.autograd.grad(gradient, z, some, retain_graph=True, is_grads_batched=True)[0]
                for some in directions
            ]
    except (RuntimeError, NotImplementedError):  # no second derivative, or none that can be batched
        return None
    matrix = torch.cat(parts).detach()
    return (matrix + matrix.T) / 2 if bool(matrix.isfinite().all()) else None


def _step(z: Tensor) -> float:
    """The width of central differences at which truncation and rounding are alike."""
    return torch.finfo(z.dtype).eps ** (1 / 3) * max(1.0, float(z.abs().max()))


def _agrees(density: Any, z: Tensor, matrix: Tensor, rows: int) -> bool:
    """Whether the matrix predicts the change of the gradient in a direction without structure."""
    index = torch.arange(len(z), dtype=z.dtype, device=z.device)
    direction = torch.cos(1.7 * index + 0.3)
    direction = direction / direction.norm()
    step = _step(z)
    signs = torch.ones(rows, 1, dtype=z.dtype, device=z.device)
    signs[1::2] = -1
    gradients = density.value_and_grad(z + step * signs * direction)[1]
    change = (gradients[0] - gradients[1]) / (2 * step)
    wanted = matrix @ direction
    rounding = torch.finfo(z.dtype).eps * float(gradients.abs().max() + matrix.abs().max()) / step
    relative = 1e-4 if z.dtype == torch.float64 else 0.05
    return bool((change - wanted).norm() <= relative * wanted.norm() + 100 * rounding)


def _differences(density: Any, z: Tensor) -> Tensor:
    dim, step = len(z), _step(z)
    columns = []
    for some in torch.eye(dim, dtype=z.dtype, device=z.device).split(max(1, min(dim, _NUMBERS // (64 * dim)))):
        up = density.value_and_grad(z + step * some)[1]
        columns.append((up - density.value_and_grad(z - step * some)[1]) / (2 * step))
    matrix = torch.cat(columns)
    return (matrix + matrix.T) / 2
