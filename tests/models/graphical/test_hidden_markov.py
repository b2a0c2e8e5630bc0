"""HiddenMarkovModel against sums over every path, Pyro's own distribution, and the same model site by site."""

from itertools import pairwise, product

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.distributions.discrete_chain import DiscreteChain
from ppl_dgm.errors import DataError, ProgramError

KINDS = {
    "categorical": {"states": 2, "emission": "categorical", "values": 4},
    "bernoulli": {"states": 2, "emission": "bernoulli", "dimensions": 2},
    "gaussian": {"states": 2, "emission": "gaussian", "dimensions": 2},
    "gaussian, one entry": {"states": 2, "emission": "gaussian"},
}


def made(kind, seed=0):
    torch.manual_seed(seed)
    hmm = dgm.models.HiddenMarkovModel(**KINDS[kind]).double()
    with torch.no_grad():
        for parameter in hmm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return hmm


@torch.no_grad()
def paths(hmm, x):
    """{path: log p(x, z)} of one sequence, added up site by site."""
    initial, moves = hmm.initial_logits.log_softmax(-1), hmm.transition_logits.log_softmax(-1)
    found = {}
    for z in product(range(hmm.states), repeat=len(x)):
        total = initial[z[0]] + sum(moves[a, b] for a, b in pairwise(z))
        for state, step in zip(z, x):
            there = ~step.isnan() if step.is_floating_point() else step >= 0
            fn = hmm.emission.of(torch.tensor(state))
            total = total + (fn.log_prob(torch.where(there, step, torch.zeros_like(step))) * there).sum()
        found[z] = float(total)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("holes", [False, True])
def test_every_answer_is_that_of_the_sum_over_all_paths(kind, holes):
    hmm = made(kind)
    x = dgm.sample(hmm, 2, length=5, seed=1)["x"]
    if holes:
        x = x.double() if x.is_floating_point() else x.clone()
        x[0, 2], x[1, 4] = (torch.nan, torch.nan) if x.is_floating_point() else (-1, -1)
    score, smooth, (best, log_best) = dgm.score(hmm, x), hmm.forward_backward(x), hmm.viterbi(x)
    chain = dgm.infer(hmm, x, seed=0).exact["z"]
    for row in range(2):
        listed = paths(hmm, x[row])
        logs = torch.tensor(list(listed.values()), dtype=torch.float64)
        total = logs.logsumexp(0)
        assert float(score.value[row]) == pytest.approx(float(total), abs=1e-10)
        weights = (logs - total).exp()
        states = torch.zeros(5, 2, dtype=torch.float64)
        for z, weight in zip(listed, weights):
            states[range(5), z] += weight
        assert torch.allclose(smooth.states[row], states, atol=1e-10)
        assert torch.allclose(chain.marginals[row], states, atol=1e-10)
        assert tuple(best[row].tolist()) == max(listed, key=listed.__getitem__)
        assert float(log_best[row]) == pytest.approx(max(listed.values()), abs=1e-10)
        every = torch.tensor(list(listed))
        own = DiscreteChain(chain.initial[row], chain.transitions[row])
        assert torch.allclose(own.log_prob(every), logs - total, atol=1e-10)
    assert torch.allclose(smooth.moves.sum(-1), smooth.states[:, :-1], atol=1e-10)
    assert torch.allclose(smooth.moves.sum(-2), smooth.states[:, 1:], atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_one_site_and_a_site_for_each_step_are_the_same_program(kind):
    hmm = made(kind)
    x = dgm.sample(hmm, 3, length=4, seed=1)["x"]
    unrolled = hmm.unrolled()
    wanted = dgm.score(hmm, x).value
    assert torch.allclose(dgm.score(unrolled, x, method="exact").value, wanted, atol=1e-10)
    assert torch.allclose(dgm.score(unrolled, x, method="belief-propagation").value, wanted, atol=1e-10)
    post = dgm.infer(unrolled, x, method="junction-tree", seed=0)
    states = hmm.forward_backward(x).states
    for t in range(4):
        assert torch.allclose(post.exact[f"z_{t}"].probs, states[:, t], atol=1e-10)
    best = dgm.map_configuration(unrolled, x)
    assert torch.equal(torch.stack([best.values[f"z_{t}"] for t in range(4)], -1), hmm.viterbi(x)[0])
    z = dgm.infer(hmm, x, seed=0).draws["z"][0, 0]
    joint = pyro.poutine.trace(pyro.poutine.condition(hmm.model, {"z": z})).get_trace(x).log_prob_sum()
    sites = {f"z_{t}": z[:, t] for t in range(4)}
    other = pyro.poutine.trace(pyro.poutine.condition(unrolled.model, sites)).get_trace(x).log_prob_sum()
    assert float(joint.detach()) == pytest.approx(float(other.detach()), abs=1e-9)


def test_the_density_is_that_of_pyros_own_distribution():
    hmm = made("gaussian")
    x = torch.randn(4, 7, 2, dtype=torch.float64)
    fn = dist.Normal(hmm.emission.mean, (0.5 * hmm.emission.log_variance).exp()).to_event(1)
    # Pyro's chain moves once before the first observation
    first = (hmm.initial_logits.log_softmax(-1)).detach()
    moves = hmm.transition_logits.log_softmax(-1)
    per_step = moves.expand(7, 2, 2).clone()
    per_step[0] = first.expand(2, 2)
    theirs = dist.DiscreteHMM(torch.zeros(2, dtype=torch.float64), per_step, fn, duration=7)
    assert torch.allclose(dgm.score(hmm, x).value, theirs.log_prob(x), atol=1e-9)


def test_a_shorter_sequence_is_one_whose_end_is_missing():
    hmm = made("categorical")
    x = dgm.sample(hmm, 3, length=6, seed=0)["x"]
    padded = torch.cat([x, torch.full((3, 4), -1)], 1)
    assert torch.allclose(dgm.score(hmm, x).value, dgm.score(hmm, padded).value, atol=1e-12)
    assert torch.allclose(hmm.forward_backward(padded).states[:, :6], hmm.forward_backward(x).states, atol=1e-12)
    path, log_best = hmm.viterbi(padded, torch.full((3,), 6))
    assert torch.equal(path[:, :6], hmm.viterbi(x)[0]) and bool((path[:, 6:] == -1).all())
    assert torch.allclose(log_best, hmm.viterbi(x)[1], atol=1e-12)


def test_draws_of_the_posterior_are_joint():
    hmm = made("categorical", 3)
    x = dgm.sample(hmm, 1, length=4, seed=2)["x"]
    draws = dgm.infer(hmm, x, method=dgm.Exact(draws=40_000), seed=0).draws["z"][0, :, 0]
    listed = paths(hmm, x[0])
    logs = torch.tensor(list(listed.values()), dtype=torch.float64)
    weights = logs.softmax(0)
    for z, weight in zip(listed, weights.tolist()):
        share = float((draws == torch.tensor(z)).all(-1).double().mean())
        assert abs(share - weight) < 5 * (weight * (1 - weight) / 40_000) ** 0.5 + 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0.0, 0.5])
def test_baum_welch_never_falls(kind, count):
    hmm = made(kind)
    hmm.count = hmm.emission.count = count
    x = dgm.sample(made(kind, 5), 10, length=12, seed=1)["x"]
    x = x.double() if x.is_floating_point() else x.clone()
    x[0, 8:] = torch.nan if x.is_floating_point() else -1
    values = []
    for _ in range(40):
        prior = float(hmm.log_prior().detach()) / len(x)
        values.append(float(hmm.em_step(x)) + prior)
    assert all(b >= a - 1e-9 for a, b in pairwise(values)) and values[-1] > values[0] + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_m_step_is_where_the_gradient_of_the_expected_joint_vanishes(kind):
    hmm = made(kind)
    x = dgm.sample(made(kind, 4), 6, length=10, seed=1)["x"]
    found = hmm.forward_backward(x)
    states, moves = found.states.detach(), found.moves.detach()
    hmm.em_step(x)
    joint = (states[:, 0] * hmm.initial_logits.log_softmax(-1)).sum()
    joint = joint + (moves * hmm.transition_logits.log_softmax(-1)).sum() + (states * hmm.step_log_probs(x)).sum()
    joint.backward()
    assert max(float(p.grad.abs().max()) for p in hmm.parameters()) < 1e-9


def test_baum_welch_finds_the_states_again():
    torch.manual_seed(0)
    truth = dgm.models.HiddenMarkovModel(2, "gaussian")
    with torch.no_grad():
        truth.transition_logits.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
        truth.emission.mean.copy_(torch.tensor([[-2.0], [2.0]]))
    drawn = dgm.sample(truth, 20, length=100, seed=0)
    hmm = dgm.models.HiddenMarkovModel(2, "gaussian")
    fit = dgm.learn(hmm, drawn["x"], method=dgm.EM(restarts=2), seed=0)
    assert -fit.history["objective"].iloc[-1] >= float(dgm.score(truth, drawn["x"]).mean().value)
    order = hmm.emission.mean.squeeze(-1).argsort()
    assert torch.allclose(hmm.emission.mean[order].detach().squeeze(-1), torch.tensor([-2.0, 2.0]), atol=0.15)
    moves = hmm.transition_logits.softmax(-1)[order][:, order]
    assert torch.allclose(moves.detach(), torch.tensor([[0.9, 0.1], [0.2, 0.8]]), atol=0.06)
    ranks = order.argsort()[hmm.viterbi(drawn["x"])[0]]
    assert float((ranks == drawn["z"]).float().mean()) > 0.95


def test_refusals_name_the_argument():
    with pytest.raises(ProgramError, match="emission must be one of"):
        dgm.models.HiddenMarkovModel(2, "poisson")
    with pytest.raises(ProgramError, match="values of at least 2"):
        dgm.models.HiddenMarkovModel(2)
    with pytest.raises(ProgramError, match="states must be a whole number"):
        dgm.models.HiddenMarkovModel(0, values=2)
    hmm = dgm.models.HiddenMarkovModel(2, values=3)
    with pytest.raises(ProgramError, match="pass length="):
        dgm.sample(hmm, 2)
    with pytest.raises(DataError, match="shape"):
        dgm.score(hmm, torch.zeros(3))
    with pytest.raises(DataError, match="values go from 0 to 2"):
        dgm.score(hmm, torch.full((2, 4), 3))


@pytest.mark.parametrize("kind", KINDS)
def test_the_unrolled_graph_is_that_of_the_chain(kind):
    hmm = made(kind)
    x = dgm.sample(hmm, 3, length=3, seed=1)["x"]
    found = dgm.structure(hmm.unrolled(), x)
    edges = {edge for edge in found.graph.edges if found.graph.nodes[edge[0]]["kind"] != "parameter"}
    assert edges == {("z_0", "z_1"), ("z_1", "z_2"), *((f"z_{t}", f"x_{t}") for t in range(3))}
    assert found.d_separated("x_0", "x_2", given=["z_1"]) and not found.d_separated("x_0", "x_2")
