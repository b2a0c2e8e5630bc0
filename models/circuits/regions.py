"""The weights of a region circuit: how they start, what EM makes of counts, and how units are split in two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.distributions.circuit.regions import RegionGraph, RegionPlan
from ppl_dgm.distributions.circuit.tensorised import Tensorised
from ppl_dgm.errors import ProgramError
from ppl_dgm.evaluate.baselines import maximum_spanning_tree, mutual_information, normalise, pair_counts

from .hidden_tree import hidden_tree_regions

__all__ = ["RegionParameters"]

_FIRST = 4  # units that learning begins with, before they are split
_TREE_COUNT = 1.0  # virtual observations of each pair of variables when trees are found


class RegionParameters(nn.Module):
    """The leaves and sum weights of a region circuit with S units in each region.

    A hidden Chow-Liu tree finds its trees in the data, one for each cluster of rows; other region graphs are given.
    S and the trees travel with the weights, so that a file alone rebuilds the circuit.

    Arguments:
        variables, values: D and K.
        graph: a region graph, or None for hidden Chow-Liu trees (chains before data are seen).
        units: the most S may become.
        components: hidden Chow-Liu trees that are mixed, each started on one cluster of rows.
        pseudo_count: added to the expected counts of each sum unit (spread evenly) and each leaf unit (as the
            variable's distribution in the data).
        smoothing: for values in order: the share of each value's expected count that its two neighbours get. The
            first and the last value, where data are often clipped, keep theirs.

    Source: of the smoothing, Silverman, Jones, Wilson and Nychka (1990), A smoothed EM approach.
    """

    trees: Tensor
    base: Tensor
    kernel: Tensor

    def __init__(
        self,
        variables: int,
        values: int,
        graph: RegionGraph | None,
        units: int,
        components: int,
        pseudo_count: float,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.smoothing = smoothing
        self.register_buffer("kernel", _neighbours(values, smoothing), persistent=False)
        self.graph, self.values, self.pseudo_count = graph, values, pseudo_count
        self.most_units, self.components = units, components
        chain = torch.arange(-1, variables - 1).expand(0 if graph else components, -1)
        self.register_buffer("trees", chain.clone())  # [C, D] the parent of each variable, -1 at roots
        self.register_buffer("base", torch.full((variables, values), 1 / values))
        self._compile()
        self._reset(min(_FIRST, units))

    @property
    def units(self) -> int:
        """S, now."""
        return self.leaf_logits.shape[1]

    def evaluator(self) -> Tensorised:
        """The compiled circuit with the present parameters."""
        weights = tuple(logits.log_softmax(-1) for logits in self.sum_logits)
        return Tensorised(self._plan, self.leaf_logits.log_softmax(-1), weights)

    # -- learning ----------------------------------------------------------------------------------

    def fit_closed_form(self, train: Any, valid: Any) -> dict[str, Any]:
        """
        Raises:
            ProgramError: always; there is no closed form where several paths explain one x.
        """
        raise ProgramError("a circuit of regions has no closed-form estimate; learn it with method='online-em'.")

    @torch.no_grad()
    def em_start(self, x: Tensor, observed: Tensor) -> None:
        """Trees, and weights near the Chow-Liu trees' own; other graphs get random weights near the marginals."""
        seen = torch.where(observed, x, self.values)  # missing entries count in a column of their own
        hot = torch.stack([torch.bincount(column, minlength=self.values + 1) for column in seen.T])
        self.base.copy_(normalise(hot[:, : self.values].double() + 1 / self.values))
        if self.graph is None:
            self._start_trees(x, observed)
            return
        self._reset(min(_FIRST, self.most_units))
        self._near_marginals()

    @torch.no_grad()
    def em_update(self, expected: tuple[Tensor, ...]) -> None:
        """Leaves and weights from expected counts, with the pseudo-counts."""
        leaves, *weights = expected
        a = self.pseudo_count
        prior = a * self.base[self._plan.leaf_variable][:, None]
        if self.smoothing:
            leaves = leaves @ self.kernel.to(leaves)
        self.leaf_logits.copy_(normalise(leaves + prior).log())
        self._update_sums(weights)

    def _update_sums(self, weights: Sequence[Tensor]) -> None:
        """The weights of sums from their expected counts, with the pseudo-counts."""
        for logits, counts in zip(self.sum_logits, weights, strict=True):
            logits.copy_(normalise(counts + self.pseudo_count / counts.shape[-1]).log())

    def log_prior(self) -> Tensor:
        """Log density, up to a constant, of the Dirichlet distributions that the pseudo-counts stand for, []."""
        base = self.base[self._plan.leaf_variable][:, None]
        total = (base * self.leaf_logits.log_softmax(-1)).sum()
        return self.pseudo_count * (total + self._log_prior_of_sums())

    def _log_prior_of_sums(self) -> Tensor:
        """Of one pseudo-count for each unit."""
        return torch.stack([logits.log_softmax(-1).sum() / logits.shape[-1] for logits in self.sum_logits]).sum()

    @torch.no_grad()
    def grow(self, noise: float) -> bool:
        """Split every unit in two, apart by log-normal noise; False, and no change, where they are enough."""
        if 2 * self.units > self.most_units:
            return False
        leaves, weights, units = self.leaf_logits, list(self.sum_logits), self.units
        self._reset(2 * units)
        self.leaf_logits.copy_(leaves.repeat_interleave(2, 1))
        self.leaf_logits.add_(torch.randn_like(self.leaf_logits), alpha=noise)
        self._split_sums(weights, units, noise)
        return True

    def _split_sums(self, weights: list[nn.Parameter], units: int, noise: float) -> None:
        """The weights of sums whose units, so many, were split in two."""
        for new, old, group in zip(self.sum_logits, weights, self._plan.groups, strict=True):
            split = old.unflatten(-1, (group.products.shape[1], units)).repeat_interleave(2, -1).flatten(-2)
            new.copy_(split if group.is_root else split.repeat_interleave(2, 1))
            new.add_(torch.randn_like(new), alpha=noise)

    @torch.no_grad()
    def adopt(self, members: list["RegionParameters"], shares: Tensor) -> None:
        """Become the mixture of hidden Chow-Liu trees learned apart, with these weights; S is the largest of theirs."""
        units = max(member.units for member in members)
        for member in members:
            while member.units < units:
                member.most_units = units
                member.grow(0.0)
        self.trees = torch.cat([member.trees for member in members])
        self._compile()
        self._reset(units)
        self._adopt_leaves(members)
        mine, first, tops = self._rows(), 0, []
        for member, share in zip(members, shares.log(), strict=True):
            theirs = member._rows()
            for (c, d), row in theirs.items():
                mine[first + c, d].copy_(row.log_softmax(-1))
            tops.append(member.sum_logits[-1][0, 0].log_softmax(-1) + share)
            first += len(member.trees)
        self.sum_logits[-1][0, 0] = torch.cat(tops)

    def _adopt_leaves(self, members: list["RegionParameters"]) -> None:
        self.leaf_logits.copy_(torch.cat([member.leaf_logits.log_softmax(-1) for member in members]))

    def _rows(self) -> dict[tuple[int, int], Tensor]:
        """The weights of each (component, variable)'s sum region, as views [S, S]."""
        place = {int(i): (g, f) for g, group in enumerate(self._plan.groups) for f, i in enumerate(group.regions)}
        found = {}
        for name, position in self._places.items():
            group, f = place[position]
            found[name] = self.sum_logits[group].data[f]
        return found

    def _reset(self, units: int) -> None:
        """Parameters of the right shapes, all even."""
        leaves = self.base.new_zeros(len(self._plan.leaf_variable), units, self.values)
        self.leaf_logits = nn.Parameter(leaves)
        self._reset_sums(units)

    def _reset_sums(self, units: int) -> None:
        shapes = [
            (len(group.regions), 1 if group.is_root else units, group.products.shape[1] * units)
            for group in self._plan.groups
        ]
        self.sum_logits = nn.ParameterList(self.base.new_zeros(shape) for shape in shapes)

    def _near_marginals(self) -> None:
        """Leaves scattered about the variables' distributions, weights drawn evenly from the simplex."""
        variable = self._plan.leaf_variable
        noise = torch.empty_like(self.leaf_logits).exponential_()
        self.leaf_logits.copy_((self.base[variable][:, None] * (0.1 + noise)).log())
        for logits in self.sum_logits:
            logits.copy_(torch.empty_like(logits).exponential_().log())

    def _start_trees(self, x: Tensor, observed: Tensor) -> None:
        """A Chow-Liu tree for each cluster of rows, and weights near theirs."""
        labels = _clusters(x, observed, self.components)
        clusters = [(x[labels == c], observed[labels == c]) for c in range(self.components)]
        counts = [pair_counts(*rows, self.values) for rows in clusters]
        found = [maximum_spanning_tree(mutual_information(c, _TREE_COUNT)) for c in counts]
        self.trees = torch.tensor(found, device=x.device)
        self._compile()
        self._reset(min(_FIRST, self.most_units))
        self._near_trees([c.pairs for c in counts], [len(rows) for rows, _ in clusters])

    def _near_trees(self, pairs: list[Tensor], sizes: list[int]) -> None:
        """Units that stand for values of their variable, with the Chow-Liu tree's conditionals between them.

        With fewer units than values, neighbouring values share one; with more, a value has several.
        """
        rows = self._rows()
        variables, tops = len(self.base), []
        for c, (table, size) in enumerate(zip(pairs, sizes, strict=True)):
            singles = table.diagonal(dim1=0, dim2=1).diagonal(dim1=0, dim2=1) + 0.5 * self.base  # [D, K]
            share = self._shares(singles / singles.sum(-1, keepdim=True))  # [D, K, S]
            emission = normalise((singles[..., None] * share).transpose(1, 2)) + 0.1 * self.base[:, None]  # [D, S, K]
            self.leaf_logits[c * variables : (c + 1) * variables] = _scattered(emission).log()
            for d, above in enumerate(self.trees[c].tolist()):
                if above < 0:
                    tops.append(size * normalise(singles[d] @ share[d]))
                    continue
                moved = share[above].T @ (table[above, d] + 0.5 * self.base[d]) @ share[d]  # [S, S]
                rows[c, d].copy_(_scattered(normalise(moved + 1e-3)).log())
        self.sum_logits[-1][0, 0] = normalise(torch.cat(tops) + 1e-3).log()

    def _shares(self, probs: Tensor) -> Tensor:
        """How much of each value each unit takes, [D, K] -> [D, K, S]; each value's shares sum to one."""
        units, values = self.units, self.values
        if units >= values:
            unit = torch.arange(units, device=probs.device)
            mine = (unit % values == torch.arange(values, device=probs.device)[:, None]).to(probs)  # [K, S]
            return (mine / mine.sum(-1, keepdim=True)).expand(len(probs), -1, -1)
        middle = probs.cumsum(-1) - probs / 2
        return torch.nn.functional.one_hot((middle * units).long().clamp(0, units - 1), units).to(probs)

    # -- structure ---------------------------------------------------------------------------------

    def _compile(self) -> None:
        graph = self.graph
        self._places: dict[tuple[int, int], int] = {}
        if graph is None:
            graph, self._places = hidden_tree_regions(self.trees.tolist())
        self._plan = RegionPlan.build(graph, self.trees.device)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Trees and units as in the file; the sizes are then the file's."""
        state, prefix = args[:2]
        trees, leaves = state.get(prefix + "trees"), state.get(prefix + "leaf_logits")
        if trees is not None and trees.shape[1:] == self.trees.shape[1:]:
            self.trees = trees.to(self.trees)
            self._compile()
            if leaves is not None:
                self._reset(leaves.shape[1])
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> "RegionParameters":
        super()._apply(*args, **kwargs)
        self._compile()
        return self


def _neighbours(values: int, share: float) -> Tensor:
    """[K, K]: what part of each value's count goes where."""
    kernel = torch.eye(values)
    for k in range(1, values - 1):
        kernel[k, k - 1 : k + 2] = torch.tensor([share / 2, 1 - share, share / 2])
    return kernel


def _scattered(probs: Tensor) -> Tensor:
    """Each number multiplied by a random one near 1, so that equal units part."""
    return probs * torch.empty_like(probs).exponential_() ** 0.5


def _clusters(x: Tensor, observed: Tensor, count: int) -> Tensor:
    """Which of `count` clusters each row belongs to, by k-means; no cluster is empty."""
    if count == 1:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)
    from sklearn.cluster import KMeans

    if len(x) < count:
        raise ProgramError(f"there are {len(x)} rows for {count} components; ask for fewer components.")
    mean = (x * observed).sum(0) / observed.sum(0).clamp(min=1)
    rows = torch.where(observed, x.double(), mean.double()).cpu().numpy()
    seed = int(torch.randint(2**31 - 1, ()))
    found = torch.as_tensor(KMeans(count, n_init=3, random_state=seed).fit_predict(rows), dtype=torch.long)
    empty = [c for c in range(count) if not bool((found == c).any())]
    for row, c in enumerate(empty):  # duplicates of few distinct rows
        found[row] = c
    return found.to(x.device)
