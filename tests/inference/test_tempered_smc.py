"""TemperedSMC: evidence of conjugate models within its error, modes with their weights, prior draws, refusals."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.inference.annealed.tempering import GaussianPath, Parts, PowerPath, PriorPath, Tempered, move
from ppl_dgm.inference.chains.hamiltonian import Metric, Point, reasonable_steps
from ppl_dgm.inference.targets import far_modes
from ppl_dgm.inference.tempered_smc import TemperedSMC, next_beta, systematic

# -- conjugate programs, each with its arguments, its log evidence, and E[site] and Var[site] of its posterior -----


def coins() -> tuple[Any, tuple, float, str, Tensor, Tensor]:
    """Beta-Binomial, far from its prior."""

    def program(heads: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 5.0))
        pyro.sample("heads", dist.Binomial(60, p), obs=heads)

    posterior = dist.Beta(2.0 + 51, 5.0 + 9)
    evidence = dist.BetaBinomial(torch.tensor(2.0), torch.tensor(5.0), 60).log_prob(torch.tensor(51.0))
    return program, (torch.tensor(51.0),), float(evidence), "p", posterior.mean, posterior.variance


def counts() -> tuple[Any, tuple, float, str, Tensor, Tensor]:
    """Gamma-Poisson, with the rate in the plate's examples shared."""
    y = torch.tensor([3.0, 7.0, 4.0, 6.0, 9.0, 5.0])

    def program(y: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    shape, inverse = 2 + float(y.sum()), 1.0 + len(y)
    evidence = math.lgamma(shape) - math.lgamma(2.0) - shape * math.log(inverse) - float(torch.lgamma(y + 1).sum())
    posterior = dist.Gamma(shape, inverse)
    return program, (y,), evidence, "rate", posterior.mean, posterior.variance


def regression() -> tuple[Any, tuple, float, str, Tensor, Tensor]:
    """Linear-Gaussian, two columns nearly the same, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=generator).double()
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    y = x @ torch.tensor([1.0, -1.0, 2.0, 0.0]).double() + 0.3 * torch.randn(50, generator=generator).double()

    def program(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(4), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ slopes, 0.3).to_event(1), obs=y)

    covariance = torch.linalg.inv(x.T @ x / 0.09 + torch.eye(4).double() / 4)
    marginal = torch.distributions.MultivariateNormal(y.new_zeros(50), 4 * x @ x.T + 0.09 * torch.eye(50).double())
    mean = covariance @ (x.T @ y) / 0.09
    return program, (x, y), float(marginal.log_prob(y)), "slopes", mean, covariance.diagonal()


CONJUGATE = {"beta-binomial": coins, "gamma-poisson": counts, "regression": regression}


@pytest.mark.parametrize("make", CONJUGATE.values(), ids=CONJUGATE)
def test_evidence_and_moments_of_conjugate_programs(make: Any) -> None:
    program, args, evidence, site, mean, variance = make()
    post = dgm.infer(program, *args, method=TemperedSMC(particles=400), seed=0)
    draws = post.draws[site]
    assert draws.shape[:2] == (4, 400) and post.stats["ancestor"].shape == (4, 400)
    score = post.log_evidence
    assert score is not None and score.kind == "estimate" and score.stderr is not None
    assert 0 < float(score.stderr) < 0.35
    assert abs(float(score.value) - evidence) < 4.5 * float(score.stderr)
    mcse = torch.tensor(post.summary(round_to="none")["mcse_mean"].to_numpy(dtype=float))
    assert bool(((draws.double().mean((0, 1)) - mean).abs() < 4.5 * mcse).all())
    assert bool((mcse < 0.15 * variance.double().sqrt()).all())
    assert torch.allclose(draws.flatten(0, 1).var(0), variance.to(draws.dtype), rtol=0.3)


@pytest.mark.parametrize("chains", [1, 4])
def test_the_standard_error_of_the_evidence_is_honest(chains: int) -> None:
    """Over runs, errors in units of their standard errors have about unit variance."""
    program, args, evidence, *_ = coins()
    found = []
    for seed in range(10):
        method = TemperedSMC(particles=100, chains=chains, max_moves=2)
        score = dgm.infer(program, *args, method=method, seed=seed).log_evidence
        assert score is not None and score.stderr is not None
        found.append((float(score.value) - evidence) / float(score.stderr))
    spread = math.sqrt(sum(z**2 for z in found) / len(found))
    assert 0.3 < spread < 2.0 and max(map(abs, found)) < 4.5


def test_two_modes_have_their_weights_and_evidence() -> None:
    target = far_modes()
    post = dgm.infer(target.program, *target.args, method=TemperedSMC(particles=500, chains=8), seed=0)
    left = (post.draws["x"][..., 0] < 0).double().mean(1)  # of each population
    stderr = float(left.std()) / math.sqrt(8)
    assert stderr < 0.04 and abs(float(left.mean()) - 0.3) < 5 * stderr
    score = post.log_evidence
    assert score is not None and score.stderr is not None and target.log_evidence is not None
    assert abs(float(score.value) - float(target.log_evidence)) < 4.5 * float(score.stderr) < 0.5


def test_examples_that_share_nothing_are_scored_one_by_one() -> None:
    program = LinearGaussian()
    x = dgm.sample(program, 3, seed=1)["x"]
    score = dgm.score(program, x, method=TemperedSMC(particles=300, chains=2), seed=0)
    assert score.value.shape == (3,) and score.stderr is not None
    assert bool(((score.value - program.evidence(x)).abs() < 4.5 * score.stderr).all())
    together = dgm.infer(program, x, method=TemperedSMC(particles=300, chains=2), seed=0).log_evidence
    assert together is not None and together.value.shape == ()


def test_the_table_of_stages_tells_the_way() -> None:
    program, args, *_ = regression()
    post: Any = dgm.infer(program, *args, method=TemperedSMC(particles=200, chains=2), seed=0)
    stages = post.stages
    assert stages["beta"].is_monotonic_increasing and stages["beta"].iloc[-1] == 1.0
    assert bool(((stages["ess"] - 0.5).abs() < 0.02)[:-1].all()) and stages["ess"].iloc[-1] > 0.48
    assert abs(stages["log_ratio"].sum() - float(post.log_evidence.value)) < 0.5
    assert bool((stages["moves"] >= 1).all() and (stages["acceptance"] > 0.4).all())
    again: Any = dgm.infer(program, *args, method=TemperedSMC(particles=200, chains=2), seed=0)
    assert torch.equal(post.draws["slopes"], again.draws["slopes"])
    assert post.cost.gradients == again.cost.gradients > 0


# -- the pieces ----------------------------------------------------------------------------------------------------


def test_the_next_temperature_has_the_effective_sample_size_asked_for() -> None:
    torch.manual_seed(0)
    rest = 30 * torch.randn(3, 500).double()
    beta = next_beta(rest, 0.1, 0.6)
    weights = ((beta - 0.1) * rest).exp()
    assert abs(float((weights.sum(1).square() / weights.square().sum(1)).mean()) / 500 - 0.6) < 1e-6
    assert next_beta(rest * 1e-6, 0.1, 0.6) == 1.0
    dead = torch.cat([rest, torch.full((3, 500), -math.inf).double()], 1)
    assert next_beta(dead, 0.1, 0.6) == pytest.approx(beta)  # they are lost at any temperature


def test_systematic_resampling_has_the_right_counts() -> None:
    torch.manual_seed(0)
    weights = torch.rand(4, 50).double().square()
    weights /= weights.sum(1, keepdim=True)
    total = torch.zeros(4, 50).double()
    for _ in range(400):
        rows = systematic(weights)
        counts = torch.nn.functional.one_hot(rows, 50).sum(1).double()
        assert bool(((counts - 50 * weights).abs() < 1).all()) and bool((rows.diff(dim=1) >= 0).all())
        total += counts
    assert bool((total / 400 - 50 * weights).abs().max() < 4.5 * 0.5 / math.sqrt(400))


def test_a_path_is_its_two_parts_with_their_gradients() -> None:
    program, args, *_ = regression()
    density = LogDensity(program, *args)
    mean, root = torch.randn(4).double(), torch.randn(4, 4).double().tril() + 3 * torch.eye(4).double()
    z = torch.randn(6, 4).double().requires_grad_()
    normal = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    paths = {
        "prior": (PriorPath(density), dist.Normal(0.0, 2.0).log_prob(z).sum(1)),
        "normal": (GaussianPath(density, mean, root), normal.log_prob(z)),
        "power": (PowerPath(density), torch.zeros(6).double()),
    }
    for name, (path, reference) in paths.items():
        parts = Parts.at(path, z.detach())
        torch.testing.assert_close(parts.reference, reference.detach(), msg=name)
        torch.testing.assert_close(parts.reference + parts.rest, density.log_prob(z.detach()))
        for beta in (0.3, torch.linspace(0.1, 1, 6).double()):
            point = parts.point(beta)
            torch.testing.assert_close(path.gradient(z.detach(), beta), point.gradient)
        if reference.requires_grad:
            (slope,) = torch.autograd.grad(reference.sum(), z)
            torch.testing.assert_close(parts.reference_gradient, slope)
    assert paths["power"][0].normalised is False


def test_at_beta_zero_an_impossible_observation_does_not_count() -> None:
    parts = Parts(
        torch.zeros(2, 1),
        torch.zeros(2),
        torch.tensor([-math.inf, 1.0]),
        torch.ones(2, 1),
        torch.full((2, 1), math.nan),
    )
    assert parts.point(0.0).value.tolist() == [0.0, 0.0] and bool(parts.point(0.0).gradient.isfinite().all())
    mixed = parts.point(torch.tensor([0.0, 0.5]))
    assert mixed.value.tolist() == [0.0, 0.5] and float(mixed.gradient[0]) == 1.0


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_moves_leave_the_tempered_density_as_it_is(beta: float) -> None:
    """Particles that are exact draws of p_beta stay so: mean and variance, each within its error."""
    program, (x, y), *_ = regression()
    path = PriorPath(LogDensity(program, x, y))
    covariance = torch.linalg.inv(beta * x.T @ x / 0.09 + torch.eye(4).double() / 4)
    mean = beta * covariance @ (x.T @ y) / 0.09
    torch.manual_seed(0)
    root = torch.linalg.cholesky(covariance)
    parts = Parts.at(path, mean + torch.randn(2000, 4).double() @ root.T)
    before = parts.z
    for _ in range(3):
        parts, accept, diverged = move(path, Metric(root), parts, beta, 0.9, 2)
    assert 0.5 < float(accept.mean()) < 1 and not bool(diverged.any())
    assert float((parts.z - before).abs().mean()) > 0
    white = torch.linalg.solve_triangular(root, (parts.z - mean).T, upper=False).T
    assert float(white.mean(0).abs().max()) < 4.5 / math.sqrt(2000)
    assert float((white.var(0) - 1).abs().max()) < 4.5 * math.sqrt(2 / 2000)
    torch.testing.assert_close(parts.rest, Parts.at(path, parts.z).rest)


def test_samplers_take_a_tempered_density() -> None:
    program, args, *_ = regression()
    path = PriorPath(LogDensity(program, *args))
    prior, posterior = Tempered(path, 0.0), Tempered(path, 1.0)
    point = Point.at(prior, torch.randn(8, 4).double())
    torch.testing.assert_close(point.value, dist.Normal(0.0, 2.0).log_prob(point.z).sum(1))
    start = torch.full((8,), 0.1).double()
    wide = reasonable_steps(prior, Metric.identity(prior), point, start)
    narrow = reasonable_steps(posterior, Metric.identity(prior), Point.at(posterior, point.z), start)
    assert float(wide.median()) > 4 * float(narrow.median())


# -- where particles begin -----------------------------------------------------------------------------------------


def test_prior_draws_follow_the_prior_of_every_site() -> None:
    """Supports, dependence, a discrete site that is summed out, and values that depend on a site's own support."""

    def program(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.Gamma(3.0, 2.0))
        k = pyro.sample("k", dist.Bernoulli(0.25))
        pyro.sample("x", dist.Normal(4 * k, scale))
        pyro.sample("top", dist.Uniform(0.0, scale))
        shares = pyro.sample("shares", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
        pyro.sample("y", dist.Normal(shares[..., 0], 1.0), obs=y)

    density = LogDensity(program, torch.tensor(0.5))
    torch.manual_seed(0)
    draws, _ = density.constrain(PriorPath(density).draw(4000))
    for value, mean, variance in (
        (draws["scale"], 1.5, 0.75),
        (draws["x"], 1.0, 3.0 + 16 * 0.25 * 0.75),
        (draws["top"], 0.75, 3.0 / 3 - 0.75**2),
        (draws["shares"][:, 2], 0.5, 0.25 / 7),
    ):
        assert abs(float(value.mean()) - mean) < 4.5 * math.sqrt(variance / 4000)
        assert abs(float(value.var()) / variance - 1) < 0.25
    assert bool((draws["top"] < draws["scale"]).all())


@pytest.mark.filterwarnings("ignore:.*evaluated one after another:RuntimeWarning")
def test_programs_that_vmap_cannot_follow_are_drawn_one_by_one() -> None:
    def program(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 2.0))
        scale = 1.0 if float(x) < 0 else 2.0  # a branch on a value
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    path = PriorPath(LogDensity(program, torch.tensor(1.0)))
    torch.manual_seed(0)
    z = path.draw(500)
    assert abs(float(z.mean())) < 4.5 * 2 / math.sqrt(500) and abs(float(z.std()) - 2) < 0.35


def flat(y: Tensor) -> None:
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def masked(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)


def scaled(y: Tensor) -> None:
    with poutine.scale(scale=0.5):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "reason"),
    [(flat, "has a flat prior"), (masked, "is masked"), (scaled, "is scaled")],
    ids=["flat", "masked", "scaled"],
)
def test_priors_that_cannot_be_drawn_from_are_refused_with_the_remedy(program: Any, reason: str) -> None:
    with pytest.raises(TaskUnavailable, match=f"site 'x' {reason}.*reference=10.0"):
        dgm.infer(program, torch.tensor(3.0), method="tempered-smc", seed=0)


@pytest.mark.parametrize(
    "reference",
    [4.0, (torch.tensor([1.0]), torch.tensor([2.0])), (torch.tensor([1.0]), torch.tensor([[4.0]]))],
    ids=["number", "standard deviations", "covariance"],
)
def test_a_flat_prior_begins_from_a_normal_and_gives_the_integral(reference: Any) -> None:
    """exp(-(3 - x)^2 / 2) / sqrt(2 pi) over x > 0 is Phi(3)."""
    method = TemperedSMC(particles=400, reference=reference)
    post = dgm.infer(flat, torch.tensor(3.0), method=method, seed=0)
    score = post.log_evidence
    assert score is not None and score.stderr is not None
    expected = math.log(0.5 * (1 + math.erf(3 / math.sqrt(2))))
    assert abs(float(score.value) - expected) < 4.5 * float(score.stderr) < 0.5
    assert abs(float(post.draws["x"].mean()) - 3.004) < 0.15


def test_impossible_observations_are_refused() -> None:
    def program(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 50, y, -math.inf))

    with pytest.raises(NumericalError, match="none of 50 particles"):
        dgm.infer(program, torch.tensor(0.0), method=TemperedSMC(particles=50, chains=2), seed=0)


def test_a_wall_that_leaves_few_particles_is_survived() -> None:
    """A factor that forbids all but the upper tenth: log P(x > 1.2816) = log 0.1."""

    def program(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(x > 1.2816, y, -math.inf))

    post = dgm.infer(program, torch.tensor(0.0), method=TemperedSMC(particles=500), seed=0)
    score = post.log_evidence
    assert score is not None and score.stderr is not None
    assert abs(float(score.value) - math.log(0.1)) < 4.5 * float(score.stderr) < 0.9
    assert bool((post.draws["x"] > 1.2816).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "particles must be a whole number, at least 2"),
        ({"ess": 1.0}, "ess must be between 0 and 1"),
        ({"min_moves": 3, "max_moves": 2}, "max_moves must be a whole number, at least min_moves"),
        ({"reference": "flat"}, "reference must be 'prior', a positive number"),
        ({"reference": -1.0}, "reference must be 'prior', a positive number"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        TemperedSMC(**options)


def test_a_reference_of_the_wrong_shape_is_named() -> None:
    method = TemperedSMC(reference=(torch.zeros(2), torch.ones(2)))
    with pytest.raises(ProgramError, match=r"shapes \(2,\) and \(2,\)"):
        dgm.infer(flat, torch.tensor(3.0), method=method, seed=0)
    method = TemperedSMC(reference=(torch.zeros(1), -torch.ones(1)))
    with pytest.raises(ProgramError, match="the spread is not positive"):
        dgm.infer(flat, torch.tensor(3.0), method=method, seed=0)
