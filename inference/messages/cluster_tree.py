"""ClusterTree: exact message passing on a tree of clusters, of which buckets, cliques and factor graphs are cases."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError

from .factor_graph import FactorGraph
from .log_factor import LogFactor, product, reduced
from .record import Message, Messages

__all__ = ["Cluster", "ClusterTree", "Passing"]

_ENTRIES = 2**24  # entries of the tables of all draws that are made at once


@dataclass(frozen=True)
class Cluster:
    """Some variables, and the factors that are multiplied there."""

    name: str
    scope: tuple[str, ...]
    factors: tuple[LogFactor, ...] = ()


class ClusterTree:
    """Clusters joined to a forest, each link with the variables that its messages are functions of.

    A message from a to b multiplies a's factors with what a has heard from all its other neighbours, and sums out what
    is not in the separator:

        m_ab(s) = sum_{scope_a \\ s} prod_{f in a} f prod_{c != b} m_ca

    The answers are exact where every factor stands in one cluster and, for each variable, the clusters that hold it hang
    together (the running intersection).

    Arguments:
        graph: the factors.
        clusters: the first one of each part of the forest becomes its root.
        links: (name, name, separator).

    Raises:
        ProgramError: the links make a loop, or a variable's clusters do not hang together.

    Source: G. Shafer and P. Shenoy (1990), Probability propagation; D. Koller and N. Friedman (2009), chapter 10.
    """

    def __init__(
        self, graph: FactorGraph, clusters: Iterable[Cluster], links: Iterable[tuple[str, str, tuple[str, ...]]]
    ) -> None:
        self.graph = graph
        self.clusters = {cluster.name: cluster for cluster in clusters}
        self.near: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in self.clusters}
        for a, b, separator in links:
            self.near[a][b] = self.near[b][a] = separator
        self.order: list[str] = []  # every cluster after its parent
        self.parent: dict[str, str | None] = {}
        for root in self.clusters:
            self._hang(root)
        self._check()

    def _hang(self, root: str) -> None:
        if root in self.parent:
            return
        self.parent[root], waiting = None, [root]
        while waiting:
            name = waiting.pop()
            self.order.append(name)
            for other in self.near[name]:
                if other == self.parent[name]:
                    continue
                if other in self.parent:
                    raise ProgramError(f"the clusters {name} and {other} close a loop; a tree is needed.")
                self.parent[other] = name
                waiting.append(other)

    def _check(self) -> None:
        """A variable's clusters hang together if just one of them has no parent that passes it on."""
        tops: dict[str, int] = {}
        for name in self.order:
            parent = self.parent[name]
            passed = () if parent is None else self.near[name][parent]
            for variable in self.clusters[name].scope:
                tops[variable] = tops.get(variable, 0) + (variable not in passed)
        broken = [variable for variable, count in tops.items() if count != 1]
        if broken:
            raise ProgramError(
                f"the clusters that hold {broken[0]!r} do not hang together in the tree (running intersection), so that "
                "messages would count it twice; join them through separators that hold it."
            )

    def children(self, name: str) -> list[str]:
        """The neighbours away from the root."""
        return [other for other in self.near[name] if other != self.parent[name]]

    @property
    def entries(self) -> int:
        """The largest table."""
        return max((prod(self.graph.sizes[v] for v in c.scope) for c in self.clusters.values()), default=1)


class Passing:
    """Messages on a cluster tree, towards the roots when made, and back when a marginal is asked for.

    Arguments:
        tree: the clusters.
        maximise: maxima instead of sums.
    """

    def __init__(self, tree: ClusterTree, maximise: bool = False) -> None:
        self.tree, self.graph, self.maximise = tree, tree.graph, maximise
        self.messages = Messages(maximise=maximise)
        self.incoming: dict[str, dict[str, LogFactor]] = {name: {} for name in tree.clusters}
        self.tops: dict[str, LogFactor] = {}  # root -> its final sum
        for name in reversed(tree.order):
            parent = tree.parent[name]
            self._send(name, parent, self._gathered(name))
            if parent is None:
                self._record(name, "evidence", self.tops[name])

    # -- messages ----------------------------------------------------------------------------------------------

    def _table(self, name: str, factors: Iterable[LogFactor]) -> Tensor:
        return product(factors, self.tree.clusters[name].scope, self.graph.sizes, self.graph.zero)

    def _gathered(self, name: str) -> Tensor:
        """A cluster's factors times what its children have sent, over its scope."""
        heard = [self.incoming[name][child] for child in self.tree.children(name) if child in self.incoming[name]]
        return self._table(name, (*self.tree.clusters[name].factors, *heard))

    def _send(self, name: str, to: str | None, table: Tensor, back: bool = False) -> None:
        scope = self.tree.clusters[name].scope
        kept = () if to is None else self.tree.near[name][to]
        factor = LogFactor(kept, reduced(table, scope, kept, self.maximise), example=self._row(name))
        if to is None:
            self.tops[name] = factor
        else:
            self.incoming[to][name] = factor
            self._record(name, to, factor, 2 if back else 1)

    def _record(self, sender: str, receiver: str, factor: LogFactor, round: int = 1) -> None:
        self.messages.sent.append(Message(sender, receiver, factor.scope, factor.table, round))

    def _row(self, name: str) -> int | None:
        """The row of the data that a cluster belongs to."""
        factors = (*self.tree.clusters[name].factors, *self.incoming[name].values())
        return next((factor.example for factor in factors if factor.example is not None), None)

    @cached_property
    def _calibrated(self) -> bool:
        """The messages away from the roots, each cluster's neighbours multiplied from both ends towards the middle."""
        for name in self.tree.order:
            children = self.tree.children(name)
            if not children:
                continue
            parent = self.tree.parent[name]
            above = [] if parent is None else [self.incoming[name][parent]]
            own = self._table(name, (*self.tree.clusters[name].factors, *above))
            scope = self.tree.clusters[name].scope
            heard = [self.incoming[name][child].over(scope) for child in children]
            before = list(accumulate(heard[:-1], initial=own))
            after = list(accumulate(reversed(heard[1:]), initial=self.graph.zero))[::-1]
            for child, left, right in zip(children, before, after, strict=True):
                self._send(name, child, (left + right).expand(own.shape), back=True)
        return True

    # -- answers -----------------------------------------------------------------------------------------------

    def log_evidence(self) -> Tensor:
        """log p(x) (or the greatest log p(x, z)) in nats, [examples] or []."""
        parts = [(factor.example, factor.table) for factor in self.tops.values()]
        return self.graph.gather(self.graph.constants() + parts)

    def belief(self, name: str) -> Tensor:
        """log of the sum (or maximum) of p(x, z) over all variables outside a cluster, over its scope."""
        assert self._calibrated
        return self._table(name, (*self.tree.clusters[name].factors, *self.incoming[name].values()))

    def marginals(self) -> dict[str, Tensor]:
        """p(z_v | x) of each variable, [its values]; with maxima, max-marginals whose sum is one."""
        sizes = {name: len(cluster.scope) for name, cluster in self.tree.clusters.items()}
        home: dict[str, str] = {}
        for name in sorted(sizes, key=sizes.__getitem__):
            for variable in self.tree.clusters[name].scope:
                home.setdefault(variable, name)
        found: dict[str, Tensor] = {}
        for variable in self.graph.sizes:
            name = home[variable]
            scope = self.tree.clusters[name].scope
            found[variable] = reduced(self.belief(name), scope, (variable,), self.maximise).softmax(-1)
        return found

    def sample(self, draws: int) -> dict[str, Tensor]:
        """Joint draws z ~ p(z | x), as indices {variable: [draws]}: each cluster given what its parent has drawn."""
        at_once = max(1, min(draws, _ENTRIES // self.tree.entries))
        parts = [self._walk(min(at_once, draws - done), drawn=True) for done in range(0, draws, at_once)]
        return {variable: torch.cat([part[variable] for part in parts]) for variable in self.graph.sizes}

    def best(self) -> dict[str, Tensor]:
        """argmax_z p(x, z), as indices {variable: [1]}; of several best ones, one of them. Needs maxima."""
        return self._walk(1, drawn=False)

    def _walk(self, count: int, drawn: bool) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in self.tree.order:
            scope = self.tree.clusters[name].scope
            known = [variable for variable in scope if variable in found]
            new = [variable for variable in scope if variable not in found]
            if not new:
                continue
            table = self._gathered(name).permute([scope.index(variable) for variable in (*known, *new)])
            rows = table[tuple(found[variable] for variable in known)] if known else table.expand(count, *table.shape)
            logits = rows.reshape(count, -1)
            pick = torch.distributions.Categorical(logits=logits).sample() if drawn else logits.argmax(-1)
            for variable in reversed(new):
                found[variable] = pick % self.graph.sizes[variable]
                pick = pick // self.graph.sizes[variable]
        return found
