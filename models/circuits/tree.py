"""The Chow-Liu tree of a circuit: its parameters, and how they are learned in closed form or by EM."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.distributions.circuit.tree import Tree, TreePlan
from ppl_dgm.errors import ProgramError
from ppl_dgm.evaluate.baselines import (
    MARGINAL_COUNT,
    TREE_GRID,
    PairCounts,
    best_on_validation,
    maximum_spanning_tree,
    mutual_information,
    normalise,
    pair_counts,
)

__all__ = ["STRUCTURES", "TreeParameters"]

STRUCTURES = ("chow-liu", "chain", "star", "independent")


class TreeParameters(nn.Module):
    """A tree over D categorical variables with K values.

    The tree itself is the buffer `parents`, so that the weights alone rebuild it. With the structure
    "chow-liu" it is a chain until data have been seen; the other structures stay as they are.

    Arguments:
        variables: D.
        values: K.
        structure: "chow-liu", "chain" (x_d depends on x_{d-1}), "star" (all on x_0), "independent".
        pseudo_count: virtual observations in each row of a conditional table; None: chosen on validation.
    """

    parents: Tensor
    base: Tensor

    def __init__(self, variables: int, values: int, structure: str, pseudo_count: float | None) -> None:
        super().__init__()
        if structure not in STRUCTURES:
            raise ProgramError(
                f"structure is {structure!r}, but one of {', '.join(STRUCTURES)} or a graph was expected."
            )
        self.structure, self.pseudo_count, self.values = structure, pseudo_count, values
        shape = (variables, values, values)
        self.logits = nn.Parameter(torch.zeros(shape))  # [d, value of the parent, value of d]
        start = {"star": [-1] + [0] * (variables - 1), "independent": [-1] * variables}
        self.register_buffer("parents", torch.tensor(start.get(structure, list(range(-1, variables - 1)))))
        # what the pseudo-counts shrink to
        self.register_buffer("base", torch.full((variables, values), 1 / values))
        self._compile()

    def evaluator(self) -> Tree:
        """The compiled circuit with the present parameters."""
        return Tree(self._plan, self.logits.log_softmax(-1))

    def _compile(self) -> None:
        """Sort the tree into levels, whenever it changes or moves: evaluation reads no tensor's values."""
        self._plan = TreePlan.build(self.parents.tolist(), self.parents.device)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._compile()

    def _apply(self, *args: Any, **kwargs: Any) -> "TreeParameters":
        super()._apply(*args, **kwargs)
        self._compile()
        return self

    @torch.no_grad()
    def fit_closed_form(self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
        """Maximum likelihood with pseudo-counts; see `ChowLiuTree` in `evaluate.baselines`."""
        counts = pair_counts(*train, self.values)

        def fitted(a: float) -> _Candidate:
            parents = self._parents(counts, a)
            return _Candidate(parents, counts.log_conditionals(parents, a), a)

        rows = None if valid is None else torch.cat([valid[0], valid[1]], -1)  # categories and mask, side by side
        best = best_on_validation(fitted, TREE_GRID, self.pseudo_count, rows, float(self.values))
        self._set(best.parents, best.log_conditionals, counts.marginals(best.pseudo_count))
        return {"pseudo_count": best.pseudo_count, "parents": best.parents}

    @torch.no_grad()
    def em_start(self, x: Tensor, observed: Tensor) -> None:
        """The tree, and conditionals from the pairs that are observed together."""
        counts = pair_counts(x, observed, self.values)
        a = float(self.values) if self.pseudo_count is None else self.pseudo_count
        parents = self._parents(counts, a)
        self._set(parents, counts.log_conditionals(parents, a), counts.marginals(a))

    @torch.no_grad()
    def em_update(self, expected: tuple[Tensor, ...]) -> None:
        """Conditionals from expected counts [D, K, K]."""
        a = float(self.values) if self.pseudo_count is None else self.pseudo_count
        root = MARGINAL_COUNT if a > 0 else 0.0
        pseudo = torch.where((self.parents < 0)[:, None, None], root, a * self.base.double()[:, None])
        self.logits.copy_(normalise(expected[0].double() + pseudo).log())

    def _parents(self, counts: PairCounts, pseudo_count: float) -> list[int]:
        if self.structure == "chow-liu":
            return maximum_spanning_tree(mutual_information(counts, pseudo_count))
        return self.parents.tolist()

    def _set(self, parents: list[int], log_conditionals: Tensor, base: Tensor) -> None:
        self.parents.copy_(torch.tensor(parents))
        self.base.copy_(base)
        self.logits.copy_(log_conditionals)
        self._compile()


class _Candidate:
    """A tree that is tried on the validation rows."""

    def __init__(self, parents: list[int], log_conditionals: Tensor, pseudo_count: float) -> None:
        self.parents, self.log_conditionals, self.pseudo_count = parents, log_conditionals, pseudo_count

    def log_prob(self, rows: Tensor) -> Tensor:
        x, observed = rows.tensor_split(2, -1)
        mask = None if bool(observed.all()) else observed.bool()
        tree = Tree(TreePlan.build(self.parents, x.device), self.log_conditionals)
        return tree.log_evidence(x, mask)
