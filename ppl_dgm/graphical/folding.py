"""Folding: a long chain of sites as two slices, and the rounds of a sequential plate as one."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx

__all__ = ["fold", "merge_plates"]

_NUMBERED = re.compile(r"(.*?)_?(\d+)$")


@dataclass(frozen=True)
class _Chain:
    """Families of numbered sites that move in step: {family: {time: site}}."""

    families: dict[str, dict[int, str]]
    times: list[int]  # in the order in which they run
    order: int  # slices that a slice depends on


def fold(structure: Any, longer_than: int) -> Any:
    """Every regular chain with more than `longer_than` slices as `order + 1` slices, named x[t-1] and x[t].

    The earlier slices stand for the start of the chain and the last for its end, so that what only one end
    is joined to stays so;
    in a chain that counts down, time runs from x[t] to x[t-1].
    """
    graph = structure.graph
    chains = [chain for chain in _chains(graph) if len(chain.times) > max(longer_than, chain.order + 1)]
    if not chains:
        return structure
    names: dict[str, str] = {}
    removed: set[str] = set()
    slices: dict[str, tuple[str, int]] = {}
    notes = list(structure.notes)
    for chain in chains:
        kept = [*chain.times[: chain.order], chain.times[-1]]
        for family, members in chain.families.items():
            for place, time in enumerate(kept):
                if time in members:
                    label = _label(kept, place)
                    names[members[time]], slices[members[time]] = f"{family}[{label}]", (label, len(members))
            removed |= {site for time, site in members.items() if time not in kept}
        first, last = chain.times[0], chain.times[-1]
        notes.append(
            f"folded: {', '.join(chain.families)} for {first} to {last}, "
            f"{len(chain.times)} slices, shown as {len(kept)}."
        )
    folded = _quotient(graph, chains, names, removed, slices)
    guide = _folded_guide(structure.guide_graph, chains, names, removed, slices)
    return replace(structure, graph=folded, guide_graph=guide, notes=notes, unfolded=structure.unfolded)


def _label(kept: list[int], place: int) -> str:
    """ "t", "t-1", ...: the latest time is t, whichever way the chain runs."""
    ahead = place if kept[0] > kept[-1] else len(kept) - 1 - place
    return "t" if ahead == 0 else f"t-{ahead}"


def _quotient(
    graph: nx.DiGraph,
    chains: list[_Chain],
    names: dict[str, str],
    removed: set[str],
    slices: dict[str, tuple[str, int]],
) -> nx.DiGraph:
    """The graph of the kept slices, with the last slice joined to those before it as each slice of the
    chain is.
    """
    result = nx.DiGraph()
    for node, data in graph.nodes(data=True):
        if node not in removed:
            label, count = slices.get(node, (data["markov"], 0))
            extra = {"slices": count} if count else {}
            result.add_node(names.get(node, node), **{**data, "markov": label, **extra})
    for parent, child, data in graph.edges(data=True):
        if parent not in removed and child not in removed:
            result.add_edge(names.get(parent, parent), names.get(child, child), **data)
    for chain in chains:
        kept = [*chain.times[: chain.order], chain.times[-1]]
        where = {site: (family, chain.times.index(t)) for family, m in chain.families.items() for t, site in m.items()}
        for members in chain.families.values():
            last = members[chain.times[-1]]
            for parent in graph.predecessors(last):
                if parent in where and parent in removed:
                    family, place = where[parent]
                    lag = len(chain.times) - 1 - place
                    earlier = chain.families[family][kept[len(kept) - 1 - lag]]
                    result.add_edge(names[earlier], names[last], **graph.edges[parent, last])
    return result


def _folded_guide(
    guide: nx.DiGraph | None,
    chains: list[_Chain],
    names: dict[str, str],
    removed: set[str],
    slices: dict[str, tuple[str, int]],
) -> nx.DiGraph | None:
    """The guide with the same slices; what joined neighbouring times joins neighbouring slices."""
    if guide is None:
        return None
    result = nx.DiGraph()
    for node, data in guide.nodes(data=True):
        if node not in removed:
            label = slices.get(node, (data["markov"], 0))[0]
            result.add_node(names.get(node, node), **{**data, "markov": label})
    place = {
        site: (chain, family, chain.times.index(t))
        for chain in chains
        for family, m in chain.families.items()
        for t, site in m.items()
    }
    for parent, child, data in guide.edges(data=True):
        if parent not in removed and child not in removed:
            result.add_edge(names.get(parent, parent), names.get(child, child), **data)
        elif parent in place and child in place and place[parent][0] is place[child][0]:
            chain, family, here = place[parent]
            _, other, there = place[child]
            kept = [*chain.times[: chain.order], chain.times[-1]]
            lag = there - here  # negative where the guide runs against the model
            if 0 < abs(lag) <= chain.order:
                ends = (kept[-1 - lag], kept[-1]) if lag > 0 else (kept[-1], kept[-1 + lag])
                u, v = chain.families[family].get(ends[0]), chain.families[other].get(ends[1])
                if u in names and v in names:
                    result.add_edge(names[u], names[v], **data)
    return result


# -- finding chains ----------------------------------------------------------------------------------------


def _chains(graph: nx.DiGraph) -> list[_Chain]:
    """Groups of numbered families in which every slice, but for the first few, depends on earlier ones in
    the same way.
    """
    families = _families(graph, [n for n, d in graph.nodes(data=True) if d["kind"] not in ("parameter", "input")])
    place = {site: (family, time) for family, members in families.items() for time, site in members.items()}
    linked = nx.Graph()
    linked.add_nodes_from(families)
    lagged: set[str] = set()
    for parent, child in graph.edges:
        if parent in place and child in place:
            linked.add_edge(place[parent][0], place[child][0])
            if place[parent][1] != place[child][1]:
                lagged |= {place[parent][0], place[child][0]}
    found = []
    for group in nx.connected_components(linked):
        if group & lagged:
            chain = _regular(graph, {family: families[family] for family in families if family in group}, place)
            if chain is not None:
                found.append(chain)
    return found


def _families(graph: nx.DiGraph, nodes: Iterable[str]) -> dict[str, dict[int, str]]:
    """{stem: {number: site}} for stems with at least three consecutive numbers and one kind of site."""
    stems: dict[str, dict[int, str]] = {}
    for node in nodes:
        match = _NUMBERED.fullmatch(node)
        if match and match[1]:
            stems.setdefault(match[1], {})[int(match[2])] = node
    alike = {}
    for stem, members in stems.items():
        times = sorted(members)
        looks = {
            tuple(graph.nodes[site][key] for key in ("kind", "plates", "event_shape")) for site in members.values()
        }
        if len(times) >= 3 and times == list(range(times[0], times[-1] + 1)) and len(looks) == 1:
            alike[stem] = members
    return alike


def _regular(
    graph: nx.DiGraph, families: dict[str, dict[int, str]], place: dict[str, tuple[str, int]]
) -> _Chain | None:
    """The families as a chain, or None where slices differ in more than the start."""
    nodes = {node: i for i, node in enumerate(graph)}
    times = sorted({time for members in families.values() for time in members})
    leader = max(families.values(), key=len)
    if nodes[leader[max(leader)]] < nodes[leader[min(leader)]]:
        times.reverse()
    rank = {time: i for i, time in enumerate(times)}
    looks: dict[int, set] = {i: set() for i in range(len(times))}
    outside: dict[int, set] = {i: set() for i in range(len(times))}
    order = 0
    for family, members in families.items():
        for time, site in members.items():
            looks[rank[time]].add((family, "is here"))
            for parent in graph.predecessors(site):
                mine = parent in place and place[parent][0] in families
                lag = rank[time] - rank[place[parent][1]] if mine else 0
                order = max(order, lag)
                looks[rank[time]].add((family, place[parent][0], lag) if mine else (family, parent))
            outside[rank[time]] |= {
                (family, child)
                for child in graph.successors(site)
                if child not in place or place[child][0] not in families
            }
    if not 0 < order < len(times) - 1 or any(
        time not in members for members in families.values() for time in times[order:]
    ):
        return None
    steady = [looks[i] for i in range(order, len(times))]
    ends = {i: outside[i] for i in range(len(times))}
    middle = [ends[i] for i in range(order, len(times) - 1)]
    inner = middle[0] if middle else set()
    if any(look != steady[0] for look in steady) or any(other != inner for other in middle):
        return None
    if not inner <= ends[len(times) - 1]:
        return None
    return _Chain(families, times, order)


# -- sequential plates -------------------------------------------------------------------------------------


def merge_plates(structure: Any) -> Any:
    """The rounds x_0, x_1, ... of `for i in pyro.plate("data", n)` as one node x in the plate, where they
    are alike.
    """
    graph: nx.DiGraph = structure.graph
    families = {
        stem: members
        for stem, members in _families(graph, structure.variables).items()
        if _sequential(graph, members, structure.plates)
    }
    if not families or any(stem in graph for stem in families):
        return structure
    place = {site: (stem, i) for stem, members in families.items() for i, site in members.items()}
    looks: dict[str, set] = {}
    for stem, members in families.items():
        for i, site in members.items():
            look = frozenset(
                (place[p][0], place[p][1] - i) if p in place else (p, None) for p in graph.predecessors(site)
            )
            looks.setdefault(stem, set()).add(look)
    if any(len(look) > 1 or any(lag for _, lag in next(iter(look))) for look in looks.values()):
        return structure
    names = {site: stem for site, (stem, _) in place.items()}
    merged = nx.relabel_nodes(graph, names, copy=True)
    ordered = nx.DiGraph()
    for node in graph:
        name = names.get(node, node)
        if name not in ordered:
            ordered.add_node(name, **merged.nodes[name])
    ordered.add_edges_from(
        (u, v, data) for v in ordered for u, data in ((u, merged.edges[u, v]) for u in ordered if merged.has_edge(u, v))
    )
    guide = structure.guide_graph and nx.relabel_nodes(structure.guide_graph, names, copy=True)
    return replace(structure, graph=ordered, guide_graph=guide, unfolded=structure.unfolded)


def _sequential(graph: nx.DiGraph, members: dict[int, str], plates: dict[str, int]) -> bool:
    first = graph.nodes[next(iter(members.values()))]
    rounds = first.get("rounds")
    return bool(rounds) and plates.get(rounds) in (len(members), None)
