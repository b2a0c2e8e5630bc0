"""The empirical distribution against counts, Pyro's own class and the divergence that maximum likelihood minimises."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.distributions import Empirical
from ppl_dgm.errors import ProgramError

ROWS = torch.tensor([[0, 1, 2], [2, 0, 1], [0, 1, 2], [0, 0, 0], [2, 0, 1], [0, 1, 2]])


def test_masses_are_shares_of_the_rows():
    p = Empirical(ROWS)
    asked = torch.tensor([[[0, 1, 2], [2, 0, 1]], [[0, 0, 0], [1, 1, 1]]])
    torch.testing.assert_close(p.log_prob(asked).exp(), torch.tensor([[3 / 6, 2 / 6], [1 / 6, 0.0]]))
    assert float(p.log_prob(p.enumerate_support()).exp().sum()) == pytest.approx(1)
    assert len(p.enumerate_support()) == 3
    torch.testing.assert_close(p.mean, ROWS.float().mean(0))
    torch.testing.assert_close(p.variance, ROWS.float().var(0, correction=0))
    shares = torch.tensor([3 / 6, 2 / 6, 1 / 6])
    assert float(p.entropy()) == pytest.approx(float(dist.Categorical(shares).entropy()))


def test_weights_and_numbers():
    values, weights = torch.tensor([1.5, -2.0, 1.5, 7.0]), torch.tensor([1.0, 2.0, 3.0, 0.0])
    ours, pyros = Empirical(values, weights), dist.Empirical(values, weights.log())
    for value in (1.5, -2.0, 0.0):
        expected = pyros.log_prob(torch.tensor(value))
        torch.testing.assert_close(ours.log_prob(torch.tensor(value)), expected)
    assert float(ours.log_prob(torch.tensor(7.0))) == -torch.inf
    torch.testing.assert_close(ours.mean, pyros.mean)
    torch.testing.assert_close(ours.variance, pyros.variance)


def test_draws_have_the_shares_of_the_rows():
    torch.manual_seed(0)
    p = Empirical(ROWS)
    draws = p.expand((2,)).sample((2000,))
    assert draws.shape == (2000, 2, 3) and draws.dtype == ROWS.dtype
    share = (draws == torch.tensor([0, 1, 2])).all(-1).float().mean()
    assert abs(float(share) - 0.5) < 5 * 0.5 / 4000**0.5


def test_as_a_program_it_is_sampled_and_scored_by_the_verbs():
    def program(x=None):
        with pyro.plate("data", 4):
            return pyro.sample("x", Empirical(ROWS), obs=x)

    drawn = dgm.sample(program, 1, seed=0)["x"].reshape(-1, 3)
    assert bool((drawn[:, None] == ROWS).all(-1).any(-1).all())
    found = dgm.score(program, ROWS[:4], seed=0)
    assert float(found.value.sum()) == pytest.approx(float(Empirical(ROWS).log_prob(ROWS[:4]).sum()), abs=1e-5)


def test_maximum_likelihood_is_the_projection_of_the_data():
    """KL(p_data || q) = -H(p_data) - mean log q, and of all factorised q the one with the data's shares has the least."""
    p, circuit = Empirical(ROWS), dgm.models.Circuit(3, 3, "independent", pseudo_count=0.0)
    dgm.learn(circuit, ROWS, seed=0)
    atoms = p.enumerate_support()
    found = float((p.probs * (p.log_prob(atoms) - circuit.log_density(atoms).value.detach())).sum())
    by_rows = -float(p.entropy()) - float(circuit.log_density(ROWS).value.detach().mean())
    assert found == pytest.approx(by_rows, abs=1e-5)
    shares = [torch.bincount(column, minlength=3) / 6 for column in ROWS.T]
    least = sum(float(dist.Categorical(s).entropy()) for s in shares) - float(p.entropy())
    assert found == pytest.approx(least, abs=1e-4)  # the sum of entropies less the joint's: the total correlation


def test_refusals_in_words():
    with pytest.raises(ProgramError, match="at least one row"):
        Empirical(torch.zeros(0, 2))
    with pytest.raises(ProgramError, match="do not go with 6 rows"):
        Empirical(ROWS, torch.zeros(6))
    with pytest.raises(ProgramError, match="do not go with 6 rows"):
        Empirical(ROWS, torch.ones(5))
