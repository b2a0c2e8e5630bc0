"""CircuitDistribution: a probabilistic circuit as one Pyro site, with the queries its structure allows."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from ...errors import DataError, ProgramError, TaskUnavailable
from . import events, information, queries
from .blocks import Blocks
from .completion import Completion, complete_well
from .evaluator import Evaluator
from .layers import Layered, compile_layers
from .properties import Properties
from .structure import check_structure
from .tree import Tree, TreePlan

__all__ = ["CircuitDistribution"]


class CircuitDistribution(TorchDistribution):
    """A smooth and decomposable circuit over D categorical variables with values 0 to K - 1; event shape [D].

    One upward pass over the circuit answers evidence and marginal queries with any mask, a second one
    downward conditionals, conditional sampling and, where the circuit is deterministic, the most probable
    completion. A mask is True where an entry is observed; the other entries of x are never looked at. All
    answers are exact.

    Build it with `from_tree` or `from_graph`.

    Arguments:
        evaluator: the compiled circuit.
        observed: [..., D] bool; the density is then that of the observed entries alone (see `marginal`).
        batch_shape: independent copies, usually from `expand`.

    Source: H. Poon and P. Domingos (2011), Sum-product networks; Y. Choi, A. Vergari and G. Van den Broeck
    (2020), Probabilistic circuits; C. Chow and C. Liu (1968) for the tree.

    >>> table = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> circuit = CircuitDistribution.from_tree([-1, 0], table.log())
    >>> circuit.log_prob(torch.tensor([0, 0])).exp()
    tensor(0.4500)
    >>> circuit.log_prob(torch.tensor([0, 0]), mask=torch.tensor([False, True])).exp()
    tensor(0.5500)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self,
        evaluator: Evaluator,
        observed: Tensor | None = None,
        batch_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self.evaluator = evaluator
        shape = torch.Size(batch_shape)
        if observed is not None:
            if observed.dtype != torch.bool or observed.shape[-1:] != (evaluator.variables,):
                raise ProgramError(
                    f"a circuit's mask has dtype {observed.dtype} and shape {tuple(observed.shape)}, but a "
                    "bool tensor "
                    f"[..., {evaluator.variables}] was expected: True where an entry is observed."
                )
            shape = torch.broadcast_shapes(shape, observed.shape[:-1])
        self.observed = observed
        super().__init__(shape, torch.Size([evaluator.variables]), validate_args=validate_args)

    @classmethod
    def from_tree(cls, parents: Sequence[int], logits: Tensor, **kwargs: Any) -> "CircuitDistribution":
        """p(x) = prod_d p(x_d | x_parent(d)).

        Arguments:
            parents: for each variable its parent, -1 for a root.
            logits: [D, K, K] unnormalised log p(x_d = k | x_parent = j) at [d, j, k]; a root uses j = 0.

        Raises:
            ProgramError: the parents form no tree, or the shape does not fit.
        """
        if logits.dim() != 3 or logits.shape[0] != len(parents) or logits.shape[1] != logits.shape[2]:
            raise ProgramError(
                f"logits has shape {tuple(logits.shape)}, but [{len(parents)}, K, K] was expected: one "
                "table for each variable."
            )
        return cls(Tree(TreePlan.build(parents, logits.device), logits.log_softmax(-1)), **kwargs)

    @classmethod
    def from_graph(
        cls,
        graph: nx.DiGraph,
        values: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        **kwargs: Any,
    ) -> "CircuitDistribution":
        """The circuit of a graph that passes `check_structure`, with the graph's own weights.

        Raises:
            ProgramError: the graph is no smooth and decomposable circuit; the message names the node.
        """
        plan, leaves, weights = compile_layers(check_structure(graph, values), device)
        dtype = dtype or torch.get_default_dtype()
        return cls(Layered.from_logits(plan, leaves.to(dtype), weights.to(dtype)), **kwargs)

    @property
    def values(self) -> int:
        """K."""
        return self.evaluator.values

    @property
    def deterministic(self) -> bool:
        """Whether `map` is available."""
        return self.evaluator.overlap is None

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.integer_interval(0, self.values - 1), 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "CircuitDistribution":
        shape = torch.Size(batch_shape)
        observed = None if self.observed is None else self.observed.expand(shape + self.event_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        CircuitDistribution.__init__(new, self.evaluator, observed, shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def marginal(self, observed: Tensor) -> "CircuitDistribution":
        """The same circuit, of which only some entries are observed: its log_prob sums the others out.

        Arguments:
            observed: [..., D] bool, True where observed.
        """
        return CircuitDistribution(self.evaluator, observed, self.batch_shape, self._validate_args)

    # -- queries -----------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """log p(x), or of its observed entries, in nats.

        Arguments:
            x: [..., D] categories.
            mask: [..., D] True where observed; the other entries are summed out. Default: all observed, or
                what `marginal` was given.

        Returns:
            [...], exact; -inf where the observed entries are impossible.

        Raises:
            DataError: an observed entry is not a category.
        """
        mask = self.observed if mask is None else mask
        shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape, *([] if mask is None else [mask.shape[:-1]]))
        rows, observed = self._rows(x, mask, shape)
        return self.evaluator.log_evidence(rows, observed).reshape(shape)

    def marginals(self, x: Tensor, mask: Tensor) -> Tensor:
        """p(x_d = k | observed entries) of each variable; an observed one has all mass on its value.

        Returns:
            [..., D, K] probabilities, exact. Not differentiable.

        Raises:
            DataError: the observed entries of a row have probability zero.
        """
        shape = torch.broadcast_shapes(x.shape[:-1], mask.shape[:-1])
        return self.evaluator.marginals(*self._given(x, mask, shape)).reshape(*shape, *self.event_shape, self.values)

    def conditional_sample(self, x: Tensor, mask: Tensor, n: int = 1) -> Tensor:
        """Exact draws of the missing entries given the observed ones, which are kept.

        Returns:
            [n, ..., D] int64.

        Raises:
            DataError: the observed entries of a row have probability zero.
        """
        shape = torch.broadcast_shapes(x.shape[:-1], mask.shape[:-1])
        rows, observed = self._given(x, mask, shape)
        with torch.no_grad():
            drawn = self.evaluator.complete(rows.repeat(n, 1), observed.repeat(n, 1))
        return drawn.reshape(n, *shape, *self.event_shape)

    def map(self, x: Tensor, mask: Tensor) -> Tensor:
        """argmax of p(x) over the missing entries, the observed ones kept.

        Returns:
            [..., D] int64, exact.

        Raises:
            TaskUnavailable: the circuit is not certified to be deterministic; see `approximate_map`.
            DataError: the observed entries of a row have probability zero.
        """
        if self.evaluator.overlap is not None:
            raise TaskUnavailable(
                "the most probable completion needs a deterministic circuit, but "
                f"{self.evaluator.overlap}; the nearest "
                "thing is approximate_map(x, mask), the best completion found with a bound on all others."
            )
        shape = torch.broadcast_shapes(x.shape[:-1], mask.shape[:-1])
        with torch.no_grad():
            return self.evaluator.maximise(*self._given(x, mask, shape)).reshape(*shape, *self.event_shape)

    def approximate_map(
        self, x: Tensor, mask: Tensor, draws: int = 32, sweeps: int = 10, branches: int = 0
    ) -> Completion:
        """A completion of large p(x) for any circuit, with a bound that none exceeds.

        Arguments:
            x, mask: [..., D].
            draws: conditional draws that the search starts from.
            sweeps: rounds of changing one entry at a time, at most.
            branches: partial completions that branch and bound may divide for each row; with enough of them the
                completion is proved to be the most probable one (a gap of 0).

        Returns:
            The completion, its log density and the bound; exact (a gap of 0) for a deterministic circuit.

        Raises:
            DataError: the observed entries of a row have probability zero.
        """
        shape = torch.broadcast_shapes(x.shape[:-1], mask.shape[:-1])
        rows = self._given(x, mask, shape)
        with torch.no_grad():
            if self.deterministic:
                value = self.evaluator.maximise(*rows)
                log_prob = self.evaluator.log_evidence(value)
                found = Completion(value, log_prob, log_prob)
            else:
                found = complete_well(self.evaluator, *rows, draws, sweeps, branches)
        return Completion(found.value.reshape(*shape, -1), found.log_prob.reshape(shape), found.bound.reshape(shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of all entries, [*sample_shape, *batch_shape, D] int64; a mask plays no part."""
        shape = self._extended_shape(torch.Size(sample_shape))
        empty = torch.zeros(shape[:-1].numel(), self.event_shape[0], dtype=torch.long, device=self._device)
        with torch.no_grad():
            return self.evaluator.complete(empty, torch.zeros_like(empty, dtype=torch.bool)).reshape(shape)

    @property
    def mean(self) -> Tensor:
        """E[x_d] of each variable, [*batch_shape, D]."""
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        """Var[x_d] of each variable, [*batch_shape, D]."""
        return self._moment(2) - self._moment(1) ** 2

    # -- queries that depend on the structure ------------------------------------------------------

    def properties(self) -> Properties:
        """What the structure is certified to be, with the reason where it is not."""
        return queries.describe(self)

    def to_graph(self) -> nx.DiGraph:
        """The circuit node by node, as `from_graph` takes it; large circuits make large graphs."""
        return Blocks.of(self.evaluator).to_graph()

    def entropy(self) -> Tensor:
        """-E[log p(x)] in nats, exact, [*batch_shape].

        Raises:
            TaskUnavailable: the circuit is not certified to be deterministic; see `entropy_bound`.
        """
        if not self.deterministic:
            raise TaskUnavailable(
                f"the entropy needs a deterministic circuit, but {self.evaluator.overlap}; entropy_bound() gives what "
                "it lies between."
            )
        table = self.evaluator.tables[0]
        return table.new_tensor(queries.entropy_bound(self).lower).expand(self.batch_shape)

    def entropy_bound(self) -> queries.Bound:
        """What the entropy lies between, in nats; see `queries.entropy_bound`."""
        return queries.entropy_bound(self)

    def cross_entropy(self, other: "CircuitDistribution") -> float:
        """-E_self[log other(x)] in nats, exact; see `queries.cross_entropy`."""
        return queries.cross_entropy(self, other)

    def kl(self, other: "CircuitDistribution") -> queries.Bound:
        """KL(self || other) in nats; see `queries.kl`."""
        return queries.kl(self, other)

    def product(self, other: "CircuitDistribution") -> "tuple[CircuitDistribution, float]":
        """The normalised product with a compatible circuit and its log normaliser; see `queries.product`."""
        return queries.product(self, other)

    def power(self, alpha: float) -> "tuple[CircuitDistribution, float]":
        """The normalised power and its log normaliser; see `queries.power`."""
        return queries.power(self, alpha)

    def mutual_information(
        self, x: Tensor | None = None, mask: Tensor | None = None, target: int | None = None
    ) -> Tensor:
        """What each variable tells of each other in nats, exact; see `queries.mutual_information`."""
        return queries.mutual_information(self, x, mask, target)

    def information(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """-log p(x_d | the other observed entries) of each entry, in nats, exact: what the rest does not tell.

        Arguments:
            x: [..., D] categories.
            mask: [..., D] True where observed; default: all, or what `marginal` was given.

        Returns:
            [..., D]; 0 where an entry is missing, infinite where it is impossible given the rest, NaN where the rest
            is impossible. Not differentiable. See `information.information` for how.

        Raises:
            DataError: an observed entry is not a category.
        """
        mask = self.observed if mask is None else mask
        shape = torch.broadcast_shapes(x.shape[:-1], self.batch_shape, *([] if mask is None else [mask.shape[:-1]]))
        return information.information(self, *self._rows(x, mask, shape)).reshape(shape + self.event_shape)

    def marginal_entropies(self, x: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """H(x_d | observed entries) of each variable in nats, exact, [..., D]; 0 for an observed one.

        Arguments:
            x, mask: [..., D]; default: nothing is observed, and the result is [D].

        Raises:
            DataError: the observed entries of a row have probability zero.
        """
        x = torch.zeros(self.event_shape, dtype=torch.long, device=self._device) if x is None else x
        mask = torch.zeros_like(x, dtype=torch.bool) if mask is None else mask
        shape = torch.broadcast_shapes(x.shape[:-1], mask.shape[:-1])
        found = information.marginal_entropies(self, *self._given(x, mask, shape))
        return found.reshape(shape + self.event_shape)

    def probability(self, event: events.Event, given: events.Event | None = None) -> Tensor:
        """P(event), or P(event | given), exact; a float64 scalar.

        Arguments:
            event: {variable: values}: each of these variables has one of its values; a list of such: at least one of
                them holds. Values are a category, a collection of categories, or K flags.
            given: likewise.

        Raises:
            ProgramError: an unknown variable or category.
            DataError: `given` has probability zero.
            TaskUnavailable: a union has too many intersections.

        >>> table = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]])
        >>> circuit = CircuitDistribution.from_tree([-1, 0], table.log())
        >>> circuit.probability([{0: 1}, {1: {1}}]), circuit.probability({0: 1}, given={1: 1})
        (tensor(0.5500, dtype=torch.float64), tensor(0.8889, dtype=torch.float64))
        """
        return events.log_probability(self, event, given).exp()

    def log_probability(self, event: events.Event, given: events.Event | None = None) -> Tensor:
        """log of `probability` in nats, where it may be small; differentiable in the circuit's parameters."""
        return events.log_probability(self, event, given)

    def conditioned(self, event: events.Event) -> "CircuitDistribution":
        """The circuit of x given that an event {variable: values} holds; see `events.conditioned`."""
        return events.conditioned(self, event)

    # -- how ---------------------------------------------------------------------------------------

    @property
    def _device(self) -> torch.device:
        return self.evaluator.tables[0].device

    def _moment(self, power: int) -> Tensor:
        empty = torch.zeros(1, self.event_shape[0], dtype=torch.long, device=self._device)
        probs = self.evaluator.marginals(empty, torch.zeros_like(empty, dtype=torch.bool))[0]  # [D, K]
        values = torch.arange(self.values, device=self._device).to(probs) ** power
        return (probs @ values).expand(self.batch_shape + self.event_shape)

    def _rows(self, x: Tensor, mask: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """x and mask as [n, D]; what is not observed becomes category 0."""
        if x.shape[-1:] != self.event_shape:
            raise DataError(
                f"x has shape {tuple(x.shape)}, but the circuit has {self.event_shape[0]} variables: [..., "
                f"{self.event_shape[0]}] was expected."
            )
        full = shape + self.event_shape
        x = x.expand(full).reshape(-1, *self.event_shape)
        observed = None if mask is None else mask.expand(full).reshape(-1, *self.event_shape)
        if self._validate_args:
            wrong = ~((x >= 0) & (x < self.values) & (x == torch.floor(x)))
            wrong = wrong if observed is None else wrong & observed
            if wrong.any():
                row, column = (int(i) for i in wrong.nonzero()[0])
                raise DataError(
                    f"x[{row}, {column}] is {x[row, column].item()}, but the circuit's values are whole "
                    "numbers from 0 to "
                    f"{self.values - 1}; set the mask to False where an entry is missing."
                )
        x = x if observed is None else torch.where(observed, x, torch.zeros_like(x))
        return x.long(), observed

    def _given(self, x: Tensor, mask: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Rows to condition on."""
        rows, observed = self._rows(x, mask, shape)
        assert observed is not None
        with torch.no_grad():
            impossible = self.evaluator.log_evidence(rows, observed) == -torch.inf
        if impossible.any():
            raise DataError(
                f"the observed entries of row {int(impossible.nonzero()[0])} have probability zero under "
                "the circuit, so there "
                "is nothing to condition on; learn it with a pseudo-count above 0."
            )
        return rows, observed


@register_kl(CircuitDistribution, CircuitDistribution)
def _kl_circuits(p: CircuitDistribution, q: CircuitDistribution) -> Tensor:
    """torch's kl_divergence, where both circuits make it exact."""
    if not p.deterministic:
        raise TaskUnavailable(
            f"KL(p || q) needs a deterministic p, but {p.evaluator.overlap}; p.kl(q) gives what it lies between."
        )
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return p.evaluator.tables[0].new_tensor(queries.kl(p, q).lower).expand(shape)
