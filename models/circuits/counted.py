"""Circuits written down while data are split: nodes that hold counts, and the weights that smoothed counts give."""

from collections.abc import Callable, Hashable, Sequence

import networkx as nx
import numpy as np

__all__ = ["CountedCircuit", "Tables"]

Tables = Callable[[float], tuple[np.ndarray, np.ndarray]]


class CountedCircuit:
    """A circuit under construction. Nodes are named in the order in which they are made.

    Arguments:
        values: K.

    >>> made = CountedCircuit(2)
    >>> both = made.product([made.input(0, [3, 1]), made.input(1, [2, 2])])
    >>> graph = made.weighted(np.full((2, 2), 0.5), pseudo_count=1.0)
    >>> graph.nodes["x0.0"]["probs"]
    [0.7, 0.3]
    """

    def __init__(self, values: int) -> None:
        self.values = values
        self.graph = nx.DiGraph()

    def input(self, variable: int, counts: Sequence[float] | np.ndarray, support: np.ndarray | None = None) -> str:
        """A categorical distribution of one variable.

        Arguments:
            variable: which.
            counts: [K].
            support: [K] bool, the values that stay possible; default: all.
        """
        name = self._name(f"x{variable}.")
        possible = np.ones(self.values, dtype=bool) if support is None else support
        self.graph.add_node(name, kind="input", variable=int(variable), counts=np.asarray(counts, float), open=possible)
        return name

    def indicator(self, variable: int, value: int) -> str:
        """One value for certain."""
        name = self._name(f"x{variable}={value}.")
        self.graph.add_node(name, kind="input", variable=int(variable), value=int(value))
        return name

    def product(self, children: Sequence[str]) -> str:
        """Of children over different variables; one child is itself."""
        if len(children) == 1:
            return children[0]
        name = self._name("p.")
        self.graph.add_node(name, kind="product")
        self.graph.add_edges_from((name, child) for child in children)
        return name

    def sum(self, children: Sequence[str], counts: Sequence[float], variable: int | None = None) -> str:
        """A mixture.

        Arguments:
            children: over the same variables.
            counts: of the rows that fell to each.
            variable: whose value the child tells (child k: value k), so that pseudo-counts follow its distribution;
                None: they are spread evenly.
        """
        name = self._name("s.")
        self.graph.add_node(name, kind="sum", told=variable)
        for i, (child, count) in enumerate(zip(children, counts, strict=True)):
            self.graph.add_edge(name, child, count=float(count), position=i)
        return name

    def weighted(self, base: np.ndarray, pseudo_count: float) -> nx.DiGraph:
        """The circuit with probabilities (counts + a prior) / (total + a); what has probability zero is left out.

        Arguments:
            base: [D, K] the variables' distributions, which are the prior of inputs.
            pseudo_count: a.
        """
        graph = nx.DiGraph()
        for name, data in self.graph.nodes(data=True):
            kept = {key: data[key] for key in ("kind", "variable", "value") if key in data}
            if "counts" in data:
                kept["probs"] = _smoothed(data["counts"], base[data["variable"]] * data["open"], pseudo_count).tolist()
            graph.add_node(name, **kept)
            children = list(self.graph.successors(name))
            if data["kind"] == "product":
                graph.add_edges_from((name, child) for child in children)
            elif data["kind"] == "sum":
                counts = np.array([self.graph.edges[name, child]["count"] for child in children])
                prior = np.ones(len(children)) if data["told"] is None else base[data["told"]]
                weights = _smoothed(counts, prior, pseudo_count)
                for child, weight in zip(children, weights.tolist(), strict=True):
                    if weight > 0:
                        graph.add_edge(name, child, weight=weight)
        root = next(name for name in self.graph if self.graph.in_degree(name) == 0)
        return graph.subgraph(nx.descendants(graph, root) | {root}).copy()

    def tables(self, names: Sequence[Hashable], base: np.ndarray) -> Tables:
        """What another pseudo-count makes of the same nodes, without writing the graph again.

        Arguments:
            names: of all nodes in some order.
            base: [D, K] the variables' distributions.

        Returns:
            A function from a pseudo-count above 0 to the inputs' log probabilities [I, K] and the log weights of the
            sums' edges [E], nodes and edges in the order of `names`.
        """
        node = self.graph.nodes
        inputs = [name for name in names if node[name]["kind"] == "input"]
        counts, prior = np.zeros((2, len(inputs), self.values))
        for i, name in enumerate(inputs):
            data = node[name]
            if "value" in data:
                prior[i, data["value"]] = 1
            else:
                counts[i] = data["counts"]
                prior[i] = base[data["variable"]] * data["open"]
        prior /= prior.sum(-1, keepdims=True)
        edges = [
            (i, name, child)
            for i, name in enumerate(names)
            if node[name]["kind"] == "sum"
            for child in self.graph[name]
        ]
        owner = np.array([i for i, _, _ in edges], dtype=int)
        told = [(node[name]["told"], self.graph.edges[name, child]["position"]) for _, name, child in edges]
        weight = np.array([self.graph.edges[name, child]["count"] for _, name, child in edges])
        share = np.array([1.0 if variable is None else base[variable, k] for variable, k in told])
        share = share / np.bincount(owner, share, len(names))[owner] if len(edges) else share

        def tables(pseudo_count: float) -> tuple[np.ndarray, np.ndarray]:
            leaves = counts + pseudo_count * prior
            weights = weight + pseudo_count * share
            total = np.bincount(owner, weights, len(names))[owner] if len(edges) else weights
            with np.errstate(divide="ignore"):
                return np.log(leaves / leaves.sum(-1, keepdims=True)), np.log(weights / total)

        return tables

    def _name(self, start: str) -> str:
        return f"{start}{len(self.graph)}"


def _smoothed(counts: np.ndarray, prior: np.ndarray, pseudo_count: float) -> np.ndarray:
    """Counts with pseudo-counts in proportion to the prior, normalised; no counts at all: the prior."""
    prior = prior / prior.sum()
    total = counts + pseudo_count * prior
    return total / total.sum() if total.sum() > 0 else prior
