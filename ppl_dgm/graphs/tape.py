"""Records the ATen calls of one run of a function: which tensors each call reads, makes and writes."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

__all__ = [
    "Node",
    "NotRecordable",
    "Tape",
    "Value",
    "grads_aside",
    "map_structure",
    "record_tape",
    "recording",
    "values_in",
]

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
# these write running statistics without a word in their schema: written arguments [first, end), training flag
_SILENT_WRITES = dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), (3, 5, 5))
_aten = torch.ops.aten
_IN_PLACE_VIEWS = {
    _aten.squeeze_.default: _aten.squeeze.default, _aten.squeeze_.dim: _aten.squeeze.dim,
    _aten.squeeze_.dims: _aten.squeeze.dims, _aten.unsqueeze_.default: _aten.unsqueeze.default,
    _aten.t_.default: _aten.t.default, _aten.transpose_.default: _aten.transpose.int,
}  # fmt: skip
_MOVING = "the inputs, parameters or random draws"
# ways out of a tensor's memory that the dispatcher does not see
_SILENT_READS = ("tolist", "numpy", "__array__", "__dlpack__", "__deepcopy__", "__reduce_ex__")
_READ_NAMES = {
    "_local_scalar_dense": ".item(), float(), int() or bool()",
    "equal": "torch.equal",
    "allclose": "torch.allclose",
}


class NotRecordable(RuntimeError):
    """A function cannot be recorded; the message names what it does and the line of the user's code that does
    it."""


@dataclass(eq=False)
class Value:
    """One tensor of the run. `source`: "input", "live", "constant" (they existed before) or "node" (made)."""

    tensor: Tensor
    storage: int
    source: str
    # taken when the value appears: in-place writes may not change it
    geometry: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        t = self.tensor
        self.geometry = (
            tuple(t.shape),
            t.stride(),
            t.storage_offset(),
            t.dtype,
            t.device,
            t.is_conj(),
            t.is_neg(),
        )


@dataclass(eq=False)
class Node:
    """One call: `op(*args, **kwargs)` with Values for tensors; `made` are the Values that are new in
    `out`."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None
    made: list[Value] = field(default_factory=list)
    reads: list[Value] = field(default_factory=list)
    writes: set[int] = field(default_factory=set)
    random: bool = False
    refusal: str = ""  # not empty: cannot be replayed if it depends on anything that changes; says why

    @property
    def name(self) -> str:
        """The operator without namespace and overload, such as "mm"."""
        return self.op._schema.name.split("::")[-1] if self.op is not None else ""


@dataclass(eq=False)
class Tape:
    """What a run did: inputs, calls in order, and the structure it returned, with Values for tensors."""

    inputs: list[Value]
    nodes: list[Node]
    output: Any
    live: set[int]  # storages that are referenced, not copied
    keep: list[Any]  # objects whose addresses are used as names above


def map_structure(f: Callable[[Any], Any], tree: Any) -> Any:
    """Applies `f` to the leaves of nested tuples, named tuples, lists and dicts."""
    if isinstance(tree, tuple):
        items = [map_structure(f, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    if isinstance(tree, list):
        return [map_structure(f, item) for item in tree]
    if isinstance(tree, dict):
        return {key: map_structure(f, item) for key, item in tree.items()}
    return f(tree)


def values_in(tree: Any) -> list[Value]:
    """The Values among the leaves of a structure, in order."""
    found: list[Value] = []
    map_structure(lambda leaf: found.append(leaf) if isinstance(leaf, Value) else None, tree)
    return found


def user_line() -> str:
    """`file:line` of the innermost frame outside torch, pyro, the standard library and this package."""
    frame = sys._getframe(1)
    pyro = sys.modules.get("pyro")
    skip = [_HERE, _TORCH]
    if pyro is not None and pyro.__file__:
        skip.append(os.path.dirname(os.path.abspath(pyro.__file__)) + os.sep)
    while frame is not None:
        file = frame.f_code.co_filename
        library = file.startswith(_STDLIB) and "site-packages" not in file
        if not (library or file.startswith(tuple(skip)) or file.startswith("<")):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown line"


class _Recorder(TorchDispatchMode):
    """Sees every call below autograd, runs it and notes it down; a failure is noted too, and the run goes
    on."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default wraps the method below in something that imports torch._dynamo: a second lost

    def __init__(self, inputs: list[Tensor], live: Iterable[Tensor]) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.values: dict[int, Value] = {}
        self.by_storage: dict[int, Value] = {}
        self.keep: list[Any] = []
        self.failure = ""
        self.live: set[int] = set()
        for tensor in live:
            self.live.add(self.enter(tensor, "live").storage)
        self.inputs = [self.enter(tensor, "input") for tensor in inputs]

    def fail(self, reason: str) -> None:
        """Keeps the first reason."""
        self.failure = self.failure or reason

    def storage(self, tensor: Tensor) -> int:
        """A name for the tensor's memory; the storage is kept alive so that the name stays its own."""
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            self.fail(f"a {tensor.layout} tensor has no memory that can be followed ({user_line()})")
            return id(tensor)
        if storage._cdata not in self.by_storage:
            self.keep.append(storage)
        return int(storage._cdata)

    def enter(self, tensor: Tensor, source: str, storage: int | None = None) -> Value:
        """Takes a tensor into the books."""
        value = Value(tensor, self.storage(tensor) if storage is None else storage, source)
        self.values[id(tensor)] = value
        self.by_storage.setdefault(value.storage, value)
        return value

    def lookup(self, tensor: Tensor) -> Value:
        """The Value of a tensor that is about to be read."""
        storage = self.storage(tensor)
        value = self.values.get(id(tensor))
        if value is not None and value.storage == storage:
            return value
        owner = self.by_storage.get(storage)
        if owner is None or owner.source in ("live", "constant"):
            parameter = tensor.requires_grad and tensor.is_leaf
            if parameter:
                self.live.add(storage)
            return self.enter(tensor, "live" if storage in self.live else "constant", storage)
        # memory made in this run, reached behind the dispatcher's back (`x.data = y`): say how
        if owner.tensor.dtype != tensor.dtype:
            self.fail(f"memory is reinterpreted as {tensor.dtype} outside the dispatcher ({user_line()})")
        made = self.enter(tensor, "node", storage)
        args = (owner, list(tensor.shape), list(tensor.stride()), tensor.storage_offset())
        op = torch.ops.aten.as_strided.default
        self.nodes.append(Node(op, args, {}, out=made, made=[made], reads=[owner]))
        return made

    def read(self, tensor: Tensor, how: str) -> None:
        """Notes that Python reads the tensor's memory without the dispatcher."""
        if not self.failure and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            reason = f".{how}() reads a value that depends on {_MOVING} ({user_line()})"
            self.nodes.append(Node(None, (), {}, reads=[self.lookup(tensor)], refusal=reason))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.failure or func._schema.name == "aten::detach_":
            return func(*args, **kwargs)
        look = lambda leaf: self.lookup(leaf) if isinstance(leaf, Tensor) else leaf  # noqa: E731
        node = Node(func, map_structure(look, args), map_structure(look, kwargs))
        node.reads = [*values_in(node.args), *values_in(node.kwargs)]
        node.writes = _written(func, node.args, node.kwargs)
        node.random = torch.Tag.nondeterministic_seeded in func.tags
        node.refusal = _refusal(func, node.reads)
        outside = _view_of(func, node)
        if outside is not None:
            return self.reshaped(func, outside, node, args, kwargs)
        if torch.Tag.inplace_view in func.tags or node.name in ("set_", "resize_"):
            self.fail(f"{func} gives a tensor another shape or other memory in place ({user_line()})")
        out = func(*args, **kwargs)
        node.out = map_structure(lambda leaf: self.result(leaf, node) if isinstance(leaf, Tensor) else leaf, out)
        self.nodes.append(node)
        return out

    def reshaped(self, func: Any, outside: Any, node: Node, args: Any, kwargs: Any) -> Any:
        """An in-place change of a tensor's shape, as linear algebra makes them: noted as the view that it amounts to."""
        old, tensor = node.args[0], args[0]
        old.tensor = torch.ops.aten.alias.default(tensor)  # keeps the shape that earlier calls saw
        out = func(*args, **kwargs)
        new = self.enter(tensor, "node", old.storage)
        self.nodes.append(Node(outside, node.args, node.kwargs, out=new, made=[new], reads=[old]))
        return out

    def result(self, tensor: Tensor, node: Node) -> Value:
        """The Value of a result: the argument itself for an in-place call, else a new one."""
        known = self.values.get(id(tensor))
        if known is not None and known in node.reads:
            return known
        value = self.enter(tensor, "node")
        node.made.append(value)
        return value


def _written(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[int]:
    """The storages that a call writes to."""
    written: list[Value] = []
    for i, argument in enumerate(op._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += values_in(args[i] if i < len(args) else kwargs.get(argument.name))
    silent = _SILENT_WRITES.get(op._schema.name.split("::")[-1])
    if silent is not None and args[silent[2]]:
        written += values_in(args[silent[0] : silent[1]])
    return {value.storage for value in written}


def _view_of(op: Any, node: Node) -> Any:
    """The call that gives as a view what `op` does to the shape of a tensor of this run in place, if there is one."""
    return _IN_PLACE_VIEWS.get(op) if node.args and getattr(node.args[0], "source", "") == "node" else None


def _refusal(op: Any, reads: list[Value]) -> str:
    """Why a call cannot be replayed on other values, or an empty string."""
    name = op._schema.name.split("::")[-1]
    if torch.Tag.data_dependent_output in op.tags:
        how = _READ_NAMES.get(name, str(op))
        return f"{how} reads a value that depends on {_MOVING} ({user_line()})"
    if torch.Tag.dynamic_output_shape in op.tags:
        masks = any(value.tensor.dtype in (torch.bool, torch.uint8) for value in reads[1:])
        if name != "index" or masks:  # indexing by integers has a known shape
            return f"the shape of the result of {op} depends on values that change ({user_line()})"
    return ""


@contextmanager
def _silent_reads_noted(recorder: _Recorder) -> Iterator[None]:
    """Puts a note-taker before the methods that read memory behind the dispatcher's back."""
    saved = {name: torch.Tensor.__dict__.get(name) for name in _SILENT_READS}

    def noted(name: str, original: Any) -> Any:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            recorder.read(self, name)
            return original(self, *args, **kwargs)

        return method

    for name in _SILENT_READS:
        setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    try:
        yield
    finally:
        for name, original in saved.items():
            if original is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, original)


@contextmanager
def grads_aside(live: Iterable[Tensor]) -> Iterator[None]:
    """Runs the body with `.grad = None` on every leaf and puts the old ones back: a backward pass then
    accumulates onto nothing, in a recorded run as in a plain one."""
    leaves = [tensor for tensor in live if tensor.is_leaf and tensor.requires_grad]
    saved = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, grad in zip(leaves, saved, strict=True):
            leaf.grad = grad


def recording() -> bool:
    """Whether a function is being recorded just now: code that has a way that reads no values should take it."""
    return any(isinstance(mode, _Recorder) for mode in _get_current_dispatch_mode_stack())


def record_tape(
    fn: Callable[..., Any], inputs: tuple[Tensor, ...], live: Iterable[Tensor]
) -> tuple[Tape | None, Any, str]:
    """Runs `fn` once and returns the tape (None if something could not be noted), what `fn` returned, and why
    not.

    The run is a real one: random draws are used up and in-place writes happen. `fn` gets copies of the
    inputs, so that a tensor that it also holds by closure stays a constant; what it writes to them is written
    back.
    """
    live = list(live)
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
    versions = [copy._version for copy in copies]
    recorder = _Recorder(copies, live)
    with grads_aside(live), _silent_reads_noted(recorder), recorder:
        result = fn(*copies)
        output = map_structure(lambda leaf: recorder.lookup(leaf) if isinstance(leaf, Tensor) else leaf, result)
    for x, copy, version in zip(inputs, copies, versions, strict=True):
        if copy._version != version:
            with torch.no_grad():
                x.copy_(copy)
    map_structure(lambda leaf: _check_leaf(recorder, leaf), output)
    if recorder.failure:
        return None, result, recorder.failure
    tape = Tape(recorder.inputs, recorder.nodes, output, recorder.live, [*recorder.keep, *recorder.values.values()])
    return tape, result, ""


def _check_leaf(recorder: _Recorder, leaf: Any) -> None:
    if not (leaf is None or isinstance(leaf, Value | bool | int | float | complex | str)):
        recorder.fail(f"the function returns a {type(leaf).__name__}; it may return tensors, numbers and None")
