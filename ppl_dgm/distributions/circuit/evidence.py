"""log value of a region circuit's root and its gradients: fast passes, and careful ones for rows that need them.

Which rows need them is read off the values, which a recorded graph cannot do: while one is being made, all rows take
the careful passes, whose calls are the same for all values.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...graphs.tape import recording
from .evaluator import FLOOR, restore_zero
from .log_passes import LogUpward, Lookup
from .passes import DenseLeaves, LeafTables, Sweep, chunks
from .regions import RegionPlan

__all__ = ["DenseEvidence", "TableEvidence", "table_evidence"]

Gradients = tuple[Tensor, ...]


class TableEvidence(torch.autograd.Function):
    """log value of the root for rows [n, D] of categories, where K stands for a missing entry.

    Arguments of `apply`: the plan, the rows, whether entries may be missing, the log tables of the leaves [L, S, K] and
    the log weights of each group [F, S', P S]. The backward pass goes up again, so that little is held between them.
    """

    @staticmethod
    def forward(ctx: Any, plan: RegionPlan, x: Tensor, missing: bool, leaves: Tensor, *weights: Tensor) -> Tensor:
        ctx.plan, ctx.missing = plan, missing
        ctx.save_for_backward(x, leaves, *weights)
        return table_evidence(plan, x, missing, leaves, weights)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, leaves, *weights = ctx.saved_tensors
        return None, None, None, *table_evidence(ctx.plan, x, ctx.missing, leaves, weights, gradient)[1]


def table_evidence(
    plan: RegionPlan,
    x: Tensor,
    missing: bool,
    leaves: Tensor,
    weights: Sequence[Tensor],
    gradient: Tensor | None = None,
) -> tuple[Tensor, Gradients]:
    """log value of the root [n] and, where rows have a gradient [n], those of the leaves and weights."""
    inputs = (leaves, *weights)
    if recording():
        log_value, gradients = _carefully(partial(_careful_tables, plan, x, missing), inputs, gradient)
        return restore_zero(log_value), gradients
    layout = plan.folded
    linear = [_positive(weight.exp()) for weight in weights]
    folds = len(layout.folds)
    tables = LeafTables(layout, x, leaves, linear[:folds], missing)
    log_value, unsound, inner = _passes(tables, linear[folds:], leaves.shape[1], len(x), gradient)
    gradients = ()
    if gradient is not None:
        uses, folded = tables.counts(len(leaves))
        gradients = (uses, *(count * weight for count, weight in zip([*folded, *inner], linear, strict=True)))
    if bool(unsound.any()):
        weight = None if gradient is None else gradient[unsound]
        log_value[unsound], others = _carefully(partial(_careful_tables, plan, x[unsound], missing), inputs, weight)
        gradients = tuple(a + b for a, b in zip(gradients, others, strict=True))
    return restore_zero(log_value), gradients


def _careful_tables(plan: RegionPlan, x: Tensor, missing: bool, leaves: Tensor, *weights: Tensor) -> Tensor:
    """The root's log value in logarithms; what is -inf is `FLOOR` or less."""
    table = leaves.clamp(min=FLOOR)
    if missing:
        table = torch.cat([table, table.logsumexp(-1, keepdim=True)], -1)
    values = Lookup.apply(table, x.T[plan.leaf_variable])
    return LogUpward.apply(plan, values, *(weight.exp() for weight in weights))


def _passes(
    leaves: LeafTables | DenseLeaves, linear: Sequence[Tensor], units: int, rows: int, gradient: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """log value of the root [n], rows that need another way [n], gradients with respect to the levels' weights."""
    layout, device = leaves.layout, linear[0].device
    inner = [level.sorted(weight) for level, weight in zip(layout.levels, linear, strict=True)]
    found = [torch.zeros_like(weight) for weight in inner]
    log_value = inner[0].new_empty(rows)
    unsound = torch.zeros(rows, dtype=torch.bool, device=device)
    sweep: Sweep | None = None
    for part in chunks(layout, units, rows, device):
        if sweep is None or sweep.rows != part.stop - part.start:
            sweep = Sweep(layout, inner, units, part.stop - part.start, gradient is not None)
        leaves.fill(sweep, part)
        log_value[part], sound = sweep.up()
        if not bool(sound.all()):
            unsound[part] = True
        elif gradient is not None:
            sweep.down(gradient[part], found, leaves.used)
    return log_value, unsound, [level.restored(count) for level, count in zip(layout.levels, found, strict=True)]


def _carefully(function: Callable[..., Tensor], inputs: Gradients, gradient: Tensor | None) -> tuple[Tensor, Gradients]:
    """A function's value and, where it has a gradient, those of its inputs, which are detached first."""
    with torch.inference_mode(False), torch.set_grad_enabled(gradient is not None):
        inputs = tuple(tensor.detach().clone().requires_grad_(gradient is not None) for tensor in inputs)
        value = function(*inputs)
        return value.detach(), () if gradient is None else torch.autograd.grad(value, inputs, gradient)


def _positive(weight: Tensor) -> Tensor:
    """A weight of zero becomes one that no sum notices, so that no unit's value is zero and can be divided by."""
    return weight.clamp_(min=torch.finfo(weight.dtype).tiny ** 0.75)


class DenseEvidence(torch.autograd.Function):
    """log value of the root for leaves of any kind.

    Arguments of `apply`: the plan, the leaves' log values [L, n, S] and the weights of each group [F, S', P S], which
    are not logarithms.
    """

    @staticmethod
    def forward(ctx: Any, plan: RegionPlan, leaves: Tensor, *weights: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(leaves, *weights)
        return _dense_evidence(plan, leaves, weights)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        leaves, *weights = ctx.saved_tensors
        return None, *_dense_evidence(ctx.plan, leaves, weights, gradient)[1]


def _dense_evidence(
    plan: RegionPlan, leaves: Tensor, weights: Sequence[Tensor], gradient: Tensor | None = None
) -> tuple[Tensor, Gradients]:
    if recording():
        return _carefully(partial(LogUpward.apply, plan), (leaves, *weights), gradient)
    dense = DenseLeaves(plan.unfolded, leaves)
    linear = [_positive(weight.clone()) for weight in weights]
    log_value, unsound, inner = _passes(dense, linear, leaves.shape[2], leaves.shape[1], gradient)
    gradients: Gradients = () if gradient is None else (dense.uses, *inner)
    if bool(unsound.any()):
        inputs, weight = (leaves[:, unsound], *weights), None if gradient is None else gradient[unsound]
        log_value[unsound], others = _carefully(partial(LogUpward.apply, plan), inputs, weight)
        if gradient is not None:
            gradients[0][:, unsound] = others[0]
            gradients = (gradients[0], *(a + b for a, b in zip(gradients[1:], others[1:], strict=True)))
    return log_value, gradients
