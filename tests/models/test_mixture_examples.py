"""Two bumps on a line by the sum rule, and log densities far from all components."""

import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.models import MixtureOfGaussians


def cats() -> MixtureOfGaussians:
    """p(x) = (1 - w) N(x | 2, 0.5^2) + w N(x | 6, 1.5^2), w = 0.3, x [1]."""
    program = MixtureOfGaussians(1, 2).double()
    program.assign(
        torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([[2.0], [6.0]]), torch.tensor([[0.25], [2.25]])
    )
    return program


def normal(x: float, mean: float, deviation: float) -> float:
    return math.exp(-0.5 * ((x - mean) / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))


@pytest.mark.parametrize("x", [-1.0, 2.0, 3.4, 6.0, 9.5])
def test_the_hidden_kind_is_summed_out_and_told_by_bayes(x):
    joint = 0.7 * normal(x, 2, 0.5), 0.3 * normal(x, 6, 1.5)
    row = torch.tensor([[x]], dtype=torch.float64)
    assert float(dgm.score(cats(), row).value.detach()) == pytest.approx(math.log(sum(joint)), abs=1e-10)
    found = dgm.infer(cats(), row).exact["k"].probs[0].tolist()
    assert found == pytest.approx([part / sum(joint) for part in joint], abs=1e-10)


def test_the_density_integrates_to_one_and_has_the_moments_of_a_mixture():
    grid = torch.linspace(-6, 20, 20001, dtype=torch.float64)
    density = cats().log_prob(grid[:, None]).detach().exp()
    mean = 0.7 * 2 + 0.3 * 6
    variance = 0.7 * (0.25 + 4) + 0.3 * (2.25 + 36) - mean**2
    moments = [float(torch.trapezoid(density * f, grid)) for f in (torch.ones_like(grid), grid, (grid - mean) ** 2)]
    assert moments == pytest.approx([1, mean, variance], abs=1e-8)


def test_the_two_bumps_are_told_apart_where_the_joints_cross():
    """Between the means the log odds are a parabola that falls through zero once."""
    a = 0.5 / 0.25 - 0.5 / 2.25
    b = -2 / 0.25 + 6 / 2.25
    c = 0.5 * 4 / 0.25 - 0.5 * 36 / 2.25 - math.log(0.7 / 0.5) + math.log(0.3 / 1.5)
    border = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert 2 < border < 6
    found = dgm.infer(cats(), torch.tensor([[border], [border - 0.1], [border + 0.1]]).double()).exact["k"].probs[:, 0]
    assert float(found[0]) == pytest.approx(0.5, abs=1e-6) and float(found[1]) > 0.5 > float(found[2])


@pytest.mark.parametrize("distance", [50.0, 1e3, 1e6])
def test_far_from_all_components_the_log_density_is_that_of_the_nearest_tail(distance):
    """Every density underflows, in float32 and in float64; log-sum-exp does not, and neither does its gradient."""
    program = cats().float()
    x = torch.tensor([[distance]], requires_grad=True)
    value = program.log_prob(x)
    wide = math.log(0.3) - 0.5 * ((distance - 6) / 1.5) ** 2 - math.log(1.5 * math.sqrt(2 * math.pi))
    assert float(value.detach()) == pytest.approx(wide, rel=1e-5)
    assert float(torch.distributions.Normal(6.0, 1.5).log_prob(x.detach()).exp()) == 0.0
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert float(gradient) == pytest.approx(-(distance - 6) / 2.25, rel=1e-5)
    assert dgm.infer(program, x.detach()).exact["k"].probs[0].tolist() == pytest.approx([0.0, 1.0], abs=1e-12)
