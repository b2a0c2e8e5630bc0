"""What an amortised guide conditions on, against what the true posterior depends on."""

from dataclasses import dataclass
from typing import Any

import networkx as nx

from ..errors import ProgramError
from .separation import separate

__all__ = ["Needs", "required_inputs"]


@dataclass(frozen=True)
class Needs:
    """The inputs of one latent site's guide.

    Attributes:
        latent: the site.
        guide: what the guide conditions it on.
        posterior: what p(latent | data, latents that the guide draws before it) depends on.
        missing: needed but not used, so that the guide cannot be exact.
        spare: used but not needed.
    """

    latent: str
    guide: frozenset[str]
    posterior: frozenset[str]

    @property
    def missing(self) -> frozenset[str]:
        return self.posterior - self.guide

    @property
    def spare(self) -> frozenset[str]:
        return self.guide - self.posterior

    def __str__(self) -> str:
        def listed(names: frozenset[str]) -> str:
            return ", ".join(sorted(names)) or "nothing"

        text = f"{self.latent}: the guide conditions on {listed(self.guide)}; "
        text += f"the posterior depends on {listed(self.posterior)}."
        if self.missing:
            text += f" Missing: {listed(self.missing)}, so this guide cannot be exact."
        if self.spare:
            text += f" Not needed: {listed(self.spare)}."
        return text


def required_inputs(structure: Any, latent: str) -> Needs:
    """Compare a guide's parents of a site with the smallest set that the exact posterior depends on.

    The guide draws the latent sites in an order; the exact posterior factorises in that order too, and each
    factor depends
    on those of its predecessors and of the data from which the site is not d-separated by the others.

    Raises:
        ProgramError: there is no guide, or it does not draw the site.

    Source: S. Webb et al. (2018), Faithful inversion of generative models for effective amortized inference.
    """
    guide: nx.DiGraph | None = structure.guide_graph
    if guide is None:
        raise ProgramError(
            f"{structure.name!r} has no guide here; pass guide=... to structure, "
            "or the observations that its guide takes."
        )
    if latent not in guide:
        drawn = [node for node, kind in guide.nodes(data="kind") if kind == "latent"]
        raise ProgramError(f"the guide does not draw {latent!r}; it draws {', '.join(drawn)}.")
    graph = structure.graph
    drawn = [node for node, kind in guide.nodes(data="kind") if kind == "latent" and node in graph]
    before = drawn[: drawn.index(latent)]
    data = [node for node, kind in graph.nodes(data="kind") if kind in ("observed", "input")]
    candidates = {*before, *data}
    used = _used(guide, latent) & candidates
    needed = {node for node in sorted(candidates) if not separate(graph, {latent}, {node}, candidates - {node})}
    return Needs(latent, frozenset(used), frozenset(needed))


def _used(guide: nx.DiGraph, latent: str) -> set[str]:
    """Parents in the guide, seen through its auxiliary and deterministic sites."""
    used: set[str] = set()
    waiting = list(guide.predecessors(latent))
    while waiting:
        node = waiting.pop()
        if node in used:
            continue
        used.add(node)
        if guide.nodes[node]["kind"] == "deterministic":
            waiting += list(guide.predecessors(node))
    return used
