"""Pareto smoothing: ArviZ's numbers, many sets at once, streams, and the cases without a tail."""

import math

import pytest
import torch
from torch import Tensor

from ppl_dgm.inference.diagnostics.psis import LargestWeights, pareto_shape, psis, reliable_k


def weights(draws: int, *batch: int) -> Tensor:
    """Log-normal weights whose spread grows over the last dimension of the batch."""
    spread = torch.linspace(0.1, 6, batch[-1], dtype=torch.float64) if batch else torch.tensor(1.5).double()
    return spread * torch.randn(draws, *batch, dtype=torch.float64) - 900  # exp would underflow


@pytest.mark.parametrize("relative_efficiency", [1.0, 0.3])
@pytest.mark.parametrize("draws", [26, 100, 1000, 4001])
def test_arviz_has_the_same_weights_and_shapes(draws: int, relative_efficiency: float) -> None:
    arviz = pytest.importorskip("arviz", minversion="0.20")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has psislw elsewhere")
    log_weights = weights(draws, 6)
    smoothed, k = psis(log_weights, relative_efficiency)
    normalised, expected = arviz.psislw(log_weights.T.numpy().copy(), reff=relative_efficiency)
    torch.testing.assert_close((smoothed - smoothed.logsumexp(0)).T, torch.as_tensor(normalised), atol=1e-6, rtol=0)
    torch.testing.assert_close(k, torch.as_tensor(expected), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pareto_shape(log_weights, relative_efficiency), k)


def test_equal_weights_at_the_cutoff_are_no_part_of_the_tail() -> None:
    arviz = pytest.importorskip("arviz", minversion="0.20")
    if not hasattr(arviz, "psislw"):
        pytest.skip("ArviZ 1.x has psislw elsewhere")
    log_weights = (3 * torch.randn(1000, 4, dtype=torch.float64)).round()
    smoothed, k = psis(log_weights)
    normalised, expected = arviz.psislw(log_weights.T.numpy().copy())
    torch.testing.assert_close(k, torch.as_tensor(expected), atol=1e-6, rtol=1e-6)
    ours = (smoothed - smoothed.logsumexp(0)).sort(0).values  # which of equal weights is smoothed to what is open
    torch.testing.assert_close(ours.T, torch.as_tensor(normalised).sort(1).values, atol=1e-6, rtol=0)


def test_every_set_is_smoothed_alone_and_keeps_its_place_scale_and_type() -> None:
    log_weights = weights(500, 2, 3)
    smoothed, k = psis(log_weights)
    assert smoothed.shape == (500, 2, 3) and k.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            alone, shape = psis(log_weights[:, i, j])
            torch.testing.assert_close(smoothed[:, i, j], alone)
            torch.testing.assert_close(k[i, j], shape)
    body = log_weights[:, 0, 0].argsort()[:400]
    assert torch.equal(smoothed[body, 0, 0], log_weights[body, 0, 0])
    assert bool((smoothed <= log_weights.max(0).values + 1e-12).all())
    assert psis(log_weights.float())[0].dtype == torch.float32


def test_parts_of_any_size_have_the_shape_of_the_whole() -> None:
    log_weights = weights(1000, 5)
    for size in (1, 7, 300, 1000):
        largest = LargestWeights(1000)
        for part in log_weights.split(size):
            largest.add(part)
        assert torch.equal(largest.shape(), pareto_shape(log_weights))
    halves = []
    for columns in log_weights.split(2, 1):
        halves.append(LargestWeights(1000))
        halves[-1].add(columns)
    assert torch.equal(LargestWeights.beside(halves).shape(), pareto_shape(log_weights))


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_shape_of_pareto_weights_is_found(k: float) -> None:
    log_weights = -k * torch.rand(20_000, 8, dtype=torch.float64).log()  # exactly Pareto, with shape k
    found = pareto_shape(log_weights)
    assert float((found - k).abs().max()) < 0.25 and float(found.mean()) == pytest.approx(k, abs=0.06)


def test_smoothing_makes_averages_steadier() -> None:
    """Pareto weights of shape 0.6, whose variance is infinite, have the mean 1 / (1 - 0.6)."""
    log_weights = -0.6 * torch.rand(1000, 1000, dtype=torch.float64).log()
    raw = log_weights.exp().mean(0) - 2.5
    smooth = psis(log_weights)[0].exp().mean(0) - 2.5
    assert float(smooth.square().mean()) < 0.8 * float(raw.square().mean())


@pytest.mark.parametrize(
    ("log_weights", "k"),
    [
        (torch.randn(20), math.inf),
        (torch.zeros(1000), -math.inf),
        (1e-5 * torch.rand(1000), -math.inf),
        (torch.full((1000,), -math.inf), math.inf),
        (torch.cat([torch.zeros(999), torch.ones(1)]), math.inf),
        (torch.cat([torch.full((999,), -math.inf), torch.zeros(1)]), math.inf),
    ],
    ids=["few draws", "equal", "equal but for rounding", "no weight at all", "one above the rest", "one alone"],
)
def test_weights_without_a_tail_are_left_as_they_are(log_weights: Tensor, k: float) -> None:
    smoothed, found = psis(log_weights)
    assert torch.equal(smoothed, log_weights)
    assert float(found) == k and float(pareto_shape(log_weights)) == k


def test_few_draws_must_have_a_lighter_tail() -> None:
    assert reliable_k(10_000) == 0.7 and reliable_k(100) == pytest.approx(0.5) and reliable_k(5) == 0.0


def test_on_each_device(device: torch.device) -> None:
    smoothed, k = psis(weights(300, 3).to(device))
    assert smoothed.device.type == k.device.type == device.type
