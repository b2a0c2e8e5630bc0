"""The low-rank metric: its algebra, what it finds in a Gaussian, what it leaves alone, what it saves, checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from oracles.densities import Handmade
from ppl_dgm.inference.chains.adaptation import fisher_metric
from ppl_dgm.inference.chains.hamiltonian import Metric, Point, drift, gain, kick, trajectory
from ppl_dgm.inference.chains.low_rank import LowRankMetric, leading_directions, low_rank_metric, restored_metric
from ppl_dgm.inference.chees import ChEES


def example(d: int = 6, k: int = 2) -> LowRankMetric:
    vectors = torch.linalg.qr(torch.randn(d, k, dtype=torch.float64)).Q
    return LowRankMetric(torch.rand(d).double() + 0.5, vectors, torch.tensor([9.0, 0.2]).double()[:k])


def full(metric: Metric) -> Tensor:
    """S as a matrix."""
    eye = torch.eye(metric.scale.shape[0], dtype=metric.scale.dtype)
    return metric.push(eye).T


class Spiked:
    """A normal distribution whose covariance is D (I + U (l - 1) U^T) D, with density and gradient in O(d k)."""

    def __init__(self, scale: Tensor, vectors: Tensor, values: Tensor) -> None:
        self.truth = LowRankMetric(scale, vectors, values)
        self.dim, self.dtype, self.device = len(scale), scale.dtype, scale.device
        self.gradients = 0

    def gradient(self, z: Tensor) -> Tensor:
        self.gradients += len(z)
        return self._slope(z)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += len(z)
        return -self.truth.whiten(z).square().sum(1) / 2, self._slope(z)

    def _slope(self, z: Tensor) -> Tensor:
        x = self.truth.whiten(z)
        inverse = x + ((x @ self.truth.vectors) * (self.truth.values.rsqrt() - 1)) @ self.truth.vectors.T
        return -inverse / self.truth.scale

    def initial(self, chains: int, seed: int | None = None, radius: float = 2.0, gradient: bool = True) -> Tensor:
        return (2 * torch.rand(chains, self.dim, dtype=self.dtype) - 1) * radius

    def draws(self, count: int) -> Tensor:
        return self.truth.push(torch.randn(count, self.dim, dtype=self.dtype))


def spiked(d: int, k: int, low: float, high: float, dtype: torch.dtype = torch.float64) -> Spiked:
    """k directions with variances from 10^low to 10^high, scales from 0.1 to 10."""
    vectors = torch.linalg.qr(torch.randn(d, k, dtype=torch.float64)).Q
    values = torch.logspace(low, high, k, dtype=torch.float64)
    scale = torch.logspace(-1, 1, d, dtype=torch.float64)
    return Spiked(scale.to(dtype), vectors.to(dtype), values.to(dtype))


def condition(metric: Metric, target: Spiked) -> float:
    """Of the target's covariance in the metric's coordinates."""
    values = torch.linalg.eigvalsh(metric.whiten(full(target.truth).T).T @ metric.whiten(full(target.truth).T))
    return float(values[-1] / values[0])


# -- algebra -------------------------------------------------------------------------------------------------


def test_every_operation_is_that_of_the_matrix() -> None:
    metric = example()
    root, x = full(metric), torch.randn(5, 6).double()
    covariance = metric.scale[:, None] * (
        torch.eye(6).double() + (metric.vectors * (metric.values - 1)) @ metric.vectors.T
    )
    torch.testing.assert_close(root @ root.T, covariance * metric.scale)
    torch.testing.assert_close(metric.pull(x), x @ root)
    torch.testing.assert_close(metric.whiten(x), torch.linalg.solve(root, x.T).T)
    r, z = torch.randn(5, 6).double(), torch.randn(5, 6).double()
    steps = torch.rand(5, 1).double()
    for step in (0.3, steps):
        torch.testing.assert_close(kick(metric, r, x, step), r + step * x @ root)
        torch.testing.assert_close(drift(metric, z, r, step), z + step * r @ root.T)


def test_it_moves_as_the_dense_metric_with_the_same_root() -> None:
    density = Handmade(lambda z: -(z**4).sum(1) / 4, 6)
    metric = example()
    dense = Metric(full(metric))
    point, r = Point.at(density, torch.randn(4, 6).double()), torch.randn(4, 6).double()
    end, r_end = trajectory(density, metric, point, r, 0.1, 9)
    other, r_other = trajectory(density, dense, point, r, 0.1, 9)
    torch.testing.assert_close(end.z, other.z)
    torch.testing.assert_close(r_end, r_other)
    torch.testing.assert_close(gain(point, r, end, r_end), gain(point, r, other, r_other))


def test_it_survives_a_checkpoint_and_another_number_type() -> None:
    metric = example()
    back = restored_metric(metric.tensors())
    x = torch.randn(3, 6).double()
    assert isinstance(back, LowRankMetric) and torch.equal(back.push(x), metric.push(x))
    assert metric.finite and metric.to(torch.float32).push(x.float()).dtype == torch.float32
    assert type(restored_metric(Metric(torch.ones(2)).tensors())) is Metric


@pytest.mark.parametrize("n, d", [(40, 300), (300, 40), (400, 300)], ids=["few rows", "few columns", "many of both"])
def test_leading_directions_are_singular_vectors(n: int, d: int) -> None:
    left, right = torch.linalg.qr(torch.randn(n, 5).double()).Q, torch.linalg.qr(torch.randn(d, 5).double()).Q
    rows = (left * torch.tensor([50.0, 40, 30, 20, 10]).double()) @ right.T + 0.01 * torch.randn(n, d).double()
    found = leading_directions(rows, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3).double())
    assert float((found.T @ right[:, :3]).square().sum()) == pytest.approx(3, abs=1e-3)


# -- what is learned -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, worst", [(600, 60), (2400, 12)])
def test_directions_of_large_and_small_variance_are_found(n: int, worst: float) -> None:
    target = spiked(400, 8, -3, 3)
    z = target.draws(n)
    gradient = target.gradient(z)
    diagonal = fisher_metric(z, gradient, dense=False)
    low = fisher_metric(z, gradient, dense=False, low_rank=True)
    assert isinstance(low, LowRankMetric) and 6 <= len(low.values) <= 100
    assert condition(low, target) < worst < 1e5 < condition(diagonal, target)


@pytest.mark.parametrize("n", [30, 300, 3000])
@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_independent_coordinates_keep_their_diagonal(n: int, tails: str) -> None:
    """Also where draws and gradients are not those of a normal distribution, and chance finds directions."""
    scale = torch.logspace(-2, 2, 200).double()
    x = (
        torch.randn(n, 200).double()
        if tails == "normal"
        else torch.distributions.StudentT(5.0).sample((n, 200)).double()
    )
    slope = -x if tails == "normal" else -6 * x / (5 + x.square())
    assert type(fisher_metric(x * scale, slope / scale, dense=False, low_rank=True)) is Metric


def test_too_few_points_teach_a_diagonal() -> None:
    z = torch.randn(10, 50).double()
    assert type(low_rank_metric(torch.ones(50).double(), z, -z)) is Metric


# -- what it saves -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_takes_a_fraction_of_the_gradients_in_a_thousand_coordinates() -> None:
    """Correlated coordinates: gradients for so many draws, and the moments of the longest direction."""
    target = spiked(1000, 10, 1, 4, torch.float32)
    taken = {}
    for metric in ("auto", "diagonal"):
        before = target.gradients
        run = ChEES(chains=32, warmup=120, draws=30, metric=metric, max_steps=64).sample(target)
        taken[metric] = target.gradients - before
        if metric == "auto":
            assert isinstance(run.warmup.metric, LowRankMetric)
            x = target.truth.whiten(torch.cat(run.draws)) @ target.truth.vectors  # [n, k], standard normal
            assert float((x.square().mean(0) - 1).abs().max()) < 0.4
    assert taken["auto"] * 4 < taken["diagonal"]


def test_a_run_with_it_is_resumed(tmp_path: Path) -> None:
    target, file = spiked(600, 4, 2, 3, torch.float32), tmp_path / "run.safetensors"
    torch.manual_seed(1)
    whole = ChEES(chains=16, warmup=60, draws=6).sample(target)
    torch.manual_seed(1)
    ChEES(chains=16, warmup=60, draws=3, checkpoint=file).sample(target)
    torch.manual_seed(2)
    resumed = ChEES(chains=16, warmup=60, draws=6, checkpoint=file).sample(target)
    assert isinstance(resumed.warmup.metric, LowRankMetric)
    assert all(torch.equal(a, b) for a, b in zip(whole.draws, resumed.draws, strict=True))
