"""Distributions on the sphere: divergences, draws, and gradients through draws, against closed forms and quadrature."""

import copy
import math
from itertools import pairwise

import numpy as np
import pyro
import pytest
import torch
from scipy import integrate, stats
from scipy.special import ive
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import UniformOnSphere, VonMisesFisher, log_bessel
from ppl_dgm.distributions.von_mises_fisher import _angle_slope
from ppl_dgm.graphs import record


def made(size: int, kappa: float, direction: Tensor | None = None) -> VonMisesFisher:
    direction = torch.eye(size, dtype=torch.float64)[0] if direction is None else direction
    return VonMisesFisher(direction, torch.tensor(kappa, dtype=torch.float64))


def uniform(size: int) -> UniformOnSphere:
    return UniformOnSphere(torch.zeros(size, dtype=torch.float64))


def angular(size: int, kappa: float):
    """The density of the angle to the direction, by adaptive quadrature."""

    def free(t: float) -> float:
        return math.sin(t) ** (size - 2) * math.exp(kappa * (math.cos(t) - 1))

    return free, integrate.quad(free, 0, math.pi, epsabs=0, epsrel=1e-11, points=[math.acos(1 - min(1, 2 / kappa))])[0]


def book(m: int, kappa: float) -> float:
    """The divergence as eq. (5.68) prints it: its first term lacks the ratio of Bessel functions."""
    return kappa + float(made(m, kappa).log_normaliser) + uniform(m).log_area


@pytest.mark.parametrize("m, kappa, value", [(3, 5.0, 1.30308), (5, 20.0, 3.68992), (10, 3.0, 0.40565)])
def test_the_divergence_from_the_uniform_distribution(m: int, kappa: float, value: float) -> None:
    found = float(kl_divergence(made(m, kappa), uniform(m)))
    assert found == pytest.approx(value, abs=1e-5)
    free, total = angular(m, kappa)
    flat = integrate.quad(lambda t: math.sin(t) ** (m - 2), 0, math.pi)[0]

    def integrand(t: float) -> float:
        p = free(t) / total
        return p * (math.log(p) - math.log(math.sin(t) ** (m - 2) / flat)) if p > 0 else 0.0

    assert found == pytest.approx(integrate.quad(integrand, 1e-9, math.pi - 1e-9)[0], abs=1e-6)
    assert book(m, kappa) - found > 0.9  # 2.3026, 5.6373 and 2.5656 instead


def test_the_divergence_is_of_the_concentration_alone() -> None:
    kappa = torch.tensor([1e-4, 1e-2, 1.0, 5.0, 50.0, 1e4, 1e7], dtype=torch.float64)
    divergences = []
    for seed in range(2):
        torch.manual_seed(seed)
        direction = torch.nn.functional.normalize(torch.randn(7, 6, dtype=torch.float64), dim=-1)
        divergences.append(kl_divergence(VonMisesFisher(direction, kappa), uniform(6)))
    torch.testing.assert_close(*divergences)
    assert (divergences[0] >= -1e-14).all() and (divergences[0].diff() > 0).all() and divergences[0].isfinite().all()
    assert float(divergences[0][1]) == pytest.approx(1e-4 / 12, rel=1e-3)  # kappa^2 / (2 m) for small kappa
    single = VonMisesFisher(torch.eye(6)[0], torch.tensor(1e-2))
    assert float(kl_divergence(single, UniformOnSphere(torch.zeros(6)))) == pytest.approx(1e-4 / 12, rel=1e-3)


def test_large_concentrations_do_not_overflow() -> None:
    """Where I_v(kappa) itself overflows, from 714 on; against the exponentially scaled function."""
    for m, kappa in ((3, 2000.0), (10, 1e5)):
        ratio = ive(m / 2, kappa) / ive(m / 2 - 1, kappa)
        log_c = (m / 2 - 1) * math.log(kappa) - m / 2 * math.log(2 * math.pi) - math.log(ive(m / 2 - 1, kappa)) - kappa
        expected = kappa * ratio + log_c + uniform(m).log_area
        assert float(kl_divergence(made(m, kappa), uniform(m))) == pytest.approx(expected, abs=1e-6)
        assert float(made(m, kappa).entropy()) == pytest.approx(-kappa * ratio - log_c, abs=1e-6)


def test_the_uniform_distribution() -> None:
    assert float(uniform(3).log_prob(torch.tensor([0.0, 0, 1]).double())) == pytest.approx(-math.log(4 * math.pi))
    assert float(uniform(2).entropy()) == pytest.approx(math.log(2 * math.pi))
    p = UniformOnSphere(torch.zeros(4)).expand([3])
    x = p.sample((20_000,))
    assert x.shape == (20_000, 3, 4) and p.log_prob(x).shape == (20_000, 3) and x.dtype == torch.float32
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(20_000, 3))
    assert x.mean(0).abs().max() < 4.5 * math.sqrt(0.25 / 20_000)
    assert stats.kstest(((1 + x[:, 0, 0]) / 2).double(), stats.beta(1.5, 1.5).cdf).pvalue > 1e-4
    assert VonMisesFisher(torch.eye(4)[0], torch.tensor(1e-6)).log_prob(x[0, 0]) == pytest.approx(
        float(p.log_prob(x[:1])[0, 0]), abs=1e-5
    )


@pytest.mark.parametrize("size, kappa", [(2, 0.3), (2, 40.0), (3, 5.0), (8, 2.0), (8, 300.0), (64, 30.0)])
def test_angles_follow_their_density(size: int, kappa: float) -> None:
    angle = made(size, kappa).sample((4000,))[:, 0].clamp(-1, 1).arccos()
    free, total = angular(size, kappa)
    grid = torch.linspace(0, float(angle.max()) + 1e-3, 400, dtype=torch.float64).tolist()
    mass = [integrate.quad(free, a, b)[0] / total for a, b in pairwise(grid)]
    cdf = torch.tensor([0.0, *mass], dtype=torch.float64).cumsum(0)
    assert stats.kstest(angle.numpy(), lambda t: np.interp(t, grid, cdf.numpy())).pvalue > 1e-4


def test_proposals_are_accepted_two_times_in_three() -> None:
    """Wood's bound, on which the number of proposals rests."""
    for size in (2, 3, 5, 20, 200):
        for kappa in (0.01, 0.5, 2.0, 10.0, 1e3):
            rest = size - 1
            b = rest / (2 * kappa + math.sqrt(4 * kappa**2 + rest**2))
            x0 = (1 - b) / (1 + b)
            top = kappa * x0 + rest * math.log(4 * b / (1 + b) ** 2)
            z = torch.distributions.Beta(rest / 2, rest / 2).sample((20_000,)).double()
            w = (1 - z - b * z) / (1 - z + b * z)
            accepted = (kappa * w + rest * torch.log1p(-x0 * w) - top).exp()
            assert accepted.max() < 1 + 1e-6
            assert float(accepted.mean()) > 0.645


@pytest.mark.parametrize("size, kappa", [(2, 0.5), (3, 5.0), (5, 0.01), (8, 30.0), (128, 20.0)])
def test_angles_keep_their_quantile_as_the_concentration_changes(size: int, kappa: float) -> None:
    """dt / dkappa against the difference of quantiles of two concentrations."""
    step = 1e-3 * max(kappa, 0.1)
    t = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)

    def distribution(k: float) -> Tensor:
        density = ((size - 2) * t[1:-1].sin().log() + k * (t[1:-1].cos() - 1)).exp()
        ends = [torch.full((1,), math.exp(k * (c - 1)) * (size == 2), dtype=torch.float64) for c in (1, -1)]
        density = torch.cat([ends[0], density, ends[1]])
        mass = torch.cat([torch.zeros(1).double(), (0.5 * (density[1:] + density[:-1])).cumsum(0)])
        return mass / mass[-1]

    def quantile(level: Tensor, k: float) -> Tensor:
        f = distribution(k)
        i = torch.searchsorted(f, level).clamp(1, len(f) - 1)
        return t[i - 1] + (t[i] - t[i - 1]) * (level - f[i - 1]) / (f[i] - f[i - 1])

    level = torch.tensor([1e-4, 0.01, 0.2, 0.5, 0.8, 0.99, 0.9999], dtype=torch.float64)
    expected = (quantile(level, kappa + step) - quantile(level, kappa - step)) / (2 * step)
    at = quantile(level, kappa)
    found = _angle_slope(at, torch.full_like(at, kappa), size, made(size, kappa).mean[0])
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("size, kappa", [(2, 0.5), (3, 5.0), (3, 2000.0), (16, 8.0)])
def test_gradients_through_draws_are_those_of_closed_forms(size: int, kappa: float) -> None:
    """d E[mu . z] / dkappa is the derivative of the Bessel ratio; E[exp(a . z)] = C(kappa) / C(|kappa mu + a|) gives the rest."""
    n = 20_000
    torch.manual_seed(4)
    start = torch.randn(size, dtype=torch.float64)
    a = 0.7 * torch.randn(size, dtype=torch.float64)

    def closed(raw: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        mu = torch.nn.functional.normalize(raw, dim=-1)
        order = size / 2 - 1
        length = (k * mu + a).norm()
        front = lambda x: log_bessel(order, x)[0] - order * x.log()  # noqa: E731
        return log_bessel(order, k)[1], (front(length) - front(k)).exp()

    raw, k = start.clone().requires_grad_(), torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    ratio, moment = closed(raw, k)
    (along,) = torch.autograd.grad(ratio, k)
    by_mu, by_kappa = torch.autograd.grad(moment, (raw, k))

    many, ks = start.expand(n, -1).clone().requires_grad_(), torch.full((n,), kappa).double().requires_grad_()
    mu = torch.nn.functional.normalize(many, dim=-1)
    z = VonMisesFisher(mu, ks).rsample()
    (first,) = torch.autograd.grad((mu * z).sum(), ks, retain_graph=True)
    second_mu, second_kappa = torch.autograd.grad((z @ a).exp().sum(), (many, ks))
    for draws, exact in ((first, along), (second_kappa, by_kappa), (second_mu, by_mu)):
        error = draws.std(0) / n**0.5 + 1e-12
        assert ((draws.mean(0) - exact).abs() < 4.5 * error).all(), (draws.mean(0), exact, error)


def test_draws_without_the_implicit_gradient_would_be_wrong() -> None:
    """The gradient of the accepted proposal alone, with its random numbers held, is another number (m = 3, kappa = 5)."""
    n, m, value = 20_000, 3, 5.0
    kappa = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    q = made(m, value)
    angle = q._angles(torch.full((n,), value).double())
    b0 = 2 / (2 * value + math.sqrt(4 * value**2 + 4))
    odds = (angle / 2).tan().square() / b0  # z / (1 - z) of the accepted proposal
    b = 2 / (2 * kappa + (4 * kappa.square() + 4).sqrt())
    (naive,) = torch.autograd.grad(((1 - b * odds) / (1 + b * odds)).mean(), kappa)
    ratio = float(q.mean[0])
    exact = 1 - ratio**2 - 2 / value * ratio
    assert abs(float(naive) - exact) > 0.005
    implicit = (-angle.sin() * _angle_slope(angle, torch.full((n,), value).double(), m, q.mean[0])).mean()
    assert float(implicit) == pytest.approx(exact, abs=4.5 * 0.05 / n**0.5)


def test_draws_can_be_recorded_and_batched() -> None:
    raw, k = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    def step(raw: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        raw, k = raw.detach().requires_grad_(), k.detach().requires_grad_()
        q = VonMisesFisher(torch.nn.functional.normalize(raw, dim=-1), k)
        value = q.rsample()[:, 0].exp().sum() + kl_divergence(q, uniform(3)).sum()
        return (value.detach(), *torch.autograd.grad(value, (raw, k)))

    with pyro.validation_enabled(False):
        graph = record(step, raw, k)
        torch.manual_seed(5)
        replayed = graph(raw + 0.3, 2 * k)
        torch.manual_seed(5)
        for one, two in zip(replayed, step(raw + 0.3, 2 * k)):
            torch.testing.assert_close(one, two)
    x = batched_runs(lambda: made(5, 3.0).expand([2]).sample(), 3000)
    assert x.shape == (3000, 2, 5)
    assert float(x[..., 0].mean()) == pytest.approx(
        float(made(5, 3.0).mean[0]), abs=4.5 * float(x[..., 0].std()) / 6000**0.5
    )


def test_what_was_computed_without_gradients_does_not_serve_a_density_with_them() -> None:
    kappa = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    q = VonMisesFisher(torch.eye(3).double()[0], kappa)
    with torch.no_grad():
        x = q.sample()
        before = q.log_prob(x)
    after = q.log_prob(x)
    assert torch.equal(before, after)
    (gradient,) = torch.autograd.grad(after, kappa)
    assert float(gradient) == pytest.approx(float(x[0]) - (1 / math.tanh(5) - 0.2), abs=1e-12)
    assert copy.deepcopy(made(3, 5.0)).log_prob(x) == pytest.approx(float(before))


def test_number_types_and_devices(device: torch.device) -> None:
    q = VonMisesFisher(torch.eye(16, device=device)[:3], torch.tensor([1e-3, 5.0, 1e6], device=device))
    z = q.rsample((100,))
    assert z.shape == (100, 3, 16) and z.dtype == torch.float32 and z.device.type == device.type
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(100, 3, device=device))
    assert q.log_prob(z).isfinite().all()
    assert z[:, 2, 2].min() > 0.999
