"""What the algebra of programs is built on: a program as a distribution of one example, and how kinds of scores combine."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Program
from ppl_dgm.results import Score

__all__ = ["Anywhere", "Chosen", "Fixed", "Law", "as_part", "columns_of", "draw", "joint_kind", "shape_of", "width_of"]


class Fixed(Program):
    """x ~ a distribution without parameters to learn."""

    def __init__(self, fn: Any) -> None:
        super().__init__()
        object.__setattr__(self, "fn", fn)
        self.shape, self.support = torch.Size(fn.event_shape), fn.support if len(fn.event_shape) == 0 else None
        self.observed = width_of(self.shape)

    fn: Any
    shape: torch.Size

    @property
    def name(self) -> str:
        return type(self.fn).__name__

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.fn, obs=x)

    def log_density(self, x: Tensor) -> Score:
        return Score(self.fn.log_prob(x), "exact", how=self.name)


def as_part(part: Any) -> Program:
    """The part as a program that has a `log_density`.

    Raises:
        ProgramError: it has none, or is a batch of distributions.
    """
    if isinstance(part, torch.distributions.Distribution):
        if part.batch_shape:
            raise ProgramError(
                f"a distribution of batch shape {tuple(part.batch_shape)} is several; make its dimensions one event with .to_event()."
            )
        return Fixed(part)
    if isinstance(part, Program) and hasattr(part, "log_density"):
        return part
    name = part.name if isinstance(part, Program) else type(part).__name__
    raise ProgramError(
        f"{name!r} has no log_density(x), so nothing can be built on it; give a program that has, or a distribution."
    )


def shape_of(part: Any) -> tuple[int, ...]:
    """The shape of one example."""
    known = getattr(part, "shape", None)
    if isinstance(known, (tuple, torch.Size)):
        return tuple(known)
    return (part.observed,) if part.observed is not None else tuple(draw(part, 1).shape[1:])


def width_of(shape: tuple[int, ...]) -> int | None:
    """The number of columns of an example, where it is a row."""
    return shape[0] if len(shape) == 1 else None


def columns_of(piece: Tensor, scope: Any) -> tuple[Tensor, ...]:
    """The columns of a piece of x, one number or a row."""
    return (piece,) if isinstance(scope, int) else piece.unbind(-1)


def joint_kind(scores: list[Score]) -> str:
    """How exact a sum of such scores is."""
    kinds = {score.kind for score in scores} - {"exact"}
    if len(kinds) > 1:
        raise TaskUnavailable(f"scores of kinds {', '.join(sorted(kinds))} do not combine into one of a definite kind.")
    return next(iter(kinds), "exact")


def draw(program: Program, n: int) -> Tensor:
    """n examples of a program, drawn while another may be running."""
    from ppl_dgm.tasks import sample

    with apart():
        return sample(program, n)[program.site]


@contextmanager
def apart() -> Iterator[None]:
    """Outside the handlers and plates of the program that is running: its plates' dimensions are free, too."""
    taken, _DIM_ALLOCATOR._stack = _DIM_ALLOCATOR._stack, []
    try:
        with poutine.block():
            yield
    finally:
        _DIM_ALLOCATOR._stack = taken


class Anywhere(dist.ImproperUniform):
    """Where x of an unnormalised product may lie; nothing can be drawn from it."""

    def sample(self, sample_shape: Any = ()) -> Tensor:
        raise TaskUnavailable(
            "product_of: the factors overlap, so x cannot be drawn forward; dgm.infer(program).draws['x'] are its samples."
        )


class Law(dist.TorchDistribution):
    """The distribution of one example of a program, event shape that of an example."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, program: Program, batch_shape: Any = ()) -> None:
        self.program = program
        super().__init__(torch.Size(batch_shape), torch.Size(shape_of(program)), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        entry = self.program.support or constraints.real
        return constraints.independent(entry, len(self.event_shape) - entry.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Law":
        return Law(self.program, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.ndim - len(self.event_shape)]
        rows = value.reshape(batch.numel(), *self.event_shape)
        return self.program.log_density(rows).value.reshape(batch)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        return draw(self.program, max(1, math.prod(shape))).reshape(*shape, *self.event_shape)


class Chosen(dist.TorchDistribution):
    """The k-th of several programs' distributions, batch shape that of k."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, parts: list[Any], k: Tensor, batch_shape: Any = None) -> None:
        self.parts, self.k = parts, k
        batch = k.shape if batch_shape is None else torch.Size(batch_shape)
        super().__init__(batch, torch.Size(shape_of(parts[0])), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return Law(self.parts[0]).support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Chosen":
        return Chosen(self.parts, self.k, batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        each = torch.stack([Law(part).log_prob(value) for part in self.parts], -1)  # [batch, K]
        batch = torch.broadcast_shapes(each.shape[:-1], self.k.shape)
        k = self.k.expand(batch).unsqueeze(-1)
        return each.expand(*batch, len(self.parts)).gather(-1, k).squeeze(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        k, x = self.k.expand(shape).reshape(-1), None
        for i, part in enumerate(self.parts):
            rows = (k == i).nonzero()[:, 0]
            if len(rows):
                drawn = draw(part, len(rows))
                x = drawn.new_zeros(len(k), *self.event_shape) if x is None else x
                x[rows] = drawn.to(x.dtype)
        assert x is not None
        return x.reshape(*shape, *self.event_shape)
