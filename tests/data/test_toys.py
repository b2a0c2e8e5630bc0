"""The toys: each density integrates to one, the samples follow it, and the entropy is its own."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from ppl_dgm import data
from ppl_dgm.data import Dataset
from ppl_dgm.errors import DataError

TOYS: dict[str, Callable[..., Dataset]] = {
    "moons": data.moons,
    "eight_gaussians": data.eight_gaussians,
    "checkerboard": data.checkerboard,
    "pinwheel": data.pinwheel,
}
EDGE = {"moons": 3.0, "eight_gaussians": 6.0, "checkerboard": 4.0, "pinwheel": 6.0}
FINE = {
    "moons": 12,
    "eight_gaussians": 24,
    "checkerboard": 24,
    "pinwheel": 36,
}  # grid points in a cell's side
CELLS = 12  # cells in the plane's side
each_toy = pytest.mark.parametrize("name", TOYS)


@cache
def big(name: str) -> Dataset:
    return TOYS[name](20000, 10, 10, seed=1)


@cache
def on_grid(name: str) -> tuple[Tensor, float]:
    """The log density at the midpoints of small squares that fill [-EDGE, EDGE]^2, and a square's area."""
    points = CELLS * FINE[name]
    side = 2 * EDGE[name] / points
    middle = -EDGE[name] + side * (torch.arange(points, dtype=torch.float64) + 0.5)
    return density(big(name))(torch.cartesian_prod(middle, middle)), side**2


def density(toy: Dataset) -> Callable[[Tensor], Tensor]:
    assert toy.log_density is not None
    return toy.log_density


@each_toy
def test_density_integrates_to_one(name: str) -> None:
    log_p, area = on_grid(name)
    total = log_p.exp().sum() * area
    assert float(total) == pytest.approx(1, abs=1e-3)


@each_toy
def test_entropy_is_that_of_the_density(name: str) -> None:
    """A plain sum over the plane, of the density itself rather than of an untwisted or reflected form."""
    log_p, area = on_grid(name)
    assert big(name).entropy == pytest.approx(float(torch.special.entr(log_p.exp()).sum() * area), abs=1e-3)


@each_toy
def test_samples_score_the_entropy_within_their_standard_error(name: str) -> None:
    toy = big(name)
    loss = -density(toy)(toy.train.double())
    assert toy.entropy is not None
    error = float(loss.std()) / math.sqrt(len(loss))
    assert abs(float(loss.mean()) - toy.entropy) <= 4 * error + 1e-6


@each_toy
def test_samples_fill_the_cells_as_the_density_says(name: str) -> None:
    """Pearson's chi-square over 12 x 12 cells, whose masses come from a midpoint rule inside each cell."""
    toy = big(name)
    log_p, area = on_grid(name)
    mass = log_p.exp().reshape(CELLS, FINE[name], CELLS, FINE[name]).sum((1, 3)).flatten() * area
    cell = ((toy.train.double() + EDGE[name]) / (2 * EDGE[name]) * CELLS).floor().long()
    assert bool(((cell >= 0) & (cell < CELLS)).all())
    count = torch.bincount(cell[:, 0] * CELLS + cell[:, 1], minlength=CELLS**2)
    expected = mass * len(toy.train)
    kept = expected > 5
    statistic = float(((count - expected).square() / expected)[kept].sum())
    degrees = int(kept.sum()) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees)
    assert int(count[~kept].sum()) <= float(expected[~kept].sum()) + 4 * math.sqrt(float(expected[~kept].sum()) + 1)


@each_toy
def test_each_split_has_its_own_repeatable_stream(name: str) -> None:
    state = torch.get_rng_state()
    one, again, longer, other = (
        TOYS[name](*sizes, seed=seed)
        for sizes, seed in [((50, 20, 30), 3)] * 2 + [((90, 20, 30), 3), ((50, 20, 30), 4)]
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one.splits[split], again.splits[split]) for split in one.splits)
    assert torch.equal(one.test, longer.test)
    assert not torch.equal(one.train, other.train)
    assert not torch.equal(one.valid, one.test[:20])
    assert one.train.dtype == torch.float32 and one.train.shape == (50, 2)


@each_toy
def test_density_keeps_shape_and_dtype_and_stays_finite_or_zero_far_away(name: str) -> None:
    log_p = density(big(name))
    x = torch.randn(3, 5, 2)
    assert log_p(x).shape == (3, 5) and log_p(x).dtype == torch.float32
    assert torch.allclose(log_p(x.double()).float(), log_p(x), rtol=1e-3, atol=1e-3)
    assert not bool(log_p(torch.tensor([[1e3, -1e3], [0.0, 40.0]])).isnan().any())


@pytest.mark.parametrize("noise", [0.03, 0.1, 0.5])
def test_moons_density_against_simpsons_rule(noise: float) -> None:
    from scipy.integrate import simpson

    points = torch.tensor([[1, 0], [0.3, 0.4], [-1, -0.05], [2.1, 0.6], [0.5, 0.25]], dtype=torch.float64)
    a, b = points[:, :1], points[:, 1:]  # [point, 1]
    t = torch.linspace(0, math.pi, 20001, dtype=torch.float64)
    upper = (a - t.cos()) ** 2 + (b - t.sin()) ** 2  # [point, t]
    lower = (a - 1 + t.cos()) ** 2 + (b - 0.5 + t.sin()) ** 2
    integrand = sum((-square / (2 * noise**2)).exp() for square in (upper, lower))
    integral = torch.from_numpy(simpson(integrand, x=t, axis=-1))
    expected = integral.log() - math.log(2 * math.pi * 2 * math.pi * noise**2)
    assert torch.allclose(density(data.moons(1, 0, 0, noise=noise))(points), expected, rtol=0, atol=1e-9)


def test_moons_lie_where_scikit_learns_do() -> None:
    from sklearn.datasets import make_moons

    reference, moon = make_moons(2000, noise=None)
    ours = data.moons(20000, 1, 1, noise=0.03)
    assert ours.labels is not None
    for which in (0, 1):
        mine = ours.train[ours.labels["train"] == which].double()
        theirs = torch.from_numpy(reference[moon == which])
        assert torch.allclose(mine.mean(0), theirs.mean(0), atol=0.03)
        nearest = torch.cdist(mine, theirs).min(1).values
        assert float(nearest.max()) < 6 * 0.03


def test_checkerboard_entropy_is_the_logarithm_of_its_area() -> None:
    board = data.checkerboard(5000, 1, 1)
    assert board.entropy == math.log(32)
    assert bool((density(board)(board.train) == -torch.tensor(math.log(32))).all())  # no sample off the squares
    assert density(board)(torch.tensor([[1.0, 3.0], [-1.0, 1.0], [5.0, 1.0]])).tolist() == [-math.inf] * 3


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda: data.moons(noise=0.0), ["noise", "0.0", "0.03 to 1"], id="moons-without-noise"),
        pytest.param(lambda: data.pinwheel(0), ["pinwheel", "train is 0"], id="nothing-to-train-on"),
        pytest.param(lambda: data.checkerboard(5, -1), ["valid is -1"], id="negative-size"),
        pytest.param(lambda: density(data.pinwheel(1))(torch.zeros(3)), ["(3,)", "[n, 2]"], id="point-not-in-plane"),
    ],
)
def test_refusals(make: Callable[[], object], says: list[str]) -> None:
    with pytest.raises(DataError) as refusal:
        make()
    assert all(word in str(refusal.value) for word in says), str(refusal.value)
