"""Circuit: a probabilistic circuit as a program, by default a Chow-Liu tree over categorical variables."""

from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ppl_dgm.distributions.circuit import CircuitDistribution
from ppl_dgm.distributions.circuit.completion import Completion
from ppl_dgm.distributions.circuit.entries import as_rows, split_missing
from ppl_dgm.distributions.circuit.events import Event
from ppl_dgm.distributions.circuit.family_circuit import FamilyCircuit, as_entries
from ppl_dgm.distributions.circuit.family_regions import FamilyRegions
from ppl_dgm.distributions.circuit.tensorised import Tensorised
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.evaluate.baselines import normalise
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from .family_regions import FamilyRegionParameters
from .found import FoundParameters
from .graph import GraphParameters, graph_to_json
from .regions import RegionParameters
from .tree import TreeParameters
from .weights import common_support, weights_of

__all__ = ["Circuit"]


class Circuit(Program):
    """x_n ~ Circuit(structure, weights), one observed site and no approximation anywhere.

    A Chow-Liu tree, p(x) = prod_d p(x_d | x_parent(d)), is the smooth, decomposable and deterministic
    circuit that is learned in closed form. Other structures are region circuits, which grow by online EM, graphs that
    are found in the data and counted, and any graph over categorical leaves by `Circuit.from_graph`.
    Entries of x that are -1 (or NaN) are missing, and are summed out exactly by `score`, `infer` and `learn`.
    On digits: 96.5 nats per test image.

    Arguments:
        observed: D variables.
        values: K, each takes the values 0 to K - 1.
        structure: "chow-liu" (found in the data; a chain before that), "chain", "star", "independent"; "hclt", a
            hidden Chow-Liu tree with `units` states for each variable; the region graphs "random", "binary-tree",
            "linear" and, for images, "poon-domingos" and "quad-tree" (see `region_structures`); "learn-spn", "cutset"
            and "forest", graphs found in the data; or a graph as `from_graph` writes it.
        pseudo_count: virtual observations in each row of a conditional table; None: the best on the
            validation split (`values` where there is none). For a graph: what EM adds to each node's
            counts; None adds nothing. For "hclt" and region graphs: the same; None adds K / 10. For graphs found in the
            data: added to each node's counts; None: the best on the validation split (1 where there is none).
        units: states of each hidden variable of "hclt" and units of each region; learning begins with few and splits
            them.
        components: hidden Chow-Liu trees that are mixed, each started on one k-means cluster of the rows.
        shape: (height, width) of images; for "poon-domingos" and "quad-tree".
        options: of the structure, by the names of its builder's arguments: {"replicas": 16, "depth": 4, "seed": 1} for
            "random", {"step": 2} for "poon-domingos", {"cuts": "four"} for "quad-tree", {"min_rows": 100} for
            "learn-spn", {"max_depth": 5} for "cutset", {"target": 0, "trees": 50} for "forest".
        smoothing: for "hclt" and region graphs over values in order, as grey levels: in learning, the share of each
            value's expected count that goes to its two neighbours.
        leaf: what the leaves of "hclt" and region graphs are: "categorical", "bernoulli", "gaussian",
            "discretised-logistic" (over `values` values), the name or the class of a univariate family of Pyro
            ("poisson", `dist.StudentT`), a `LeafFamily`; or a list of these, one for each variable. Where the entries
            are not categories, NaN marks a missing one, and a None pseudo-count is one row.

    Raises:
        ProgramError: an argument is out of range, or the graph is not a smooth and decomposable circuit.

    Source: C. Chow and C. Liu (1968); H. Poon and P. Domingos (2011); J. Tomczak (2024), Deep Generative
    Modeling, 2.4.
    """

    def __init__(
        self,
        observed: int = 64,
        values: int = 17,
        structure: str | dict[str, Any] = "chow-liu",
        pseudo_count: float | None = None,
        units: int = 32,
        components: int = 1,
        shape: Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
        smoothing: float = 0.0,
        leaf: Any = "categorical",
    ) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ProgramError(f"smoothing is {smoothing}, but a share from 0 to below 1 was expected.")
        sizes = (("observed", observed), ("values", values), ("units", units), ("components", components))
        for name, number in sizes:
            if number < 1:
                raise ProgramError(f"{name} is {number}, but a circuit needs at least 1.")
        if pseudo_count is not None and pseudo_count < 0:
            raise ProgramError(f"pseudo_count is {pseudo_count}, but a number from 0 was expected.")
        self.observed, self.values, self.allows_missing = observed, values, True
        self.weights = weights_of(
            structure, observed, values, pseudo_count, units, components, shape, options, smoothing, leaf
        )
        self.support = constraints.integer_interval(0, values - 1)
        if isinstance(self.weights, FamilyRegionParameters):
            self.values = self.weights.tabled
            self.support = common_support(self.weights.families)

    @classmethod
    def from_graph(cls, graph: nx.DiGraph, values: int | None = None, pseudo_count: float | None = None) -> "Circuit":
        """The program of a circuit that passes `check_structure`; it starts from the graph's own weights.

        Raises:
            ProgramError: the graph is not smooth and decomposable; the message names the node.
        """
        from ppl_dgm.distributions.circuit import check_structure

        checked = check_structure(graph, values)
        return cls(checked.variables, checked.values, graph_to_json(graph), pseudo_count)

    @classmethod
    def from_forest(
        cls, forest: Any, x: Tensor, target: int, values: int | None = None, pseudo_count: float = 0.1
    ) -> "Circuit":
        """The generative forest of a fitted scikit-learn forest or tree; see `models.circuits.forest`.

        Arguments:
            forest: fitted to predict variable `target` from the other columns of x, in their order.
            x: [n, D] complete rows of categories, which are counted in the forest's leaves.
            target: the variable that the forest predicts.
            values: K; None: one more than the largest entry of x.
            pseudo_count: added to each node's counts.

        Raises:
            ProgramError: the forest does not fit the data.
            DataError: an entry is not a category.
        """
        from .forest import forest_circuit

        values = int(x.max()) + 1 if values is None else values
        rows, _ = as_rows(x, x.shape[-1], values, missing=False)
        base = torch.stack([torch.bincount(column, minlength=values) for column in rows.T]).double() + 1 / values
        made = forest_circuit(forest, rows, values, target)
        return cls.from_graph(made.weighted(normalise(base).cpu().numpy(), pseudo_count), values)

    # -- the story ---------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """x_n ~ Circuit."""
        circuit = self.distribution()
        if x is not None:
            x, seen = self._split(x)
            circuit = circuit.marginal(seen)
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample(self.site, circuit, obs=x)

    def distribution(self) -> CircuitDistribution:
        """The distribution of one example, with the present weights."""
        evaluator = self.weights.evaluator()
        if isinstance(evaluator, FamilyRegions):
            return FamilyCircuit(evaluator)
        return CircuitDistribution(evaluator)

    # -- exact answers -----------------------------------------------------------------------------

    def default_method(self, task: str) -> Any:
        """Trees, and graphs found in the data, are counted in closed form; other circuits climb by EM."""
        if task == "learn":
            if isinstance(self.weights, (TreeParameters, FoundParameters)):
                return "closed-form"
            whole = isinstance(self.weights, GraphParameters)
            whole = whole or (isinstance(self.weights, FamilyRegionParameters) and self.weights.gradient_only)
            return "em" if whole else "online-em"
        return None

    def answers(self) -> dict[str, Answer]:
        """All exact; a graph with several paths for one x is learned to a local optimum."""
        if isinstance(self.weights, FoundParameters):
            learn = Answer("approximate", "a greedy search for the graph, then counting", None, None)
        elif not isinstance(self.weights, TreeParameters):
            learn = Answer("approximate", "EM: a local optimum", None, None)
        else:
            learn = Answer("exact", "counting", 1, 1)
        return {
            "sample": Answer("exact", "one downward pass", 1, 1),
            "score": Answer("exact", "one upward pass", 1, 1),
            "infer": Answer("exact", "two passes", 2, 2),
            "learn": learn,
        }

    def log_density(self, x: Tensor) -> Score:
        """log p of the observed entries of x [batch, D], exact.

        Raises:
            DataError: an entry is not a category.
        """
        rows, seen = self._rows(x)
        circuit = self.weights.evaluator()
        complete = bool(seen.all())
        value = circuit.log_evidence(rows, None if complete else seen)
        how = "one upward pass" + ("" if complete else ", missing entries summed out")
        return Score(value, "exact", how=how + (", density of continuous x" if self._continuous else ""))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p of the observed entries of x [batch, D] in nats, [batch]; unchecked, for gradients."""
        rows, seen = self._split(x)
        return self.weights.evaluator().log_evidence(rows, seen)

    def posterior(self, x: Tensor) -> dict[str, Distribution]:
        """Distribution of each missing entry given the observed ones, one at a time.

        Returns:
            {"x": Categorical with batch shape [batch, D], or, where the entries are not categories, `LeafMarginals`};
            observed entries have all mass on their value. These are marginals: joint draws come from `simulate`.

        Raises:
            DataError: an entry is not a category, or the observed entries have probability zero.
        """
        rows, seen = self._rows(x)
        found = self.distribution().marginals(rows, seen)
        return {self.site: dist.Categorical(probs=found) if isinstance(found, Tensor) else found}

    def simulate(self, n: int, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Exact joint draws.

        Arguments:
            n: how many.
            given: {"x": rows with missing entries, to be filled in}, of shape [D], or [n, D] for one draw
                from each row.

        Returns:
            {"x": [n, D]}, int64 of categories.

        Raises:
            DataError: an entry is not a category, or the observed entries have probability zero.
            ProgramError: there is neither one given row nor n of them, or another site is given.
        """
        circuit = self.distribution()
        if not given:
            return {self.site: circuit.sample((n,))}
        if set(given) != {self.site}:
            unknown = min(set(given) - {self.site})
            raise ProgramError(f"given: the program has no site {unknown!r}; it has {self.site!r}.")
        rows = given[self.site]
        rows = rows.expand(n, -1) if rows.dim() == 1 else rows
        if len(rows) != n:
            raise ProgramError(
                f"given['{self.site}'] has {len(rows)} rows for n = {n} draws; give one row, or one for each draw."
            )
        return {self.site: circuit.conditional_sample(*self._rows(rows))[0]}

    def map(self, x: Tensor) -> Tensor:
        """The most probable completion of each row with missing entries, [batch, D] int64.

        Raises:
            TaskUnavailable: the circuit is not certified to be deterministic (a tree always is).
            DataError: an entry is not a category, or the observed entries have probability zero.
        """
        return self.distribution().map(*self._rows(x))

    def approximate_map(self, x: Tensor, draws: int = 32, sweeps: int = 10, branches: int = 0) -> Completion:
        """The best completion found of each row with missing entries, and a bound that none exceeds.

        Arguments:
            x: [batch, D], -1 or NaN where missing.
            draws, sweeps, branches: of the search; see `CircuitDistribution.approximate_map`.

        Raises:
            DataError: an entry is not a category, or the observed entries have probability zero.
        """
        return self.distribution().approximate_map(*self._rows(x), draws=draws, sweeps=sweeps, branches=branches)

    def information(self, x: Tensor) -> Tensor:
        """-log p(x_d | the other entries of its row) in nats, [batch, D]: how unexpected each entry is, exactly.

        Arguments:
            x: [batch, D], -1 or NaN where missing: 0 there.

        Returns:
            Infinite where an entry is impossible given the rest, NaN where the rest is impossible; of a density where x
            is continuous.

        Raises:
            DataError: an entry is not a category.
        """
        rows, seen = self._rows(x)
        return self.distribution().information(rows, None if bool(seen.all()) else seen)

    def marginal_entropies(self, x: Tensor | None = None) -> Tensor:
        """H(x_d | the observed entries) of each variable in nats, [batch, D]; without x [D], nothing observed.

        Raises:
            TaskUnavailable: the entries are not categories.
            DataError: an entry is not a category, or the observed entries have probability zero.
        """
        return self.distribution().marginal_entropies(*(() if x is None else self._rows(x)))

    @torch.no_grad()
    def probability(self, event: Event, given: Event | None = None) -> Tensor:
        """P(event), or P(event | given), exact; a float64 scalar. See `CircuitDistribution.probability`.

        Arguments:
            event, given: {variable: values}, or a list of such of which at least one holds:
                `circuit.probability([{0: {1, 2}, 3: 0}, {5: 1}], given={2: 4})`.

        Raises:
            ProgramError: an unknown variable or category.
            DataError: `given` has probability zero.
            TaskUnavailable: the entries are not categories, or a union has too many intersections.
        """
        return self.distribution().probability(event, given)

    def story(self) -> Callable[..., Tensor]:
        """The circuit as a Pyro program with its hidden choices as sites; see `models.circuits.story`.

        Raises:
            TaskUnavailable: the circuit has no such form; the message names the reason.
        """
        from .story import circuit_story

        return circuit_story(self.weights)

    # -- learning ----------------------------------------------------------------------------------

    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
        """The tree and its conditionals, counted; the pseudo-count is chosen on `valid`.

        Arguments:
            train: [n, D] categories; with missing entries the pairs that are observed together count (then
                EM from here is maximum likelihood).
            valid: [m, D].

        Returns:
            What was chosen: `pseudo_count`, `parents`; for a graph found in the data its `nodes` and `edges`.

        Raises:
            DataError: an entry is not a category.
            ProgramError: the circuit was given as a graph, which has no closed form.
        """
        return self.weights.fit_closed_form(self._rows(train), None if valid is None else self._rows(valid))

    def em_start(self, x: Tensor) -> None:
        """Set the tree and a start for its conditionals; a graph keeps its weights."""
        self.weights.em_start(*self._rows(x))

    def em_step(self, x: Tensor) -> Tensor:
        """One E and M step in place.

        The expected counts are the gradient of the log likelihood with respect to the log weights.

        Returns:
            The mean log likelihood of the observed entries before the step, in nats.
        """
        if isinstance(self.weights, RegionParameters) and self.weights.smoothing:
            raise ProgramError("with smoothing, steps do not climb the likelihood; learn it with method='online-em'.")
        if self._of_families:
            return self.weights.em_step(*self._rows(x))  # type: ignore[union-attr, operator]
        value, expected = self._expected(x)
        self.weights.em_update(expected)
        return value

    def log_prior(self) -> Tensor | float:
        """Log density of the prior that the pseudo-counts of a region circuit stand for, up to a constant; else 0."""
        return self.weights.log_prior() if isinstance(self.weights, RegionParameters) else 0.0

    def em_statistics(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean log likelihood of the observed entries in nats, and the expected counts of all weights per row."""
        value, expected = self._expected(x)
        return value, tuple(counts / len(x) for counts in expected)

    def em_maximise(self, statistics: tuple[Tensor, ...], rows: int) -> None:
        """The weights of greatest likelihood for counts per row, with the pseudo-counts of so many rows."""
        self.weights.em_update(tuple(rows * counts for counts in statistics))

    def grow(self, noise: float) -> bool:
        """Split each hidden state in two; False where there are no more to be, or the circuit has none."""
        return isinstance(self.weights, RegionParameters) and self.weights.grow(noise)

    def adopt(self, members: list["Circuit"], shares: Tensor) -> None:
        """Become the mixture of hidden Chow-Liu trees that were learned apart.

        Arguments:
            members: circuits over the same variables with structure "hclt".
            shares: [members] their weights, which sum to one.

        Raises:
            TaskUnavailable: this circuit or a member has another structure.
        """
        parts = [member.weights for member in members]
        hidden = [w for w in (self.weights, *parts) if isinstance(w, RegionParameters) and w.graph is None]
        if not isinstance(self.weights, RegionParameters) or len(hidden) <= len(parts):
            raise TaskUnavailable("only circuits with structure='hclt' can be mixed into one circuit.")
        self.weights.adopt(hidden[1:], shares)

    def _expected(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean log likelihood and the expected counts: its gradient with respect to the log weights, summed."""
        rows, seen = self._rows(x)
        if self._of_families:
            return self.weights.expected(rows, seen)  # type: ignore[union-attr, operator]
        observed, circuit = None if bool(seen.all()) else seen, self.weights.evaluator()
        if isinstance(circuit, Tensorised):
            value, expected = circuit.expected_counts(rows, observed)
            return value.mean(), expected
        with torch.enable_grad():
            tables = tuple(table.detach().requires_grad_() for table in circuit.tables)
            value = circuit.with_tables(*tables).log_evidence(rows, observed)
            expected = torch.autograd.grad(value.sum(), tables)
        return value.detach().mean(), expected

    @property
    def _of_families(self) -> bool:
        """Whether the entries are numbers of leaf families, not categories."""
        return isinstance(self.weights, FamilyRegionParameters) and self.weights.tabled is None

    @property
    def _continuous(self) -> bool:
        if not isinstance(self.weights, FamilyRegionParameters):
            return False
        return any(not kind.support.is_discrete for kind in self.weights.kinds)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Entries with zeros where they are missing, and the mask; unchecked."""
        if not self._of_families:
            return split_missing(x)
        seen = ~x.isnan()
        return torch.where(seen, x, torch.zeros_like(x)).to(self.dtype), seen

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.observed is not None
        if isinstance(self.weights, FamilyRegionParameters) and self.weights.tabled is None:
            supports = [family.support for family in self.weights.families]
            return as_entries(x.to(device=self.device, dtype=self.dtype), self.observed, supports)
        assert self.values is not None
        return as_rows(x.to(self.device), self.observed, self.values)
