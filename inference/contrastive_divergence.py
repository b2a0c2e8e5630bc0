"""ContrastiveDivergence: learn an energy model from its own Gibbs chains, restarted at the data or kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.training import GradientLearner, Objective
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Fit

__all__ = ["ContrastiveDivergence"]

_CHEAP = 2**14  # states up to which log Z is summed at every epoch


@algorithm("contrastive-divergence")
@dataclass(frozen=True)
class ContrastiveDivergence(GradientLearner):
    """Follow mean F(x_data) - mean F(x_model), whose gradient is that of -log p(x) when x_model are draws
    from the model.

    - CD-k: x_model are k sweeps of Gibbs sampling away from the data of the batch; quick, and biased towards
      the data's surroundings.
    - Persistent (stochastic maximum likelihood): the chains are never restarted, so that they follow the
      model as it learns.

    Either way x_model is a constant to the gradient. For any program with `free_energy(x) -> [batch]` and
    `gibbs(x, sweeps) -> x`; a program with `start(x)` is given the data first.

    Arguments:
        k: sweeps per step.
        persistent: keep the chains.
        chains: number of persistent chains (default: the batch size); they start at coin flips.
        others: see `GradientLearner`.

    The column `valid` of the history is, and `Fit.notes["valid"]` says which: -log p(x), exact, where the
    program can sum Z over at most 2^14 states; else minus the pseudo log likelihood, where the program has
    one; else the mean squared error of one sweep of reconstruction. The column `objective` is a difference of
    free energies, near zero for good and bad models alike.

    Raises:
        TaskUnavailable: the program has no `free_energy` or no `gibbs`.

    Source: Hinton (2002), Training products of experts by minimizing contrastive divergence; Tieleman (2008),
    for the persistent chains.
    """

    epochs: int = 200
    batch_size: int | None = 100
    lr: float = 5e-3
    schedule: str = "cosine"
    k: int = 1
    persistent: bool = False
    chains: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("k", self.k), ("chains", self.chains)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ProgramError(f"ContrastiveDivergence: {name} must be at least 1, but it is {value!r}.")
        if self.chains is not None and not self.persistent:
            raise ProgramError(
                "ContrastiveDivergence: chains counts persistent chains; set persistent=True or leave it out."
            )

    @property
    def aim(self) -> str:
        kind = "persistent chains" if self.persistent else "chains restarted at the data"
        return f"F(data) - F(model), k = {self.k}, {kind}"

    def run(self, program: Program, data: Tensor, *args: Any, valid: Tensor | None = None, **kwargs: Any) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        if not (hasattr(program, "free_energy") and hasattr(program, "gibbs")):
            raise TaskUnavailable(
                f"{program.name!r} has no free_energy(x) and gibbs(x, sweeps), which contrastive divergence "
                "needs; a program with a guide is learned with method='svi'."
            )
        fit = super().run(program, data, *args, valid=valid, **kwargs)
        fit.notes["valid"] = _metric(program)[0]
        return fit

    def objective(self, program: Program, total: int) -> Objective:
        return _FreeEnergyGap(program, self.k, self.persistent, self.chains or min(self.batch_size or total, total))

    def validation(self, program: Program, total: int) -> Objective:
        return _metric(program)[1]


class _FreeEnergyGap:
    """The loss of one batch.

    Its persistent chains are one live tensor, written in place, so that a recorded graph moves them on.
    """

    def __init__(self, program: Any, k: int, persistent: bool, chains: int) -> None:
        self.program, self.k = program, k
        self.live: list[Tensor] = []
        if persistent:
            start = torch.full((chains, program.observed), 0.5, dtype=program.dtype, device=program.device)
            self.live = [torch.bernoulli(start)]

    def __call__(self, x: Tensor) -> Tensor:
        begin = self.live[0] if self.live else x
        drawn = self.program.gibbs(begin, self.k).detach()
        if self.live:
            self.live[0].copy_(drawn)
        return self.program.free_energy(x).mean() - self.program.free_energy(drawn).mean()


def _metric(program: Any) -> tuple[str, Callable[..., Tensor]]:
    """What is validated, in words, and how."""
    if getattr(program, "states", _CHEAP + 1) <= _CHEAP and hasattr(program, "log_prob"):
        return "-log p(x), exact, nats", lambda x: -program.log_prob(x).mean()
    if hasattr(program, "pseudo_log_likelihood"):
        return "minus the pseudo log likelihood, nats", lambda x: -program.pseudo_log_likelihood(x).mean()
    return (
        "squared error of one sweep of reconstruction",
        lambda x: ((program.gibbs(x, 1) - x) ** 2).sum(-1).mean(),
    )
