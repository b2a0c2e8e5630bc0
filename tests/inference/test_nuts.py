"""NUTS: equal to the textbook's recursion, moments, statistics, the default of infer and its fallback."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian, recursive_nuts
from oracles.posteriors import eight_schools, schools_data
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.nuts import NUTS, Trees, checkpoints, turning

LEVELS = 7


def banana(z: Tensor) -> Tensor:
    return -(z[:, 0] ** 2) / 2 - 8 * (z[:, 1] - z[:, 0] ** 2) ** 2 - z[:, 2:].square().sum(1)


def cliff(z: Tensor) -> Tensor:
    return -z.square().sum(1) / 2 - 1e7 * (z[:, 0] - 1).clamp(min=0)


class Dealt(Trees):
    """Trees with the random numbers dealt in advance, for each doubling."""

    def __init__(self, chains: int, dim: int) -> None:
        super().__init__(LEVELS)
        self.r = torch.randn(chains, dim, dtype=torch.float64)
        self.forwards = torch.rand(LEVELS, chains) < 0.5
        self.leaves = [torch.rand(2**i, chains, dtype=torch.float64).log() for i in range(LEVELS)]
        self.merges = torch.rand(LEVELS, chains, dtype=torch.float64).log()
        self.level = -1

    def momenta(self, like: Tensor) -> Tensor:
        return self.r

    def directions(self, like: Tensor) -> Tensor:
        self.level += 1
        return self.forwards[self.level]

    def log_uniforms(self, count: int, like: Tensor) -> Tensor:
        return self.leaves[self.level] if count > 1 else self.merges[self.level][None]


@pytest.mark.parametrize(
    "density, step",
    [
        (gaussian(torch.tensor([[1.0, 0.8, 0], [0.8, 1, 0], [0, 0, 0.1]]).double()), 0.3),
        (gaussian(torch.eye(3).double()), 0.87),
        (gaussian(torch.eye(3).double()), 0.1),
        (Handmade(banana, 3), 0.15),
        (Handmade(cliff, 3), 0.2),
    ],
    ids=["correlated", "large steps", "small steps", "banana", "divergent"],
)
@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_a_draw_is_that_of_the_recursion(density: Handmade, step: float, dense: bool) -> None:
    chains = 40
    scale = torch.tensor([[1.0, 0, 0], [0.3, 0.8, 0], [0, 0, 1.2]]).double() if dense else torch.ones(3).double()
    metric, z = Metric(scale), torch.rand(chains, 3, dtype=torch.float64) - 0.5
    trees = Dealt(chains, 3)
    drawn = trees.step(density, metric, Point.at(density, z), step, 0, False)
    depths = set()
    for c in range(chains):
        draw, steps, depth, diverged = recursive_nuts(
            density,
            metric,
            z[c],
            trees.r[c],
            step,
            trees.forwards[:, c].tolist(),
            [draws[:, c] for draws in trees.leaves],
            trees.merges[:, c].tolist(),
        )
        torch.testing.assert_close(drawn.point.z[c], draw, rtol=1e-8, atol=1e-10)
        assert int(drawn.stats["n_steps"][c]) == steps
        assert int(drawn.stats["tree_depth"][c]) == depth
        assert bool(drawn.stats["diverging"][c]) == diverged
        depths.add(depth)
    assert len(depths) > 1 or step == 0.87  # trees of several depths were compared
    if density.function is cliff:
        assert 0 < int(drawn.stats["diverging"].sum()) < chains


def test_checkpoints_hold_the_first_leaf_of_every_subtree_that_ends() -> None:
    stored: dict[int, int] = {}
    for leaf in range(256):
        low, high = checkpoints(leaf)
        if leaf % 2 == 0:
            stored[high] = leaf
            continue
        ending = [leaf + 1 - 2**k for k in range(1, 9) if (leaf + 1) % 2**k == 0]
        assert [stored[place] for place in range(high, low - 1, -1)] == ending


def test_large_steps_do_not_run_in_circles() -> None:
    """Steps of 0.87 make half a turn of 2.6 and a whole one of 6.1: only the checks across halves see the turn."""
    density = gaussian(torch.eye(5).double())
    trees, point = Trees(10), Point.at(density, torch.randn(200, 5, dtype=torch.float64))
    for t in range(20):
        drawn = trees.step(density, Metric.identity(density), point, 0.87, t, False)
        point = drawn.point
        assert int(drawn.stats["n_steps"].max()) <= 7


def test_a_straight_line_has_not_turned_and_a_full_circle_has() -> None:
    angle = torch.linspace(0, 2 * torch.pi, 20).double()
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    assert not turning(circle[0], circle[0], 5 * circle[0])
    assert not turning(circle[0], circle[3], circle[:4].sum(0))
    assert turning(circle[0], circle[12], circle[:13].sum(0))


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
def test_moments_of_an_ill_conditioned_gaussian(metric: str) -> None:
    scales = torch.logspace(-2, 2, 5).double()
    density = gaussian(torch.diag(scales**2), mean=1.0)
    run = NUTS(chains=16, warmup=100, draws=100, metric=metric).sample(density)
    z = torch.stack(run.draws)
    truth = 1 + scales**2
    bias = (z.square().mean((0, 1)) - truth) ** 2 / (2 * scales**4 + 4 * scales**2)
    assert float(bias.max()) < 0.01
    assert run.warmup.metric.dense == (metric == "dense")


def test_eight_schools_and_its_statistics() -> None:
    post = dgm.infer(eight_schools, *schools_data(), method=NUTS(warmup=200, draws=200), seed=0)
    table = post.summary(round_to="none").astype(float)
    assert abs(table.loc["mu", "mean"] - 4.41) < 4 * (table.loc["mu", "mcse_mean"] + 0.03)
    assert post.draws["t"].shape == (4, 200, 8) and post.deterministic["theta"].shape == (4, 200, 8)
    assert post.kind == "asymptotic" and post.cost.path == "recorded"
    assert set(post.stats) == {
        "lp", "energy", "acceptance_rate", "diverging", "n_steps", "tree_depth", "reached_max_treedepth", "step_size",
    }  # fmt: skip
    assert all(value.shape == (4, 200) for value in post.stats.values())
    steps, depth = post.stats["n_steps"], post.stats["tree_depth"]
    assert bool((steps < 2**depth).all()) and bool((steps >= 2 ** (depth - 1)).all())
    assert 0.7 < float(post.stats["acceptance_rate"].mean()) < 0.9
    assert post.cost.gradients >= int(steps.sum()) and post.cost.warmup_seconds > 0 < post.cost.sampling_seconds


def test_it_is_the_default_of_infer_also_for_flat_priors() -> None:
    def line(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.StudentT(30.0, mu, 1.0).expand([3]).to_event(1), obs=y)

    post = dgm.infer(line, torch.tensor([1.0, 2.0, 3.0]), seed=0)
    assert post.how.startswith("NUTS, 4 chains")
    assert abs(float(post.mean("mu")) - 2) < 0.1


def test_the_longest_trajectory_is_marked() -> None:
    density = gaussian(torch.eye(2).double())
    rows = NUTS(chains=3, warmup=0, draws=5, step_size=0.01, max_depth=3).sample(density).rows
    assert all(int(row["n_steps"].max()) == 7 and bool(row["reached_max_treedepth"].all()) for row in rows)
