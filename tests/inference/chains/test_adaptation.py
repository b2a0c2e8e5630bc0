"""Warm-up: dual averaging reaches its target, the Fisher metric is exact for Gaussians, windows, stranded chains."""

import math

import pytest
import torch
from torch import Tensor

from oracles.densities import Handmade, gaussian
from ppl_dgm.inference.chains.adaptation import (
    DualAveraging,
    descend,
    fisher_metric,
    metric_form,
    stranded,
    windows,
)
from ppl_dgm.inference.chains.hamiltonian import Metric, Point, reasonable_steps
from ppl_dgm.inference.chains.low_rank import geometric_mean_root
from ppl_dgm.inference.chains.sampling import HamiltonianSampler
from ppl_dgm.inference.chees import ChEES
from ppl_dgm.inference.hmc import HMC
from ppl_dgm.inference.nuts import NUTS


def covariance(d: int, seed: int = 0) -> Tensor:
    """Scales from 0.01 to 100, strongly correlated."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(d, d, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-2, 2, d).double()
    c = mixed @ mixed.T / d + 0.1 * torch.eye(d)
    return scales[:, None] * c * scales


def estimate(metric: Metric) -> Tensor:
    return metric.scale @ metric.scale.T if metric.dense else metric.scale.square().diag()


# -- step size -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("first", [1e-3, 1.0, 50.0])
def test_dual_averaging_solves_for_the_target(target: float, first: float) -> None:
    averaging = DualAveraging(first, target)
    for _ in range(400):
        averaging.update(math.exp(-averaging.step))  # accepted with exp(-step)
    assert abs(math.exp(-averaging.average) - target) < 0.02
    assert averaging.count == 400


def test_dual_averaging_begins_anew() -> None:
    averaging = DualAveraging(1.0, 0.8)
    averaging.update(0.1)
    averaging.restart(0.3)
    assert averaging.average == 0.3 and averaging.count == 0 and averaging.mu == math.log(0.6)


@pytest.mark.parametrize("sampler", [HMC, NUTS, ChEES])
@pytest.mark.parametrize("target", [0.7, 0.9])
def test_samplers_accept_as_often_as_asked(sampler: type[HamiltonianSampler], target: float) -> None:
    density = gaussian(covariance(30))
    run = sampler(chains=24, warmup=120, draws=40, target_accept=target).sample(density)
    mean = torch.stack([row["acceptance_rate"] for row in run.rows]).mean()
    assert abs(float(mean) - target) < 0.06


def test_the_update_is_one_for_all_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    original = DualAveraging.update
    monkeypatch.setattr(DualAveraging, "update", lambda self, a: seen.append(a) or original(self, a))
    HMC(chains=32, warmup=30, draws=1).sample(gaussian(covariance(3)))
    assert len(seen) == 30 and all(0 <= a <= 1 for a in seen)


def test_reasonable_steps_are_each_chains_own() -> None:
    density = Handmade(lambda z: -0.5 * (z[:, 0] * z[:, 1].exp()).square() + 0 * z[:, 1], 2)
    z = torch.tensor([[0.1, 0.0], [0.0001, 6.9]]).double()  # curvature 1 and about 10^6
    point = Point.at(density, z)
    steps = reasonable_steps(density, Metric.identity(density), point, torch.full((2,), 0.1).double())
    assert float(steps[0]) > 0.2 and float(steps[1]) < 0.01


def test_a_fixed_step_size_stays() -> None:
    run = NUTS(chains=2, warmup=30, draws=3, step_size=0.25).sample(gaussian(torch.eye(3).double()))
    assert {row["step_size"] for row in run.rows} == {0.25}


# -- metric --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 5, 30])
def test_the_dense_metric_is_exact_for_a_gaussian_from_points_anywhere(d: int) -> None:
    truth = covariance(d)
    density = gaussian(truth, mean=3.0)
    z = torch.rand(40 * d, d, dtype=torch.float64) * 2  # not draws from it
    z = z * truth.diagonal().sqrt()
    found = estimate(fisher_metric(z, density.gradient(z), dense=True))
    ratios = torch.linalg.eigvals(torch.linalg.solve(truth, found)).real
    assert float((ratios - 1).abs().max()) < 0.15  # what the shrinkage leaves


def test_the_diagonal_metric_is_exact_for_independent_scales() -> None:
    scales = torch.logspace(-3, 3, 7).double()
    density = gaussian(scales.square().diag())
    z = torch.rand(5, 7, dtype=torch.float64)
    torch.testing.assert_close(fisher_metric(z, density.gradient(z), dense=False).scale, scales)


def test_few_points_give_a_diagonal_metric_and_none_a_unit_one() -> None:
    density = gaussian(covariance(10))
    z = density.initial(6)
    assert not fisher_metric(z, density.gradient(z), dense=True).dense
    assert torch.equal(fisher_metric(z[:1], z[:1], dense=True).scale, torch.ones(10).double())


def test_points_that_are_not_finite_and_flat_directions_are_left_out() -> None:
    density = gaussian(torch.eye(3).double())
    z = density.initial(200)
    gradient = density.gradient(z)
    z[3, 1], gradient[7] = math.nan, math.inf
    gradient[:, 2] = 0.0
    metric = fisher_metric(z, gradient, dense=True)
    assert bool(metric.scale.isfinite().all())


def test_the_geometric_mean_solves_its_equation() -> None:
    a, b = covariance(6, 1), covariance(6, 2)
    a, b = (
        a / a.diagonal().rsqrt().reciprocal().outer(a.diagonal().sqrt()),
        b / b.diagonal().sqrt().outer(b.diagonal().sqrt()),
    )
    root = geometric_mean_root(a, b)
    mean = root @ root
    torch.testing.assert_close(mean @ b @ mean, a, rtol=1e-7, atol=1e-9)


def test_a_metric_maps_there_and_back() -> None:
    for scale in (torch.rand(4).double() + 0.1, torch.randn(4, 4).double() + 3 * torch.eye(4)):
        metric, r = Metric(scale), torch.randn(5, 4).double()
        torch.testing.assert_close(metric.whiten(metric.push(r)), r)
        g = torch.randn(5, 4).double()
        torch.testing.assert_close((metric.push(r) * g).sum(1), (r * metric.pull(g)).sum(1))  # transposes


def test_auto_is_dense_for_few_coordinates_and_of_low_rank_for_many() -> None:
    assert metric_form("auto", 512) == {"dense": True, "low_rank": True}
    assert metric_form("auto", 513) == metric_form("low-rank", 2) == {"dense": False, "low_rank": True}
    assert metric_form("dense", 5000) == {"dense": True, "low_rank": False}
    assert metric_form("diagonal", 2) == {"dense": False, "low_rank": False}


def test_a_dense_metric_waits_for_points_only_where_a_low_rank_is_at_hand() -> None:
    density = gaussian(covariance(10))
    z = torch.rand(80, 10, dtype=torch.float64)
    for n, forms in ((40, (False, True)), (60, (True, True))):
        gradient = density.gradient(z[:n])
        found = [fisher_metric(z[:n], gradient, dense=True, low_rank=low).dense for low in (True, False)]
        assert tuple(found) == forms


# -- windows and chains --------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 5, 10, 20, 50, 100, 300, 500, 1000, 5000])
def test_windows_grow_and_leave_time_for_the_step_size(warmup: int) -> None:
    ends = windows(warmup)
    assert ends == sorted(set(ends)) and all(0 < end < warmup for end in ends)
    if warmup >= 100:
        lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
        assert lengths == sorted(lengths) and warmup / 7 < warmup - ends[-1] < warmup / 3


def test_only_chains_far_below_are_stranded() -> None:
    value = torch.tensor([-100.0, -110.0, -139.0, -141.0, math.nan, -math.inf])
    assert stranded(value, 2).tolist() == [False, False, False, True, True, True]


def test_chains_in_a_mode_of_no_mass_are_moved_and_the_posterior_says_so() -> None:
    """A second mode 500 nats below; two modes of equal mass are left alone."""

    def deep(gap: float) -> Handmade:
        return Handmade(
            lambda z: torch.logsumexp(
                torch.stack([-(z + 20).square().sum(1) / 2 - gap, -(z - 20).square().sum(1) / 2]), 0
            ),
            1,
        )

    start = torch.tensor([[-20.0], [20.0], [-20.0], [20.0]]).double()
    run = NUTS(warmup=60, draws=5).sample(deep(500.0), start)
    assert bool((run.point.z > 0).all()) and run.warmup.relocated >= 2
    run = NUTS(warmup=60, draws=5).sample(deep(2.0), start)
    assert (run.point.z[:, 0] > 0).tolist() == [False, True, False, True] and run.warmup.relocated == 0


def test_the_descent_reaches_the_mass_from_points_of_any_curvature() -> None:
    """log sigma and mu of 400 observations with sigma 0.01: at the start, the curvature spans nine orders."""

    def normal(z: Tensor) -> Tensor:
        return -400 * z[:, 1] - 0.5 * (400 * 1e-4 + 400 * (z[:, 0] - 1) ** 2) * (-2 * z[:, 1]).exp()

    density = Handmade(normal, 2)
    point = Point.at(density, density.initial(32))
    before = float(point.value.min())
    point, seen = descend(density, point, 20)
    assert before < -1e4 and float(point.value.min()) > -2000 and len(seen) == 10
