"""The joint density as a product: moral graph, factor graph, and the factorisation in words."""

from collections.abc import Iterable
from typing import NamedTuple

import networkx as nx

from .typeset import latex_name

__all__ = ["Factor", "Factorisation", "factor_graph", "moral"]


class Factor(NamedTuple):
    """One term of the product: p(child | parents; constants), or the factor `child` of its members
    `parents`.
    """

    child: str
    parents: tuple[str, ...]
    constants: tuple[str, ...]
    kind: str


def terms(graph: nx.DiGraph) -> list[Factor]:
    """The terms in the order of the program."""
    found = []
    for node, data in graph.nodes(data=True):
        if data["kind"] in ("latent", "observed", "deterministic", "factor"):
            above = list(graph.predecessors(node))
            constant = tuple(p for p in graph if p in above and graph.nodes[p]["kind"] in ("parameter", "input"))
            variable = tuple(p for p in graph if p in above and p not in constant)
            found.append(Factor(node, variable, constant, data["kind"]))
    return found


def moral(graph: nx.DiGraph) -> nx.Graph:
    """Undirected over the variables; those in one term are joined."""
    result = nx.Graph()
    result.add_nodes_from(
        (n, d) for n, d in graph.nodes(data=True) if d["kind"] in ("latent", "observed", "deterministic")
    )
    for term in terms(graph):
        scope = [*term.parents, *(() if term.kind == "factor" else (term.child,))]
        result.add_edges_from((a, b) for i, a in enumerate(scope) for b in scope[i + 1 :])
    return result


def factor_graph(graph: nx.DiGraph) -> nx.Graph:
    """Bipartite: variables (`bipartite=0`) and the terms of the product (`bipartite=1`), each joined to
    what stands in it.
    """
    result = nx.Graph()
    kept = [term for term in terms(graph) if not graph.nodes[term.child].get("masked")]
    for node, data in graph.nodes(data=True):
        if data["kind"] in ("latent", "observed", "deterministic"):
            result.add_node(node, bipartite=0, **data)
    for term in kept:
        name = term.child if term.kind == "factor" else _conditional(term)
        result.add_node(name, bipartite=1, kind="factor", plates=graph.nodes[term.child]["plates"])
        scope = [*term.parents, *(() if term.kind == "factor" else (term.child,))]
        result.add_edges_from((name, node) for node in scope)
    return result


class Factorisation(str):
    """The joint density as text, e.g. "p(mu, x) = p(mu) prod_data[10] p(x | mu)".

    Attributes:
        factors: its terms, each a `Factor`.
    """

    factors: list[Factor]
    _graph: nx.DiGraph
    _plates: dict[str, int]

    def __new__(cls, graph: nx.DiGraph, plates: dict[str, int]) -> "Factorisation":
        found = terms(graph)
        self = super().__new__(cls, _text(graph, plates, found))
        self.factors, self._graph, self._plates = found, graph, plates
        return self

    def latex(self) -> str:
        """The same for LaTeX's mathematics mode."""
        head, body, where = _parts(self._graph, self.factors)
        product = " ".join(_nested(self._graph, body, self._plates, True))
        sign = r"\propto" if any(term.kind == "factor" for term in body) else "="
        lines = rf"p({', '.join(map(latex_name, head))}) {sign} {product}"
        defined = [
            rf"{latex_name(t.child)} = f({', '.join(map(latex_name, (*t.parents, *t.constants)))})" for t in where
        ]
        return lines + (r",\quad " + r",\ ".join(defined) if defined else "")


def _text(graph: nx.DiGraph, plates: dict[str, int], found: list[Factor]) -> str:
    head, body, where = _parts(graph, found)
    sign = "∝" if any(term.kind == "factor" for term in body) else "="
    text = f"p({', '.join(head)}) {sign} {' '.join(_nested(graph, body, plates, False)) or '1'}"
    defined = [f"{t.child} = f({', '.join((*t.parents, *t.constants))})" for t in where]
    return text + (f", where {', '.join(defined)}" if defined else "")


def _parts(graph: nx.DiGraph, found: list[Factor]) -> tuple[list[str], list[Factor], list[Factor]]:
    """Variables of the joint, its terms, and the definitions of deterministic nodes."""
    head = [term.child for term in found if term.kind in ("latent", "observed")]
    body = [term for term in found if term.kind != "deterministic" and not graph.nodes[term.child].get("masked")]
    return head, body, [term for term in found if term.kind == "deterministic"]


def _nested(
    graph: nx.DiGraph, body: Iterable[Factor], plates: dict[str, int], latex: bool, depth: int = 0
) -> list[str]:
    """Terms, with those of one plate together behind one product sign."""
    parts: list[str] = []
    waiting = list(body)
    while waiting:
        term = waiting[0]
        inside = graph.nodes[term.child]["plates"]
        if len(inside) <= depth:
            parts.append(_conditional(term, latex))
            waiting.pop(0)
            continue
        plate = inside[depth]
        mine = [t for t in waiting if graph.nodes[t.child]["plates"][: depth + 1] == inside[: depth + 1]]
        waiting = [t for t in waiting if t not in mine]
        product = " ".join(_nested(graph, mine, plates, latex, depth + 1))
        size = plates.get(plate, "?")
        if latex:
            parts.append(rf"\prod_{{\text{{{plate.replace('_', ' ')}}}=1}}^{{{size}}} {product}")
        else:
            parts.append(f"prod_{plate}[{size}] {product if len(mine) == 1 else '{' + product + '}'}")
    return parts


def _conditional(term: Factor, latex: bool = False) -> str:
    """ "p(x | z; w)", or for a factor "psi_name(a, b; w)"."""
    show = latex_name if latex else str
    given = ", ".join(map(show, term.parents))
    constants = f"; {', '.join(map(show, term.constants))}" if term.constants else ""
    if term.kind == "factor":
        psi = rf"\psi_{{\text{{{term.child.replace('_', ' ')}}}}}" if latex else f"psi_{term.child}"
        return f"{psi}({given}{constants})"
    bar = (r" \mid " if latex else " | ") + given if given else ""
    return f"p({show(term.child)}{bar}{constants})"
