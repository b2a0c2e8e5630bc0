"""Replays a plan: straight-line Python over the recorded calls, run below autograd, or the same compiled by
inductor."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs.compiling import Compiled, with_dynamo
from ppl_dgm.graphs.passes import Plan
from ppl_dgm.graphs.writing import Writer

__all__ = ["BACKENDS", "Graph", "MovedError"]

BACKENDS = ("eager", "inductor")


class MovedError(RuntimeError):
    """A live tensor has other memory than when the graph was recorded (`p.data = ...`, `module.to(...)`)."""


class Graph:
    """A recorded function of tensors: call it with tensors of the recorded shapes and dtypes, get what it
    returned.

    Results are new tensors without gradient history. A result that was an input, a live tensor or a view of
    one is an alias of it, as it was in the function; constants are handed out as copies.

    Attributes:
        nodes: the number of calls that a replay makes.
        backend: "eager" or "inductor"; "eager" after a failed compilation.
        seconds: time spent compiling.
    """

    def __init__(self, plan: Plan, backend: str = "eager") -> None:
        self.nodes = len(plan.nodes)
        self.backend = backend
        self.seconds = 0.0
        self._expected = [(v.tensor.shape, v.tensor.stride(), v.tensor.dtype, v.tensor.device) for v in plan.inputs]
        self._written_inputs = plan.written_inputs
        self._anchors = [(v.tensor, v.tensor.data_ptr()) for v in plan.live]
        self._plan = plan
        self._run: Callable[..., Any] | None = None
        self._compiled: Callable[..., Any] | None = None
        if backend == "eager":
            self._run = Writer(plan, fast=True).function()
        else:
            pure = not plan.live and not any(node.writes or node.random for node in plan.nodes)
            # inductor knows operators by their torch.ops names
            self._compiled = Compiled(plan) if pure else with_dynamo(Writer(plan, fast=False).function())

    def __call__(self, *inputs: Tensor) -> Any:
        """Replays the graph.

        Args:
            inputs: tensors with the shapes, dtypes and devices of the recorded ones.

        Returns:
            The structure that the function returned.

        Raises:
            ValueError: an input differs from the recorded one.
            MovedError: a live tensor has other memory than at recording.
        """
        if len(inputs) != len(self._expected):
            raise ValueError(f"the graph takes {len(self._expected)} tensors, but got {len(inputs)}")
        for x, (shape, stride, dtype, device) in zip(inputs, self._expected, strict=True):
            if x.shape != shape or x.stride() != stride or x.dtype is not dtype or x.device != device:
                inputs = self._fit(inputs)
                break
        for tensor, address in self._anchors:
            if tensor.data_ptr() != address:
                raise MovedError("a live tensor was moved or replaced after recording; record the function again")
        if self._compiled is not None:
            return self._call_compiled(inputs)
        if self._run is None:  # compiling has failed
            self._run = Writer(self._plan, fast=True).function()
        with torch._C._AutoDispatchBelowAutograd():
            return self._run(*inputs)

    def describe(self) -> str:
        """The calls, one a line."""
        writer = Writer(self._plan, fast=True)
        writer.function()
        return "\n".join(writer.listing)

    def __repr__(self) -> str:
        return f"Graph({self.nodes} calls, backend={self.backend!r})"

    def _fit(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copies inputs of another memory layout into the recorded one; refuses everything else."""
        fitted = []
        for i, (x, (shape, stride, dtype, device)) in enumerate(zip(inputs, self._expected, strict=True)):
            if x.shape != shape or x.dtype is not dtype or x.device != device:
                raise ValueError(
                    f"input {i} of the graph is {x.dtype} of shape {tuple(x.shape)} on {x.device}, but it "
                    f"was recorded as {dtype} of shape {tuple(shape)} on {device}; record it for this one"
                )
            if x.stride() != stride:
                if i in self._written_inputs:
                    raise ValueError(f"input {i} is written to: its strides must be {stride}, not {x.stride()}")
                x = torch.empty_strided(shape, stride, dtype=dtype, device=device).copy_(x.detach())
            fitted.append(x)
        return tuple(fitted)

    def _call_compiled(self, inputs: tuple[Tensor, ...]) -> Any:
        """Runs the compiled function; a compiler that fails is given up with one warning."""
        assert self._compiled is not None
        start = time.perf_counter() if not self.seconds else 0.0
        try:
            with torch.no_grad():
                result = self._compiled(*inputs)
        except Exception as error:
            if self.seconds:
                raise  # it has run before: the error is about the values
            first = str(error).strip().split("\n")[0]
            message = f"inductor failed ({first}); the graph is replayed eagerly"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            self.backend, self._compiled = "eager", None
            return self(*inputs)
        if start:
            self.seconds = time.perf_counter() - start
        return result
