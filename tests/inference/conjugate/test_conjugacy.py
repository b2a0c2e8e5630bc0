"""Conjugacy recognised from densities: closed forms, evidence, linear-Gaussian programs, and what must be refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import biject_to

import ppl_dgm as dgm
from ppl_dgm.errors import NumericalError, TaskUnavailable
from ppl_dgm.inference.conjugate.conjugate_posterior import recognise_posterior
from ppl_dgm.inference.conjugate.factors import Factors
from ppl_dgm.program import as_program

F64 = torch.float64
COUNTS = torch.tensor([3.0, 0.0, 2.0, 5.0], dtype=F64)
REALS = torch.tensor([1.2, -0.4, 0.7, 2.1, 0.3], dtype=F64)


def t(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64)


def pair(prior, likelihood, data):
    """One latent site, and observations in a plate given it."""

    def story():
        z = pyro.sample("z", prior)
        with pyro.plate("rows", len(data)):
            pyro.sample("y", likelihood(z), obs=data)

    return story


# name -> (prior, likelihood, data, posterior worked out by hand)
N = len(REALS)
PAIRS = {
    "beta-bernoulli": (dist.Beta(t(2), t(3)), dist.Bernoulli, t(1, 0, 1, 1), dist.Beta(t(5), t(4))),
    "beta-binomial": (dist.Beta(t(2), t(3)), lambda p: dist.Binomial(6, p), COUNTS, dist.Beta(t(12), t(17))),
    "beta-geometric": (dist.Beta(t(2), t(3)), dist.Geometric, COUNTS, dist.Beta(t(6), t(13))),
    "beta-negative-binomial": (
        dist.Beta(t(2), t(3)),
        lambda p: dist.NegativeBinomial(t(4), probs=p),
        COUNTS,
        dist.Beta(t(12), t(19)),
    ),
    "uniform-bernoulli": (dist.Uniform(t(0), t(1)), dist.Bernoulli, t(1, 0, 1, 1), dist.Beta(t(4), t(2))),
    "gamma-poisson": (dist.Gamma(t(2), t(3)), dist.Poisson, COUNTS, dist.Gamma(t(12), t(7))),
    "exponential-exponential": (dist.Exponential(t(3)), dist.Exponential, COUNTS, dist.Gamma(t(5), t(13))),
    "gamma-gamma": (
        dist.Gamma(t(2), t(3)),
        lambda b: dist.Gamma(t(1.5), b),
        COUNTS + 1,
        dist.Gamma(t(8), t(17)),
    ),
    "gamma-precision": (
        dist.Gamma(t(2), t(3)),
        lambda a: dist.Normal(t(0.5), a.rsqrt()),
        REALS,
        dist.Gamma(t(2 + N / 2), 3 + (REALS - 0.5).square().sum() / 2),
    ),
    "inverse-gamma-variance": (
        dist.InverseGamma(t(2), t(3)),
        lambda v: dist.Normal(t(0.5), v.sqrt()),
        REALS,
        dist.InverseGamma(t(2 + N / 2), 3 + (REALS - 0.5).square().sum() / 2),
    ),
    "normal-normal": (
        dist.Normal(t(1), t(2)),
        lambda m: dist.Normal(m, t(0.5)),
        REALS,
        dist.Normal((0.25 + 4 * REALS.sum()) / (0.25 + 4 * N), t((0.25 + 4 * N) ** -0.5)),
    ),
    "dirichlet-categorical": (
        dist.Dirichlet(t(1, 2, 3)),
        dist.Categorical,
        torch.tensor([0, 0, 2, 1]),
        dist.Dirichlet(t(3, 3, 4)),
    ),
    "dirichlet-multinomial": (
        dist.Dirichlet(t(1, 2, 3)),
        lambda p: dist.Multinomial(4, p),
        torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]], dtype=F64),
        dist.Dirichlet(t(4, 5, 5)),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_conjugate_pairs_are_recognised_with_posterior_and_evidence(name: str) -> None:
    prior, likelihood, data, expected = PAIRS[name]
    post = dgm.infer(pair(prior, likelihood, data), method=dgm.Exact(draws=4000), seed=0)
    found = post.exact["z"]
    assert type(found) is type(expected) and post.kind == "exact"
    for parameter in expected.arg_constraints:
        if parameter in vars(expected) or parameter.startswith("concentration"):
            torch.testing.assert_close(getattr(found, parameter), getattr(expected, parameter), rtol=1e-9, atol=1e-9)
    z = biject_to(prior.support)(torch.full((2,) if prior.event_shape else (), 0.3, dtype=F64))
    evidence = prior.log_prob(z) + likelihood(z).log_prob(data).sum() - expected.log_prob(z)  # Chib's identity
    assert post.log_evidence.kind == "exact"
    assert float(post.log_evidence.value) == pytest.approx(float(evidence), abs=1e-9)
    error = 4.5 * expected.variance.sqrt() / math.sqrt(4000) if name != "inverse-gamma-variance" else 0.2
    assert bool(((post.draws["z"].mean((0, 1)) - expected.mean).abs() < error).all())


def test_a_recognised_program_is_answered_exactly_unasked() -> None:
    story = pair(dist.Beta(t(2), t(3)), lambda p: dist.Binomial(6, p), COUNTS)
    post = dgm.infer(story, seed=0)
    assert post.kind == "exact" and post.draws["z"].shape == (1, 1000) and "z: Beta" in post.how
    score = dgm.score(story)
    p = torch.linspace(0, 1, 20001, dtype=F64)[1:-1]
    logs = dist.Beta(t(2), t(3)).log_prob(p) + dist.Binomial(6, p[:, None]).log_prob(COUNTS).sum(1)
    assert score.kind == "exact"
    assert float(score.value) == pytest.approx(float(torch.trapezoid(logs.exp(), p).log()), abs=1e-6)


def test_looking_for_a_closed_form_leaves_the_random_numbers_alone() -> None:
    program = as_program(logistic_regression)
    x, y = torch.randn(6, 2), torch.ones(6)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with program.running():
        assert recognise_posterior(program, x, y) is None
    assert torch.equal(torch.rand(3), expected)


def test_elements_of_plates_get_their_own_parameters() -> None:
    y = torch.tensor([[3.0, 1.0, 4.0], [0.0, 2.0, 0.0]], dtype=F64)  # [rows, groups]

    def story(y):
        with pyro.plate("groups", 3, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(t(1, 2, 3), t(2)))
            with pyro.plate("rows", 2, dim=-2):
                pyro.sample("y", dist.Poisson(rate), obs=y)

    post = dgm.infer(story, y, seed=0)
    torch.testing.assert_close(post.exact["rate"].concentration, t(1, 2, 3) + y.sum(0))
    torch.testing.assert_close(post.exact["rate"].rate, t(4, 4, 4))


def test_observations_in_the_plate_data_have_evidence_one_by_one() -> None:
    """Probabilistic PCA in both of its forms: the latents summed by hand, and by recognition."""
    w, x = torch.randn(2, 3, dtype=F64), torch.randn(6, 3, dtype=F64)

    def ppca(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=F64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ w, 0.5).to_event(1), obs=x)

    marginal = dist.MultivariateNormal(torch.zeros(3, dtype=F64), w.T @ w + 0.25 * torch.eye(3, dtype=F64))
    score = dgm.score(ppca, x)
    assert score.kind == "exact" and score.value.shape == (6,)
    torch.testing.assert_close(score.value, marginal.log_prob(x), rtol=1e-9, atol=1e-9)
    post = dgm.infer(ppca, x, seed=0)
    precision = torch.eye(2, dtype=F64) + 4 * w @ w.T
    torch.testing.assert_close(post.exact["z"].mean, torch.linalg.solve(precision, 4 * w @ x.T).T)
    torch.testing.assert_close(post.exact["z"].covariance_matrix[0], torch.linalg.inv(precision))


def random_walk(y):
    level = pyro.sample("level", dist.Normal(t(1), t(2)))
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2, dtype=F64), t(0.3)).to_event(1))
    for i in range(len(y)):
        level = pyro.sample(f"z_{i}", dist.Normal(0.9 * level + shift[i % 2], t(0.7)))
        pyro.sample(f"y_{i}", dist.Normal(level, t(0.4)), obs=y[i])


def test_a_state_space_model_against_its_dense_gaussian() -> None:
    """The joint of all sites is built column by column from the story's recursion."""
    steps = 12
    y = torch.randn(steps, dtype=F64)
    sd = torch.tensor([2.0, 0.3, 0.3] + [0.7] * steps, dtype=F64)  # of level, shift, the steps' noises
    paths = torch.zeros(3 + steps, 3 + steps, dtype=F64)  # how each site is made of them
    paths[:3, :3] = torch.eye(3)
    mean = torch.zeros(3 + steps, dtype=F64)
    mean[0] = 1.0
    for i in range(steps):
        before = 0 if i == 0 else 2 + i
        paths[3 + i] = 0.9 * paths[before] + paths[1 + i % 2]
        paths[3 + i, 3 + i] += 1
        mean[3 + i] = 0.9 * mean[before]
    prior = paths @ sd.square().diag() @ paths.T
    seen = prior[3:, 3:] + 0.16 * torch.eye(steps, dtype=F64)
    gain = prior[:, 3:] @ torch.linalg.inv(seen)
    expected, spread = mean + gain @ (y - mean[3:]), (prior - gain @ prior[3:]).diagonal().sqrt()
    post = dgm.infer(random_walk, y, method=dgm.Exact(draws=500), seed=0)
    found = [post.exact["level"], *(post.exact[f"z_{i}"] for i in range(steps))]
    order = [0, *range(3, 3 + steps)]
    torch.testing.assert_close(torch.stack([d.mean for d in found]), expected[order], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(torch.stack([d.stddev for d in found]), spread[order], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(post.exact["shift"].mean, expected[1:3], rtol=1e-8, atol=1e-9)
    evidence = dist.MultivariateNormal(mean[3:], seen).log_prob(y)
    assert float(post.log_evidence.value) == pytest.approx(float(evidence), abs=1e-8)
    joint = torch.stack([post.draws[f"z_{i}"][0] for i in range(steps)], 1)  # neighbours are drawn together
    exact = (prior - gain @ prior[3:])[3:, 3:]
    assert float((torch.cov(joint.T) - exact).abs().max()) < 6 * float(exact.max()) / math.sqrt(500)


def normal_gamma_regression(x, y):
    precision = pyro.sample("precision", dist.Gamma(t(2), t(3)))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1], dtype=F64), 2 * precision.rsqrt()).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, precision.rsqrt()), obs=y)


def test_the_normal_gamma_posterior_is_a_block_given_another() -> None:
    torch.manual_seed(1)
    x = torch.randn(15, 3, dtype=F64)
    y = x @ t(1, 2, -1) + 0.4 * torch.randn(15, dtype=F64)
    post = dgm.infer(normal_gamma_regression, x, y, method=dgm.Exact(draws=6000), seed=0)
    inner = x.T @ x + torch.eye(3, dtype=F64) / 4
    centre = torch.linalg.solve(inner, x.T @ y)
    rate = 3 + (y @ y - centre @ inner @ centre) / 2
    torch.testing.assert_close(post.exact["precision"].concentration, t(2 + 15 / 2))
    torch.testing.assert_close(post.exact["precision"].rate, rate)
    assert "beta" not in post.exact  # a multivariate t, of which there are draws
    covariance = rate / (2 + 15 / 2 - 1) * torch.linalg.inv(inner)
    beta = post.draws["beta"][0]
    assert bool(((beta.mean(0) - centre).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(6000)).all())
    assert float((torch.cov(beta.T) / covariance - 1).diagonal().abs().max()) < 0.12
    evidence = _normal_gamma_evidence(x, y, inner, rate)
    assert float(post.log_evidence.value) == pytest.approx(float(evidence), abs=1e-8)


def _normal_gamma_evidence(x: Tensor, y: Tensor, inner: Tensor, rate: Tensor) -> Tensor:
    n, d = x.shape
    halves = (torch.linalg.slogdet(torch.eye(d, dtype=F64) / 4)[1] - torch.linalg.slogdet(inner)[1]) / 2
    shape = t(2 + n / 2)
    return (
        halves - n / 2 * math.log(2 * math.pi) + 2 * math.log(3) - shape * rate.log() + shape.lgamma() - t(2).lgamma()
    )


def test_independent_blocks_of_several_families_at_once() -> None:
    def story(c, n, k):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Multinomial(10, p), obs=c)
        pyro.sample("n", dist.Exponential(rate), obs=n)
        pyro.sample("k", dist.Normal(mean, 1.0), obs=k)

    c, n, k = torch.tensor([3.0, 4.0, 3.0]), torch.tensor(2.0), torch.tensor(0.5)
    post = dgm.infer(story, c, n, k, seed=0)
    assert post.draws["rate"].dtype == torch.float32 and set(post.exact) == {"p", "rate", "mean"}
    expected = (
        dist.DirichletMultinomial(torch.ones(3), total_count=10).log_prob(c)
        + math.log(1 / (1 + 2.0) ** 2)
        + dist.Normal(0.0, math.sqrt(2)).log_prob(k)
    )
    assert float(post.log_evidence.value) == pytest.approx(float(expected), abs=1e-5)


def test_flat_priors_and_factors_make_the_evidence_unnormalised() -> None:
    def story(y):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    post = dgm.infer(story, REALS, seed=0)
    assert post.log_evidence.kind == "unnormalised"
    assert float(post.exact["mean"].mean) == pytest.approx(float(REALS.mean()), abs=1e-9)


# -- what is no closed form ----------------------------------------------------------------------------------


def logistic_regression(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


def barely_logistic():
    """The link is nearly linear near zero: test points have to go far enough."""
    z = pyro.sample("z", dist.Normal(t(0), t(0.01)))
    pyro.sample("y", dist.Normal(torch.tanh(z), t(0.01)), obs=t(0.005))


def scale_of_student():
    z = pyro.sample("z", dist.Gamma(t(2), t(3)))
    pyro.sample("y", dist.StudentT(t(4), t(0), z.rsqrt()), obs=t(1.3))


def truncated_by_data():
    z = pyro.sample("z", dist.Gamma(t(2), t(3)))
    pyro.sample("y", dist.Uniform(t(0), z), obs=t(0.4))


def half_cauchy():
    z = pyro.sample("z", dist.HalfCauchy(t(1)))
    pyro.sample("y", dist.Poisson(z), obs=t(3))


def through_children():
    """The site is conjugate to its observation, but not to the scale that a child takes from it."""
    z = pyro.sample("z", dist.Normal(t(0), t(1)))
    w = pyro.sample("w", dist.Normal(t(0), (z / 2).exp()))
    pyro.sample("y", dist.Normal(z + w, t(1)), obs=t(0.3))


def jump():
    """The gradient alone would not see it."""
    z = pyro.sample("z", dist.Normal(t(0), t(1)))
    pyro.factor("jump", (z > 0.4).to(F64) * 0.5)


def laplace():
    pyro.sample("z", dist.Laplace(t(0), t(1)))


def semi_conjugate():
    """Each site is conjugate given the other; the joint posterior is none that is known."""
    mean = pyro.sample("mean", dist.Normal(t(0), t(10)))
    precision = pyro.sample("precision", dist.Gamma(t(2), t(3)))
    with pyro.plate("rows", N):
        pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=REALS)


def bilinear():
    a = pyro.sample("a", dist.Normal(t(0), t(1)))
    b = pyro.sample("b", dist.Normal(t(0), t(1)))
    pyro.sample("y", dist.Normal(a * b, t(1)), obs=t(1))


def coupled_elements():
    """Within a plate, but the elements meet in one observation by a product."""
    with pyro.plate("two", 2):
        a = pyro.sample("a", dist.Gamma(t(2), t(1)))
    pyro.sample("y", dist.Exponential(a.prod(-1)), obs=t(1))


REFUSED = [
    barely_logistic, scale_of_student, truncated_by_data, half_cauchy, through_children, jump, laplace, semi_conjugate,
    bilinear, coupled_elements,
]  # fmt: skip


@pytest.mark.parametrize("story", REFUSED, ids=lambda story: story.__name__)
def test_what_is_not_conjugate_is_refused(story) -> None:
    program = as_program(story)
    with program.running():
        assert recognise_posterior(program) is None
    with pytest.raises(TaskUnavailable, match="continuous"):
        dgm.infer(program, method="exact")


def test_nothing_is_taken_for_conjugate_at_random() -> None:
    """Random smooth tilts of a conjugate density, down to one part in a thousand, are all seen."""
    for power in torch.linspace(0.2, 2.7, 12, dtype=F64):

        def story(power=power):
            z = pyro.sample("z", dist.Gamma(t(2), t(3)))
            pyro.factor("tilt", -0.001 * z**power)

        program = as_program(story)
        with program.running():
            assert recognise_posterior(program) is None, float(power)


def test_a_posterior_without_a_finite_integral_names_its_site() -> None:
    def story():
        pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("rate", dist.Gamma(1.0, 1.0))

    with pytest.raises(NumericalError, match=r"'mean'.*proper prior"):
        dgm.infer(story, method="exact")


def test_double_precision_is_used_where_the_program_is_single() -> None:
    class Linear(dgm.Program):
        def __init__(self) -> None:
            super().__init__()
            self.map = torch.nn.Linear(2, 3)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.map(z), 0.5).to_event(1), obs=x)

    program, x = Linear(), torch.randn(4, 3)
    with program.running():
        factors = Factors(program, x)
    assert factors.dtype == F64 and factors.native == torch.float32
    assert next(program.parameters()).dtype == torch.float32
    post = dgm.infer(program, x, seed=0)
    assert post.kind == "exact" and post.draws["z"].dtype == torch.float32
