"""FiniteMixture and Columns over components of any kind, in float64 against sums and products by hand."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import Columns, FiniteMixture, VonMisesFisher
from ppl_dgm.distributions.finite_mixture import _gaussian_products
from ppl_dgm.errors import ProgramError
from ppl_dgm.graphs import recorded


def sphere_mixture() -> FiniteMixture:
    directions = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    concentrations = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    return FiniteMixture(logits, VonMisesFisher(directions, concentrations))


def test_components_other_than_gaussians() -> None:
    p = sphere_mixture()
    z = p.sample(torch.Size([20_000]))
    assert p.support.check(z).all()
    weights = torch.softmax(p.logits, -1)
    each = p.components.log_prob(z[:5].unsqueeze(-2)).exp()
    torch.testing.assert_close(p.log_prob(z[:5]).exp(), each @ weights)
    expected = weights @ p.components.mean
    assert ((z.mean(0) - expected).abs() < 4.5 * z.std(0) / math.sqrt(20_000)).all()


def test_components_of_matrices() -> None:
    p = FiniteMixture(
        torch.zeros(2), dist.Normal(torch.tensor([-5.0, 5.0]).view(2, 1, 1), torch.ones(2, 3, 2)).to_event(2)
    )
    assert p.event_shape == (3, 2)
    z = p.sample(torch.Size([2000]))
    assert z.shape == (2000, 3, 2)
    assert ((z > 0).flatten(1).sum(1) % 6 == 0).all()  # one component for a whole matrix
    assert p.log_prob(z).shape == (2000,)


def test_a_mixture_is_validated() -> None:
    with pytest.raises(ProgramError, match="K weights"):
        FiniteMixture(torch.zeros(3), dist.Normal(torch.zeros(2, 2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="support"):
        sphere_mixture().log_prob(torch.ones(4, dtype=torch.float64))


def gaussians(scale: float, dtype: torch.dtype = torch.float32, offset: float = 0.0) -> FiniteMixture:
    """100 Gaussians of 16 dimensions, scales between `scale` and three times that."""
    loc = offset + torch.randn(100, 16, dtype=dtype)
    return FiniteMixture(
        torch.randn(100, dtype=dtype), dist.Normal(loc, scale * (1 + 2 * torch.rand(100, 16, dtype=dtype))).to_event(1)
    )


def in_double(p: FiniteMixture, z: torch.Tensor) -> torch.Tensor:
    """The density by the plain sum, in float64 with gradients, which takes no block."""
    base = p.components.base_dist
    components = dist.Normal(base.loc.double(), base.scale.double()).to_event(1)
    with torch.enable_grad():
        return FiniteMixture(p.logits.double(), components).log_prob(z.double())


@pytest.mark.parametrize(
    ("scale", "offset", "through_products"), [(0.3, 0.0, True), (0.3, 500.0, True), (1e-5, 0.0, False)]
)
def test_many_values_under_gaussians_are_scored_to_the_digits_of_the_plain_sum(
    scale: float, offset: float, through_products: bool
) -> None:
    p = gaussians(scale, offset=offset)
    with torch.no_grad():
        z = p.sample(torch.Size([60, 50]))
        assert (_gaussian_products(p.components, z.flatten(0, 1)) is not None) == through_products
        found, exact = p.log_prob(z), in_double(p, z)
        plain = p._mixed(p._each(z))
    assert found.shape == (60, 50) and found.dtype == torch.float32
    assert (found - exact).abs().max() < 2 * (plain - exact).abs().max() + 2e-5


def test_the_products_of_matrices_refuse_what_they_would_get_wrong() -> None:
    p = gaussians(1e-5)
    with torch.no_grad():
        z = p.sample(torch.Size([3000]))
        assert _gaussian_products(p.components, z) is None
        assert _gaussian_products(gaussians(0.3, torch.float64).components, z.double()) is None
        assert _gaussian_products(sphere_mixture().components, z[:, :4]) is None
        assert _gaussian_products(gaussians(0.3).components, torch.full_like(z, 1e8)) is None  # values far outside


def test_blocks_change_nothing_for_other_components_gradients_and_recorded_graphs() -> None:
    p = gaussians(0.3, torch.float64)
    z = p.sample(torch.Size([3000]))
    with torch.no_grad():
        torch.testing.assert_close(p.log_prob(z), in_double(p, z), rtol=1e-12, atol=1e-12)
        gaussian = gaussians(0.3)
        graph = recorded(gaussian.log_prob)
        z = gaussian.sample(torch.Size([3000]))
        with pyro.validation_enabled(False):
            torch.testing.assert_close(graph(z), in_double(gaussian, z).float())
            assert graph.path == "recorded"
            torch.testing.assert_close(graph(1e4 * z), in_double(gaussian, 1e4 * z).float())  # no choice was written in
    sphere = sphere_mixture()
    with torch.no_grad():
        points = sphere.sample(torch.Size([50])).repeat(8000, 1)
        found = sphere.log_prob(points)
    torch.testing.assert_close(found, sphere.log_prob(points[:50]).detach().repeat(8000))


def row(dtype: torch.dtype = torch.float64) -> Columns:
    numbers = dist.Normal(torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=dtype), 2.0).to_event(1)
    codes = dist.Categorical(logits=torch.tensor([[[0.0, 1.0, 2.0]], [[1.0, 0.0, 0.0]]], dtype=dtype)).to_event(1)
    counts = dist.Poisson(torch.tensor([[1.5], [4.0]], dtype=dtype)).to_event(1)
    return Columns([(numbers, torch.tensor([3, 0])), (codes, torch.tensor([1])), (counts, torch.tensor([2]))], dtype)


def test_columns_are_a_product_in_their_places() -> None:
    p = row()
    assert (p.batch_shape, p.event_shape) == ((2,), (4,))
    x = torch.tensor([[0.5, 2.0, 3.0, -1.0], [0.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    by_hand = (
        dist.Normal(torch.tensor([1.0, 3.0]), 2.0).log_prob(x[:, 0])
        + dist.Normal(torch.tensor([0.0, 2.0]), 2.0).log_prob(x[:, 3])
        + torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), -1)[[0, 1], [2, 0]]
        + dist.Poisson(torch.tensor([1.5, 4.0])).log_prob(x[:, 2])
    )
    torch.testing.assert_close(p.log_prob(x), by_hand)
    draws = p.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 2, 4) and draws.dtype == torch.float64
    means = torch.tensor([[1.0, 0.0, 1.5, 0.0], [3.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
    means[:, 1] = torch.softmax(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), -1) @ torch.arange(3.0)
    assert ((draws.mean(0) - means).abs() < 4.5 * draws.std(0) / math.sqrt(20_000)).all()
    wide = p.expand(torch.Size([5, 2]))
    assert wide.sample().shape == (5, 2, 4)
    assert wide.log_prob(x).shape == (5, 2)
    assert batched_runs(lambda: p.sample(), 3).shape == (3, 2, 4)


def test_every_column_has_one_place() -> None:
    with pytest.raises(ProgramError, match="event shape"):
        Columns([(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([0]))], torch.float32)
