"""Tensors in nested arguments and results: their number types, casting, stacking."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["cast", "floats", "number_type", "stack"]


def stack(results: list[Any]) -> Any:
    """Equal structures of tensors as one structure, stacked on the left."""
    first = results[0]
    if isinstance(first, tuple):
        return tuple(stack([result[i] for result in results]) for i in range(len(first)))
    if isinstance(first, dict):
        return {key: torch.stack([result[key] for result in results]) for key in first}
    return torch.stack(results)


def floats(tree: Any) -> Iterator[torch.dtype]:
    """The number types of the floating-point tensors in arguments."""
    if isinstance(tree, Tensor) and tree.is_floating_point():
        yield tree.dtype
    elif isinstance(tree, dict):
        yield from floats(tuple(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from floats(item)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Arguments with their floating-point tensors in one number type."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if type(tree) is dict:
        return {key: cast(value, dtype) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(cast(item, dtype) for item in tree)
    return tree


@contextmanager
def number_type(program: Any, args: Any) -> Iterator[None]:
    """Double precision as torch's default for a block, where the arguments have it and the program has no parameters of
    another type: its priors, and the parameters that a guide makes, then have it too.
    """
    own = {parameter.dtype for parameter in program.parameters() if parameter.is_floating_point()}
    before = torch.get_default_dtype()
    if torch.float64 in floats(args) and own <= {torch.float64}:
        torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
