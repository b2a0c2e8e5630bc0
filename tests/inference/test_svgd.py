"""SVGD: its force and its discrepancy against their definitions, moments in two dimensions, and where it fails."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.inference.svgd import SVGD, stein_discrepancy, stein_force


def median(z: Tensor) -> Tensor:
    """Median squared distance of two particles."""
    pairs = (z[:, None] - z).square().sum(2)[torch.triu_indices(len(z), len(z), 1).unbind()]
    return pairs.sort().values[(len(pairs) - 1) // 2]


def kernel_of(name: str, z: Tensor) -> Any:
    h = median(z)
    if name == "rbf":
        h = h / torch.tensor(len(z)).double().log()
        return lambda x, y: torch.exp(-(x - y).square().sum() / h)
    return lambda x, y: (1 + (x - y).square().sum() / h).rsqrt()


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_the_force_is_its_definition(name: str) -> None:
    z, gradient = torch.randn(7, 3).double(), torch.randn(7, 3).double()
    kernel = kernel_of(name, z)
    slope = torch.func.grad(kernel)
    wanted = [sum(kernel(x, y) * g + slope(x, y) for x, g in zip(z, gradient)) / 7 for y in z]
    torch.testing.assert_close(stein_force(z, gradient, name), torch.stack(wanted))


def test_the_discrepancy_is_its_definition() -> None:
    z, gradient = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    kernel = kernel_of("imq", z)
    first, second = torch.func.grad(kernel, 0), torch.func.grad(kernel, 1)
    total = torch.zeros(()).double()
    for x, s in zip(z, gradient):
        for y, t in zip(z, gradient):
            mixed = torch.func.jacfwd(first, 1)(x, y).trace()
            total = total + mixed + s @ second(x, y) + t @ first(x, y) + kernel(x, y) * (s @ t)
    found, _ = stein_discrepancy(z, gradient)
    torch.testing.assert_close(found, (total / 36).sqrt())


def test_the_discrepancy_of_independent_draws_is_foretold_and_wrong_ones_show() -> None:
    z = torch.randn(400, 2).double()
    right, foretold = stein_discrepancy(z, -z)
    assert 0.5 < float(right / foretold) < 1.5
    shifted, foretold = stein_discrepancy(z + 0.5, -(z + 0.5))
    assert float(shifted / foretold) > 3


@pytest.mark.parametrize(
    ("kernel", "optimiser", "lr"), [("rbf", "adam", 0.1), ("imq", "adam", 0.1), ("rbf", "adagrad", 0.5)]
)
def test_moments_of_a_correlated_gaussian(kernel: str, optimiser: str, lr: float) -> None:
    """A hundred particles know the means well, and the variances to the tenth by which they fall short."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 2.0]]).double()
    density = gaussian(covariance, mean=3.0)
    z, steps = SVGD(kernel=kernel, optimiser=optimiser, lr=lr, steps=400).flow(density, density.initial(100))
    assert float((z.mean(0) - 3).abs().max()) < 0.05 and steps <= 400
    ratio = z.T.cov() / covariance
    assert float(ratio.min()) > 0.85 and float(ratio.max()) < 1.0
    ksd, independent = stein_discrepancy(z, density.gradient(z))
    assert ksd < 0.5 * independent  # better than as many independent draws


def test_a_banana_is_followed() -> None:
    """z_0 ~ N(0, 1), z_1 ~ N(z_0^2 - 1, 1/4)."""
    density = Handmade(lambda z: -(z[:, 0] ** 2) / 2 - 2 * (z[:, 1] - z[:, 0] ** 2 + 1) ** 2, 2)
    z, _ = SVGD().flow(density, density.initial(100))
    assert abs(float(z[:, 0].mean())) < 0.1 and 0.7 < float(z[:, 0].var()) < 1.1
    residual = z[:, 1] - z[:, 0] ** 2 + 1
    assert abs(float(residual.mean())) < 0.1 and 0.3 < float(residual.std()) < 0.6
    assert float(torch.corrcoef(torch.stack([z[:, 0] ** 2, z[:, 1]]))[0, 1]) > 0.85


def test_collapse_in_many_dimensions_shows_in_the_discrepancy() -> None:
    density = gaussian(torch.eye(50).double())
    z, _ = SVGD(steps=200).flow(density, density.initial(100))
    ksd, independent = stein_discrepancy(z, density.gradient(z))
    assert float(z.var(0).mean()) < 0.5 and ksd > 2 * independent


def shifted_normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(y[0]), 1.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros_like(y[0]), 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def test_the_posterior_of_a_program() -> None:
    y = torch.tensor([0.5, 1.5, 1.0, 2.0]).double()
    post, again = (dgm.infer(shifted_normal, y, method=SVGD(particles=30, steps=100), seed=1) for _ in range(2))
    assert post.draws["mu"].shape == (1, 30) and post.draws["mu"].dtype == torch.float64
    assert torch.equal(post.draws["mu"], again.draws["mu"]) and bool((post.draws["scale"] > 0).all())
    assert post.stats["ksd"].shape == post.stats["ksd_independent"].shape == (1, 30)
    assert post.kind == "approximate" and post.cost.gradients >= 30 * 25 and "Stein discrepancy" in post.how


def test_one_particle_climbs_to_the_mode() -> None:
    density = gaussian(torch.eye(3).double(), mean=1.0)
    z, _ = SVGD(particles=1, steps=500, tolerance=0.0).flow(density, density.initial(1))
    torch.testing.assert_close(z, torch.ones(1, 3).double(), atol=1e-2, rtol=0)


def test_a_particle_that_leaves_the_finite_numbers_is_told() -> None:
    density = Handmade(lambda z: (z**4).sum(1) * 1e200, 2)
    with pytest.raises(NumericalError, match="left the finite numbers"):
        SVGD(lr=1e120, steps=50).flow(density, density.initial(5))


@pytest.mark.parametrize("options", [{"particles": 0}, {"kernel": "cosine"}, {"optimiser": "sgd"}, {"lr": -1.0}])
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(ProgramError, match=f"SVGD: {next(iter(options))} must be"):
        SVGD(**options)
