"""DomainInvariantVAE: scores against linear Gaussians with and without labels, the penalty, and classes told in a new domain."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models import DomainInvariantVAE

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double()
D = torch.tensor([0, 1, -1, -1])
Y = torch.tensor([2, -1, 0, -1])


def linear():
    """One dimension for each part of the code, and a linear decoder, so that p(x | d, y) is Gaussian."""
    torch.manual_seed(0)
    program = DomainInvariantVAE(3, domains=2, classes=3, likelihood="gaussian", latents=(1, 1, 1), depth=0)
    with torch.no_grad():
        for encoder in program.encoders:  # wide, so that importance weights are bounded
            encoder[0].bias[1] = 2.5
    return program.double().eval()


def exact(program, d, y):
    """log p(x) given the labels that are known, the others with equal weights, [n]."""
    layer, terms = program.decoder[0], []
    for domain, label in itertools.product(range(2), range(3)):
        loc = torch.cat([program.priors[0].loc[domain], torch.zeros(1).double(), program.priors[1].loc[label]])
        ones = torch.ones(1).double()
        spread = torch.cat(
            [program.priors[0].log_variance[domain].exp(), ones, program.priors[1].log_variance[label].exp()]
        )
        covariance = layer.weight * spread @ layer.weight.mT + torch.diag(program.likelihood.scale**2)
        log_p = MultivariateNormal(layer.weight @ loc + layer.bias, covariance).log_prob(X)
        fits = ((d < 0) | (d == domain)) & ((y < 0) | (y == label))
        shares = torch.where(d < 0, 1 / 2, 1.0) * torch.where(y < 0, 1 / 3, 1.0)
        terms.append(torch.where(fits, log_p + shares.log(), -torch.inf))
    return torch.stack(terms).logsumexp(0).detach()


@pytest.mark.parametrize("method", [dgm.ImportanceWeighted(draws=50_000), dgm.SimpleMonteCarlo(draws=50_000)])
def test_scores_tend_to_the_density_with_and_without_labels(method):
    program = linear()
    with torch.no_grad():
        program.priors[0].log_variance.add_(torch.tensor([[0.5], [-1.0]]))
    for d, y in ((D, Y), (torch.full((4,), -1), Y)):
        score = dgm.score(program, X, d, y, method=method, seed=0)
        assert ((score.value - exact(program, d, y)).abs() < 5 * score.stderr + 1e-3).all() and score.stderr.max() < 0.1
    missing = torch.full((4,), -1)
    bare = dgm.score(program, X, seed=0).value
    assert torch.allclose(bare, dgm.score(program, X, missing, missing, seed=0).value)
    assert torch.allclose(dgm.score(program, X, D, seed=0).value, dgm.score(program, X, D, missing, seed=0).value)


def test_samples_given_labels_have_their_means():
    program = linear()
    drawn = dgm.sample(program, 20_000, given={"d": 1, "y": 2}, seed=0)
    loc = torch.cat([program.priors[0].loc[1], torch.zeros(1).double(), program.priors[1].loc[2]])
    mean = (program.decoder[0].weight @ loc + program.decoder[0].bias).detach()
    assert ((drawn["x"].mean(0) - mean).abs() < 5 * drawn["x"].std(0) / 20_000**0.5).all()


def test_the_penalty_is_the_known_labels_cross_entropy():
    program = linear()
    with torch.no_grad():
        for encoder in program.encoders:  # no noise, so that the draw is the mean
            encoder[0].weight[1:].zero_()
            encoder[0].bias[1:].fill_(-14.0)
    q_d, _, q_y = program.encode(X)
    by_hand = (
        50
        / 4
        * (
            nn.functional.cross_entropy(program.classifiers[0](q_d.mean)[:2], D[:2], reduction="sum")
            + nn.functional.cross_entropy(program.classifiers[1](q_y.mean)[[0, 2]], Y[[0, 2]], reduction="sum")
        )
    )
    torch.testing.assert_close(program.penalty(X, D, Y), by_hand, rtol=2e-3, atol=1e-2)
    assert float(program.penalty(X)) == 0.0
    before = dgm.score(program, X, D, Y, seed=0).value
    program.domain_weight = program.class_weight = 0.0
    assert torch.equal(dgm.score(program, X, D, Y, seed=0).value, before)


def made(n, domains, seed):
    """The class moves the first two columns, the domain the other two, both with noise."""
    generator = torch.Generator().manual_seed(seed)
    d = domains[torch.randint(len(domains), (n,), generator=generator)]
    y = torch.randint(0, 2, (n,), generator=generator)
    angle = 1.3 * d.double()
    signal = torch.stack([2.0 * y - 1, 1 - 2.0 * y, 2 * angle.cos(), 2 * angle.sin()], -1)
    return (signal + 0.4 * torch.randn(n, 4, generator=generator)).float(), d, y


def test_classes_are_told_in_a_domain_never_seen_and_each_part_knows_its_own():
    torch.manual_seed(0)
    program = DomainInvariantVAE(4, 3, 2, likelihood="gaussian", latents=(2, 2, 2), hidden=32, depth=1)
    x, d, y = made(400, torch.tensor([0, 1, 2]), 0)
    y = torch.where(torch.arange(400) % 2 == 0, y, -1)  # half of the classes are missing
    method = dataclasses.replace(program.default_method("learn"), epochs=60, batch_size=32)
    dgm.learn(program, x, d, y, method=method, seed=0)
    new, _, truth = made(400, torch.tensor([4]), 1)
    assert (program.classify(new).argmax(-1) == truth).double().mean() > 0.95
    old, where, _ = made(400, torch.tensor([0, 1, 2]), 2)
    assert (program.domain(old).argmax(-1) == where).double().mean() > 0.95
    # the domain cannot be read off the class's code: no better than the largest share, and a little
    with torch.no_grad():
        z = program.encode(old)[2].mean
        centres = torch.stack([z[where == k].mean(0) for k in range(3)])
        guess = torch.cdist(z, centres).argmin(-1)
    assert (guess == where).double().mean() < 0.55
    with_labels = dgm.score(program, old, where, seed=0).value.mean()
    wrong = dgm.score(program, old, (where + 1) % 3, seed=0).value.mean()
    assert with_labels > wrong + 1


def test_refusals_name_the_remedy():
    with pytest.raises(ProgramError, match="three sizes"):
        DomainInvariantVAE(3, 2, 2, values=2, latents=(2, 2))
    with pytest.raises(ProgramError, match="class_weight"):
        DomainInvariantVAE(3, 2, 2, values=2, class_weight=-1.0)
    with pytest.raises(DataError, match=r"d\[1\] is 2"):
        dgm.score(linear(), X, torch.tensor([0, 2, 0, 0]))
