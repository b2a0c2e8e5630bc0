"""Every family of mixture against closed forms, quadrature, other libraries, brute force and its own gradient."""

import math

import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import TraceEnum_ELBO
from scipy.special import ive
from sklearn.mixture import GaussianMixture
from torch.func import functional_call

import ppl_dgm as dgm
from ppl_dgm.distributions import VonMisesFisher, log_bessel
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import (
    MixtureOfBernoullis,
    MixtureOfCategoricals,
    MixtureOfGaussians,
    MixtureOfMixedColumns,
    MixtureOfPoissons,
    MixtureOfStudents,
    MixtureOfVonMisesFishers,
)

TABLE = ["gaussian", "bernoulli", "gaussian", "poisson", "categorical-3"]
FAMILIES = {
    "diagonal": lambda k=3, **o: MixtureOfGaussians(5, k, **o),
    "spherical": lambda k=3, **o: MixtureOfGaussians(5, k, "spherical", **o),
    "tied": lambda k=3, **o: MixtureOfGaussians(5, k, "tied", **o),
    "full": lambda k=3, **o: MixtureOfGaussians(5, k, "full", **o),
    "low-rank": lambda k=3, **o: MixtureOfGaussians(5, k, "low-rank", rank=1, **o),
    "low-rank, two factors": lambda k=3, **o: MixtureOfGaussians(5, k, "low-rank", rank=2, **o),
    "bernoulli": lambda k=3, **o: MixtureOfBernoullis(5, k, **o),
    "bernoulli, no prior": lambda k=3, **o: MixtureOfBernoullis(5, k, 0.0, 0.0, **o),
    "bernoulli, prior on weights": lambda k=3, **o: MixtureOfBernoullis(5, k, 1.0, 0.5, 2.0, **o),
    "categorical": lambda k=3, **o: MixtureOfCategoricals(5, 3, k, **o),
    "poisson": lambda k=3, **o: MixtureOfPoissons(5, k, **o),
    "mixed": lambda k=3, **o: MixtureOfMixedColumns(TABLE, k, **o),
    "student": lambda k=3, **o: MixtureOfStudents(5, k, **o),
    "student, diagonal": lambda k=3, **o: MixtureOfStudents(5, k, "diagonal", **o),
    "student, given df": lambda k=3, **o: MixtureOfStudents(5, k, df=4.0, **o),
    "von mises-fisher": lambda k=3, **o: MixtureOfVonMisesFishers(5, k, **o),
}
WITH_HOLES = [name for name in FAMILIES if not name.startswith(("student", "von"))]
EVERY = pytest.mark.parametrize("family", FAMILIES)


def make(family, k=3, seed=0, **options):
    """A float64 program with its starting parameters shaken."""
    torch.manual_seed(seed)
    program = FAMILIES[family](k, **options).double()
    with torch.no_grad():
        program.weight_logits.normal_(0, 0.3)
    return program


def three_groups(family, n=120, seed=1):
    """Rows of three unlike components of the family, [n, 5]."""
    torch.manual_seed(seed)
    noise = torch.randn(n, 5, dtype=torch.float64)
    if family.startswith("student"):
        noise = noise / (torch.distributions.Chi2(2.5).sample((n, 1)) / 2.5).sqrt()
    x = noise + 3 * torch.randint(3, (n, 1)) * torch.tensor([1.0, -1, 0.5, 0, 1])
    if family.startswith("bernoulli"):
        return (x > 1).double()
    if family == "categorical":
        return x.round().clamp(0, 2).long()
    if family == "poisson":
        return x.abs().mul(3).round()
    if family.startswith("von"):
        return torch.nn.functional.normalize(x, dim=-1)
    if family == "mixed":
        parts = [x[:, 0], (x[:, 1] > 0).double(), x[:, 2], x[:, 3].abs().mul(3).round(), x[:, 4].round().clamp(0, 2)]
        return torch.stack(parts, -1)
    return x


def with_holes(x, share=0.25, seed=2):
    """x in float64 with NaN in a share of the entries of three columns; one row is empty."""
    x = x.double().clone()
    holes = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    holes[:, [0, 2]] = False
    holes[0] = True
    return x.masked_fill(holes, torch.nan)


def slopes(program, x):
    """The gradient of the mean log likelihood plus log prior in all parameters that are learned."""
    value = program.log_prob(program.as_data(x)).mean()
    if hasattr(program, "log_prior"):
        value = value + program.log_prior() / len(x)
    return torch.autograd.grad(value, [p for p in program.parameters() if p.requires_grad])


# -- expectation maximisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
@EVERY
def test_no_em_step_lowers_the_objective(family, holes):
    if holes and family not in WITH_HOLES:
        pytest.skip("it takes no holes")
    x = with_holes(three_groups(family)) if holes else three_groups(family)
    for seed in range(2):
        program = make(family, 4, seed, **({"missing": True} if holes else {}))
        fit = dgm.learn(program, x, method=dgm.EM(steps=40, tolerance=0.0), seed=seed)
        column = "penalised" if "penalised" in fit.history else "objective"
        assert float(fit.history[column].diff().max()) <= 1e-9
        assert fit.history[column].iloc[-1] < fit.history[column].iloc[0]


@pytest.mark.parametrize("holes", [False, True])
@EVERY
def test_where_em_stops_the_likelihood_of_what_is_seen_has_no_slope(family, holes):
    if holes and family not in WITH_HOLES:
        pytest.skip("it takes no holes")
    if family in ("bernoulli, no prior", "low-rank, two factors"):
        pytest.skip("its optimum may lie on the edge")
    x = with_holes(three_groups(family)) if holes else three_groups(family)
    program = make(family, 2, **({"missing": True} if holes else {}))
    dgm.learn(program, x, method=dgm.EM(steps=700, tolerance=1e-13), seed=0)
    assert max(float(slope.abs().max()) for slope in slopes(program, x)) < 2e-5


@EVERY
def test_more_components_than_rows_and_duplicates_give_no_nan(family):
    x = three_groups(family, 3)[[0, 0, 1, 2]]
    program = make(family, 7)
    fit = dgm.learn(program, x, method=dgm.EM(steps=20, tolerance=0.0), seed=0)
    assert all(bool(value.isfinite().all()) for value in program.state_dict().values())
    assert bool(dgm.score(program, x).value.isfinite().all()) and fit.history["objective"].notna().all()


@EVERY
def test_minibatch_em_over_all_rows_at_once_is_em(family):
    x = three_groups(family)
    first, second = make(family), make(family)
    torch.manual_seed(0)
    first.em_start(x)
    second.load_state_dict(first.state_dict())
    if hasattr(first, "origin") and first.origin() is not None:
        second.centre.copy_(first.centre)
    value = first.em_step(x)
    other, statistics = second.em_statistics(x)
    second.em_maximise(statistics, len(x))
    assert float(value) == pytest.approx(float(other), abs=1e-12)
    if family.startswith("student") and "df" not in family:
        first.log_df.data.copy_(second.log_df)  # over all rows nu climbs further
    for name, parameter in first.named_parameters():
        assert torch.allclose(parameter, second.get_parameter(name), atol=1e-8), name


@EVERY
def test_minibatch_em_comes_near_to_em(family):
    x = three_groups(family, 300)
    whole, parts = make(family, 2), make(family, 2)
    best = dgm.learn(whole, x, method=dgm.EM(restarts=2, tolerance=1e-3), seed=0)
    method = dgm.OnlineEM(epochs=5, batch_size=60, polish=0)
    dgm.learn(parts, x, method=method, seed=0)
    start = make(family, 1)
    dgm.learn(start, x, seed=0)
    reached, one = (float(dgm.score(p, x).mean().value) for p in (parts, start))
    top = float(dgm.score(best.program, x).mean().value)
    assert reached > one + 0.6 * (top - one)


@EVERY
def test_the_gradient_learner_climbs_the_same_likelihood(family):
    x = three_groups(family)
    program = make(family)
    torch.manual_seed(0)
    program.em_start(x)
    before = float(dgm.score(program, x).mean().value)
    dgm.learn(program, x, method=dgm.MaximumLikelihood(epochs=30, batch_size=None, lr=0.02), seed=0)
    assert float(dgm.score(program, x).mean().value) > before + 0.05


# -- the story -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holes", [False, True])
@EVERY
def test_the_models_own_enumeration_gives_the_score_and_the_responsibilities(family, holes):
    if holes and family not in WITH_HOLES:
        pytest.skip("it takes no holes")
    program = make(family, **({"missing": True} if holes else {}))
    program.em_start(three_groups(family))
    x = three_groups(family, 9)
    x = with_holes(x) if holes else x
    with program.running():
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(program.run_model, lambda x: None, x)
    score = dgm.score(program, x)
    assert -loss == pytest.approx(float(score.value.sum()), abs=1e-8) and score.kind == "exact"
    joint = []
    for k in range(3):
        given = pyro.poutine.condition(program.model, {"k": torch.full((len(x),), k)})
        trace = pyro.poutine.trace(given).get_trace(x)
        trace.compute_log_prob()
        joint.append(trace.nodes["k"]["log_prob"] + trace.nodes["x"]["log_prob"])
    probs = dgm.infer(program, x, seed=0).exact["k"].probs
    assert torch.allclose(probs, torch.stack(joint, -1).softmax(-1), atol=1e-9)


@pytest.mark.parametrize("family", WITH_HOLES)
def test_holes_are_summed_or_integrated_out(family):
    """Against the sum, or the trapezium rule, over the values of the one entry that is missing."""
    program = make(family, missing=True)
    program.em_start(three_groups(family))
    x = three_groups(family, 4).double()
    column = 4 if family != "mixed" else 1
    discrete = family.startswith(("bernoulli", "categorical", "poisson", "mixed"))
    values = torch.arange(2.0 if family[:4] in ("bern", "mixe") else 3.0 if family == "categorical" else 120.0)
    values = values.double() if discrete else torch.linspace(-60, 60, 6001, dtype=torch.float64)
    every = x.unsqueeze(1).repeat(1, len(values), 1)
    every[:, :, column] = values
    density = dgm.score(program, every.flatten(0, 1)).value.reshape(4, -1).exp()
    total = density.sum(-1) if discrete else torch.trapezoid(density, values, dim=-1)
    x[:, column] = torch.nan
    assert torch.allclose(dgm.score(program, x).value, total.log(), atol=1e-8)
    empty = torch.full((1, 5), torch.nan, dtype=torch.float64)
    assert float(dgm.score(program, empty).value) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(dgm.infer(program, empty).exact["k"].probs[0], program.weights, atol=1e-12)


def test_holes_are_refused_where_the_program_does_not_expect_them():
    with pytest.raises(DataError, match="missing"):
        dgm.learn(make("diagonal"), with_holes(three_groups("diagonal")))


def test_minus_one_is_a_value_of_a_gaussian_and_a_hole_of_a_count():
    x = torch.tensor([[-1.0, 2, 0, 1, 1]], dtype=torch.float64)
    gaussian, plain = make("full", missing=True), make("full")
    assert torch.allclose(dgm.score(gaussian, x).value, dgm.score(plain, x).value, atol=1e-12)
    counts = make("poisson", missing=True)
    hole = x.masked_fill(x < 0, torch.nan)
    assert torch.equal(dgm.score(counts, x).value, dgm.score(counts, hole).value)


@EVERY
def test_samples_have_the_moments_of_the_density(family):
    """E[score's gradient] = 0 under the program's own draws: each coordinate within 5 standard errors."""
    program = make(family)
    program.em_start(three_groups(family))
    x = dgm.sample(program, 3000, seed=0)["x"]
    learned = {name: p.detach() for name, p in program.named_parameters() if p.requires_grad}

    def one(parameters, row):
        return functional_call(program, parameters, (row,), {}, strict=False)

    names = [name for name in learned]
    found = []
    for name in names:
        base = program.get_parameter(name)
        direction = torch.randn_like(base)
        step = 1e-5
        with torch.no_grad():
            base.add_(step * direction)
            above = program.log_prob(program.as_data(x)).clone()
            base.sub_(2 * step * direction)
            below = program.log_prob(program.as_data(x)).clone()
            base.add_(step * direction)
        found.append((above - below) / (2 * step))
    for name, slope in zip(names, found):
        error = float(slope.std() / math.sqrt(len(x)))
        assert abs(float(slope.mean())) < 5 * error + 1e-9, name


# -- closed forms and other libraries ------------------------------------------------------------------------


def test_tied_em_goes_where_scikit_learns_goes_from_the_same_start():
    x = three_groups("tied", 300)
    program = MixtureOfGaussians(5, 3, "tied", floor=1e-6).double()
    program.em_start(x)
    reference = GaussianMixture(
        3, covariance_type="tied", reg_covar=1e-12, tol=1e-11, max_iter=2000, weights_init=[1 / 3] * 3,
        means_init=program.means.detach().numpy(), precisions_init=torch.linalg.inv(program.covariances[0].detach()).numpy(),
    ).fit(x.numpy())  # fmt: skip
    dgm.learn(program, x, method=dgm.EM(steps=2000, tolerance=1e-12, warm_start=True))
    assert float(dgm.score(program, x).mean().value) == pytest.approx(reference.score(x.numpy()), abs=1e-6)
    assert torch.allclose(program.covariances[0], torch.as_tensor(reference.covariances_), atol=1e-4)
    program.assign(*map(torch.as_tensor, (reference.weights_, reference.means_, reference.covariances_)))
    assert torch.allclose(dgm.score(program, x).value, torch.as_tensor(reference.score_samples(x.numpy())), atol=1e-8)


def test_the_first_em_steps_are_scikit_learns():
    x = three_groups("full", 200)
    for covariance, name in (("full", "full"), ("tied", "tied"), ("diagonal", "diag"), ("spherical", "spherical")):
        program = MixtureOfGaussians(5, 3, covariance, floor=1e-9).double()
        program.em_start(x)
        inverse = torch.linalg.inv(program.covariances.detach())
        start = {
            "full": inverse,
            "tied": inverse[0],
            "diag": inverse.diagonal(dim1=1, dim2=2),
            "spherical": inverse[:, 0, 0],
        }
        with pytest.warns(Warning, match="converge"):
            reference = GaussianMixture(
                3, covariance_type=name, reg_covar=0.0, tol=0.0, max_iter=3, weights_init=[1 / 3] * 3,
                means_init=program.means.detach().numpy(), precisions_init=start[name].numpy(),
            ).fit(x.numpy())  # fmt: skip
        for _ in range(3):
            program.em_step(x)
        assert torch.allclose(program.means, torch.as_tensor(reference.means_), atol=1e-9), name
        assert torch.allclose(program.weights, torch.as_tensor(reference.weights_), atol=1e-10), name


@pytest.mark.parametrize("family", ["tied", "full"])
def test_one_gaussian_is_the_samples_mean_and_covariance(family):
    x = three_groups(family)
    program = make(family, 1)
    dgm.learn(program, x, seed=0)
    assert torch.allclose(program.means[0], x.mean(0), atol=1e-10)
    assert torch.allclose(program.covariances[0], torch.cov(x.mT, correction=0), atol=1e-10)


def test_factor_analysers_of_full_rank_are_full_covariances():
    x = three_groups("full")
    full, factors = MixtureOfGaussians(5, 2, "full").double(), MixtureOfGaussians(5, 2, "low-rank", rank=5).double()
    for program in (full, factors):
        dgm.learn(program, x, method=dgm.EM(steps=500, tolerance=1e-12), seed=0)
    assert torch.allclose(factors.covariances, full.covariances, atol=1e-4)
    assert torch.allclose(dgm.score(factors, x).value, dgm.score(full, x).value, atol=1e-5)


def test_one_factor_analyser_is_scikit_learns_factor_analysis():
    from sklearn.decomposition import FactorAnalysis

    torch.manual_seed(0)
    x = torch.randn(400, 2, dtype=torch.float64) @ torch.randn(2, 6, dtype=torch.float64)
    x = x + (0.5 + torch.rand(6)) * torch.randn(400, 6, dtype=torch.float64)
    reference = FactorAnalysis(2, tol=1e-9, max_iter=3000, svd_method="lapack").fit(x.numpy())
    program = MixtureOfGaussians(6, 1, "low-rank", rank=2, floor=1e-6).double()
    dgm.learn(program, x, method=dgm.EM(steps=1000, tolerance=1e-12), seed=0)
    assert float(dgm.score(program, x).mean().value) == pytest.approx(reference.score(x.numpy()), abs=1e-6)


def test_holes_in_two_columns_have_anderson_s_closed_form():
    """With one column complete, the maximum likelihood factorises: p(x0) by all rows, p(x1 | x0) by the complete."""
    torch.manual_seed(0)
    x = torch.randn(200, 2, dtype=torch.float64) @ torch.tensor([[1.0, 0.8], [0, 0.5]], dtype=torch.float64)
    x[120:, 1] = torch.nan
    program = MixtureOfGaussians(2, 1, "full", missing=True).double()
    dgm.learn(program, x, method=dgm.EM(steps=3000, tolerance=1e-15), seed=0)
    a, b = x[:120, 0], x[:120, 1]
    both = torch.cov(torch.stack([a, b]), correction=0)
    slope = both[0, 1] / both[0, 0]
    found, sigma = program.means[0].detach(), program.covariances[0].detach()
    mean = b.mean() + slope * (x[:, 0].mean() - a.mean())
    variance = both[1, 1] + slope**2 * (x[:, 0].var(correction=0) - both[0, 0])
    assert float(found[1]) == pytest.approx(float(mean), abs=1e-6)
    assert float(sigma[1, 1]) == pytest.approx(float(variance), abs=1e-6)
    assert float(sigma[0, 1]) == pytest.approx(float(slope * x[:, 0].var(correction=0)), abs=1e-6)


def test_one_component_of_counts_and_coins_is_the_smoothed_mean():
    x = three_groups("poisson")
    poisson = MixtureOfPoissons(5, 1, pseudo_count=0.0).double()
    dgm.learn(poisson, x, seed=0)
    assert torch.allclose(poisson.rates[0], x.mean(0), atol=1e-12)
    x = three_groups("bernoulli")
    coins = MixtureOfBernoullis(5, 1, heads=2.0, tails=1.0).double()
    dgm.learn(coins, x, seed=0)
    assert torch.allclose(coins.theta[0], (x.sum(0) + 2) / (len(x) + 3), atol=1e-12)


def test_bernoullis_score_as_the_same_binary_categoricals():
    x = three_groups("bernoulli")
    coins = make("bernoulli")
    same = MixtureOfCategoricals(5, 2, 3).double()
    with torch.no_grad():
        same.weight_logits.copy_(coins.weight_logits)
        same.logits.copy_(torch.stack([torch.zeros_like(coins.logits), coins.logits], -1))
    assert torch.allclose(dgm.score(coins, x).value, dgm.score(same, x.long()).value, atol=1e-12)


def test_one_student_is_scipys_fit():
    torch.manual_seed(0)
    x = 2 + 0.7 * torch.distributions.StudentT(torch.tensor(3.0, dtype=torch.float64)).sample((400, 1))
    program = MixtureOfStudents(1, 1).double()
    dgm.learn(program, x, method=dgm.EM(steps=2000, tolerance=1e-13), seed=0)
    df, centre, scale = scipy.stats.t.fit(x[:, 0].numpy())
    best = scipy.stats.t.logpdf(x[:, 0].numpy(), df, centre, scale).mean()
    mine = float(dgm.score(program, x).mean().value)
    assert mine == pytest.approx(best, abs=1e-6) and mine > best - 1e-9
    assert float(program.df[0]) == pytest.approx(df, rel=1e-2)
    own = scipy.stats.t.logpdf(x[:, 0].numpy(), float(program.df), float(program.means), float(program.scatters) ** 0.5)
    assert torch.allclose(dgm.score(program, x).value, torch.as_tensor(own), atol=1e-10)


def test_the_student_density_is_scipys():
    program = make("student")
    program.em_start(three_groups("student"))
    x = three_groups("student", 6)
    with torch.no_grad():
        program.log_df.copy_(torch.tensor([0.0, 1.0, 3.0]))
        found = program.component_log_prob(x)
    for k in range(3):
        df, mean, scatter = (v[k].detach().numpy() for v in (program.df, program.means, program.scatters))
        expected = scipy.stats.multivariate_t(mean, scatter, float(df)).logpdf(x.numpy())
        assert torch.allclose(found[:, k], torch.as_tensor(expected), atol=1e-10)


def test_outliers_move_a_student_less_than_a_gaussian():
    x = three_groups("student", 60)
    x[:3] += 500.0
    student, gaussian = make("student", 1), make("full", 1)
    for program in (student, gaussian):
        dgm.learn(program, x, method=dgm.EM(steps=500, tolerance=1e-10), seed=0)
    inner = x[3:].mean(0)
    assert float((student.means[0] - inner).norm()) < 0.1 * float((gaussian.means[0] - inner).norm())
    assert float(student.df[0]) < 3


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 2.5, 12.0, 40.0, 160.0])
def test_log_bessel_equals_scipys_wherever_that_neither_over_nor_underflows(order):
    x = torch.tensor([0.01, 0.3, 1.0, 5.0, 29.0, 31.0, 100.0, 700.0, 1e4], dtype=torch.float64)
    value, ratio = log_bessel(order, x)
    scaled, above = (torch.as_tensor(ive(v, x.numpy())) for v in (order, order + 1))
    known = (scaled > 1e-280) & (above > 1e-280)
    assert int(known.sum()) >= 4
    expected = scaled.log() + x
    assert torch.allclose(value[known], expected[known], rtol=1e-12, atol=1e-12)
    assert torch.allclose(ratio[known], (above / scaled)[known], rtol=1e-11)
    assert bool(value.isfinite().all())
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_bessel(order, at)[0].sum(), at)
    assert torch.allclose(slope, order / x + ratio, rtol=1e-9)  # DLMF 10.29.2


@pytest.mark.parametrize("size", [2, 3, 5, 40])
@pytest.mark.parametrize("kappa", [1e-3, 0.7, 8.0, 300.0])
def test_the_von_mises_fisher_density_integrates_to_one(size, kappa):
    """Over the angle t to the direction: area of the sphere S^{D-2} times sin(t)^{D-2}."""
    direction = torch.zeros(size, dtype=torch.float64)
    direction[0] = 1
    fn = VonMisesFisher(direction, torch.tensor(kappa, dtype=torch.float64))
    t = torch.linspace(0, math.pi, 20001, dtype=torch.float64)[1:-1]
    area = math.log(2) + (size - 1) / 2 * math.log(math.pi) - math.lgamma((size - 1) / 2)
    rows = torch.zeros(len(t), size, dtype=torch.float64)
    rows[:, 0], rows[:, 1] = t.cos(), t.sin()
    integrand = (fn.log_prob(rows) + area + (size - 2) * t.sin().log()).exp()
    edges = integrand[0] / 2 + integrand[-1] / 2 if size == 2 else 0.0  # the half-cells at both ends of the circle
    total = (integrand.sum() + edges) * (math.pi / 20000)
    assert float(total) == pytest.approx(1, abs=2e-6)
    if size == 3:  # closed form: kappa / (4 pi sinh kappa)
        log_sinh = kappa + math.log1p(-math.exp(-2 * kappa)) - math.log(2)
        assert float(fn.log_normaliser) == pytest.approx(math.log(kappa / (4 * math.pi)) - log_sinh, abs=1e-11)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_von_mises_fisher_draws_have_the_mean(size):
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(size, dtype=torch.float64), dim=0)
    fn = VonMisesFisher(direction, torch.tensor(4.0, dtype=torch.float64))
    x = fn.sample((20_000,))
    assert torch.allclose(x.norm(dim=-1), torch.ones(20_000).double(), atol=1e-12)
    assert float((x.mean(0) - fn.mean).norm()) < 5 / math.sqrt(20_000)
    cosine = x @ direction
    assert float(cosine.mean()) == pytest.approx(float(fn.mean.norm()), abs=5 * float(cosine.std()) / 141)


def test_one_von_mises_fisher_on_the_sphere_is_the_closed_form():
    """In three dimensions A(kappa) = coth kappa - 1 / kappa is the mean resultant length."""
    x = three_groups("von mises-fisher")[:, :3]
    x = torch.nn.functional.normalize(x, dim=-1)
    program = MixtureOfVonMisesFishers(3, 1).double()
    dgm.learn(program, x, seed=0)
    mean, kappa = x.mean(0), float(program.concentrations[0])
    assert torch.allclose(program.directions[0], mean / mean.norm(), atol=1e-12)
    assert 1 / math.tanh(kappa) - 1 / kappa == pytest.approx(float(mean.norm()), abs=1e-11)


def test_rows_off_the_sphere_are_refused():
    with pytest.raises(DataError, match="length one"):
        dgm.score(MixtureOfVonMisesFishers(3, 2), torch.ones(4, 3))


def test_mixed_columns_of_one_component_are_the_product_of_separate_ones():
    x = three_groups("mixed")
    mixed = make("mixed", 1)
    dgm.learn(mixed, x, seed=0)
    separate = [
        (MixtureOfGaussians(2, 1), x[:, [0, 2]]),
        (MixtureOfBernoullis(1, 1), x[:, [1]]),
        (MixtureOfPoissons(1, 1), x[:, [3]]),
        (MixtureOfCategoricals(1, 3, 1, pseudo_count=0.1), x[:, [4]].long()),
    ]
    total = torch.zeros(len(x), dtype=torch.float64)
    for program, part in separate:
        dgm.learn(program.double(), part, seed=0)
        total += dgm.score(program, part).value
    assert torch.allclose(dgm.score(mixed, x).value, total, atol=1e-10)


def test_a_table_with_a_wrong_entry_is_refused_by_its_column():
    x = three_groups("mixed")
    x[3, 4] = 7
    with pytest.raises(DataError, match=r"x\[3, 4\] is 7, expected an integer from 0 to 2"):
        dgm.learn(make("mixed"), x)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: MixtureOfBernoullis(2, 2, heads=-1.0), "heads"),
        (lambda: MixtureOfPoissons(2, 2, pseudo_count=-1.0), "pseudo_count"),
        (lambda: MixtureOfPoissons(2, 2, floor=0.0), "floor"),
        (lambda: MixtureOfStudents(2, 2, "tied"), "covariance.*'tied'"),
        (lambda: MixtureOfStudents(2, 2, df=-1.0), "df"),
        (lambda: MixtureOfVonMisesFishers(1, 2), "at least 2"),
        (lambda: MixtureOfVonMisesFishers(3, 2, ceiling=0.0), "ceiling"),
        (lambda: MixtureOfMixedColumns(["gaussian", "colour"], 2), "'colour'"),
        (lambda: MixtureOfMixedColumns(["categorical-0"], 2), "'categorical-0'"),
        (lambda: MixtureOfGaussians(2, 2, "low-rank", rank=3), "rank"),
    ],
)
def test_wrong_arguments_are_named(wrong, words):
    with pytest.raises(ProgramError, match=words):
        wrong()


def test_cells_of_correlated_gaussians_are_refused():
    with pytest.raises(TaskUnavailable, match="low-rank"):
        MixtureOfGaussians(2, 2, "low-rank").log_mass(torch.zeros(1, 2))
