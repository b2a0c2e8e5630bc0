"""BayesianNetwork: discrete variables, each with a table of conditional probabilities given its parents."""

from collections.abc import Mapping, Sequence
from itertools import product as every
from typing import Any

import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.inference.messages.elimination import plan_elimination
from ppl_dgm.inference.messages.factor_graph import FactorGraph
from ppl_dgm.inference.messages.log_factor import LogFactor
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from . import known_networks

__all__ = ["BayesianNetwork"]

_ENTRIES = 2**24  # of the tables of all rows that are summed at a time
_LOWEST = -1e30  # stands for log 0 while sums are differentiated, where -inf - -inf would be no number


class BayesianNetwork(Program):
    """p(v_1, ..., v_D) = prod_d p(v_d | parents of d), every factor a table.

    Each variable is a site of its own name. What is known is given as rows x, [n, columns] in the order of `columns`, with
    -1 for what is missing, or by name, for one case or for as many as the values are long:

        dgm.score(net, x)              log p(what is seen), the rest summed out
        dgm.infer(net, grass=1)        marginals and joint draws of everything else (`JunctionTree` shows how)
        dgm.map_configuration(net, grass=1)

    Learning counts: from complete rows p(v | parents) is the share of the rows (plus `count` each), in one step; with
    holes or hidden variables EM does it with expected counts, which are the derivatives of log p(x) with respect to the
    logarithms of the table's entries.

    Arguments:
        parents: {variable: its parents}, in any order; a variable that is missing here has none.
        tables: {variable: probabilities}, shape [values of parent 1, ..., values of the variable]; random where not given.
        values: {variable: number of values} for those without a table, or one number for all of them.
        hidden: variables that the data never hold.
        count: pseudo-count of every entry, the prior Dirichlet(1 + count) of each row of each table.

    Attributes:
        order: the variables, each after its parents.
        columns: those that the data hold, in the order in which they were given.

    Raises:
        ProgramError: a cycle (named), an unknown parent, a table of another shape, a row that does not sum to one.

    Source: J. Pearl (1988), Probabilistic reasoning in intelligent systems; J. Tomczak (2024), 2.2; A. Darwiche (2003), A
    differential approach to inference in Bayesian networks, for the expected counts.

    Example:
        >>> import ppl_dgm as dgm
        >>> net = BayesianNetwork({"wet": ["rain"]}, {"rain": [0.8, 0.2], "wet": [[0.9, 0.1], [0.2, 0.8]]})
        >>> round(float(dgm.infer(net, wet=1).exact["rain"].probs[0, 1]), 4)
        0.6667
    """

    allows_missing = True

    def __init__(
        self,
        parents: Mapping[str, Sequence[str]],
        tables: Mapping[str, Any] | None = None,
        values: Mapping[str, int] | int | None = None,
        hidden: Sequence[str] = (),
        count: float = 0.0,
    ) -> None:
        super().__init__()
        given = {
            name: torch.as_tensor(table, dtype=torch.get_default_dtype()) for name, table in (tables or {}).items()
        }
        self.config = {
            "parents": {name: list(above) for name, above in parents.items()},
            "tables": {name: table.tolist() for name, table in given.items()} or None,
            "values": dict(values) if isinstance(values, Mapping) else values,
            "hidden": list(hidden),
            "count": count,
        }
        named = [*parents, *given, *(values if isinstance(values, Mapping) else ())]
        self.variables = list(dict.fromkeys(named))
        self.parents = {name: tuple(parents.get(name, ())) for name in self.variables}
        self.order = _sorted(self.parents)
        self.sizes = _sizes(self.variables, given, values)
        self.columns = [name for name in self.variables if name not in hidden]
        self._check_arguments(hidden, count)
        self.count, self.observed = float(count), len(self.columns)
        largest = max(self.sizes[name] for name in self.columns)
        self.values = largest if {self.sizes[name] for name in self.columns} == {largest} else None
        self.support = constraints.integer_interval(0, largest - 1)
        self.logits = nn.ParameterList()
        for name in self.variables:
            shape = [self.sizes[v] for v in (*self.parents[name], name)]
            if name in given:
                _check_table(name, given[name], self.parents[name], shape)
            self.logits.append(nn.Parameter(given[name].log() if name in given else torch.randn(shape)))

    def _check_arguments(self, hidden: Sequence[str], count: float) -> None:
        unknown = [name for name in hidden if name not in self.sizes]
        if unknown:
            raise ProgramError(f"hidden names {unknown[0]!r}, which is none of {', '.join(self.variables)}.")
        if not self.columns:
            raise ProgramError("every variable is hidden; leave at least one for the data.")
        if not 0 <= count < float("inf"):
            raise ProgramError(f"count must be a number from 0, but it is {count!r}.")
        taken = [name for name in self.variables if name in ("x", "n", "valid") or not name.isidentifier()]
        if taken:
            raise ProgramError(
                f"variable {taken[0]!r} cannot be given by name; call it something else (x, n and valid are taken)."
            )

    @classmethod
    def sprinkler(cls) -> "BayesianNetwork":
        """cloudy -> sprinkler, rain -> grass: P(rain | wet grass) = 0.708, P(sprinkler | wet grass) = 0.430."""
        return cls(*known_networks.SPRINKLER)

    @classmethod
    def alarm(cls) -> "BayesianNetwork":
        """burglary, earthquake -> alarm -> john, mary: P(burglary | both call) = 0.284."""
        return cls(*known_networks.ALARM)

    @classmethod
    def abc(cls) -> "BayesianNetwork":
        """A, B -> C, with B hidden: p(A, C) = sum_B p(C | A, B) p(A) p(B)."""
        return cls(*known_networks.ABC, hidden=["B"])

    # -- the story ---------------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int | None = None, **evidence: Any) -> Tensor:
        """Each variable given its parents; in draws (n is given) and with rows x, site `x` repeats the columns, [n, columns]."""
        seen = self._seen(x, evidence)
        rows = max((len(column) for column in seen.values()), default=1 if n is None else n)
        found: dict[str, Tensor] = {}
        with pyro.plate("data", rows):
            for name in self.order:
                table = self.log_table(name)
                fn = dist.Categorical(logits=table[tuple(found[above] for above in self.parents[name])])
                found[name] = self._observe(name, fn, seen.get(name))
            columns = _stacked([found[name] for name in self.columns])
            return columns if x is None and n is None else pyro.deterministic("x", columns, event_dim=1)

    def _observe(self, name: str, fn: Any, column: Tensor | None) -> Tensor:
        there = None if column is None else column >= 0
        if column is not None and there is not None and bool(there.all()):
            return pyro.sample(name, fn, obs=column)
        value = pyro.sample(name, fn, infer={"enumerate": "parallel"})
        if column is not None and there is not None and bool(there.any()):  # seen in some rows: read off without error
            exact = torch.eye(self.sizes[name], dtype=self.dtype, device=self.device).log()[value]
            pyro.sample(f"{name}_seen", dist.Categorical(logits=exact).mask(there), obs=column.clamp_min(0))
        return value

    def _seen(self, x: Tensor | None, evidence: Mapping[str, Any]) -> dict[str, Tensor]:
        """{variable: values [n], -1 where missing} of what is given."""
        found = {}
        if x is not None:
            x = torch.where(x.isnan(), -1, x) if x.is_floating_point() else x
            found = dict(zip(self.columns, x.long().unbind(-1), strict=True))
        for name, value in evidence.items():
            if name not in self.sizes:
                raise DataError(f"{name!r} is no variable of the network; it has {', '.join(self.variables)}.")
            found[name] = torch.atleast_1d(torch.as_tensor(value, device=self.device)).long()
        rows = max((len(column) for column in found.values()), default=1)
        for name, column in found.items():
            if len(column) not in (1, rows):
                raise DataError(f"{name!r} has {len(column)} values, but others have {rows}; give one for each case.")
            if bool((column >= self.sizes[name]).any()) or bool((column < -1).any()):
                raise DataError(
                    f"{name!r} has values from 0 to {self.sizes[name] - 1} (-1: missing), but {int(column.max())} or "
                    f"{int(column.min())} is given."
                )
            found[name] = column.expand(rows)
        return found

    def log_table(self, name: str) -> Tensor:
        """log p(variable | parents) in nats, [parents' values ..., values]."""
        return self.logits[self.variables.index(name)].log_softmax(-1)

    def table(self, name: str) -> Tensor:
        """p(variable | parents), [parents' values ..., values]."""
        return self.log_table(name).exp()

    # -- exact answers -----------------------------------------------------------------------------------------------

    def log_density(self, x: Tensor | None = None, **evidence: Any) -> Score:
        """log p(what is seen) in nats, [n], all else summed out."""
        seen = self._seen(x, evidence)
        tables = {name: self.log_table(name) for name in self.variables}
        return Score(self._log_prob(tables, seen), "exact", how="variable elimination")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [n], differentiable, for `MaximumLikelihood`."""
        tables = {name: self.log_table(name).clamp_min(_LOWEST) for name in self.variables}
        return self._log_prob(tables, self._seen(x, {}))

    def _log_prob(self, tables: Mapping[str, Tensor], seen: Mapping[str, Tensor]) -> Tensor:
        """Rows with the same holes together, the holes summed out in an order made for them."""
        if not seen:
            return self.logits[0].new_zeros(1)
        names = list(seen)
        columns = torch.stack([seen[name] for name in names], -1)  # [n, seen]
        patterns, which = torch.unique(columns >= 0, dim=0, return_inverse=True)
        value = self.logits[0].new_zeros(len(columns))
        for index, pattern in enumerate(patterns.tolist()):
            rows = (which == index).nonzero().squeeze(-1)
            known = {name: seen[name][rows] for name, there in zip(names, pattern, strict=True) if there}
            value = value.index_put((rows,), self._of_pattern(tables, known, len(rows)))
        return value

    def _of_pattern(self, tables: Mapping[str, Tensor], known: Mapping[str, Tensor], rows: int) -> Tensor:
        """log p(known), [rows], every other variable summed out."""
        scopes = {v: [u for u in (*self.parents[v], v) if u not in known] for v in self.variables}
        sizes = {v: self.sizes[v] for v in self.variables if v not in known}
        zero = self.logits[0].new_zeros(())
        skeleton = FactorGraph(sizes, [LogFactor(tuple(scope), zero) for scope in scopes.values()])
        plan = plan_elimination(skeleton)
        plan.refuse_above(_ENTRIES, self.name)
        parts = []
        for chosen in torch.arange(rows, device=zero.device).split(max(1, _ENTRIES // plan.entries)):
            mine = {name: column[chosen] for name, column in known.items()}
            factors = [(scopes[v], self._sliced(tables[v], (*self.parents[v], v), mine)) for v in self.variables]
            for variable, scope in zip(plan.order, plan.scopes, strict=True):
                held = [_over(f, scope) for f in factors if variable in f[0]]
                factors = [f for f in factors if variable not in f[0]]
                factors.append((list(scope[1:]), torch.logsumexp(sum(held[1:], held[0]), 1)))
            total = sum((table for _, table in factors), zero)
            parts.append(total.expand(len(chosen)))
        return torch.cat(parts)

    def _sliced(self, table: Tensor, scope: Sequence[str], known: Mapping[str, Tensor]) -> Tensor:
        """A family's table at the known values, [rows or 1, values of the unknown ...]."""
        first = [i for i, v in enumerate(scope) if v in known]
        rest = [i for i, v in enumerate(scope) if v not in known]
        moved = table.permute(*first, *rest)
        return moved[tuple(known[scope[i]] for i in first)] if first else moved.unsqueeze(0)

    def default_method(self, task: str) -> Any:
        """EM for `learn`, one step of which suffices for complete data; enumeration for `infer`."""
        if task == "infer":
            return "exact"
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        hidden = len(self.columns) < len(self.variables)
        return EM(restarts=5 if hidden else 1, tolerance=1e-6, warm_start=True)

    def answers(self) -> dict[str, Answer]:
        complete = len(self.columns) == len(self.variables)
        return {
            "sample": Answer("exact", "each variable given its parents"),
            "score": Answer("exact", "variable elimination"),
            "infer": Answer("exact", "sum over what is not seen"),
            "learn": Answer("exact", "counts; expected counts (EM) where data are missing")
            if complete
            else Answer("approximate", "expectation maximisation, a local optimum"),
        }

    # -- learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def expected_counts(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean log likelihood, [], and E[how often each entry of each table was used | x], shapes as the tables.

        E[count of (v, pa)] = d log p(x) / d log p(v | pa)
        """
        leaves = {v: self.log_table(v).clamp_min(_LOWEST).detach().requires_grad_() for v in self.variables}
        with torch.enable_grad():
            value = self._log_prob(leaves, self._seen(x, {}))
            counts = torch.autograd.grad(value.sum(), list(leaves.values()))
        return value.detach().mean(), dict(zip(leaves, counts))

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Rows of every table drawn from Dirichlet(1)."""
        for logits in self.logits:
            logits.copy_(dist.Dirichlet(torch.ones_like(logits)).sample().clamp_min(1e-6).log())

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One E- and M-step in place; returns the mean log likelihood in nats before it, []."""
        value, counts = self.expected_counts(x)
        self._set(counts)
        return value

    def _set(self, counts: Mapping[str, Tensor]) -> None:
        """Tables from counts; a row of parents' values that never occurs keeps what it is (with `count`: uniform)."""
        for name, found in counts.items():
            found = found.clamp_min(0) + self.count
            total = found.sum(-1, keepdim=True)
            share = torch.where(total > 0, found / total.clamp_min(torch.finfo(total.dtype).tiny), self.table(name))
            self.logits[self.variables.index(name)].copy_(share.log())

    def log_prior(self) -> Tensor:
        """Log density of the tables' priors up to a constant, in nats, []; EM adds it."""
        if not self.count:
            return self.logits[0].new_zeros(())
        return sum(
            (self.count * self.log_table(v).clamp_min(-1e6).sum() for v in self.variables), self.logits[0].new_zeros(())
        )

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
        """Counts of complete rows; the posterior mode under `count`.

        Raises:
            TaskUnavailable: a variable is hidden or an entry is missing.
        """
        seen = self._seen(train, {})
        holes = [name for name in self.variables if name not in seen or bool((seen[name] < 0).any())]
        if holes:
            raise TaskUnavailable(f"variable {holes[0]!r} is not known in every row; learn with method='em'.")
        _, counts = self.expected_counts(train)
        self._set(counts)
        return {"count": self.count, "rows": len(train)}


# -- arguments -------------------------------------------------------------------------------------------------------


def _sorted(parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The variables, each after its parents."""
    graph = nx.DiGraph()
    graph.add_nodes_from(parents)
    for name, above in parents.items():
        unknown = [other for other in above if other not in parents]
        if unknown:
            raise ProgramError(
                f"{name!r} has a parent {unknown[0]!r} that is no variable; give it a table or a number of values."
            )
        if len(set(above)) < len(above):
            raise ProgramError(f"{name!r} has a parent named twice: {', '.join(above)}.")
        graph.add_edges_from((other, name) for other in above)
    try:
        cycle = [edge[0] for edge in nx.find_cycle(graph)]
    except nx.NetworkXNoCycle:
        return list(nx.lexicographical_topological_sort(graph, key=list(parents).index))
    raise ProgramError(f"the parents make a cycle, {' -> '.join([*cycle, cycle[0]])}; take one of the arrows out.")


def _sizes(variables: list[str], tables: Mapping[str, Tensor], values: Any) -> dict[str, int]:
    if not variables:
        raise ProgramError("a network needs a variable; give parents={...} or tables={...}.")
    sizes = {}
    for name in variables:
        size = values.get(name) if isinstance(values, Mapping) else values
        if name in tables and tables[name].dim():
            size = tables[name].shape[-1]
        if not isinstance(size, int) or size < 1:
            raise ProgramError(
                f"the number of values of {name!r} is not known; give it a table, or values={{{name!r}: 2}}."
            )
        sizes[name] = size
    return sizes


def _check_table(name: str, table: Tensor, parents: Sequence[str], shape: list[int]) -> None:
    if list(table.shape) != shape:
        above = f"its parents {', '.join(parents)} and itself have" if parents else "it has"
        raise ProgramError(
            f"the table of {name!r} has shape {tuple(table.shape)}, but {above} {tuple(shape)} values; give one dimension "
            "for each parent, in their order, and the last for the variable."
        )
    if bool((table < 0).any()) or not bool(table.isfinite().all()):
        raise ProgramError(f"the table of {name!r} must hold probabilities from 0 to 1; check its entries.")
    for at in every(*(range(size) for size in shape[:-1])):
        total = float(table[at].sum())
        if abs(total - 1) > 1e-4:
            where = ", ".join(f"{parent}={value}" for parent, value in zip(parents, at, strict=True))
            raise ProgramError(
                f"the table of {name!r} sums to {total:.6g}{f' where {where}' if where else ''}, not to 1; the last "
                "dimension holds the probabilities of the variable's values."
            )


def _over(factor: tuple[list[str], Tensor], scope: Sequence[str]) -> Tensor:
    """A factor [rows, its scope] over a larger scope, [rows, scope]."""
    mine, table = factor
    table = table.permute(0, *(1 + mine.index(v) for v in scope if v in mine))
    sizes = iter(table.shape[1:])
    return table.reshape(table.shape[0], *(next(sizes) if v in mine else 1 for v in scope))


def _stacked(columns: list[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*columns), -1)
