"""Distances against closed forms of Gaussians, and what independent draws must give on average."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.comparing.distances import (
    b_squared,
    maximum_mean_discrepancy,
    median_distance,
    sliced_wasserstein,
    standardised_error,
    thinned,
    wasserstein,
)


def normal(n: int, d: int, seed: int, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_b_squared_of_independent_draws_is_one_over_their_number() -> None:
    """chi^2_1 / N: mean 1 / N, variance 2 / N^2."""
    count, trials = 50, 4000
    x = normal(trials, count, 0, mean=3.0, scale=2.0)
    b2 = b_squared(x.mean(1), torch.tensor(3.0), torch.tensor(4.0))
    assert abs(float(b2.mean()) * count - 1) < 4 * math.sqrt(2 / trials)
    squares = b_squared(x.square().mean(1), torch.tensor(13.0), torch.tensor(2 * 16 + 4 * 9 * 4.0))
    assert abs(float(squares.mean()) * count - 1) < 0.15  # heavier tails than chi^2


def test_b_squared_where_nothing_varies() -> None:
    found = b_squared(torch.tensor([1.0, 2.0]), torch.tensor(1.0), torch.tensor(0.0))
    assert found.tolist() == [0.0, math.inf]


def test_standardised_errors_are_standard_normal_when_both_are_unbiased() -> None:
    trials, se, reference_se = 20_000, 0.3, 0.4
    one, other = normal(trials, 1, 0, scale=se)[:, 0], normal(trials, 1, 1, scale=reference_se)[:, 0]
    z = standardised_error(one, torch.tensor(se), other, torch.tensor(reference_se))
    assert abs(float(z.mean())) < 4 / math.sqrt(trials) and abs(float(z.var()) - 1) < 4 * math.sqrt(2 / trials)
    zero = torch.tensor(0.0)
    assert standardised_error(torch.tensor([1.0, 2.0]), zero, torch.tensor(1.0), zero).tolist() == [0.0, math.inf]


@pytest.mark.parametrize("sizes", [(40, 40), (30, 70), (7, 1000)])
def test_wasserstein_on_the_line_is_scipys(sizes: tuple[int, int]) -> None:
    x, y = normal(sizes[0], 3, 0).mT, normal(sizes[1], 3, 1, mean=0.5, scale=2.0).mT
    expected = [wasserstein_distance(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert torch.allclose(wasserstein(x, y), torch.tensor(expected))


def test_wasserstein_of_order_two_between_normals() -> None:
    """W_2^2 = (m - m')^2 + (s - s')^2, at the quantiles of the distributions themselves."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    x, y = torch.special.ndtri(u), 1.5 + 3 * torch.special.ndtri(u[::2])
    assert float(wasserstein(x, y, 2.0)) == pytest.approx(math.hypot(1.5, 2.0), rel=2e-3)


@pytest.mark.parametrize("d", [1, 2, 10])
def test_sliced_wasserstein_between_shifted_normals(d: int) -> None:
    """A shift m: W_p(theta) = |theta . m|, so that SW_2 = |m| / sqrt(d) and SW_1 = |m| E|theta_1|."""
    x, shift = normal(500, d, 0), torch.full((d,), 2.0, dtype=torch.float64)
    length = float(shift.norm())
    first = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    found = sliced_wasserstein(x, x + shift, 2.0, projections=800)
    assert found == pytest.approx(length / math.sqrt(d), rel=0.1)
    assert sliced_wasserstein(x, x + shift, 1.0, projections=800) == pytest.approx(length * first, rel=0.1)


def test_sliced_wasserstein_repeats_and_leaves_the_random_state() -> None:
    x, y = normal(100, 4, 0), normal(150, 4, 1)
    before = torch.random.get_rng_state()
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x, y)
    assert torch.equal(before, torch.random.get_rng_state())


def gaussian_mmd(mean: torch.Tensor, scale: float, width: float) -> float:
    """Between N(0, I) and N(mean, scale^2 I), by E k = |I + S / w^2|^-1/2 exp(-mean' (S + w^2 I)^-1 mean / 2)."""
    d = len(mean)

    def kernel(shift: float, total: float) -> float:
        return (1 + total / width**2) ** (-d / 2) * math.exp(-shift / (2 * (total + width**2)))

    cross = kernel(float(mean.square().sum()), 1 + scale**2)
    return math.sqrt(kernel(0.0, 2.0) + kernel(0.0, 2 * scale**2) - 2 * cross)


@pytest.mark.parametrize("shift, scale", [(0.5, 1.0), (0.0, 2.0), (1.0, 0.5)])
def test_maximum_mean_discrepancy_between_normals(shift: float, scale: float) -> None:
    d, width = 3, 1.7
    mean = torch.full((d,), shift, dtype=torch.float64)
    found = maximum_mean_discrepancy(normal(1500, d, 0), mean + scale * normal(1200, d, 1), width)
    assert found == pytest.approx(gaussian_mmd(mean, scale, width), abs=0.04)  # four standard deviations, 0.009 each


def test_maximum_mean_discrepancy_of_the_same_law_is_noise_about_zero() -> None:
    assert maximum_mean_discrepancy(normal(1500, 4, 0), normal(1500, 4, 1)) < 0.03
    heavy = torch.distributions.Cauchy(torch.zeros(2), 1.0)
    torch.manual_seed(0)
    x, y = heavy.sample((1000,)), heavy.sample((1000,))
    assert maximum_mean_discrepancy(x, y) < 0.1 < maximum_mean_discrepancy(x + 2.0, y)


def test_median_distance_of_normals() -> None:
    """|x - y|^2 / 2 is chi^2 with d = 2 degrees: its median is 2 log 2."""
    assert median_distance(normal(2000, 2, 0)) == pytest.approx(math.sqrt(4 * math.log(2)), rel=0.02)


def test_thinned_keeps_the_ends() -> None:
    assert thinned(torch.arange(10), 4).tolist() == [0, 3, 6, 9] and len(thinned(torch.arange(3), 4)) == 3


def test_samples_that_do_not_match_are_refused() -> None:
    with pytest.raises(ProgramError, match=r"\(5, 2\) and \(5, 3\)"):
        sliced_wasserstein(torch.zeros(5, 2), torch.zeros(5, 3))
    with pytest.raises(ProgramError, match="width of the kernel must be positive"):
        maximum_mean_discrepancy(torch.zeros(5, 2), torch.zeros(5, 2))
    with pytest.raises(ProgramError, match="two draws"):
        maximum_mean_discrepancy(torch.zeros(1, 2), torch.zeros(5, 2))
