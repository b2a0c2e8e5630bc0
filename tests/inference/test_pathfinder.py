"""Pathfinder: L-BFGS and its normal distributions against dense algebra, moments against quadrature, costs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.linear_gaussian import LinearGaussian
from oracles.posteriors import eight_schools, eight_schools_centred, schools_data
from ppl_dgm import LogDensity
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.inference.approximating.optimising import InverseHessian, Iterate, climb
from ppl_dgm.inference.pathfinder import LowRankNormals, Pathfinder, follow_paths, pathfinder_initial


def rosenbrock(z: Tensor) -> Tensor:
    return -((1 - z[:, 0]) ** 2) - 100 * (z[:, 1] - z[:, 0] ** 2) ** 2


def correlated(dim: int) -> Handmade:
    root = torch.randn(dim, dim).double() / dim**0.5
    density = gaussian(root @ root.T + 0.1 * torch.eye(dim).double(), mean=1.5)
    density.log_prob = density.function  # type: ignore[attr-defined]
    return density


def last(density: Handmade, z: Tensor, memory: int = 6) -> Iterate:
    return list(climb(density, z, memory))[-1]


def dense(inverse: InverseHessian) -> Tensor:
    b, c = inverse.factors()
    return torch.diag_embed(inverse.alpha) + b @ c @ b.mT


def test_the_climb_finds_the_top_of_a_curved_valley_from_everywhere() -> None:
    density = Handmade(rosenbrock, 2)
    z = 4 * torch.rand(20, 2).double() - 2
    end = last(density, z)
    torch.testing.assert_close(end.point.z, torch.ones(20, 2).double(), atol=1e-3, rtol=0)
    assert density.gradients < 20 * 150 and bool((end.promise < 1e-6).all())


def test_paths_do_not_disturb_one_another() -> None:
    density = Handmade(rosenbrock, 2)
    z = 4 * torch.rand(3, 2).double() - 2
    together = [here.point.z for here in climb(density, z)]
    for i in range(3):
        alone = [here.point.z[0] for here in climb(density, z[i : i + 1])]
        for step, place in enumerate(alone[:15]):
            torch.testing.assert_close(together[step][i], place, atol=1e-6, rtol=1e-6)


def test_values_rise_and_points_without_density_are_too_far() -> None:
    density = Handmade(lambda z: (1 - z.square().sum(1)).log() + z[:, 0], 2)  # NaN outside the unit disc
    heights = torch.stack([here.point.value for here in climb(density, 0.2 * torch.rand(4, 2).double())])
    assert bool((heights.diff(dim=0) >= -1e-12).all())
    assert float(heights[-1].max() - heights[-1].min()) < 1e-6


def test_the_inverse_hessian_is_positive_and_remembers_the_last_step() -> None:
    """The secant equation, H y = s."""
    end = last(correlated(12), torch.randn(3, 12).double())
    matrix = dense(end.inverse)
    torch.testing.assert_close((matrix @ end.inverse.y[:, -1, :, None])[..., 0], end.inverse.s[:, -1])
    assert float(torch.linalg.eigvalsh((matrix + matrix.mT) / 2).min()) > 0
    x = torch.randn(3, 12).double()
    torch.testing.assert_close(end.inverse.times(x), (matrix @ x[..., None])[..., 0])


@pytest.mark.parametrize("dim", [1, 3, 20])
def test_low_rank_normals_are_the_dense_ones(dim: int) -> None:
    density = correlated(dim)
    for here in climb(density, torch.randn(3, dim).double(), memory=4):
        normals = LowRankNormals.at(here.point.z, here.point.gradient, here.inverse)
        covariance = dense(here.inverse)
        mean = here.point.z + (covariance @ here.point.gradient[..., None])[..., 0]
        exact = torch.distributions.MultivariateNormal(mean, (covariance + covariance.mT) / 2)
        assert bool(normals.valid.all())
        z, log_q = normals.push(torch.randn(5, 3, dim).double())
        torch.testing.assert_close(log_q, exact.log_prob(z))
        torch.testing.assert_close(normals.log_prob(z[:, 1]), exact.log_prob(z[:, 1, None]))
    z, _ = normals.push(torch.randn(20_000, 3, dim).double())
    torch.testing.assert_close(z[:, 0].T.cov().reshape(dim, dim), covariance[0], atol=0.1, rtol=0.1)


def test_a_gaussian_of_few_dimensions_is_found() -> None:
    program = LinearGaussian().double()
    x = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0]]).double()
    post = dgm.infer(program, x, method=Pathfinder(draws=4000), seed=0)
    score = post.log_evidence
    assert score is not None and score.stderr is not None and score.kind == "estimate"
    assert abs(float(score.value - program.evidence(x).sum())) < 4 * float(score.stderr) < 0.2
    assert float(post.stats["pareto_k"][0, 0]) < 0.6
    exact = program.exact_posterior(x)
    assert float(((post.mean("z") - exact.mean) / exact.variance.sqrt()).abs().max()) < 0.15


def logistic(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2).to(x), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope), obs=y)


def test_logistic_regression_against_quadrature() -> None:
    x = torch.randn(15, 2).double()
    y = (torch.rand(15).double() < torch.sigmoid(2 * x[:, 0] - x[:, 1])).double()
    density = LogDensity(logistic, x, y)
    axis = torch.linspace(-12, 12, 241).double()
    grid = torch.cartesian_prod(axis, axis)
    log_p = density.log_prob(grid)
    evidence = log_p.logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    mean = torch.softmax(log_p, 0) @ grid
    spread = (torch.softmax(log_p, 0) @ (grid - mean).square()).sqrt()
    post = dgm.infer(logistic, x, y, method=Pathfinder(draws=4000), seed=0)
    score = post.log_evidence
    assert score is not None and score.stderr is not None
    assert abs(float(score.value - evidence)) < 4 * float(score.stderr) < 0.3
    assert float(((post.mean("slope") - mean) / spread).abs().max()) < 0.2
    again = dgm.infer(logistic, x, y, method=Pathfinder(draws=4000, resample=True), seed=0)
    assert again.log_weights is None and "pareto_k" in again.stats
    assert float(((again.mean("slope") - mean) / spread).abs().max()) < 0.2


def test_eight_schools_as_near_as_a_normal_gets() -> None:
    """The reference has mu 4.4 (sd 3.3) and tau 3.6 (sd 3.2); within one standard deviation, and the shape k says so."""
    post = dgm.infer(eight_schools, *schools_data(), method=Pathfinder(draws=2000), seed=1)
    assert abs(float(post.mean("mu")) - 4.4) < 3.3 and abs(float(post.mean("tau")) - 3.6) < 3.2
    assert post.deterministic["theta"].shape == (1, 2000, 8) and post.log_weights.shape == (2000,)  # type: ignore[union-attr]
    assert 100 < post.cost.gradients < 1000 and post.cost.gradients % 8 == 0
    assert post.cost.evaluations % (8 * 25) == 2000 % (8 * 25)  # the lower bounds', and one for each draw


def test_a_density_without_a_mode_is_left_where_the_bound_was_best() -> None:
    post = dgm.infer(eight_schools_centred, *schools_data(), method=Pathfinder(draws=500, paths=4), seed=0)
    assert abs(float(post.mean("mu")) - 4.4) < 6.6 and post.cost.gradients < 4 * 1500


def test_draws_are_shared_evenly_and_weighted_by_the_mixture() -> None:
    density = correlated(3)
    found = follow_paths(density, density.initial(4), memory=6)
    z, log_weights = found.draw(density, 1001)
    assert z.shape == (1001, 3)
    log_mixture = found.normals.log_prob(z) + (torch.tensor([251.0, 250, 250, 250]).double() / 1001).log()
    torch.testing.assert_close(log_weights, density.function(z) - log_mixture.logsumexp(1))


def test_starting_points_for_a_sampler_lie_in_the_bulk() -> None:
    program = LinearGaussian().double()
    x = torch.tensor([[3.0, -1.0, 0.3, 1.2]]).double()
    density = LogDensity(program, x)
    z = pathfinder_initial(density, 64, seed=0)
    exact = program.exact_posterior(x)
    assert z.shape == (64, 2) and torch.equal(z, pathfinder_initial(density, 64, seed=0))
    distance = torch.linalg.solve_triangular(exact.scale_tril[0], (z - exact.mean).T, upper=False).square().sum(0)
    assert 1.0 < float(distance.mean()) < 3.2  # chi-squared with 2 degrees of freedom has mean 2


def test_seed_type_and_options() -> None:
    first, again = (
        dgm.infer(eight_schools, *schools_data(), method=Pathfinder(draws=30, paths=2), seed=5) for _ in range(2)
    )
    assert torch.equal(first.draws["tau"], again.draws["tau"]) and first.draws["tau"].dtype == torch.float32
    with pytest.raises(ProgramError, match="Pathfinder: paths must be a whole number, at least 1"):
        Pathfinder(paths=0)


def test_nothing_but_infinite_bounds_is_an_error() -> None:
    density = Handmade(lambda z: -z.square().sum(1), 2)
    density.log_prob = lambda z: torch.full((len(z),), -torch.inf).double()  # type: ignore[attr-defined]
    with pytest.raises(NumericalError, match="no normal distribution with a finite evidence lower bound"):
        follow_paths(density, density.initial(2))
