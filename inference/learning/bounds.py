"""Learning by bounds of each example's log density that average powers of its importance weights: what IWAE and Renyi share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.importance import ImportanceWeighted
from ppl_dgm.inference.learning.particles import Particles, add, path_gradients, row_count
from ppl_dgm.inference.learning.training import GradientLearner, Objective, checked_run
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.results import Fit, Score

__all__ = ["BoundLearner", "GuideLearner", "renyi_bound"]

GRADIENTS = ("standard", "dreg", "sticking-the-landing", "vimco")


def renyi_bound(log_weights: Tensor, alpha: float) -> Tensor:
    """The bound log [ (1/K) sum_k w_k^(1 - alpha) ] / (1 - alpha) of log weights [draw, ...], in nats, [...].

    alpha = 0 is the importance-weighted bound, alpha = 1 the average of the log weights (the limit), alpha = -1 the
    chi-square bound.

    Example:
        >>> renyi_bound(torch.tensor([0.0, 2.0]), 1.0)
        tensor(1.)
    """
    if alpha == 1:
        return log_weights.mean(0)
    power = 1 - alpha
    return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power


@dataclass(frozen=True)
class GuideLearner(GradientLearner):
    """A `GradientLearner` whose objective draws `particles` of the guide for each example.

    Arguments:
        particles: K, draws of the guide for each example.
        Others: see `GradientLearner`.

    Raises:
        TaskUnavailable: no guide, or a site outside the plate `data`, so that examples have no bounds of their own.
    """

    particles: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("particles", is_count(self.particles, 1), "a whole number, at least 1"))

    def run(self, program: Program, data: Any, *args: Any, valid: Any = None, **kwargs: Any) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        with number_type(program, (data, *args)):
            return super().run(program, data, *args, valid=valid, **kwargs)

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """A bound on the log density of each example, for `ppl_dgm.score`; nothing is learned."""
        return ImportanceWeighted(draws=self.particles).run(program, *args, **kwargs)

    def prepare(self, program: Program, batch: tuple) -> Program:
        row_count(batch)
        with program.running():
            if program.has_guide:
                checked_run(program, batch, program.run_guide)
            self.check(program, Particles(program, self.particles).check(batch), batch)
        return program

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        """Refuse in words what this objective cannot learn."""


@dataclass(frozen=True)
class BoundLearner(GuideLearner):
    """Ascent of the bound log [ (1/K) sum_k w_k^(1 - alpha) ] / (1 - alpha) of each example.

    Arguments:
        gradient: "standard": through bound and draws alike. "dreg": doubly reparameterised; the part of the guide's gradient
            that goes through log q at a fixed draw, which is zero on average but noisy, is left out, and what goes through the
            draws is weighted with alpha v + (1 - alpha) v^2 for normalised weights v; unbiased, and for more draws not noisier.
            "sticking-the-landing": the same part left out and the rest weighted with v; unbiased only for one draw (or alpha =
            1), a heuristic for more. "vimco": a score function with leave-one-out baselines for the sites that are not
            reparameterised, of any guide, from two draws on.
        others: see `GuideLearner`.
    """

    gradient: str = "standard"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("gradient", self.gradient in GRADIENTS, f"one of {', '.join(map(repr, GRADIENTS))}"),
            (
                "particles",
                self.gradient != "vimco" or self.particles > 1,
                "at least 2 for gradient='vimco', whose baselines are the other draws",
            ),
        )

    @property
    def order(self) -> float:
        """alpha."""
        return 0.0

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        check_gradient(self.gradient, program, particles, batch)

    def objective(self, program: Program, total: int) -> "NegativeBound":
        return NegativeBound(Particles(program, self.particles), self.order, self.gradient)

    def validation(self, program: Program, total: int) -> Objective:
        return self.objective(program, total).value

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        if self.gradient in ("standard", "vimco"):
            return super().gradients(program, objective, parameters)
        return lambda *batch: objective.path_gradients(parameters, *batch)


def check_gradient(gradient: str, program: Program, particles: Particles, batch: tuple) -> None:
    """Refuse a gradient that this guide does not have.

    Raises:
        TaskUnavailable: a site that is not reparameterised, or whose density cannot be differentiated at a given value.
    """
    with torch.enable_grad():
        found = particles(*batch)
        rigid = next((name for name, node in found.nodes.items() if not node["fn"].has_rsample), None)
        if rigid is not None and gradient != "vimco":
            raise TaskUnavailable(
                f"the guide of {program.name!r} draws {rigid!r} from {_family(found.nodes[rigid]['fn'])}, which is not "
                f"reparameterised, so that gradient={gradient!r} does not exist; use gradient='vimco', or wake-sleep."
            )
        if gradient not in ("dreg", "sticking-the-landing"):
            return
        for name, node in found.nodes.items():
            _check_density(name, node["fn"], node["value"].detach(), gradient)


def _check_density(name: str, fn: Any, value: Tensor, gradient: str) -> None:
    """The density at a value that the distribution has not just drawn must be there, the same, and differentiable."""
    fresh = value.clone().requires_grad_()
    remedy = f"gradient={gradient!r} needs the guide's density at any value of {name!r}; use gradient='standard'."
    try:
        there = fn.log_prob(fresh)
    except NotImplementedError as error:
        raise TaskUnavailable(remedy) from error
    known = fn.log_prob(value)
    if there.requires_grad and not torch.allclose(there, known, rtol=1e-3, atol=1e-3):
        raise TaskUnavailable(remedy)
    slope = torch.autograd.grad(there.sum(), fresh, allow_unused=True)[0] if there.requires_grad else None
    if slope is None:
        slope = torch.zeros_like(value)
    move = 1e-3 * value.abs().clamp(min=1.0) * torch.where(slope < 0, -1.0, 1.0).to(value)
    with torch.no_grad():
        change = (fn.log_prob(value + move).double() - fn.log_prob(value - move).double()).sum() / 2
    told, scale = (slope * move).sum().double(), known.double().abs().sum()
    rough = 1e-6 if value.dtype == torch.float32 else 1e-12  # rounding of the densities
    if change.isfinite() and (change - told).abs() > 0.2 * change.abs() + 10 * rough * scale + 1e-6 * value.numel():
        raise TaskUnavailable(remedy)


def _family(fn: Any) -> str:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


class NegativeBound:
    """Minus the bound, averaged over the examples of a batch, in nats."""

    def __init__(self, particles: Particles, alpha: float, gradient: str) -> None:
        self.particles, self.alpha, self.gradient = particles, alpha, gradient

    def __call__(self, *batch: Any) -> Tensor:
        found = self.particles(*batch)
        log_weights = found.log_weights
        bound = renyi_bound(log_weights, self.alpha)  # [example]
        scored = [found.by_draw(found.proposal[n]) for n, node in found.nodes.items() if not node["fn"].has_rsample]
        if self.gradient == "vimco" and scored:
            signal = (bound - left_out(log_weights, self.alpha)).detach()  # [draw, example]
            score = (signal * sum(scored)).sum(0)
            bound = bound + score - score.detach()
        return -bound.mean()

    def value(self, *batch: Any) -> Tensor:
        """For validation."""
        return -renyi_bound(self.particles.log_weights(*batch), self.alpha).mean()

    def path_gradients(self, parameters: Sequence[Tensor], *batch: Any) -> tuple:
        """The loss and its gradients, without what goes through log q at fixed draws."""
        found = self.particles(*batch, leaves=True)
        log_weights, rows = found.log_weights, row_count(batch)
        loss = -renyi_bound(log_weights.detach(), self.alpha).mean()
        v = torch.softmax((1 - self.alpha) * log_weights.detach(), 0)  # [draw, example]
        leaves = {name: leaf for name, leaf in found.leaves.items() if leaf.value.requires_grad}
        values = [leaf.value for leaf in leaves.values()]
        direct = torch.autograd.grad(
            -(v * found.log_p).sum() / rows, [*values, *parameters], allow_unused=True, retain_graph=True
        )
        log_q = (v * found.log_q).sum() / rows
        opposite = torch.autograd.grad(log_q, values, allow_unused=True, retain_graph=True)
        partial = {name: _both(direct[i], opposite[i], leaf.value) for i, (name, leaf) in enumerate(leaves.items())}
        factor = None
        if self.gradient == "dreg":  # the weights v are in the derivatives already
            factor = (self.alpha + (1 - self.alpha) * v).mT.reshape(-1)  # [row]
        path = path_gradients(leaves, partial, parameters, factor)
        return (loss, *(add(one, other) for one, other in zip(direct[len(values) :], path, strict=True)))


def left_out(log_weights: Tensor, alpha: float) -> Tensor:
    """The bound with each draw's weight replaced by the geometric mean of the others', [draw, example]."""
    count = len(log_weights)
    others = (log_weights.sum(0) - log_weights) / (count - 1)
    table = log_weights.expand(count, *log_weights.shape).clone()  # [left out, draw, example]
    diagonal = torch.arange(count, device=log_weights.device)
    table[diagonal, diagonal] = others
    return renyi_bound(table.movedim(1, 0), alpha)


def _both(one: Tensor | None, other: Tensor | None, like: Tensor) -> Tensor:
    total = add(one, other)
    return torch.zeros_like(like) if total is None else total
