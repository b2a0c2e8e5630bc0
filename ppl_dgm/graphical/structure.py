"""structure: the graph of a program, and the object that answers questions about it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from ..errors import ProgramError
from ..text import table
from . import factors, folding, needs, pgm_interop, separation, unrolling

__all__ = ["Structure", "structure"]

_FOLD_ABOVE = 8  # chains of more slices than this are folded


def structure(program: Any, *args: Any, guide: Any = True, **kwargs: Any) -> "Structure":
    """The graph of a program: sites, parameters, inputs, what depends on what, and the plates.

    An edge u -> v says that the distribution of v (or its value, where v is deterministic) depends on u
    when all other
    sites are held fixed. Edges are found twice: by provenance, which follows each value through torch, and
    by a probe,
    which changes one value under replay and sees whose distribution changes. The probe finds what leaves
    torch
    (`.item()`, `.numpy()`, Python branches); each edge says who found it.

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: go to the model, observations first; a program of the zoo needs none, and then
            observes a draw of its own.
        guide: True, the program's guide if it has one; False, none; or another guide (a function or an
            autoguide's name).

    Returns:
        A `Structure`; print it. Chains of more than 8 slices come folded to two; `.unfolded` has all of them.

    Raises:
        ProgramError: the program cannot run on these arguments; the message says why.

    Source: D. Wingate et al. (2011) for provenance; S. Webb et al. (2018) for what a guide needs.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def rain():
        ...     r = pyro.sample("rain", dist.Bernoulli(0.2))
        ...     s = pyro.sample("sprinkler", dist.Bernoulli(0.4 - 0.39 * r))
        ...     pyro.sample("wet", dist.Bernoulli(0.05 + 0.45 * r + 0.45 * s))
        >>> sorted(structure(rain).graph.edges)
        [('rain', 'sprinkler'), ('rain', 'wet'), ('sprinkler', 'wet')]
    """
    from .finding import find

    found = find(program, args, kwargs, guide)
    whole = Structure(**found)
    merged = folding.merge_plates(whole)
    folded = folding.fold(merged, longer_than=_FOLD_ABOVE)
    return whole if folded is whole else folded


@dataclass(repr=False)
class Structure:
    """A program's graph.

    Attributes:
        name: of the program.
        graph: networkx `DiGraph` in the order of the program. Node attributes: `kind` ("latent",
            "observed", "deterministic",
            "factor", "parameter", "input"), `dist` (name of the distribution), `shape`, `event_shape`,
            `support` (in words),
            `discrete`, `plates` (names, outermost first), `size` (numbers in it), `markov` (inside
            `pyro.markov`, or the time of a
            folded slice, "t" or "t-1"), `enumerated`, `masked` (its density counts for nothing),
            `sometimes` (not in every
            run). Edge attribute `found_by`: "provenance", "probe" or "both".
        plates: {plate: size}.
        subsamples: {plate: subsample size}, where that is smaller.
        symbolic: plates whose size nobody gave (a program of the zoo without data).
        guide_graph: the same for the guide, edges from what it conditions on; None without a guide.
        notes: sentences on what the graph does not show.
        unfolded: the structure with every site by its own name; itself, if nothing was folded.
    """

    name: str
    graph: nx.DiGraph
    plates: dict[str, int] = field(default_factory=dict)
    subsamples: dict[str, int] = field(default_factory=dict)
    symbolic: frozenset[str] = frozenset()
    guide_graph: nx.DiGraph | None = None
    notes: list[str] = field(default_factory=list)
    unfolded: "Structure" = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.unfolded is None:
            self.unfolded = self

    # -- nodes ----------------------------------------------------------------------------------------------

    def kind(self, *kinds: str) -> list[str]:
        """Names of the nodes of these kinds, in the order of the program."""
        return [node for node, data in self.graph.nodes(data=True) if data["kind"] in kinds]

    @property
    def variables(self) -> list[str]:
        """Random and deterministic sites, in the order of the program."""
        return self.kind("latent", "observed", "deterministic")

    def parents(self, node: str) -> set[str]:
        """What the distribution of `node` depends on directly, parameters and inputs included."""
        return set(self.graph.predecessors(self._check(node)))

    def children(self, node: str) -> set[str]:
        """Whose distribution depends on `node` directly."""
        return set(self.graph.successors(self._check(node)))

    def ancestors(self, node: str) -> set[str]:
        """Everything with a directed path to `node`."""
        return set(nx.ancestors(self.graph, self._check(node)))

    def descendants(self, node: str) -> set[str]:
        """Everything with a directed path from `node`."""
        return set(nx.descendants(self.graph, self._check(node)))

    # -- independence ---------------------------------------------------------------------------------------

    def markov_blanket(self, node: str) -> set[str]:
        """Parents, children, children's other parents, and whoever shares a factor: given these, `node` is
        independent of all
        other variables. Parameters and inputs are constants and left out."""
        return set(self.moral().neighbors(self._check(node, self.variables)))

    def d_separated(
        self, a: str | Iterable[str], b: str | Iterable[str], given: str | Iterable[str] = ()
    ) -> separation.Separation:
        """Whether the graph makes a and b independent given others; the result says why.

        Parameters and inputs are constants, and so is a deterministic site all of whose parents are given.
        Factors couple
        their members, as an observed common child does.

        Arguments:
            a, b, given: names, or several of them.

        Returns:
            A `Separation`: true or false, `.reason` a sentence, `.trail` the active trail (empty if
                separated).

        Raises:
            ProgramError: an unknown name, or one that stands on two sides.

        Source: J. Pearl (1988); D. Geiger, T. Verma and J. Pearl (1990) for deterministic nodes.
        """
        left, right, known = (self._names(names) for names in (a, b, given))
        return separation.separate(self.graph, left, right, known)

    def minimal_separator(self, a: str, b: str) -> set[str] | None:
        """A smallest-by-inclusion set of variables given which a and b are independent; None if there is
        none (they are joined
        by an edge or a factor)."""
        return separation.minimal_separator(self.graph, self._check(a, self.variables), self._check(b, self.variables))

    def moral(self) -> nx.Graph:
        """The moral graph over the variables: an edge between two that share an edge, a child or a factor."""
        return factors.moral(self.graph)

    # -- factors --------------------------------------------------------------------------------------------

    def factor_graph(self) -> nx.Graph:
        """Bipartite graph of variables (`bipartite=0`) and factors (`bipartite=1`, named "p(x | z)")."""
        return factors.factor_graph(self.graph)

    def factorisation(self) -> factors.Factorisation:
        """The joint density as a product, a string with `.latex()` and `.factors`."""
        return factors.Factorisation(self.graph, self.plates)

    # -- other structures -----------------------------------------------------------------------------------

    def do(self, *nodes: str) -> "Structure":
        """The structure after an intervention: `nodes` are set from outside, so that nothing points to them
        any more.
        """
        return unrolling.intervene(self, [self._check(node, self.variables) for node in nodes])

    def unroll(self, copies: dict[str, int]) -> "Structure":
        """Plates written out: `copies` {plate: n} replaces each node x in the plate by x[0], ..., x[n-1].

        Two nodes of one plate stay joined copy by copy, which is what a plate promises; a node outside it
        is joined to all.
        """
        return unrolling.unroll(self, copies)

    def fold(self) -> "Structure":
        """Chains x_1, x_2, ... of any length as two slices, x[t-1] and x[t]."""
        return folding.fold(folding.merge_plates(self.unfolded), longer_than=2)

    def required_inputs(self, latent: str) -> needs.Needs:
        """What the guide conditions `latent` on, against what the true posterior depends on (in the guide's
        order of latents).
        """
        return needs.required_inputs(self, self._check(latent, self.kind("latent")))

    def to_pgmpy(self) -> Any:
        """The variables and their edges as a pgmpy `DAG` (pgmpy must be installed)."""
        return pgm_interop.to_pgmpy(self)

    @classmethod
    def from_pgmpy(cls, network: Any) -> "Structure":
        """The structure of a pgmpy network (or of any acyclic networkx `DiGraph`)."""
        return pgm_interop.from_pgmpy(cls, network)

    # -- words ----------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        rows = []
        for node, data in self.graph.nodes(data=True):
            plates = " ".join(f"{plate}[{self.plates[plate]}]" for plate in data["plates"])
            about = data["dist"] or (f"{data['size']} numbers" if data["kind"] == "parameter" else "")
            parents = ", ".join(self.graph.predecessors(node))
            rows.append((node, data["kind"], about, _shape(data["shape"]), plates, parents))
        lines = [self.name, table(("node", "kind", "distribution", "shape", "plates", "depends on"), rows)]
        hidden = [f"{u} -> {v}" for u, v, by in self.graph.edges(data="found_by") if by == "probe"]
        if hidden:
            lines.append(f"found by the probe alone: {', '.join(hidden)}")
        if self.guide_graph is not None:
            edges = [
                f"{u} -> {v}" for u, v in self.guide_graph.edges if self.guide_graph.nodes[u]["kind"] != "parameter"
            ]
            lines.append(f"guide: {', '.join(edges) or 'conditions on nothing'}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _names(self, names: str | Iterable[str]) -> set[str]:
        return {self._check(name) for name in ([names] if isinstance(names, str) else names)}

    def _check(self, name: str, among: Iterable[str] | None = None) -> str:
        known = list(self.graph if among is None else among)
        if name in known:
            return name
        if name in self.graph:
            raise ProgramError(
                f"{name!r} is a {self.graph.nodes[name]['kind']}; this question is about {', '.join(known)}."
            )
        if name in self.unfolded.graph:
            raise ProgramError(f"{name!r} is folded into {', '.join(known)}; ask the same of .unfolded.")
        raise ProgramError(f"{self.name!r} has no node {name!r}; it has {', '.join(known)}.")


def _shape(shape: Any) -> str:
    return "" if shape is None else str(tuple(shape))
