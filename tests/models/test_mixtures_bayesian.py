"""Bayesian mixtures: samplers against each other and against the sum over all assignments; labels; choice of K."""

import functools
import itertools

import pytest
import torch
from scipy.stats import betabinom

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import (
    BayesianMixture,
    CollapsedMixtureGibbs,
    DirichletProcessMixture,
    MixtureOfBernoullis,
    MixtureOfCategoricals,
    MixtureOfGaussians,
    MixtureOfMixedColumns,
    MixtureOfPoissons,
    MixtureOfStudents,
    MixtureOfVonMisesFishers,
    choose_components,
    relabel,
)
from ppl_dgm.results import Posterior

SITES = ["weights", "means", "precisions"]


def two_groups(first=24, second=16):
    """Two well-separated groups in one dimension, [n, 1]."""
    torch.manual_seed(0)
    return torch.cat([torch.randn(first, 1) - 4, 0.7 * torch.randn(second, 1) + 3]).double()


def sums(program, x, k):
    """The log joint of x and assignments k [...,N], by the program's own marginal likelihood."""
    member = torch.nn.functional.one_hot(k, program.components).double()
    count = member.sum(-2)
    marginal = program.log_marginal(count, member.mT @ x, member.mT @ x.square()).sum(-1)
    a = torch.full_like(count, program.concentration)
    weights = torch.lgamma(a + count).sum(-1) - torch.lgamma(a).sum(-1)
    return marginal + weights + torch.lgamma(a.sum(-1)) - torch.lgamma((a + count).sum(-1))


# -- what conjugacy gives ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_the_marginal_likelihood_is_the_recognised_programs_evidence(likelihood):
    """With one component no assignment is left, and the evidence in closed form is found from the program itself."""
    torch.manual_seed(0)
    x = {
        "gaussian": torch.randn(6, 2),
        "bernoulli": torch.randint(2, (6, 2)),
        "poisson": torch.poisson(torch.ones(6, 2)),
    }
    x = x[likelihood].double()
    program = BayesianMixture(2, 1, likelihood, shape=2.0, rate=1.5, centre=0.3, strength=0.5)
    mine = program.log_marginal(torch.tensor(6.0).double(), x.sum(0), x.square().sum(0))
    if likelihood == "poisson":
        mine = mine - torch.lgamma(x + 1).sum()
    if likelihood == "bernoulli":
        singles = [betabinom.logpmf(int(h), 6, 2.0, 1.5) for h in x.sum(0)]
        ways = sum(
            float(torch.lgamma(torch.tensor(7.0).double()) - torch.lgamma(h + 1) - torch.lgamma(7 - h))
            for h in x.sum(0)
        )
        assert float(mine) == pytest.approx(sum(singles) - ways, abs=1e-9)
    else:  # chain rule with the posterior at any point: log p(x) = log p(x, z) - log p(z | x)
        fixed = program.draw_parameters(torch.tensor(6.0).double(), x.sum(0), x.square().sum(0))
        values = {name: value.unsqueeze(0) for name, value in fixed.items()}
        assert float(mine) == pytest.approx(_by_bayes(program, x, values), abs=1e-9)


def _by_bayes(program, x, values):
    """log p(x | z) + log p(z) - log p(z | x), with the textbook's posterior written out."""
    import torch.distributions as td

    a, b, m, s = (
        torch.tensor(v, dtype=torch.float64) for v in (program.shape, program.rate, program.centre, program.strength)
    )
    n, total = torch.tensor(len(x)).double(), x.sum(0)
    if program.likelihood == "poisson":
        rate = values["rates"][0]
        joint = td.Poisson(rate).log_prob(x).sum() + td.Gamma(a, b).log_prob(rate).sum()
        return float(joint - td.Gamma(a + total, b + n).log_prob(rate).sum())
    mean, precision = values["means"][0], values["precisions"][0]
    joint = td.Normal(mean, precision.rsqrt()).log_prob(x).sum() + td.Gamma(a, b).log_prob(precision).sum()
    joint = joint + td.Normal(m, (s * precision).rsqrt()).log_prob(mean).sum()
    after = (s * m + total) / (s + n)
    spread = (x - x.mean(0)).square().sum(0) + s * n / (s + n) * (x.mean(0) - m).square()
    posterior = td.Gamma(a + n / 2, b + spread / 2).log_prob(precision).sum()
    return float(joint - posterior - td.Normal(after, ((s + n) * precision).rsqrt()).log_prob(mean).sum())


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_collapsed_gibbs_visits_assignments_as_often_as_their_exact_posterior(likelihood):
    """All 2^5 assignments enumerated; total variation of the draws' frequencies from the exact probabilities."""
    x = torch.tensor([[0.0], [1.0], [1.0], [0.0], [3.0 if likelihood != "bernoulli" else 1.0]]).double()
    program = BayesianMixture(1, 2, likelihood)
    every = torch.tensor(list(itertools.product(range(2), repeat=5)))
    exact = sums(program, x, every).softmax(0)
    post = dgm.infer(program, x, method=CollapsedMixtureGibbs(chains=40, warmup=10, draws=150), seed=0)
    code = (post.draws["k"].flatten(0, 1) * 2 ** torch.arange(4, -1, -1)).sum(-1)
    found = torch.bincount(code, minlength=32).double() / len(code)
    assert float((found - exact).abs().sum() / 2) < 0.06  # about 0.03 where draws are independent
    assert torch.allclose(post.stats["lp"].flatten(), sums(program, x, post.draws["k"].flatten(0, 1)), atol=1e-9)


def test_collapsed_gibbs_refuses_what_it_cannot_collapse():
    with pytest.raises(TaskUnavailable, match="DirichletProcessMixture"):
        dgm.infer(DirichletProcessMixture(1, 3), two_groups(), method=CollapsedMixtureGibbs())
    with pytest.raises(ProgramError, match="draws"):
        CollapsedMixtureGibbs(draws=0)


# -- samplers that must agree --------------------------------------------------------------------------------


@functools.cache
def reference():
    method = CollapsedMixtureGibbs(chains=20, warmup=10, draws=50)
    return in_order(dgm.infer(BayesianMixture(1, 2), two_groups(), method=method, seed=0))


def in_order(post):
    """Mean and spread of weights, means and precisions, the components by their mean, [6] each."""
    post = relabel(post, SITES)
    order = post.draws["means"].flatten(0, 1).mean(0)[:, 0].argsort()
    every = torch.cat([post.draws[name].flatten(0, 1).reshape(-1, 2)[:, order] for name in SITES], -1).double()
    return every.mean(0), every.std(0)


@pytest.mark.parametrize(
    "method",
    [
        dgm.Gibbs(chains=4, warmup=50, draws=300),
        pytest.param(dgm.NUTS(chains=4, warmup=150, draws=150), marks=pytest.mark.slow),
    ],
    ids=["gibbs", "nuts"],
)
def test_samplers_agree_with_collapsed_gibbs(method):
    x = two_groups()
    mean, spread = reference()
    post = dgm.infer(BayesianMixture(1, 2), x, method=method, seed=0)
    found, width = in_order(post)
    assert float(((found - mean) / spread).abs().max()) < 0.35
    assert float((width / spread).log().abs().max()) < 0.35


@pytest.mark.slow
def test_the_variational_fit_agrees_with_the_posterior():
    x = two_groups()
    mean, spread = reference()
    program = BayesianMixture(1, 2)
    method = dgm.SVI(elbo="enum", particles=10, epochs=800, lr=0.03, batch_size=None, average=0.98)
    fit = dgm.learn(program, x, guide=program.variational(), method=method, seed=2)
    post = fit.posterior(x, draws=1000, seed=0)
    found, width = in_order(post)
    assert float(((found - mean) / spread).abs().max()) < 0.35
    assert float((width / spread).log().abs().max()) < 0.35
    agree = (post.draws["k"][0, :, :24] == post.draws["k"][0, :, :1]).double().mean()
    assert float(agree) > 0.99  # the first group shares a label in nearly every draw


def test_the_variational_guide_s_labels_are_the_exact_conditional():
    x = two_groups()
    program = BayesianMixture(1, 2)
    method = dgm.SVI(elbo="enum", epochs=2, batch_size=None)
    post = dgm.learn(program, x, guide=program.variational(), method=method, seed=0).posterior(x, draws=4000, seed=0)
    weights, means, precisions = (post.draws[name][0] for name in SITES)  # [draw, 2(, 1)]
    density = torch.distributions.Normal(means[:, None], precisions.rsqrt()[:, None]).log_prob(x[None, :, None].float())
    expected = (density.squeeze(-1) + weights.log()[:, None]).softmax(-1)[..., 1]  # [draw, N]
    error = (post.draws["k"][0].double() - expected).mean(0)
    assert float(error.abs().max()) < 5 * 0.5 / 4000**0.5


def test_em_agrees_with_the_posterior_on_weights_and_means():
    mean, spread = reference()
    em = MixtureOfGaussians(1, 2).double()
    dgm.learn(em, two_groups(), seed=0)
    order = em.means[:, 0].argsort()
    near = torch.cat([em.weights[order], em.means[order, 0]]).detach()
    assert float(((near - mean[:4]) / spread[:4]).abs().max()) < 0.4


def test_a_dirichlet_process_uses_as_many_components_as_there_are_groups():
    x = two_groups()
    program = DirichletProcessMixture(1, 8, concentration=0.5)
    post = dgm.infer(program, x, method=dgm.Gibbs(chains=2, warmup=100, draws=150), seed=0)
    used = torch.nn.functional.one_hot(post.draws["k"], 8).sum(2) >= 3  # [chain, draw, K]
    assert 2.0 <= float(used.sum(-1).double().mean()) < 3.0
    weights = post.deterministic["weights"]
    assert torch.allclose(weights.sum(-1), torch.ones(()).to(weights), atol=1e-5)


def test_stick_breaking_weights_have_the_priors_mean():
    """E[w_k] = (1 / (1 + a)) (a / (1 + a))^(k - 1), and the rest for the last."""
    program = DirichletProcessMixture(1, 4, concentration=2.0)
    drawn = torch.stack([dgm.sample(program, 1, seed=s)["weights"].reshape(-1) for s in range(300)])
    expected = torch.tensor([1 / 3, 2 / 9, 4 / 27, 8 / 27])
    assert float((drawn.mean(0) - expected).abs().max()) < 5 * 0.25 / 300**0.5


# -- labels --------------------------------------------------------------------------------------------------


def test_relabelling_undoes_every_permutation():
    torch.manual_seed(0)
    centres = torch.tensor([[-5.0, 0], [0, 4], [5, -3]])
    means = centres + 0.3 * torch.randn(2, 50, 3, 2)
    weights = torch.tensor([0.5, 0.3, 0.2]).expand(2, 50, 3)
    k = torch.randint(3, (2, 50, 9))
    orders = torch.rand(2, 50, 3).argsort(-1)
    shuffled = Posterior(
        {
            "means": means.gather(2, orders.unsqueeze(-1).expand(-1, -1, -1, 2)),
            "k": orders.argsort(-1).gather(-1, k),
            "other": means[..., 0].sum(-1),
        },
        deterministic={"weights": weights.gather(-1, orders)},
        stats={"lp": torch.arange(100.0).reshape(2, 50)},
        how="test",
    )
    fixed = relabel(shuffled, ["means", "weights"], ["k"])
    last = orders[1, 49]
    assert torch.equal(fixed.draws["means"], means[:, :, last])
    assert torch.equal(fixed.deterministic["weights"], weights[..., last])
    assert torch.equal(fixed.draws["k"], last.argsort()[k])
    assert torch.equal(fixed.draws["other"], shuffled.draws["other"])
    moved = int((orders != last).any(-1).sum())
    assert int(fixed.stats["relabelled"].sum()) == moved and f"{moved} of 100 draws relabelled" in fixed.how


def test_relabelling_names_a_site_that_is_not_there_or_does_not_fit():
    post = Posterior({"means": torch.zeros(1, 2, 3), "scale": torch.zeros(1, 2)})
    with pytest.raises(ProgramError, match="'weights'"):
        relabel(post, ["weights"])
    with pytest.raises(ProgramError, match="first axis"):
        relabel(post, ["means", "scale"])


# -- how many components -------------------------------------------------------------------------------------


def test_held_out_score_and_bic_find_the_number_of_groups():
    torch.manual_seed(0)
    centres = torch.tensor([[-6.0, 0], [0, 6], [6, 0]])
    x = (centres[torch.randint(3, (400,))] + torch.randn(400, 2)).double()
    table = choose_components(lambda k: MixtureOfGaussians(2, k).double(), x[:300], range(1, 6), x[300:])
    assert table.attrs["best"]["bic"] == 3 and table.attrs["best"]["valid"] in (3, 4)
    assert list(table["free"]) == [4 * k + k - 1 for k in range(1, 6)]
    three = table.set_index("components").loc[3]
    assert three["bic"] == pytest.approx(300 * three["train"] - 7 * torch.tensor(300.0).log().item(), abs=1e-4)


def test_the_evidence_is_the_sum_over_all_assignments():
    x = torch.tensor([[0.0, 0], [0, 0], [1, 1], [1, 1], [1, 0], [0, 0]]).double()
    make = lambda k: BayesianMixture(2, k, "bernoulli")  # noqa: E731
    method = dgm.TemperedSMC()
    table = choose_components(
        lambda k: MixtureOfBernoullis(2, k).double(), x, [1, 2], bayesian=make, evidence=method
    ).set_index("components")
    for size in (1, 2):
        every = torch.tensor(list(itertools.product(range(size), repeat=6)))
        exact = float(sums(make(size), x, every).logsumexp(0))
        assert float(table["log_evidence"][size]) == pytest.approx(exact, abs=0.25)
    with pytest.raises(ProgramError, match="candidates"):
        choose_components(make, x, [])


@pytest.mark.parametrize(
    ("program", "free"),
    [
        (MixtureOfGaussians(4, 3), 3 * 8 + 2),
        (MixtureOfGaussians(4, 3, "spherical"), 3 * 5 + 2),
        (MixtureOfGaussians(4, 3, "tied"), 12 + 10 + 2),
        (MixtureOfGaussians(4, 3, "full"), 3 * 14 + 2),
        (MixtureOfGaussians(4, 3, "low-rank", rank=2), 3 * (4 + 8 + 4 - 1) + 2),
        (MixtureOfBernoullis(4, 3), 14),
        (MixtureOfPoissons(4, 3), 14),
        (MixtureOfCategoricals(4, 5, 3), 3 * 4 * 4 + 2),
        (MixtureOfStudents(4, 3), 3 * 15 + 2),
        (MixtureOfStudents(4, 3, "diagonal", df=3.0), 3 * 8 + 2),
        (MixtureOfVonMisesFishers(4, 3), 3 * 4 + 2),
        (MixtureOfMixedColumns(["gaussian", "bernoulli", "categorical-3"], 3), 3 * (2 + 1 + 2) + 2),
    ],
)
def test_free_parameters_are_counted(program, free):
    assert program.free_count == free


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"observed": 1, "components": 0}, "components"),
        ({"observed": 0, "components": 2}, "observed"),
        ({"observed": 1, "components": 2, "likelihood": "cauchy"}, "likelihood.*'cauchy'"),
        ({"observed": 1, "components": 2, "strength": 0.0}, "strength"),
    ],
)
def test_wrong_arguments_of_bayesian_mixtures_are_named(options, words):
    with pytest.raises(ProgramError, match=words):
        BayesianMixture(**options)
