"""Wake-sleep: both phases' gradients against sums over all states, a Helmholtz machine that learns, refusals."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.latent_programs import BeliefNetwork, states
from ppl_dgm.errors import ProgramError, TaskUnavailable

DATA = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).repeat(40, 1)  # two patterns


def mean_gradient(program: BeliefNetwork, method: Any, x: Tensor, runs: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of what the learner descends, by all parameters, flat."""
    parameters = list(program.parameters())
    torch.manual_seed(0)
    with program.running():
        method.prepare(program, (x,))
        step = method.gradients(program, method.objective(program, len(x)), parameters)
        found = torch.stack(
            [
                torch.cat([torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(step(x)[1:], parameters)])
                for _ in range(runs)
            ]
        )  # fmt: skip
    return found.mean(0), found.std(0) / runs**0.5


def flat(total: Tensor, program: BeliefNetwork) -> Tensor:
    parameters = list(program.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).reshape(-1) if g is None else g.reshape(-1) for g, p in zip(found, parameters)]
    )


def test_both_phases_follow_their_enumerated_gradients() -> None:
    """Wake: E_q(z|x) of -log p(x, z) by the model. Sleep: E_p(x, z) of -log q(z | x) by the guide."""
    program = BeliefNetwork()
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    h, g = states(2, 3)
    seen = x.expand(32, 4)
    wake = -(program.log_guide(h, g, seen).exp().detach() * program.log_joint(h, g, seen)).sum()
    h, g, every = states(2, 3, 4)
    sleep = -(program.log_joint(h, g, every).exp().detach() * program.log_guide(h, g, every)).sum()
    exact = flat(wake + sleep, program)
    found, error = mean_gradient(program, dgm.WakeSleep(), x.expand(1000, 4), 25)
    assert ((found - exact).abs() < 4.5 * error + 1e-4).all() and error.max() < 0.02


def test_reweighted_phases_tend_to_the_gradients_at_the_posterior() -> None:
    """With many draws the model's gradient is that of -log p(x), the guide's that of KL(p(z | x) || q)."""
    program = BeliefNetwork()
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    h, g = states(2, 3)
    seen = x.expand(32, 4)
    weights = torch.softmax(program.log_joint(h, g, seen), 0).detach()
    exact = flat(-program.evidence(x).sum() - (weights * program.log_guide(h, g, seen)).sum(), program)
    found, error = mean_gradient(program, dgm.WakeSleep(particles=2000, guide="wake"), x, 40)
    assert ((found - exact).abs() < 4.5 * error + 0.01).all()


@pytest.mark.parametrize("options", [{}, {"particles": 4, "guide": "both"}, {"particles": 4, "guide": "wake"}])
def test_a_helmholtz_machine_learns_two_patterns(options: dict[str, Any]) -> None:
    program = BeliefNetwork()
    before = program.evidence(DATA).mean().detach()
    fit = dgm.learn(program, DATA, method=dgm.WakeSleep(epochs=150, batch_size=None, lr=0.05, **options), seed=0)
    after = fit.program.evidence(DATA).mean().detach()
    assert float(after) > float(before) + 1.0 and float(after) > -1.6  # of at best -log 2 = -0.69
    assert fit.cost.path == "recorded" and "wake-sleep" in fit.objective
    bound = dgm.score(fit.program, DATA[:2], method=dgm.ImportanceWeighted(draws=200), seed=0)
    assert (bound.value < fit.program.evidence(DATA[:2]) + 4 * bound.stderr + 1e-3).all()


def test_dreams_that_cannot_be_handed_to_the_guide_are_refused_in_words() -> None:
    def halved(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.1)) * x, 1.0))

    x = torch.randn(10)
    with pytest.raises(TaskUnavailable, match=r"cannot be given dreams.*use guide='wake'"):
        dgm.learn(halved, x, guide=guide, method=dgm.WakeSleep(epochs=1))
    dgm.learn(halved, x, guide=guide, method=dgm.WakeSleep(epochs=1, particles=3, guide="wake"))
    with pytest.raises(ProgramError, match="at least 2 for guide='wake'"):
        dgm.WakeSleep(guide="wake")
    with pytest.raises(ProgramError, match="guide must be 'sleep', 'wake' or 'both'"):
        dgm.WakeSleep(guide="dream")
