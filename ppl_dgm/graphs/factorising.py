"""Makes the factorisation of one bad matrix in a batch give NaN for that matrix, instead of an error for them all."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NaNForSingular"]


class NaNForSingular(TorchFunctionMode):
    """Inside, a matrix that cannot be factorised has a factor of NaN.

    `torch.linalg.cholesky`, `inv`, `solve` and `eigh`, their older names and the methods of tensors, raise an error for a
    whole batch where one matrix is not positive definite, singular, or not finite. Here they are replaced by
    `cholesky_ex`, `inv_ex` and `solve_ex`, and the results of matrices that failed are NaN, so that the density of one
    chain is NaN and those of the others are what they are. The gradients of the others are unchanged. Nothing is read
    from a tensor, so that the calls can be recorded. However a program imported the functions, they are met.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        safe = _SAFE.get(func)
        if safe is None or (kwargs and kwargs.get("out") is not None):
            return func(*args, **(kwargs or {}))
        return safe(*args, **(kwargs or {}))


def _marked(result: Tensor, failed: Tensor, inner: int) -> Tensor:
    """NaN where a matrix failed, and gradients of NaN through it; its last `inner` dimensions belong to one matrix."""
    failed = failed.reshape(failed.shape + (1,) * inner)
    return result * torch.where(failed, torch.nan, 1.0).to(result.dtype)


def _cholesky(input: Tensor, *, upper: bool = False) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(input, upper=upper)
    return _marked(factor, info != 0, 2)


def _old_cholesky(input: Tensor, upper: bool = False) -> Tensor:
    return _cholesky(input, upper=upper)


def _inv(input: Tensor) -> Tensor:
    inverse, info = torch.linalg.inv_ex(input)
    return _marked(inverse, info != 0, 2)


def _solve(A: Tensor, B: Tensor, *, left: bool = True) -> Tensor:
    vector = B.dim() == 1 or (A.dim() - 1 == B.dim() and B.shape == A.shape[:-1])
    if vector:  # as a matrix of one column: Torch would drop that in place, which cannot be recorded
        return _solve(A, B[..., None], left=left)[..., 0]
    result, info = torch.linalg.solve_ex(A, B, left=left)
    return _marked(result, info != 0, 2)


def _eigh(input: Tensor, UPLO: str = "L") -> Any:
    matrix, failed = _finite(input)
    values, vectors = torch.linalg.eigh(matrix, UPLO)
    names: Any = torch.return_types  # of which the stubs know only some
    return names.linalg_eigh((_marked(values, failed, 1), _marked(vectors, failed, 2)))


def _eigvalsh(input: Tensor, UPLO: str = "L") -> Tensor:
    matrix, failed = _finite(input)
    return _marked(torch.linalg.eigvalsh(matrix, UPLO), failed, 1)


def _finite(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The identity in place of matrices that are not finite, and which these are."""
    failed = ~matrix.isfinite().flatten(-2).all(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return torch.where(failed[..., None, None], eye, _marked(matrix, failed, 2)), failed


_SAFE: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky, torch.cholesky: _old_cholesky, torch.Tensor.cholesky: _old_cholesky,
    torch.linalg.inv: _inv, torch.inverse: _inv, torch.Tensor.inverse: _inv,
    torch.linalg.solve: _solve, torch.linalg.eigh: _eigh, torch.linalg.eigvalsh: _eigvalsh,
}  # fmt: skip
