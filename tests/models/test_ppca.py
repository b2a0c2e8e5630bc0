"""ProbabilisticPCA against conditioning of the joint Gaussian and against scikit-learn."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from sklearn.decomposition import PCA

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.models import ProbabilisticPCA


def data(n=200, observed=6, seed=0):
    """Three directions of decreasing length plus noise, [n, observed]."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 3, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0])
    directions = torch.linalg.qr(torch.randn(observed, 3, generator=generator, dtype=torch.float64)).Q
    noise = 0.3 * torch.randn(n, observed, generator=generator, dtype=torch.float64)
    return latent @ directions.mT + noise + 5.0


def random_program(observed=6, latent=3):
    program = ProbabilisticPCA(observed, latent).double()
    with torch.no_grad():
        program.bias.normal_()
        program.log_variance.fill_(-0.7)
    return program


def joint(program):
    """Mean and covariance of (z, x), written out."""
    weight, variance = program.weight.detach(), program.variance.detach()
    observed, latent = weight.shape
    eye_z, eye_x = torch.eye(latent).double(), torch.eye(observed).double()
    covariance = torch.cat(
        [torch.cat([eye_z, weight.mT], 1), torch.cat([weight, weight @ weight.mT + variance * eye_x], 1)]
    )
    return torch.cat([torch.zeros(latent).double(), program.bias.detach()]), covariance


def condition(mean, covariance, unknown, known, value):
    """Mean and covariance of the unknown coordinates of a Gaussian given the known ones."""
    gain = covariance[unknown][:, known] @ torch.linalg.inv(covariance[known][:, known])
    return mean[unknown] + gain @ (value - mean[known]), covariance[unknown][:, unknown] - gain @ covariance[known][
        :, unknown
    ]


def test_posterior_is_the_conditional_of_the_joint_gaussian_and_the_printed_covariance_is_not():
    program = random_program()
    x = data(5)
    mean, covariance = joint(program)
    z, rest = torch.arange(3), torch.arange(3, 9)
    post = dgm.infer(program, x, seed=0)
    assert post.kind == "exact" and post.draws["z"].shape == (1, 1000, 5, 3)
    for row, found_mean, found in zip(x, post.exact["z"].mean, post.exact["z"].covariance_matrix):
        expected_mean, expected = condition(mean, covariance, z, rest, row)
        assert torch.allclose(found_mean, expected_mean, atol=1e-10)
        assert torch.allclose(found, expected, atol=1e-10)
    gram = program.weight.mT @ program.weight + program.variance * torch.eye(3)
    printed = (gram / program.variance).detach()  # equation (5.7) of the book: this is the precision
    assert float((printed - expected).abs().max()) > 1
    assert torch.allclose(torch.linalg.inv(printed), expected, atol=1e-10)


def test_score_is_the_dense_gaussians_density():
    program, x = random_program(), data(7)
    mean, covariance = joint(program)
    dense = torch.distributions.MultivariateNormal(mean[3:], covariance[3:, 3:])
    score = dgm.score(program, x)
    assert score.kind == "exact" and torch.allclose(score.value, dense.log_prob(x), atol=1e-9)


def test_no_digits_are_lost_in_single_precision_when_the_noise_is_small():
    x = data(50).float()
    program = ProbabilisticPCA(6, 3)
    with torch.no_grad():
        program.weight.copy_(torch.randn(6, 3) * 100)
        program.log_variance.fill_(-6.0)
    single = dgm.score(program, x).value.double()
    double = dgm.score(program.double(), x.double()).value
    assert float(((single - double) / double).abs().max()) < 1e-3


def test_score_equals_scikit_learns_for_each_example():
    x, new = data(), data(50, seed=1)
    program = ProbabilisticPCA(6, 2).double()
    dgm.learn(program, x, method=dgm.ClosedForm({"correction": 1}))  # scikit-learn divides by N - 1
    reference = PCA(2, svd_solver="full").fit(x.numpy())
    found = dgm.score(program, new).value.numpy()
    assert np.abs(found - reference.score_samples(new.numpy())).max() < 1e-8


def test_maximum_likelihood_score_equals_scikit_learns_on_digits_to_1e_4():
    x = dgm.data.digits().train.double()
    program = ProbabilisticPCA(64, 16).double()
    fit = dgm.learn(program, x)
    assert fit.stopped == "closed form" and len(fit.history) == 1
    reference = PCA(16, svd_solver="full").fit(x.numpy()).score(x.numpy())
    score = dgm.score(program, x).mean().value
    assert score == pytest.approx(reference, abs=1e-4)
    assert score >= reference  # dividing by N is the maximum; by N - 1 falls just short of it
    assert fit.history["objective"].iloc[0] == pytest.approx(-score, abs=1e-9)


def test_the_closed_form_is_a_maximum():
    x = data()
    program = ProbabilisticPCA(6, 2).double()
    dgm.learn(program, x)
    gradients = torch.autograd.grad(program.log_density(x).value.mean(), list(program.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-10


def test_em_rises_to_the_closed_form():
    x = data()
    closed, climbed = ProbabilisticPCA(6, 2).double(), ProbabilisticPCA(6, 2).double()
    dgm.learn(closed, x)
    fit = dgm.learn(climbed, x, method=dgm.EM(steps=2000, tolerance=1e-13), seed=0)
    assert bool((fit.history["objective"].diff().dropna() <= 1e-9).all())
    assert dgm.score(climbed, x).mean().value == pytest.approx(dgm.score(closed, x).mean().value, abs=1e-7)
    assert torch.allclose(climbed.weight @ climbed.weight.mT, closed.weight @ closed.weight.mT, atol=1e-3)


def test_the_elbo_is_the_score_and_its_gradient_has_no_variance():
    program, x = random_program(), data(4)
    exact = program.log_density(x).value.sum()
    expected = torch.autograd.grad(exact, list(program.parameters()))
    exact = exact.detach()
    for _ in range(3):
        loss = Trace_ELBO().differentiable_loss(program.model, program.guide, x)
        assert float(-loss.detach()) == pytest.approx(float(exact), abs=1e-8)
        found = torch.autograd.grad(-loss, list(program.parameters()))
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(found, expected))


def test_svi_approaches_the_closed_form():
    x = data()
    closed, learned = ProbabilisticPCA(6, 2).double(), ProbabilisticPCA(6, 2).double()
    dgm.learn(closed, x)
    best = dgm.score(closed, x).mean().value
    learned.em_start(x)
    start = dgm.score(learned, x).mean().value
    dgm.learn(learned, x, method=dgm.SVI(epochs=400, batch_size=None, lr=0.05), seed=0)
    reached = dgm.score(learned, x).mean().value
    assert start < best - 0.3 and best - 0.01 < reached <= best + 1e-9


def test_samples_have_the_models_covariance():
    program = random_program()
    drawn = dgm.sample(program, 50_000, seed=0)
    assert drawn["z"].shape == (50_000, 3) and drawn["x"].shape == (50_000, 6)
    _, covariance = joint(program)
    found = torch.cov(torch.cat([drawn["z"], drawn["x"]], 1).mT)
    assert float((found - covariance).abs().max()) < 0.1


def test_missing_entries_get_their_conditional_mean():
    program, x = random_program(), data(4)
    holes = x.clone()
    holes[0, [1, 4]] = torch.nan
    holes[1] = torch.nan
    mean, covariance = joint(program)
    filled = program.impute(holes)
    expected, _ = condition(
        mean[3:], covariance[3:, 3:], torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5]), x[0, [0, 2, 3, 5]]
    )
    assert torch.allclose(filled[0, [1, 4]], expected, atol=1e-10)
    assert torch.allclose(filled[1], program.bias, atol=1e-12)
    assert torch.equal(filled[2:], x[2:])


def test_fewer_examples_than_latents_and_constant_columns_stay_finite():
    x = torch.tensor([[1.0, 0, 2, 0, 7], [1, 1, 2, 0, 7], [1, 3, 5, 0, 7]])
    program = ProbabilisticPCA(5, 4)
    dgm.learn(program, x)
    assert bool(dgm.score(program, x).value.isfinite().all())
    assert float(program.variance) == pytest.approx(1e-6)
    dgm.learn(program.double(), x, method="em", seed=0)
    assert all(bool(p.isfinite().all()) for p in program.parameters())


def test_saving_and_loading_keeps_score_and_posterior(tmp_path):
    x = data(5).float()
    fit = dgm.learn(ProbabilisticPCA(6, 2), x)
    fit.save(tmp_path)
    assert torch.equal(dgm.score(dgm.Fit.load(tmp_path).program, x).value, dgm.score(fit.program, x).value)
    post = dgm.infer(fit.program, x, seed=0)
    post.save(tmp_path)
    again = dgm.results.Posterior.load(tmp_path)
    assert isinstance(again.exact["z"], dist.MultivariateNormal)
    assert torch.allclose(again.exact["z"].covariance_matrix, post.exact["z"].covariance_matrix, atol=1e-6)


@pytest.mark.parametrize("method", ["closed-form", "em"])
def test_all_verbs_run_on_every_device(method, device):
    x = data(20).float()
    program = ProbabilisticPCA(6, 2)
    dgm.learn(program, x, method=method, seed=0, device=device)
    score, post = dgm.score(program, x), dgm.infer(program, x, seed=0)
    drawn = dgm.sample(program, 3, seed=0)["x"]
    assert {t.device.type for t in (score.value, post.draws["z"], drawn)} == {device.type}


@pytest.mark.parametrize("latent", [0, 6])
def test_latents_must_be_fewer_than_the_observed(latent):
    with pytest.raises(ProgramError, match="latent must be from 1 to"):
        ProbabilisticPCA(6, latent)


def test_a_single_example_has_no_covariance():
    with pytest.raises(ProgramError, match="at least 2"):
        dgm.learn(ProbabilisticPCA(6, 2), torch.zeros(1, 6))
