"""SplitMergeEM: EM for mixtures that leaves local optima by merging two components and splitting a third."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.em import EM
from ppl_dgm.options import is_count, require, rows_alone
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Fit

__all__ = ["SplitMergeEM"]

_NEEDS = ("log_joint", "maximise", "set_weights", "as_data", "components")


@algorithm("split-merge-em")
@dataclass(frozen=True)
class SplitMergeEM:
    """EM, and then moves that EM cannot make: two components become one and a third becomes two.

    EM stops where two components share what one could explain while one component covers two groups. After EM has
    converged, triples (i, j, k) are tried in the order of

        merge(i, j) = cos(r_i, r_j),        split(k) = sum_n f_nk log(f_nk / p(x_n | k)),        f_nk = r_nk / sum_m r_mk

    with r_nk the responsibilities: i and j that explain the same examples, k that explains its own worst. The rows of k
    are parted in two, the three components take a few steps of EM among themselves, then all do. The first triple that
    ends higher is kept, and the search begins anew from there; it ends when none does.

    Arguments:
        em: how each climb is done; its restarts come before the first move alone.
        candidates: triples that are tried before the search gives up.
        moves: most moves that are kept.
        partial: steps that the three components take among themselves.
        gain: nats per example by which a move must raise the objective (on `valid` where it is given).

    Returns:
        A `Fit` whose history has all kept climbs, numbered in column `move`; notes has `moves`, the kept triples with
        the objective before and after, and `tried`.

    Raises:
        TaskUnavailable: the program is no mixture (it has no `log_joint`, `maximise` and `set_weights`).

    Source: N. Ueda, R. Nakano, Z. Ghahramani and G. Hinton (2000), SMEM algorithm for mixture models.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.cat([torch.randn(50, 1) + c for c in (-9.0, 0.0, 9.0)])
        >>> fit = dgm.learn(dgm.models.MixtureOfGaussians(1, 3), x, method="split-merge-em", seed=0)
        >>> [round(m) for m in fit.program.means[:, 0].sort().values.tolist()]
        [-9, 0, 9]
    """

    em: EM = field(default_factory=EM)
    candidates: int = 5
    moves: int = 10
    partial: int = 10
    gain: float = 1e-3

    def __post_init__(self) -> None:
        require(
            self,
            ("em", isinstance(self.em, EM), "an EM(...)"),
            ("candidates", is_count(self.candidates, 1), "a whole number, at least 1"),
            ("moves", is_count(self.moves, 0), "a whole number, at least 0"),
            ("partial", is_count(self.partial, 0), "a whole number, at least 0"),
            ("gain", self.gain >= 0, "at least 0"),
        )

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        valid = rows_alone(self, valid)
        missing = [name for name in _NEEDS if not hasattr(program, name)]
        if missing:
            raise TaskUnavailable(
                f"{program.name!r} is no mixture whose components could be split (it has no {missing[0]}); learn it with "
                "method='em'."
            )
        begun = time.perf_counter()
        best = self.em.run(program, data, *args, valid=valid)
        objective, state = _objective(best, valid), _state(program)
        kept, steps, tried = [best.history.assign(move=0)], best.cost.steps, 0
        made: list[dict[str, Any]] = []
        again = replace(self.em, restarts=1, warm_start=True)
        with progress(f"split and merge {program.name}", None) as report:
            stopped = "no split and merge gained more"
            while len(made) < self.moves:
                found = None
                for triple in _triples(program, program.as_data(data), self.candidates):
                    program.load_state_dict(state)
                    tried, steps = tried + 1, steps + self.partial
                    _move(program, program.as_data(data), triple, self.partial)
                    fit = again.run(program, data, *args, valid=valid)
                    steps, reached = steps + fit.cost.steps, _objective(fit, valid)
                    report(objective=reached, best=objective)
                    if reached < objective - self.gain:
                        found = fit, reached, triple
                        break
                if found is None:
                    break
                fit, reached, triple = found
                made.append({"merged": triple[:2], "split": triple[2], "before": objective, "after": reached})
                objective, state = reached, _state(program)
                kept.append(fit.history.assign(move=len(made)))
            else:
                stopped = f"all {self.moves} moves made"
        program.load_state_dict(state)
        cost = Cost(steps, time.perf_counter() - begun, path="closed form")
        notes = {"moves": made, "tried": tried, "rows": len(data)}
        return Fit(program, pd.concat(kept, ignore_index=True), stopped, cost, best.objective, notes)


def _objective(fit: Fit, valid: Tensor | None) -> float:
    """The best of a climb: on `valid`, else of what EM climbs."""
    names = ["valid"] if valid is not None else ["penalised", "objective"]
    return float(fit.history[next(name for name in names if name in fit.history)].min())


def _state(program: Program) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in program.state_dict().items()}


def _triples(program: Any, x: Tensor, count: int) -> list[tuple[int, int, int]]:
    """Which to merge and which to split, the most promising first; empty for fewer than three components."""
    size = program.components
    log_joint = program.log_joint(x).double()
    share = log_joint.softmax(-1)  # [N, K]
    unit = share / share.norm(dim=0).clamp_min(1e-300)
    alike = (unit.T @ unit).triu(1)
    pairs = [(i, j) for i in range(size) for j in range(i + 1, size)]
    pairs.sort(key=lambda pair: -float(alike[pair]))
    local = share / share.sum(0).clamp_min(1e-300)  # [N, K]
    density = log_joint - program.weight_logits.double().log_softmax(-1)
    misfit = (torch.xlogy(local, local) - torch.where(local > 0, local * density, 0.0)).sum(0)
    worst = misfit.nan_to_num(-math.inf).argsort(descending=True).tolist()
    ranked = [
        (m + s, m, (*pair, k))
        for m, pair in enumerate(pairs)
        for s, k in enumerate([w for w in worst if w not in pair])
    ]
    return [triple for _, _, triple in sorted(ranked)[:count]]


def _move(program: Any, x: Tensor, triple: tuple[int, int, int], partial: int) -> None:
    """Merge i and j into i, part k's rows between j and k, and let the three settle among themselves."""
    i, j, k = triple
    three = list(triple)
    share = program.log_joint(x).softmax(-1)  # [N, K]
    mass = share[:, three].sum(-1, keepdim=True)  # what the three explain, kept while they settle
    near = _halves(_features(program, x), share[:, k]).to(share)
    share[:, i], share[:, j], share[:, k] = share[:, i] + share[:, j], share[:, k] * (1 - near), share[:, k] * near
    for step in range(partial + 1):
        if step:
            share[:, three] = mass * program.log_joint(x)[:, three].softmax(-1)
        program.set_weights(share.sum(0) + program.weight_count)
        program.maximise(x, share)


def _features(program: Any, x: Tensor) -> Tensor:
    """Rows [N, ...] as numbers in which near ones are alike: columns in units of their spread, categories one-hot."""
    values = program.values
    if values is not None and values > 2 and not x.is_floating_point():
        return nn.functional.one_hot(x.clamp(min=0).long(), values).flatten(1).double()
    rows = x.double().reshape(len(x), -1)
    hole = rows.isnan() | ((rows < 0) & torch.tensor(not x.is_floating_point(), device=x.device))
    count = (~hole).sum(0).clamp(min=1)
    rows = rows.masked_fill(hole, 0.0)
    rows = torch.where(hole, 0.0, rows - rows.sum(0) / count)
    return rows / (rows.square().sum(0) / count).sqrt().clamp_min(1e-12)


def _halves(rows: Tensor, weight: Tensor, rounds: int = 5) -> Tensor:
    """How much of each row goes to the second of two groups, [N]: 2-means of weighted rows, 0.9 to the nearer."""
    weight = weight.double()
    first = int(torch.multinomial(weight[: 2**24] + 1e-300, 1))
    far = weight * (rows - rows[first]).square().sum(-1)
    second = int(far.argmax()) if float(far.sum()) == 0 else int(torch.multinomial(far[: 2**24], 1))
    centres = rows[[first, second]]
    for _ in range(rounds):
        nearer = torch.cdist(rows, centres).argmin(-1)  # [N]
        hot = nn.functional.one_hot(nearer, 2).double() * weight[:, None]
        mass = hot.sum(0)[:, None]
        centres = torch.where(mass > 0, hot.T @ rows / mass.clamp_min(1e-300), centres)
    return 0.1 + 0.8 * torch.cdist(rows, centres).argmin(-1).double()
