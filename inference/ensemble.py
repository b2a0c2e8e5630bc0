"""Ensemble: one program learned several times from different starts, and mixed."""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.online_em import OnlineEM
from ppl_dgm.options import is_count, require, rows_alone
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm, resolve
from ppl_dgm.results import Cost, Fit

__all__ = ["Ensemble", "mixture_shares"]


@algorithm("ensemble")
@dataclass(frozen=True)
class Ensemble:
    """The average of programs learned independently, p(x) = sum_m w_m p_m(x), which is a program of the same kind.

    On few data the members differ where the data say little, so that their average is better than each. A program
    offers `adopt(members, shares)`, which makes it their mixture; a `Circuit` of hidden Chow-Liu trees does.

    Arguments:
        members: how many.
        method: how each is learned; by default the program's own way.
        bootstrap: each member learns from rows drawn anew with replacement.
        joint: steps of EM for the whole mixture afterwards, at most; they are kept where `valid` agrees.
        weigh: weights of greatest likelihood on `valid`; False, or no `valid`: equal weights.

    Returns:
        A `Fit`, whose history has a row for each member: `valid` of the member and `together` of the equal-weight
        average so far, and one for the joint steps.

    Raises:
        TaskUnavailable: the program cannot be a mixture of its kind.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.Ensemble(members=4, method=dgm.OnlineEM(epochs=5))
    """

    members: int = 8
    method: Any = None
    bootstrap: bool = False
    joint: int = 0
    weigh: bool = False

    def __post_init__(self) -> None:
        require(
            self,
            ("members", is_count(self.members, 1), "a whole number, at least 1"),
            ("joint", is_count(self.joint, 0), "a whole number, at least 0"),
        )

    @torch.no_grad()
    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        valid = rows_alone(self, valid)
        if not hasattr(program, "adopt"):
            raise TaskUnavailable(f"{program.name!r} cannot be mixed with its like (no method adopt); learn it alone.")
        begun, held = time.perf_counter(), []
        members: list[Any] = []
        rows: list[dict[str, float]] = []
        method = self.method or program.default_method("learn") or "svi"
        steps = 0
        with progress(f"learn {program.name}", self.members) as report:
            for m in range(self.members):
                member = copy.deepcopy(program)
                chosen = torch.randint(len(data), (len(data),), device=data.device) if self.bootstrap else slice(None)
                fit = resolve(method).run(member, data[chosen], *args, valid=valid)
                steps += fit.cost.steps
                members.append(member)
                row: dict[str, float] = {"epoch": m + 1}
                if valid is not None:
                    held.append(member.log_density(valid).value.double())
                    row["valid"] = -float(held[-1].mean())
                    row["together"] = -float(torch.stack(held).logsumexp(0).mean()) + math.log(len(held))
                row["seconds"] = time.perf_counter() - begun
                rows.append(row)
                report(**{name: row[name] for name in ("valid", "together") if name in row})
        shares = torch.full((self.members,), 1 / self.members, dtype=torch.float64)
        if self.weigh and held:
            shares = mixture_shares(torch.stack(held))
        program.adopt(members, shares.to(data.device))  # type: ignore[operator]
        stopped = f"{self.members} members averaged"
        if self.joint:
            after = self._together(program, data, valid, rows, begun)
            steps, stopped = steps + after.cost.steps, stopped + ", and learned on jointly"
        cost = Cost(steps, time.perf_counter() - begun, path="closed form")
        notes = {"shares": shares.tolist(), "rows": len(data)}
        return Fit(program, pd.DataFrame(rows), stopped, cost, "-log likelihood, nats per example", notes)

    def _together(self, program: Program, data: Tensor, valid: Tensor | None, rows: list, begun: float) -> Fit:
        """EM steps of the mixture; without gain on `valid` it stays as it was."""
        before = {name: value.clone() for name, value in program.state_dict().items()}
        method = OnlineEM(epochs=0, polish=self.joint, tolerance=0.0, patience=1, warm_start=True, grow=False)
        fit = method.run(program, data, valid=valid)
        if valid is not None:
            best = float(fit.history["valid"].min())
            if best > rows[-1]["together"]:
                program.load_state_dict(before)
                best = rows[-1]["together"]
            rows.append({"epoch": len(rows) + 1, "valid": best, "together": best})
            rows[-1]["seconds"] = time.perf_counter() - begun
        return fit


def mixture_shares(log_probs: Tensor, steps: int = 200) -> Tensor:
    """The mixture weights of greatest likelihood for components' log densities [members, n], by EM."""
    shares = log_probs.new_full((len(log_probs),), 1 / len(log_probs))
    for _ in range(steps):
        shares = (log_probs + shares.log()[:, None]).softmax(0).mean(1)
    return shares
