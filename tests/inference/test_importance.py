"""Importance weighting against evidences in closed form: bounds, limits, unbiasedness, shapes, refusals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.inference.approximating.weighing import LogMean
from ppl_dgm.inference.diagnostics.psis import pareto_shape, psis

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]])


def coin(x: Tensor) -> None:
    """Beta-Bernoulli: the examples share a latent site."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def coin_guide(x: Tensor) -> None:
    pyro.sample("p", dist.Beta(2.0 + 0.8 * x.sum(), 3.0 + 0.8 * (1 - x).sum()))


def coin_exact(x: Tensor) -> None:
    pyro.sample("p", dist.Beta(2.0 + x.sum(), 3.0 + (1 - x).sum()))


FLIPS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])


def coin_evidence() -> float:
    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return log_beta(2.0 + 5, 3.0 + 2) - log_beta(2.0, 3.0)


def test_exact_guide_has_weights_without_variance() -> None:
    program = LinearGaussian(exact=True)
    score = dgm.score(program, X, method=dgm.ImportanceWeighted(draws=8), seed=0)
    assert score.kind == "lower_bound"
    assert score.value.shape == (3,)
    torch.testing.assert_close(score.value, program.evidence(X), atol=1e-4, rtol=0)
    assert score.stderr.max() < 1e-4
    assert "median ESS 8" in score.how


def test_bound_is_below_the_evidence_monotone_in_draws_and_tends_to_it() -> None:
    program = LinearGaussian()
    copies = X[:1].expand(4000, -1)  # every row is an independent replicate
    exact = program.evidence(X[:1])
    means, errors = [], []
    for draws in (1, 4, 16, 64):
        value = dgm.score(program, copies, method=dgm.ImportanceWeighted(draws=draws), seed=draws).value
        means.append(float(value.mean()))
        errors.append(float(value.std()) / math.sqrt(len(value)))
    for mean, error in zip(means, errors):
        assert mean <= exact + 4 * error
    for i in range(3):
        assert means[i + 1] > means[i] - 4 * math.hypot(errors[i], errors[i + 1])
    assert means[0] < exact - 0.1  # the guide is wrong, so that there is something to gain
    score = dgm.score(program, X, method=dgm.ImportanceWeighted(draws=20_000), seed=0)
    assert ((score.value - program.evidence(X)).abs() < 4 * score.stderr).all()
    assert score.stderr.max() < 0.05


def test_standard_error_covers() -> None:
    program = LinearGaussian()
    score = dgm.score(program, X[:1].expand(1000, -1), method=dgm.ImportanceWeighted(draws=500), seed=0)
    covered = ((score.value - program.evidence(X[:1])).abs() < 2 * score.stderr).double().mean()
    assert 0.92 < covered < 0.985  # 0.954 for a normal error


def test_simple_monte_carlo_is_unbiased_on_the_probability_scale() -> None:
    program = LinearGaussian(observed=2, latent=1)
    x = torch.tensor([[0.3, -0.2]])
    score = dgm.score(program, x.expand(4000, -1), method=dgm.SimpleMonteCarlo(draws=20), seed=0)
    ratio = (score.value - program.evidence(x)).exp().double()
    assert score.kind == "estimate"
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))
    assert score.value.mean() < program.evidence(x)  # biased low on the log scale


def test_shared_latent_site_gives_one_value() -> None:
    exact = dgm.score(coin, FLIPS, guide=coin_exact, method=dgm.ImportanceWeighted(draws=20), seed=0)
    assert exact.value.shape == ()
    assert float(exact.value) == pytest.approx(coin_evidence(), abs=1e-4)
    score = dgm.score(coin, FLIPS, guide=coin_guide, method=dgm.ImportanceWeighted(draws=400), seed=0)
    assert abs(float(score.value) - coin_evidence()) < 4 * float(score.stderr) < 0.2


def test_shared_mean_from_guide_and_from_prior() -> None:
    x = torch.tensor([0.5, 1.0, -0.3])
    exact = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3) + torch.ones(3, 3)).log_prob(x)

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(x.sum() / 4 + 0.1, 0.6))

    for options in (
        {"method": dgm.ImportanceWeighted(draws=20_000), "guide": guide},
        {"method": dgm.SimpleMonteCarlo(draws=20_000)},
    ):
        score = dgm.score(model, x, **options, seed=0)
        assert score.value.shape == ()
        assert abs(float(score.value - exact)) < 4 * float(score.stderr) < 0.1


def test_program_that_vmap_cannot_follow_is_run_draw_by_draw() -> None:
    def branching(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        if p.item() < 0:
            raise AssertionError
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    score = dgm.score(branching, FLIPS, guide=coin_exact, method=dgm.ImportanceWeighted(draws=10), seed=0)
    assert float(score.value) == pytest.approx(coin_evidence(), abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 7, 12, 1000, None])
def test_chunks_bound_the_rows_of_a_pass_and_lose_no_draw(chunk: int | None) -> None:
    program = LinearGaussian(exact=True)
    posterior = dgm.infer(program, X, method=dgm.Importance(draws=10, chunk=chunk), seed=0)
    assert posterior.draws["z"].shape == (1, 10, 3, 2)
    assert posterior.log_weights.shape == (10, 3)
    # the first three passes are trials: the observations as they are, two rows, and three draws for each of two rows
    assert max(program.seen[3:]) <= max(chunk or 1000, 1)
    assert sum(program.seen[3:]) == 30
    # each draw lies beside its own example's weight: under the exact guide that example's evidence
    torch.testing.assert_close(posterior.log_weights, program.evidence(X).expand(10, 3), atol=1e-4, rtol=0)
    z = posterior.draws["z"][0]  # [draw, example, latent]
    assert z.std(0).min() > 0.05


def test_draws_belong_to_their_examples() -> None:
    program = LinearGaussian(exact=True)
    many = torch.cat([X, 5 * X, -5 * X])
    for chunk in (None, 50, 2000):
        posterior = dgm.infer(program, many, method=dgm.Amortised(draws=400, chunk=chunk), seed=0)
        error = posterior.draws["z"][0].mean(0) - program.exact_posterior(many).mean
        assert error.abs().max() < 5 * program.exact_posterior(many).variance.sqrt().max() / 20


def test_plate_of_fixed_size_is_run_draw_by_draw() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    x = torch.tensor([0.0, 1.0, -3.0])
    score = dgm.score(model, x, guide=guide, method=dgm.ImportanceWeighted(draws=6), seed=0)
    torch.testing.assert_close(score.value, dist.Normal(0.0, math.sqrt(2)).log_prob(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, None])
def test_covariates_written_into_the_program_stay_with_their_rows(chunk: int | None) -> None:
    u = torch.tensor([1.0, 2.0, 3.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + u) / 2, math.sqrt(0.5)))

    x = torch.tensor([0.0, 1.0, -3.0])
    for method in (
        dgm.ImportanceWeighted(draws=3, chunk=chunk),
        dgm.ImportanceWeighted(draws=1, chunk=chunk),
    ):
        score = dgm.score(model, x, guide=guide, method=method, seed=0)
        torch.testing.assert_close(score.value, dist.Normal(u, math.sqrt(2)).log_prob(x), atol=1e-5, rtol=0)


def test_further_arguments_are_repeated_with_their_rows() -> None:
    def model(x: Tensor, u: Tensor, slope: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(slope * u, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, u: Tensor, slope: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + slope * u) / 2, math.sqrt(0.5)))

    x, u, slope = torch.tensor([0.0, 1.0, -3.0]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0)
    score = dgm.score(model, x, u, slope=slope, guide=guide, method=dgm.ImportanceWeighted(draws=6), seed=0)
    torch.testing.assert_close(score.value, dist.Normal(2 * u, math.sqrt(2)).log_prob(x), atol=1e-5, rtol=0)


def test_plates_inside_the_data_plate_are_summed() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", x.shape[1], dim=-1):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    posterior = dgm.infer(model, X, guide=guide, method=dgm.Importance(draws=5, chunk=6), seed=0)
    assert posterior.draws["z"].shape == (1, 5, 3, 4)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(X).sum(1)
    torch.testing.assert_close(posterior.log_evidence.value, exact, atol=1e-5, rtol=0)


def test_weighted_posterior_and_evidence() -> None:
    program = LinearGaussian()
    posterior = dgm.infer(program, X, method=dgm.Importance(draws=20_000), seed=0)
    torch.testing.assert_close(posterior.mean("z"), program.exact_posterior(X).mean, atol=0.03, rtol=0)
    assert posterior.log_evidence.kind == "estimate"
    assert ((posterior.log_evidence.value - program.evidence(X)).abs() < 4 * posterior.log_evidence.stderr).all()


def test_autoguide_draws_lie_where_the_sites_do() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(2.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(weights.sum(-1), scale), obs=x)

    for kind in (AutoNormal, AutoMultivariateNormal):
        guide = kind(model, init_scale=0.7)
        posterior = dgm.infer(model, X[:, 0], guide=guide, method=dgm.Amortised(draws=50), seed=0)
        assert posterior.draws["scale"].shape == (1, 50)
        assert posterior.draws["weights"].shape == (1, 50, 3)
        assert posterior.draws["scale"].min() > 0
        torch.testing.assert_close(posterior.draws["weights"].sum(-1), torch.ones(1, 50))
        score = dgm.score(model, X[:, 0], guide=guide, method=dgm.ImportanceWeighted(draws=4000), seed=0)
        other = dgm.score(model, X[:, 0], method=dgm.SimpleMonteCarlo(draws=20_000), seed=1)
        error = math.hypot(float(score.stderr), float(other.stderr))
        assert abs(float(score.value - other.value)) < 4 * error < 0.8


def test_seed_repeats_and_single_draw_has_no_error() -> None:
    program = LinearGaussian()
    first, second = (dgm.score(program, X, method="importance-weighted", seed=3).value for _ in range(2))
    assert torch.equal(first, second)
    assert dgm.score(program, X, method=dgm.ImportanceWeighted(draws=1), seed=0).stderr is None


def test_float64_stays() -> None:
    score = dgm.score(LinearGaussian(exact=True).double(), X.double(), method="simple-monte-carlo", seed=0)
    assert score.value.dtype == torch.float64


def test_log_mean_streams() -> None:
    log_weights = torch.randn(100, 5, dtype=torch.float64) * 3 - 700  # exp would underflow
    streamed, whole = LogMean(), LogMean()
    for part in log_weights.split(7):
        streamed.add(part)
    whole.add(log_weights)
    for a, b in zip(streamed.result(), whole.result()):
        torch.testing.assert_close(a, b)
    w = (log_weights + 700).exp()
    value, stderr, ess = whole.result()
    torch.testing.assert_close(value, w.mean(0).log() - 700)
    torch.testing.assert_close(stderr, w.std(0, correction=1) / w.mean(0) / 10, rtol=1e-6, atol=0)
    torch.testing.assert_close(ess, w.sum(0) ** 2 / w.square().sum(0))


def test_impossible_observation_has_zero_density() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Delta(torch.zeros_like(z)), obs=x)

    score = dgm.score(model, torch.tensor([0.0, 1.0]), method="simple-monte-carlo", seed=0)
    assert score.value.tolist() == [0.0, -math.inf]


# -- refusals --------------------------------------------------------------------------------------


def no_site(x: Tensor) -> None:
    pass


def extra_site(x: Tensor) -> None:
    coin_guide(x)
    pyro.sample("q", dist.Normal(0.0, 1.0))


def observed_site(x: Tensor) -> None:
    coin_guide(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        (no_site, "does not draw the latent site 'p'"),
        (extra_site, "'q', which the model does not have"),
        (observed_site, "'x', which the model observes"),
    ],
)
@pytest.mark.parametrize("method", ["importance-weighted", "elbo", "amortised"])
def test_guide_that_does_not_match_is_named(guide: object, words: str, method: str) -> None:
    verb = dgm.infer if method == "amortised" else dgm.score
    with pytest.raises(dgm.ProgramError, match=words):
        verb(coin, FLIPS, guide=guide, method=method)


@pytest.mark.parametrize("method", ["importance-weighted", "elbo", "amortised", "importance"])
def test_no_guide(method: str) -> None:
    verb = dgm.infer if method in ("amortised", "importance") else dgm.score
    with pytest.raises(dgm.TaskUnavailable, match="no guide"):
        verb(coin, FLIPS, method=method)


def test_nan_names_the_site() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("p", dist.Normal(3.0, 0.1))  # outside the support of a Beta

    with pytest.raises(dgm.DgmError, match="'p'"):
        dgm.score(coin, FLIPS, guide=guide, method="importance-weighted", seed=0)


@pytest.mark.parametrize("draws", [0, -1, 2.5])
def test_number_of_draws_is_checked(draws: float) -> None:
    for method in (dgm.ImportanceWeighted, dgm.SimpleMonteCarlo, dgm.Importance, dgm.ELBO, dgm.Amortised):
        with pytest.raises(dgm.ProgramError, match="draws must be"):
            method(draws=draws)


# -- the tail of the weights -------------------------------------------------------------------------------------------


def narrow_guide(x: Tensor) -> None:
    pyro.sample("p", dist.Beta(200.0, 20.0))


def test_importance_smooths_its_weights_and_keeps_the_evidence_of_the_raw_ones() -> None:
    raw, smooth = (
        dgm.infer(coin, FLIPS, guide=coin_guide, method=dgm.Importance(draws=1000, smooth=smooth), seed=0)
        for smooth in (False, True)
    )
    wanted, k = psis(raw.log_weights)
    torch.testing.assert_close(smooth.log_weights, wanted)
    assert not torch.equal(smooth.log_weights, raw.log_weights)
    assert torch.equal(smooth.log_evidence.value, raw.log_evidence.value)
    assert smooth.stats["pareto_k"].shape == (1, 1000)
    torch.testing.assert_close(smooth.stats["pareto_k"][0, 0].double(), k, atol=1e-6, rtol=0)
    assert "Pareto k" in smooth.how and "smoothed" in smooth.how


def test_a_score_says_when_its_weights_have_a_heavy_tail() -> None:
    good = dgm.score(coin, FLIPS, guide=coin_guide, method=dgm.ImportanceWeighted(draws=500), seed=0)
    bad = dgm.score(coin, FLIPS, guide=narrow_guide, method=dgm.ImportanceWeighted(draws=500), seed=0)
    assert "Pareto k" in good.how and "not to be trusted" not in good.how
    assert "not to be trusted" in bad.how


def test_each_example_has_its_own_shape_and_the_score_counts_the_bad_ones() -> None:
    program = LinearGaussian()
    posterior = dgm.infer(program, X, method=dgm.Importance(draws=400), seed=0)
    assert posterior.stats["pareto_k"].shape == (1, 400, 3)
    torch.testing.assert_close(posterior.stats["pareto_k"][0, 7], posterior.stats["pareto_k"][0, 0])
    for chunk in (None, 100, 10_000):  # examples one after another, in parts, all at once
        score = dgm.score(program, X, method=dgm.ImportanceWeighted(draws=400, chunk=chunk), seed=0)
        assert "Pareto k above 0.7 for 0% of examples" in score.how


def test_a_score_says_of_each_example_how_far_to_trust_it_and_files_keep_that(tmp_path) -> None:
    program = LinearGaussian()
    score = dgm.score(program, X, method=dgm.ImportanceWeighted(draws=200), seed=0)
    log_weights = dgm.infer(program, X, method=dgm.Importance(draws=200, smooth=False), seed=0).log_weights
    weights = torch.softmax(log_weights.double(), 0)
    torch.testing.assert_close(score.stats["ess"].double(), 1 / weights.square().sum(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(score.stats["pareto_k"].double(), pareto_shape(log_weights), rtol=1e-3, atol=1e-3)
    assert "pareto_k" not in dgm.score(program, X, method=dgm.ImportanceWeighted(draws=20), seed=0).stats
    posterior = dgm.infer(program, X, method=dgm.Importance(draws=50), seed=0)
    posterior.save(tmp_path)
    kept = dgm.Posterior.load(tmp_path).log_evidence
    assert kept.stats.keys() == {"ess", "pareto_k"} and torch.equal(
        kept.stats["ess"], posterior.log_evidence.stats["ess"]
    )
