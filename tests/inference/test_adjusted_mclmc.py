"""Adjusted microcanonical sampling: geometry of the isokinetic dynamics, exact invariance, defaults on hard targets."""

import itertools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.posteriors import eight_schools, schools_data
from ppl_dgm.inference.adjusted_mclmc import AdjustedMCLMC, IsokineticTrajectory
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.chains.isokinetic import (
    INTEGRATORS,
    directions,
    energy_change,
    isokinetic_trajectory,
    refreshed,
    turn,
)
from ppl_dgm.inference.targets import ill_conditioned_gaussian, squared_bias

DENSE = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 1.5]]).double()


def quartic(z: Tensor) -> Tensor:
    return -(z**4).sum(1) / 4 - (z[:, 0] * z[:, 1]).square()


# -- the dynamics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_trajectory_can_be_run_back(integrator: str) -> None:
    density, metric = Handmade(quartic, 3), Metric(DENSE)
    point = Point.at(density, torch.randn(6, 3).double())
    u = directions(point.z)
    end, u_end, work = isokinetic_trajectory(density, metric, point, u, 0.05, 20, integrator)
    back, u_back, undone = isokinetic_trajectory(density, metric, end, -u_end, 0.05, 20, integrator)
    torch.testing.assert_close(back.z, point.z, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(-u_back, u, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(undone, -work, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_volume_shrinks_by_the_work_that_is_done(integrator: str) -> None:
    """In two dimensions a direction is an angle: log |det d(z', angle') / d(z, angle)| = -work."""
    density, metric, width = Handmade(quartic, 2), Metric(torch.tensor([0.5, 2.0]).double()), 1e-5

    def moved(x: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.stack([x[2].cos(), x[2].sin()])[None]
        end, u, work = isokinetic_trajectory(density, metric, Point.at(density, x[None, :2]), u, 0.2, 5, integrator)
        return torch.cat([end.z[0], torch.atan2(u[:, 1], u[:, 0])]), work

    here = torch.tensor([0.6, -0.8, 0.4]).double()
    columns = [(moved(here + width * e)[0] - moved(here - width * e)[0]) / (2 * width) for e in torch.eye(3).double()]
    volume = torch.linalg.slogdet(torch.stack(columns, 1)).logabsdet
    work = moved(here)[1][0]
    assert abs(float(work)) > 0.05
    assert float(volume) == pytest.approx(-float(work), abs=1e-6)


def test_a_turn_solves_its_equation() -> None:
    u, force = directions(torch.zeros(4, 5).double()), torch.randn(4, 5).double()
    exact, steps = u.clone(), 2000
    work = torch.zeros(4).double()
    for _ in range(steps):  # Euler's method with a half step ahead
        half = exact + 0.5 / steps * (force - exact * (exact * force).sum(1, keepdim=True)) / 4
        exact = exact + (force - half * (half * force).sum(1, keepdim=True)) / 4 / steps
        work = work + (half * force).sum(1) / steps
    found, done = turn(u, force, 1.0)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(done, work, rtol=1e-5, atol=1e-5)


def test_a_turn_by_a_huge_or_no_force_stays_finite() -> None:
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    force = torch.tensor([[-1e6, 0.0], [0.0, 0.0], [1e6, 1.0]])
    found, work = turn(u, force, 1.0)
    assert bool(found.isfinite().all()) and bool(work.isfinite().all())
    assert work[1] == 0 and torch.equal(found[1], u[1])
    torch.testing.assert_close(torch.linalg.vector_norm(found, dim=1), torch.ones(3))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_energy_error_is_of_second_order(integrator: str) -> None:
    density, metric = Handmade(quartic, 3), Metric(DENSE)
    point = Point.at(density, torch.randn(6, 3).double())
    u, errors = directions(point.z), []
    for steps in (40, 80, 160):
        end, _, work = isokinetic_trajectory(density, metric, point, u, 0.5 / steps, steps, integrator)
        errors.append(energy_change(point, end, work))
    for coarse, fine in itertools.pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.full((6,), 4.0).double(), rtol=0.1, atol=0)


def test_a_direction_is_forgotten_over_the_length() -> None:
    """The mean cosine after a partial refresh is exp(-step / L) for many dimensions."""
    u = directions(torch.zeros(200, 1000).double())
    cosine = (refreshed(u, 0.3) * u).sum(1).mean()
    assert float(cosine) == pytest.approx(math.exp(-0.3), abs=0.01)


# -- invariance ----------------------------------------------------------------------------------------------


def test_big_steps_leave_a_bimodal_density_invariant() -> None:
    """Two modes in the plane, started from exact draws, against quadrature, at a third of steps refused."""

    def log_density(z: Tensor) -> Tensor:
        return -((z[:, 0] ** 2 - 2) ** 2) / 2 - (z[:, 1] - z[:, 0]).square() + 0.5 * z[:, 0]

    density = Handmade(log_density, 2)
    axis = torch.linspace(-5, 5, 801).double()
    grid = torch.cartesian_prod(axis, axis)
    mass = torch.softmax(log_density(grid), 0)
    tests = [lambda z: z[:, 0], lambda z: z[:, 0] ** 2, lambda z: z[:, 1] ** 2, lambda z: (z[:, 0] > 0).double()]
    start = grid[torch.multinomial(mass, 4000, replacement=True)]
    point = Point.at(density, start + (torch.rand(4000, 2).double() - 0.5) * float(axis[1] - axis[0]))
    kernel = IsokineticTrajectory(1.5, "minimal-norm", 100)
    sums, rate = torch.zeros(len(tests), 4000).double(), []
    for t in range(60):
        drawn = kernel.step(density, Metric.identity(density), point, 0.9, t, False)
        point = drawn.point
        rate.append(float(drawn.acceptance.mean()))
        sums += torch.stack([test(point.z) for test in tests])
    assert 0.3 < sum(rate) / len(rate) < 0.9
    means = sums / 60
    for test, mean in zip(tests, means, strict=True):
        exact = float((mass * test(grid)).sum())
        assert abs(float(mean.mean()) - exact) < 4.5 * float(mean.std()) / math.sqrt(4000)


# -- the sampler ---------------------------------------------------------------------------------------------


def test_defaults_reach_a_small_bias_on_the_ill_conditioned_gaussian() -> None:
    target = ill_conditioned_gaussian(dim=30, condition=1e4)
    post = dgm.infer(target.program, *target.args, method=AdjustedMCLMC(chains=32, draws=150), seed=0)
    assert max(squared_bias(post, target).values()) < 0.01
    assert abs(float(post.stats["acceptance_rate"].mean()) - 0.9) < 0.04 and post.kind == "asymptotic"
    assert 0.8 < float(post.stats["length"][0, 0]) < 2.5  # about a quarter of a turn


def test_eight_schools() -> None:
    post = dgm.infer(eight_schools, *schools_data(), method=AdjustedMCLMC(chains=64, warmup=200, draws=100), seed=0)
    mu = post.draws["mu"]
    assert abs(float(mu.mean()) - 4.41) < 0.3 and abs(float(mu.std()) - 3.3) < 0.3
    assert post.stats["n_steps"].shape == post.stats["energy_change"].shape == (64, 100)


def test_a_given_length_and_step_size_stay() -> None:
    run = AdjustedMCLMC(chains=1, warmup=30, draws=5, length=2.0, step_size=0.3).sample(gaussian(torch.eye(3).double()))
    assert run.rows[-1]["length"] == 2.0 and run.rows[-1]["step_size"] == 0.3


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path: Path) -> None:
    method = {"chains": 4, "warmup": 40}
    whole = dgm.infer(eight_schools, *schools_data(), method=AdjustedMCLMC(**method, draws=20), seed=0)
    for draws in (7, 20):
        part = AdjustedMCLMC(**method, draws=draws, checkpoint=tmp_path / "run.safetensors")
        post = dgm.infer(eight_schools, *schools_data(), method=part, seed=0)
    assert torch.equal(post.draws["mu"], whole.draws["mu"])


def one_coordinate() -> None:
    pyro.sample("a", dist.Normal(0.0, 1.0))


def test_one_coordinate_is_refused_in_words() -> None:
    for name in ("adjusted-mclmc", "mclmc"):
        with pytest.raises(dgm.TaskUnavailable, match=r"on a line a direction .*'nuts'"):
            dgm.infer(one_coordinate, method=name)


@pytest.mark.parametrize(
    "options", [{"length": 0.0}, {"integrator": "euler"}, {"max_steps": 0}, {"chains": 1}], ids=lambda o: next(iter(o))
)
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(dgm.ProgramError, match=f"AdjustedMCLMC: {next(iter(options))} must be"):
        AdjustedMCLMC(**options)


@pytest.mark.slow
def test_defaults_on_the_hundred_dimensional_gaussian() -> None:
    target = ill_conditioned_gaussian()
    post = dgm.infer(target.program, *target.args, method="adjusted-mclmc", seed=0)
    assert max(squared_bias(post, target).values()) < 0.003
