"""The most probable completion where no exact one is to be had: a good completion, and a bound on all others."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .evaluator import Evaluator
from .layers import Layered

__all__ = ["Completion", "complete_well"]


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


def complete_well(circuit: Evaluator, x: Tensor, observed: Tensor, draws: int, sweeps: int) -> Completion:
    """A completion by search, and a bound by relaxation.

    Candidates are conditional draws, the most probable value of each variable alone and, for a graph, the max-product
    choice; the best of each row climbs by changing one entry at a time. The bound keeps the sums over latent choices
    and gives every choice its own best values,

        max_x p(x, e) <= sum_z p(z) max_x p(x, e | z),

    and is tightened by fixing one variable at a time: the largest of the bounds over its values holds too.

    Arguments:
        circuit: the compiled circuit.
        x, observed: [n, D].
        draws: conditional draws for each row.
        sweeps: at most so many rounds over the entries.

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
    return Completion(value, log_prob, torch.maximum(_bound(circuit, x, observed), log_prob))


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


def _bound(circuit: Evaluator, x: Tensor, observed: Tensor) -> Tensor:
    """The relaxation, tightened by each variable in turn, [n]."""
    leaves, *weights = circuit.tables
    missing = circuit.values  # one more value: each input's largest
    relaxed = circuit.with_tables(torch.cat([leaves, leaves.amax(-1, keepdim=True)], -1), *weights)
    rows = torch.where(observed, x, missing)
    bound = relaxed.log_evidence(rows)
    for d in range(circuit.variables):
        if bool(observed[:, d].all()):
            continue
        fixed = rows.repeat(missing, 1, 1)  # [K, n, D]
        fixed[:, :, d] = torch.arange(missing, device=x.device)[:, None]
        value = relaxed.log_evidence(fixed.flatten(0, 1)).unflatten(0, (missing, len(x)))
        bound = torch.where(observed[:, d], bound, torch.minimum(bound, value.amax(0)))
    return bound
