"""FamilyCircuit: a circuit with leaves of any families as one Pyro site."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ...errors import DataError, TaskUnavailable
from .completion import Completion
from .distribution import CircuitDistribution
from .evaluator import FLOOR
from .family_regions import FamilyRegions, LeafMarginals
from .queries import Bound

__all__ = ["FamilyCircuit", "as_entries"]

_NO_ENTROPY = (
    "the entropy and what it lies between need tables of values, but the leaves are of other families; estimate it by "
    "-log_prob of draws of sample((n,))."
)


class FamilyCircuit(CircuitDistribution):
    """A smooth and decomposable circuit whose leaves are densities, counts, tables or a mix of them; event shape [D].

    Evidence, marginals and conditional draws are exact as in `CircuitDistribution`; x is floating point. Queries that
    walk over tables of values (entropy bounds, products, the search for the best completion) are for circuits over
    categories.

    Arguments:
        evaluator: the compiled circuit.
        observed, batch_shape: as in `CircuitDistribution`.
    """

    evaluator: FamilyRegions  # type: ignore[assignment]

    @property
    def values(self) -> int | None:  # type: ignore[override]
        """None: the entries are not categories."""
        return None

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        supports = self.evaluator.supports
        one = supports[0] if all(s is supports[0] or s == supports[0] for s in supports) else None
        return constraints.independent(constraints.stack(supports, -1) if one is None else one, 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FamilyCircuit":
        shape = torch.Size(batch_shape)
        observed = None if self.observed is None else self.observed.expand(shape + self.event_shape)
        return FamilyCircuit(self.evaluator, observed, shape, self._validate_args)  # type: ignore[arg-type]

    def marginal(self, observed: Tensor) -> "FamilyCircuit":
        return FamilyCircuit(self.evaluator, observed, self.batch_shape, self._validate_args)  # type: ignore[arg-type]

    def marginals(self, x: Tensor, mask: Tensor) -> LeafMarginals:  # type: ignore[override]
        """The distribution of each variable given the observed entries, batch shape [n, D]; x and mask are [n, D]."""
        return self.evaluator.marginals(*self._given(x, mask, x.shape[:-1]))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of all entries, [*sample_shape, *batch_shape, D]; a mask plays no part."""
        shape = self._extended_shape(torch.Size(sample_shape))
        empty = self.evaluator.weights[-1].detach().new_zeros(shape[:-1].numel(), self.event_shape[0])
        with torch.no_grad():
            return self.evaluator.complete(empty, torch.zeros_like(empty, dtype=torch.bool)).reshape(shape)

    @property
    def mean(self) -> Tensor:
        return self._free.mean[0].expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        return self._free.variance[0].expand(self.batch_shape + self.event_shape)

    def approximate_map(self, *args: Any, **kwargs: Any) -> Completion:
        raise TaskUnavailable(
            "the search for the most probable completion is for circuits over categories; take the most probable of "
            "some draws of conditional_sample(x, mask, n), or the means of marginals(x, mask)."
        )

    def marginal_entropies(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TaskUnavailable(
            "the entropies of single variables need tables of values, but the leaves are of other families; estimate "
            "them by -log_prob of marginals(x, mask) on draws of it."
        )

    def entropy(self) -> Tensor:
        raise TaskUnavailable(_NO_ENTROPY)

    def entropy_bound(self) -> Bound:
        raise TaskUnavailable(_NO_ENTROPY)

    def log_probability(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TaskUnavailable(
            "the probability of an event needs tables of values, but the leaves are of other families; estimate it by "
            "the share of the draws of sample((n,)) for which it holds."
        )

    probability = log_probability

    def conditioned(self, *args: Any, **kwargs: Any) -> CircuitDistribution:
        raise TaskUnavailable(
            "conditioning on an event needs tables of values, but the leaves are of other families; keep the draws of "
            "sample((n,)) for which it holds."
        )

    def mutual_information(self, *args: Any, **kwargs: Any) -> Tensor:
        raise TaskUnavailable(
            "mutual information needs tables of values, but the leaves are of other families; estimate it by "
            "log_prob with and without a mask on draws of sample((n,))."
        )

    @property
    def _free(self) -> LeafMarginals:
        empty = self.evaluator.weights[-1].detach().new_zeros(1, self.event_shape[0])
        return self.evaluator.marginals(empty, torch.zeros_like(empty, dtype=torch.bool))

    def _rows(self, x: Tensor, mask: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """x and mask as [n, D], in the circuit's number type."""
        if x.shape[-1:] != self.event_shape:
            raise DataError(
                f"x has shape {tuple(x.shape)}, but the circuit has {self.event_shape[0]} variables: [..., "
                f"{self.event_shape[0]}] was expected."
            )
        full = shape + self.event_shape
        x = x.expand(full).reshape(-1, *self.event_shape).to(self.evaluator.weights[-1].dtype)
        observed = None if mask is None else mask.expand(full).reshape(-1, *self.event_shape)
        if self._validate_args:
            refuse_outside(x, observed, self.evaluator.supports)
        return x if observed is None else torch.where(observed, x, torch.zeros_like(x)), observed

    def _given(self, x: Tensor, mask: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        rows, observed = self._rows(x, mask, shape)
        assert observed is not None
        with torch.no_grad():
            impossible = self.evaluator.log_evidence(rows, observed) <= FLOOR / 2
        if impossible.any():
            raise DataError(
                f"the observed entries of row {int(impossible.nonzero()[0])} have density zero under the circuit, so "
                "there is nothing to condition on."
            )
        return rows, observed


def as_entries(x: Tensor, variables: int, supports: Sequence[constraints.Constraint]) -> tuple[Tensor, Tensor]:
    """A checked table of entries of these supports.

    Arguments:
        x: [n, D]; NaN, or below 0 where the variable is discrete and never so, where an entry is missing.
        variables: D.
        supports: of each variable.

    Returns:
        x [n, D] with zeros where an entry is missing, and the mask [n, D], True where observed.

    Raises:
        DataError: the table has another width, or an entry is outside its variable's support.
    """
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[-1] != variables:
        found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise DataError(f"x has {found}, but a tensor [rows, {variables}] was expected: one row for each example.")
    counts = [bool(s.is_discrete) and getattr(s, "lower_bound", -1) >= 0 for s in supports]
    hole = x.isnan() | ((x == -1) & torch.tensor(counts, device=x.device))
    refuse_outside(x, ~hole, supports)
    return torch.where(hole, torch.zeros_like(x), x), ~hole


def refuse_outside(x: Tensor, observed: Tensor | None, supports: Sequence[constraints.Constraint]) -> None:
    """
    Raises:
        DataError: an observed entry of x [n, D] is outside its variable's support; the message names the first.
    """
    for support in dict.fromkeys(supports):
        columns = torch.tensor([d for d, other in enumerate(supports) if other is support], device=x.device)
        wrong = ~support.check(x[:, columns]) | x[:, columns].isinf() | x[:, columns].isnan()
        if observed is not None:
            wrong = wrong & observed[:, columns]
        if wrong.any():
            row, column = (int(i) for i in wrong.nonzero()[0])
            place = int(columns[column])
            raise DataError(
                f"x[{row}, {place}] is {x[row, place].item()}, but the leaves of variable {place} have the support "
                f"{support}; NaN marks a missing entry."
            )
