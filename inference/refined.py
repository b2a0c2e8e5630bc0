"""Refined: the guide's answer for given observations, improved by gradient steps on its distributions themselves."""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.amortised import Amortised
from ppl_dgm.inference.importance import ImportanceWeighted
from ppl_dgm.inference.learning.local import LocalProgram, check_independent, local_sites
from ppl_dgm.inference.learning.particles import Particles
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Posterior, Score

__all__ = ["Refined"]

_COMPARED = 64  # draws for the choice between a refined distribution and the one it came from


@algorithm("refined")
@dataclass(frozen=True)
class Refined:
    """Semi-amortised inference: q(z | x) begins as the guide's and then climbs the ELBO of each example by itself.

    What moves are the parameters of the guide's distributions for these observations (means, standard deviations, ...), on
    unconstrained scales, by Adam with a rate that falls to zero; program and guide stay as they are. An example whose ELBO
    is not better in the end (64 draws with common random numbers) keeps what the guide said.

    Arguments:
        steps: gradient steps.
        lr: learning rate of Adam.
        particles: draws of each example at each step.
        draws: draws from the refined distributions: of the posterior, and for the bound of `score`.

    Returns:
        `infer`: a `Posterior` of kind `approximate`, as `Amortised` gives. `score`: the importance-weighted bound of `draws`
        draws from the refined distributions, a lower bound.

    Raises:
        TaskUnavailable: no guide; a site outside the plate `data`; a guide whose distributions depend on each other's
            draws, or are not made from parameters of their own (flows).

    Source: Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-amortized variational autoencoders; Cremer, Li and Duvenaud
    (2018) for the amortisation gap that it closes.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> vae = dgm.models.VAE(observed=6, latent=2, hidden=8, likelihood="bernoulli")
        >>> dgm.infer(vae, torch.ones(3, 6), method=dgm.Refined(steps=5, draws=10), seed=0).draws["z"].shape
        torch.Size([1, 10, 3, 2])
    """

    steps: int = 100
    lr: float = 0.05
    particles: int = 4
    draws: int = 1000

    def __post_init__(self) -> None:
        require(
            self,
            ("steps", is_count(self.steps, 1), "a whole number, at least 1"),
            ("lr", self.lr > 0, "positive"),
            ("particles", is_count(self.particles, 1), "a whole number, at least 1"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
        )

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        local, numbers, told = self._refine(program, args, kwargs)
        with local.running():
            found = Amortised(draws=self.draws).run(local, *args, *numbers, **kwargs)
        cost = replace(found.cost, seconds=time.perf_counter() - begun, gradients=self.steps * self.particles)
        tail = found.how.partition(",")[2]
        return replace(found, cost=cost, program=program, how=f"{told}{',' if tail else ''}{tail}")

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`."""
        local, numbers, told = self._refine(program, args, kwargs)
        with local.running():
            score = ImportanceWeighted(draws=self.draws).run(local, *args, *numbers, **kwargs)
        return replace(score, how=f"{score.how}; {told}")

    def _refine(self, program: Program, args: tuple, kwargs: dict[str, Any]) -> tuple[LocalProgram, list[Tensor], str]:
        """The program under refined local distributions, their numbers, and what was done, in words."""
        if kwargs:
            raise TaskUnavailable(f"Refined passes positional arguments, not {', '.join(kwargs)}; give them in order.")
        with number_type(program, args):
            Particles(program, 1).check(args)
            check_independent(program, args, kwargs)
            with torch.no_grad():
                sites, first = local_sites(program, args, kwargs)
            local = LocalProgram(program, sites, len(args))
            with torch.enable_grad(), local.running():
                numbers = self._climb(Particles(local, self.particles), args, first)
            with torch.no_grad(), local.running():
                judge = Particles(local, _COMPARED)
                bounds = []
                for some in (first, numbers):
                    with seeded(0):
                        bounds.append(judge.log_weights(*args, *some).mean(0))
        better = bounds[1] > bounds[0]  # [example]; not where either is not a number
        kept = [
            torch.where(better.reshape(-1, *(1,) * (u.dim() - 1)), v, u) for u, v in zip(first, numbers, strict=True)
        ]
        gain = float((torch.where(better, bounds[1], bounds[0]) - bounds[0]).mean())
        told = f"the guide of {program.name} refined by {self.steps} gradient steps (ELBO {gain:+.3g} nats per example)"
        return local, kept, told

    def _climb(self, particles: Particles, args: tuple, first: list[Tensor]) -> list[Tensor]:
        """The numbers after all steps."""
        numbers = [u.detach().clone().requires_grad_() for u in first]
        optimiser = torch.optim.Adam(numbers, lr=self.lr)
        with progress("refine", self.steps) as report:
            for step in range(self.steps):
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * (1 - step / self.steps)
                loss = -particles(*args, *numbers).log_weights.mean(0).sum()  # examples do not share any numbers
                gradients = torch.autograd.grad(loss, numbers, allow_unused=True)
                for u, gradient in zip(numbers, gradients, strict=True):
                    u.grad = None if gradient is None else gradient.nan_to_num(0.0)
                optimiser.step()
                report(elbo=-float(loss.detach()) / len(args[0]))
        return [u.detach() for u in numbers]
