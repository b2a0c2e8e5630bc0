"""Finding a program's graph: recorded runs, the probe, and how their findings become nodes and edges."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import networkx as nx
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._pytree import tree_map

from ..checking import explain, support_in_words
from ..data import check_observations
from ..errors import DgmError, ProgramError
from ..program import Program, as_program
from ..randomness import seeded
from ..tasks import evaluating
from ..text import listed
from .constants import Parameter, copied, parameters
from .probe import Probe, Source
from .provenance import Region, positions
from .recording import Record, Recording, base_name, is_subsample, record

__all__ = ["find"]

_SEEDS = (0, 1)
_SLOW = 0.1  # seconds; a program that takes longer for one run is recorded once


def find(program: Any, args: tuple, kwargs: dict, guide: Any) -> dict[str, Any]:
    """The fields of a `Structure`."""
    program = as_program(program, None if guide in (True, False, None) else guide)
    args, symbolic = _arguments(program, args, kwargs)
    with program.running(), evaluating(program):
        seconds, taken = _try(program, args, kwargs, program.run_model)
        known = parameters(program, taken)
        seeds = _SEEDS if seconds < _SLOW else _SEEDS[:1]
        runs = [record(program, program.run_model, args, kwargs, known, seed) for seed in seeds]
        finder = _Finder(program, args, kwargs, known, runs)
        graph, notes = finder.graph()
        guide_graph = None
        if guide is not False and program.has_guide:
            guide_graph, more = finder.guide_graph(graph)
            notes += more
    plates, subsamples = _plates(runs)
    return {
        "name": program.name,
        "graph": graph,
        "plates": plates,
        "subsamples": subsamples,
        "symbolic": symbolic & plates.keys(),
        "guide_graph": guide_graph,
        "notes": notes,
    }


def _arguments(program: Program, args: tuple, kwargs: dict) -> tuple[tuple, frozenset[str]]:
    """The model's arguments: checked observations, or a draw of the program's own where it takes some and
    none were given.
    """
    if args and hasattr(args[0], "train"):
        args = (args[0].train, *args[1:])
    if args and program.observed is not None and isinstance(args[0], Tensor):
        args = (
            check_observations(args[0], observed=program.observed, support=program.support, site=program.site),
            *args[1:],
        )
    if not args and not kwargs and program.observed is not None and program.draws_n:
        with torch.no_grad(), seeded(0), program.running(), evaluating(program):
            drawn = poutine.trace(program.run_model).get_trace(n=2).nodes
        data = drawn.get(program.site)
        if data is not None and (data["infer"] or {}).get("_deterministic"):  # its parts are sites of their own
            return (), frozenset({"data"})
        if data is not None:
            return (data["value"],), frozenset({"data"})
    return tree_map(lambda leaf: leaf.to(program.device) if isinstance(leaf, Tensor) else leaf, args), frozenset()


def _try(program: Program, args: tuple, kwargs: dict, story: Callable) -> tuple[float, set[str]]:
    """One plain run, which makes `pyro.param` values exist: its seconds and its sites.

    Raises:
        ProgramError: it fails; with the sentence that `check` has for that.
    """
    begin = time.process_time()
    args, kwargs = copied(args, kwargs)
    try:
        with torch.no_grad(), seeded(0):
            trace = poutine.trace(story).get_trace(*args, **kwargs)
    except DgmError:
        raise
    except Exception as error:
        sentence = explain(program, args, kwargs, error) or f"{program.name!r} cannot run on these arguments: {error}."
        raise ProgramError(sentence) from error
    names = {name for name, node in trace.nodes.items() if node["type"] == "sample"}
    return time.process_time() - begin, names


class _Drawing(Messenger):
    """Draws what the program observes, so that other values of it are at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        plain = msg["infer"].get("_deterministic") or type(msg["fn"]).__name__ in ("Unit", "_Subsample")
        if msg["is_observed"] and not plain:
            msg["value"], msg["done"], msg["is_observed"] = None, False, False

    def _pyro_post_sample(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor) and not is_subsample(msg["fn"]):
            self.values[msg["name"]] = msg["value"].detach()


class _Finder:
    """Nodes and edges of one program.

    Arguments:
        program, args, kwargs: what to run.
        known: its parameters.
        runs: recorded runs of the model under several seeds.
    """

    def __init__(
        self, program: Program, args: tuple, kwargs: dict, known: dict[str, Parameter], runs: list[Recording]
    ) -> None:
        self.program, self.args, self.kwargs, self.known, self.runs = program, args, kwargs, known, runs
        self._drawn: dict[int, dict[str, Tensor]] = {}
        # where in the inputs the observed sites stand
        self.held = {
            name: [r for r in positions(site.held)]
            for run in runs
            for name, site in run.sites.items()
            if site.kind == "observed"
        }
        self.sites: dict[str, Record] = {}
        for run in sorted(runs, key=lambda run: -len(run.sites)):
            for name, site in run.sites.items():
                self.sites.setdefault(name, site)

    # -- the model ------------------------------------------------------------------------------------------

    def graph(self) -> tuple[nx.DiGraph, list[str]]:
        """The model's graph, and notes on it."""
        model = self.program.run_model
        traced: dict[str, set[str]] = {}
        for run in self.runs:
            for name, site in run.sites.items():
                traced.setdefault(name, set()).update(self._names(site.parents, name, list(run.sites)))
        notes, probed = [], set()
        for run in self._distinct():
            probe = Probe(self.program, model, self.args, self.kwargs, run, self._draws)
            order = {name: i for i, name in enumerate(run.sites)}
            sources = [
                Source(name, name, "site", i, self.held.get(name, []))
                for name, i in order.items()
                if run.sites[name].kind != "factor"
            ]
            probed |= probe.all_edges(sources + self._constants(run), traced, self._escaped(run))
            notes += _probe_notes(probe)
        notes += self._stability()
        return self._assemble(traced, probed), list(dict.fromkeys(notes))

    def _distinct(self) -> list[Recording]:
        """One run for each set of sites."""
        return list({tuple(run.sites): run for run in reversed(self.runs)}.values())

    def _names(self, found: frozenset, site: str, order: list[str]) -> set[str]:
        """Sources as node names: a part of an input stands for the observed sites that are read from it, if
        any.
        """
        names = {source for source in found if not isinstance(source, Region)}
        for region in positions(found):
            readers = [other for other, mine in self.held.items() if any(region.overlaps(own) for own in mine)]
            earlier = [
                name for name in readers if name in order and site in order and order.index(name) < order.index(site)
            ]
            names |= set(earlier)
            if not readers or (not earlier and site not in readers):
                names.add(self._input_name(region.name))
        return names - {site}

    def _input_name(self, name: str) -> str:
        return f"{name} (input)" if name in self.sites or name in self.known else name

    def _constants(self, run: Recording) -> list[Source]:
        """Parameters and inputs to be changed; an input that is data is changed with its sites."""
        data = {region.name for regions in self.held.values() for region in regions}
        inputs = [Source(name, self._input_name(name), "input") for name in run.inputs if name not in data]
        return [Source(name, name, "parameter", parameter=node) for name, node in self.known.items()] + inputs

    def _escaped(self, run: Recording) -> set[str]:
        names = {source for source in run.escaped if not isinstance(source, Region)}
        for region in positions(run.escaped):
            names |= {name for name, mine in self.held.items() if any(region.overlaps(own) for own in mine)} or {
                region.name
            }
        return names

    def _draws(self, turn: int) -> dict[str, Tensor]:
        """Values of one more run, nothing observed."""
        if turn not in self._drawn:
            drawing = _Drawing()
            args, kwargs = copied(self.args, self.kwargs)
            try:
                with torch.no_grad(), seeded(100 + turn), pyro.validation_enabled(False), drawing:
                    self.program.run_model(*args, **kwargs)
            except Exception:  # what cannot be drawn is disturbed instead
                drawing.values = {}
            self._drawn[turn] = drawing.values
        return self._drawn[turn]

    def _stability(self) -> list[str]:
        """A note where the sites are not the same in every run."""
        always = self._always()
        loose = [name for name in self.sites if name not in always]
        return [_differing(loose)] if loose else []

    def _always(self) -> set[str]:
        drawn = [set(values) for values in self._drawn.values()]
        factors = {name for name, site in self.sites.items() if site.kind == "factor"}
        return set.intersection(*(set(run.sites) for run in self.runs), *(names | factors for names in drawn if names))

    # -- assembling -----------------------------------------------------------------------------------------

    def _assemble(self, traced: dict[str, set[str]], probed: set[tuple[str, str]]) -> nx.DiGraph:
        graph = nx.DiGraph()
        always = self._always()
        incoming: dict[str, set[str]] = {name: set(traced.get(name, ())) for name in self.sites}
        for parent, child in probed:
            incoming[child].add(parent)
        constants = {**self.known}
        for name in _sorted_sites(self.runs, self.sites):
            parents = incoming[name]
            for parent in sorted(
                parents - self.sites.keys(),
                key=lambda p: (list(constants).index(p) if p in constants else 999, p),
            ):
                if parent not in graph:
                    self._add_constant(graph, parent)
            graph.add_node(name, **_site_attributes(self.sites[name], name not in always))
        for name in [node for node in graph if node in self.sites]:
            for parent in graph:
                if parent in incoming[name]:
                    by = (parent in traced.get(name, ())) + 2 * ((parent, name) in probed)
                    graph.add_edge(parent, name, found_by=("", "provenance", "probe", "both")[by])
        return graph

    def _add_constant(self, graph: nx.DiGraph, name: str) -> None:
        empty = {
            "support": "",
            "event_shape": (),
            "discrete": False,
            "plates": (),
            "markov": False,
            "enumerated": False,
        }
        empty |= {"masked": False, "sometimes": False}
        node = self.known.get(name)
        if node is not None:
            graph.add_node(name, kind="parameter", dist=node.module, shape=node.shape, size=node.size, **empty)
            return
        leaf = self.runs[0].inputs.get(name.removesuffix(" (input)"))
        shape = None if leaf is None else tuple(leaf.shape)
        kind = "parameter" if leaf is None else "input"
        size = 0 if leaf is None else leaf.numel()
        graph.add_node(name, kind=kind, dist="", shape=shape, size=size, **empty)

    # -- the guide ------------------------------------------------------------------------------------------

    def guide_graph(self, model: nx.DiGraph) -> tuple[nx.DiGraph | None, list[str]]:
        """The guide's graph: latent sites as the guide draws them, and what they depend on."""
        guide = self.program.run_guide
        try:
            with torch.no_grad(), seeded(0), pyro.validation_enabled(False):
                args, kwargs = copied(self.args, self.kwargs)
                drawn = poutine.trace(guide).get_trace(*args, **kwargs).nodes
            taken = {name for name, node in drawn.items() if node["type"] == "sample"}
            self.known = parameters(self.program, taken | self.sites.keys())
            run = record(self.program, guide, self.args, self.kwargs, self.known, 0)
        except Exception as error:  # a guide may need observations that the model does without
            return None, [
                f"the guide does not run on these arguments ({type(error).__name__}: {error}); give it observations."
            ]
        data = [name for name, regions in self.held.items() if regions]
        order = [*data, *run.sites]
        traced = {name: self._names(site.parents, name, order) for name, site in run.sites.items()}
        values = {name: self.sites[name].value.detach() for name in data}
        probe = Probe(self.program, guide, self.args, self.kwargs, run, self._draws, values)
        places = {name: i for i, name in enumerate(run.sites)}
        sources = [Source(name, name, "site", -1, self.held[name]) for name in data]
        sources += [Source(name, name, "site", i) for name, i in places.items() if run.sites[name].kind != "factor"]
        probed = probe.all_edges(sources + self._constants(run), traced, self._escaped(run))
        graph = self._guide_nodes(model, run, traced, probed)
        return graph, [f"guide: {note}" for note in _probe_notes(probe)]

    def _guide_nodes(
        self, model: nx.DiGraph, run: Recording, traced: dict[str, set[str]], probed: set[tuple[str, str]]
    ) -> nx.DiGraph:
        graph = nx.DiGraph()
        incoming = {name: traced[name] | {u for u, v in probed if v == name} for name in run.sites}
        wanted = set().union(*incoming.values()) if incoming else set()
        for name in model:
            if name in wanted and model.nodes[name]["kind"] in ("observed", "input") and name not in run.sites:
                graph.add_node(name, **model.nodes[name])
        for name, site in run.sites.items():
            for parent in sorted(incoming[name] - run.sites.keys() - set(graph)):
                self._add_constant(graph, parent)
            graph.add_node(name, **_site_attributes(site, False))
        for name in run.sites:
            for parent in graph:
                if parent in incoming[name]:
                    by = (parent in traced[name]) + 2 * ((parent, name) in probed)
                    graph.add_edge(parent, name, found_by=("", "provenance", "probe", "both")[by])
        return graph


def _sorted_sites(runs: list[Recording], sites: dict[str, Record]) -> list[str]:
    """Sites in an order that every run agrees with, where there is one."""
    order = nx.DiGraph()
    order.add_nodes_from(sites)
    for run in runs:
        names = list(run.sites)
        order.add_edges_from(pairwise(names))
    place = {name: i for i, name in enumerate(sites)}
    try:
        return list(nx.lexicographical_topological_sort(order, key=place.__getitem__))
    except nx.NetworkXUnfeasible:
        return list(sites)


def _site_attributes(site: Record, sometimes: bool) -> dict[str, Any]:
    fn, named = site.fn, site.kind in ("latent", "observed")
    support = getattr(fn, "support", None) if named else None
    discrete = bool(getattr(support, "is_discrete", False)) if named else not site.value.is_floating_point()
    return {
        "kind": site.kind,
        "dist": base_name(fn) if named else "",
        "shape": tuple(site.value.shape) if site.kind != "factor" else (),
        "event_shape": tuple(fn.event_shape) if site.kind != "factor" else (),
        "support": support_in_words(fn) if named else "",
        "discrete": discrete,
        "plates": tuple(frame.name for frame in site.frames),
        "size": site.value.numel(),
        "markov": bool(site.infer.get("_markov_depth")),
        "enumerated": bool(site.infer.get("enumerate")),
        "masked": named and _masked(site),
        "sometimes": sometimes,
        "rounds": next((frame.name for frame in site.frames if frame.dim is None), ""),
    }


def _masked(site: Record) -> bool:
    """Whether the density is masked out altogether."""
    fn = site.fn
    while hasattr(fn, "base_dist"):
        if getattr(fn, "_mask", None) is False:
            return True
        fn = fn.base_dist
    return site.mask is False


def _plates(runs: list[Recording]) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes, and subsample sizes where they are smaller."""
    sizes: dict[str, int] = {}
    subsamples: dict[str, int] = {}
    for run in runs:
        for name, frame in run.frames.items():
            size = int(frame.size)
            full = int(frame.full_size) if getattr(frame, "full_size", None) else size
            sizes.setdefault(name, full)
            if size < full:
                subsamples[name] = size
    return sizes, subsamples


def _differing(names: list[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return (
        f"the structure differs from run to run: {listed([repr(name) for name in names], 5)} {verb} not always there."
    )


def _probe_notes(probe: Probe) -> list[str]:
    notes = []
    if probe.appearing:
        notes.append(_differing(sorted(probe.appearing)))
    if probe.noisy:
        names = ", ".join(map(repr, sorted(probe.noisy)[:5]))
        notes.append(f"the distribution of {names} changes from run to run though no site does; the probe left it out.")
    if probe.stopped:
        notes.append("the probe ran out of time, so that dependence through Python numbers may be missing.")
    return notes
