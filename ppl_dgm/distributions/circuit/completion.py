"""The most probable completion where no exact one is to be had: a good completion, and a bound on all others."""

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluator import Evaluator
from .layers import Layered

__all__ = ["Completion", "complete_well"]


def _rounding(log_prob: Tensor) -> float:
    """Nats by which equal log densities may differ for rounding."""
    return 16 * torch.finfo(log_prob.dtype).eps * (1 + float(log_prob.detach().abs().nan_to_num(posinf=0.0).max()))


@dataclass(frozen=True)
class Completion:
    """A completion of each row, and what its density is known to be next to the largest one.

    Attributes:
        value: [..., D] the best completion that was found.
        log_prob: [...] log density of it with the observed entries, in nats.
        bound: [...] no completion has a larger log density.
    """

    value: Tensor
    log_prob: Tensor
    bound: Tensor

    @property
    def gap(self) -> Tensor:
        """Nats by which the found completion may fall short of the best; 0 where it is proved to be the best."""
        return (self.bound - self.log_prob).clamp(min=0)


def complete_well(
    circuit: Evaluator, x: Tensor, observed: Tensor, draws: int, sweeps: int, branches: int
) -> Completion:
    """A completion by search, and a bound by relaxation.

    Candidates are conditional draws, the most probable value of each variable alone and, for a graph, the max-product
    choice; the best of each row climbs by changing one entry at a time. The bound keeps the sums over latent choices
    and gives every choice its own best values,

        max_x p(x, e) <= sum_z p(z) max_x p(x, e | z),

    and is tightened by fixing one variable at a time: the largest of the bounds over its values holds too. Branch and
    bound goes on from there, one row at a time, until the best completion is proved or its branches are spent.

    Arguments:
        circuit: the compiled circuit.
        x, observed: [n, D].
        draws: conditional draws for each row.
        sweeps: at most so many rounds over the entries.
        branches: partial completions that branch and bound may divide, for each row; 0: none.

    Source: J. Park and A. Darwiche (2003), Solving MAP exactly using systematic search, for the bound.
    """
    candidates = [circuit.marginals(x, observed).argmax(-1)]
    candidates += [circuit.complete(x, observed) for _ in range(draws)]
    if isinstance(circuit, Layered):
        candidates.append(circuit.maximise(x, observed))
    rows = torch.stack(candidates)  # [candidates, n, D]
    rows = torch.where(observed, x, rows)
    score = circuit.log_evidence(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])
    best = score.argmax(0)
    value = rows[best, torch.arange(len(x), device=x.device)]
    value, log_prob = _climb(circuit, value, observed, sweeps)
    relaxed = _Relaxed(circuit)
    bound = torch.maximum(relaxed.tightened(x, observed), log_prob)
    if branches:
        for row in ((bound - log_prob) > _rounding(log_prob)).nonzero().flatten().tolist():
            value[row], log_prob[row], bound[row] = _search(
                circuit, relaxed, x[row], observed[row], value[row], log_prob[row], branches
            )
    return Completion(value, log_prob, bound)


def _climb(circuit: Evaluator, value: Tensor, observed: Tensor, sweeps: int) -> tuple[Tensor, Tensor]:
    """Rounds over the entries, each set to its best value given the others, until nothing changes."""
    n, values = len(value), circuit.values
    current = circuit.log_evidence(value)
    for _ in range(sweeps):
        before = value
        for d in range(circuit.variables):
            if bool(observed[:, d].all()):
                continue
            tried = value.repeat(values, 1, 1)  # [K, n, D]
            tried[:, :, d] = torch.arange(values, device=value.device)[:, None]
            score = circuit.log_evidence(tried.flatten(0, 1)).unflatten(0, (values, n))
            top, choice = score.max(0)
            better = (top > current) & ~observed[:, d]
            value = value.clone()
            value[:, d] = torch.where(better, choice, value[:, d])
            current = torch.where(better, top, current)
        if torch.equal(before, value):
            break
    return value, current


class _Relaxed:
    """A circuit whose inputs have one more value, the largest of the others: the bound in one upward pass."""

    def __init__(self, circuit: Evaluator) -> None:
        leaves, *weights = circuit.tables
        self.open, self.variables = circuit.values, circuit.variables
        self.circuit = circuit.with_tables(torch.cat([leaves, leaves.amax(-1, keepdim=True)], -1), *weights)

    def each_value(self, rows: Tensor, d: int) -> Tensor:
        """Bounds with entry d fixed at each value, [K, n], of rows [n, D] with `open` where nothing is fixed."""
        fixed = rows.repeat(self.open, 1, 1)  # [K, n, D]
        fixed[:, :, d] = torch.arange(self.open, device=rows.device)[:, None]
        return self.circuit.log_evidence(fixed.flatten(0, 1)).unflatten(0, (self.open, len(rows)))

    def tightened(self, x: Tensor, observed: Tensor) -> Tensor:
        """The least of the bounds that fixing one variable gives, [n]."""
        rows = torch.where(observed, x, self.open)
        bound = self.circuit.log_evidence(rows)
        for d in range(self.variables):
            if not bool(observed[:, d].all()):
                value = self.each_value(rows, d).amax(0)
                bound = torch.where(observed[:, d], bound, torch.minimum(bound, value))
        return bound


def _search(
    circuit: Evaluator, relaxed: _Relaxed, x: Tensor, observed: Tensor, value: Tensor, log_prob: Tensor, branches: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Branch and bound for one row [D]: the partial completion with the largest bound is divided first.

    It is divided by the variable whose values lower the bound most.
    """
    start = torch.where(observed, x, relaxed.open)
    queue: list[tuple[float, int, Tensor]] = [(-torch.inf, 0, start)]
    best, count, slack = float(log_prob), 0, _rounding(log_prob)
    for _ in range(branches):
        if not queue or -queue[0][0] <= best + slack:
            break
        _, _, row = heapq.heappop(queue)
        free = (row == relaxed.open).nonzero().flatten().tolist()
        if not free:
            continue
        tried = torch.stack([relaxed.each_value(row[None], d)[:, 0] for d in free])  # [free, K]
        split = int(tried.amax(-1).argmin())
        for k, bound in enumerate(tried[split].tolist()):
            child = row.clone()
            child[free[split]] = k
            if len(free) == 1 and bound > best:
                best, value = bound, child
            elif len(free) > 1 and bound > best + slack:
                count += 1
                heapq.heappush(queue, (-bound, count, child))
    bound = max([best, *(-b for b, _, _ in queue)])
    return value, log_prob.new_tensor(best), log_prob.new_tensor(bound)
