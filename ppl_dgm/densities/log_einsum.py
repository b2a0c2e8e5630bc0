"""Sum-products of log factors by logsumexp: no underflow, and every step is one that vmap knows.

Pyro's own backend goes through exp, a linear einsum and a log whose autograd function has no rule for vmap.
The
functions here have the names that opt_einsum looks for in a backend.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro.distributions.hmm
import torch
from pyro.ops.einsum.util import Tensordot
from pyro.ops.rings import LogRing
from torch import Tensor

__all__ = ["StableLogRing", "einsum", "mappable_hmm", "tensordot", "transpose"]


class StableLogRing(LogRing):
    """Pyro's ring of log factors over the einsum below."""

    _backend = __name__


def transpose(a: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The axes in another order."""
    return a.permute(axes)


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """log sum exp of the sum of the operands, over the symbols that the output lacks."""
    left, output = equation.split("->")
    inputs = left.split(",")
    summed = [s for s in dict.fromkeys("".join(inputs)) if s not in output]
    order = [*output, *summed]
    total: Tensor | None = None
    for symbols, operand in zip(inputs, operands, strict=True):
        held = [s for s in order if s in symbols]
        operand = operand.permute([symbols.index(s) for s in held])
        sizes = dict(zip(held, operand.shape, strict=True))
        operand = operand.reshape([sizes.get(s, 1) for s in order])
        total = operand if total is None else total + operand
    assert total is not None
    if summed:
        return torch.logsumexp(total, list(range(len(output), len(order))))
    return total.clone() if len(operands) == 1 else total  # the ring writes a name on it: never on its argument


tensordot = Tensordot(einsum)


@contextmanager
def mappable_hmm() -> Iterator[None]:
    """Inside, Pyro's HMM distributions take their logarithms by calls that vmap knows."""
    module = pyro.distributions.hmm
    original = module.safe_log
    module.safe_log = _safe_log
    try:
        yield
    finally:
        module.safe_log = original


def _safe_log(x: Tensor) -> Tensor:
    """log x with a finite gradient at zero."""
    tiny = torch.finfo(x.dtype).tiny
    return torch.where(x > 0, x.clamp(min=tiny).log(), torch.full_like(x, -torch.inf))
