"""The verbs of this package: record a function, or wrap it so that it records itself when first called."""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs.passes import plan
from ppl_dgm.graphs.replay import BACKENDS, Graph, MovedError
from ppl_dgm.graphs.tape import NotRecordable, grads_aside, map_structure, record_tape
from ppl_dgm.graphs.tolerant import short_bernoulli

__all__ = ["Recorder", "record", "recorded", "value_and_gradient"]

_CACHED = 8


def record(fn: Callable[..., Any], *inputs: Tensor, live: Iterable[Tensor] = (), backend: str = "eager") -> Graph:
    """Runs `fn(*inputs)` once and returns the graph of what it did to tensors.

    The run is a real one: it uses up random numbers and its in-place writes happen. What replays compute is
    what `fn` computes for tensors of these shapes, gradients included, as long as `fn` is a function of its
    inputs, the live tensors and random draws; everything else that it looks at (Python numbers, other
    tensors) is frozen. Draws come from torch's generators in the order of the function: after the same seed,
    the graph gives what `fn` gives.

    Args:
        fn: takes tensors, returns a tensor or nested tuples, lists and dicts of tensors, numbers and None. It
            may call `torch.autograd.grad` or `.backward()` and return `p.grad`.
        inputs: tensors; a replay takes others of the same shapes, dtypes and devices.
        live: tensors that `fn` refers to and that change in place between replays: parameters and buffers.
            They are referenced, not copied; writes to them (batch norm statistics) happen again at every
            replay. Leaves that require a gradient count as live without being named. Their `.grad` is None
            while `fn` runs and is put back afterwards.
        backend: "eager", or "inductor" to compile the graph at its first call.

    Raises:
        NotRecordable: `fn` reads values or shapes that differ from call to call; the message has the line.
        ValueError: an unknown backend.
    """
    return _record(fn, inputs, live, backend)[0]


def _record(
    fn: Callable[..., Any], inputs: tuple[Tensor, ...], live: Iterable[Tensor], backend: str
) -> tuple[Graph, Any]:
    _check_backend(backend)
    tape, result, failure = record_tape(fn, inputs, live)
    if tape is None:
        raise _Unrecorded(failure, result)
    try:
        return Graph(plan(tape), backend), result
    except NotRecordable as error:
        raise _Unrecorded(str(error), result) from None


class _Unrecorded(NotRecordable):
    """Carries what the function returned, so that nobody need run it a second time."""

    def __init__(self, reason: str, result: Any) -> None:
        super().__init__(reason)
        self.result = result


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, but it must be {' or '.join(map(repr, BACKENDS))}")


class Recorder:
    """A function of tensors that records itself at the first call with new shapes, and replays after that.

    If it cannot be recorded, one RuntimeWarning says why, and every later call runs the function itself.
    Results carry no gradient history on either path, and the `.grad` of live tensors is left alone.

    Attributes:
        path: "recorded", or "python" once it turned out that the function cannot be recorded.
        reason: why the path is "python", else an empty string.
        seconds: time spent recording and compiling, the run of the function included.
        graphs: the recorded graphs, the latest used last.
    """

    def __init__(self, fn: Callable[..., Any], live: Iterable[Tensor] = (), backend: str = "eager") -> None:
        _check_backend(backend)
        self.fn, self.live, self.backend = fn, list(live), backend
        self.path, self.reason = "recorded", ""
        self.graphs: OrderedDict[Any, Graph] = OrderedDict()
        self._recording = 0.0

    @property
    def seconds(self) -> float:
        """Seconds spent recording and compiling so far."""
        return self._recording + sum(graph.seconds for graph in self.graphs.values())

    def __call__(self, *inputs: Tensor) -> Any:
        """What `fn(*inputs)` returns, without gradient history."""
        if self.path == "python":
            return self._plain(inputs)
        key = tuple([(x.shape, x.dtype, x.device) for x in inputs])
        graph = self.graphs.get(key)
        if graph is not None:
            try:
                result = graph(*inputs)
            except MovedError:
                self.graphs.clear()
            else:
                if len(self.graphs) > 1:
                    self.graphs.move_to_end(key)
                return result
        return self._record(key, inputs)

    def _record(self, key: Any, inputs: tuple[Tensor, ...]) -> Any:
        start = time.perf_counter()
        try:
            self.graphs[key], result = _record(self.fn, inputs, self.live, self.backend)
        except _Unrecorded as error:
            self.path, self.reason, result = "python", str(error), error.result
            warnings.warn(f"running without a recorded graph: {error}", RuntimeWarning, stacklevel=3)
        while len(self.graphs) > _CACHED:
            self._recording += self.graphs.popitem(last=False)[1].seconds
        self._recording += time.perf_counter() - start
        return _detached(result)

    def _plain(self, inputs: tuple[Tensor, ...]) -> Any:
        with grads_aside(self.live):
            return _detached(self.fn(*inputs))


def recorded(fn: Callable[..., Any], live: Iterable[Tensor] = (), backend: str = "eager") -> Recorder:
    """Wraps `fn` in a `Recorder`; the arguments are those of `record`."""
    return Recorder(fn, live, backend)


def value_and_gradient(
    fn: Callable[[Tensor], Tensor], batched: bool = False
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Turns a scalar function of one point into one of many points that returns values and gradients.

    `torch.func.grad_and_value` does the same but imports torch._dynamo, which takes a second; this uses
    `vmap` for the values and one backward pass for all gradients. Made to be recorded.

    Args:
        fn: point [d] -> scalar; or, with `batched`, points [n, d] -> values [n], each of its own point alone.
        batched: whether `fn` takes many points itself.

    Returns:
        points [n, d] -> (values [n], gradients [n, d]).
    """
    many = fn if batched else torch.func.vmap(fn, randomness="different")

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), short_bernoulli():
            points = points.detach().requires_grad_()
            values = many(points)
            (gradients,) = torch.autograd.grad(values.sum(), points)
        return values.detach(), gradients

    return evaluate


def _detached(result: Any) -> Any:
    return map_structure(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, result)
