"""Discretised logistics: masses against cells of the logistic density, far tails, draws, and Pyro's conventions."""

import pytest
import torch
from torch import Tensor

from ppl_dgm.distributions import ChainedLogistics, DiscretisedLogistic, MixtureOfDiscretisedLogistics
from ppl_dgm.errors import ProgramError

LOC = torch.tensor([-3.0, 0.2, 2.5, 40.0]).double()
SCALE = torch.tensor([1.0, 0.1, 3.0, 2.0]).double()


def mixture(values: int | None = 5) -> MixtureOfDiscretisedLogistics:
    logits = torch.tensor([0.5, 0.0, -1.0, 0.3]).double()
    return MixtureOfDiscretisedLogistics(logits.expand(2, 4), torch.stack([LOC, LOC - 1]), SCALE, values)


def assert_frequencies(draws: Tensor, probs: Tensor) -> None:
    seen = torch.stack([(draws == k).double().mean(0) for k in range(probs.shape[-1])], -1)
    error = (probs * (1 - probs) / len(draws)).sqrt()
    assert ((seen - probs).abs() < 4.5 * error + 1e-4).all()


def test_masses_are_cells_of_the_logistic_and_sum_to_one() -> None:
    cells = DiscretisedLogistic(LOC, SCALE, 5)
    edges = torch.sigmoid((torch.arange(4).double() + 0.5 - LOC[:, None]) / SCALE[:, None])
    expected = torch.cat([edges[:, :1], edges.diff(dim=-1), 1 - edges[:, -1:]], -1)
    torch.testing.assert_close(cells.probs, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(cells.probs.sum(-1), torch.ones(4).double())


def test_without_ends_all_integers_sum_to_one() -> None:
    cells = DiscretisedLogistic(LOC[:3], SCALE[:3])
    integers = torch.arange(-200, 201)[:, None]
    torch.testing.assert_close(cells.log_prob(integers).exp().sum(0), torch.ones(3).double())
    assert not cells.has_enumerate_support
    with pytest.raises(NotImplementedError, match="give values"):
        cells.enumerate_support()
    draws = cells.sample(torch.Size([40_000])).double()
    assert (draws[:, 0] < 0).any()
    mean = (integers * cells.log_prob(integers).exp()).sum(0)
    assert ((draws.mean(0) - mean).abs() < 4.5 * draws.std(0) / 200).all()


def test_log_masses_are_accurate_where_a_difference_is_not() -> None:
    """Far out the two sigmoids are equal in floating point; float32 is compared with exact float64 formulas."""
    loc, scale = torch.tensor(0.0), torch.tensor(1.0)
    found = DiscretisedLogistic(loc, scale).log_prob(torch.tensor([30, -30, 300]))
    # sigmoid(k + 1/2) - sigmoid(k - 1/2) = e^{-k} (e^{1/2} - e^{-1/2}) for large k
    tail = torch.tensor([-30.0, -30.0, -300.0]) + torch.log(2 * torch.sinh(torch.tensor(0.5)))
    torch.testing.assert_close(found, tail)
    difference = torch.sigmoid(torch.tensor(30.5)) - torch.sigmoid(torch.tensor(29.5))
    assert difference == 0.0


def test_log_masses_and_gradients_stay_finite_far_out() -> None:
    loc = torch.tensor([-500.0, 500.0, 8.0, 8.2], requires_grad=True)
    log_scale = torch.tensor([-3.0, -3.0, -8.0, 9.0], requires_grad=True)
    levels = torch.arange(17)[:, None]
    logs = DiscretisedLogistic(loc, log_scale.exp(), 17).log_prob(levels)  # [17, 4]
    assert logs.isfinite().all()
    logs.sum().backward()
    assert loc.grad is not None and loc.grad.isfinite().all()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()


@pytest.mark.parametrize("values", [5, None])
def test_gradient_by_finite_difference(values: int | None) -> None:
    loc = torch.tensor([0.3, 2.0, 3.9]).double().requires_grad_()
    scale = torch.tensor([0.4, 2.0, 0.7]).double().requires_grad_()
    levels = torch.arange(5)[:, None]
    assert torch.autograd.gradcheck(lambda a, b: DiscretisedLogistic(a, b, values).log_prob(levels), (loc, scale))


def test_draws_agree_with_masses_and_moments() -> None:
    cells = DiscretisedLogistic(torch.tensor([0.4, 2.6]), torch.tensor([1.5, 0.6]), 4)
    draws = cells.sample(torch.Size([40_000]))
    assert draws.dtype == torch.int64 and draws.shape == (40_000, 2)
    assert_frequencies(draws, cells.probs)
    torch.testing.assert_close(draws.float().mean(0), cells.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(draws.float().var(0), cells.variance, atol=0.05, rtol=0)
    assert_frequencies(mixture().sample(torch.Size([40_000])), mixture().probs)


@pytest.mark.parametrize("values", [5, None])
def test_a_mixture_is_the_weighted_sum(values: int | None) -> None:
    p = mixture(values)
    assert p.batch_shape == (2,)
    k = torch.arange(5)[:, None]
    weights = torch.softmax(p.logits[0], -1)
    by_hand = sum(
        w * DiscretisedLogistic(p.loc[:, j], p.scale[:, j], values).log_prob(k).exp() for j, w in enumerate(weights)
    )
    torch.testing.assert_close(p.log_prob(k).exp(), by_hand)
    if values is not None:
        torch.testing.assert_close(p.probs.sum(-1), torch.ones(2).double())


@pytest.mark.parametrize("kind", ["single", "mixture"])
def test_expand_enumerate_and_events(kind: str) -> None:
    single = DiscretisedLogistic(torch.tensor(1.0), torch.tensor(0.5), 3)
    both = MixtureOfDiscretisedLogistics(torch.zeros(2), torch.tensor([0.0, 2.0]), torch.ones(2), 3)
    cells = single if kind == "single" else both
    wide = cells.expand(torch.Size([2, 4]))
    assert wide.batch_shape == (2, 4) and wide.log_prob(torch.zeros(2, 4)).shape == (2, 4)
    assert wide.sample(torch.Size([7])).shape == (7, 2, 4)
    assert wide.enumerate_support(expand=False).shape == (3, 1, 1)
    torch.testing.assert_close(wide.log_prob(wide.enumerate_support()).exp().sum(0), torch.ones(2, 4))
    assert wide.to_event(1).log_prob(torch.ones(2, 4)).shape == (2,)
    assert wide.has_enumerate_support


def chained(seed: int = 0) -> ChainedLogistics:
    torch.manual_seed(seed)
    shape = (3, 2)
    loc, scale = 1.5 + 2 * torch.randn(shape).double(), 0.2 + torch.rand(shape).double()
    return ChainedLogistics(torch.randn(shape).double(), loc, scale, torch.randn(3, 3).double(), 4)


def test_a_chain_of_levels_has_mass_one_and_its_draws_agree() -> None:
    d = chained()
    x = torch.cartesian_prod(*[torch.arange(4)] * 3)
    probs = d.log_prob(x).exp()
    assert float(probs.sum()) == pytest.approx(1.0, abs=1e-9)
    draws = d.sample((40_000,))
    assert_frequencies(draws @ torch.tensor([16, 4, 1]), probs)
    # one conditional after another
    one = x[27]
    total = torch.zeros(())
    for k in range(3):
        loc = d.loc[k] + (d.coupling.tril(-1)[k] * one).sum()
        total = total + MixtureOfDiscretisedLogistics(d.logits[k], loc, d.scale[k], 4).log_prob(one[k])
    torch.testing.assert_close(d.log_prob(one), total)


def test_a_chain_expands_and_refuses() -> None:
    d = chained().expand((5,))
    assert d.sample((2,)).shape == (2, 5, 3)
    assert d.log_prob(d.sample()).shape == (5,)
    with pytest.raises(ProgramError, match=r"coupling has the shape \(2, 2\); give \[3, 3\]"):
        ChainedLogistics(d.logits, d.loc, d.scale, torch.zeros(2, 2), 4)
    with pytest.raises(ProgramError, match="values is 1"):
        ChainedLogistics(d.logits, d.loc, d.scale, torch.zeros(3, 3), 1)


def test_refusals() -> None:
    with pytest.raises(ProgramError, match="at least 2"):
        DiscretisedLogistic(torch.tensor(0.0), torch.tensor(1.0), 1)
    with pytest.raises(ProgramError, match="at least 2"):
        MixtureOfDiscretisedLogistics(torch.zeros(2), torch.zeros(2), torch.ones(2), 0)
    with pytest.raises(ValueError, match="support"):
        DiscretisedLogistic(torch.tensor(0.0), torch.tensor(1.0), 3, validate_args=True).log_prob(torch.tensor(3))
