"""Puts what densities and their gradients are made of into a cheaper form that is equal within rounding.

Three patterns, each general and each exact up to the order of a sum:
    x - logsumexp(x, d)                      -> log_softmax(x, d)           (normalised logits of a
    categorical) g + sum(-g, d) * exp(log_softmax(x, d))  -> its backward in one call view(sum(x, d, keepdim),
    ...)            -> sum(x, d)                   (the gradient of a bias)
"""

from typing import Any

import torch

from ppl_dgm.graphs.tape import Node, Value

__all__ = ["rewrite"]

_aten = torch.ops.aten


def rewrite(nodes: list[Node]) -> list[Node]:
    """Replaces calls in place of the last one of each pattern; what they needed alone is then dead."""
    written = {storage for node in nodes for storage in node.writes}
    makers = {v: node for node in nodes for v in node.made}
    result = []
    for node in nodes:
        new = None
        if len(node.made) == 1 and not written.intersection(v.storage for v in [*node.reads, *node.made]):
            new = _log_softmax(node, makers) or _log_softmax_backward(node, makers) or _bias_sum(node, makers)
        if new is not None and written.isdisjoint(v.storage for v in new.reads):
            makers[node.made[0]] = node = new
        result.append(node)
    return result


def _made_by(value: Any, op: Any, makers: dict[Value, Node]) -> Node | None:
    node = makers.get(value) if isinstance(value, Value) else None
    return node if node is not None and node.op is op else None


def _same_as(node: Node, op: Any, args: tuple[Any, ...]) -> Node | None:
    """The new call, if its result has the shape, strides and type of the old one.

    It is run to see: meta kernels, which would not compute, import sympy.
    """
    made = node.made[0]
    with torch._C._AutoDispatchBelowAutograd():
        result = op(*[a.tensor if isinstance(a, Value) else a for a in args])
    if (tuple(result.shape), result.stride(), result.dtype) != (
        made.geometry[0],
        made.geometry[1],
        made.geometry[3],
    ):
        return None
    return Node(op, args, {}, made, [made], [a for a in args if isinstance(a, Value)])


def _log_softmax(node: Node, makers: dict[Value, Node]) -> Node | None:
    if node.op is not _aten.sub.Tensor or node.kwargs or not isinstance(node.args[0], Value):
        return None
    x, total = node.args[0], _made_by(node.args[1], _aten.logsumexp.default, makers)
    if total is None or total.args[0] is not x or total.args[2:] != (True,) or len(total.args[1]) != 1:
        return None
    return _same_as(node, _aten._log_softmax.default, (x, total.args[1][0], False))


def _log_softmax_backward(node: Node, makers: dict[Value, Node]) -> Node | None:
    if node.op is not _aten.add.Tensor or node.kwargs:
        return None
    for g, other in (node.args, node.args[::-1]):
        product = _made_by(other, _aten.mul.Tensor, makers)
        if product is None or not isinstance(g, Value):
            continue
        for left, right in (product.args, product.args[::-1]):
            total = _made_by(left, _aten.sum.dim_IntList, makers)
            power = _made_by(right, _aten.exp.default, makers)
            minus = _made_by(total.args[0], _aten.neg.default, makers) if total is not None and power else None
            if total is None or power is None or minus is None or minus.args[0] is not g or total.kwargs:
                continue
            softmax = _made_by(power.args[0], _aten._log_softmax.default, makers)
            if softmax is None or total.args[2:] != (True,) or len(total.args[1]) != 1:
                continue
            dim, size = softmax.args[1], len(g.geometry[0])
            if dim % size == total.args[1][0] % size:
                args = (g, power.args[0], dim, power.args[0].geometry[3])
                return _same_as(node, _aten._log_softmax_backward_data.default, args)
    return None


def _bias_sum(node: Node, makers: dict[Value, Node]) -> Node | None:
    total = _made_by(node.args[0], _aten.sum.dim_IntList, makers) if node.op is _aten.view.default else None
    if total is None or total.kwargs or total.args[2:] != (True,) or not total.args[1]:
        return None
    size = len(total.args[0].geometry[0])
    reduced = {dim % size for dim in total.args[1]}
    shape = tuple(n for i, n in enumerate(total.args[0].geometry[0]) if i not in reduced)
    if shape != node.made[0].geometry[0]:
        return None
    return _same_as(node, _aten.sum.dim_IntList, (total.args[0], list(total.args[1])))
