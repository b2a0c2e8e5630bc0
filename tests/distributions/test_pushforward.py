"""Pushforward: its memory of the last draw, and when it must not be used; reflected Gaussians and their divergences."""

import copy

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import TransformedDistribution, kl_divergence
from torch.distributions.transforms import AffineTransform, ExpTransform

from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import Pushforward, ReflectedNormal
from ppl_dgm.transforms import Householder, Planar


class Counting(Planar):
    """A planar map that counts how often it is inverted."""

    def __init__(self, *args: Tensor) -> None:
        super().__init__(*args)
        self.inverted = 0

    def _inverse(self, y: Tensor) -> Tensor:
        self.inverted += 1
        return super()._inverse(y)


def made(u: Tensor | None = None) -> tuple[Pushforward, Counting]:
    u = torch.tensor([1.5, -0.4], dtype=torch.float64) if u is None else u
    layer = Counting(u, torch.tensor([0.7, 1.1]).double(), torch.tensor(0.2).double())
    return Pushforward(dist.Normal(torch.zeros(2).double(), 1.0).to_event(1), [layer]), layer


def test_the_last_draw_needs_no_inverse_and_any_other_value_gets_one() -> None:
    q, layer = made()
    z = q.rsample((5,))
    remembered = q.log_prob(z)
    assert layer.inverted == 0
    computed = q.log_prob(z.clone())
    assert layer.inverted == 1
    torch.testing.assert_close(remembered, computed)
    newer = q.rsample((5,))
    torch.testing.assert_close(q.log_prob(z), remembered)  # no longer the last
    assert layer.inverted == 2
    q.log_prob(newer)
    assert layer.inverted == 2


def test_copies_and_expanded_distributions_start_without_memory() -> None:
    q, _ = made()
    z = q.rsample()
    wide = q.expand([3])
    assert wide._value is None and copy.deepcopy(q.expand([2]))._value is None and copy.copy(q)._value is None
    values = wide.rsample((4,))
    assert values.shape == (4, 3, 2)
    assert wide.log_prob(values).shape == (4, 3)
    torch.testing.assert_close(wide.log_prob(z.expand(3, 2)), q.log_prob(z).expand(3))


def test_a_draw_made_without_gradients_does_not_serve_a_density_with_them() -> None:
    """Else -log q would seem to have no gradient, as in the sleep phase or in a score-function estimator."""
    u = torch.tensor([1.5, -0.4], dtype=torch.float64, requires_grad=True)
    q, _ = made(u)
    z = q.sample()
    (found,) = torch.autograd.grad(q.log_prob(z), u)
    step = 1e-6
    for i in range(2):
        up, down = (made(u.detach() + sign * step * torch.eye(2)[i])[0].log_prob(z) for sign in (1, -1))
        assert float(found[i]) == pytest.approx(float(up - down) / (2 * step), rel=1e-5)
    with torch.no_grad():
        z = q.rsample()
        assert torch.equal(q.log_prob(z), q.base.log_prob(q._origin) - q._log_det)


def test_score_function_gradient_has_mean_zero() -> None:
    u = torch.tensor([1.5, -0.4], dtype=torch.float64).expand(4000, 2).clone().requires_grad_()
    q, _ = made(u)
    q = q.expand([4000])
    (score,) = torch.autograd.grad(q.log_prob(q.sample()).sum(), u)
    assert (score.mean(0).abs() < 4 * score.std(0) / 4000**0.5).all()


def test_torchs_own_transforms_may_be_among_them() -> None:
    base = dist.Normal(torch.zeros(3).double(), 1.0)
    parts = [AffineTransform(0.5, 2.0), ExpTransform()]
    torchs = TransformedDistribution(base, parts)
    ours = Pushforward(base, parts)
    x = torchs.sample((6,))
    torch.testing.assert_close(ours.log_prob(x), torchs.log_prob(x))
    torch.manual_seed(0)
    a = ours.sample((2,))
    torch.manual_seed(0)
    torch.testing.assert_close(a, torchs.sample((2,)))


def test_many_runs_at_once() -> None:
    q, _ = made()

    def one() -> tuple[Tensor, Tensor]:
        fresh = Pushforward(q.base, q.transforms)
        z = fresh.rsample()
        return z, fresh.log_prob(z)

    z, log_prob = batched_runs(one, 6)
    torch.testing.assert_close(log_prob, q.log_prob(z))


# -- reflected Gaussians ----------------------------------------------------------------------------------------------


def reflected(batch: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64) -> ReflectedNormal:
    torch.manual_seed(1)
    loc, scale = torch.randn(*batch, 4, dtype=dtype), torch.rand(*batch, 4, dtype=dtype) + 0.3
    return ReflectedNormal(loc, scale, torch.randn(*batch, 2, 4, dtype=dtype))


def twin(p: ReflectedNormal) -> torch.distributions.MultivariateNormal:
    return torch.distributions.MultivariateNormal(p.mean, p.covariance_matrix)


def test_a_reflected_gaussian_is_the_gaussian_with_its_moments() -> None:
    p = reflected()
    z = p.rsample((200,))
    torch.testing.assert_close(p.log_prob(z), twin(p).log_prob(z), atol=1e-9, rtol=0)
    torch.testing.assert_close(p.log_prob(z.clone()), twin(p).log_prob(z), atol=1e-9, rtol=0)
    torch.testing.assert_close(p.variance, p.covariance_matrix.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(p.entropy(), twin(p).entropy())
    turned = Householder(p.rotation.vectors).matrix() @ torch.diag_embed(p.base.base_dist.scale.square())
    torch.testing.assert_close(turned @ Householder(p.rotation.vectors).matrix().mT, p.covariance_matrix)


def test_draws_have_the_moments() -> None:
    p, n = reflected(()), 40_000
    z = p.sample((n,))
    error = p.variance.sqrt() / n**0.5
    assert ((z.mean(0) - p.mean).abs() < 4.5 * error).all()
    spread = (p.variance[:, None] * p.variance + p.covariance_matrix.square()).sqrt() / n**0.5  # of a sample covariance
    assert ((torch.cov(z.T) - p.covariance_matrix).abs() < 4.5 * spread).all()


@pytest.mark.parametrize("kind", ["standard", "any"])
def test_divergences_from_factorised_gaussians(kind: str) -> None:
    p = reflected()
    loc = torch.zeros(4).double() if kind == "standard" else torch.randn(4).double()
    scale = torch.ones(4).double() if kind == "standard" else torch.rand(4).double() + 0.5
    q = dist.Normal(loc, scale).to_event(1)
    full = torch.distributions.MultivariateNormal(loc, torch.diag(scale**2))
    exact = kl_divergence(twin(p), full)
    torch.testing.assert_close(kl_divergence(p, q), exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(kl_divergence(p, q.expand([3])), exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(kl_divergence(dist.MultivariateNormal(p.mean, p.covariance_matrix), q), exact)
    if kind == "standard":  # then the rotation changes nothing
        torch.testing.assert_close(exact, kl_divergence(p.base, q), atol=1e-9, rtol=0)
    else:
        assert (exact - kl_divergence(p.base, q)).abs().min() > 1e-3


def test_no_closed_divergence_is_claimed_where_there_is_none() -> None:
    for other in (dist.Laplace(torch.zeros(4).double(), 1.0).to_event(1),):
        for p in (reflected(), twin(reflected())):
            with pytest.raises(NotImplementedError):
                kl_divergence(p, other)


def test_expand_and_number_type() -> None:
    p = reflected((), torch.float32).expand([5, 2])
    z = p.rsample((3,))
    assert z.shape == (3, 5, 2, 4) and z.dtype == torch.float32
    assert p.log_prob(z).shape == (3, 5, 2)
    assert p.mean.shape[-1] == 4
    assert kl_divergence(p, dist.Normal(torch.zeros(4), 1.0).to_event(1)).shape == (5, 2)
