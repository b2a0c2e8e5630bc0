"""Two circuits walked together: what compatible circuits have in common takes one pass over pairs of blocks."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ...errors import TaskUnavailable
from .blocks import Block, Blocks

__all__ = ["CrossLog", "Inner", "Pair", "PairPass", "Step"]

Value = TypeVar("Value")
Pair = tuple[tuple[int, ...], tuple[int, ...]]
"""Blocks of the first and of the second circuit; several stand for their product, unit by unit."""


@dataclass(frozen=True)
class Step:
    """How the value of a pair follows from others.

    Attributes:
        kind: "input" (two inputs), "first" or "second" (a sum of that circuit is taken apart), "product".
        block: the sum that is taken apart.
        needs: the pairs that it follows from.
    """

    kind: str
    block: Block | None
    needs: tuple[Pair, ...]


class Algebra(Protocol[Value]):
    """What a pass computes for a pair: [units of the first, units of the second] numbers."""

    def inputs(self, first: Block, second: Block) -> Value: ...
    def first(self, block: Block, values: list[Value]) -> Value: ...
    def second(self, block: Block, values: list[Value]) -> Value: ...
    def product(self, values: list[Value]) -> Value: ...


class PairPass:
    """The pairs of blocks that two compatible circuits share, each once.

    Circuits are compatible where their products divide the same variables the same way; a product may divide them
    further than the other circuit does. A product of single variables is compatible with every circuit.

    Arguments:
        first, second: the circuits.
        purpose: what for, as a refusal says it.

    Raises:
        TaskUnavailable: on `run`, two products divide variables differently; the message names them.

    Source: D. Khosravi et al. (2019); A. Vergari et al. (2021), A compositional atlas of tractable circuit operations.
    """

    def __init__(self, first: Blocks, second: Blocks, purpose: str) -> None:
        self.circuits, self.purpose = (first, second), purpose
        self.steps: dict[Pair, Step] = {}  # each after those that it needs

    @property
    def root(self) -> Pair:
        return (len(self.circuits[0].blocks) - 1,), (len(self.circuits[1].blocks) - 1,)

    def run(self, algebra: Algebra[Value]) -> dict[Pair, Value]:
        """The value of each pair below the roots."""
        if not self.steps:
            self._plan()
        done: dict[Pair, Value] = {}
        for pair, step in self.steps.items():
            values = [done[need] for need in step.needs]
            if step.kind == "input":
                a, b = (circuit.blocks[names[0]] for circuit, names in zip(self.circuits, pair, strict=True))
                done[pair] = algebra.inputs(a, b)
            elif step.kind == "product":
                done[pair] = algebra.product(values)
            else:
                assert step.block is not None
                done[pair] = getattr(algebra, step.kind)(step.block, values)
        return done

    def _plan(self) -> None:
        stack, known = [self.root], {}
        while stack:
            pair = stack[-1]
            if pair in self.steps:
                stack.pop()
                continue
            if pair not in known:
                known[pair] = self._step(pair)
            missing = [need for need in known[pair].needs if need not in self.steps]
            if missing:
                stack += missing
            else:
                self.steps[stack.pop()] = known[pair]

    def _step(self, pair: Pair) -> Step:
        a, b = (self._factors(side, names) for side, names in enumerate(pair))
        groups = self._groups(a, b)
        if len(groups) > 1 or (a, b) != pair:
            return Step("product", None, tuple(groups))
        blocks = [[circuit.blocks[i] for i in names] for circuit, names in zip(self.circuits, (a, b), strict=True)]
        for side, name in enumerate(("first", "second")):
            if len(blocks[side]) == 1 and blocks[side][0].kind == "sum":
                other = pair[1 - side]
                needs = [((c,), other) if side == 0 else (other, (c,)) for c in blocks[side][0].children]
                return Step(name, blocks[side][0], tuple(needs))
        if len(a) == len(b) == 1:
            return Step("input", None, ())
        shown = [" x ".join(repr(block.name) for block in side) for side in blocks]
        raise TaskUnavailable(
            f"{self.purpose} needs compatible circuits, but {shown[0]} and {shown[1]} divide the variables "
            f"{_show(blocks[0])} differently; estimate it from draws: p.sample((n,)) and log_prob."
        )

    def _factors(self, side: int, names: tuple[int, ...]) -> tuple[int, ...]:
        """The blocks with every product replaced by its children."""
        found: list[int] = []
        stack = list(reversed(names))
        while stack:
            name = stack.pop()
            block = self.circuits[side].blocks[name]
            if block.kind == "product":
                stack += reversed(block.children)
            else:
                found.append(name)
        return tuple(found)

    def _groups(self, a: tuple[int, ...], b: tuple[int, ...]) -> list[Pair]:
        """The smallest groups of factors over the same variables."""
        groups: list[tuple[frozenset[int], list[list[int]]]] = []
        for side, names in enumerate((a, b)):
            for name in names:
                scope = self.circuits[side].blocks[name].scope
                members: list[list[int]] = [[name], []] if side == 0 else [[], [name]]
                apart = []
                for other, theirs in groups:
                    if scope & other:
                        scope, members = scope | other, [x + y for x, y in zip(theirs, members, strict=True)]
                    else:
                        apart.append((other, theirs))
                groups = [*apart, (scope, members)]
        return [(tuple(sorted(x)), tuple(sorted(y))) for _, (x, y) in groups]


class Inner:
    """log sum_x p_i(x) q_j(x), [S, S']."""

    def inputs(self, first: Block, second: Block) -> Tensor:
        return _log_matmul(first.tables[0], second.tables[0].T)

    def first(self, block: Block, values: list[Tensor]) -> Tensor:
        return _log_matmul(torch.cat(block.tables, -1), torch.cat(values))

    def second(self, block: Block, values: list[Tensor]) -> Tensor:
        return _log_matmul(torch.cat(values, -1), torch.cat(block.tables, -1).T)

    def product(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values).sum(0)


class CrossLog:
    """How much of p_i lies where q_j is positive, as a logarithm, and the mean of log q_j there, each [S, S'].

    q must be deterministic: one child of each of its sums is positive, so the logarithm passes through.
    """

    def inputs(self, first: Block, second: Block) -> tuple[Tensor, Tensor]:
        p, log_q = first.tables[0].exp(), second.tables[0]
        mass = p @ log_q.isfinite().double().T
        total = p @ log_q.where(log_q.isfinite(), torch.zeros_like(log_q)).T
        return mass.log(), torch.where(mass > 0, total / mass, 0.0)

    def first(self, block: Block, values: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        weights = torch.cat(block.tables, -1)
        log_mass, mean = torch.cat([v[0] for v in values]), torch.cat([v[1] for v in values])
        found = _log_matmul(weights, log_mass)
        share = (weights[:, :, None] + log_mass - found[:, None]).exp().nan_to_num()  # [S, children, S']
        return found, (share * mean).sum(1)

    def second(self, block: Block, values: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        weights = torch.cat(block.tables, -1)  # [S', children]
        possible = weights.isfinite()
        log_mass, mean = torch.cat([v[0] for v in values], -1), torch.cat([v[1] for v in values], -1)
        found = _log_matmul(log_mass, possible.double().log().T)
        share = (log_mass[:, None] + possible.double().log() - found[..., None]).exp().nan_to_num()  # [S, S', children]
        log_q = mean[:, None] + weights.where(possible, torch.zeros_like(weights))
        return found, (share * log_q).sum(-1)

    def product(self, values: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        log_mass = torch.stack([v[0] for v in values]).sum(0)
        mean = torch.stack([v[1] for v in values]).sum(0)
        return log_mass, mean.where(log_mass.isfinite(), torch.zeros_like(mean))


def _log_matmul(a: Tensor, b: Tensor) -> Tensor:
    """log (exp(a) exp(b)) of [S, n] and [n, S'], each column of b scaled by its own largest number."""
    largest = b.amax(0, keepdim=True)
    largest = largest.where(largest.isfinite(), torch.zeros_like(largest))
    return (a.exp() @ (b - largest).exp()).log() + largest


def _show(blocks: list[Block]) -> str:
    shown = sorted(frozenset().union(*(block.scope for block in blocks)))
    return "{" + ", ".join(map(str, shown[:8])) + (", ..." if len(shown) > 8 else "") + "}"
