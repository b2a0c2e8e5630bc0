"""Provenance: which sources (sites, parameters, inputs) a tensor was computed from.

Pyro's `ProvenanceTensor` carries names along in a tensor subclass, which in-place writes into plain tensors
lose and
which takes the zeros of `zeros_like(x)` for a function of x. Here the names stand on the plain tensors
themselves
and a `TorchFunctionMode` carries them along, so that both are right, and modules' parameters need no
wrapping.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Provenance", "Region", "mark", "positions", "sources", "tensors", "unmark"]

_SOURCES = "_dgm_sources"

# only the shape and type of the first argument matter
_LIKE = {
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided"),
}
# only the shape and type of the other arguments matter
_AS = {"expand_as", "view_as", "reshape_as", "type_as", "to"}
# the same numbers in the same order, so that positions in an input stay known
_COPIES = {
    "float",
    "double",
    "half",
    "bfloat16",
    "long",
    "int",
    "bool",
    "to",
    "type",
    "clone",
    "contiguous",
    "as_tensor",
}
# entry by entry: each entry of the result comes from the entries at the same place (names without underscores)
_POINTWISE = _COPIES | {
    *("isnan", "isinf", "isfinite", "nan_to_num", "where", "masked_fill", "clamp", "clip", "clamp_min", "clamp_max"),
    *("eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "sign", "abs", "absolute", "neg", "negative", "round"),
    *("floor", "ceil", "invert", "and", "or", "xor", "rand", "ror", "rxor", "logical_not", "logical_and", "logical_or"),
    *("logical_xor", "bitwise_not", "bitwise_and", "bitwise_or", "bitwise_xor", "add", "radd", "sub", "subtract"),
    *("rsub", "mul", "multiply", "rmul", "div", "divide", "truediv", "rtruediv", "rdiv", "true_divide", "floordiv"),
    *("remainder", "mod", "pow", "rpow", "square", "sqrt", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p"),
    *("log2", "log10", "sigmoid", "logit", "tanh", "relu", "softplus", "sin", "cos", "atan", "erf", "lgamma"),
}
# what takes numbers out of torch, where nothing follows them
_ESCAPES = {
    *("item", "tolist", "numpy", "__array__", "is_nonzero", "equal", "allclose"),
    *("__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__"),
}
_INPLACE = {
    "__setitem__",
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ipow__",
    "__iand__",
    "__ior__",
}


@dataclass(frozen=True)
class Region:
    """The entries of an input tensor that a view of it shows (`offset`, `size`, `stride`: of its storage)."""

    name: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, name: str, view: Tensor) -> "Region":
        return cls(name, int(view.storage_offset()), tuple(view.shape), tuple(view.stride()))

    def within(self, storage: Tensor) -> Tensor:
        """That view of another tensor with the same storage layout."""
        return storage.as_strided(self.size, self.stride, self.offset)

    def overlaps(self, other: "Region") -> bool:
        """Whether both show an entry of the same input."""
        if self.name != other.name or 0 in self.size or 0 in other.size:
            return False
        if self == other:
            return True
        (a, b), (c, d) = self._span(), other._span()
        if b < c or d < a:
            return False
        mask = torch.zeros(max(b, d) + 1, dtype=torch.bool)
        self.within(mask).fill_(True)
        return bool(other.within(mask).any())

    def _span(self) -> tuple[int, int]:
        return self.offset, self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))


def mark(tensor: Tensor, names: Iterable[Any]) -> None:
    """Say that a tensor comes from these sources and no others."""
    tensor.__dict__[_SOURCES] = frozenset(names)


def unmark(tensor: Tensor) -> None:
    """Take the mark away."""
    tensor.__dict__.pop(_SOURCES, None)


def sources(value: Any) -> frozenset:
    """What a tensor, or every tensor in lists, tuples and dicts, comes from."""
    found: frozenset = frozenset()
    for tensor in tensors(value):
        found |= tensor.__dict__.get(_SOURCES, frozenset())
    return found


def positions(found: Iterable[Any]) -> list[Region]:
    """The positions in inputs among sources."""
    return [source for source in found if isinstance(source, Region)]


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples, slices and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, slice):
        yield from tensors((value.start, value.stop, value.step))


class Provenance(TorchFunctionMode):
    """While active, every torch function passes the marks of its arguments on to its results.

    Attributes:
        escaped: sources whose numbers left torch (`.item()`, `.numpy()`, `float(x)`, `if x > 0`): what is
            computed
            from them carries no mark.
    """

    def __init__(self) -> None:
        super().__init__()
        self.escaped: set[Any] = set()
        self._inputs: dict[int, str] = {}  # where an input's storage begins -> its name
        self._kept: list[Tensor] = []  # so that no other tensor takes their place in memory

    def register(self, name: str, tensor: Tensor) -> None:
        """An input, of which views keep their position."""
        self._inputs[tensor.untyped_storage().data_ptr()] = name
        self._kept.append(tensor)
        mark(tensor, [Region.of(name, tensor)])

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "broadcast_tensors":
            self._pairwise(args, result)
            return result
        found = _incoming(name, args, kwargs)
        if name in _ESCAPES:
            self.escaped |= found
            return result
        if not found and name not in _INPLACE:
            return result
        if name in _INPLACE or (name.endswith("_") and not name.endswith("__")):
            self._written(name, args[0], sources(args[1:]) | sources(kwargs), args, kwargs)
            return result
        given = list(tensors(args))
        for out in tensors(result):
            if not any(out is tensor for tensor in given):
                mark(out, self._outgoing(name, out, found, args, kwargs))
        return result

    def _outgoing(self, name: str, out: Tensor, found: frozenset, args: tuple, kwargs: dict) -> frozenset:
        """A view of an input, or of what was made from one entry by entry, comes from the part that it shows;
        anything else from all that went in.
        """
        if not positions(found) or out.layout is not torch.strided:
            return found
        place = out.untyped_storage().data_ptr()
        if place not in self._inputs:
            image = self._image(name, out, (args, kwargs))
            if image is None or not place:
                return found
            self._inputs[place] = image
            self._kept.append(out)
        return _names(found) | {Region.of(self._inputs[place], out)}

    def _image(self, name: str, out: Tensor, given: tuple) -> str | None:
        """The input of which a result is made entry by entry, so that positions in it stay known; else None."""
        if name.strip("_") not in _POINTWISE or (name == "where" and len(given[0]) + len(given[1]) < 3):
            return None
        parts = [tensor for tensor in tensors(given) if positions(sources(tensor))]
        inputs = {self._inputs.get(tensor.untyped_storage().data_ptr()) for tensor in parts}
        aligned = all(_from_first(tensor) and tensor.shape == out.shape for tensor in [*parts, out])
        return inputs.pop() if aligned and len(inputs) == 1 else None

    def _written(self, name: str, target: Any, found: frozenset, args: tuple, kwargs: dict) -> None:
        """In-place: what was written belongs to the tensor, and to the one that it is a view of.

        Where entries come to other places than their own, the tensor no longer shows an input.
        """
        if not isinstance(target, Tensor) or not found:
            return
        if positions(found):
            place = target.untyped_storage().data_ptr()
            pointwise = "where" if name == "__setitem__" and _by_mask(args) else name.removeprefix("__i")
            if place in self._inputs and self._image(pointwise, target, (args, kwargs)) is None:
                del self._inputs[place]
        mark(target, sources(target) | found)
        if target._base is not None:
            mark(target._base, sources(target._base) | found)

    def _pairwise(self, args: tuple, result: Any) -> None:
        for value, out in zip(tensors(args), tensors(result)):
            if out is not value and sources(value):
                mark(out, sources(value))


def _incoming(name: str, args: tuple, kwargs: dict) -> frozenset:
    if name in _LIKE:
        return sources(args[1:]) | sources(kwargs)
    if name in _AS:
        return sources(args[:1])
    return sources(args) | sources(kwargs)


def _by_mask(args: tuple) -> bool:
    """Whether x[mask] = value has one mask of the shape of x, and a number as value."""
    target, index, value = args
    masked = isinstance(index, Tensor) and index.dtype is torch.bool and index.shape == target.shape
    return masked and (not isinstance(value, Tensor) or value.numel() == 1)


def _from_first(tensor: Tensor) -> bool:
    """Whether a tensor shows its storage from the first entry on, in order."""
    return tensor.layout is torch.strided and tensor.is_contiguous() and tensor.storage_offset() == 0


def _names(found: frozenset) -> frozenset:
    """Sources that are no positions in an input."""
    return frozenset(source for source in found if not isinstance(source, Region))
