"""FactorialMixture: exact against the list of states, the mean-field bound below it, and EM that never falls."""

import itertools

import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError

Factorial = dgm.models.FactorialMixture


def made(seed=0, **options):
    torch.manual_seed(seed)
    program = Factorial(4, **{"causes": 3, **options}).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return program


def test_score_and_posterior_are_sums_over_every_state():
    program = made()
    x = dgm.sample(program, 5, seed=0)["x"]
    logs = []
    for z in program.states():
        mean = program.bias + sum(program.effects[m, k] for m, k in enumerate(z))
        prior = sum(program.weight_logits[m].log_softmax(-1)[k] for m, k in enumerate(z))
        logs.append(dist.Normal(mean, program.noise.sqrt()).log_prob(x).sum(-1) + prior)
    logs = torch.stack(logs, -1).detach()
    assert torch.allclose(dgm.score(program, x).value, logs.logsumexp(-1), atol=1e-10)
    weights = logs.softmax(-1)
    for method in (None, "junction-tree"):
        post = dgm.infer(program, x, method=method, seed=0)
        for m in range(3):
            share = weights @ (program.states()[:, m] == 1).double()
            assert torch.allclose(post.exact[f"z_{m}"].probs[:, 1], share, atol=1e-10)
        assert torch.allclose(post.log_evidence.value, logs.logsumexp(-1), atol=1e-10)


def test_many_causes_are_drawn_by_gibbs_to_the_exact_shares():
    program, few = made(), made(exact_up_to=1)
    x = dgm.sample(program, 2, seed=0)["x"]
    post = dgm.infer(few, x, method=dgm.Gibbs(chains=4, warmup=50, draws=500), seed=0)
    exact = dgm.infer(program, x, seed=0).exact
    assert dgm.infer(few, x, method=dgm.Gibbs(chains=1, warmup=1, draws=2), seed=0).kind == "asymptotic"
    for m in range(3):
        share = post.draws[f"z_{m}"].double().mean((0, 1))
        assert torch.allclose(share, exact[f"z_{m}"].probs[:, 1], atol=0.1)


def test_the_mean_field_bound_is_below_and_a_fixed_point():
    program = made()
    x = dgm.sample(program, 20, seed=0)["x"]
    q = program.mean_field(x)
    bound, exact = program.bound(x, q), dgm.score(program, x).value
    assert bool((bound <= exact + 1e-10).all()) and bool((q.sum(-1) - 1).abs().max() < 1e-12)
    for m in range(3):
        moved = q.clone()
        moved[:, m] = (0.9 * q[:, m] + 0.05).softmax(-1)
        assert bool((program.bound(x, moved) <= bound + 1e-9).all())
    states = torch.nn.functional.one_hot(program.states(), 2).double()
    sharp = program.bound(x[:1].expand(8, -1), states)  # a point mass: the bound is log p(x, z)
    assert torch.allclose(sharp, program.log_joint(x[:1])[0], atol=1e-10)


@pytest.mark.parametrize("exact_up_to", [4096, 1])
@pytest.mark.parametrize("values", [2, 3])
def test_em_never_falls(exact_up_to, values):
    x = dgm.sample(made(3, values=values), 80, seed=0)["x"]
    program = made(values=values, exact_up_to=exact_up_to)
    program.em_start(x)
    values = [float(program.em_step(x)) for _ in range(30)]
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values)) and values[-1] > values[0] + 0.1


def test_learning_takes_added_causes_apart():
    torch.manual_seed(0)
    truth = Factorial(6, causes=2)
    with torch.no_grad():
        truth.effects.zero_()
        truth.effects[0, 1, :3] = 3.0
        truth.effects[1, 1, 3:] = 3.0
        truth.log_noise.fill_(-2.0)
    x = dgm.sample(truth, 400, seed=0)["x"]
    program = Factorial(6, causes=2)
    fit = dgm.learn(program, x, method=dgm.EM(restarts=4, steps=60), seed=0)
    assert -fit.history["objective"].iloc[-1] > float(dgm.score(truth, x).mean().value) - 0.05
    steps = (program.effects[:, 1] - program.effects[:, 0]).detach().abs()  # [M, D]
    assert torch.allclose(steps[steps[:, 0].argsort()][:, [0, 5]], torch.tensor([[0.0, 3.0], [3.0, 0.0]]), atol=0.2)


def test_refusals():
    with pytest.raises(ProgramError, match="causes must be a whole number"):
        Factorial(3, causes=0)
    with pytest.raises(ProgramError, match="values must be a whole number, at least 2"):
        Factorial(3, causes=2, values=1)
