"""HistogramQuantile: inverse, log-determinant against autograd, bin masses, both tails, gradients."""

import math

import pyro.distributions as dist
import pytest
import torch

from ppl_dgm.errors import ProgramError
from ppl_dgm.transforms import HistogramQuantile


def quantile(dimensions: int = 3, values: int = 5, spread: float = 2.0) -> HistogramQuantile:
    transform = HistogramQuantile(dimensions, values, gain=1.0).double()
    torch.nn.init.normal_(transform.raw, std=spread)
    return transform


def test_it_inverts_both_ways() -> None:
    transform = quantile()
    z = (2 * torch.randn(500, 3, dtype=torch.float64)).clamp(-4, 4)
    torch.testing.assert_close(transform.inv(transform(z)), z, rtol=0, atol=1e-9)
    v = 5 * torch.rand(500, 3, dtype=torch.float64)
    torch.testing.assert_close(transform(transform.inv(v)), v, rtol=0, atol=1e-9)


def test_its_log_determinant_is_autograds() -> None:
    transform = quantile()
    z = torch.randn(8, 3, dtype=torch.float64)
    jacobian = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in z])
    torch.testing.assert_close(
        transform.log_abs_det_jacobian(z, transform(z)), torch.linalg.slogdet(jacobian).logabsdet
    )


def test_a_normal_becomes_the_histogram_exactly() -> None:
    """log p(v) = sum_d log softmax(logits_d)[floor v_d] at every point, so dequantisation loses nothing."""
    transform = quantile()
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), [transform])
    x = torch.randint(5, (200, 3))
    v = x + torch.rand(200, 3, dtype=torch.float64)
    expected = torch.log_softmax(transform.logits, -1)[torch.arange(3), x].sum(-1)
    torch.testing.assert_close(flow.log_prob(v), expected)


def test_fit_sets_the_smoothed_frequencies() -> None:
    x = torch.tensor([[0, 2], [0, 1], [1, 1]])
    transform = HistogramQuantile(2, 3)
    transform.fit(x, pseudo_count=0.5)
    expected = torch.tensor([[2.5, 1.5, 0.5], [0.5, 2.5, 1.5]]) / 4.5
    torch.testing.assert_close(torch.softmax(transform.logits, -1), expected)


def test_float32_keeps_both_tails() -> None:
    """1 - F(v) would have lost the upper tail to rounding at about z = 5.2."""
    transform = HistogramQuantile(1, 2)
    z = torch.tensor([[-8.0], [-6.0], [6.0], [8.0]])
    upper, lower = transform.inv(2 - 1e-7 * torch.ones(1, 1)), transform.inv(1e-7 * torch.ones(1, 1))
    assert upper.isfinite().all() and lower.isfinite().all()
    v = transform(z)
    assert ((v >= 0) & (v <= 2)).all()
    torch.testing.assert_close(transform.inv(v[:2]), z[:2], rtol=1e-3, atol=0)


def test_gradients_are_finite_at_the_edges_of_cells() -> None:
    transform = quantile(1, 4)
    v = torch.tensor([[1e-12], [1.0], [2.0 - 1e-12], [4.0 - 1e-12]], dtype=torch.float64)
    z = transform.inv(v)
    (z.sum() + transform.log_abs_det_jacobian(z, v).sum()).backward()
    assert transform.raw.grad is not None and transform.raw.grad.isfinite().all()


@pytest.mark.parametrize("outside", [-0.5, 4.5])
def test_there_is_no_density_outside_the_range(outside: float) -> None:
    transform = quantile(1, 4)
    v = torch.tensor([[outside]], dtype=torch.float64)
    assert transform.log_abs_det_jacobian(transform.inv(v), v).tolist() == [math.inf]


@pytest.mark.parametrize(
    "options",
    [
        {"dimensions": 0, "values": 3},
        {"dimensions": 2, "values": 1},
        {"dimensions": 2, "values": 3, "gain": 0},
    ],
)
def test_impossible_sizes_are_refused(options: dict) -> None:
    with pytest.raises(ProgramError, match="at least"):
        HistogramQuantile(**options)
