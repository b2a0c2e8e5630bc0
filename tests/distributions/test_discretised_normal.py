"""DiscretisedNormal against quadrature, far tails, its own sampler, and Pyro's conventions."""

import pytest
import torch
from torch.distributions import Normal

from ppl_dgm.distributions import DiscretisedNormal
from ppl_dgm.errors import ProgramError


def test_masses_are_cells_of_the_normal_and_sum_to_one() -> None:
    loc, scale = torch.tensor([-3.0, 0.2, 2.5, 40.0]).double(), torch.tensor([1.0, 0.1, 3.0, 2.0]).double()
    cells = DiscretisedNormal(loc, scale, 5)
    assert torch.allclose(cells.probs.sum(-1), torch.ones(4).double(), atol=1e-12)
    normal = Normal(loc[:, None], scale[:, None])
    edges = normal.cdf(torch.arange(4).double() + 0.5)
    expected = torch.cat([edges[:, :1], edges.diff(dim=-1), 1 - edges[:, -1:]], -1)
    assert torch.allclose(cells.probs, expected, atol=1e-12)


def test_log_masses_and_gradients_stay_finite_far_out() -> None:
    loc = torch.tensor([-500.0, 500.0, 8.0], requires_grad=True)
    log_scale = torch.tensor([-3.0, -3.0, -8.0], requires_grad=True)
    levels = torch.arange(17)[:, None]
    logs = DiscretisedNormal(loc, log_scale.exp(), 17).log_prob(levels)  # [17, 3]
    assert logs.isfinite().all()
    logs.sum().backward()
    assert loc.grad is not None and loc.grad.isfinite().all()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()


def test_gradient_by_finite_difference() -> None:
    loc = torch.tensor([0.3, 2.0, 3.9]).double().requires_grad_()
    scale = torch.tensor([0.4, 2.0, 0.7]).double().requires_grad_()
    levels = torch.arange(5)[:, None]
    assert torch.autograd.gradcheck(lambda a, b: DiscretisedNormal(a, b, 5).log_prob(levels), (loc, scale))


def test_sampler_agrees_with_masses_and_moments() -> None:
    cells = DiscretisedNormal(torch.tensor([0.4, 2.6]), torch.tensor([1.5, 0.6]), 4)
    draws = cells.sample(torch.Size([40_000]))
    assert draws.dtype == torch.int64 and draws.shape == (40_000, 2)
    seen = torch.stack([(draws == k).float().mean(0) for k in range(4)], -1)
    error = (cells.probs * (1 - cells.probs) / 40_000).sqrt()
    assert ((seen - cells.probs).abs() < 4.5 * error).all()
    assert torch.allclose(draws.float().mean(0), cells.mean, atol=0.03)
    assert torch.allclose(draws.float().var(0), cells.variance, atol=0.03)


def test_expand_enumerate_and_events() -> None:
    cells = DiscretisedNormal(torch.tensor(1.0), torch.tensor(0.5), 3)
    wide = cells.expand(torch.Size([2, 4]))
    assert wide.batch_shape == (2, 4) and wide.log_prob(torch.zeros(2, 4)).shape == (2, 4)
    support = wide.enumerate_support(expand=False)
    assert support.shape == (3, 1, 1)
    assert torch.allclose(wide.log_prob(wide.enumerate_support()).exp().sum(0), torch.ones(2, 4))
    assert wide.to_event(1).log_prob(torch.ones(2, 4)).shape == (2,)


def test_refusals() -> None:
    with pytest.raises(ProgramError, match="at least 2"):
        DiscretisedNormal(torch.tensor(0.0), torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="support"):
        DiscretisedNormal(torch.tensor(0.0), torch.tensor(1.0), 3, validate_args=True).log_prob(torch.tensor(3))
