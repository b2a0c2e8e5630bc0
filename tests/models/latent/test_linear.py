"""FactorAnalysis and holes in linear Gaussian programs, against dense Gaussians and scikit-learn; PCA as the limit."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as Reference

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models import FactorAnalysis, ProbabilisticPCA

BOTH = pytest.mark.parametrize("family", [FactorAnalysis, ProbabilisticPCA])


def data(n=200, observed=6, seed=0):
    """Two factors, and noise whose size differs from column to column, [n, observed]."""
    generator = torch.Generator().manual_seed(seed)
    loadings = torch.randn(observed, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = torch.linspace(0.7, 1.5, observed).double()
    latent = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return latent @ loadings.mT + noise * torch.randn(n, observed, generator=generator, dtype=torch.float64) + 2.0


def holes(x, share=0.2, seed=3):
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(mask, torch.nan, x)


def random_program(family, observed=6, latent=2, **options):
    torch.manual_seed(0)
    program = family(observed, latent, **options).double()
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return program


def dense(program):
    """Mean and covariance of x, written out."""
    weight = program.weight.detach()
    return program.bias.detach(), weight @ weight.mT + torch.diag(program.variances.detach())


@BOTH
def test_score_and_posterior_with_holes_are_those_of_the_dense_gaussian(family):
    program, x = random_program(family, missing=True), holes(data(6))
    x[0], x[1] = data(1)[0], torch.nan  # nothing missing; everything missing
    score, post = dgm.score(program, x), dgm.infer(program, x, seed=0).exact["z"]
    mean, covariance = dense(program)
    for row, value, centre, spread in zip(x, score.value, post.mean, post.covariance_matrix):
        seen = ~row.isnan()
        part = covariance[seen][:, seen]
        gain = program.weight.detach()[seen].mT @ torch.linalg.inv(part)
        gap = (row - mean)[seen]
        expected = torch.distributions.MultivariateNormal(mean[seen], part).log_prob(row[seen]) if seen.any() else 0.0
        assert float(value) == pytest.approx(float(expected), abs=1e-9)
        assert torch.allclose(centre, gain @ gap, atol=1e-9)
        assert torch.allclose(spread, torch.eye(2).double() - gain @ program.weight.detach()[seen], atol=1e-9)


@BOTH
def test_the_conditional_of_the_missing_entries_and_its_draws(family):
    program = random_program(family)
    x = data(2)
    x[0, [1, 4]] = torch.nan
    mean, covariance = program.conditional(x)
    centre, whole = dense(program)
    hidden, seen = torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5])
    gain = whole[hidden][:, seen] @ torch.linalg.inv(whole[seen][:, seen])
    assert torch.allclose(mean[0, hidden], centre[hidden] + gain @ (x[0, seen] - centre[seen]), atol=1e-10)
    expected = whole[hidden][:, hidden] - gain @ whole[seen][:, hidden]
    assert torch.allclose(covariance[0][hidden][:, hidden], expected, atol=1e-10)
    assert float(covariance[0][seen].abs().max()) == 0.0 and float(covariance[1].abs().max()) == 0.0
    torch.manual_seed(0)
    drawn = program.impute(x, draws=40_000)
    assert drawn.shape == (40_000, 2, 6) and torch.equal(drawn[:, 1], x[1].expand(40_000, 6))
    assert torch.allclose(torch.cov(drawn[:, 0, hidden].mT), expected, atol=0.05 * float(expected.diagonal().max()))
    assert torch.allclose(drawn[:, 0].mean(0), mean[0], atol=0.04)


@BOTH
def test_the_guide_and_the_story_agree_with_the_exact_score_where_entries_are_missing(family):
    program, x = random_program(family, missing=True), holes(data(5))
    bound = dgm.score(program, x, method=dgm.ELBO(draws=3), seed=0)
    assert torch.allclose(bound.value, dgm.score(program, x).value, atol=1e-8)
    assert float(bound.stderr.max()) < 1e-8


def test_maximum_likelihood_agrees_with_scikit_learn():
    x, new = data(observed=9), data(50, observed=9, seed=9)
    program = FactorAnalysis(9, 2).double()
    fit = dgm.learn(program, x, method=dgm.EM(steps=1000, tolerance=1e-12), seed=0)
    assert bool((fit.history["objective"].diff().dropna() <= 1e-9).all())
    reference = Reference(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    assert np.abs(program.variances.detach().numpy() - reference.noise_variance_).max() < 2e-3
    assert dgm.score(program, new).mean().value == pytest.approx(reference.score(new.numpy()), abs=1e-4)
    assert dgm.score(program, x).mean().value >= reference.score(x.numpy()) - 1e-7


def test_factor_analysis_does_not_depend_on_the_columns_units_and_components_do():
    x, scale = data(), torch.tensor([1.0, 10.0, 0.1, 3.0, 1.0, 30.0]).double()
    expected = -float(scale.log().sum())
    gained = {}
    for family in (FactorAnalysis, ProbabilisticPCA):
        ends = []
        for table in (x, x * scale):
            fit = dgm.learn(family(6, 2).double(), table, method=dgm.EM(steps=300, tolerance=1e-8), seed=0)
            ends.append(dgm.score(fit.program, table).mean().value)
        gained[family] = ends[1] - ends[0]
    assert gained[FactorAnalysis] == pytest.approx(expected, abs=1e-3)
    assert abs(gained[ProbabilisticPCA] - expected) > 1


@BOTH
def test_em_with_holes_climbs_to_a_maximum_of_what_is_seen(family):
    x = holes(data())
    program = family(6, 2, missing=True).double()
    fit = dgm.learn(program, x, method=dgm.EM(steps=300, tolerance=1e-9), seed=0)
    assert bool((fit.history["objective"].diff().dropna() <= 1e-9).all())
    gradients = torch.autograd.grad(program.log_density(x).value.mean(), list(program.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-3
    full = dgm.learn(family(6, 2).double(), data(), method=dgm.EM(steps=300, tolerance=1e-9), seed=0).program
    new = data(500, seed=5)
    assert dgm.score(program, new).mean().value > dgm.score(full, new).mean().value - 0.1
    filled = torch.where(x.isnan(), x.nanmean(0), x)  # the usual stopgap
    stopgap = dgm.learn(family(6, 2).double(), filled, method="em", seed=0).program
    assert dgm.score(program, new).mean().value > dgm.score(stopgap, new).mean().value + 0.05


def test_where_nothing_is_missing_both_kinds_of_step_have_one_fixed_point():
    x = data()
    plain = dgm.learn(FactorAnalysis(6, 2).double(), x, method=dgm.EM(steps=1000, tolerance=1e-12), seed=0).program
    holed = FactorAnalysis(6, 2, missing=True).double()
    holed.load_state_dict(plain.state_dict())
    with torch.no_grad():
        holed._holed_step(x)
    assert torch.allclose(holed.variances, plain.variances, atol=1e-5)
    assert torch.allclose(holed.weight, plain.weight, atol=1e-5) and torch.allclose(holed.bias, plain.bias, atol=1e-8)


def test_a_column_that_is_a_factor_comes_down_to_the_floor_and_stays_finite():
    # of one factor, 0.85 * 0.85 / 0.6 = 1.2 of the first column's variance would have to be common
    covariance = torch.tensor([[1.0, 0.85, 0.85], [0.85, 1.0, 0.6], [0.85, 0.6, 1.0]]).double()
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / 200)).mT @ torch.linalg.cholesky(covariance).mT
    program = FactorAnalysis(3, 1, floor=0.01).double()
    dgm.learn(program, x, method=dgm.EM(steps=1000, tolerance=1e-10), seed=0)
    assert program.heywood == [0]
    assert float(program.communalities[0]) > 0.98 > 0.9 > float(program.communalities[1])
    assert bool(dgm.score(program, x).value.isfinite().all())


def test_a_column_without_entries_keeps_its_parameters():
    x = data(40)
    x[:, 2] = torch.nan
    program = FactorAnalysis(6, 2, missing=True).double()
    dgm.learn(program, x, method=dgm.EM(steps=5), seed=0)
    assert all(bool(p.isfinite().all()) for p in program.parameters())
    assert bool(program.impute(x).isfinite().all())


def test_as_the_noise_vanishes_the_posterior_mean_is_the_projection_of_principal_components():
    x = data()
    program = ProbabilisticPCA(6, 2).double()
    dgm.learn(program, x)
    directions, variances = program.principal_components()
    reference = PCA(2, svd_solver="full").fit(x.numpy())
    assert np.allclose(np.abs(np.sum(directions.numpy().T * reference.components_, 1)), 1.0, atol=1e-9)
    assert np.allclose(variances.detach().numpy(), reference.explained_variance_ * 199 / 200, atol=1e-9)
    with torch.no_grad():  # shrink the noise, keep W
        program.log_variance.fill_(-13.0)
    mean = program.posterior(x)["z"].mean @ program.weight.mT + program.bias
    assert torch.allclose(mean, (x - program.bias) @ directions @ directions.mT + program.bias, atol=1e-4)


def test_holes_are_refused_where_they_are_not_allowed_for():
    x = holes(data(20))
    with pytest.raises(DataError):
        dgm.learn(FactorAnalysis(6, 2), x)
    with pytest.raises(ProgramError, match="closed form needs every entry"):
        dgm.learn(ProbabilisticPCA(6, 2, missing=True), x, method="closed-form")
    with pytest.raises(ProgramError, match="draws must be at least 1"):
        FactorAnalysis(6, 2).impute(x, draws=0)


def test_the_gradient_of_a_score_with_holes_is_finite():
    program, x = random_program(FactorAnalysis, missing=True), holes(data(10))
    gradients = torch.autograd.grad(program.log_density(x).value.sum(), list(program.parameters()))
    assert all(bool(g.isfinite().all()) for g in gradients)
