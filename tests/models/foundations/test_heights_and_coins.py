"""Heights and coin tosses: maximum likelihood against a numeric optimum, conjugate posteriors against quadrature."""

import math

import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, optimize, stats

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import BayesianCoinTosses, BayesianHeights, CoinTosses, Heights


def heights(n=40, columns=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 170 + 8 * torch.randn(n, columns, generator=generator, dtype=torch.float64)


def tosses(n=30, coins=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(n, coins, generator=generator) < torch.tensor([0.2, 0.5, 0.9])).long()


# -- maximum likelihood ------------------------------------------------------------------------------------------------


def test_the_gaussians_closed_form_is_where_a_numeric_search_ends():
    x = heights(columns=1)
    fit = dgm.learn(Heights().double(), x)

    def loss(parameters):
        return -stats.norm(parameters[0], math.exp(parameters[1])).logpdf(x.numpy()).sum()

    found = optimize.minimize(
        loss, [160.0, 2.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 2000}
    )
    assert fit.program.mean.item() == pytest.approx(found.x[0], abs=1e-4)
    assert fit.program.variance.item() == pytest.approx(math.exp(2 * found.x[1]), rel=1e-4)
    assert fit.history["objective"].item() == pytest.approx(found.fun / len(x), abs=1e-8)


def test_the_maximum_likelihood_variance_is_biased_by_the_factor_it_should_be():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 20_000, generator=generator, dtype=torch.float64)  # 20000 samples of five
    program = Heights(20_000).double()
    program.fit_closed_form(x)
    spread = float(program.variance.std()) / math.sqrt(20_000)
    assert float(program.variance.mean()) == pytest.approx(4 / 5, abs=4.5 * spread)
    program.fit_closed_form(x, correction=1)
    assert float(program.variance.mean()) == pytest.approx(1.0, abs=5 / 4 * 4.5 * spread)


def test_heights_refuse_what_has_no_variance():
    with pytest.raises(ProgramError, match="correction=0 needs more than 0 examples"):
        Heights().fit_closed_form(torch.zeros(0, 1))
    with pytest.raises(ProgramError, match="correction=1 needs more than 1 examples"):
        dgm.learn(Heights(), torch.zeros(1, 1), method=dgm.ClosedForm({"correction": 1}))
    program = dgm.learn(Heights(), torch.ones(4, 1)).program  # a constant column meets the floor
    assert program.variance.item() == pytest.approx(1e-6)
    with pytest.raises(ProgramError, match="closed form of 'Heights' does not take these arguments"):
        dgm.learn(Heights(), torch.ones(4, 1), torch.ones(4))


def test_a_coins_share_is_the_maximum_and_errs_as_the_theory_says():
    x = tosses()
    program = dgm.learn(CoinTosses(3).double(), x).program
    assert torch.allclose(program.heads, x.double().mean(0), atol=1e-12)
    for shift in (-0.3, 0.3):
        other = CoinTosses(3).double()
        with torch.no_grad():
            other.logits.copy_(program.logits + shift)
        assert dgm.score(other, x).mean().value < dgm.score(program, x).mean().value
    many = (torch.rand(400, 5000, generator=torch.Generator().manual_seed(1)) < 0.3).double()
    shares = CoinTosses(5000).double()
    shares.fit_closed_form(many)
    scaled = math.sqrt(400) * (shares.heads - 0.3)  # sqrt(n) (share - p) -> N(0, p (1 - p))
    assert float(scaled.detach().var()) == pytest.approx(0.21, abs=4.5 * 0.21 * math.sqrt(2 / 5000))


def test_laplaces_rule():
    program = dgm.learn(CoinTosses(1, pseudo_count=1.0).double(), torch.ones(3, 1)).program
    assert program.heads.item() == pytest.approx(4 / 5)


# -- conjugate posteriors ----------------------------------------------------------------------------------------------


def test_nothing_is_latent_without_a_prior():
    with pytest.raises(TaskUnavailable, match="nothing to infer"):
        dgm.infer(Heights(), torch.zeros(3, 1))


def test_the_height_posterior_is_the_one_that_the_verbs_recognise():
    x = heights()
    prior = BayesianHeights(2, [160.0, 180.0], 0.5, 3.0, [40.0, 90.0])
    post, after = dgm.infer(prior, x, seed=0), prior.updated(x)
    assert post.kind == "exact"
    variance = post.exact["variance"].base_dist
    assert torch.allclose(variance.concentration, torch.full((2,), after.shape, dtype=variance.concentration.dtype))
    assert torch.allclose(variance.rate.double(), torch.tensor(after.rate, dtype=torch.float64), rtol=1e-5)
    assert float(post.log_evidence.value) == pytest.approx(float(prior.log_evidence(x)), abs=1e-4)
    means, n = post.draws["mean"].flatten(0, 1), post.draws["mean"].shape[1]
    error = means.std(0) / math.sqrt(n)
    assert bool(((means.mean(0) - torch.tensor(after.centre)).abs() < 5 * error).all())


def test_the_height_evidence_and_predictive_equal_quadrature():
    x = torch.tensor([[1.0], [2.5], [0.3]], dtype=torch.float64)
    prior = BayesianHeights(1, 0.5, 2.0, 3.0, 1.5)

    mean = torch.linspace(-30, 30, 2001, dtype=torch.float64)[:, None]
    v = torch.linspace(-6, 8, 401, dtype=torch.float64).exp()  # on a grid of its logarithm
    density = dist.InverseGamma(3.0, 1.5).log_prob(v) + dist.Normal(0.5, (v / 2).sqrt()).log_prob(mean) + v.log()

    def evidence(rows):
        likelihood = sum(dist.Normal(mean, v.sqrt()).log_prob(row) for row in rows.flatten())
        return float((density + likelihood).exp().sum()) * (60 / 2000) * (14 / 400)

    assert math.exp(prior.log_evidence(x)) == pytest.approx(evidence(x), rel=1e-4)
    t = torch.tensor([[1.7]], dtype=torch.float64)
    ahead = math.exp(float(prior.updated(x).predictive().log_prob(t.float())))
    assert ahead == pytest.approx(evidence(torch.cat([x, t])) / evidence(x), rel=1e-4)


def test_data_that_come_in_parts_give_the_same_posterior():
    x = heights()
    whole, parts = BayesianHeights(2).updated(x), BayesianHeights(2).updated(x[:7]).updated(x[7:])
    for name in ("centre", "strength", "shape", "rate"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-10), name
    y = tosses()
    whole, parts = BayesianCoinTosses(3).updated(y), BayesianCoinTosses(3).updated(y[:7]).updated(y[7:])
    assert torch.equal(whole.ones, parts.ones) and torch.equal(whole.zeros, parts.zeros)


def test_the_coin_posterior_evidence_and_predictive_equal_quadrature():
    x = torch.tensor([[1], [0], [1], [1], [1]])
    prior = BayesianCoinTosses(1, 2.0, 3.0).double()

    def joint(p, ones=4):
        return stats.beta(2, 3).pdf(p) * p**ones * (1 - p)

    evidence = integrate.quad(joint, 0, 1)[0]
    score = dgm.score(prior, x)
    assert score.kind == "exact" and math.exp(float(score.value)) == pytest.approx(evidence, rel=1e-8)
    post = dgm.infer(prior, x, seed=0).exact["heads"]
    for p in (0.2, 0.6, 0.9):
        assert math.exp(float(post.log_prob(torch.tensor([p], dtype=torch.float64)))) == pytest.approx(
            joint(p) / evidence, rel=1e-6
        )
    ahead = float(prior.updated(x).predictive().base_dist.probs)
    assert ahead == pytest.approx(integrate.quad(lambda p: joint(p, 5), 0, 1)[0] / evidence, rel=1e-6)


def test_the_verbs_recognise_the_same_coin_posterior_without_being_told():
    x, prior = tosses(), BayesianCoinTosses(3)
    told, found = dgm.infer(prior, x, seed=0), dgm.infer(dgm.as_program(prior.model), x, method="exact", seed=0)
    assert torch.allclose(told.exact["heads"].mean, found.exact["heads"].mean, atol=1e-6)
    assert float(told.log_evidence.value) == pytest.approx(float(found.log_evidence.value), abs=1e-4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Heights(0), "observed must be at least 1, but it is 0"),
        (lambda: Heights(1, floor=0.0), "floor must be a positive variance"),
        (lambda: CoinTosses(1, -1.0), "pseudo_count must be a number from 0"),
        (lambda: BayesianCoinTosses(2, [1.0]), "ones must be one positive number, or one for each of 2 coins"),
        (lambda: BayesianHeights(2, [1.0]), "centre must be one finite number, or one for each of 2 columns"),
        (lambda: BayesianHeights(1, rate=-1.0), "rate must be positive"),
    ],
)
def test_wrong_arguments_are_refused(make, words):
    with pytest.raises(ProgramError, match=words):
        make()
