"""RegularisedAutoencoder: principal components, exact evidence of a linear one, its penalties, and the score that denoising learns."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import MixtureOfGaussians, ProbabilisticPCA, RegularisedAutoencoder


def linear(observed: int = 5, latent: int = 2, **options: object) -> RegularisedAutoencoder:
    options = {"regulariser": None, "code_penalty": 0.0, "components": 1} | options
    program = RegularisedAutoencoder(observed, latent=latent, likelihood="gaussian", depth=0, **options)
    program.likelihood.free_scale.requires_grad_(False)
    return program


def correlated(n: int, observed: int = 5) -> torch.Tensor:
    mixing = torch.randn(observed, observed) * torch.tensor([2.0, 1.5, 0.4, 0.3, 0.2])[:observed]
    return torch.randn(n, observed) @ mixing.mT + torch.arange(observed)


def few(**options: object) -> dgm.TwoStage:
    return dgm.TwoStage(**({"epochs": 3, "batch_size": None} | options))


def test_a_linear_one_without_penalty_spans_the_principal_subspace():
    x, program = correlated(200), linear()
    fit = dgm.learn(program, x, method=few(epochs=1500, lr=0.03), seed=0)
    pca = dgm.learn(ProbabilisticPCA(5, 2), x, method="closed-form").program
    span = torch.linalg.qr(program.decoder[0].weight.detach())[0]
    cosines = torch.linalg.svdvals(span.mT @ pca.principal_components()[0])
    assert float(cosines.min()) > 0.9999
    directions = pca.principal_components()[0]
    projected = (x - x.mean(0)) @ directions @ directions.mT + x.mean(0)
    error = (program.reconstruct(x).mean - projected).square().mean().sqrt()
    assert float(error) < 0.02 * float((x - x.mean(0)).square().mean().sqrt())
    assert fit.cost.path == "recorded"


def test_before_the_density_is_fitted_every_verb_but_learn_refuses():
    program, x = linear(), correlated(20)
    for verb in (lambda: dgm.sample(program, 3), lambda: dgm.score(program, x), lambda: dgm.infer(program, x)):
        with pytest.raises(TaskUnavailable, match="no density of codes yet"):
            verb()
    assert {task for task, answer in program.answers().items() if answer.kind == "unavailable"} == {
        "sample",
        "score",
        "infer",
    }
    program.fit_codes(x)
    assert dgm.sample(program, 3, seed=0)["z"].shape == (3, 2)
    assert dgm.score(program, x, seed=0).kind == program.answers()["score"].kind == "estimate"


def evidence(program: RegularisedAutoencoder) -> MultivariateNormal:
    """p(x) of a linear one whose codes are Gaussian."""
    weight, bias = program.decoder[0].weight * program.code_scale, program.decoder[0].bias
    bias = bias + program.decoder[0].weight @ program.code_mean
    mean, covariance = program.density.means[0], program.density.covariances[0]
    noise = torch.diag(program.likelihood.scale.square())
    return MultivariateNormal(bias + weight @ mean, weight @ covariance @ weight.mT + noise)


def test_sample_and_score_are_those_of_the_exact_evidence():
    program, x = linear(3, 1), correlated(100, 3)
    dgm.learn(program, x, method=few(epochs=200, lr=0.03), seed=0)
    exact = evidence(program)
    score = dgm.score(program, x[:20], method=dgm.SimpleMonteCarlo(draws=20000), seed=0)
    assert ((score.value - exact.log_prob(x[:20])).abs() < 5 * score.stderr + 1e-3).all()
    drawn = dgm.sample(program, 20000, seed=1)["x"]
    error = (exact.covariance_matrix.diagonal() / 20000).sqrt()
    assert ((drawn.mean(0) - exact.mean).abs() < 5 * error).all()
    assert torch.allclose(drawn.T.cov(), exact.covariance_matrix, rtol=0.05, atol=0.05 * float(drawn.var(0).max()))


def test_the_posterior_is_sampled():
    program, x = linear(3, 1), correlated(60, 3)
    dgm.learn(program, x, method=few(epochs=200, lr=0.03), seed=0)
    weight = (program.decoder[0].weight * program.code_scale)[:, 0]
    bias = program.decoder[0].bias + program.decoder[0].weight @ program.code_mean
    precision = 1 / program.density.covariances[0, 0, 0] + weight @ weight / program.likelihood.scale[0] ** 2
    pull = program.density.means[0, 0] / program.density.covariances[0, 0, 0]
    mean = (pull + (x[:2] - bias) @ weight / program.likelihood.scale[0] ** 2) / precision
    post = dgm.infer(program, x[:2], method=dgm.NUTS(chains=2, draws=300, warmup=200), seed=0)
    assert torch.allclose(post.draws["z"].mean((0, 1))[:, 0], mean, atol=6 / math.sqrt(float(precision.detach()) * 150))


def test_the_density_is_in_units_of_the_codes_and_may_be_any_program():
    x, own = correlated(80), MixtureOfGaussians(2, 3, "diagonal")
    program = linear(density=own)
    with torch.no_grad():
        program.encoder[0].weight.mul_(1e-3)  # codes far smaller than the floor of the mixture's variances
    notes = program.fit_codes(x, method=dgm.EM(restarts=2))
    codes = program.encode(x)
    assert torch.allclose(codes.mean(0), torch.zeros(2), atol=1e-4) and torch.allclose(
        codes.var(0, correction=0), torch.ones(2), atol=1e-3
    )
    raw = own.log_prob(codes) - program.code_scale.log().sum()
    assert notes["log_density_of_codes"] == pytest.approx(float(raw.mean()), abs=1e-3)
    with pytest.raises(ProgramError, match=r"a code has shape \(2,\)"):
        linear(density=MixtureOfGaussians(3, 2))


def test_a_distribution_can_be_the_density_and_an_unused_code_keeps_its_unit():
    program = linear(density=dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with torch.no_grad():
        program.encoder[0].weight[1] = 0
    notes = program.fit_codes(correlated(30))
    assert "without parameters" in notes["density"] and float(program.code_scale[1]) == 1.0
    assert dgm.sample(program, 4, seed=0)["x"].isfinite().all()


def penalty(program: RegularisedAutoencoder, x: torch.Tensor) -> torch.Tensor:
    """What the regulariser adds to the loss of each row."""
    loss = program.train().autoencoding_loss(x).detach()
    with torch.no_grad():
        return loss - program.autoencoding_loss(x)


def test_penalties_are_what_they_say():
    x = correlated(1).expand(40000, -1)
    program = linear(regulariser="gradient-penalty", strength=2.0).double()
    norm = float(program.decoder[0].weight.square().sum())
    found = penalty(program, x.double())
    assert float(found.mean()) == pytest.approx(2 * norm, abs=5 * float(found.std()) / 200)
    program = linear(regulariser="weight-decay", strength=2.0).double()
    norm = float(program.decoder[0].weight.square().sum())
    assert torch.allclose(penalty(program, x[:3].double()), torch.full((3,), 2 * norm, dtype=torch.float64))
    program = linear(code_penalty=0.5)
    code = program.encoder(x[:1])
    with_it = program.autoencoding_loss(x[:1])
    program.code_penalty = 0.0
    assert torch.allclose(with_it - program.autoencoding_loss(x[:1]), 0.25 * code.square().sum(-1), atol=1e-3)


@pytest.mark.parametrize("regulariser", ["gradient-penalty", "spectral-norm"])
def test_a_regularised_decoder_is_flatter(regulariser):
    x = torch.randint(0, 3, (60, 4))
    slopes = []
    for one in (None, regulariser):
        torch.manual_seed(0)
        program = RegularisedAutoencoder(4, 3, latent=2, hidden=16, regulariser=one, strength=0.05, components=2)
        fit = dgm.learn(program, x, method=few(epochs=150, lr=0.02), seed=0)
        assert fit.cost.path == "recorded"
        jacobian = torch.func.vmap(torch.func.jacrev(program.decoder))(
            program.encoder(program.likelihood.scaled(x, torch.float32))
        )
        slopes.append(float(jacobian.square().sum((-2, -1)).mean()))
        if one == "spectral-norm":
            largest = [float(torch.linalg.svdvals(layer.weight)[0]) for layer in program._layers()]
            assert max(largest) < 1.1
    assert slopes[1] < 0.7 * slopes[0]


def test_denoising_learns_the_score_of_the_smoothed_data():
    noise = 0.8
    x = correlated(400, 3) - torch.arange(3)
    x = x - x.mean(0)
    program = linear(3, 3, corruption=noise)
    method = few(epochs=1500, lr=0.02, batch_size=None, schedule="cosine", average=0.99)
    dgm.learn(program, x.repeat(10, 1), method=method, seed=0)
    smoothed = x.T.cov(correction=0) + noise**2 * torch.eye(3)
    at = torch.randn(50, 3)
    exact = -torch.linalg.solve(smoothed, at.mT).mT
    assert float((program.smoothed_score(at) - exact).square().mean().sqrt()) < 0.1 * float(
        exact.square().mean().sqrt()
    )
    with pytest.raises(TaskUnavailable, match="Gaussian corruption"):
        linear().smoothed_score(at)


def test_masking_hides_inputs_while_learning_alone():
    program = linear(corruption=0.5, corruption_kind="masking")
    inputs = torch.ones(2000, 5)
    assert float(program.train()._corrupted(inputs).mean()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(program.eval()._corrupted(inputs), inputs)


def test_files_options_and_other_learners():
    x = torch.randint(0, 3, (40, 4))
    program = RegularisedAutoencoder(4, 3, latent=2, hidden=8, components=2)
    with pytest.raises(TaskUnavailable, match="no density of codes"):
        dgm.learn(program, x, method=dgm.SVI(epochs=1))
    with pytest.raises(TaskUnavailable, match="autoencoding_loss"):
        dgm.learn(dgm.models.VAE(4, 3, latent=2, hidden=8), x, method=few())
    for wrong in (
        {"regulariser": "dropout"},
        {"corruption_kind": "salt"},
        {"strength": -1.0},
        {"corruption": 1.0, "corruption_kind": "masking"},
        {"latent": 0},
    ):
        with pytest.raises(ProgramError):
            RegularisedAutoencoder(4, 3, **wrong)


def test_a_learned_one_survives_a_file(tmp_path):
    x = torch.randint(0, 3, (40, 4))
    program = RegularisedAutoencoder(4, 3, latent=2, hidden=8, components=2, regulariser="spectral-norm")
    fit = dgm.learn(program, x, valid=x[:10], method=few(), seed=0)
    assert {"density", "log_density_of_codes"} <= fit.notes.keys() and "valid" in fit.history
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path, RegularisedAutoencoder(**program.config)).program
    assert torch.equal(dgm.score(program, x[:3], seed=0).value, dgm.score(again, x[:3], seed=0).value)
