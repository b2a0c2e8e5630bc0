"""WakeSleep: model and guide learned in turns, each by maximum likelihood, without a gradient through the draws."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.conditioning import Unobserve
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.bounds import GuideLearner, renyi_bound
from ppl_dgm.inference.learning.particles import Particles, random_nodes, row_sums
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm

__all__ = ["WakeSleep"]


@algorithm("wake-sleep")
@dataclass(frozen=True)
class WakeSleep(GuideLearner):
    """Wake-sleep, and reweighted wake-sleep for more than one draw, for any guide, discrete ones included.

    - Wake: z_k ~ q(z | x) for data x; the model ascends sum_k v_k log p(x, z_k), with v_k the normalised importance weights
      (1 for one draw).
    - Sleep: (x, z) ~ p, dreamt by the model; the guide ascends log q(z | x).
    - Wake phase of the guide: it ascends sum_k v_k log q(z_k | x) at the data, which is a gradient of KL(p || q) there,
      biased by as much as the weights of K draws are.

    Model and guide follow different objectives, so that for few draws and a poor guide the likelihood need not grow; there is
    no score function, whose variance is what makes discrete guides hard. A parameter of both is pulled by both. The column
    `objective` of the history, like validation, is minus the importance-weighted bound of these draws (the ELBO for one).

    Arguments:
        guide: what teaches the guide: "sleep", "wake" (at least two draws), or "both", added.
        particles: K, draws for each example when awake.
        Others: see `GradientLearner`.

    Raises:
        TaskUnavailable: no guide; sites outside the plate `data`; to sleep, observations that are not the program's first
            argument as it is given, since dreams could not be handed to the guide.

    Source: Hinton, Dayan, Frey and Neal (1995), The wake-sleep algorithm for unsupervised neural networks; Bornschein and
    Bengio (2015), Reweighted wake-sleep.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.WakeSleep(particles=5, guide="both", epochs=50)
    """

    guide: str = "sleep"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("guide", self.guide in ("sleep", "wake", "both"), "'sleep', 'wake' or 'both'"),
            (
                "particles",
                self.guide != "wake" or self.particles > 1,
                "at least 2 for guide='wake', which learns from how the draws' weights differ",
            ),
        )

    @property
    def aim(self) -> str:
        return f"wake-sleep (-bound of {self.particles} draws), nats per example"

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        if self.guide == "wake":
            return
        with torch.no_grad():
            trace = poutine.trace(program.run_model).get_trace(*batch)
        seen = {n: node["value"] for n, node in random_nodes(trace).items() if node["is_observed"]}
        same = [v.shape == batch[0].shape and torch.equal(v.double(), batch[0].double()) for v in seen.values()]
        if same != [True]:
            raise TaskUnavailable(
                f"the guide of {program.name!r} cannot be given dreams, since the program does not observe exactly one site with "
                f"its first argument as it is (it observes {', '.join(map(repr, seen)) or 'none'}); use guide='wake' with "
                "particles=2 or more."
            )

    def objective(self, program: Program, total: int) -> "_Phases":
        return _Phases(program, self.particles, self.guide)

    def validation(self, program: Program, total: int) -> Objective:
        particles = Particles(program, self.particles)
        return lambda *batch: -renyi_bound(particles.log_weights(*batch), 0.0).mean()

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        def loss_and_gradients(*batch: Any) -> tuple:
            bound, loss = objective(*batch)
            return (-bound.detach(), *torch.autograd.grad(loss, parameters, allow_unused=True))

        return loss_and_gradients


class _Phases:
    """The bound, and what is differentiated: all phases, added."""

    def __init__(self, program: Program, count: int, guide: str) -> None:
        self.program, self.guide, self.particles = program, guide, Particles(program, count)

    def __call__(self, *batch: Any) -> tuple[Tensor, Tensor]:
        found = self.particles(*batch, detach=True)
        log_p, log_q = found.log_p, found.log_q  # [draw, example]
        log_weights = (log_p - log_q).detach()
        v = torch.softmax(log_weights, 0)
        loss = -(v * log_p).sum(0).mean()
        if self.guide != "sleep":
            loss = loss - (v * log_q).sum(0).mean()
        if self.guide != "wake":
            loss = loss + self.asleep(list(found.nodes), *batch)
        return renyi_bound(log_weights, 0.0).mean(), loss

    def asleep(self, names: list[str], *batch: Any) -> Tensor:
        """-log q(z | x), averaged over as many dreams (x, z) ~ p as the batch has rows; `names` are those of z's sites."""
        with torch.no_grad():
            dream = poutine.trace(Unobserve()(self.program.run_model)).get_trace(*batch)
        drawn = {name: node["value"] for name, node in random_nodes(dream).items()}
        latent = {name: value for name, value in drawn.items() if name in names}
        (seen,) = (value.to(batch[0].dtype) for name, value in drawn.items() if name not in names)
        guide = poutine.trace(poutine.condition(self.program.run_guide, latent)).get_trace(seen, *batch[1:])
        guide.compute_log_prob()
        rows = len(seen)
        terms = [row_sums(node, rows) for name, node in random_nodes(guide).items() if name in latent]
        return -sum(terms, torch.zeros((), device=seen.device)).mean()
