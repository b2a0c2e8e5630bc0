"""Circuits whose graph is found in the data: LearnSPN, cutset networks, forests; the graph travels with the weights."""

import itertools
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from ppl_dgm.distributions.circuit.layers import compile_layers
from ppl_dgm.distributions.circuit.structure import check_structure
from ppl_dgm.errors import FileError, ProgramError

from .counted import CountedCircuit, Tables
from .cutset import learn_cutset
from .forest import learn_forest
from .graph import GraphParameters, graph_from_json, graph_to_json
from .learnspn import learn_spn

__all__ = ["FOUND_STRUCTURES", "FoundParameters"]

FOUND_STRUCTURES: dict[str, Callable[..., CountedCircuit]] = {
    "learn-spn": learn_spn,
    "cutset": learn_cutset,
    "forest": learn_forest,
}

_GRID = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)
_DEFAULT_COUNT = 1.0
_CHOICES: dict[str, dict[str, tuple[float, ...]]] = {"learn-spn": {"significance": (1e-3, 1e-6, 1e-12, 1e-24)}}


@dataclass(frozen=True)
class _Found:
    """A circuit and its mean log likelihood on the validation rows."""

    score: float
    pseudo_count: float
    graph: nx.DiGraph
    leaves: Tensor
    weights: Tensor
    options: dict[str, Any]


class FoundParameters(GraphParameters):
    """The leaves and sum weights of a graph that `fit_closed_form` or `em_start` finds.

    Before data are seen the variables are independent. The graph is the buffer `found` (its compressed text), so that
    the weights alone rebuild the circuit.

    Arguments:
        variables, values: D and K.
        structure: a name in `FOUND_STRUCTURES`.
        pseudo_count: spread over each sum evenly and over each leaf as its variable's distribution; None: the best on
            the validation split, or 1 where there is none.
        options: further arguments of the search.
    """

    found: Tensor

    def __init__(
        self, variables: int, values: int, structure: str, pseudo_count: float | None, options: dict[str, Any] | None
    ) -> None:
        super().__init__(_independent(variables), values, _DEFAULT_COUNT if pseudo_count is None else pseudo_count)
        self.name, self.values, self.options = structure, values, dict(options or {})
        self.given_count = pseudo_count
        self.register_buffer("found", _packed(self.structure.graph))

    @torch.no_grad()
    def fit_closed_form(self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
        """Search for the graph, then count; missing entries are filled with draws from their variable's distribution.

        What is not given is chosen on `valid`: the pseudo-count, and the significance of LearnSPN.

        Raises:
            ProgramError: the search does not take an option.
        """
        self.pseudo_count = _DEFAULT_COUNT if self.given_count is None else self.given_count
        if valid is None or not len(valid[0]):
            self.em_start(*train)
            return self._notes({})
        best: _Found | None = None
        for options in self._tried():
            made, base = self._search(*train, **options)
            self._install(made.weighted(base.cpu().numpy(), self.pseudo_count or 0.0))
            here = self._best_count(made.tables(self._plan.names, base.cpu().numpy()), *valid, options)
            if best is None or here.score > best.score:
                best = here
        assert best is not None
        self._install(best.graph)
        self.pseudo_count = best.pseudo_count
        self._take(best.leaves, best.weights)
        return self._notes(best.options)

    @torch.no_grad()
    def em_start(self, x: Tensor, observed: Tensor) -> None:
        """Search for the graph, and count."""
        made, base = self._search(x, observed)
        self._install(made.weighted(base.cpu().numpy(), self.pseudo_count or 0.0))

    def _tried(self) -> list[dict[str, Any]]:
        """The options that are compared on the validation rows: those of `_CHOICES` that are not given."""
        free = {name: values for name, values in _CHOICES.get(self.name, {}).items() if name not in self.options}
        return [dict(zip(free, values, strict=True)) for values in itertools.product(*free.values())]

    def _best_count(self, tables: Tables, x: Tensor, observed: Tensor, options: dict[str, Any]) -> "_Found":
        """The present graph with the pseudo-count that suits the validation rows best."""
        mask = None if bool(observed.all()) else observed
        grid = _GRID if self.given_count is None else (self.given_count,)
        found = []
        for a in grid:
            if a > 0:
                self._take(*map(torch.as_tensor, tables(a)))
            score = float(self.evaluator().log_evidence(x, mask).mean())
            leaves, weights = self.leaf_logits.detach(), self.sum_logits.detach()
            found.append(_Found(score, a, self.structure.graph, leaves, weights, options))
        return max(found, key=lambda one: one.score)

    def _notes(self, options: dict[str, Any]) -> dict[str, Any]:
        graph = self.structure.graph
        sizes = {"nodes": len(graph), "edges": graph.number_of_edges()}
        return {"pseudo_count": self.pseudo_count, **sizes, **self.options, **options}

    def _search(self, x: Tensor, observed: Tensor, **options: Any) -> tuple[CountedCircuit, Tensor]:
        """The counted circuit, and the variables' distributions [D, K]."""
        seen = torch.where(observed, x, self.values)  # missing entries count in a column of their own
        counts = torch.stack([torch.bincount(column, minlength=self.values + 1) for column in seen.T])
        base = counts[:, : self.values].double() + 1 / self.values
        base = base / base.sum(-1, keepdim=True)
        if not bool(observed.all()):
            drawn = torch.multinomial(base, len(x), replacement=True).T  # [n, D]
            x = torch.where(observed, x, drawn)
        try:
            return FOUND_STRUCTURES[self.name](x, self.values, **self.options, **options), base
        except TypeError as error:
            raise ProgramError(f"structure {self.name!r} does not take the options {self.options} ({error}).") from None

    def _install(self, graph: nx.DiGraph) -> None:
        """Become this circuit."""
        self.structure = check_structure(graph, self.values)
        self._plan, leaves, weights = compile_layers(self.structure, self.leaf_logits.device)
        self._take(leaves, weights)
        self.found = _packed(graph).to(self.leaf_logits.device)

    def _take(self, leaves: Tensor, weights: Tensor) -> None:
        """Other parameters, of the present dtype and device."""
        self.leaf_logits = nn.Parameter(leaves.to(self.leaf_logits))
        self.sum_logits = nn.Parameter(weights.to(self.sum_logits))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """The graph as in the file; the sizes are then the file's."""
        state, prefix = args[:2]
        found = state.get(prefix + "found")
        if found is not None and not torch.equal(found.cpu(), self.found.cpu()):
            self._install(_unpacked(found))
        super()._load_from_state_dict(*args, **kwargs)


def _independent(variables: int) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_node("root", kind="product")
    for v in range(variables):
        graph.add_node(f"x{v}", kind="input", variable=v)
        graph.add_edge("root", f"x{v}")
    return graph


def _packed(graph: nx.DiGraph) -> Tensor:
    """The graph without its numbers, which are parameters, but with what is impossible; bytes, uint8."""
    bare = nx.DiGraph()
    for name, data in graph.nodes(data=True):
        kept = {key: value for key, value in data.items() if key != "probs"}
        probs = data.get("probs")
        if probs is not None and min(probs) == 0:
            positive = sum(p > 0 for p in probs)
            kept["probs"] = [float(p > 0) / positive for p in probs]
        bare.add_node(name, **kept)
    bare.add_edges_from(graph.edges)
    text = json.dumps(graph_to_json(bare), separators=(",", ":"))
    return torch.frombuffer(bytearray(zlib.compress(text.encode(), 6)), dtype=torch.uint8).clone()


def _unpacked(data: Tensor) -> nx.DiGraph:
    try:
        return graph_from_json(json.loads(zlib.decompress(bytes(data.cpu().tolist()))))
    except (zlib.error, json.JSONDecodeError) as error:
        raise FileError(f"the weights hold no circuit that can be read ({error}); restore them from a copy.") from None
