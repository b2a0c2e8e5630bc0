"""The probe: change one value with everything else held fixed, and see whose distribution changes."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np
import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ..randomness import seeded
from .constants import Parameter, copied, input_leaves
from .provenance import Region, unmark
from .recording import OPAQUE, Recording, is_subsample, log_prob, state

__all__ = ["Probe", "Source"]

_ALONE = 40  # sources up to this number are changed one at a time, more of them in groups
_SECONDS = 4.0  # of computing, after which it stops and says so
_CONTEXTS = 6  # settings of the other sites in which a doubtful source is changed
_ROUNDS = 5  # values tried for a source whose numbers left torch: a branch may need several


@dataclass
class Source:
    """Something that can be changed.

    Attributes:
        name: of the site, parameter or input.
        node: its node in the graph.
        kind: "site", "parameter" or "input".
        order: place of a site in the run; -1 for a constant. Only later sites can depend on it.
        regions: for an observed site: where in the inputs its value stands, to be changed there as well.
        parameter: for a parameter.
    """

    name: str
    node: str
    kind: str
    order: int = -1
    regions: list[Region] = field(default_factory=list)
    parameter: Parameter | None = None


@dataclass
class _Seen:
    fn: Any
    state: list
    around: tuple
    value: Tensor | None
    plates: tuple


class _Watching(Messenger):
    """Every site takes a given value, and its distribution is written down."""

    def __init__(self, values: dict[str, Tensor], indices: dict[str, Any]) -> None:
        super().__init__()
        self.values, self.indices = values, indices
        self.seen: dict[str, _Seen] = {}

    def _pyro_sample(self, msg: Any) -> None:
        held = self.indices if is_subsample(msg["fn"]) else self.values
        if msg["name"] in held and not msg["infer"].get("_deterministic"):
            msg["value"], msg["done"] = held[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_subsample(msg["fn"]):
            return
        computed = msg["value"] if msg["infer"].get("_deterministic") else None
        plates = tuple((frame.name, frame.size) for frame in msg["cond_indep_stack"])
        self.seen[msg["name"]] = _Seen(msg["fn"], _frozen(msg["fn"]), (msg["mask"], msg["scale"]), computed, plates)
        if computed is not None and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


def _frozen(fn: Any) -> list:
    """A distribution's state as it is now: parameters (and views of them) are put back after the run."""
    return [part.detach().clone() if isinstance(part, Tensor) else part for part in state(fn)]


class Probe:
    """Runs of one program that differ from a recorded run in the values of a few sources.

    Arguments:
        story: the model or the guide.
        args, kwargs: of the program.
        leaves: gives the input tensors among (copied) arguments by name.
        recording: the run to change.
        draws: further runs without observations: where other values come from, in support.
        extra: observed sites that the story does not have itself, by value (for a guide: those of the model).

    Attributes:
        noisy: sites whose distribution differs from run to run though nothing was changed.
        appearing: sites that only a changed run has.
        stopped: whether time ran out.
    """

    def __init__(
        self,
        program: Any,
        story: Callable,
        args: tuple,
        kwargs: dict,
        recording: Recording,
        draws: Callable[[int], dict[str, Tensor]],
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        self.program, self.story, self.args, self.kwargs = program, story, args, kwargs
        self.recording, self.draws = recording, draws
        self.base = {**(extra or {}), **{name: site.value.detach() for name, site in recording.sites.items()}}
        for value in self.base.values():
            unmark(value)
        self.order = {name: i for i, name in enumerate(recording.sites)}
        self.appearing: set[str] = set()
        self.stopped = False
        self._live = {_place(parameter) for parameter in program.parameters()} - {None}
        self._begin = time.process_time()
        self._deadline = self._begin + _SECONDS
        self.noisy: set[str] = set()
        self._settle()

    def _settle(self) -> None:
        """The unchanged run, to which the changed ones are compared; run twice, since a program may be
        restless by itself.
        """
        self._points: dict[str, list[Tensor]] = {}
        self._densities: dict[str, list[Tensor | None]] = {}
        self._plain: dict[str, _Seen] = {}
        self._run([], 0, self._keep)
        self.noisy |= self._run([], 0, self._different) or set()

    def all_edges(self, sources: list[Source], found: dict[str, set[str]], escaped: set[str]) -> set[tuple[str, str]]:
        """`edges`, and again elsewhere for sources with a known edge that did not show or whose numbers
        left torch: a value may matter
        only while others are what they are not in the recorded run (`if a and b`)."""
        edges = self.edges(sources, found, escaped)
        recorded = dict(self.base)
        for context in range(1, _CONTEXTS):
            doubtful = {
                parent
                for site, parents in found.items()
                if site in self._plain
                for parent in parents
                if (parent, site) not in edges
            }
            some = [s for s in sources if s.node in doubtful or (s.node in escaped and len(sources) <= _ALONE)]
            if not some or time.process_time() > self._begin + _SECONDS / 4:
                break
            self.base = dict(recorded)
            coin = torch.Generator().manual_seed(context)
            for name, site in self.recording.sites.items():
                if site.kind == "latent" and (context == 1 or torch.rand((), generator=coin) < 0.5):
                    self.base[name] = self._other(name, context)
            self._settle()
            edges |= self.edges(some, found, escaped)
        self.base = recorded
        return edges

    # -- what depends on what -------------------------------------------------------------------------------

    def edges(self, sources: list[Source], found: dict[str, set[str]], escaped: set[str]) -> set[tuple[str, str]]:
        """The pairs (source, site) where a change of the source alone changes the site's distribution.

        Arguments:
            sources: what to change.
            found: {site: its parents by provenance}: in a long program these are confirmed together, and
                what they leave unexplained
                is searched by halving.
            escaped: names whose numbers left torch; they are changed several times.
        """
        edges: set[tuple[str, str]] = set()
        alone = sources if len(sources) <= _ALONE else []
        for source in alone:
            for turn in range(_ROUNDS if source.node in escaped else 1):
                edges |= {(source.node, site) for site in self._changed([source], turn)}
        if not alone:
            for group in _groups(sources, found):
                edges |= self._confirm(group, found)
            hidden = [source for source in sources if source.node in escaped]
            for turn in range(1, _ROUNDS):
                more = self._decode(hidden, turn) - edges
                edges |= more
                if not more:
                    break
        return edges

    def _confirm(self, group: list[Source], found: dict[str, set[str]]) -> set[tuple[str, str]]:
        """Edges from a group, changed together: each site that changes blames its one known parent, or the
        group is searched.
        """
        changed = self._changed(group, 0)
        names = {source.node for source in group}
        known = {site: found.get(site, set()) & names for site in changed}
        if all(len(parents) == 1 for parents in known.values()):
            return {(next(iter(parents)), site) for site, parents in known.items()}
        return self._decode(group, 0)

    def _decode(self, group: list[Source], turn: int) -> set[tuple[str, str]]:
        """Edges from a group, each member having a binary number: for each digit those with a 1, then those
        with a 0 are changed.

        A site with one parent in the group changes once for each digit, and so spells its parent's number.
        Where sites have
        more, the group is halved.
        """
        changed = self._changed(group, turn) if group else set()
        if not changed or len(group) == 1:
            return {(group[0].node, site) for site in changed}
        spelled, several = dict.fromkeys(changed, 0), set()
        for digit in range((len(group) - 1).bit_length()):
            ones = self._changed([s for i, s in enumerate(group) if i >> digit & 1], turn)
            zeros = self._changed([s for i, s in enumerate(group) if not i >> digit & 1], turn)
            several |= {site for site in changed if (site in ones) == (site in zeros)}
            for site in ones & changed:
                spelled[site] += 1 << digit
        edges = {(group[i].node, site) for site, i in spelled.items() if site not in several and i < len(group)}
        if several and not self.stopped:
            middle = len(group) // 2
            edges |= self._decode(group[:middle], turn) | self._decode(group[middle:], turn)
        return edges

    def _changed(self, group: list[Source], turn: int) -> set[str]:
        """Sites whose distribution is another one after these sources have changed."""
        if time.process_time() > self._deadline:
            self.stopped = True
            return set()
        first = min(source.order for source in group)
        changed = self._run(group, turn, self._different) or set()
        return {name for name in changed - self.noisy if self.order.get(name, -1) > first}

    def _keep(self, seen: dict[str, _Seen]) -> set[str]:
        """The unchanged run; densities that read parameters anew each time are computed now."""
        self._plain = seen
        for name, site in seen.items():
            if OPAQUE in site.state or any(_place(part) in self._live for part in state(site.fn)):
                self._density(name)
        return set()

    def _different(self, seen: dict[str, _Seen]) -> set[str]:
        self.appearing |= seen.keys() - self._plain.keys()
        return {name for name in self._plain if name not in seen or self._differs(name, seen[name])}

    def _differs(self, name: str, now: _Seen) -> bool:
        was = self._plain[name]
        if was.plates != now.plates or type(was.fn) is not type(now.fn):
            return True
        if now.value is not None and was.value is not None:
            return not _close(was.value, now.value)
        if not _same(was.around, now.around):
            return True
        if OPAQUE not in now.state and _same(was.state, now.state):
            return False
        before = self._density(name)
        for point, a in zip(self._points[name], before):
            b = log_prob(now.fn, point)
            if a is None or b is None or not _close(a, b):
                return True
        return False

    def _density(self, name: str) -> list[Tensor | None]:
        """The log density of the unchanged distribution, at its value in this run and in two others."""
        if name not in self._densities:
            others = [self.draws(turn).get(name) for turn in range(2)]
            here = self.base[name]
            self._points[name] = [here, *(v for v in others if v is not None and v.shape == here.shape)]
            self._densities[name] = [log_prob(self._plain[name].fn, point) for point in self._points[name]]
        return self._densities[name]

    # -- runs -----------------------------------------------------------------------------------------------

    def _run(self, group: list[Source], turn: int, look: Callable[[dict[str, _Seen]], set[str]]) -> set[str] | None:
        """What `look` says of one run with these sources changed; None where the program does not accept
        the change.
        """
        values, (args, kwargs) = dict(self.base), copied(self.args, self.kwargs)
        leaves = input_leaves(self.program, args, kwargs)
        changed: list[Parameter] = []
        for source in group:
            if source.kind == "site":
                values[source.name] = other = self._other(source.name, turn)
                for region in source.regions:
                    target = region.within(leaves[region.name])
                    if target.numel() == other.numel():
                        target.copy_(other.reshape(target.shape))
            elif source.kind == "input":
                leaf = leaves[source.name]
                leaf.copy_(_disturbed(leaf, turn))
            elif source.parameter is not None:
                changed.append(source.parameter)
        watching = _Watching(values, self.recording.indices)
        try:
            with _still(), pyro.validation_enabled(False), torch.no_grad(), _shifted(changed, turn), watching:
                self.story(*args, **kwargs)
                watching.seen, seen = {}, watching.seen
                with pyro.poutine.block():
                    return look(seen)
        except Exception:  # the program's own code may refuse a value that it has not drawn itself
            return None

    def _other(self, name: str, turn: int) -> Tensor:
        """Another value of a site, of the same shape: from another run, and different in every discrete
        entry.
        """
        here = self.base[name]
        other = self.draws(turn).get(name)
        if other is None or other.shape != here.shape or other.dtype != here.dtype or _close(other, here):
            other = _disturbed(here, turn)
        site = self.recording.sites.get(name)
        if not here.is_floating_point() or (site is not None and getattr(site.fn, "has_enumerate_support", False)):
            other = torch.where(other == here, _next_value(here, site, turn), other)
        return other


@contextmanager
def _still() -> Iterator[None]:
    """Every run draws the same. Without a GPU the generator is seeded directly: `torch.manual_seed` formats
    a stack trace each time.
    """
    if torch.cuda.is_available():
        with seeded(0):
            yield
        return
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


@contextmanager
def _shifted(parameters: list[Parameter], turn: int) -> Iterator[None]:
    """Parameters moved a little, and put back."""
    kept = [(tensor, tensor.detach().clone()) for node in parameters for tensor in node.tensors]
    with torch.no_grad():
        try:
            for tensor, before in kept:
                noise = _noise(before, turn)
                tensor.copy_(before + 0.1 * noise * (1 + before.abs()) if noise is not None else before)
            yield
        finally:
            for tensor, before in kept:
                tensor.copy_(before)


def _noise(like: Tensor, turn: int) -> Tensor | None:
    if not (like.is_floating_point() or like.is_complex()):
        return None
    return torch.randn(like.shape, dtype=like.dtype, generator=torch.Generator().manual_seed(turn + 1)).to(like.device)


def _disturbed(value: Tensor, turn: int) -> Tensor:
    """Another tensor of the same kind: signs, zeros and integer values stay what they were."""
    noise = _noise(value, turn)
    if noise is None:
        flat = value.flatten()
        if flat.numel() and bool((flat == flat[0]).all()):
            return ~value if value.dtype is torch.bool else value + 1
        return flat.roll(turn + 1).reshape(value.shape)
    moved = value * (0.2 * noise).exp()
    if bool(((value >= 0) & (value <= 1)).all()) and value.numel() and bool((value > 0).any()):
        moved = moved.clamp(max=1.0)  # perhaps a probability
        moved = torch.where(moved == value, value * 0.7, moved)
    return torch.where(value == 0, noise, moved) if not bool((value != 0).any()) else moved


def _next_value(value: Tensor, site: Any, turn: int) -> Tensor:
    """The next element of a discrete support, cyclically."""
    try:
        support = site.fn.enumerate_support(expand=False).flatten()
        if support.numel() > 1 and value.numel() and bool(torch.isin(value, support).all()):
            index = torch.searchsorted(support.contiguous(), value.contiguous())
            return support[(index + 1 + turn % (len(support) - 1)) % len(support)]
    except (AttributeError, NotImplementedError, RuntimeError):
        pass
    return ~value if value.dtype is torch.bool else value + 1


def _place(part: Any) -> int | None:
    """Where a tensor's numbers stand, to tell a view of a parameter."""
    if not isinstance(part, Tensor) or part.layout is not torch.strided or not part.numel():
        return None
    return part.untyped_storage().data_ptr()


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b) or not a.is_floating_point():
        return bool(torch.equal(a, b))
    tolerance = 1e-10 if a.dtype is torch.float64 else 1e-5
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)


def _same(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Whether two states hold the same numbers."""
    a, b = list(a), list(b)
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))


def _equal(x: Any, y: Any) -> bool:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and _close(x, y))
    return x is y or x == y


# -- groups ------------------------------------------------------------------------------------------------


def _groups(sources: list[Source], found: dict[str, set[str]]) -> list[list[Source]]:
    """Sources in as few groups as may be, no two of which are known parents of one site or parent and
    child.
    """
    rivals = nx.Graph()
    rivals.add_nodes_from(source.node for source in sources)
    for site, parents in found.items():
        rivals.add_edges_from((a, b) for a in parents for b in parents if a < b and a in rivals and b in rivals)
        if site in rivals:
            rivals.add_edges_from((a, site) for a in parents if a in rivals)
    colour = nx.greedy_color(rivals, strategy="largest_first")
    groups: dict[int, list[Source]] = {}
    for source in sources:
        groups.setdefault(colour[source.node], []).append(source)
    return list(groups.values())
