"""RBM against brute force over every state of both layers."""

import itertools

import pytest
import torch
from pyro import poutine
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import RBM


def all_bits(count: int) -> Tensor:
    """Every state of `count` bits, [2^count, count], float64."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)), dtype=torch.float64)


def random_rbm(observed: int, hidden: int, scale: float = 1.0, sweeps: int = 100) -> RBM:
    rbm = RBM(observed, hidden, sweeps).double()
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
    return rbm


def joint(rbm: RBM) -> Tensor:
    """p(x, h) over all states by the definition, [2^D, 2^M]."""
    x, h = all_bits(rbm.observed or 0), all_bits(rbm.hidden)
    energy = -(x @ rbm.weight @ h.T) - (x @ rbm.bias)[:, None] - (h @ rbm.hidden_bias)[None]
    return torch.softmax(-energy.flatten(), 0).reshape(len(x), len(h)).detach()


def test_the_trace_has_density_minus_energy() -> None:
    rbm = random_rbm(4, 3)
    x = all_bits(4)[:7]
    with rbm.running():
        trace = poutine.trace(rbm.run_model).get_trace(x)
        h = trace.nodes["h"]["value"]
        assert torch.allclose(trace.log_prob_sum(), -rbm.energy(x, h).sum())
        assert set(h.unique().tolist()) <= {0.0, 1.0} and h.shape == (7, 3)
        free = poutine.trace(rbm.run_model).get_trace(n=5)
        x, h = free.nodes["x"]["value"], free.nodes["h"]["value"]
        assert torch.allclose(free.log_prob_sum(), -rbm.energy(x, h).sum())


@pytest.mark.parametrize(("observed", "hidden"), [(7, 4), (4, 7), (5, 5), (1, 1)])
def test_free_energy_conditionals_and_likelihood_equal_brute_force(observed: int, hidden: int) -> None:
    rbm, x = random_rbm(observed, hidden), all_bits(observed)
    p = joint(rbm)
    score = dgm.score(rbm, x)
    assert score.kind == "exact"
    assert torch.allclose(score.value, p.sum(1).log(), atol=1e-12)
    free = rbm.free_energy(x)
    assert torch.allclose(torch.softmax(-free, 0), p.sum(1), atol=1e-14)
    conditional = p / p.sum(1, keepdim=True)
    assert torch.allclose(conditional @ all_bits(hidden), rbm.given_x(x), atol=1e-14)
    assert torch.allclose(rbm.posterior(x)["h"].base_dist.probs, rbm.given_x(x))
    backwards = (p / p.sum(0)).T @ x
    assert torch.allclose(backwards, rbm.given_h(all_bits(hidden)), atol=1e-14)


def test_large_sums_do_not_overflow_and_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = random_rbm(6, 9, scale=30.0)
    whole = rbm.log_partition()
    assert whole is not None and whole.isfinite()
    monkeypatch.setattr("ppl_dgm.models.energy.rbm._NUMBERS", 40)
    chunked = rbm.log_partition()
    assert chunked is not None and torch.allclose(whole, chunked, atol=1e-12)
    assert torch.allclose(whole, torch.logsumexp(-rbm.free_energy(all_bits(6)), 0))


def test_pseudo_likelihood_equals_brute_force() -> None:
    rbm, x = random_rbm(5, 3), all_bits(5)
    p = joint(rbm).sum(1)
    table = p.reshape((2,) * 5)
    expected = sum((table / table.sum(i, keepdim=True)).log().flatten() for i in range(5))
    assert torch.allclose(rbm.pseudo_log_likelihood(x), torch.as_tensor(expected), atol=1e-12)


def test_gradient_of_log_likelihood_is_positive_minus_negative_phase() -> None:
    rbm, x = random_rbm(5, 3), all_bits(5)[[1, 7, 30, 12]]
    mean = rbm.log_prob(x).mean()
    gradient = torch.autograd.grad(mean, list(rbm.parameters()))
    p, states = joint(rbm).sum(1), all_bits(5)
    phases = -rbm.free_energy(x).mean() + (p * rbm.free_energy(states)).sum()  # p is a constant here
    expected = torch.autograd.grad(phases, list(rbm.parameters()))
    for got, wanted in zip(gradient, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)
    with torch.no_grad():  # and by finite difference
        values = []
        for step in (1e-5, -2e-5):
            rbm.weight[2, 1] += step
            values.append(rbm.log_prob(x).mean())
    assert torch.allclose((values[0] - values[1]) / 2e-5, gradient[0][2, 1], atol=1e-8)


def test_gibbs_leaves_the_distribution_as_it_is() -> None:
    rbm = random_rbm(4, 3)
    p, x = joint(rbm), all_bits(4)
    # the transition matrix of one sweep, from the conditionals: p P = p
    h = all_bits(3)
    to_h = torch.stack([rbm.given_x(x).pow(b).mul((1 - rbm.given_x(x)).pow(1 - b)).prod(-1) for b in h], 1)
    to_x = torch.stack([rbm.given_h(h).pow(b).mul((1 - rbm.given_h(h)).pow(1 - b)).prod(-1) for b in x], 1)
    assert torch.allclose(p.sum(1) @ to_h @ to_x, p.sum(1), atol=1e-14)
    # and of the sampler itself: chi-square of 15 degrees of freedom, 0.9999 quantile 44.3
    count = 20_000
    start = x[torch.multinomial(p.sum(1), count, replacement=True)]
    after = rbm.gibbs(start, 2)
    seen = torch.bincount((after @ torch.tensor([8.0, 4, 2, 1]).double()).long(), minlength=16)
    expected = count * p.sum(1)
    assert ((seen - expected) ** 2 / expected).sum() < 44.3


def test_sample_frequencies_and_clamping() -> None:
    rbm = random_rbm(4, 2, scale=0.7)
    p, x = joint(rbm), all_bits(4)
    drawn = dgm.sample(rbm, 20_000, seed=0)
    assert drawn["x"].shape == (20_000, 4) and drawn["h"].shape == (20_000, 2)
    assert torch.allclose(drawn["x"].mean(0), p.sum(1) @ x, atol=0.015)
    assert torch.allclose(drawn["h"].mean(0), p.sum(0) @ all_bits(2), atol=0.015)
    given = torch.tensor([1.0, float("nan"), -1.0, 0.0])
    some = dgm.sample(rbm, 20_000, given={"x": given}, seed=0)["x"]
    assert (some[:, 0] == 1).all() and (some[:, 3] == 0).all()
    right = (x[:, 0] == 1) & (x[:, 3] == 0)
    conditional = p.sum(1)[right] / p.sum(1)[right].sum()
    assert torch.allclose(some.mean(0), conditional @ x[right], atol=0.015)


def test_infer_is_exact_and_seeds_repeat() -> None:
    rbm, x = random_rbm(4, 3), all_bits(4)[:3]
    posterior = dgm.infer(rbm, x, seed=0)
    assert posterior.kind == "exact"
    assert torch.allclose(posterior.mean("h"), rbm.given_x(x))
    one, two = (dgm.sample(rbm, 3, seed=5)["x"] for _ in range(2))
    assert torch.equal(one, two)


def test_unknown_partition_is_said() -> None:
    rbm = RBM(21, 21)
    assert rbm.log_partition() is None
    x = torch.zeros(2, 21)
    score = dgm.score(rbm, x)
    assert score.kind == "unnormalised" and torch.allclose(score.value, -rbm.free_energy(x))
    with pytest.raises(TaskUnavailable, match="log Z"):
        rbm.log_prob(x)
    assert rbm.answers()["score"].kind == "unnormalised"
    assert RBM(64, 20).answers()["score"].kind == "exact"


def test_refusals() -> None:
    with pytest.raises(ProgramError, match="hidden"):
        RBM(4, 0)
    rbm = RBM(4, 2)
    with pytest.raises(DataError, match="x"):
        dgm.score(rbm, torch.full((2, 4), 7))
    with pytest.raises(DataError, match="shape"):
        dgm.sample(rbm, 2, given={"x": torch.zeros(3)})
    with pytest.raises(DataError, match="bits"):
        dgm.sample(rbm, 2, given={"x": torch.tensor([0.0, 0.5, 1, 1])})
    with pytest.raises(ProgramError, match="no site 'y'"):
        dgm.sample(rbm, 2, given={"y": torch.zeros(4)})
