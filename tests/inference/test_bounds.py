"""Bounds as objectives: below (CUBO above) the exact evidence, tight at the posterior, gradients unbiased, refusals in words."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from oracles.latent_programs import BeliefNetwork, LearnedLinear, states
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.free_bits import divergences
from ppl_dgm.inference.learning.bounds import left_out, renyi_bound
from ppl_dgm.inference.learning.particles import Particles, guides_own

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]])
MANY = X.repeat(50, 1)


def gradients(program: Any, method: Any, names: Sequence[str], x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Mean and standard error of the objective's gradient by these parameters, flat."""
    parameters = [dict(program.named_parameters())[name] for name in names]
    torch.manual_seed(0)
    with program.running():
        method.prepare(program, (x,))
        step = method.gradients(program, method.objective(program, len(x)), parameters)
        found = torch.stack([torch.cat([g.reshape(-1) for g in step(x)[1:]]) for _ in range(draws)])
    return found.mean(0), found.std(0) / draws**0.5


def agree(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Within 4.5 standard errors, and rounding."""
    return bool(((one[0] - other[0]).abs() < 4.5 * (one[1] ** 2 + other[1] ** 2).sqrt() + 1e-4).all())


# -- values ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [dgm.IWAE(particles=8), dgm.Renyi(alpha=0.5), dgm.Renyi(alpha=2.0), dgm.Renyi(alpha=1.0), dgm.FreeBits()]
)
def test_lower_bounds_are_below_the_evidence(method: Any) -> None:
    program = LinearGaussian()
    score = dgm.score(program, X.repeat(2000, 1), method=method, seed=0)
    below = program.evidence(X) - score.value.reshape(2000, 3)
    assert score.kind == "lower_bound"
    assert (below.mean(0) > 0).all()
    assert float(below.mean()) > 4 * float(below.std()) / 6000**0.5  # clearly below: the guide is wrong


@pytest.mark.parametrize(
    "method", [dgm.IWAE(particles=3), dgm.Renyi(alpha=0.3), dgm.Renyi(alpha=3.0), dgm.CUBO(particles=5)]
)
def test_every_bound_is_tight_at_the_exact_posterior(method: Any) -> None:
    program = LinearGaussian(exact=True)
    score = dgm.score(program, X, method=method, seed=0)
    torch.testing.assert_close(score.value, program.evidence(X), atol=2e-4, rtol=0)


def test_the_chi_bound_is_above_the_evidence_and_near_its_closed_form() -> None:
    """log E_q (p/q)^2 of Gaussians: the guide is wider than the posterior, so that the integral is finite."""
    program = LinearGaussian()
    score = dgm.score(program, X, method=dgm.CUBO(particles=20_000), seed=0)
    assert score.kind == "upper_bound" and (score.value > program.evidence(X)).all()
    p, q = program.exact_posterior(X), program.factorised(X)
    precision = 2 * torch.linalg.inv(p.covariance_matrix) - torch.diag_embed(1 / q.variance)  # of p^2 / q
    pull = 2 * torch.linalg.solve(p.covariance_matrix, p.mean[..., None])[..., 0] - q.mean / q.variance
    centre = torch.linalg.solve(precision, pull[..., None])[..., 0]
    spread = torch.distributions.MultivariateNormal(centre, precision_matrix=precision)
    log_integral = (
        2 * p.log_prob(centre) - q.log_prob(centre) - spread.log_prob(centre)
    )  # log of the integral of p^2 / q
    exact = program.evidence(X) + log_integral / 2
    assert ((score.value - 3 * score.stderr - exact).abs() < 4.5 * score.stderr).all()
    assert score.stats["ess"].shape == (3,) and (score.stats["pareto_k"] < 0.7).all()


def test_the_importance_weighted_bound_grows_with_the_draws() -> None:
    program = LinearGaussian()
    torch.manual_seed(0)
    with program.running():
        log_weights = Particles(program, 64).log_weights(X.repeat(300, 1))  # [draw, 300 x 3]
    last, means, errors = None, [], []
    for count in (1, 2, 4, 16, 64):
        values = renyi_bound(log_weights.reshape(-1, count, 900).transpose(0, 1), 0.0).mean(0)
        means.append(values.mean())
        if last is not None:
            errors.append((values - last).std() / 900**0.5)
        last = values
    steps = torch.stack(means).diff()
    assert (steps > -4 * torch.stack(errors)).all() and bool((steps > 0).all())


def test_orders_between_the_bounds_and_their_limits() -> None:
    log_weights = torch.randn(1000, 5, dtype=torch.float64)
    torch.testing.assert_close(renyi_bound(log_weights, 1.0), log_weights.mean(0))
    torch.testing.assert_close(renyi_bound(log_weights, 1.0 + 1e-6), log_weights.mean(0), atol=1e-5, rtol=0)
    bounds = torch.stack([renyi_bound(log_weights, alpha) for alpha in (3.0, 1.0, 0.5, 0.0, -1.0)])
    assert (bounds.diff(dim=0) > 0).all()


# -- gradients ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_doubly_reparameterised_gradient_is_the_standard_one_with_less_noise(alpha: float, two: bool) -> None:
    """Also where the guide draws one site given another, whose paths go through both."""
    names = ["shift", "log_stretch", "mean", *(["slope"] if two else [])]
    program = LearnedLinear(two)
    plain = gradients(program, dgm.Renyi(alpha=alpha, particles=8), names, MANY, 30)
    path = gradients(program, dgm.Renyi(alpha=alpha, particles=8, gradient="dreg"), names, MANY, 30)
    assert agree(plain, path)
    guide = [0, 1, -1] if two else [0, 1]
    assert (path[1][guide] < 0.8 * plain[1][guide]).all()


def test_one_draw_sticks_the_landing_without_bias_and_without_noise_at_the_posterior() -> None:
    names = ["shift", "log_stretch"]
    program = LearnedLinear()
    stl = dgm.IWAE(particles=1, gradient="sticking-the-landing")
    assert agree(gradients(program, dgm.IWAE(particles=1), names, MANY, 30), gradients(program, stl, names, MANY, 30))
    with torch.no_grad():
        program = LearnedLinear(diagonal=True)
        program.shift.zero_()
        program.log_stretch.zero_()
    mean, error = gradients(program, stl, names, X, 20)
    assert mean.abs().max() < 1e-4 and error.max() < 1e-4
    assert gradients(program, dgm.IWAE(particles=1), names, X, 20)[1].max() > 1e-2


def test_vimco_is_the_gradient_of_the_enumerated_bound() -> None:
    """A belief network of few bits: E L_2 and its gradient by the sum over all pairs of latent states."""
    program = BeliefNetwork()
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    h, g = states(2, 3)
    seen = x.expand(32, 4)
    log_w = program.log_joint(h, g, seen) - program.log_guide(h, g, seen)
    log_q = program.log_guide(h, g, seen)
    pair = torch.logaddexp(log_w[:, None], log_w[None]) - torch.tensor(2.0).log()
    exact = -((log_q[:, None] + log_q[None]).exp() * pair).sum()
    names = [name for name, _ in program.named_parameters()]
    wanted = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, list(program.parameters()))])
    found = gradients(program, dgm.IWAE(particles=2, gradient="vimco"), names, x.expand(400, 4), 60)
    assert ((found[0] - wanted).abs() < 4.5 * found[1] + 1e-4).all()


def test_baselines_leave_their_own_draw_out() -> None:
    log_weights = torch.tensor([[0.0], [1.0], [3.0]])
    found = left_out(log_weights, 0.0)
    wanted = torch.tensor([[2.0, 1.0, 3.0], [0.0, 1.5, 3.0], [0.0, 1.0, 0.5]]).logsumexp(1) - torch.tensor(3.0).log()
    torch.testing.assert_close(found[:, 0], wanted)


# -- learning ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        dgm.IWAE(particles=8, gradient="dreg", epochs=60, batch_size=None, lr=0.05),
        dgm.Renyi(alpha=0.5, epochs=60, batch_size=None, lr=0.05),
        dgm.CUBO(particles=64, epochs=100, batch_size=None, lr=0.05),
        dgm.FreeBits(nats=0.0, epochs=60, batch_size=None, lr=0.05, particles=4),
    ],
)
def test_learning_finds_the_posterior(method: Any) -> None:
    """With orthogonal columns the posterior is in the guide's family: shift 0, stretch 1."""
    program = LearnedLinear(diagonal=True)
    before = program.mean.detach().clone()
    x = dgm.sample(program, 200, seed=1)["x"]
    fit = dgm.learn(program, x, method=method, seed=0)
    assert abs(float(program.shift)) < 0.05 and abs(float(program.log_stretch)) < 0.08
    assert fit.cost.path == "recorded"
    if isinstance(method, dgm.CUBO):
        torch.testing.assert_close(program.mean.detach(), before)  # the guide alone
        assert all(p.requires_grad for p in program.parameters())


def test_every_path_takes_the_same_steps() -> None:
    x = torch.randn(40, 4)
    for method in (dgm.IWAE, dgm.FreeBits):
        fits = [dgm.learn(LearnedLinear(), x, method=method(epochs=3, backend=b), seed=0) for b in ("eager", "python")]
        torch.testing.assert_close(fits[0].program.state_dict(), fits[1].program.state_dict())


# -- free bits -----------------------------------------------------------------------------------------------------------------


def test_no_free_bits_are_the_elbo_and_some_are_below_it() -> None:
    program = LearnedLinear()
    with program.running():
        found = Particles(program, 5000)(X)
        analytic = divergences(found)["z"].reshape(3, 5000)
        exact = torch.distributions.kl_divergence(
            program.factorised_now(X), dist.Normal(torch.zeros(2), 1.0).to_event(1)
        )
        torch.testing.assert_close(analytic[:, 0], exact)
        entries = divergences(found, "dimension")["z"].reshape(3, 5000, 2)
        torch.testing.assert_close(entries[:, 0].sum(-1), exact)

        def value(method: Any) -> Tensor:
            torch.manual_seed(0)
            return method.objective(program, 3)(X).detach()

        elbo = -(found.by_draw(sum(found.likelihood.values())).mean() - exact.mean()).detach()
        assert abs(float(value(dgm.FreeBits(nats=0.0, particles=5000)) - elbo)) < 0.2
        plain = value(dgm.FreeBits(nats=0.0, particles=50))
        means = entries[:, 0].mean(0)  # of each dimension over examples
        for nats in (0.1, 1.0, 3.0):
            floored = value(dgm.FreeBits(nats=nats, particles=50))
            assert float(floored - plain) == pytest.approx(float((nats - means).clamp(min=0.0).sum()), abs=1e-4)
        whole = value(dgm.FreeBits(nats=5.0, per="site", particles=50))
        assert float(whole - plain) == pytest.approx(float((5.0 - exact.mean()).clamp(min=0.0)), abs=1e-4)


def test_dependent_entries_have_no_divergences_of_their_own() -> None:
    program = LinearGaussian(exact=True)
    program.unused = nn.Parameter(torch.zeros(()))
    with pytest.raises(TaskUnavailable, match=r"the entries of 'z' are not independent .* use per='site'"):
        dgm.learn(program, X, method=dgm.FreeBits(epochs=1))


# -- refusals ----------------------------------------------------------------------------------------------------------------


def test_gradients_that_do_not_exist_are_refused_in_words() -> None:
    bits = torch.ones(5, 4)
    for gradient in ("standard", "dreg", "sticking-the-landing"):
        with pytest.raises(TaskUnavailable, match=r"draws 'g' from Bernoulli, which is not reparameterised.*'vimco'"):
            dgm.learn(BeliefNetwork(), bits, method=dgm.IWAE(gradient=gradient, epochs=1))
    with pytest.raises(TaskUnavailable, match="not reparameterised"):
        dgm.learn(BeliefNetwork(), bits, method=dgm.CUBO(epochs=1))


class OneWay(dist.TransformedDistribution):
    """A map without an inverse: the density is known only of what was just drawn."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, [])
        self.last: Any = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return self

    def rsample(self, shape: Any = ()) -> Tensor:
        self.last = self.base_dist.rsample(shape)
        return self.last

    def log_prob(self, value: Tensor) -> Tensor:
        if value is not self.last:
            raise NotImplementedError("no inverse")
        return self.base_dist.log_prob(value)


def test_a_guide_whose_density_is_known_only_of_its_own_draw_has_the_standard_gradient_alone() -> None:
    loc = nn.Parameter(torch.zeros(()))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        where = pyro.param("loc", loc)
        with pyro.plate("data", len(x)):
            pyro.sample("z", OneWay(dist.Normal(where.expand(len(x)), 1.0)))

    x = torch.randn(6)
    dgm.learn(model, x, guide=guide, method=dgm.IWAE(epochs=1), seed=0)
    with pytest.raises(TaskUnavailable, match=r"density at any value of 'z'; use gradient='standard'"):
        dgm.learn(model, x, guide=guide, method=dgm.IWAE(epochs=1, gradient="dreg"), seed=0)


def test_programs_without_bounds_of_each_example_are_refused_in_words() -> None:
    def shared(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def over(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(pyro.param("m_loc", torch.tensor(0.0)), 1.0))

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def amortised(x: Tensor) -> None:
        with pyro.plate("data", 6):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.5)) * x, 1.0))

    x = torch.randn(6)
    with pytest.raises(TaskUnavailable, match=r"site 'm' of 'shared' lies outside the plate 'data'"):
        dgm.learn(shared, x, guide=over, method=dgm.IWAE(epochs=1))
    with pytest.raises(TaskUnavailable, match=r"'shared' has no guide"):
        dgm.learn(shared, x, method=dgm.IWAE(epochs=1))
    with pytest.raises(ProgramError, match=r"its size is written into model or guide"):
        dgm.learn(fixed, x, guide=amortised, method=dgm.IWAE(epochs=1))
    with pytest.raises(TaskUnavailable, match="one row for each"):
        dgm.learn(shared, torch.tensor(1.0), guide=over, method=dgm.IWAE(epochs=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dgm.IWAE(particles=0), "particles must be a whole number, at least 1"),
        (lambda: dgm.IWAE(gradient="rlax"), "gradient must be one of 'standard'"),
        (lambda: dgm.IWAE(particles=1, gradient="vimco"), "at least 2 for gradient='vimco'"),
        (lambda: dgm.Renyi(alpha=-1.0), "alpha must be at least 0"),
        (lambda: dgm.CUBO(order=0.5), "order must be at least 1"),
        (lambda: dgm.FreeBits(nats=-1.0), "nats must be a number of nats, at least 0"),
        (lambda: dgm.FreeBits(per="row"), "per must be 'dimension' or 'site'"),
    ],
)
def test_wrong_options_are_named(make: Any, message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        make()


def test_which_parameters_are_the_guides_own() -> None:
    program = BeliefNetwork()
    with program.running():
        own = guides_own(program, (torch.ones(2, 4),), list(program.parameters()))
    names = [name for (name, _), owned in zip(program.named_parameters(), own, strict=True) if owned]
    assert names == ["up.weight", "up.bias", "upper.weight", "upper.bias"]


def test_below_one_the_kl_weight_is_no_bound() -> None:
    """beta-VAE: the objective with beta < 1 exceeds the evidence, so that validation and score use beta = 1."""
    program = LearnedLinear(diagonal=True)
    with torch.no_grad():
        program.shift.zero_()
        program.log_stretch.zero_()
    method = dgm.SVI(elbo="mean_field", kl_weight=0.0, particles=20)
    with program.running():
        objective = method.objective(program, 3)
        objective.begin_epoch(1)
        learned = float(objective(X).detach())
        valid = float(method.validation(program, 3)(X))
    evidence = float(program.evidence(X).mean())
    assert -learned > evidence + 0.5 and -valid < evidence + 0.5
