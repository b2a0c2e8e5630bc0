"""d-separation: whether a graph makes variables independent, and the sentence that says why."""

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from ..errors import ProgramError

__all__ = ["Separation", "minimal_separator", "separate"]

_CONSTANTS = ("parameter", "input")
_TRAILS = 200  # trails looked at for an explanation of why all are blocked


@dataclass(frozen=True)
class Separation:
    """The answer to a question of d-separation; true if separated.

    Attributes:
        separated: the answer.
        reason: one sentence: the active trail and what opens it, or what blocks the trails.
        trail: the nodes of a shortest active trail; empty if separated.
        blockers: nodes at which trails are blocked; empty if not separated.
    """

    separated: bool
    reason: str
    trail: tuple[str, ...] = ()
    blockers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.separated

    def __str__(self) -> str:
        return self.reason


def separate(graph: nx.DiGraph, left: set[str], right: set[str], given: set[str]) -> Separation:
    """d-separation of two sets, with constants and factors given and deterministic nodes taken as functions
    of their parents.
    """
    for name in sorted((left & right) | (left & given) | (right & given)):
        raise ProgramError(f"{name!r} stands on two sides of the question; give disjoint sets.")
    if not left or not right:
        raise ProgramError(
            "d-separation is between two sets of nodes, but one of them is empty; name at least one node on each side."
        )
    for name in sorted(left | right):
        if graph.nodes[name]["kind"] == "factor":
            members = ", ".join(graph.predecessors(name))
            raise ProgramError(f"{name!r} is a factor, not a variable; ask about its members {members}.")
    question = _Question(graph, left, right, given)
    trail = question.active_trail()
    if trail:
        return Separation(False, question.why_active(trail), tuple(trail))
    reason, blockers = question.why_separated()
    return Separation(True, reason, (), tuple(blockers))


class _Question:
    """Three sets over one graph, and which nodes are thereby known or open."""

    def __init__(self, graph: nx.DiGraph, left: set[str], right: set[str], given: set[str]) -> None:
        self.graph, self.left, self.right, self.given = graph, left, right, given
        kinds = dict(graph.nodes(data="kind"))
        self.factors = {node for node, kind in kinds.items() if kind == "factor"}
        self.constants = {node for node, kind in kinds.items() if kind in _CONSTANTS} - left - right
        self.known = _determined(graph, kinds, given | self.factors | self.constants)
        conditioned = given | self.factors
        self.open_colliders = conditioned | set().union(*(nx.ancestors(graph, node) for node in conditioned), set())

    def active_trail(self) -> list[str]:
        """A shortest active trail, or nothing.

        States are (node, whether the step into it followed an arrow). The shortest active walk never visits
        a node twice: cutting out a
        loop leaves either a node that is not known, or a collider that has a given descendant on the loop.
        """
        start = [node for node in self.graph if node in self.left - self.known]
        reached: dict[tuple[str, bool | None], tuple[str, bool | None] | None] = {(node, None): None for node in start}
        queue = deque(reached)
        while queue:
            node, along = here = queue.popleft()
            if node in self.right and node not in self.known:
                return _path(reached, here)
            for step in self._steps(node, along):
                if step not in reached and step[0] not in self.left:
                    reached[step] = here
                    queue.append(step)
        return []

    def _steps(self, node: str, along: bool | None) -> Iterable[tuple[str, bool]]:
        passes = along is None or node not in self.known
        if passes:
            yield from ((child, True) for child in self.graph.successors(node))
        if (passes and not along) or (along and node in self.open_colliders):
            yield from ((parent, False) for parent in self.graph.predecessors(node))

    # -- words ----------------------------------------------------------------------------------------------

    def why_active(self, trail: list[str]) -> str:
        """The trail, and at each inner node what lets it pass."""
        parts = [self._at(before, node, after)[1] for before, node, after in zip(trail, trail[1:], trail[2:])]
        because = "; ".join(parts) if parts else "they are joined by an edge"
        head = f"{trail[0]} and {trail[-1]} are dependent{self._knowing()}"
        return f"{head}: the trail {self._draw(trail)} is active: {because}."

    def why_separated(self) -> tuple[str, list[str]]:
        """Where each trail is blocked."""
        head = f"{_names(self.left)} and {_names(self.right)} are independent{self._knowing()}"
        constant = [name for name in self.graph if name in (self.left | self.right) & self.known]
        if constant:
            return f"{head}: {_names(constant)} is a function of what is given.", constant
        skeleton = self.graph.to_undirected(as_view=True)
        blocked: dict[str, str] = {}
        shown = ""
        count = 0
        for a in sorted(self.left):
            for b in sorted(self.right):
                for trail in _simple_trails(skeleton, a, b, _TRAILS):
                    count += 1
                    node, words = self._block(trail)
                    shown = shown or self._draw(trail)
                    blocked.setdefault(node, words)
        if not blocked:
            return f"{head}: no trail joins them.", []
        which = f"the only trail, {shown}, is blocked" if count == 1 else "every trail is blocked"
        return f"{head}: {which}: {'; '.join(blocked.values())}.", list(blocked)

    def _block(self, trail: list[str]) -> tuple[str, str]:
        """The first node that stops a trail."""
        for before, node, after in zip(trail, trail[1:], trail[2:]):
            passes, words = self._at(before, node, after)
            if not passes:
                return node, words
        raise AssertionError(f"the trail {trail} is active")

    def _at(self, before: str, node: str, after: str) -> tuple[bool, str]:
        """Whether a trail passes an inner node, and in words."""
        into, out = self.graph.has_edge(before, node), self.graph.has_edge(after, node)
        if into and out:
            return self._at_collider(node)
        what = "a chain" if into or out else "a fork"
        if node not in self.known:
            return True, f"{node} is {what} and not given, so open"
        if node in self.given:
            return False, f"{node} is {what} and given"
        if node in self.constants:
            return False, f"{node} is {what} and a constant ({self.graph.nodes[node]['kind']})"
        return False, f"{node} is {what} and a function of what is given"

    def _at_collider(self, node: str) -> tuple[bool, str]:
        if node in self.factors:
            return True, f"{node} is a factor, which couples its members"
        if node in self.given:
            return True, f"{node} is a collider and given, so open"
        if node in self.open_colliders:
            below = nx.descendants(self.graph, node)
            cause = next(name for name in self.graph if name in below and name in self.given | self.factors)
            what = "given" if cause in self.given else "a factor"
            return (
                True,
                f"{node} is a collider, opened by its descendant {cause}, which is {what}",
            )
        return False, f"{node} is a collider, and neither it nor a descendant is given"

    def _draw(self, trail: list[str]) -> str:
        steps = [f" -> {b}" if self.graph.has_edge(a, b) else f" <- {b}" for a, b in pairwise(trail)]
        return trail[0] + "".join(steps)

    def _knowing(self) -> str:
        return f" given {_names(self.given)}" if self.given else ""


def _determined(graph: nx.DiGraph, kinds: dict[str, str], known: set[str]) -> set[str]:
    """What is known, with the deterministic nodes that it fixes."""
    known = set(known)
    for node in nx.topological_sort(graph):
        if kinds[node] == "deterministic" and all(parent in known for parent in graph.predecessors(node)):
            known.add(node)
    return known


def _path(reached: dict, state: tuple | None) -> list[str]:
    trail: list[str] = []
    while state is not None:
        trail.append(state[0])
        state = reached[state]
    return trail[::-1]


def _simple_trails(skeleton: nx.Graph, a: str, b: str, limit: int) -> Iterable[list[str]]:
    """Trails between two nodes, shortest first, up to a number of them."""
    for count, trail in enumerate(nx.shortest_simple_paths(skeleton, a, b) if nx.has_path(skeleton, a, b) else ()):
        if count >= limit:
            return
        yield trail


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def minimal_separator(graph: nx.DiGraph, a: str, b: str) -> set[str] | None:
    """An inclusion-minimal set of variables that separates a from b, or None.

    Searched among the ancestors of a, b and the factors, which hold a separator if there is one;
    deterministic nodes count as
    functions of their parents.
    """
    kinds = dict(graph.nodes(data="kind"))
    factors = {node for node, kind in kinds.items() if kind == "factor"}
    above = set().union(*(nx.ancestors(graph, node) for node in {a, b} | factors))
    candidates = {node for node in above if kinds[node] in ("latent", "observed", "deterministic")} - {a, b}
    if _Question(graph, {a}, {b}, candidates).active_trail():
        candidates = {
            node for node in candidates if kinds[node] != "deterministic"
        }  # these may fix a or b and open nothing
        if _Question(graph, {a}, {b}, candidates).active_trail():
            return None
    kept = set(candidates)
    for node in [node for node in graph if node in candidates]:
        if not _Question(graph, {a}, {b}, kept - {node}).active_trail():
            kept.discard(node)
    return kept
