"""DensityNetwork: the Monte Carlo likelihood as the importance-weighted bound whose guide is the prior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.models import VAE, DensityNetwork, ProbabilisticPCA


def linear(**options: object) -> DensityNetwork:
    return DensityNetwork(3, **({"latent": 1, "likelihood": "gaussian", "depth": 0} | options))


def evidence(program: DensityNetwork) -> MultivariateNormal:
    weight, noise = program.decoder[0].weight, program.likelihood.scale
    return MultivariateNormal(program.decoder[0].bias, weight @ weight.mT + torch.diag(noise.square()))


def test_the_bound_with_the_prior_as_guide_is_simple_monte_carlo():
    program, x = linear(), torch.randn(5, 3)
    one = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=20000), seed=0)
    other = dgm.score(program, x, method=dgm.SimpleMonteCarlo(draws=20000), seed=0)  # draws of their own
    assert ((one.value - other.value).abs() < 5 * torch.hypot(one.stderr, other.stderr)).all()
    assert (one.kind, other.kind) == ("lower_bound", "estimate")


def test_the_score_tends_to_the_exact_evidence_of_a_linear_one():
    program, x = linear(), torch.randn(20, 3)
    score = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=20000), seed=0)
    assert ((score.value - evidence(program).log_prob(x)).abs() < 5 * score.stderr + 1e-3).all()


def test_its_posterior_is_weighted_draws_of_the_prior():
    program, x = linear(), torch.randn(4, 3)
    weight, scale = program.decoder[0].weight[:, 0], program.likelihood.scale
    precision = 1 + (weight / scale).square().sum()
    mean = ((x - program.decoder[0].bias) * weight / scale.square()).sum(-1) / precision
    post = dgm.infer(program, x, method=dgm.Importance(draws=20000), seed=0)
    w = post.log_weights.softmax(0)  # [draw, batch]
    found = (w * post.draws["z"][0, :, :, 0]).sum(0)
    assert torch.allclose(found, mean, atol=0.1)


def test_learning_reaches_the_likelihood_of_probabilistic_pca():
    x = torch.randn(256, 1) * torch.tensor([1.5, -1.0, 0.5]) + 0.5 * torch.randn(256, 3)
    program = linear(particles=64)
    before = float(evidence(program).log_prob(x).mean())
    fit = dgm.learn(
        program, x, method=dgm.IWAE(particles=64, epochs=60, batch_size=64, lr=0.02, schedule="cosine"), seed=0
    )
    pca = dgm.learn(ProbabilisticPCA(3, 1), x, method="closed-form").program
    learned = float(evidence(program).log_prob(x).mean())
    best = dgm.score(pca, x).mean().value  # with one scale for all columns
    assert before < best - 0.3
    assert learned > best - 0.1  # low by the bias of the logarithm
    assert fit.history["objective"].iloc[-1] >= -learned - 0.05


def test_any_program_is_learned_so_with_its_prior_as_guide():
    def prior(x, n=1):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    x = torch.randn(200, 1) * torch.tensor([1.5, -1.0, 0.5]) + 0.5 * torch.randn(200, 3)
    vae = VAE(3, latent=1, likelihood="gaussian", depth=0, decoder_dropout=0.0)
    method = dgm.IWAE(particles=32, epochs=40, batch_size=64, lr=0.02)
    before = [p.clone() for p in vae.encoder.parameters()]
    fit = dgm.learn(vae, x, method=method, guide=prior, seed=0)
    assert fit.history["objective"].iloc[-1] < fit.history["objective"].iloc[0] - 0.2
    assert all(torch.equal(one, other) for one, other in zip(before, vae.encoder.parameters(), strict=True))


def test_sizes_are_checked():
    for wrong in ({"latent": 0}, {"particles": 0}, {"draws": 1.5}, {"depth": -1}):
        with pytest.raises(ProgramError):
            linear(**wrong)
