"""SequenceTables: what sequence programs share whose every step is a table of probabilities given the steps before."""

import math
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["SequenceTables"]

_CELLS = 2**24  # numbers in all tables together
_PSEUDO_COUNTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class SequenceTables(Program):
    """p(x) = prod_t p(x_t | x_{t-k}, ..., x_{t-1}), each factor a table; the first k steps see fewer steps before them.

    A program with k = T - 1 is the full chain rule, with k = 0 it has no memory. What is drawn is one site for each step,
    x_1, ..., x_T, and x, all of them together.

    Arguments:
        observed: T, the length of a sequence.
        values: V, each step is an integer from 0 to V - 1.
        order: k.
        homogeneous: whether steps with as many steps before them, up to k, share one table.
        pseudo_count: added to each count when learning; 0 is maximum likelihood. None: chosen by the likelihood of the
            validation sequences, or, where there are none, by leaving out one transition of the training set at a time.

    Attributes:
        tables: logits [V^m, V] of each table, for contexts of m steps, the oldest step the most significant digit.

    Raises:
        ProgramError: an argument out of range, or tables of more than 2^24 numbers.
    """

    observed: int | None
    values: int

    def __init__(self, observed: int, values: int, order: int, homogeneous: bool, pseudo_count: float | None) -> None:
        super().__init__()
        for name, value, least in (("observed", observed, 1), ("values", values, 1), ("order", order, 0)):
            if not isinstance(value, int) or value < least:
                raise ProgramError(f"{self.name}: {name} must be a whole number from {least}, but it is {value!r}.")
        if order >= observed:
            raise ProgramError(
                f"{self.name}: order must be below observed={observed}, the length of a sequence, but it is {order}."
            )
        if pseudo_count is not None and not 0 <= pseudo_count < math.inf:
            raise ProgramError(
                f"{self.name}: pseudo_count must be None or a number from 0, but it is {pseudo_count!r}."
            )
        self.observed, self.length, self.values, self.order = observed, observed, values, order
        self.homogeneous, self.pseudo_count = homogeneous, pseudo_count
        self.support = constraints.integer_interval(0, values - 1)
        widths = [min(t, order) for t in range(order + 1 if homogeneous else observed)]  # m of each table
        cells = sum(values ** (m + 1) for m in widths)
        if cells > _CELLS:
            raise ProgramError(
                f"{self.name}: {observed} steps of {values} values with order {order} need tables of about 10^{math.log10(cells):.1f} numbers, more "
                f"than {_CELLS}: they grow as values^(order + 1). Take a smaller order, as in MarkovChain(order=1)."
            )
        self.tables = nn.ParameterList(torch.zeros(values**m, values) for m in widths)

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1, temperature: float = 1.0) -> Tensor:
        """x_t ~ Categorical(table[x_{t-k}, ..., x_{t-1}]), one step after another.

        Arguments:
            temperature: each step is drawn from p(x_t | context)^(1 / temperature), normalised. This is not the law
                p(x)^(1 / temperature), for which see `tempered`.
        """
        if not 0 < temperature < math.inf:
            raise ProgramError(f"{self.name}: temperature must be a positive number, but it is {temperature!r}.")
        length = self.length if x is None else x.shape[1]
        steps: list[Tensor] = []
        with pyro.plate("data", n if x is None else len(x)):
            for t in range(length):
                observed = None if x is None else x[:, t].long()
                logits = self._logits(t, steps) / temperature
                steps.append(pyro.sample(f"x_{t + 1}", dist.Categorical(logits=logits), obs=observed))
            return pyro.deterministic("x", torch.stack(steps, -1), event_dim=1)

    def _logits(self, t: int, steps: list[Tensor]) -> Tensor:
        """Logits of step t given those before, [V] or [n, V]."""
        table, width = self._table(t), min(t, self.order)
        if width == 0:
            return table[0]
        context = torch.zeros_like(steps[-1])
        for step in steps[t - width :]:
            context = context * self.values + step
        return table[context.long()]

    def _table(self, t: int) -> Tensor:
        return self.tables[min(t, self.order) if self.homogeneous else t]

    def _uses(self, length: int) -> list[range]:
        """The steps that each table serves in sequences of that length."""
        if self.homogeneous:
            return [*(range(t, min(t + 1, length)) for t in range(self.order)), range(min(self.order, length), length)]
        return [range(t, t + 1) for t in range(length)]

    def _cells(self, x: Tensor, steps: range) -> Tensor:
        """Which cell of its table each of these steps falls into, [N, len(steps)]."""
        width = min(steps.start, self.order)
        cells = torch.zeros(len(x), len(steps), dtype=torch.long, device=x.device)
        for back in range(width, -1, -1):
            cells = cells * self.values + x[:, steps.start - back : steps.stop - back]
        return cells

    # -- exact answers ---------------------------------------------------------------------------------------

    @property
    def free_count(self) -> int:
        """Free parameters: V - 1 for each context of each table."""
        return sum(table.numel() - len(table) for table in self.tables)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = sum_t log p(x_t | context) in nats, [batch]."""
        x, total = x.long(), torch.zeros(len(x), device=x.device, dtype=self.dtype)
        for table, steps in zip(self.tables, self._uses(x.shape[1])):
            if len(steps):
                total = total + table.log_softmax(-1).flatten()[self._cells(x, steps)].sum(-1)
        return total

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [batch]."""
        return Score(self.log_prob(x), "exact", how="sum of log conditional probabilities")

    # -- learning --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
        """Each table in proportion to counts plus pseudo-counts; a context that was never seen becomes uniform.

        Arguments:
            train: [N, T].
            valid: decides the pseudo-count, if the program leaves it open.

        Returns:
            The pseudo-count, and how it was chosen.
        """
        counts = self.counts(train)
        if self.pseudo_count is not None:
            chosen, how = self.pseudo_count, "given"
        elif valid is not None:
            chosen, how = (
                max(_PSEUDO_COUNTS, key=lambda a: float(self._set(counts, a).log_prob(valid).mean())),
                "validation",
            )
        else:
            chosen, how = max(_PSEUDO_COUNTS, key=lambda a: _left_out(counts, a)), "leaving one out"
        self._set(counts, chosen)
        return {"pseudo_count": chosen, "chosen_by": how}

    def counts(self, x: Tensor) -> list[Tensor]:
        """How often each cell of each table occurs in x [N, T], [V^m, V] each, in float64."""
        x, found = x.long(), []
        for table, steps in zip(self.tables, self._uses(x.shape[1])):
            cells = self._cells(x, steps).flatten()
            found.append(torch.bincount(cells, minlength=table.numel()).double().reshape(table.shape))
        return found

    def _set(self, counts: list[Tensor], pseudo_count: float) -> Self:
        tiny = torch.finfo(self.dtype).tiny
        for table, count in zip(self.tables, counts):
            added = count + pseudo_count
            total = added.sum(-1, keepdim=True)
            shares = torch.where(total > 0, added / total.clamp_min(tiny), 1 / self.values)
            table.copy_(shares.to(table.dtype).clamp_min(tiny).log())  # finite also where a value was never seen
        return self

    def default_method(self, task: str) -> Any:
        """Counting for `learn`."""
        return "closed-form" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "one step after another", 1, self.length),
            "score": Answer("exact", "sum of log conditional probabilities, all steps at once"),
            "infer": Answer("unavailable", "nothing is latent"),
            "learn": Answer("exact", "counting: closed-form maximum likelihood, smoothed by pseudo-counts"),
        }


def _left_out(counts: list[Tensor], pseudo_count: float) -> float:
    """sum of log p(transition | all the others), in nats: each of c alike ones has c - 1 left, of n - 1 in its context."""
    total = 0.0
    for count in counts:
        rest = count.sum(-1, keepdim=True) - 1 + pseudo_count * count.shape[-1]
        terms = count * ((count - 1 + pseudo_count).clamp_min(1e-300).log() - rest.clamp_min(1e-300).log())
        total += float(torch.where(count > 0, terms, 0.0).sum())
    return total
