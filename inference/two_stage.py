"""TwoStage: an auto-encoder learned by its reconstructions first, then a density of its codes."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.training import GradientLearner, Objective
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Fit
from ppl_dgm.tasks import evaluating

__all__ = ["TwoStage"]


@algorithm("two-stage")
@dataclass(frozen=True)
class TwoStage(GradientLearner):
    """Learn encoder and decoder by gradient, then fit a density to the codes of the training rows:

        1.  minimise over the networks   mean_n autoencoding_loss(x_n),
        2.  maximise over the density    mean_n log p(encoder(x_n)),   the networks as they are.

    The first sum is no bound on log p(x), so that its value says little about the program that the second stage completes; judge that
    by `score`. The gain is that the density need not be simple enough to be learned along with the networks.

    A program that can be learned so has methods `autoencoding_loss(x) -> [batch]`, in nats, and `fit_codes(x, valid, method) ->
    notes`; `learning_columns() -> {name: number}`, where there is one, adds to the history.

    Arguments:
        density: how the density of the codes is learned, a method or its name; None is the density's own.
        Others: see `GradientLearner`. Validation compares the loss of the first stage.

    Raises:
        TaskUnavailable: the program has no such methods.

    Source: Ghosh, Sajjadi, Vergari, Black and Schoelkopf (2020), From variational to deterministic autoencoders; Dai and Wipf (2019);
    van den Oord, Vinyals and Kavukcuoglu (2017), section 3.3.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = TwoStage(epochs=100, patience=10, density=dgm.EM(restarts=3))
    """

    batch_size: int | None = 32
    lr: float = 2e-3
    schedule: str = "cosine"
    density: Any = None

    @property
    def aim(self) -> str:
        return "reconstruction loss, nats per example"

    def run(self, program: Program, data: Tensor, *args: Any, valid: Any = None, **kwargs: Any) -> Fit:
        """Learn; see `ppl_dgm.learn`. The notes have what the second stage says."""
        fit = super().run(program, data, *args, valid=valid, **kwargs)
        with evaluating(program):
            notes: dict[str, Any] = program.fit_codes(data, valid, self.density)
        seconds = notes.pop("seconds", 0.0)
        return replace(
            fit,
            cost=replace(fit.cost, seconds=fit.cost.seconds + seconds),
            notes={**fit.notes, **notes},
        )

    def prepare(self, program: Program, batch: tuple) -> Program:
        if not hasattr(program, "autoencoding_loss") or not hasattr(program, "fit_codes"):
            raise TaskUnavailable(
                f"{program.name!r} has no autoencoding_loss(x) and fit_codes(x, valid, method), which RegularisedAutoencoder and "
                "VQVAE have; learn it with method='svi'."
            )
        with torch.no_grad(), evaluating(program):  # a broken network fails now; nothing is moved yet
            program.autoencoding_loss(batch[0])
        return program

    def objective(self, program: Program, total: int) -> Objective:
        return _Loss(program)


class _Loss:
    """The loss of the first stage, averaged over a batch."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.columns = getattr(program, "learning_columns", dict)

    def __call__(self, x: Tensor) -> Tensor:
        return self.program.autoencoding_loss(x).mean()
