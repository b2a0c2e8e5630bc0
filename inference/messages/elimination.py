"""Elimination orders: which variable is summed out when, and how large the tables become, known before any is made."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

from ppl_dgm.errors import ProgramError, TaskUnavailable

from .factor_graph import FactorGraph

__all__ = ["HEURISTICS", "Elimination", "plan_elimination"]

HEURISTICS = ("min-fill", "min-degree")


@dataclass(frozen=True)
class Elimination:
    """An elimination order and what it costs.

    Attributes:
        order: the variables, the one summed out first first.
        scopes: for each, the variables of the table that is made to sum it out, itself first.
        width: the induced width, the largest number of other variables in such a table.
        entries: the largest table.
        heuristic: how the order was found.
    """

    order: tuple[str, ...]
    scopes: tuple[tuple[str, ...], ...]
    width: int
    entries: int
    heuristic: str

    def __str__(self) -> str:
        shown = ", ".join(self.order[:12]) + (", ..." if len(self.order) > 12 else "")
        return f"order {shown} ({self.heuristic}); induced width {self.width}, largest table {self.entries} entries"

    def refuse_above(self, largest: int, name: str) -> None:
        """Raises TaskUnavailable, in words, where a table would have more entries than `largest`."""
        if self.entries <= largest:
            return
        widest = max(self.scopes, key=len)
        shown = ", ".join(widest[:6]) + (", ..." if len(widest) > 6 else "")
        raise TaskUnavailable(
            f"{name!r}: the order by {self.heuristic} has induced width {self.width} and makes a table of "
            f"{self.entries:.3g} entries, over {shown}; more than largest={largest:.3g}: take "
            "dgm.BeliefPropagation(loopy=True) for approximate marginals, method='gibbs' for draws, or raise largest."
        )


def plan_elimination(
    graph: FactorGraph, order: str | Sequence[str] = "min-fill", among: Collection[str] | None = None
) -> Elimination:
    """An order in which to sum out variables.

    Arguments:
        graph: the factors.
        order: "min-fill" (next the variable whose neighbours lack the fewest edges between them), "min-degree" (the
            fewest neighbours), or the variables themselves.
        among: the variables to eliminate; all of them by default.

    Raises:
        ProgramError: an unknown heuristic, or an order that is no permutation of the variables.

    Source: U. Kjærulff (1990) for the heuristics; R. Dechter (1999), Bucket elimination, for the induced width.
    """
    wanted = set(graph.sizes if among is None else among)
    links = graph.neighbours()
    given = None if isinstance(order, str) else list(order)
    if given is not None and (set(given) != wanted or len(given) != len(wanted)):
        odd = sorted(wanted.symmetric_difference(given)) or sorted({v for v in given if given.count(v) > 1})
        raise ProgramError(
            f"order must name each of the {len(wanted)} variables once, but {odd[0]!r} is missing, unknown or named "
            "twice; print the factor graph to see them."
        )
    if given is None and order not in HEURISTICS:
        raise ProgramError(f"order must be one of {', '.join(HEURISTICS)}, or a list of variables, not {order!r}.")
    cost = _fill if order == "min-fill" else _degree
    costs = {variable: cost(links, variable) for variable in graph.sizes if variable in wanted} if not given else {}
    found, scopes = [], []
    for step in range(len(wanted)):
        variable = given[step] if given is not None else min(costs, key=costs.__getitem__)
        costs.pop(variable, None)
        around = [other for other in graph.sizes if other in links[variable]] if links[variable] else []
        found.append(variable)
        scopes.append((variable, *around))
        touched = _remove(links, variable)
        for other in touched:
            if other in costs:
                costs[other] = cost(links, other)
    width = max((len(scope) - 1 for scope in scopes), default=0)
    entries = max((prod(graph.sizes[v] for v in scope) for scope in scopes), default=1)
    return Elimination(tuple(found), tuple(scopes), width, entries, order if isinstance(order, str) else "as given")


def _remove(links: dict[str, set[str]], variable: str) -> Iterable[str]:
    """Take a variable out and join its neighbours; returns those whose neighbourhood has changed."""
    around = links.pop(variable)
    touched = set(around)
    for other in around:
        links[other].discard(variable)
    for a, b in combinations(around, 2):
        if b not in links[a]:
            links[a].add(b)
            links[b].add(a)
            touched |= links[a] & links[b]
    return touched


def _fill(links: dict[str, set[str]], variable: str) -> int:
    around = list(links[variable])
    return sum(b not in links[a] for a, b in combinations(around, 2))


def _degree(links: dict[str, set[str]], variable: str) -> int:
    return len(links[variable])
