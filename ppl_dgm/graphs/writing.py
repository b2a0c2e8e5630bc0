"""Writes a plan as the source of one Python function, each call by the cheapest name that it has."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_dgm.graphs.passes import Plan
from ppl_dgm.graphs.tape import Node, Value, map_structure, values_in

__all__ = ["Writer", "fastest"]

# where Python's own bindings of an operator are: their argument parser is faster than that of torch.ops
_BINDINGS = tuple(
    home
    for home in (
        getattr(torch._C, "_VariableFunctions", None),
        getattr(torch._C, "TensorBase", None),
        getattr(torch._C, "_nn", None),
        getattr(torch._C, "_special", None),
        getattr(torch._C, "_linalg", None),
    )
    if home is not None
)


class Writer:
    """One plan's source.

    Arguments:
        fast: operators go by Python's own bindings where these are faster.
        lifted: constants are arguments after the inputs, instead of being globals.
    """

    def __init__(self, plan: Plan, fast: bool, lifted: bool = False) -> None:
        self.plan, self.fast, self.lifted = plan, fast, lifted
        self.key: Any = None  # tells functions apart that differ in more than the tensors they are given
        self.names: dict[Value, str] = {}
        self.space: dict[str, Any] = {}
        self.objects: dict[int, str] = {}
        self.callables: dict[Any, str] = {}
        self.listing: list[str] = []

    def function(self) -> Callable[..., Any]:
        """Compiles the source; constants and operators are its globals."""
        self.names = {v: f"x{i}" for i, v in enumerate(self.plan.inputs)}
        for i, (value, tensor) in enumerate(self.plan.bound.items()):
            self.names[value] = f"c{i}" if self.lifted else self.bind(tensor, "c", value)
        arguments = [name for value, name in self.names.items() if self.lifted or value not in self.plan.bound]
        header = f"def replay({', '.join(arguments)}):"
        last = {v: i for i, node in enumerate(self.plan.nodes) for v in [*node.made, *node.reads]}
        returned = set(values_in(self.plan.output))
        dying: dict[int, list[Value]] = {}
        for value, i in last.items():
            if value not in returned and value not in self.plan.bound and value not in self.plan.inputs:
                dying.setdefault(i, []).append(value)
        lines = [header]
        for i, node in enumerate(self.plan.nodes):
            for value in node.made:
                self.names[value] = f"v{len(self.names)}"
            lines.append("    " + self.statement(node))
            if i in dying:
                lines.append(f"    del {', '.join(self.names[v] for v in dying[i])}")
        lines.append(f"    return {self.result(self.plan.output)}")
        self.key = ("\n".join(lines), tuple((name, repr(thing)) for name, thing in self.space.items()))
        exec(compile("\n".join(lines), "<recorded graph>", "exec"), self.space)
        function: Callable[..., Any] = self.space["replay"]
        return function

    def statement(self, node: Node) -> str:
        """One call, and one line of the listing."""
        arguments = [self.expression(item) for item in node.args]
        arguments += [f"{name}={self.expression(item)}" for name, item in node.kwargs.items()]
        call = f"{self.operator(node)}({', '.join(arguments)})"
        target = f"{self.pattern(node.out, set(node.made))} = " if node.made else ""
        shapes = ", ".join(str(list(v.geometry[0])) for v in node.made)
        self.listing.append(f"{target}{node.op}({', '.join(arguments)})" + (f"  # {shapes}" if shapes else ""))
        return target + call

    def operator(self, node: Node) -> str:
        """The name that the call goes by in the generated source."""
        chosen = fastest(node) if self.fast else node.op
        if chosen not in self.callables:
            self.callables[chosen] = self.bind(chosen, "f", chosen)
        return self.callables[chosen]

    def bind(self, thing: Any, prefix: str, key: Any) -> str:
        """Makes an object a global of the generated function."""
        if id(key) not in self.objects:
            self.objects[id(key)] = f"{prefix}{len(self.objects)}"
            self.space[self.objects[id(key)]] = thing
        return self.objects[id(key)]

    def expression(self, item: Any) -> str:
        """An argument as source."""
        if isinstance(item, Value):
            return self.names[item]
        if isinstance(item, list | tuple):
            inner = ", ".join(self.expression(x) for x in item)
            return f"[{inner}]" if isinstance(item, list) else f"({inner}{',' if item else ''})"
        if item is None or isinstance(item, bool | int | str) or (isinstance(item, float) and math.isfinite(item)):
            return repr(item)
        return self.bind(item, "k", item)

    def pattern(self, out: Any, made: set[Value]) -> str:
        """What stands to the left of the equals sign."""
        if isinstance(out, list | tuple):
            return f"({', '.join(self.pattern(x, made) for x in out)},)"
        return self.names[out] if isinstance(out, Value) and out in made else "_"

    def result(self, tree: Any) -> str:
        """The returned structure as source."""
        if isinstance(tree, tuple) and hasattr(tree, "_fields"):
            return f"{self.bind(type(tree), 't', type(tree))}({', '.join(self.result(x) for x in tree)})"
        if isinstance(tree, tuple):
            return f"({''.join(self.result(x) + ', ' for x in tree)})"
        if isinstance(tree, list):
            return f"[{', '.join(self.result(x) for x in tree)}]"
        if isinstance(tree, dict):
            return "{" + ", ".join(f"{self.bind(k, 'k', k)}: {self.result(x)}" for k, x in tree.items()) + "}"
        if not isinstance(tree, Value):
            return self.expression(tree)
        if tree in self.plan.bound and tree.storage not in {v.storage for v in self.plan.live}:
            return f"{self.names[tree]}.clone()"  # the caller may write to it
        if tree in self.plan.bound or tree in self.plan.inputs:
            return f"{self.names[tree]}.detach()"
        return self.names[tree]


class _OneCall(TorchDispatchMode):
    """Notes which operators a binding dispatches to, without running them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see tape.py

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result
        self.seen: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func, args, kwargs or {}))
        return self.result


def fastest(node: Node) -> Any:
    """The cheapest callable that provably makes exactly this one call for these arguments.

    A binding of Python's (such as `torch.mm`) is tried under a mode that runs nothing: it is taken only if it
    dispatches to this very overload, once, with equal arguments. Otherwise the operator itself is used.
    """
    op = node.op
    tensor = lambda leaf: leaf.tensor if isinstance(leaf, Value) else leaf  # noqa: E731
    args, kwargs = map_structure(tensor, node.args), map_structure(tensor, node.kwargs)
    expected = _bound_arguments(op, args, kwargs)
    for home in _BINDINGS:
        candidate = getattr(home, node.name, None)
        if candidate is None or (home is torch._C.TensorBase and not (args and isinstance(args[0], Tensor))):
            continue
        spy = _OneCall(map_structure(tensor, node.out))
        try:
            with torch._C._AutoDispatchBelowAutograd(), spy:
                candidate(*args, **kwargs)
        except Exception:  # another signature, or more calls than the one whose result we hold
            continue
        if len(spy.seen) == 1 and spy.seen[0][0] is op and _same(_bound_arguments(*spy.seen[0]), expected):
            return candidate
    return getattr(op, "_op", op)


def _bound_arguments(op: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name, without those that have their default."""
    schema = op._schema.arguments
    named = {schema[i].name: value for i, value in enumerate(args)} | dict(kwargs)
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {k: v for k, v in named.items() if k not in defaults or not _same(v, defaults[k])}


def _same(a: Any, b: Any) -> bool:
    """Equality of arguments: tensors by identity, numbers with their type."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return repr(a) == repr(b)  # tells -0.0 from 0.0 and knows nan
    return type(a) is type(b) and bool(a == b)
