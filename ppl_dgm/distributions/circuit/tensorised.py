"""Region circuits over categorical variables: upward and downward passes as batched matrix products."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .evaluator import FLOOR, draw, in_chunks, restore_zero
from .regions import RegionPlan

__all__ = ["Tensorised"]


class _Lookup(torch.autograd.Function):
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


class _Upward(torch.autograd.Function):
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
            scaled, largest = _scaled(products, group.products)
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


def _scaled(products: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """exp(values - largest) of each region's products, [F, n, P S], and the largest, [F, n, 1]."""
    count, width = index.shape
    value = products[index.flatten()].unflatten(0, (count, width))  # [F, P, n, S]
    value = value.transpose(1, 2).flatten(2)
    largest = value.amax(-1, keepdim=True)
    return (value - largest).exp_(), largest


def _largest(values: Tensor, index: Tensor, count: int) -> Tensor:
    """The largest of the rows with each index, [pairs, n] -> [count, n]; -1 where there is none."""
    empty = values.new_full((count, values.shape[1]), -1)
    return empty.scatter_reduce(0, index[:, None].expand_as(values), values, "amax")


@dataclass(frozen=True)
class Tensorised:
    """A region circuit over categorical variables, with its weights.

    Attributes:
        plan: the compiled region graph.
        leaves: [L, S, K] log probabilities of the values under each unit of each leaf region.
        weights: for each group of sums, [F, S, P S] log weights (the root: [1, 1, P S]).
    """

    plan: RegionPlan
    leaves: Tensor
    weights: tuple[Tensor, ...]

    @property
    def variables(self) -> int:
        return self.plan.graph.variables

    @property
    def values(self) -> int:
        return self.leaves.shape[2]

    @property
    def units(self) -> int:
        """S."""
        return self.leaves.shape[1]

    @property
    def overlap(self) -> str | None:
        return "the units of its regions are mixtures over the same values"

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.leaves, *self.weights)

    def with_tables(self, *tables: Tensor) -> "Tensorised":
        return replace(self, leaves=tables[0], weights=tables[1:])

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        linear = tuple(weight.exp() for weight in self.weights)

        def rows(x: Tensor, *observed: Tensor) -> Tensor:
            leaves = self._leaf_values(x, observed[0] if observed else None)
            return restore_zero(_Upward.apply(self.plan, leaves, *linear))

        return in_chunks(rows, self._size, x, *([] if observed is None else [observed]))

    def marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(self._marginals, self._size, x, observed)

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(self._complete, self._size, x, observed)

    def maximise(self, x: Tensor, observed: Tensor) -> Tensor:
        raise NotImplementedError("a region circuit is not deterministic")

    @property
    def _size(self) -> int:
        """Numbers per row in all that the two passes keep; chunks that fit the cache are twice as fast."""
        return 4 * max(self.plan.products, len(self.leaves)) * self.units

    def _leaf_values(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """Log value of each leaf's units; missing entries are summed out, [L, n, S]."""
        table = self.leaves.clamp(min=FLOOR)
        value = _Lookup.apply(table, x.T[self.plan.leaf_variable])
        if observed is None:
            return value
        total = table.logsumexp(-1)[:, None]  # [L, 1, S]
        return torch.where(observed.T[self.plan.leaf_variable][..., None], value, total)

    def _marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        linear = tuple(weight.detach().exp() for weight in self.weights)
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self._leaf_values(x, observed).detach().clone().requires_grad_()
            value = _Upward.apply(self.plan, leaves, *linear)
            flow = torch.autograd.grad(value.sum(), leaves)[0]  # how probable it is that a unit is in use
        chance = torch.bmm(flow, self.leaves.detach().softmax(-1)).transpose(0, 1)  # [n, L, K]
        missing = chance.new_zeros(len(x), self.variables, self.values)
        missing.index_add_(1, self.plan.leaf_variable, chance)
        known = torch.nn.functional.one_hot(x, self.values).to(missing)
        return torch.where(observed[..., None], known, missing)

    def _complete(self, x: Tensor, observed: Tensor) -> Tensor:
        """Pick a product and a unit of each sum in use, from the root down, then values; [n, D]."""
        plan, rows = self.plan, torch.arange(len(x), device=x.device)
        leaves = self._leaf_values(x, observed)
        products = leaves.new_zeros(plan.products, *leaves.shape[1:])
        products.index_add_(0, plan.leaf_target, leaves[plan.leaf_source])
        for group, weight in zip(plan.groups[:-1], self.weights):
            scaled, largest = _scaled(products, group.products)
            value = (torch.bmm(scaled, weight.exp().transpose(1, 2)).log() + largest).clamp_(min=FLOOR)
            products.index_add_(0, group.target, value[group.source])
        chosen = torch.full((plan.products, len(x)), -1, device=x.device)  # the unit that is in use; -1: none
        for group, weight in zip(reversed(plan.groups), reversed(self.weights)):
            count, width = group.products.shape
            if group.is_root:
                unit = torch.zeros(1, len(x), dtype=torch.long, device=x.device)
            else:
                unit = _largest(chosen[group.target], group.source, count)
            value = products[group.products.flatten()].unflatten(0, (count, width)).transpose(1, 2).flatten(2)
            region = torch.arange(count, device=x.device)[:, None]
            pick = draw(weight.clamp(min=FLOOR)[region, unit.clamp(min=0)] + value)  # [F, n]
            product = group.products[region, pick // self.units]
            current = chosen[product, rows]
            chosen[product, rows] = torch.where(unit >= 0, pick % self.units, current)
        unit = _largest(chosen[plan.leaf_target], plan.leaf_source, len(self.leaves))
        drawn = draw(self.leaves.clamp(min=FLOOR)[torch.arange(len(unit), device=x.device)[:, None], unit.clamp(min=0)])
        drawn = torch.where(unit >= 0, drawn, -1)
        return torch.where(observed, x, _largest(drawn, plan.leaf_variable, self.variables).T)
