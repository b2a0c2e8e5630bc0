"""Denoising: learn a diffusion model by undoing the noise of one random step per example."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.training import GradientLearner, Objective
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm

__all__ = ["Denoising"]


@algorithm("denoising")
@dataclass(frozen=True)
class Denoising(GradientLearner):
    """Minimise a program's `denoising_loss(x, weighting) -> [batch]` by gradient steps.

    Arguments:
        weighting: "bound" weighs each step so that the expected loss is the variational bound itself;
            "simple" is the unweighted squared error of the noise, E_{t, eps} ||eps - eps-hat(z_t, t)||^2.
        valid_draws: how many random steps each validation example is tried at.
        others: see `GradientLearner`.

    Validation always compares the bound, in nats, with the same steps and noise at every epoch.

    Raises:
        TaskUnavailable: the program has no `denoising_loss`.

    Source: Ho, Jain and Abbeel (2020), algorithm 1.
    """

    epochs: int = 120
    batch_size: int | None = 128
    lr: float = 2e-3
    schedule: str = "cosine"
    average: float | None = 0.995
    patience: int | None = 60
    clip: float | None = 100.0
    weighting: str = "bound"
    valid_draws: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weighting not in ("bound", "simple"):
            raise ProgramError(f"Denoising: weighting must be 'bound' or 'simple', but it is {self.weighting!r}.")
        if self.valid_draws < 1:
            raise ProgramError(f"Denoising: valid_draws must be at least 1, but it is {self.valid_draws!r}.")

    @property
    def aim(self) -> str:
        return "-ELBO, nats per example" if self.weighting == "bound" else "squared error of the noise"

    def prepare(self, program: Program, batch: tuple) -> Program:
        if not hasattr(program, "denoising_loss"):
            raise TaskUnavailable(
                f"{program.name!r} has no denoising_loss(x, weighting), which diffusion models have; learn "
                "it with method='svi'."
            )
        with torch.no_grad():
            program.denoising_loss(batch[0], self.weighting)
        return program

    def objective(self, program: Program, total: int) -> Objective:
        loss: Any = program.denoising_loss
        return lambda x: loss(x, self.weighting).mean()

    def validation(self, program: Program, total: int) -> Objective:
        loss: Any = program.denoising_loss

        def bound(x: Tensor) -> Tensor:
            return loss(x.repeat(self.valid_draws, 1), "bound").mean()

        return bound
