"""Full conditionals of discrete sites: blocks that are enumerated jointly, and elements that are flipped one by one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.ops import packed
from torch import Tensor

from ppl_dgm.densities.joint import _Enumerate
from ppl_dgm.errors import DgmError, TaskUnavailable
from ppl_dgm.inference.conjugate.factors import Factors, Latent, Values, _Substitute, log_factors
from ppl_dgm.inference.messages.enumeration import Enumeration, pack, support_values

__all__ = ["EnumeratedBlock", "Flips", "discrete_blocks"]

_ENTRIES = 2**20  # of the largest table for one chain
_PAIRS = 64  # elements up to which every pair is asked whether it interacts
_POINTS = 8  # points at which interactions are looked for
_TRIALS = 3  # random assignments that a block is checked with


class EnumeratedBlock(Enumeration):
    """Some discrete sites given all else, drawn jointly for every chain: tables of factors, summed and drawn backward.

    One vectorised run of the program gives the tables of all chains. Sites that are independent given the rest, as
    the memberships of a mixture, are drawn at once; chains and trees by tensor variable elimination.

    Arguments:
        factors: the program.
        names: the sites.
        point: values of all latent sites at one point.

    Raises:
        DgmError, RuntimeError, ValueError: the sites cannot be enumerated in parallel.
    """

    label = "enumerated"

    def __init__(self, factors: Factors, names: Sequence[str], point: Values) -> None:
        self.factors, self.sites = factors, tuple(names)
        self.latent = {name: factors.latent[name].fn for name in names}
        self.rest = [name for name in factors.latent if name not in names]
        self.nesting, self.per_example, self.examples, self.normalised = factors.nesting, False, 0, True
        with factors.context(), torch.no_grad():
            trace = self._trace({name: point[name] for name in self.rest})
        self._collect(trace)
        self.plate_symbols = dict(trace.plate_to_symbol)
        self._many = self._fresh_symbol()
        self.steps = plan_elimination(self.terms, self.own, self.symbols, self.sizes, self._many)
        self._draw = factors.recorded(self._drawn)

    def _log_factor(self, name: str, node: Any) -> Any:
        return node["packed"]["log_prob"]

    def _trace(self, given: Values) -> Any:
        wanted = {"enumerate": "parallel", "expand": False, "num_samples": None}

        def configure(site: Any) -> Any:
            return wanted if site["name"] in self.latent else {}

        story = poutine.infer_config(self.factors.story, configure)
        with _Substitute(given, free=self.latent), _Enumerate(first_available_dim=-1 - self.nesting):
            trace = poutine.trace(story).get_trace()
        log_factors(trace)
        for name in [n for n, node in trace.nodes.items() if node["type"] == "sample" and "log_prob" not in node]:
            trace.remove_node(name)
        trace.pack_tensors()
        return trace

    def _of_chain(self, *row: Tensor) -> tuple[Tensor, ...]:
        trace = self._trace(dict(zip(self.rest, row, strict=True)))
        tables = [node["packed"]["log_prob"] for node in trace.nodes.values() if "packed" in node]
        for table, (_, expected) in zip(tables, self.terms, strict=True):
            if table._pyro_dims != expected._pyro_dims:  # type: ignore[attr-defined]
                raise TaskUnavailable("the factors' shapes change from run to run.")
        return tuple(table.clone() for table in tables)

    def tables(self, state: Values) -> list[Any]:
        """The log factors of every chain, packed, the chain first."""
        with torch.no_grad():
            found = self._unpacked(tuple(state[name] for name in self.rest), len(state[self.sites[0]]))
        return [pack(table[:], symbols) for symbols, table in found]

    # -- drawing ---------------------------------------------------------------------------------------------

    def sample(self, state: Values) -> Values:  # type: ignore[override]  # draws of every chain, not of one table
        """A draw for each chain, given the rest of the state."""
        chains = len(state[self.sites[0]])
        with torch.no_grad():
            drawn = self._draw(torch.empty(chains, device=self.factors.device), *[state[name] for name in self.rest])
        return dict(zip(self.sites, drawn, strict=True))

    def _drawn(self, chains: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Sums forward, draws backward; `chains` is empty but for its length."""
        count = len(chains)
        tables = self._unpacked(rest, count)
        index = draw_backward(self.steps, tables, {**self.sizes, self._many: count}, self._many)
        dims = {step.symbol: step.dims[: 1 + len(step.plates)] for step in self.steps}
        return tuple(self._looked_up(n, index[s], dims[s], count) for n, s in self.symbols.items())

    def _unpacked(self, rest: tuple[Tensor, ...], chains: int) -> list[tuple[str, Tensor]]:
        if rest:
            found = self.factors.mapped(self._of_chain)(*rest)
        else:  # nothing that could differ from chain to chain
            found = [term.expand(chains, *term.shape) for _, term in self.terms]
        pairs = zip(found, self.terms, strict=True)
        return [(self._many + term._pyro_dims, table) for table, (_, term) in pairs]

    def _looked_up(self, name: str, index: Tensor, dims: str, chains: int) -> Tensor:
        site, fn = self.factors.latent[name], self.latent[name]
        wide = packed.unpack(pack(index[:], dims), {**self.symbol_to_dim, self._many: -1 - self.nesting})
        wide = wide.reshape((1,) * (1 + self.nesting - wide.dim()) + wide.shape)
        batch = len(fn.batch_shape)
        wide = wide.flatten(0, self.nesting - batch) if self.nesting > batch else wide
        return support_values(fn).to(wide.device, site.dtype)[wide.expand(chains, *fn.batch_shape)]

    # -- checking --------------------------------------------------------------------------------------------

    def log_value(self, tables: list[Any], state: Values) -> Tensor:
        """The sum of the factors at the values of the sites, [chain]."""
        chains = len(state[self.sites[0]])
        index = {self.symbols[name]: self._index(name, state[name]) for name in self.sites}
        total = torch.zeros(chains, dtype=self.factors.dtype, device=self.factors.device)
        for (plates, _), table in zip(self.terms, tables, strict=True):
            for symbol in [s for s in table._pyro_dims if s in index]:
                table = packed.gather(table, index[symbol], symbol)
            total = total + _spread(table._pyro_dims, table, frozenset(plates), self._many, self.sizes)
        return total

    def _index(self, name: str, value: Tensor) -> Any:
        """Which value of its support each element has, packed."""
        site, support = self.factors.latent[name], support_values(self.latent[name]).to(value)
        events = support.dim() - 1
        same = value.unsqueeze(value.dim() - events) == support
        index = (same.flatten(-events).all(-1) if events else same).to(torch.uint8).argmax(-1)  # [chain, *batch]
        symbols = {dim: self.plate_symbols[plate] for plate, dim, _ in site.frames}
        places = range(-len(self.latent[name].batch_shape), 0)
        kept = [symbols[dim] for dim in places if index.shape[dim] > 1]
        shape = [index.shape[dim] for dim in places if index.shape[dim] > 1]
        return pack(index.reshape(len(value), *shape), self._many + "".join(kept))

    def holds(self, state: Values) -> bool:
        """Whether the tables give the log joint's changes at random assignments, for every chain."""
        try:
            tables = self.tables(state)
            before, joint = self.log_value(tables, state), self.factors.log_joint(state)
            for _ in range(_TRIALS):
                other = {**state, **{name: shuffled(self.factors.latent[name], state[name]) for name in self.sites}}
                expected = self.factors.log_joint(other) - joint
                found = self.log_value(tables, other) - before
                if not torch.allclose(found, expected, rtol=1e-7, atol=1e-6, equal_nan=True):
                    return False
        except (RuntimeError, ValueError, KeyError, IndexError, AssertionError, NotImplementedError):
            return False
        return True


def _spread(symbols: str, table: Tensor, plates: frozenset[str], dims: str, sizes: dict[str, int]) -> Tensor:
    """A table summed over plates, those included that it does not vary over, with the dimensions `dims`."""
    held = [position for position, symbol in enumerate(symbols) if symbol in plates]
    times = math.prod(sizes[symbol] for symbol in plates if symbol not in symbols)
    kept = "".join(symbol for symbol in symbols if symbol not in plates)
    value = (table.sum(held) if held else table) * times
    order = [kept.index(symbol) for symbol in dims if symbol in kept]
    value = value.permute(order)
    shape = iter(value.shape)
    return value.reshape([next(shape) if symbol in kept else 1 for symbol in dims])


@dataclass(frozen=True)
class Elimination:
    """One step of summing: which factors meet in a symbol, and the dimensions of their sum.

    Attributes:
        symbol: what is summed out.
        plates: those of its site, sorted.
        inputs: indices of the factors, original ones first, then one for each step before.
        extra: of each input, the plates over which it is a product.
        dims: chains, plates, the other symbols that are met, the symbol itself.
    """

    symbol: str
    plates: tuple[str, ...]
    inputs: tuple[int, ...]
    extra: tuple[frozenset[str], ...]
    dims: str


def plan_elimination(
    terms: Sequence[tuple[frozenset[str], Any]],
    own: dict[str, int],
    symbols: dict[str, str],
    sizes: dict[str, int],
    many: str,
) -> list[Elimination]:
    """An order in which symbols are summed out, those in the deepest plates first, then where fewest others meet.

    Raises:
        TaskUnavailable: sites of crossing plates meet in one factor, or a table would be too large.
    """
    plates = {symbol: terms[own[name]][0] for name, symbol in symbols.items()}
    live: dict[int, tuple[frozenset[str], frozenset[str]]] = {
        i: (frozenset(s for s in term._pyro_dims if s in plates), group) for i, (group, term) in enumerate(terms)
    }
    left, steps = set(plates), list[Elimination]()
    while left:
        depth = max(len(plates[symbol]) for symbol in left)
        costs = {s: _entries(s, live, sizes) for s in left if len(plates[s]) == depth}
        symbol = min(costs, key=lambda s: (costs[s], s))
        inputs = tuple(i for i, (met, _) in live.items() if symbol in met)
        others = frozenset().union(*(live[i][0] for i in inputs)) - {symbol}
        extra = tuple(live[i][1] - plates[symbol] for i in inputs)
        crossing = any(plates[o] & e for i, e in zip(inputs, extra, strict=True) for o in live[i][0])
        if crossing or any(not plates[other] <= plates[symbol] for other in others):
            raise TaskUnavailable("latent sites of two crossing plates meet in one factor.")
        if costs[symbol] * math.prod(sizes[p] for p in plates[symbol]) > _ENTRIES:
            raise TaskUnavailable("the table of the sites that meet in one factor is too large.")
        inside = tuple(sorted(plates[symbol]))
        steps.append(Elimination(symbol, inside, inputs, extra, many + "".join((*inside, *sorted(others), symbol))))
        live = {i: term for i, term in live.items() if i not in inputs}
        live[len(terms) + len(steps) - 1] = (others, plates[symbol])
        left.remove(symbol)
    return steps


def _entries(symbol: str, live: dict[int, tuple[frozenset[str], Any]], sizes: dict[str, int]) -> int:
    """Values of all symbols that meet in a symbol's elimination, itself included."""
    return math.prod(sizes[s] for s in {symbol}.union(*(met for met, _ in live.values() if symbol in met)))


def draw_backward(
    steps: Sequence[Elimination], tables: list[tuple[str, Tensor]], sizes: dict[str, int], many: str
) -> dict[str, Tensor]:
    """Joint draws, {symbol: index [chain, *plates]}: sums in the order of the steps, draws in the reverse one."""
    tables, sums = list(tables), []
    for step in steps:
        total: Any = 0.0
        for i, extra in zip(step.inputs, step.extra, strict=True):
            total = total + _spread(*tables[i], extra, step.dims, sizes)
        total = total.expand([sizes[s] for s in step.dims])
        sums.append(total)
        tables.append((step.dims[:-1], total.logsumexp(-1)))
    index: dict[str, Tensor] = {}
    placed = {step.symbol: (many, *step.plates) for step in steps}
    for step, total in zip(reversed(steps), reversed(sums), strict=True):
        head = 1 + len(step.plates)
        for other in reversed(step.dims[head:-1]):  # the last of the others first, so that the places stay
            place = total.dim() - 2
            held = index[other].reshape(
                [sizes[s] if s in placed[other] else 1 for s in step.dims[:head]] + [1] * (total.dim() - head)
            )
            shape = [*total.shape[:place], 1, *total.shape[place + 1 :]]
            total = total.gather(place, held.expand(shape)).squeeze(place)
        gumbel = -torch.log(-torch.log(torch.rand_like(total).clamp(min=1e-300)))
        index[step.symbol] = (total + gumbel).argmax(-1)
    return index


def shuffled(site: Latent, value: Tensor) -> Tensor:
    """Values of a discrete site drawn uniformly from its list, each element by itself, shaped like `value`."""
    assert site.values is not None
    events = site.values.dim() - 1
    shape = value.shape[: value.dim() - events]
    support = site.values.to(value)
    return support[torch.randint(len(support), shape, device=value.device)]


class Flips:
    """A discrete site whose elements depend on one another: each element from its own full conditional.

    Elements that do not interact, as one colour of a chequerboard, are drawn at once; the conditional of each comes
    from the log joint at each of its values with all else held fixed.

    Arguments:
        factors: the program.
        site: the site, with a finite list of values for each element.
        state: several points, to find out which elements interact.
    """

    def __init__(self, factors: Factors, site: Latent, state: Values) -> None:
        assert site.values is not None
        self.factors, self.site, self.sites = factors, site, (site.name,)
        self.rest = [name for name in factors.latent if name != site.name]
        self.event = site.values.shape[1:]
        self.count = torch.Size(site.shape[: len(site.shape) - len(self.event)]).numel()
        self._totals = factors.recorded(self._evaluate)
        self.colours = self._coloured(state)

    @property
    def label(self) -> str:
        """In words, for reports."""
        groups = len(self.colours)
        return f"enumerated element by element, {groups} group{'s' if groups > 1 else ''}"

    def _evaluate(self, values: Tensor, *rest: Tensor) -> Tensor:
        def of_chain(values: Tensor, *row: Tensor) -> Tensor:
            given = dict(zip(self.rest, row, strict=True))
            return self.factors.mapped(lambda v: self.factors.total({**given, self.site.name: v}))(values)

        return self.factors.mapped(of_chain)(values, *rest)

    def totals(self, values: Tensor, state: Values) -> Tensor:
        """The log joint at several values of the site for each chain, [chain, point] from [chain, point, *shape]."""
        with torch.no_grad():
            return self._totals(values.contiguous(), *[state[name] for name in self.rest])

    def _coloured(self, state: Values) -> list[list[int]]:
        """Groups of elements that do not interact; the elements by themselves where they are too many to ask."""
        n = self.count
        if n > _PAIRS:
            return [[i] for i in range(n)]
        meets = self._interactions(state)
        colours: list[list[int]] = []
        for i in range(n):
            home = next((group for group in colours if not any(meets[i][j] for j in group)), None)
            if home is None:
                colours.append([i])
            else:
                home.append(i)
        return colours

    def _interactions(self, state: Values) -> Any:
        """Whether the effect of one element depends on another: L(ij) - L(i) - L(j) + L is not zero."""
        value = state[self.site.name]
        state = {name: values[:_POINTS] for name, values in state.items()}
        value = value[:_POINTS]
        n, chains = self.count, len(value)
        meets = torch.zeros(n, n, dtype=torch.bool)
        for _ in range(_TRIALS):
            old = shuffled(self.site, value).reshape(chains, n, *self.event)
            new = shuffled(self.site, value).reshape(chains, n, *self.event)
            base = self.totals(old.reshape(chains, 1, *self.site.shape), state)  # [chain, 1]
            one = self._changed(old, new, [[i] for i in range(n)], state) - base
            for i in range(n - 1):
                rest = list(range(i + 1, n))
                # with every j, also those known already: as many points each time make one recorded graph
                two = (self._changed(old, new, [[i, j] for j in range(n)], state) - base)[:, rest]
                apart = (two - one[:, i : i + 1] - one[:, rest]).abs()
                free = apart <= 1e-9 * (1 + base.abs())  # not a number: they interact
                meets[i, rest] |= ~free.all(0).cpu()
        return (meets | meets.T).tolist()

    def _changed(self, old: Tensor, new: Tensor, groups: list[list[int]], state: Values) -> Tensor:
        """The log joint with each group of elements at the new values, [chain, group]."""
        rows = old.unsqueeze(1).repeat(1, len(groups), *[1] * (old.dim() - 1))  # [chain, group, element, *event]
        for row, group in enumerate(groups):
            rows[:, row, group] = new[:, group]
        return self.totals(rows.reshape(*rows.shape[:2], *self.site.shape), state)

    def sample(self, state: Values) -> Values:
        """One pass over all elements, for each chain."""
        assert self.site.values is not None
        value = state[self.site.name]
        support, chains = self.site.values.to(value), len(value)
        now = value.reshape(chains, self.count, *self.event).clone()
        for group in self.colours:
            rows = now[:, None, None].repeat(1, len(group), len(support), *[1] * (now.dim() - 1))
            for row, element in enumerate(group):
                rows[:, row, :, element] = support
            logits = self.totals(rows.reshape(chains, -1, *self.site.shape), state)
            logits = logits.reshape(chains, len(group), len(support))
            gumbel = -torch.log(-torch.log(torch.rand_like(logits).clamp(min=1e-300)))
            now[:, group] = support[(logits + gumbel).argmax(-1)]
        return {self.site.name: now.reshape(value.shape)}

    def holds(self, state: Values) -> bool:
        """Whether the elements of each group still do not interact: changed together, the changes add up."""
        value = state[self.site.name]
        old = value.reshape(len(value), self.count, *self.event)
        new = shuffled(self.site, value).reshape(old.shape)
        base = self.totals(value.unsqueeze(1), state)
        for group in self.colours:
            together = self._changed(old, new, [group], state) - base
            apart = (self._changed(old, new, [[i] for i in group], state) - base).sum(1, keepdim=True)
            if not torch.allclose(together, apart, rtol=1e-7, atol=1e-6):
                return False
        return True


def discrete_blocks(factors: Factors, names: Sequence[str], state: Values) -> list[Any]:
    """Updates for the discrete sites: all of them jointly where they can be enumerated so, else in parts.

    Raises:
        TaskUnavailable: a site has no finite list of values.
    """
    for name in names:
        if factors.latent[name].values is None:
            raise TaskUnavailable(
                f"site {name!r} is discrete and has no finite list of values to choose from; use a distribution of "
                "finite support there (a Categorical over counts up to a bound, say), or method='importance'."
            )
    wanted = [name for name in names if _has_choice(factors.latent[name])]
    if not wanted:
        return []
    return _parts(factors, wanted, state)


def _parts(factors: Factors, names: list[str], state: Values) -> list[Any]:
    """All in one block, or else each half of them by itself."""
    block = _enumerated(factors, names, state)
    if block is not None:
        return [block]
    if len(names) == 1:
        return [Flips(factors, factors.latent[names[0]], state)]
    middle = len(names) // 2
    return _parts(factors, names[:middle], state) + _parts(factors, names[middle:], state)


def _has_choice(site: Latent) -> bool:
    return site.values is not None and len(site.values) > 1


def _enumerated(factors: Factors, names: list[str], state: Values) -> EnumeratedBlock | None:
    if not all(factors.latent[name].fn.has_enumerate_support for name in names):
        return None
    point = {name: value[0] for name, value in state.items()}
    try:
        block = EnumeratedBlock(factors, names, point)
        block.sample(state)
    except (DgmError, RuntimeError, ValueError, KeyError, IndexError, AssertionError, NotImplementedError):
        return None
    return block if block.holds(state) else None
