"""A program's constants by the names that its graph shows: parameters, one node for each module, and input
tensors.
"""

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_map

from ..program import FunctionProgram, Program

__all__ = ["Parameter", "copied", "input_leaves", "parameters"]


@dataclass
class Parameter:
    """A parameter node: one `nn.Parameter` or `PyroParam`, or all those of a module.

    Attributes:
        name: as the graph shows it.
        tensors: the (unconstrained) parameters.
        module: the module's class, "" for a single parameter.
    """

    name: str
    tensors: list[Tensor]
    module: str = ""

    @property
    def size(self) -> int:
        """How many numbers."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def shape(self) -> tuple[int, ...] | None:
        return None if self.module or len(self.tensors) != 1 else tuple(self.tensors[0].shape)


def parameters(program: Program, taken: Collection[str] = ()) -> dict[str, Parameter]:
    """{name: node} of everything that can be learned: the program's own parameters by attribute, its direct
    submodules as one node each,
    `pyro.param` values by name, and the networks that a plain function refers to."""
    found: dict[str, Parameter] = {}
    seen: set[int] = set()
    for root, prefix in _roots(program):
        for path, tensor in root.named_parameters():
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            name, module = _node(root, path, prefix)
            name = f"{name} (parameter)" if name in taken else name
            node = found.setdefault(name, Parameter(name, [], module))
            node.tensors.append(tensor)
    return found


def _roots(program: Program) -> list[tuple[nn.Module, str]]:
    """Modules whose children are nodes, each with the name that a module as a whole takes ("": its children
    show).
    """
    if not isinstance(program, FunctionProgram):
        return [(program, "")]
    roots: list[tuple[nn.Module, str]] = [(part, "") for part in program.parts]
    for function in (program._model, program._guide):
        roots += [(module, name) for name, module in _referred(function).items()]
    return [*roots, (program, "")]


def _referred(function: Any) -> dict[str, nn.Module]:
    """Networks that a plain function takes from around it."""
    function = inspect.unwrap(getattr(function, "__func__", function)) if callable(function) else function
    if not inspect.isfunction(function):
        return {}
    names = inspect.getclosurevars(function)
    around = {**names.globals, **names.nonlocals}
    return {name: value for name, value in around.items() if isinstance(value, nn.Module)}


def _node(root: nn.Module, path: str, prefix: str) -> tuple[str, str]:
    """The node that a parameter belongs to, and the class of its module."""
    if prefix:
        return prefix, type(root).__name__
    first, _, rest = path.partition(".")
    if first == "free_parameters":
        return rest.removeprefix("p:").replace("|", ".").partition("$$$")[0], "module" if "$$$" in rest else ""
    if not rest:
        return first.removesuffix("_unconstrained"), ""
    child = getattr(root, first)
    single = not isinstance(child, nn.Module)
    return first, "" if single else type(child).__name__


def input_leaves(program: Program, args: tuple, kwargs: dict) -> dict[str, Tensor]:
    """{name: tensor} of the tensors among a model's arguments, by the model's own names for them."""
    try:
        bound: dict[str, Any] = dict(inspect.signature(_story(program)).bind_partial(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        bound = {**{f"input_{i}": arg for i, arg in enumerate(args)}, **kwargs}
    leaves: dict[str, Tensor] = {}
    for path, leaf in tree_flatten_with_path(bound)[0]:
        if isinstance(leaf, Tensor):
            leaves["".join(_step(key, i == 0) for i, key in enumerate(path))] = leaf
    return leaves


def _story(program: Program) -> Callable:
    """The function whose signature has the user's names."""
    story = program._model if isinstance(program, FunctionProgram) else program.model
    owner = getattr(story, "__self__", None)
    if isinstance(owner, Program) and getattr(story, "__name__", "") == "run_model":
        return _story(owner)
    return story.forward if isinstance(story, nn.Module) else story


def _step(key: Any, first: bool) -> str:
    inner = getattr(key, "key", getattr(key, "idx", key))
    return str(inner) if first else f"[{inner}]" if isinstance(inner, int) else f".{inner}"


def copied(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Arguments with every tensor copied, so that the caller's own are neither marked nor changed."""

    def copy(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf

    return tree_map(copy, args), tree_map(copy, kwargs)
