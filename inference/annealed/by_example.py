"""One example at a time: programs whose sites all lie inside the plate `data`, cut into their independent examples."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.densities.coordinates import Start
from ppl_dgm.densities.trees import floats
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Score
from ppl_dgm.tracing import data_dim

__all__ = ["Examples", "examples_of", "stacked_score"]


@dataclass(frozen=True)
class Examples:
    """A program's arguments, one example at a time.

    Attributes:
        args, kwargs: the arguments for all of them.
        size: how many there are.
        row_dims: {latent site: the dimension, counted from the right, of its value along which examples lie}.
    """

    args: tuple
    kwargs: dict[str, Any]
    size: int
    row_dims: dict[str, int]

    def arguments(self, index: int) -> tuple[tuple, dict[str, Any]]:
        """The arguments for one example: of every tensor with a row for each, that row."""

        def cut(value: Any) -> Any:
            whole = isinstance(value, Tensor) and value.dim() and value.shape[0] == self.size
            return value[index : index + 1] if whole else value

        return tuple(cut(arg) for arg in self.args), {name: cut(value) for name, value in self.kwargs.items()}

    def draws(self, draws: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """One example's part of {site: [..., *shape]}."""
        return {
            name: value.narrow(self.row_dims[name], index, 1) for name, value in draws.items() if name in self.row_dims
        }

    def part(self, rows: slice) -> "Examples":
        """Some of the examples."""

        def cut(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and value.dim() and value.shape[0] == self.size else value

        size = len(range(*rows.indices(self.size)))
        return Examples(
            tuple(cut(a) for a in self.args), {name: cut(a) for name, a in self.kwargs.items()}, size, self.row_dims
        )

    def rows_of(self, draws: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """What {site: [..., *shape]} of all examples says of these of them."""
        return {
            name: value.narrow(self.row_dims[name], rows.start, self.size)
            for name, value in draws.items()
            if name in self.row_dims
        }

    def joined(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The sites of all examples, from those of each."""
        return {name: torch.cat([part[name] for part in parts], self.row_dims[name]) for name in parts[0]}


def examples_of(program: Program, args: tuple, kwargs: dict[str, Any]) -> Examples | None:
    """The examples of a program, or None where they share latent sites or cannot be told apart.

    Told apart are those whose arguments have one row for each, if the program takes them one by one.
    """
    try:
        nodes = _nodes(program, args, kwargs)
    except (RuntimeError, ValueError, IndexError, TypeError):  # what is wrong with it is said where it is run
        return None
    dims = [data_dim(node) for node in nodes.values()]
    sizes = {f.size for node in nodes.values() for f in node["cond_indep_stack"] if f.name == "data"}
    if not nodes or None in dims or len(sizes) != 1:
        return None
    rows = {
        name: data_dim(node) - node["fn"].event_dim  # type: ignore[operator]
        for name, node in nodes.items()
        if not node["is_observed"] or node["infer"].get("_deterministic")
    }
    found = Examples(args, kwargs, int(sizes.pop()), rows)
    if found.size < 2:
        return None
    try:
        one = _nodes(program, *found.arguments(0))
    except (RuntimeError, ValueError, IndexError):
        return None
    cut = {f.size for node in one.values() for f in node["cond_indep_stack"] if f.name == "data"}
    return found if cut == {1} else None


def stacked_score(scores: list[Score]) -> Score:
    """The scores of single examples, each of shape [], as one of shape [batch]."""
    errors = [score.stderr for score in scores if score.stderr is not None]
    stderr = torch.stack(errors) if len(errors) == len(scores) else None
    stats = {name: torch.stack([score.stats[name] for score in scores]) for name in scores[0].stats}
    return Score(torch.stack([score.value for score in scores]), scores[0].kind, stderr, scores[0].how, stats)


def _nodes(program: Program, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """{name: node} of sites and factors; no flat prior is asked for a draw."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if torch.float64 in [*floats(args), *floats(kwargs)] else before)
    try:
        with torch.no_grad(), seeded(0):
            trace = poutine.trace(Start()(program.run_model)).get_trace(*args, **kwargs)
    finally:
        torch.set_default_dtype(before)
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample"
    }
