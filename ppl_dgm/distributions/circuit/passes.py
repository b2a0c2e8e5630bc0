"""Upward and downward passes of a region circuit in scaled probabilities: two matrix products and few touches."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluator import FLOOR
from .levels import Index, Layout, Level, take

__all__ = ["DenseLeaves", "LeafTables", "Sweep", "chunks"]

_OFTEN = 4  # factors multiplied between two rescalings
_HOT = 32  # most values of a table that is read by a matrix product
_CACHED = 2**22  # numbers that the passes keep for one chunk of rows: half of a CPU's last cache
_WHOLE = 64  # rows
_HELD = 2**27  # the same on an accelerator, where memory is the limit


class Sweep:
    """The values of all regions for some rows, and how much each is used.

    A unit's value is kept as a probability times the exponential of its region's scale, one for each row:

        product:  u = prod_f v_f / m,   m = max_k (prod_f v_f)_k,   scale = sum_f scale_f + log m        (P = 1)
        sum:      v = W u,              with the same scale
        flow:     d log root / d log u = u * W' (flow / v)

    so that nothing is exponentiated or logged but one number for each region and row. A row in which the best unit of
    a product is smaller than the square root of the smallest number is not sound: it may have underflowed where
    logarithms would not, and its value must be found otherwise.

    Arguments:
        layout: of the circuit.
        weights: of each level, [F, S', P S], not logarithms, in the level's order.
        units: S.
        rows: n.
        keep: the products, so that `down` can follow.
    """

    def __init__(self, layout: Layout, weights: Sequence[Tensor], units: int, rows: int, keep: bool) -> None:
        self.layout, self.rows, self.units, self.keep = layout, rows, units, keep
        new = weights[0].new_empty
        self.values = new(layout.regions + layout.padded, units, rows)
        self.scales = new(layout.regions + layout.padded, rows)
        most = layout.products if keep else max(_count(level.products) for level in layout.levels)
        self.products = new(most, units, rows)
        self.root = new(1, 1, rows)
        if layout.padded:
            self.values[-1], self.scales[-1] = 1.0, 0.0
        self.levels = [_Level(self, *pair) for pair in zip(layout.levels, weights, strict=True)]
        self.least = math.sqrt(torch.finfo(weights[0].dtype).tiny)

    def up(self) -> tuple[Tensor, Tensor]:
        """log value of the root, and which rows are sound, [n] each; the leaves' values are there."""
        lowest = self.scales.new_ones(self.rows)
        for level in self.levels:
            level.up(self, lowest)
        value = self.root[0, 0]
        return value.log() + self.scales[self.layout.regions - 1], torch.minimum(lowest, value) >= self.least

    def down(self, gradient: Tensor, counts: Sequence[Tensor], used: Callable[[Index, Tensor], None]) -> None:
        """Adds up how much each weight and each leaf is used; once after `up`, whose products it overwrites.

        Arguments:
            gradient: [n] weights of the rows' log values.
            counts: of each level, gets the gradient with respect to `weights` added.
            used: is called with leaves of the layout and their gradients with respect to the log values, [a, S, n];
                more than once where a leaf is in several products.
        """
        flow = gradient[None, None]
        for level, count in zip(reversed(self.levels), reversed(counts), strict=True):
            if level is not self.levels[-1]:
                flow = level.flow(self.products)
            level.down(flow, count)
            for products, leaves in level.layout.leaves:
                used(leaves, take(level.u, products))


class _Level:
    """A level's parts of a sweep's buffers, cut out once for all chunks of rows."""

    def __init__(self, sweep: Sweep, layout: Level, weight: Tensor) -> None:
        self.layout, self.weight = layout, weight
        count = _count(layout.products)
        self.u = sweep.products[layout.products] if sweep.keep else sweep.products[:count]  # [F P, S, n]
        self.wide = self.u.view(len(weight), -1, sweep.rows)  # [F, P S, n]
        self.scale = sweep.scales[layout.regions]
        self.value = sweep.root if layout.regions.stop == sweep.layout.regions else sweep.values[layout.regions]
        self.slots: list[tuple[Tensor, Tensor, bool]] = []  # products, and their factors or where these are
        for slot in layout.slots:
            part = self.u[: _count(slot)]
            self.slots.append((part, sweep.values[slot], True) if isinstance(slot, slice) else (part, slot, False))
        self.paired = len(layout.slots) > 1 and _count(layout.slots[1]) == count

    def up(self, sweep: Sweep, lowest: Tensor) -> None:
        """Products and sums."""
        values = first = sweep.values
        scale = self.scale.new_zeros(len(self.u), sweep.rows)
        scale.index_add_(0, self.layout.targets, sweep.scales.index_select(0, self.layout.sources))
        for j, (part, source, together) in enumerate(self.slots):
            factors = source if together else values.index_select(0, source)
            if j == 0:
                first = factors
                if not self.paired:
                    part.copy_(factors)
            elif j == 1 and self.paired:
                torch.mul(first, factors, out=part)
            else:
                part.mul_(factors)
            if j and j % _OFTEN == 0:
                _rescale(part, scale[: len(part)], 1, lowest)
        self.scale.copy_(_rescale(self.u, scale, self.layout.width, lowest))
        torch.bmm(self.weight, self.wide, out=self.value)

    def flow(self, products: Tensor) -> Tensor:
        """How much each unit is used, [F, S, n]."""
        flow = products.index_select(0, self.layout.readers)
        if self.layout.read is None:
            return flow
        return flow.new_zeros(self.value.shape).index_add_(0, self.layout.read, flow)

    def down(self, flow: Tensor, counts: Tensor) -> None:
        """From how much the regions are used, [F, S, n], to how much their weights and products are."""
        flow = flow / self.value
        counts.baddbmm_(flow, self.wide.transpose(1, 2))
        self.wide.mul_(torch.bmm(self.weight.transpose(1, 2), flow))


def _count(index: Index) -> int:
    return index.stop - index.start if isinstance(index, slice) else len(index)


def _rescale(u: Tensor, scale: Tensor, width: int, lowest: Tensor | None = None) -> Tensor:
    """Divides u [F P, S, n] by the largest of each region, in place; the regions' new scales [F, n].

    Arguments:
        scale: [F P, n] of the products; overwritten, where P is 1 by the new ones.
        width: P.
        lowest: [n], gets the smallest of the largest units of the products.
    """
    top = u.amax(1)
    if lowest is not None:
        torch.minimum(lowest, top.amin(0), out=lowest)
    top.clamp_(min=torch.finfo(u.dtype).tiny)
    if width == 1:
        u.div_(top[:, None])
        return scale.add_(top.log_())
    most = (scale + top.log()).unflatten(0, (-1, width)).amax(1)  # [F, n]
    u.mul_(scale.sub_(most.repeat_interleave(width, 0)).exp_()[:, None])
    return most


# -- leaves ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Folded:
    """Sums over single leaves, evaluated once for each value in place of once for each row."""

    products: Tensor
    values: Tensor
    weight: Tensor


class LeafTables:
    """Leaves over categories: tables [L, S, K] that rows look up, and the sums over single leaves folded into them.

    Arguments:
        layout: with folds.
        x: [n, D] categories.
        log_tables: [L, S, K] log probabilities.
        fold_weights: of each fold, [F, S, P S].
        missing: entries may be missing; they have the value K.
    """

    def __init__(
        self, layout: Layout, x: Tensor, log_tables: Tensor, fold_weights: Sequence[Tensor], missing: bool
    ) -> None:
        self.layout = layout
        log_tables = log_tables.clamp(min=FLOOR)
        self.share: Tensor | None = None
        if missing:
            total = log_tables.logsumexp(-1, keepdim=True)
            self.share = (log_tables - total).exp()
            log_tables = torch.cat([log_tables, total], -1)
        scale = log_tables.amax(1)
        table = (log_tables - scale[:, None]).exp_()
        tables, scales = [table], [scale]
        self.folded: list[_Folded] = []
        for fold, weight in zip(layout.folds, fold_weights, strict=True):
            u = table.index_select(0, fold.leaves)  # [F P, S, K]
            scales.append(_rescale(u, scale.index_select(0, fold.leaves), fold.width))
            value = torch.bmm(weight, u.view(len(weight), -1, u.shape[-1]))
            tables.append(value)
            self.folded.append(_Folded(u, value, weight))
        self.table = torch.cat(tables).index_select(0, layout.leaf)  # [L', S, K]
        self.values = self.table.shape[2]
        self.x = x if self.values > _HOT else x.to(torch.uint8)
        self.every = torch.arange(self.values, device=x.device, dtype=self.x.dtype)[:, None]
        self.scale = torch.cat(scales).index_select(0, layout.leaf)  # [L', K]
        self.uses = torch.zeros_like(self.table)

    def fill(self, sweep: Sweep, rows: slice) -> None:
        """Writes the leaves' values for some of the rows into a sweep."""
        self.codes = self.x[rows].T[self.layout.variable]  # [L', n]
        count = len(self.scale)
        if self.values > _HOT:
            torch.gather(self.scale, 1, self.codes, out=sweep.scales[:count])
            index = self.codes[:, None].expand(-1, sweep.units, -1)
            torch.gather(self.table, 2, index, out=sweep.values[:count])
            return
        self.hot = (self.codes[:, None] == self.every).to(self.table)  # [L', K, n]
        torch.bmm(self.scale[:, None], self.hot, out=sweep.scales[:count, None])
        torch.bmm(self.table, self.hot, out=sweep.values[:count])

    def used(self, leaves: Index, flow: Tensor) -> None:
        """Adds the flow of some leaves, [a, S, n], to their values."""
        if self.values > _HOT:
            index = take(self.codes, leaves)[:, None].expand_as(flow)
            found = torch.zeros_like(take(self.uses, leaves)).scatter_add_(2, index, flow)
        elif isinstance(leaves, slice):
            self.uses[leaves].baddbmm_(flow, self.hot[leaves].transpose(1, 2))
            return
        else:
            found = torch.bmm(flow, take(self.hot, leaves).transpose(1, 2))
        if isinstance(leaves, slice):
            self.uses[leaves] += found
        else:
            self.uses.index_add_(0, leaves, found)

    def counts(self, leaves: int) -> tuple[Tensor, list[Tensor]]:
        """The gradients with respect to the log tables [L, S, K] and to the weights of each fold."""
        total = max([leaves, *(fold.regions.stop for fold in self.layout.folds)])
        uses = self.uses.new_zeros(total, *self.uses.shape[1:]).index_add_(0, self.layout.leaf, self.uses)
        found = []
        for fold, made in zip(self.layout.folds, self.folded, strict=True):
            flow = uses[fold.regions] / made.values.clamp(min=torch.finfo(uses.dtype).tiny)
            wide = made.products.view(len(made.weight), -1, flow.shape[-1])
            found.append(torch.bmm(flow, wide.transpose(1, 2)))
            below = torch.bmm(made.weight.transpose(1, 2), flow).view_as(made.products) * made.products
            uses.index_add_(0, fold.leaves, below)
        uses = uses[:leaves]
        if self.share is not None:
            uses = uses[..., :-1] + uses[..., -1:] * self.share
        return uses, found


class DenseLeaves:
    """Leaves of any kind, by their log values.

    Arguments:
        layout: without folds.
        log_values: [L, n, S].
    """

    def __init__(self, layout: Layout, log_values: Tensor) -> None:
        self.layout, self.log_values = layout, log_values
        self.uses = torch.zeros_like(log_values)

    def fill(self, sweep: Sweep, rows: slice) -> None:
        """Writes the leaves' values for some of the rows into a sweep."""
        log_values = self.log_values[:, rows][self.layout.leaf].clamp(min=FLOOR)  # [L', n, S]
        scale = log_values.amax(-1)
        count, self.rows = len(scale), rows
        sweep.scales[:count] = scale
        torch.exp((log_values - scale[..., None]).transpose(1, 2), out=sweep.values[:count])

    def used(self, leaves: Index, flow: Tensor) -> None:
        """Adds the flow of some leaves, [a, S, n]."""
        self.uses[:, self.rows].index_add_(0, self.layout.leaf[leaves], flow.transpose(1, 2))


def chunks(layout: Layout, units: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Runs of rows, so many that what the passes keep for each stays in the cache.

    Each but the last has a multiple of 64 rows, whole vectors of any processor: matrix products of other widths take
    up to twice as long.
    """
    held = _CACHED if device.type == "cpu" else _HELD
    most = held // max(1, (layout.regions + layout.products) * units)
    size = max(1, most // _WHOLE) * _WHOLE
    return (slice(begin, min(rows, begin + size)) for begin in range(0, rows, size))
