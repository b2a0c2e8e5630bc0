"""Adversarial: a program learned in turns with a discriminator that tells what it makes from what it should make."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.training import GradientLearner, Objective, State, Step
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.tasks import evaluating

__all__ = ["GAMES", "Adversarial"]

# name -> (what the discriminator minimises, of its outputs for real and made ones; what the program minimises, of made ones)
GAMES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "non-saturating": (lambda real, made: softplus(-real) + softplus(made), lambda made: softplus(-made)),
    "saturating": (lambda real, made: softplus(-real) + softplus(made), lambda made: -softplus(made)),
    "least-squares": (
        lambda real, made: ((real - 1).square() + made.square()) / 2,
        lambda made: (made - 1).square() / 2,
    ),
    "hinge": (lambda real, made: relu(1 - real) + relu(1 + made), lambda made: -made),
}


@algorithm("adversarial")
@dataclass(frozen=True)
class Adversarial(GradientLearner):
    """A game of two players in turns: for each batch the discriminator D takes `turns` steps, then the program one,

        D:        minimise  E[ softplus(-D(real)) + softplus(D(made)) ] + gradient_penalty / 2 E |grad D(real)|^2,
        program:  minimise  E[ loss ] + weight E[ softplus(-D(made)) ]     (the non-saturating game).

    D(.) is a log odds; at its best it is log p(real) - log p(made), and the two losses of D add up to 2 log 2 = 1.386 where it
    cannot tell them apart, to less where it can: the column `discriminator` of the history. The objective is the program's part.
    It falls and rises with its adversary, and is no bound on anything; where the program has a `loss`, validation compares
    that alone, in evaluation mode.

    A program that can be learned so has a module `discriminator`, from [batch, ...] to [batch, 1], and a method
    `play(x) -> (real, made, loss)`: what should be made, without gradients, what the program makes, both [batch, ...], and a loss
    [batch] in nats, or None. In an adversarial auto-encoder those are draws of the prior, codes and reconstruction losses; in
    a generative adversarial network they are data, samples and None.

    Arguments:
        game: "non-saturating", "saturating" (the minimax game of the first paper; its gradient vanishes while D is sure),
            "least-squares" or "hinge".
        weight: of the game beside the loss.
        turns: steps of the discriminator for each of the program's.
        rate: the discriminator's learning rate as a multiple of `lr`.
        gradient_penalty: of the discriminator at real ones (R1), which damps the circling of the two; 0 for none.
        Others: see `GradientLearner`.

    Raises:
        TaskUnavailable: the program cannot play; validation rows without a loss to compare.
        ProgramError: an optimiser of Pyro's, which cannot take turns.

    Source: Goodfellow et al. (2014), Generative adversarial nets; Makhzani, Shlens, Jaitly, Goodfellow and Frey (2016), Adversarial
    autoencoders; Mao et al. (2017); Mescheder, Geiger and Nowozin (2018).

    Example:
        >>> method = Adversarial(epochs=50, game="hinge", turns=2, gradient_penalty=1.0)
    """

    batch_size: int | None = 32
    game: str = "non-saturating"
    weight: float = 1.0
    turns: int = 1
    rate: float = 1.0
    gradient_penalty: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("game", self.game in GAMES, f"one of {', '.join(GAMES)}"),
            ("weight", self.weight >= 0, "at least 0"),
            ("turns", is_count(self.turns, 1), "a whole number, at least 1"),
            ("rate", self.rate > 0, "positive"),
            ("gradient_penalty", self.gradient_penalty >= 0, "at least 0"),
        )

    @property
    def aim(self) -> str:
        return f"loss + {self.weight:g} x {self.game} game, nats per example"

    def prepare(self, program: Program, batch: tuple) -> Program:
        if not hasattr(program, "play") or not hasattr(program, "discriminator"):
            raise TaskUnavailable(
                f"{program.name!r} has no discriminator and no play(x), which AdversarialAutoencoder has; learn it with "
                "method='svi'."
            )
        with torch.no_grad(), evaluating(program):
            real, made, loss = program.play(*batch)
            out = program.discriminator(made)
        rows = len(batch[0])
        if real.shape != made.shape or out.shape != (rows, 1) or (loss is not None and loss.shape != (rows,)):
            raise ProgramError(
                f"play of {program.name!r} gives shapes {tuple(real.shape)} and {tuple(made.shape)}"
                f"{'' if loss is None else f' and a loss {tuple(loss.shape)}'}, and the discriminator {tuple(out.shape)}, for "
                f"{rows} rows; real and made must be alike, the loss [{rows}] and the discriminator's output [{rows}, 1]."
            )
        return program

    def objective(self, program: Program, total: int) -> "_Game":
        return _Game(self, program)

    def validation(self, program: Any, total: int) -> Objective:
        def loss(*batch: Any) -> Tensor:
            value = program.play(*batch)[2]
            if value is None:
                raise TaskUnavailable(
                    f"{program.name!r} has no loss beside the game, so that validation rows have nothing to compare; leave out "
                    "valid and patience."
                )
            return value.mean()

        return loss

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        return _Turns(objective, parameters)

    def _optimiser(self, parameters: Sequence[Tensor]) -> Any:
        optimiser = super()._optimiser(parameters)
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise ProgramError("Adversarial: an optimiser of pyro.optim cannot take turns; give a torch one.")
        return optimiser

    def _one_epoch(
        self, program: Program, arguments: tuple, total: int, batch_size: int, step: Step, optimiser: Any,
        parameters: Sequence[Tensor], state: State,
    ) -> float:  # fmt: skip
        turns: Any = step.function
        if turns.step is None:
            turns.step = Step(turns.judge, arguments, [*program.parameters(), *program.buffers()], self.backend)
        in_turns: Any = _InTurns(self, step, turns, optimiser)
        return super()._one_epoch(program, arguments, total, batch_size, in_turns, optimiser, parameters, state)


class _Game:
    """The two players' losses for a batch."""

    def __init__(self, options: Adversarial, program: Any) -> None:
        self.options, self.program = options, program
        self.judge_loss, self.made_loss = GAMES[options.game]
        self.told: list[Tensor] = []

    def __call__(self, *batch: Any) -> Tensor:
        _, made, loss = self.program.play(*batch)
        value = self.options.weight * self.made_loss(self.program.discriminator(made)).mean()
        return value if loss is None else value + loss.mean()

    def judge(self, *batch: Any) -> tuple[Tensor, Tensor]:
        """What the discriminator minimises, and the game's part of it."""
        with torch.no_grad():
            real, made, _ = self.program.play(*batch)
        penalty = self.options.gradient_penalty
        real = real.detach().requires_grad_(penalty > 0)
        told = self.program.discriminator(real)
        game = self.judge_loss(told, self.program.discriminator(made)).mean()
        if not penalty:
            return game, game
        slope = torch.autograd.grad(told.sum(), real, create_graph=True)[0]
        return game + penalty / 2 * slope.square().flatten(1).sum(-1).mean(), game

    def columns(self) -> dict[str, float]:
        """The game's part of the discriminator's loss, averaged over the last epoch."""
        mean = float(torch.stack(self.told).mean())
        self.told.clear()
        return {"discriminator": mean}


class _Turns:
    """Loss and gradients of either player; a parameter of the other one has none."""

    def __init__(self, game: _Game, parameters: Sequence[Tensor]) -> None:
        self.game = game
        judges = {id(p) for p in game.program.discriminator.parameters()}
        self.is_judge = [id(p) in judges for p in parameters]
        self.judges = [p for p, judge in zip(parameters, self.is_judge, strict=True) if judge]
        self.makers = [p for p, judge in zip(parameters, self.is_judge, strict=True) if not judge]
        self.step: Step | None = None  # of the discriminator

    def __call__(self, *batch: Any) -> tuple:
        loss = self.game(*batch)
        gradients = iter(torch.autograd.grad(loss, self.makers, allow_unused=True))
        return (loss.detach(), *(None if judge else next(gradients) for judge in self.is_judge))

    def judge(self, *batch: Any) -> tuple:
        loss, told = self.game.judge(*batch)
        return (told.detach(), *torch.autograd.grad(loss, self.judges, allow_unused=True))


class _InTurns:
    """A step of the program, before which the discriminator has taken its own with the same optimiser."""

    def __init__(self, options: Adversarial, step: Step, turns: _Turns, optimiser: Any) -> None:
        self.options, self.step, self.turns, self.optimiser = options, step, turns, optimiser

    def __call__(self, *batch: Any) -> tuple:
        turns, groups = self.turns, self.optimiser.param_groups
        assert turns.step is not None
        for parameter in turns.makers:
            parameter.grad = None
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * self.options.rate
        for _ in range(self.options.turns):
            told, *gradients = turns.step(*batch)
            turns.game.told.append(told)
            for parameter, gradient in zip(turns.judges, gradients, strict=True):
                parameter.grad = gradient
            if self.options.clip is not None:
                torch.nn.utils.clip_grad_norm_(turns.judges, self.options.clip)
            self.optimiser.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        return self.step(*batch)
