"""Puts what log densities and their gradients leave behind into fewer and faster calls.

All are equal within rounding:
    permute(mm(A, permute(x)))                  -> mm(x, permute(A))    a constant matrix, many points
    log_sigmoid_backward(g, x), value unused    -> g * sigmoid(-x)      a gradient without its value
    slice_backward(a, 0, k) + slice_backward(b, k, n)  -> cat           gradients of a vector's parts
    sum(unsqueeze(x, d), d)                     -> x
    -mm(x, A), A constant                       -> mm(x, -A)
    y + mm(x, A), A of a few columns, not 8 m   -> y + mm(x, [A 0])[:, :n]   what BLAS does twice as fast
    sum(-x)                                     -> -sum(x)
    -(c * (2 * x)), c one number                -> (-2 c) * x           chains of scalings
    c * (2 * x), c a constant tensor            -> (2 c) * x
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs.tape import Node, Value, values_in

__all__ = ["simplify"]

_aten = torch.ops.aten
_LANES, _SKINNY = 8, 128  # numbers of a vector register; columns up to which a remainder of them is felt


def simplify(nodes: list[Node], output: Any, dynamic: set[int]) -> list[Node]:
    """Replaces calls in place; what they alone needed is then dead.

    Args:
        nodes: calls in order.
        output: the structure that the graph returns.
        dynamic: storages that may hold something else at the next replay.
    """
    return _Simplifier(nodes, output, dynamic).run()


class _Simplifier:
    def __init__(self, nodes: list[Node], output: Any, dynamic: set[int]) -> None:
        self.nodes, self.dynamic = nodes, dynamic
        self.returned = set(values_in(output))
        self.written = {storage for node in nodes for storage in node.writes}
        self.makers = {v: node for node in nodes for v in node.made}
        self.users: dict[Value, int] = {}
        for node in nodes:
            for value in node.reads:
                self.users[value] = self.users.get(value, 0) + 1
        self.strided = any(node.name == "as_strided" for node in nodes)
        self.before: list[Node] = []  # calls that the replacement needs first

    def run(self) -> list[Node]:
        rules: list[Callable[[Node], Node | None]] = [
            self.transposed_product, self.sigmoid, self.concatenation, self.single_sum, self.scaled_product,
            self.padded_product, self.negated_sum, self.scaling,
        ]  # fmt: skip
        kept = []
        for node in self.nodes:
            plain = len(node.made) == 1 and not node.writes and not node.random and isinstance(node.out, Value)
            if plain and self.untouched([*node.reads, *node.made]):
                for rule in rules:
                    self.before = []
                    new = rule(node)
                    if new is not None and self.untouched(new.reads):
                        for made in (*self.before, new):
                            self.makers.update((v, made) for v in made.made)
                        kept += self.before
                        node = new
                        break
            kept.append(node)
        return kept

    # -- help ------------------------------------------------------------------------------------------------

    def untouched(self, values: list[Value]) -> bool:
        """Whether nobody writes to them."""
        return self.written.isdisjoint(v.storage for v in values)

    def made_by(self, value: Any, op: Any) -> Node | None:
        """The call of this operator that made the value, if it did."""
        node = self.makers.get(value) if isinstance(value, Value) else None
        return node if node is not None and node.op is op and not node.kwargs else None

    def fixed(self, value: Any) -> bool:
        """Whether a value is the same at every replay."""
        return isinstance(value, Value) and value not in self.makers and value.storage not in self.dynamic

    def number(self, value: Any) -> float | None:
        """The one number that a number or a constant tensor holds."""
        if not self.fixed(value):
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        tensor = value.tensor.detach()
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return None
        first = tensor[(0,) * tensor.dim()]
        return float(first) if bool((tensor == first).all()) else None

    def call(self, op: Any, *args: Any) -> Value:
        """One more call before the replacement, and its result."""
        made = _fresh(op(*[a.tensor.detach() if isinstance(a, Value) else a for a in args]))
        self.before.append(Node(op, args, {}, made, [made], [a for a in args if isinstance(a, Value)]))
        return made

    # -- rules -----------------------------------------------------------------------------------------------

    def transposed_product(self, node: Node) -> Node | None:
        """Gives a contiguous result, not a transposed one: only `as_strided` and the caller could tell."""
        if node.op is not _aten.permute.default or list(node.args[1]) != [1, 0] or self.strided:
            return None
        product = self.made_by(node.args[0], _aten.mm.default)
        if product is None or self.users.get(node.args[0]) != 1 or not self.returned.isdisjoint(node.made):
            return None
        matrix, flipped = product.args[0], self.made_by(product.args[1], _aten.permute.default)
        if not self.fixed(matrix) or flipped is None or list(flipped.args[1]) != [1, 0]:
            return None
        other = Value(matrix.tensor.detach().t(), matrix.storage, "constant")
        return _node(node, _aten.mm.default, flipped.args[0], other)

    def sigmoid(self, node: Node) -> Node | None:
        """d/dx log sigmoid(x) = sigmoid(-x): without the value, no logarithm is needed."""
        if node.op is not _aten.log_sigmoid_backward.default or node.kwargs:
            return None
        forward = self.made_by(node.args[2], _aten.log_sigmoid_forward.default)
        if forward is None or forward.args[0] is not node.args[1]:
            return None
        value = forward.made[0]
        if self.users.get(value) or value in self.returned:
            return None
        factor, flipped = self.number(node.args[0]), self.call(_aten.neg.default, node.args[1])
        if factor == 1:
            return _node(node, _aten.sigmoid.default, flipped)
        slope = self.call(_aten.sigmoid.default, flipped)
        if factor is not None:
            return _node(node, _aten.mul.Scalar, slope, factor)
        return _node(node, _aten.mul.Tensor, node.args[0], slope)

    def concatenation(self, node: Node) -> Node | None:
        """A sum of parts that lie side by side in zeros."""
        parts = self.parts(node) if node.op is _aten.add.Tensor else None
        if not parts:
            return None
        size, dim = parts[0].args[1], parts[0].args[2]
        if any(p.args[1] != size or p.args[2] != dim or p.args[5] != 1 for p in parts):
            return None
        parts = sorted(parts, key=lambda p: p.args[3])
        ends = [min(p.args[4], size[dim]) for p in parts]
        if [p.args[3] for p in parts] != [0, *ends[:-1]] or ends[-1] != size[dim]:
            return None
        pieces = [p.args[0] for p in parts]
        made = node.made[0]
        if any(v.geometry[3] is not made.geometry[3] for v in pieces) or not made.tensor.is_contiguous():
            return None
        return Node(_aten.cat.default, (pieces, dim), {}, made, [made], list(pieces))

    def parts(self, node: Node) -> list[Node] | None:
        """The `slice_backward` calls that a tree of sums adds up."""
        if node.op is _aten.slice_backward.default:
            return [node]
        if node.op is not _aten.add.Tensor or node.kwargs or len(node.args) != 2:
            return None
        found: list[Node] = []
        for side in node.args:
            maker = self.makers.get(side) if isinstance(side, Value) else None
            inner = self.parts(maker) if maker is not None else None
            if inner is None:
                return None
            found += inner
        return found

    def single_sum(self, node: Node) -> Node | None:
        """A copy in its place; copies are dropped elsewhere."""
        if node.op is not _aten.sum.dim_IntList or node.kwargs or len(node.args) != 2:
            return None
        inner = self.made_by(node.args[0], _aten.unsqueeze.default)
        if inner is None or len(node.args[1]) != 1 or not self.same(inner.args[0], node.made[0]):
            return None
        rank = len(node.args[0].geometry[0])
        if node.args[1][0] % rank != inner.args[1] % rank:
            return None
        return _node(node, _aten.clone.default, inner.args[0])

    def scaled_product(self, node: Node) -> Node | None:
        """The constant matrix of a product is scaled instead of the product."""
        outer = self.scale(node)
        if outer is None or not isinstance(outer[1], float) or self.users.get(outer[0]) != 1:
            return None
        product = self.made_by(outer[0], _aten.mm.default)
        if product is None or outer[0] in self.returned or not self.fixed(product.args[1]):
            return None
        if not _safe_factor(outer[1], node.made[0]):
            return None
        matrix = product.args[1].tensor.detach()
        scaled = torch.empty_strided(matrix.shape, matrix.stride(), dtype=matrix.dtype, device=matrix.device)
        return _node(node, _aten.mm.default, product.args[0], _fresh(scaled.copy_(matrix * outer[1])))

    def padded_product(self, node: Node) -> Node | None:
        """Columns of zeros up to a multiple of eight; the sum that they are cut off for is contiguous as before."""
        if node.op not in (_aten.add.Tensor, _aten.sub.Tensor) or node.kwargs or len(node.args) != 2:
            return None
        for place in (0, 1):
            side, other = node.args[place], node.args[1 - place]
            product = self.made_by(side, _aten.mm.default)
            if product is None or not self.same(other, node.made[0]) or not other.tensor.is_contiguous():
                continue
            matrix = product.args[1]
            if (
                self.users.get(side) != 1
                or side in self.returned
                or not self.fixed(matrix)
                or self.made_by(other, _aten.mm.default)
            ):
                continue
            rows, columns = matrix.geometry[0]
            spare = -columns % _LANES
            if not spare or columns > _SKINNY or rows < columns:
                continue
            wide = torch.nn.functional.pad(matrix.tensor.detach(), (0, spare))
            padded = self.call(_aten.mm.default, product.args[0], _fresh(wide))
            cut = self.call(_aten.slice.Tensor, padded, 1, 0, columns)
            return _node(node, node.op, *([cut, other] if place == 0 else [other, cut]))
        return None

    def negated_sum(self, node: Node) -> Node | None:
        """The sign of a sum is changed after it, in fewer numbers."""
        if node.op is not _aten.sum.dim_IntList or node.kwargs:
            return None
        inner = self.made_by(node.args[0], _aten.neg.default)
        if inner is None or self.users.get(node.args[0]) != 1 or node.args[0] in self.returned:
            return None
        total = self.call(_aten.sum.dim_IntList, inner.args[0], *node.args[1:])
        return _node(node, _aten.neg.default, total)

    def scaling(self, node: Node) -> Node | None:
        """Two scalings in a row are one."""
        outer = self.scale(node)
        inner = self.scale(self.makers[outer[0]]) if outer is not None and outer[0] in self.makers else None
        if outer is None or inner is None:
            return None
        if isinstance(outer[1], float) and isinstance(inner[1], float):
            factor = outer[1] * inner[1]
            if not _safe_factor(factor, node.made[0]):
                return None
            return _node(node, _aten.mul.Scalar, inner[0], factor)
        if isinstance(outer[1], Value) and isinstance(inner[1], float):
            return _node(node, _aten.mul.Tensor, _fresh(outer[1].tensor.detach() * inner[1]), inner[0])
        return None

    def scale(self, node: Node) -> tuple[Value, float | Value] | None:
        """The value that a call scales, without changing its shape, and by what."""
        made, args = node.made[0] if len(node.made) == 1 else None, node.args
        if made is None or node.kwargs or node.writes or not made.tensor.is_floating_point():
            return None
        if node.op is _aten.neg.default and self.same(args[0], made):
            return args[0], -1.0
        if node.op not in (_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor) or len(args) != 2:
            return None
        sides = [args] if node.op is not _aten.mul.Tensor else [args, args[::-1]]
        for value, factor in sides:
            if not self.same(value, made) or self.fixed(value):
                continue
            number = self.number(factor)
            if number is not None and node.op is _aten.div.Tensor:
                return (value, 1.0 / number) if number and math.isfinite(1.0 / number) else None
            if number is not None:
                return value, number
            if node.op is _aten.mul.Tensor and self.fixed(factor) and factor.geometry[3] is made.geometry[3]:
                return value, factor
        return None

    def same(self, a: Any, b: Value) -> bool:
        """Same shape, strides and type."""
        pick = (0, 1, 3)
        return isinstance(a, Value) and all(a.geometry[i] == b.geometry[i] for i in pick)


def _safe_factor(factor: float, like: Value) -> bool:
    """Whether a product with this number neither overflows by itself nor is lost in the number type."""
    tiny = torch.finfo(like.geometry[3]).tiny
    return math.isfinite(factor) and (factor == 0 or abs(factor) >= tiny)


def _fresh(tensor: Tensor) -> Value:
    return Value(tensor, int(tensor.untyped_storage()._cdata), "constant")


def _node(old: Node, op: Any, *args: Any) -> Node:
    """A call with the old one's result."""
    return Node(op, args, {}, old.made[0], [old.made[0]], [a for a in args if isinstance(a, Value)])
