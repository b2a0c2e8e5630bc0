"""LogFactor: a non-negative function of a few discrete variables, as a table of its logarithms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LogFactor", "product", "reduced"]


@dataclass(frozen=True, eq=False)
class LogFactor:
    """log f(z_1, ..., z_m) for every value of its variables.

    Attributes:
        scope: the variables' names.
        table: logarithms in nats, one dimension for each variable, in that order; -inf where f is zero.
        name: what it is, e.g. "p(wet | rain)".
        example: the row of the data that it speaks of, where the program's evidence has one value per row.
    """

    scope: tuple[str, ...]
    table: Tensor
    name: str = ""
    example: int | None = None

    def over(self, scope: Sequence[str]) -> Tensor:
        """The table with one dimension for each variable of a larger scope, of size one where f does not depend on it."""
        kept = [variable for variable in scope if variable in self.scope]
        moved = self.table.permute([self.scope.index(variable) for variable in kept])
        sizes = iter(moved.shape)
        return moved.reshape([next(sizes) if variable in self.scope else 1 for variable in scope])


def product(factors: Iterable[LogFactor], scope: Sequence[str], sizes: Mapping[str, int], zero: Tensor) -> Tensor:
    """log prod_f f over `scope`, [size of each variable]; `zero` is a scalar of the type and on the device wanted."""
    total = zero.expand([sizes[variable] for variable in scope])
    for factor in factors:
        total = total + factor.over(scope)
    return total


def reduced(table: Tensor, scope: Sequence[str], kept: Sequence[str], maximise: bool = False) -> Tensor:
    """The table with every variable but `kept` summed out (or maximised over), its dimensions in the order of `kept`."""
    gone = [position for position, variable in enumerate(scope) if variable not in kept]
    left = [variable for variable in scope if variable in kept]
    if gone:
        table = table.amax(gone) if maximise else torch.logsumexp(table, gone)
    return table.permute([left.index(variable) for variable in kept])
