"""Draws of a guide for each example of a batch, with the log densities of every site, differentiable: what per-example bounds need."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Program

__all__ = [
    "Drawn",
    "Leaf",
    "Particles",
    "add",
    "frozen",
    "guides_own",
    "in_parts",
    "is_random",
    "path_gradients",
    "random_nodes",
    "row_count",
    "row_dim",
    "row_sums",
]  # fmt: skip

_ROWS = 2**14  # rows (examples x draws) of one pass where nothing is differentiated


@dataclass
class Leaf:
    """A drawn latent value, cut out of the graph of what it was computed from.

    Attributes:
        drawn: as the guide drew it, with the history of its parameters and of the values drawn before.
        value: the same numbers, a leaf: what the rest of the guide and the model saw.
        dim: the dimension, counted from the right, along which its rows lie.
    """

    drawn: Tensor
    value: Tensor
    dim: int


@dataclass
class Drawn:
    """Draws of the guide for each example. Rows are examples times draws, the draws of one example next to each other.

    Attributes:
        count: draws of each example, K.
        prior: {latent site: log p, [row]}, given the sites before it.
        likelihood: {observed site or factor: log p, [row]}.
        proposal: {latent site: log q, [row]}.
        nodes: {latent site: its node in the guide's trace}; the values have the rows where the program has its data.
        story: {site: its node in the model's trace}.
        leaves: {latent site: Leaf} in the order of drawing, where they were asked for.
    """

    count: int
    prior: dict[str, Tensor]
    likelihood: dict[str, Tensor]
    proposal: dict[str, Tensor]
    nodes: dict[str, Any]
    story: dict[str, Any]
    leaves: dict[str, Leaf]

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), [draw, example]."""
        return self.by_draw(sum([*self.prior.values(), *self.likelihood.values()]))

    @property
    def log_q(self) -> Tensor:
        """log q(z | x), [draw, example]."""
        return self.by_draw(sum(self.proposal.values()))

    @property
    def log_weights(self) -> Tensor:
        """log p(x, z) - log q(z | x), [draw, example]."""
        return self.log_p - self.log_q

    def by_draw(self, rows: Any) -> Tensor:
        """[row] as [draw, example]."""
        return rows.reshape(-1, self.count).mT


class Particles:
    """K draws of a program's guide for each example of a batch, in one run over repeated rows, with their log densities.

    Arguments:
        program: its sites, latent and observed, must all lie inside the plate `data`; use inside `program.running()`.
        count: K.
    """

    def __init__(self, program: Program, count: int) -> None:
        self.program, self.count = program, count

    def check(self, batch: tuple) -> "Particles":
        """Try it on some rows.

        Raises:
            TaskUnavailable: there is no guide, or a site lies outside the plate `data`, so that examples have no bounds of
                their own.
            ProgramError: the guide misses a latent site or draws another one, or the program cannot be run on repeated rows.
        """
        rows = row_count(batch)
        if not self.program.has_guide:
            raise TaskUnavailable(
                f"{self.program.name!r} has no guide to draw from; pass guide=... (a function over its latent sites, with one "
                "distribution for each row)."
            )
        with torch.no_grad(), pyro.validation_enabled(True):
            self._check(*self._traces(batch), rows)
            if self.count > 1:
                self._check_repeats(batch)
        return self

    def __call__(self, *batch: Any, leaves: bool = False, detach: bool = False) -> Drawn:
        """The draws for a batch.

        Arguments:
            leaves: cut every drawn value out of its graph, and keep both ends.
            detach: cut every drawn value out of its graph for good.
        """
        size = row_count(batch) * self.count
        drawn, story = self._traces(self.repeated(batch), _Cut(leaves, keep=not detach) if leaves or detach else None)
        with pyro.validation_enabled(False):
            drawn.compute_log_prob()
            story.compute_log_prob()
        nodes, told = random_nodes(drawn), random_nodes(story)
        found = Drawn(self.count, {}, {}, {}, nodes, told, {})
        for name, node in nodes.items():
            found.proposal[name] = row_sums(node, size)
            if leaves:
                found.leaves[name] = Leaf(node["infer"]["_drawn"], node["value"], row_dim(node))
        for name, node in told.items():
            (found.likelihood if node["is_observed"] else found.prior)[name] = row_sums(node, size)
        return found

    def repeated(self, batch: tuple) -> tuple:
        """The batch with each row K times in a row."""
        rows = row_count(batch)
        return tuple(
            a.repeat_interleave(self.count, 0) if self.count > 1 and isinstance(a, Tensor) and a.dim() and len(a) == rows else a
            for a in batch
        )  # fmt: skip

    def log_weights(self, *batch: Any) -> Tensor:
        """log p(x, z) - log q(z | x) for evaluation, [draw, example], a bounded number of rows at a time."""
        with torch.no_grad():
            return torch.cat([self(*part).log_weights for part in in_parts(batch, max(1, _ROWS // self.count))], 1)

    def _traces(self, batch: tuple, cut: "_Cut | None" = None) -> tuple[Any, Any]:
        if cut is None:
            drawn = poutine.trace(self.program.run_guide).get_trace(*batch)
        else:
            with cut:  # outside of the trace, so that the trace holds the leaves
                drawn = poutine.trace(self.program.run_guide).get_trace(*batch)
        return drawn, poutine.trace(poutine.replay(self.program.run_model, trace=drawn)).get_trace(*batch)

    def _check(self, drawn: Any, story: Any, rows: int) -> None:
        name = self.program.name
        latent = {site for site, node in story.nodes.items() if is_random(node) and not node["is_observed"]}
        proposed = {site for site, node in drawn.nodes.items() if is_random(node)}
        for site in sorted(latent - proposed):
            raise ProgramError(f"the guide of {name!r} does not draw the latent site {site!r}; add it there.")
        for site in sorted(proposed - latent):
            raise ProgramError(f"the guide of {name!r} draws the site {site!r}, which is not latent in the model.")
        for trace in (drawn, story):
            for site, node in trace.nodes.items():
                if is_random(node):
                    frame = _data_frame(node)
                    if frame is None:
                        raise TaskUnavailable(
                            f"site {site!r} of {name!r} lies outside the plate 'data', so that its examples have no bounds of "
                            "their own; method='svi' bounds all of them together."
                        )
                    if frame.size != rows:
                        raise ProgramError(
                            f"the plate 'data' of {name!r} has size {frame.size} for {rows} rows; write "
                            "pyro.plate('data', len(x))."
                        )

    def _check_repeats(self, batch: tuple) -> None:
        try:
            drawn, _ = self._traces(self.repeated(batch))
        except (RuntimeError, ValueError, IndexError) as error:
            raise ProgramError(
                f"{self.program.name!r} cannot be run on {self.count} draws of each row, since its size is written into model or "
                "guide; take the size from the argument, len(x)."
            ) from error
        size = row_count(batch) * self.count
        if any(_data_frame(n).size != size for n in drawn.nodes.values() if is_random(n)):  # type: ignore[union-attr]
            raise ProgramError(
                f"the plate 'data' of {self.program.name!r} does not follow the rows of its argument; write "
                "pyro.plate('data', len(x))."
            )


class _Cut(Messenger):
    """Cuts what a guide draws out of its graph: leaves with gradients of their own, or plain values."""

    def __init__(self, leaves: bool, keep: bool = True) -> None:
        super().__init__()
        self.leaves, self.keep = leaves, keep

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_random(msg) or msg["is_observed"]:
            return
        if self.keep:
            msg["infer"] = {**msg["infer"], "_drawn": msg["value"]}
        value = msg["value"].detach()
        msg["value"] = value.requires_grad_() if self.leaves and value.is_floating_point() else value


def is_random(node: Any) -> bool:
    """A sample statement or factor, not a plate's subsampling or a deterministic site."""
    return (
        node["type"] == "sample"
        and type(node["fn"]).__name__ != "_Subsample"
        and not (node["infer"] or {}).get("_deterministic")
    )


def random_nodes(trace: Any) -> dict[str, Any]:
    """{name: node} of a trace's sample statements and factors, in the order in which they ran."""
    return {name: node for name, node in trace.nodes.items() if is_random(node)}


def _data_frame(node: Any) -> Any:
    return next((f for f in node["cond_indep_stack"] if f.name == "data" and f.vectorized), None)


def row_dim(node: Any) -> int:
    """The dimension of a site's value, counted from the right, along which its rows lie."""
    return _data_frame(node).dim - node["fn"].event_dim


def row_sums(node: Any, size: int) -> Tensor:
    """A site's log density summed over all dimensions but that of the plate `data`, [size]."""
    dim = _data_frame(node).dim
    log_prob = node["log_prob"]
    log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, (size, *(1,) * (-dim - 1))))
    return log_prob.movedim(dim, 0).reshape(size, -1).sum(1)


def row_count(batch: tuple) -> int:
    """The rows of a batch: those of its first argument."""
    if not batch or not isinstance(batch[0], Tensor) or not batch[0].dim():
        raise TaskUnavailable(
            "bounds of each example need observations with one row for each, [n, ...], as the first argument."
        )
    return len(batch[0])


def in_parts(batch: tuple, most: int) -> Iterator[tuple]:
    """The batch, at most so many rows at a time."""
    rows = row_count(batch)
    for begin in range(0, rows, most):
        yield tuple(
            a[begin : begin + most] if isinstance(a, Tensor) and a.dim() and len(a) == rows else a for a in batch
        )


def guides_own(program: Program, batch: tuple, parameters: Sequence[Tensor]) -> list[bool]:
    """Which parameters the guide depends on and the model, for fixed latent values, does not."""
    with torch.enable_grad(), pyro.validation_enabled(False):
        drawn = poutine.trace(program.run_guide).get_trace(*batch)
        drawn.compute_log_prob()
        nodes = random_nodes(drawn)
        total = sum(
            (n["log_prob"].sum() + (n["value"].sum() if n["value"].requires_grad else 0.0) for n in nodes.values()),
            torch.zeros(()),
        )
        fixed = {name: node["value"].detach() for name, node in nodes.items()}
        story = poutine.trace(poutine.condition(program.run_model, fixed)).get_trace(*batch)
        mine, others = _reached(total, parameters), _reached(story.log_prob_sum(), parameters)
    return [one and not other for one, other in zip(mine, others, strict=True)]


def _reached(total: Any, parameters: Sequence[Tensor]) -> list[bool]:
    if not isinstance(total, Tensor) or not total.requires_grad:
        return [False] * len(parameters)
    return [g is not None for g in torch.autograd.grad(total, list(parameters), allow_unused=True)]


def path_gradients(
    leaves: dict[str, Leaf], partial: dict[str, Tensor], parameters: Sequence[Tensor], factor: Tensor | None = None
) -> list[Tensor | None]:
    """Gradients of the parameters through the drawn values alone, from partial derivatives by those values.

    Goes back through the values in the reverse order of drawing, since what was drawn later depends on what was drawn before.

    Arguments:
        partial: {site: the derivative by its value, every other value fixed}.
        factor: [row], multiplies every derivative.
    """
    total: list[Tensor | None] = [None] * len(parameters)
    names = list(leaves)
    pending = {name: _scaled(partial[name], factor, leaves[name].dim) for name in names}
    for i in range(len(names) - 1, -1, -1):
        leaf = leaves[names[i]]
        if not leaf.drawn.requires_grad:
            continue
        before = [leaves[name].value for name in names[:i]]
        found = torch.autograd.grad(
            leaf.drawn, [*before, *parameters], pending[names[i]], allow_unused=True, retain_graph=True
        )
        for name, gradient in zip(names[:i], found[:i], strict=True):
            if gradient is not None:
                pending[name] = pending[name] + gradient
        total = [add(one, other) for one, other in zip(total, found[i:], strict=True)]
    return total


def add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be none."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _scaled(gradient: Tensor, factor: Tensor | None, dim: int) -> Tensor:
    if factor is None:
        return gradient
    return gradient * factor.reshape(-1, *(1,) * (-dim - 1))


@contextmanager
def frozen(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Nothing is learned about these parameters in a block."""
    before = [p.requires_grad for p in parameters]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, known in zip(parameters, before, strict=True):
            p.requires_grad_(known)
