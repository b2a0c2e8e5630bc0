"""LatentFeatureModel: the prior's counts in closed form, Gibbs against every assignment, features found again."""

import itertools
import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import LatentFeatureModel


def harmonic(n):
    return sum(1 / i for i in range(1, n + 1))


def test_the_number_of_features_tends_to_that_of_the_buffet():
    assert LatentFeatureModel(2, 10**6, alpha=2.0).expected_features(20) == pytest.approx(2 * harmonic(20), rel=1e-4)
    assert LatentFeatureModel(2, 1, alpha=1.0).expected_features(1) == pytest.approx(0.5)  # E pi of Beta(1, 1)


def test_samples_have_as_many_features_as_expected():
    program = LatentFeatureModel(1, 15, alpha=1.5)
    drawn = [dgm.sample(program, 5, seed=seed) for seed in range(150)]
    has = torch.stack([torch.stack([d[f"z_{k}"] for k in range(15)], -1) for d in drawn]).double()  # [seed, n, K]
    for counts, exact in ((has.amax(1).sum(-1), program.expected_features(5)), (has.sum(-1).mean(1), 15 * 0.1 / 1.1)):
        assert abs(counts.mean() - exact) < 4 * counts.std() / 150**0.5


def every(n, features):
    """All assignments, [2^(n K), n, K]."""
    table = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n * features)), dtype=torch.float64)
    return table.reshape(-1, n, features)


def test_the_collapsed_density_is_an_average_over_the_prior():
    program = LatentFeatureModel(2, 2, alpha=1.0, weight_scale=0.8)
    x = torch.tensor([[0.5, -0.3], [0.1, 0.9]], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    weights = 0.8 * torch.randn(200_000, 2, 2, dtype=torch.float64)
    pi = torch.distributions.Beta(torch.tensor(0.5).double(), 1.0).sample((200_000, 2))
    log_p = torch.distributions.Normal(z @ weights, 2**-0.5).log_prob(x).sum((-1, -2))
    prior = (z * pi[:, None].log() + (1 - z) * torch.log1p(-pi[:, None])).sum((-1, -2))
    terms = (log_p + prior).exp()
    exact = program.log_collapsed(z, x, 2.0).exp()
    assert abs(terms.mean() - exact) < 4 * terms.std() / 200_000**0.5
    # over all assignments of both rows the prior is one
    flat = LatentFeatureModel(2, 2, weight_scale=1e-9)
    total = flat.log_collapsed(every(2, 2), x, 2.0).logsumexp(0)
    alone = torch.distributions.Normal(0.0, 2**-0.5).log_prob(x).sum()
    assert float(total) == pytest.approx(float(alone), abs=1e-6)


def test_gibbs_has_the_posterior_of_every_assignment():
    program = LatentFeatureModel(2, 2, alpha=1.0, weight_scale=1.5, shape=3.0, rate=1.0)
    x = torch.tensor([[1.6, 0.2], [1.2, -1.0], [0.1, -1.1]], dtype=torch.float64)
    posterior = dgm.infer(program, x, method=dgm.Gibbs(chains=40, warmup=15, draws=50), seed=0)
    assert "pi: Beta" in posterior.how and "precision: Gamma" in posterior.how and "enumerated" in posterior.how
    # every assignment, the precision on a grid under its Gamma(3, 1)
    grid = torch.linspace(0.01, 25, 400, dtype=torch.float64)
    log_p = torch.stack([program.log_collapsed(every(3, 2), x, tau) for tau in grid])  # [grid, 64]
    joint = log_p + torch.distributions.Gamma(3.0, 1.0).log_prob(grid)[:, None]
    weights = (joint - joint.logsumexp((0, 1))).exp()
    shares = torch.einsum("gs,snk,smk->nm", weights, every(3, 2), every(3, 2))  # features in common, of each pair
    has = program.assignments(posterior).double()
    pairs = torch.einsum("cdnk,cdmk->cdnm", has, has)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        assert abs(pairs[..., i, j].mean() - shares[i, j]) < 5 * error(pairs[..., i, j])
    tau = posterior.draws["precision"]
    assert abs(tau.mean() - (weights.sum(1) * grid).sum()) < 5 * error(tau)
    counts = (weights.sum(0) * every(3, 2).any(1).sum(-1)).sum()
    active = program.active(posterior).double()
    assert abs(active.mean() - counts) < 5 * error(active)


def error(draws):
    """Standard error of the mean of [chain, draw], its effective size at hand."""
    import arviz

    return float(draws.std()) / math.sqrt(float(arviz.ess(draws.numpy())))


def pictures(n=60):
    """Sums of three bars on 3 x 3 pictures, and the bars."""
    generator = torch.Generator().manual_seed(0)
    bars = torch.zeros(3, 9, dtype=torch.float64)
    bars[0, :3], bars[1, 6:], bars[2, 1::3] = 2.0, 2.0, 2.0
    has = (torch.rand(n, 3, generator=generator) < 0.5).double()
    return has @ bars, has @ bars + 0.3 * torch.randn(n, 9, generator=generator, dtype=torch.float64)


def test_three_features_are_found_among_six():
    clean, x = pictures()
    program = LatentFeatureModel(9, features=6, alpha=1.0, weight_scale=2.0)
    posterior = dgm.infer(program, x, method=dgm.Gibbs(chains=6, warmup=40, draws=10), seed=1)
    # chains that have settled where two features share a bar's work are far less probable
    has, tau = program.assignments(posterior)[:, -1], posterior.draws["precision"][:, -1]
    best = int(program.log_collapsed(has, x, tau).argmax())
    assert ((has[best].double().mean(0) > 0.1).sum() == 3) and 7 < tau[best] < 16  # of the noise: 11
    weights = posterior.draws["weights"][best, -1]
    error = (has[best].to(weights.dtype) @ weights - clean).square().mean().sqrt()
    assert error < 0.15 < 0.3  # half the noise: three weights a column are learned from 60 rows
    averaged = program.reconstruction(posterior)
    assert averaged.shape == x.shape and (averaged - clean).square().mean().sqrt() < 0.3


def test_refusals_name_the_remedy():
    with pytest.raises(ProgramError, match="features must be"):
        LatentFeatureModel(2, 0)
    with pytest.raises(ProgramError, match="alpha must be a positive"):
        LatentFeatureModel(2, 3, alpha=0.0)
    program, x = LatentFeatureModel(2, 2), torch.zeros(3, 2)
    with pytest.raises(TaskUnavailable):
        dgm.score(program, x)
    posterior = dgm.infer(program, x, method=dgm.Gibbs(chains=1, warmup=2, draws=2), seed=0)
    with pytest.raises(DataError, match="'z_2'"):
        LatentFeatureModel(2, 3).assignments(posterior)
