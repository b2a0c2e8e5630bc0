"""The weights of a region circuit with leaves of any families: how they start, EM's expected statistics and M-steps."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ppl_dgm.distributions.circuit.climbing import climb
from ppl_dgm.distributions.circuit.evaluator import LARGEST
from ppl_dgm.distributions.circuit.families import CategoricalLeaf, LeafFamily, Parameters
from ppl_dgm.distributions.circuit.family_regions import FamilyRegions, LeafGroup
from ppl_dgm.distributions.circuit.regions import RegionGraph
from ppl_dgm.distributions.circuit.tensorised import Tensorised, root_values
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.evaluate.baselines import maximum_spanning_tree, mutual_information, normalise, pair_counts

from .regions import _FIRST, RegionParameters, _clusters, _scattered

__all__ = ["FamilyRegionParameters"]

_BINS = 8  # quantile bins of a variable, where trees are found among columns of several kinds
_STEPS = 4  # of scoring in each M-step of a family without statistics
_START_STEPS = 20
_MOST_START = 5000  # rows that leaves start from
_PSEUDO_COUNT = 1.0
_UNUSED = 1e-20  # expected uses below which a unit is not used

Statistics = tuple[Tensor, ...]


class FamilyRegionParameters(RegionParameters):
    """The leaves, of one family or one for each variable, and the sum weights of a region circuit.

    Where every variable is of one family over the same finite values, the leaves are written out as tables of these
    values, so that all queries for categories work; the M-step then sees the expected counts of values.

    Arguments:
        families: one for each variable.
        graph, units, components: as in `RegionParameters`.
        pseudo_count: rows that are added to the expected ones of each unit of a leaf, spread over values that stand for
            the variable's data (see `LeafFamily.points`), and of each sum unit, spread evenly; None: one.
    """

    points: Tensor
    shares: Tensor

    def __init__(
        self,
        families: Sequence[LeafFamily],
        graph: RegionGraph | None,
        units: int,
        components: int,
        pseudo_count: float | None,
    ) -> None:
        object.__setattr__(self, "families", tuple(families))  # before the base class asks for parameters
        object.__setattr__(self, "kinds", tuple(dict.fromkeys(families)))
        count = _PSEUDO_COUNT if pseudo_count is None else pseudo_count
        super().__init__(len(families), 1, graph, units, components, count)
        self.register_buffer("points", torch.zeros(len(families), 0))  # [D, P] what stands for each variable's data
        self.register_buffer("shares", torch.zeros(len(families), 0))  # [D, P] their weights

    families: tuple[LeafFamily, ...]
    kinds: tuple[LeafFamily, ...]

    @property
    def tabled(self) -> int | None:
        """K, where the circuit is over categories 0 to K - 1 alone; else None."""
        return self.kinds[0].values if len(self.kinds) == 1 else None

    @property
    def gradient_only(self) -> bool:
        """Whether a family has no statistics of fixed size, so that its M-step needs the rows."""
        probe = {kind: kind.statistics(torch.full((1,), kind.inside).double()) for kind in self.kinds}
        return any(kind.values is None and found is None for kind, found in probe.items())

    @property
    def units(self) -> int:
        return self.sum_logits[-1].shape[-1] // self._plan.groups[-1].products.shape[1]

    def evaluator(self) -> Tensorised | FamilyRegions:  # type: ignore[override]
        """The compiled circuit with the present parameters."""
        weights = tuple(logits.log_softmax(-1) for logits in self.sum_logits)
        groups = self._groups()
        if self.tabled is None:
            return FamilyRegions(self._plan, groups, weights)
        table = groups[0].family.log_table(groups[0].parameters)
        return Tensorised(self._plan, table.to(weights[0]), weights)

    @property
    def _held(self) -> list[nn.ParameterDict]:
        """The parameters of each family's leaves."""
        return [cast(nn.ParameterDict, held) for held in self.leaf_parameters]

    def _groups(self) -> tuple[LeafGroup, ...]:
        return tuple(
            LeafGroup(kind, leaves, {name: held[name] for name in kind.initial()})
            for kind, leaves, held in zip(self.kinds, self._places_of, self._held, strict=True)
        )

    # -- expectation maximisation ------------------------------------------------------------------

    def expected(self, x: Tensor, observed: Tensor) -> tuple[Tensor, Statistics]:
        """The mean log likelihood of the observed entries in nats, and the expected statistics of all parameters, summed.

        Returns:
            For each family [M, S, 1 + T], count and sums of statistics; or of finite values [M, S, K], their counts;
            then the expected counts of the sums' weights.

        Raises:
            TaskUnavailable: a family has no statistics of fixed size.
        """
        if self.gradient_only:
            raise TaskUnavailable(
                f"the leaves {', '.join(map(repr, self.kinds))} have no sufficient statistics for minibatch EM; learn them "
                "with method='em', or give the family the methods statistics and update."
            )
        value, statistics, _ = self._expect(x, observed, keep=False)
        return value, statistics

    @torch.no_grad()
    def em_step(self, x: Tensor, observed: Tensor) -> Tensor:
        """One step of generalised EM over all rows, in place; the mean log likelihood before it."""
        value, statistics, use = self._expect(x, observed, keep=self.gradient_only)
        groups, many = self._groups(), len(self.kinds)
        for g, group in enumerate(groups):
            if statistics[g].shape[-1] == 0:
                entries, _ = FamilyRegions(self._plan, groups, ()).entries(group, x, observed)
                self._store(g, *self._climbed(group, entries, use[g], _STEPS))
            else:
                self._store(g, *self._maximised(group, statistics[g]))
        self._update_sums(statistics[many:])
        return value

    @torch.no_grad()
    def em_update(self, expected: Statistics) -> None:
        """Leaves and weights from expected statistics, with the pseudo-counts."""
        for g, group in enumerate(self._groups()):
            self._store(g, *self._maximised(group, expected[g]))
        self._update_sums(expected[len(self.kinds) :])

    def _expect(self, x: Tensor, observed: Tensor, keep: bool) -> tuple[Tensor, Statistics, list[Tensor]]:
        """Value, statistics (of no width for families that need rows) and, if asked, the use of leaves [M, n, S]."""
        groups, total = self._groups(), x.new_zeros((), dtype=torch.float64)
        logits = [sums.detach().log_softmax(-1) for sums in self.sum_logits]
        circuit = FamilyRegions(self._plan, groups, tuple(logits))
        sums: list[Any] = [0.0] * (len(groups) + len(logits))
        kept: list[list[Tensor]] = [[] for _ in groups]
        rows = max(1, LARGEST // circuit.size)
        for part, seen in zip(x.split(rows), observed.split(rows), strict=True):
            with torch.inference_mode(False), torch.enable_grad():
                leaves = circuit.leaf_values(part, seen).detach().clone().requires_grad_()
                weights = [weight.clone().requires_grad_() for weight in logits]
                value = root_values(self._plan, leaves, weights).sum()
                use, *counts = torch.autograd.grad(value, (leaves, *weights))
            total += value.detach().double()
            for g, group in enumerate(groups):
                mine = use[group.leaves]
                entries, here = circuit.entries(group, part, seen)
                assert here is not None
                mine = torch.where(here.unsqueeze(-1), mine, 0.0)
                sums[g] = sums[g] + _sums(group.family, entries, mine)
                if keep:
                    kept[g].append(mine)
            for i, found in enumerate(counts):
                sums[len(groups) + i] = sums[len(groups) + i] + found
        return (total / len(x)).to(logits[0]), tuple(sums), [torch.cat(p, 1) for p in kept if p]

    def _maximised(self, group: LeafGroup, statistics: Tensor) -> tuple[Tensor, Parameters]:
        """The M-step of some leaves of one family from `_sums`: expected uses [M, S] and parameters, float64."""
        family, a = group.family, self.pseudo_count
        begin = {name: value.double() for name, value in group.parameters.items()}
        points, shares = self._stand_ins(group)  # [M, P]
        if family.values is not None:
            counts = statistics.double()  # [M, S, K]
            if points.shape[1]:
                counts = counts + a * shares[:, None, : family.values]
            values = torch.arange(family.values, device=counts.device).double()
            known = family.statistics(values)
            if known is None:
                found = climb(family, values.expand(len(counts), -1), counts.transpose(1, 2), begin, _STEPS)
                return counts.sum(-1), found
            count, sums = counts.sum(-1), counts @ known
        else:
            count, sums = statistics[..., 0].double(), statistics[..., 1:].double()
            known = family.statistics(points)
            assert known is not None
            count, sums = count + a * shares.sum(1)[:, None], sums + a * (shares.unsqueeze(-1) * known).sum(1)[:, None]
        return count, family.update(count.clamp_min(_UNUSED), sums, begin)

    def _climbed(self, group: LeafGroup, entries: Tensor, use: Tensor, steps: int) -> tuple[Tensor, Parameters]:
        """The M-step of leaves without statistics: scoring on the entries [M, n] with their use [M, n, S]."""
        points, shares = self._stand_ins(group)
        added = (self.pseudo_count * shares).unsqueeze(-1).expand(-1, -1, use.shape[2])
        weight = torch.cat([use.double(), added], 1)
        begin = {name: value.double() for name, value in group.parameters.items()}
        return weight.sum(1), climb(group.family, torch.cat([entries.double(), points], 1), weight, begin, steps)

    def _store(self, g: int, count: Tensor, found: Parameters, places: Any = slice(None)) -> None:
        """Keep new parameters of some of family g's leaves; units that nothing uses stay as they are."""
        alive = count > _UNUSED  # [M, S]
        for name, held in self._held[g].items():
            value, old = found[name].to(held), held.data[places]
            keep = alive.reshape(*alive.shape, *[1] * (held.dim() - 2)) & value.isfinite()
            held.data[places] = torch.where(keep, value, old)

    def log_prior(self) -> Tensor:
        """Log density, up to a constant, of what the pseudo-counts stand for, []."""
        total = self._log_prior_of_sums().double()
        for group in self._groups():
            points, shares = self._stand_ins(group)
            if points.shape[1]:
                held = {name: value.double() for name, value in group.parameters.items()}
                value = group.family.log_prob(points, held)  # [M, P, S]
                total = total + torch.where(shares.unsqueeze(-1) > 0, shares.unsqueeze(-1) * value, 0.0).sum()
        return self.pseudo_count * total

    def _stand_ins(self, group: LeafGroup) -> tuple[Tensor, Tensor]:
        """What stands for the data of each of a group's leaves, and its weights, [M, P] each; no P before any data."""
        variable = self._plan.leaf_variable[group.leaves]
        points, shares = self.points[variable].double(), self.shares[variable].double()
        return torch.where(shares > 0, points, group.family.inside), shares

    # -- the start ---------------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor, observed: Tensor) -> None:
        """Leaves of quantiles or clusters of the rows; trees, where they are found, with weights near theirs."""
        self._remember(x, observed)
        if self.graph is None:
            self._start_trees(x, observed)
            return
        self._reset(min(_FIRST, self.most_units))
        row = _clusters(_standardised(x, observed), torch.ones_like(observed), min(self.units, len(x)))
        self._start_leaves(x, observed, row[:, None].expand(-1, x.shape[1]))
        for logits in self.sum_logits:
            logits.copy_(torch.empty_like(logits).exponential_().log())

    def _remember(self, x: Tensor, observed: Tensor) -> None:
        """Values that stand for each variable's data."""
        found = []
        for d, family in enumerate(self.families):
            column = x[observed[:, d], d]
            found.append(family.points(column if len(column) else x.new_full((1,), family.inside)))
        most = max(len(points) for points, _ in found)
        self.points, self.shares = (
            torch.stack([nn.functional.pad(part[i].to(self.base), (0, most - len(part[i]))) for part in found])
            for i in (0, 1)
        )

    def _start_leaves(self, x: Tensor, observed: Tensor, codes: Tensor, part: slice = slice(None)) -> None:
        """Some leaf regions, from the entries that each unit mostly takes.

        Arguments:
            codes: [n, D], the unit that each entry goes to.
            part: of the leaf regions.
        """
        if len(x) > _MOST_START:
            rows = torch.randperm(len(x), device=x.device)[:_MOST_START]
            x, observed, codes = x[rows], observed[rows], codes[rows]
        chosen = torch.zeros(len(self._plan.leaf_variable), dtype=torch.bool, device=x.device)
        chosen[part] = True
        for g, group in enumerate(self._groups()):
            family, places = group.family, chosen[group.leaves].nonzero().flatten()
            variable = self._plan.leaf_variable[group.leaves[places]]
            seen = observed.T[variable]  # [M, n]
            known, which = variable.unique(return_inverse=True)
            begin = [family.start(x[observed[:, d], d]) for d in known.tolist()]
            one = {name: torch.stack([b[name] for b in begin])[which].unsqueeze(1) for name in group.parameters}
            many = {name: value.expand(-1, self.units, *value.shape[2:]) for name, value in one.items()}
            self._store(g, torch.ones(len(places), self.units, device=x.device), many, places)
            if self.units == 1:
                continue
            use = _scattered(nn.functional.one_hot(codes.T[variable], self.units).double() + 0.1) * seen.unsqueeze(-1)
            entries = torch.where(seen, x.T[variable], family.inside)
            some = LeafGroup(family, group.leaves[places], many)
            statistics = _sums(family, entries, use)
            if statistics.shape[-1]:
                self._store(g, *self._maximised(some, statistics), places)
            else:
                self._store(g, *self._climbed(some, entries, use, _START_STEPS), places)

    def _start_trees(self, x: Tensor, observed: Tensor) -> None:
        labels = _clusters(_standardised(x, observed), torch.ones_like(observed), self.components)
        clusters = [(x[labels == c], observed[labels == c]) for c in range(self.components)]
        found = [maximum_spanning_tree(self._information(*rows)) for rows in clusters]
        self.trees = torch.tensor(found, device=x.device)
        self._compile()
        self._reset(min(_FIRST, self.most_units))
        rows, tops = self._rows(), []
        for c, (part, seen) in enumerate(clusters):
            codes = _quantile_codes(part, seen, self.units)
            self._start_leaves(part, seen, codes, slice(c * x.shape[1], (c + 1) * x.shape[1]))
            hot = nn.functional.one_hot(codes, self.units).double() * seen.unsqueeze(-1)  # [n, D, S]
            for d, above in enumerate(self.trees[c].tolist()):
                if above < 0:
                    tops.append(len(part) * normalise(hot[:, d].sum(0) + 1e-3))
                    continue
                moved = hot[:, above].T @ hot[:, d] + 0.5 / self.units
                rows[c, d].copy_(_scattered(normalise(moved)).log())
        self.sum_logits[-1][0, 0] = normalise(torch.cat(tops) + 1e-3).log()

    def _information(self, x: Tensor, observed: Tensor) -> Tensor:
        """Mutual informations that trees are found by, [D, D] nats.

        Of numbers those of the bivariate normal distributions with their correlations, -log(1 - rho^2) / 2; with tables
        of more than two values among them, those of quantile bins.
        """
        if any(isinstance(kind, CategoricalLeaf) and kind.values > 2 for kind in self.kinds):
            return mutual_information(pair_counts(_quantile_codes(x, observed, _BINS), observed, _BINS), 1.0)
        z, seen = _standardised(x, observed) * observed, observed.double()
        correlation = (z.T @ z) / (seen.T @ seen).clamp_min(1.0)
        return -0.5 * torch.log1p(-correlation.square().clamp(max=1 - 1e-9))

    # -- units -------------------------------------------------------------------------------------

    @torch.no_grad()
    def grow(self, noise: float) -> bool:
        """Split every unit in two, apart by noise; False, and no change, where they are enough."""
        if 2 * self.units > self.most_units:
            return False
        leaves = [dict(held.items()) for held in self._held]
        weights, units = list(self.sum_logits), self.units
        self._reset(2 * units)
        for family, old, new in zip(self.kinds, leaves, self._held, strict=True):
            twice = {name: value.repeat_interleave(2, 1) for name, value in old.items()}
            for name, value in family.split(twice, noise).items():
                new[name].copy_(value)
        self._split_sums(weights, units, noise)
        return True

    def _adopt_leaves(self, members: Sequence[Any]) -> None:
        for g, held in enumerate(self._held):
            for name, value in held.items():
                value.copy_(torch.cat([member.leaf_parameters[g][name] for member in members]))
        self.points, self.shares = members[0].points.clone(), members[0].shares.clone()

    def _reset(self, units: int) -> None:
        """Parameters of the right shapes: leaves as families begin, weights even."""
        held = []
        for kind, leaves in zip(self.kinds, self._places_of, strict=True):
            one = {name: value.to(self.base) for name, value in kind.initial().items()}
            many = {name: value.expand(len(leaves), units, *value.shape).clone() for name, value in one.items()}
            held.append(nn.ParameterDict({name: nn.Parameter(value) for name, value in many.items()}))
        self.leaf_parameters = nn.ModuleList(held)
        self._reset_sums(units)

    def _compile(self) -> None:
        super()._compile()
        number = {family: g for g, family in enumerate(self.kinds)}
        kind = torch.tensor([number[family] for family in self.families], device=self._plan.leaf_variable.device)
        self._places_of = [(kind[self._plan.leaf_variable] == g).nonzero().flatten() for g in range(len(self.kinds))]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Trees, units and stand-ins as in the file; the sizes are then the file's."""
        state, prefix = args[:2]
        for name in ("points", "shares"):
            if prefix + name in state:
                setattr(self, name, state[prefix + name].to(self.base))
        trees, top = state.get(prefix + "trees"), state.get(f"{prefix}sum_logits.{len(self.sum_logits) - 1}")
        if trees is not None and trees.shape[1:] == self.trees.shape[1:]:
            self.trees = trees.to(self.trees)
            self._compile()
            last = max((int(k.rpartition(".")[-1]) for k in state if k.startswith(prefix + "sum_logits.")), default=0)
            top = state.get(f"{prefix}sum_logits.{last}")
        if top is not None:
            self._reset(top.shape[-1] // self._plan.groups[-1].products.shape[1])
        nn.Module._load_from_state_dict(self, *args, **kwargs)


def _sums(family: LeafFamily, entries: Tensor, use: Tensor) -> Tensor:
    """Expected statistics of the units of some leaves, float64.

    Arguments:
        entries: [M, n].
        use: [M, n, S].

    Returns:
        [M, S, K] of finite values, else [M, S, 1 + T]; [M, S, 0] where the family has no statistics.
    """
    use = use.double().transpose(1, 2)  # [M, S, n]
    if family.values is not None:
        found = use.new_zeros(*use.shape[:2], family.values)
        return found.scatter_add_(2, entries.long()[:, None].expand_as(use), use)
    known = family.statistics(entries.double())
    if known is None:
        return use.new_zeros(*use.shape[:2], 0)
    return torch.cat([use.sum(-1, keepdim=True), use @ known], -1)


def _standardised(x: Tensor, observed: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1, missing entries at 0, [n, D] float64."""
    count = observed.sum(0).clamp(min=1)
    mean = torch.where(observed, x, 0).double().sum(0) / count
    z = torch.where(observed, x.double() - mean, 0.0)
    return z / (z.square().sum(0) / count).sqrt().clamp_min(1e-12)


def _quantile_codes(x: Tensor, observed: Tensor, bins: int) -> Tensor:
    """Which of so many quantile bins of its column each entry is in, [n, D] int64."""
    codes = torch.zeros(x.shape, dtype=torch.long, device=x.device)
    for d in range(x.shape[1]):
        column = x[observed[:, d], d].double().sort().values
        if len(column):
            edges = column[(torch.arange(1, bins, device=x.device) * len(column)) // bins]
            codes[:, d] = torch.searchsorted(edges, x[:, d].double().contiguous(), right=True)
    return codes
