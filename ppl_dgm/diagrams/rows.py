"""Which row each node of a diagram stands in: parents above children, parameters above or beside, chains
side by side."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import networkx as nx
import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from .scene import EdgeMark, NodeMark

__all__ = ["Rows", "assign_rows"]

_WIDEST = 16  # nodes without edges that share a row, at most


class Rows:
    """Rows of a diagram, counted from the top.

    Attributes:
        row: {name: row}.
        beside: names of the parameters and inputs that stand beside what they govern, rather than above it.
        below: names of what stands below its children.
    """

    def __init__(self, row: dict[str, int], beside: set[str], below: set[str]) -> None:
        lowest = min(row.values(), default=0)
        self.row = {name: value - lowest for name, value in row.items()}
        self.beside, self.below = beside, below


def assign_rows(nodes: dict[str, NodeMark], edges: list[EdgeMark]) -> Rows:
    """Rows by the shortest total length of edges, each pointing down by at least one row.

    Parameters and inputs without parents come last: above the topmost node that they govern where no plate
    that they
    are not in lies there, beside it otherwise.
    """
    model = [(e.source, e.target) for e in edges if e.kind != "guide"]
    children, guided = _adjacent(model), _adjacent((e.source, e.target) for e in edges if e.kind == "guide")
    has_parents = {e.target for e in edges}
    loose = {
        name
        for name, node in nodes.items()
        if node.kind in ("parameter", "input") and name not in has_parents and (children[name] or guided[name])
    }
    core = [name for name in nodes if name not in loose]
    arrows = [_downward(nodes, u, v) for u, v in model if u in nodes and u not in loose]
    arrows += [
        (e.source, e.target)
        for e in edges
        if e.kind == "guide" and nodes[e.source].guide_only and e.source not in loose
    ]
    merged = _series(nodes, arrows, model)
    row = _layers(core, arrows, merged)
    _wrap(row, core, arrows)
    first, last = _extents(nodes, row)
    series = {row[name] for name in merged}
    below = set()

    def hang(name: str, governed: list[str]) -> bool:
        """Puts what would interrupt a series, the emission's parameters, below its children."""
        top, bottom = min(row[child] for child in governed), max(row[child] for child in governed)
        if top - 1 not in series or top != bottom or len(governed) < 2 or top + 1 in series:
            return False
        if any(last[plate] > top for child in governed for plate in nodes[child].plates - nodes[name].plates):
            return False
        row[name] = top + 1
        below.add(name)
        return True

    for name in core:
        if name not in merged and name not in has_parents and children[name] and row[name] in series:
            hang(name, children[name])
    beside = set()
    for name in nodes:
        if name not in loose:
            continue
        governed = [child for child in (children[name] or guided[name]) if child in row]
        if not governed:
            row[name] = 0
            continue
        if not nodes[name].guide_only and hang(name, governed):
            continue
        top = min(governed, key=lambda child: row[child])
        outside = nodes[top].plates - nodes[name].plates
        if nodes[name].guide_only or any(first[plate] < row[top] for plate in outside):
            row[name] = int(sorted(row[child] for child in governed)[(len(governed) - 1) // 2])
            beside.add(name)
        else:
            row[name] = row[top] - 1
    return Rows(row, beside, below)


def _adjacent(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for u, v in pairs:
        found[u].append(v)
    return found


def _downward(nodes: dict[str, NodeMark], u: str, v: str) -> tuple[str, str]:
    """A factor stands between the latent and the observed nodes that it joins."""
    return (v, u) if nodes[v].kind == "factor" and nodes[u].kind == "observed" else (u, v)


def _extents(nodes: dict[str, NodeMark], row: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The first and the last row of each plate."""
    first: dict[str, int] = defaultdict(lambda: 10**9)
    last: dict[str, int] = defaultdict(lambda: -1)
    for name, value in row.items():
        for plate in nodes[name].plates:
            first[plate], last[plate] = min(first[plate], value), max(last[plate], value)
    return first, last


def _series(nodes: dict[str, NodeMark], arrows: list[tuple[str, str]], model: list[tuple[str, str]]) -> dict[str, str]:
    """{node: first node of its series}, for Markov chains such as z_1 -> z_2 -> ... whose states have
    children of their own,
    or several parents in common.

    They run from left to right, as time does in a textbook, if that leaves the rest of the graph downward.
    """
    joined, children = set(arrows), _adjacent(arrows)
    parents = _adjacent((v, u) for u, v in model)
    stems: dict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for name, node in nodes.items():
        found = re.fullmatch(r"(.*?)[_\[]?(\d+|(?<=[_\[])[A-Za-z]([-+]\d+)?)\]?", name)
        if found and found[1] and node.kind not in ("parameter", "input", "factor"):
            stems[found[1], node.plates].append(name)
    merged: dict[str, str] = {}
    for members in stems.values():
        chain = [v for v in members if any((u, v) in joined or (v, u) in joined for u in members)]
        steps = sum((u, v) in joined or (v, u) in joined for u, v in pairwise(chain))
        with_children = sum(any(child not in members for child in children[name]) for name in chain)
        counts = Counter(parent for name in chain for parent in parents[name] if parent not in members)
        shared = sum(count > 1 for count in counts.values())
        if len(chain) < 2 or steps < len(chain) - 1 or (with_children < 2 and shared < 2):
            continue
        trial = {**merged, **dict.fromkeys(chain, chain[0])}
        graph = nx.DiGraph((trial.get(u, u), trial.get(v, v)) for u, v in arrows if trial.get(u, u) != trial.get(v, v))
        if nx.is_directed_acyclic_graph(graph):
            merged = trial
    return merged


def _layers(core: list[str], arrows: list[tuple[str, str]], merged: dict[str, str]) -> dict[str, int]:
    """The rows of least total edge length; the linear program has whole numbers as its solution."""
    heads = list(dict.fromkeys(merged.get(name, name) for name in core))
    index = {name: i for i, name in enumerate(heads)}
    pairs = list(dict.fromkeys((merged.get(u, u), merged.get(v, v)) for u, v in arrows))
    pairs = _acyclic([(index[u], index[v]) for u, v in pairs if u != v and u in index and v in index])  # type: ignore[misc]
    if not pairs:
        return dict.fromkeys(core, 0)
    start, end = np.array(pairs).T
    cost = np.bincount(end, minlength=len(heads)) - np.bincount(start, minlength=len(heads)) + 1e-4
    line = np.arange(len(pairs))
    ones = np.ones(len(pairs))
    matrix = coo_matrix((np.r_[ones, -ones], (np.r_[line, line], np.r_[start, end])), (len(pairs), len(heads)))
    solved = linprog(cost, A_ub=matrix, b_ub=-ones, bounds=(0, len(heads)), method="highs-ds")
    return {name: round(solved.x[index[merged.get(name, name)]]) for name in core}


def _acyclic(pairs: list) -> list:
    """The pairs, those that would close a cycle turned round."""
    graph = nx.DiGraph(pairs)
    if nx.is_directed_acyclic_graph(graph):
        return pairs
    kept: nx.DiGraph = nx.DiGraph()
    for u, v in pairs:
        kept.add_edge(*((v, u) if u in kept and v in kept and nx.has_path(kept, v, u) else (u, v)))
    return list(kept.edges)


def _wrap(row: dict[str, int], core: list[str], arrows: list[tuple[str, str]]) -> None:
    """Spreads nodes without edges over several rows if they would overfill one."""
    joined = {name for arrow in arrows for name in arrow}
    alone = [name for name in core if name not in joined]
    if len(alone) > _WIDEST:
        lines = -(-len(alone) // _WIDEST)
        length = -(-len(alone) // lines)
        for i, name in enumerate(alone):
            row[name] = i // length
