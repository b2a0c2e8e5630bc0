"""FactorGraph: a program's discrete latent sites, element by element, and the factors of their joint density."""

from dataclasses import dataclass, field
from itertools import product as every
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.messages.enumeration import Enumeration
from ppl_dgm.program import Program
from ppl_dgm.text import table

from .log_factor import LogFactor

__all__ = ["FactorGraph"]

_FACTORS = 20_000  # more are handled one by one too slowly


@dataclass(repr=False)
class FactorGraph:
    """log p(x, z) = sum_f log f(z_f), z the discrete variables that are not observed.

    A site in a plate is one variable per element, named `k[0]`, `k[1]`, ... (plainly `k` where it is one); observed sites are factors over the latent
    variables that they depend on, with the observation already put in.

    Attributes:
        sizes: {variable: number of its values}, in the order of the program.
        factors: those that depend on a variable, and those that are mere numbers.
        examples: the number of rows where log p(x) has one value per row, else None.
        normalised: False where the program has `pyro.factor` terms.
        name: of the program.
        sites: {site: its variables, in the order of its elements}.
        enumeration: what the factors were read from; None for a graph made from tables.

    Source: F. Kschischang, B. Frey and H.-A. Loeliger (2001), Factor graphs and the sum-product algorithm.

    Example:
        >>> graph = FactorGraph.from_tables({"rain": 2, "wet": 2}, {("rain",): [0.8, 0.2], ("rain", "wet"): [[0.9, 0.1], [0.2, 0.8]]})
        >>> graph.is_tree
        True
    """

    sizes: dict[str, int]
    factors: list[LogFactor]
    examples: int | None = None
    normalised: bool = True
    name: str = "factor graph"
    sites: dict[str, list[str]] = field(default_factory=dict)
    enumeration: Enumeration | None = None

    @classmethod
    def from_tables(cls, sizes: dict[str, int], tables: dict[tuple[str, ...], Any]) -> "FactorGraph":
        """From non-negative tables {scope: one dimension per variable}; their product need not sum to one.

        Raises:
            ProgramError: an unknown variable, a table of another shape, or a negative entry.
        """
        factors = []
        for scope, values in tables.items():
            values = torch.as_tensor(values)
            values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
            unknown = [variable for variable in scope if variable not in sizes]
            if unknown:
                raise ProgramError(
                    f"the table over {', '.join(scope)} has a variable {unknown[0]!r} that `sizes` lacks; give its size."
                )
            wanted = tuple(sizes[variable] for variable in scope)
            if values.shape != wanted:
                raise ProgramError(
                    f"the table over {', '.join(scope)} has shape {tuple(values.shape)}, but its variables have "
                    f"{wanted} values; give one dimension for each variable, in the order of the scope."
                )
            if bool((values < 0).any()) or not bool(values.isfinite().all()):
                raise ProgramError(f"the table over {', '.join(scope)} must hold finite numbers from 0; check it.")
            factors.append(LogFactor(tuple(scope), values.log(), f"f({', '.join(scope)})"))
        return cls(dict(sizes), factors, normalised=False, sites={name: [name] for name in sizes})

    @classmethod
    def from_program(cls, program: Program, *args: Any, **kwargs: Any) -> "FactorGraph":
        """From any program over discrete latent sites; call inside `program.running()`.

        Raises:
            TaskUnavailable: a latent site is continuous or cannot be listed, or there are too many elements.
        """
        return cls.from_enumeration(Enumeration(program, *args, **kwargs), program.name)

    @classmethod
    def from_enumeration(cls, sums: Enumeration, name: str = "program") -> "FactorGraph":
        """From a program that has been enumerated already."""
        reader = _Reader(sums)
        if reader.count > _FACTORS:
            raise TaskUnavailable(
                f"{name!r} has {reader.count} factors, element by element, and messages are computed one by "
                f"one, at most {_FACTORS}; take method='exact', which sums whole plates at once, or fewer rows."
            )
        factors = reader.factors()
        sizes = {
            variable: reader.values[site] for site, variables in reader.variables.items() for variable in variables
        }
        rows = sums.examples if sums.per_example else None
        return cls(sizes, factors, rows, sums.normalised, name, reader.variables, sums)

    # -- the graph ---------------------------------------------------------------------------------------------

    @property
    def zero(self) -> Tensor:
        """A scalar zero of the factors' type and on their device."""
        return self.factors[0].table.new_zeros(()) if self.factors else torch.zeros(())

    @property
    def bipartite(self) -> nx.Graph:
        """Variables (`bipartite=0`) and the indices of factors (`bipartite=1`)."""
        found = nx.Graph()
        found.add_nodes_from(self.sizes, bipartite=0)
        for index, factor in enumerate(self.factors):
            if factor.scope:
                found.add_node(index, bipartite=1)
                found.add_edges_from((index, variable) for variable in factor.scope)
        return found

    @property
    def is_tree(self) -> bool:
        """Whether no two variables are joined by two ways, so that belief propagation is exact."""
        return self.sizes == {} or nx.is_forest(self.bipartite)

    def loop(self) -> list[str]:
        """Some loop of the factor graph, as the names along it; empty for a tree."""
        try:
            edges = nx.find_cycle(self.bipartite)
        except nx.NetworkXNoCycle:
            return []
        return [str(node if isinstance(node, str) else self.factors[node].name) for node, *_ in edges]

    def neighbours(self) -> dict[str, set[str]]:
        """{variable: those that it shares a factor with}: the moral graph, observations taken out."""
        found: dict[str, set[str]] = {variable: set() for variable in self.sizes}
        for factor in self.factors:
            for variable in factor.scope:
                found[variable].update(factor.scope)
        for variable, others in found.items():
            others.discard(variable)
        return found

    def gather(self, parts: list[tuple[int | None, Tensor]]) -> Tensor:
        """log p(x) from the log evidences of unconnected parts: one for each row, [examples], or of all, []."""
        if self.examples is None:
            return sum((value for _, value in parts), self.zero)
        total = self.zero.new_zeros(self.examples)
        for row, value in parts:
            total[row or 0] = total[row or 0] + value
        return total

    def constants(self) -> list[tuple[int | None, Tensor]]:
        """The factors that are mere numbers."""
        return [(factor.example, factor.table) for factor in self.factors if not factor.scope]

    def __repr__(self) -> str:
        rows = [(factor.name or "-", ", ".join(factor.scope) or "-", factor.table.numel()) for factor in self.factors]
        head = f"{self.name}: {len(self.sizes)} variables, {len(rows)} factors"
        return f"{head}\n{table(('factor', 'over', 'entries'), rows)}"


class _Reader:
    """Takes the plates of an `Enumeration` apart, element by element."""

    def __init__(self, sums: Enumeration) -> None:
        self.sums = sums
        self.owner = {symbol: site for site, symbol in sums.symbols.items()}
        self.plates = {site: sums.terms[index][0] for site, index in sums.own.items()}
        self.values = {site: sums.sizes[sums.symbols[site]] for site in sums.symbols}
        self.variables = {
            site: [_label(site, at) if fn.batch_shape.numel() > 1 else site for at in _cells(fn.batch_shape)]
            for site, fn in sums.latent.items()
        }

    @property
    def count(self) -> int:
        """Factors in all."""
        total = 0
        for plates, term in self.sums.terms:
            cells = 1
            for size in self._sizes(plates, term).values():
                cells *= size
            total += cells
        return total

    def _sizes(self, plates: frozenset, term: Any) -> dict[str, int]:
        """{symbol: size} of a factor's plates, outermost first."""
        known = dict(zip(term._pyro_dims, term.shape))
        ordered = sorted(plates, key=self.sums.symbol_to_dim.__getitem__)
        return {symbol: known.get(symbol, self.sums.sizes.get(symbol, 1)) for symbol in ordered}

    def factors(self) -> list[LogFactor]:
        found = []
        for site, (plates, term) in zip(self.sums.names, self.sums.terms, strict=True):
            sizes = self._sizes(plates, term)
            inner = [symbol for symbol in term._pyro_dims if symbol not in plates]
            own = self.sums.symbols.get(site)
            inner.sort(key=lambda symbol: (symbol == own, list(self.owner).index(symbol)))  # the child stands last
            for at in every(*(range(size) for size in sizes.values())):
                found.append(self._element(site, term, inner, dict(zip(sizes, at))))
        return found

    def _element(self, site: str, term: Any, inner: list[str], at: dict[str, int]) -> LogFactor:
        dims = term._pyro_dims
        cell = term[tuple(at[symbol] if symbol in at else slice(None) for symbol in dims)]
        left = [symbol for symbol in dims if symbol not in at]
        cell = cell.permute([left.index(symbol) for symbol in inner])
        scope = tuple(self._variable(self.owner[symbol], at) for symbol in inner)
        child = self._variable(site, at) if site in self.variables else _label(site, tuple(at.values()))
        parents = [variable for variable in scope if variable != child]
        name = f"p({child} | {', '.join(parents)})" if parents else f"p({child})"
        if site in self.sums.factor_terms:
            name = f"psi_{site}({', '.join(scope)})"
        row = next((at[symbol] for symbol in self.sums.data if symbol in at), 0 if self.sums.per_example else None)
        return LogFactor(scope, cell, name, row)

    def _variable(self, site: str, at: dict[str, int]) -> str:
        """The element of a site that stands at these positions of the plates."""
        mine = {self.sums.symbol_to_dim[symbol]: symbol for symbol in self.plates[site]}
        shape = self.sums.latent[site].batch_shape
        if shape.numel() == 1:
            return site
        return _label(site, tuple(at[mine[dim]] if dim in mine else 0 for dim in range(-len(shape), 0)))


def _cells(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(every(*(range(size) for size in shape)))


def _label(site: str, at: tuple[int, ...]) -> str:
    return f"{site}[{','.join(map(str, at))}]" if at else site
