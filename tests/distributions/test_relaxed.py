"""Relaxed and straight-through categories: whose density is reported, and what the gradients are."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import Concrete, StraightThroughGumbel

LOGITS = torch.tensor([0.3, -1.0, 1.2])


def test_the_relaxed_density_is_its_formula_and_integrates_to_one() -> None:
    t, logits = torch.tensor(0.7).double(), LOGITS.double()
    q = Concrete(t, logits=logits)
    y = q.sample((50,))
    lp = logits.log_softmax(-1)
    expected = math.lgamma(3) + 2 * t.log() + (lp - (t + 1) * y.log()).sum(-1) - 3 * (lp - t * y.log()).logsumexp(-1)
    torch.testing.assert_close(q.log_prob(y), expected)
    # the simplex of three corners, as the triangle under y_1 + y_2 = 1, in coordinates that spread its corners out
    s = torch.linspace(-60, 60, 1201, dtype=torch.float64)
    a, b = torch.meshgrid(s, s, indexing="ij")
    y = torch.stack([a, b, torch.zeros_like(a)], -1).softmax(-1)
    mass = (q.log_prob(y.clamp_min(1e-300)) + y.log().clamp_min(-700).sum(-1)).exp()  # dy_1 dy_2 = y_1 y_2 y_3 da db
    assert float(mass.sum() * 0.1**2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_relaxed_draws_never_round_to_zero(temperature: float) -> None:
    logits = (3 * torch.randn(6)).requires_grad_()
    q = Concrete(torch.tensor(temperature), logits=logits)
    y = q.rsample((500,))
    log_prob = q.log_prob(y)
    (gradient,) = torch.autograd.grad(log_prob.sum() + y[:, 0].sum(), logits)
    assert y.min() > 0 and log_prob.isfinite().all() and gradient.isfinite().all()
    assert q.sample((500,)).min() > 0
    if temperature == 0.01:  # torch's own is NaN there
        plain = dist.RelaxedOneHotCategorical(torch.tensor(temperature), logits=logits, validate_args=False)
        assert not plain.log_prob(plain.sample((500,))).isfinite().all()


def test_relaxed_draws_have_the_frequencies_of_the_categories() -> None:
    n = 20_000
    y = Concrete(torch.tensor(0.5), logits=LOGITS).sample((n,))
    counts = torch.bincount(y.argmax(-1), minlength=3)
    assert stats.chisquare(counts.double(), n * LOGITS.double().softmax(-1)).pvalue > 1e-4


def test_straight_through_draws_are_categories_with_their_own_density() -> None:
    n = 20_000
    logits = LOGITS.clone().requires_grad_()
    q = StraightThroughGumbel(torch.tensor(0.5), logits=logits)
    z = q.rsample((n,))
    assert torch.equal(z.sort(-1).values.detach(), torch.tensor([0.0, 0.0, 1.0]).expand(n, 3))
    assert z.requires_grad
    counts = z.detach().sum(0)
    assert stats.chisquare(counts.double(), n * LOGITS.double().softmax(-1)).pvalue > 1e-4
    plain = dist.OneHotCategorical(logits=LOGITS)
    torch.testing.assert_close(q.log_prob(z), plain.log_prob(z.detach()))
    torch.testing.assert_close(q.log_prob(torch.eye(3)).exp().sum(), torch.tensor(1.0))
    # the density of the relaxation behind the draw, which Pyro's class of the kind reports, is not that
    pyros = dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), logits=LOGITS)
    other = pyros.rsample((200,))
    assert (pyros.log_prob(other) - plain.log_prob(other)).abs().mean() > 0.5


def test_the_gradient_is_that_of_the_relaxation_with_the_same_noise() -> None:
    logits, weight = LOGITS.clone().requires_grad_(), torch.tensor([1.0, -2.0, 0.5])
    torch.manual_seed(3)
    z = StraightThroughGumbel(torch.tensor(0.5), logits=logits).rsample((10,))
    (found,) = torch.autograd.grad((z @ weight).sum(), logits)
    torch.manual_seed(3)
    noise = -(-torch.log1p(-torch.rand(10, 3))).log()
    y = ((logits.log_softmax(-1) + noise) / 0.5).softmax(-1)
    assert torch.equal(y.argmax(-1), z.argmax(-1))
    (expected,) = torch.autograd.grad((y @ weight).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_divergence_expansion_and_runs_at_once() -> None:
    logits = torch.randn(4, 2, 3)
    q = StraightThroughGumbel(torch.tensor(0.5), logits=logits).to_event(1)
    p = dist.OneHotCategorical(logits=torch.zeros(2, 3)).to_event(1)
    prob = logits.softmax(-1)
    exact = (prob * (prob * 3).log()).sum((-1, -2))
    torch.testing.assert_close(kl_divergence(q, p.expand([4])), exact)
    for kind in (q, Concrete(torch.tensor(0.5), logits=logits).to_event(1)):
        wide = kind.expand([6, 4])
        z = wide.rsample((5,))
        assert z.shape == (5, 6, 4, 2, 3) and wide.log_prob(z).shape == (5, 6, 4)
        assert type(wide.base_dist) is type(kind.base_dist)
        many = batched_runs(lambda kind=kind: kind.rsample(), 7)
        assert many.shape == (7, 4, 2, 3) and not torch.equal(many[0], many[1])
