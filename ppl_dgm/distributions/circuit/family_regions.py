"""Region circuits whose leaves are of any families: evidence, use of units, draws, and marginals of each variable."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from .evaluator import FLOOR, in_chunks
from .families import LeafFamily
from .regions import RegionPlan
from .tensorised import root_values, units_in_use

__all__ = ["FamilyRegions", "LeafGroup", "LeafMarginals"]


@dataclass(frozen=True)
class LeafGroup:
    """The leaf regions of one family.

    Attributes:
        family: of what.
        leaves: [M] which leaf regions.
        parameters: each [M, S, ...].
    """

    family: LeafFamily
    leaves: Tensor
    parameters: dict[str, Tensor]


@dataclass(frozen=True)
class FamilyRegions:
    """A region circuit with its leaf families and weights.

    Rows are x [n, D], floating point, and observed [n, D] bool (None: all); what x holds at other entries is never
    looked at.

    Attributes:
        plan: the compiled region graph.
        groups: of leaves; together all of them.
        weights: for each group of sums, [F, S, P S] log weights (the root: [1, 1, P S]).
    """

    plan: RegionPlan
    groups: tuple[LeafGroup, ...]
    weights: tuple[Tensor, ...]

    @property
    def variables(self) -> int:
        return self.plan.graph.variables

    @property
    def values(self) -> None:
        """The entries are not categories."""

    @property
    def units(self) -> int:
        """S."""
        return self.weights[-1].shape[2] // self.plan.groups[-1].products.shape[1]

    @property
    def overlap(self) -> str | None:
        return "the units of its regions are mixtures over the same values"

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """The log weights of sums, then the parameters of leaves."""
        return (*self.weights, *(value for group in self.groups for value in group.parameters.values()))

    @property
    def supports(self) -> list[constraints.Constraint]:
        """Of each variable."""
        found: list[Any] = [None] * self.variables
        for group in self.groups:
            support = group.family.support
            for v in self.plan.leaf_variable[group.leaves].tolist():
                found[v] = support
        return found

    @property
    def size(self) -> int:
        """Numbers per row in all that the two passes keep."""
        return 4 * max(self.plan.products, len(self.plan.leaf_variable)) * self.units

    def leaf_values(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of each leaf's units, [L, n, S]; 0 where the entry is missing, as it integrates to one."""
        value = self.weights[-1].new_zeros(len(self.plan.leaf_variable), len(x), self.units)
        for group in self.groups:
            entries, seen = self.entries(group, x, observed)
            part = group.family.log_prob(entries, group.parameters).to(value)
            if seen is not None:
                part = torch.where(seen.unsqueeze(-1), part, 0.0)
            value = value.index_copy(0, group.leaves, part.clamp(min=FLOOR))
        return value

    def entries(self, group: LeafGroup, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The variables of a group's leaves, [M, n], with a value of the support where they are missing; and the mask."""
        variable = self.plan.leaf_variable[group.leaves]
        entries = x.T[variable]
        if observed is None:
            return entries, None
        seen = observed.T[variable]
        return torch.where(seen, entries, torch.full_like(entries, group.family.inside)), seen

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Log density of the observed entries, the others integrated out, [n]."""

        def rows(x: Tensor, *observed: Tensor) -> Tensor:
            return root_values(self.plan, self.leaf_values(x, *observed), self.weights)

        return in_chunks(rows, self.size, x, *([] if observed is None else [observed]))

    def use(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """How probable it is that each unit of each leaf is in use given the observed entries, [L, n, S]."""
        with torch.inference_mode(False), torch.enable_grad():
            leaves = self.leaf_values(x, observed).detach().clone().requires_grad_()
            value = root_values(self.plan, leaves, tuple(weight.detach() for weight in self.weights))
            return torch.autograd.grad(value.sum(), leaves)[0]

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        """One draw of the missing entries given the observed ones, [n, D]."""
        return in_chunks(self._complete, self.size, x, observed)

    def _complete(self, x: Tensor, observed: Tensor) -> Tensor:
        unit = units_in_use(self.plan, self.leaf_values(x, observed), self.weights)  # [L, n]
        drawn = torch.where(observed, x, torch.zeros_like(x))
        for group in self.groups:
            mine = unit[group.leaves]  # [M, n]
            leaf = torch.arange(len(mine), device=x.device)[:, None]
            chosen = {name: value[leaf, mine.clamp(min=0)] for name, value in group.parameters.items()}
            value = group.family.distribution(**chosen).sample().to(x)  # [M, n]
            variable = self.plan.leaf_variable[group.leaves]
            wanted = (mine >= 0) & ~observed.T[variable]  # one leaf for each variable
            drawn = drawn.index_add(1, variable, torch.where(wanted, value, torch.zeros_like(value)).T)
        return drawn

    def marginals(self, x: Tensor, observed: Tensor) -> "LeafMarginals":
        """The distribution of each variable given the observed entries, batch shape [n, D]."""
        use = torch.cat(
            [self.use(*rows) for rows in zip(*(t.split(self._rows) for t in (x, observed)), strict=True)], 1
        )
        parts = []
        for group in self.groups:
            variable = self.plan.leaf_variable[group.leaves]
            known = variable.unique()
            of = [(variable == v).nonzero().flatten() for v in known]
            most = max(len(places) for places in of)
            index = torch.stack([torch.nn.functional.pad(p, (0, most - len(p)), value=-1) for p in of])  # [V, most]
            chance = use[group.leaves][index.clamp(min=0)] * (index >= 0)[..., None, None]  # [V, most, n, S]
            probs = chance.permute(2, 0, 1, 3).flatten(2)  # [n, V, C]
            parameters = {
                name: value.detach()[index.clamp(min=0)].flatten(1, 2) for name, value in group.parameters.items()
            }
            parts.append((group.family, known, probs / probs.sum(-1, keepdim=True), parameters))
        return LeafMarginals(x, observed, parts)

    @property
    def _rows(self) -> int:
        return max(1, 2**23 // self.size)


Part = tuple[LeafFamily, Tensor, Tensor, dict[str, Tensor]]


class LeafMarginals(TorchDistribution):
    """Each variable's distribution given the observed ones: a mixture of its leaves; an observed one stays as it is.

    Arguments:
        x, observed: [n, D].
        parts: for each family its variables [V], their mixtures' weights [n, V, C] and parameters, each [V, C, ...].
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, x: Tensor, observed: Tensor, parts: list[Part]) -> None:
        self.x, self.observed, self.parts = x, observed, parts
        super().__init__(x.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.real

    @property
    def mean(self) -> Tensor:
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, variance = self.x.clone(), torch.zeros_like(self.x)
        for family, variables, probs, parameters in self.parts:
            means, spreads = (value.to(probs) for value in family.moments(parameters))  # [V, C]
            first = (probs * means).sum(-1)  # [n, V]
            mean[:, variables] = first.to(mean)
            spread = (probs * (spreads + (means - first.unsqueeze(-1)).square())).sum(-1)
            variance[:, variables] = spread.to(variance)
        return torch.where(self.observed, self.x, mean), torch.where(self.observed, 0.0, variance)

    def log_prob(self, value: Tensor) -> Tensor:
        """In nats, [n, D]; of an observed entry 0 at its value, else -inf."""
        found = torch.where(value == self.x, 0.0, -torch.inf).to(self.x)
        for family, variables, probs, parameters in self.parts:
            rows = family.log_prob(value[:, variables].T, parameters).transpose(0, 1)  # [n, V, C]
            mixed = (probs.log() + rows).logsumexp(-1).to(found)
            found[:, variables] = torch.where(self.observed[:, variables], found[:, variables], mixed)
        return found

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        drawn = self.x.expand(*shape, *self.x.shape).clone()
        for family, variables, probs, parameters in self.parts:
            unit = torch.distributions.Categorical(probs=probs).sample(shape)  # [..., n, V]
            row = torch.arange(len(variables), device=unit.device)
            chosen = {name: value[row, unit] for name, value in parameters.items()}
            drawn[..., variables] = family.distribution(**chosen).sample().to(drawn)
        return torch.where(self.observed, self.x, drawn)
