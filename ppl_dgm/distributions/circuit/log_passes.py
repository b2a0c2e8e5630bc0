"""Upward and downward passes of a region circuit in logarithms: nothing underflows, and each number costs a log."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .evaluator import FLOOR
from .regions import RegionPlan

__all__ = ["LogUpward", "Lookup", "exponentiated"]


class Lookup(torch.autograd.Function):
    """table[l, :, x[l, n]] for every leaf l and row n, [L, S, K] and [L, n] -> [L, n, S].

    The gradient is one matrix product per leaf, where that of indexing would be a scatter of each entry.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.values = table.shape[2]
        leaf = torch.arange(len(table), device=table.device)[:, None]
        return table.transpose(1, 2)[leaf, x]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        hot = (x[:, None] == torch.arange(ctx.values, device=x.device)[:, None]).to(gradient)  # [L, K, n]
        return (hot @ gradient).transpose(1, 2), None


class LogUpward(torch.autograd.Function):
    """log value of the root, from the log values of the leaves [L, n, S] and the weights of each group [F, S', P S].

    Values are kept as logarithms between groups. Within one they are divided by their largest, so that no region
    underflows, however many factors it has. The backward pass is written out: autograd would touch the buffer of all
    products once for each group.
    """

    @staticmethod
    def forward(ctx: Any, plan: RegionPlan, leaves: Tensor, *weights: Tensor) -> Tensor:
        products = leaves.new_zeros(plan.products, *leaves.shape[1:])
        products.index_add_(0, plan.leaf_target, leaves[plan.leaf_source])
        saved: list[Tensor] = []
        log = leaves
        for group, weight in zip(plan.groups, weights, strict=True):
            scaled, largest = exponentiated(products, group.products)
            value = torch.bmm(scaled, weight.transpose(1, 2))  # [F, n, S']
            saved += [scaled, value]
            log = (value.log() + largest).clamp_(min=FLOOR)
            if not group.is_root:
                products.index_add_(0, group.target, log[group.source])
        ctx.plan = plan
        ctx.save_for_backward(*weights, *saved)
        return log[0, :, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        plan: RegionPlan = ctx.plan
        many = len(plan.groups)
        weights, saved = ctx.saved_tensors[:many], ctx.saved_tensors[many:]
        rows, units = saved[0].shape[1], weights[-1].shape[2] // plan.groups[-1].products.shape[1]
        products = gradient.new_zeros(plan.products, rows, units)
        changes: list[Tensor | None] = [None] * many
        for i in range(many - 1, -1, -1):
            group, scaled, value = plan.groups[i], saved[2 * i], saved[2 * i + 1]
            if group.is_root:
                flow = gradient[None, :, None]
            else:
                flow = value.new_zeros(value.shape).index_add_(0, group.source, products[group.target])
            flow = torch.where(value > 0, flow / value, 0.0)  # [F, n, S']
            changes[i] = torch.bmm(flow.transpose(1, 2), scaled)
            below = torch.bmm(flow, weights[i]).mul_(scaled)  # [F, n, P S]
            count, width = group.products.shape
            below = below.view(count, rows, width, units).transpose(1, 2).reshape(count * width, rows, units)
            products[group.products.flatten()] = below  # every product belongs to one sum
        flow = products.new_zeros(len(plan.leaf_variable), rows, units)
        flow.index_add_(0, plan.leaf_source, products[plan.leaf_target])
        return None, flow, *changes


def exponentiated(products: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """exp(values - largest) of each region's products, [F, n, P S], and the largest, [F, n, 1]."""
    count, width = index.shape
    value = products[index.flatten()].unflatten(0, (count, width))  # [F, P, n, S]
    value = value.transpose(1, 2).flatten(2)
    largest = value.amax(-1, keepdim=True)
    return (value - largest).exp_(), largest
