"""batched_runs: many independent runs of a random function at once, by vmap."""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["batched_runs"]

T = TypeVar("T")


def batched_runs(function: Callable[..., T], count: int, *each: Any) -> T:
    """Run a function `count` times at once, with independent random draws and without gradients.

    torch.func.vmap has no rule for the in-place random functions that torch.distributions call (`normal_`, `exponential_`, ...) nor for the
    Dirichlet's own autograd function. They are replaced by rules of the same law for the time of the call.

    Arguments:
        function: returns tensors (in tuples, lists, dictionaries); no Python branches on values.
        count: number of runs.
        *each: arguments of the function, tensors [count, ...] in any nesting; each run gets its own row.

    Returns:
        What `function` returns, every tensor with a leading dimension [count].

    Raises:
        RuntimeError, ValueError, NotImplementedError: vmap cannot follow the function; run it in a loop.
            So it is where the function draws from Python's or NumPy's generator, once for all runs.

    Example:
        >>> import pyro.distributions as dist
        >>> batched_runs(lambda: dist.Beta(2.0, 3.0).sample(), 4).shape
        torch.Size([4])
    """
    before = _foreign_states()
    with torch.no_grad(), pyro.validation_enabled(False), _batchable(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*batching rule", category=UserWarning
        )  # slower than it could be, and still right
        result = torch.func.vmap(lambda _, *row: function(*row), randomness="different")(torch.zeros(count), *each)
    if _foreign_states() != before:
        raise RuntimeError("the function drew from Python's or NumPy's generator, the same numbers for all runs")
    return result


def _foreign_states() -> tuple:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, np.asarray(keys).tobytes(), *rest


@contextmanager
def _batchable() -> Iterator[None]:
    with patch.object(torch.distributions.dirichlet, "_Dirichlet", _PlainDirichlet), _OutOfPlace():
        yield


class _PlainDirichlet:
    """The Dirichlet's sampler without its gradient."""

    apply = staticmethod(torch._sample_dirichlet)


class _OutOfPlace(TorchFunctionMode):
    """In-place random fillings as functions that vmap can follow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(*args, **(kwargs or {}))


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return low + (high - low) * torch.rand_like(x)


def _normal(x: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return mean + std * torch.randn_like(x)


def _exponential(x: Tensor, lambd: float = 1.0, **_: Any) -> Tensor:
    return -torch.log1p(-torch.rand_like(x)) / lambd


def _cauchy(x: Tensor, median: float = 0.0, sigma: float = 1.0, **_: Any) -> Tensor:
    return median + sigma * torch.tan(torch.pi * (torch.rand_like(x) - 0.5))


_RULES: dict[Any, Callable[..., Tensor]] = {
    Tensor.uniform_: _uniform,
    Tensor.normal_: _normal,
    Tensor.exponential_: _exponential,
    Tensor.cauchy_: _cauchy,
}
