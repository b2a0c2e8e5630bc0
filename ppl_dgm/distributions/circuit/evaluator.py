"""What a compiled circuit can do: the interface between the distribution and its two evaluators."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["FLOOR", "Evaluator", "draw", "in_chunks", "in_double", "most_probable"]

FLOOR = -1e30
"""Stands for log 0 inside an evaluation: the gradient of logsumexp over nothing but -inf is NaN."""

LARGEST = 2**23
"""Numbers that one intermediate tensor may hold; more rows than that allows are evaluated in chunks."""


class Evaluator(Protocol):
    """A circuit over D variables with K values as tensors.

    Its rows are x [n, D] int64 and observed [n, D] bool (None: all).
    """

    @property
    def variables(self) -> int:
        """D."""

    @property
    def values(self) -> int:
        """K."""

    @property
    def overlap(self) -> str | None:
        """Why the circuit is not certified to be deterministic; None where it is."""

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The log probabilities that are the circuit's parameters, normalised."""

    def with_tables(self, *tables: Tensor) -> "Evaluator":
        """The same circuit with other parameters (not normalised again)."""

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log probability of the observed entries, the others summed out, [n]."""

    def log_event(self, allowed: Tensor) -> Tensor:
        """log P(x_d in a set of values, for every d), with the sets as flags [n, D, K], [n]."""

    def marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        """p(x_d = k | observed entries), [n, D, K]."""

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        """One draw of the missing entries given the observed ones, [n, D]."""

    def maximise(self, x: Tensor, observed: Tensor) -> Tensor:
        """Max-product: the most probable completion where the circuit is deterministic, [n, D]."""


Pick = Callable[[Tensor], Tensor]


def draw(logits: Tensor) -> Tensor:
    """One category from each row of unnormalised log probabilities, [..., C] -> [...]."""
    noise = torch.empty_like(logits).exponential_().log()
    return (logits - noise).argmax(-1)  # the Gumbel-max trick: argmax of p / Exponential(1)


def most_probable(logits: Tensor) -> Tensor:
    """The most probable category of each row, [..., C] -> [...]."""
    return logits.argmax(-1)


def in_chunks(function: Callable[..., Tensor], per_row: int, *rows: Tensor) -> Tensor:
    """`function` of the rows, in chunks so small that memory stays flat.

    Arguments:
        function: takes the chunks of `rows`, returns a tensor with the same leading dimension.
        per_row: numbers in the largest intermediate tensor for one row.
        rows: tensors [n, ...].
    """
    size = max(1, LARGEST // max(1, per_row))
    if len(rows[0]) <= size:
        return function(*rows)
    return torch.cat([function(*chunk) for chunk in zip(*(r.split(size) for r in rows))])


def in_double(circuit: Any) -> Any:
    """The same circuit over categories, evaluated in float64."""
    return circuit.with_tables(*(table.double() for table in circuit.tables))


def log_or_floor(probs: Tensor) -> Tensor:
    """Logarithms with `FLOOR` for log 0, and no gradient there."""
    possible = probs > 0
    return torch.where(possible, probs.where(possible, torch.ones_like(probs)).log(), FLOOR)


def restore_zero(log_prob: Tensor) -> Tensor:
    """What was computed with `FLOOR` for log 0 gets its -inf back."""
    return torch.where(log_prob < FLOOR / 2, torch.full_like(log_prob, -torch.inf), log_prob)
