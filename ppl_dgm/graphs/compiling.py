"""Compiles a plan by inductor, and finds what was compiled for another plan of the same calls."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs.passes import Plan
from ppl_dgm.graphs.writing import Writer

__all__ = ["Compiled", "with_dynamo"]

_CACHED = 256  # compiled functions kept for other graphs of the same calls
_COMPILED: OrderedDict[Any, tuple[Callable[..., Any], Callable[..., Any]]] = OrderedDict()


def with_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """The whole of `torch.compile`, which also takes functions that write to memory or draw random numbers."""
    options: dict[str, Any] = {"fallback_random": True}  # inductor's own random numbers ignore the seed
    compiled = torch.compile(function, dynamic=False, options=options)
    return lambda *inputs: compiled(*[x.detach() for x in inputs])


class Compiled:
    """A function of tensors without side effects, compiled at its first call.

    Its graph is known, so that inductor takes it as it is: a call then pays for no guards of dynamo, which cost as much as
    the arithmetic of a small model. Constants are inputs of what is compiled, so that another graph of the same calls on
    tensors of the same shapes, such as a second run on other data, finds it. Where torch's private entrance refuses, the
    public one serves.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.constants: list[Tensor] = []
        self.run: Callable[..., Any] | None = None
        self.layout: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self.run is None:
            self.compile(inputs)
            assert self.run is not None
        if self.layout is None:
            return self.run(*inputs)
        return self.layout(self.run([*inputs, *self.constants]))

    def compile(self, inputs: tuple[Tensor, ...]) -> None:
        """Finds the compiled function, or makes it."""
        writer = Writer(self.plan, fast=False, lifted=True)
        function = writer.function()
        self.constants = list(self.plan.bound.values())
        tensors = [*inputs, *self.constants]
        key = (writer.key, tuple((x.shape, x.stride(), x.dtype, x.device) for x in tensors))
        found = _COMPILED.get(key)
        if found is None:
            try:
                found = _inductor(function, tensors)
            except Exception:  # whatever of it is not there, or not in this form, in this version of torch
                self.run = with_dynamo(Writer(self.plan, fast=False).function())
                return
        _COMPILED[key] = found
        _COMPILED.move_to_end(key)
        while len(_COMPILED) > _CACHED:
            _COMPILED.popitem(last=False)
        self.run, self.layout = found


def _inductor(function: Callable[..., Any], tensors: list[Tensor]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What inductor makes of a function: from a list of tensors to the results in a row, and the structure around them."""
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils import _pytree as pytree

    layouts: list[Any] = []

    def flat(*given: Tensor) -> list[Any]:
        leaves, spec = pytree.tree_flatten(function(*given))
        layouts.append(spec)
        return leaves

    graph = make_fx(flat, decomposition_table={**select_decomp_table(), **_DECOMPOSED})(*tensors)
    with torch._inductor.config.patch(size_asserts=False, fallback_random=True):
        run: Any = compile_fx_inner(graph, tensors)
    run(list(tensors))
    spec = layouts[0]
    if spec == pytree.tree_structure((0,) * spec.num_leaves):
        return run, tuple
    return run, lambda results: pytree.tree_unflatten(results, spec)


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    small = torch.exp(-x.abs())
    return x.clamp(max=0) - torch.log1p(small), small


def _log_sigmoid_backward(gradient: Tensor, x: Tensor, small: Tensor) -> Tensor:
    return gradient * (torch.where(x < 0, 1.0, small) / (1 + small))


# torch's own for inductor goes through 64-bit integers
_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    torch.ops.aten.log_sigmoid_backward.default: _log_sigmoid_backward,
}
