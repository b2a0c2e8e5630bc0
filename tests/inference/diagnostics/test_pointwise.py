"""The log likelihood of each observation, summed-out sites included, and what follows from it: PSIS-LOO and WAIC."""

import math
import warnings

import arviz
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from oracles.posteriors import eight_schools, eight_schools_reparam, hmm, masked_and_scaled, normal_data, schools_data
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics import pointwise
from ppl_dgm.results import Posterior


def posterior(program, args, draws, **more):
    """A posterior with given draws, as infer would leave it."""
    return Posterior(draws, program=dgm.as_program(program), arguments=(args, {}), kind="asymptotic", **more)


def test_each_observation_of_a_sampled_posterior():
    y, sigma = schools_data()
    post = dgm.infer(eight_schools, y, sigma, method=dgm.HMC(chains=2, warmup=20, draws=5), seed=0)
    theta = post.deterministic["theta"]
    assert set(post.log_likelihood) == {"y"}
    assert torch.allclose(post.log_likelihood["y"], dist.Normal(theta, sigma).log_prob(y), atol=1e-5)
    assert post.log_likelihood is post.log_likelihood  # kept


def test_reparametrised_and_masked_programs():
    y, sigma = schools_data()
    post = dgm.infer(eight_schools_reparam, y, sigma, method=dgm.HMC(chains=2, warmup=20, draws=3), seed=0)
    wanted = dist.Normal(post.deterministic["theta"], sigma).log_prob(y)
    assert torch.allclose(post.log_likelihood["y"], wanted, atol=1e-5)
    x, mean = normal_data(3, 5), torch.randn(1, 4, 3, 1)
    found = posterior(masked_and_scaled, (x,), {"mean": mean}).log_likelihood["x"]
    wanted = 1.5 * dist.StudentT(4.0, mean, 1.0).log_prob(x) * (torch.arange(5) % 2 == 0)
    assert found.shape == (1, 4, 3, 5) and torch.allclose(found, wanted, atol=1e-6)


def test_chunks_and_a_program_that_vmap_cannot_follow(monkeypatch):
    def branching(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        scale = 1.0 if float(mean) > 0 else 2.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)

    x, mean = normal_data(4), torch.randn(2, 7)
    monkeypatch.setattr(pointwise, "_ENTRIES", 12)  # three draws at a time
    found = posterior(branching, (x,), {"mean": mean}).log_likelihood["x"]
    scale = torch.where(mean > 0, 1.0, 2.0)[..., None]
    assert torch.allclose(found, dist.Normal(mean[..., None], scale).log_prob(x), atol=1e-6)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[c], 1.0), obs=x)


def test_a_summed_out_site_is_summed_out_for_each_observation():
    x = normal_data(6)
    draws = {"weights": dist.Dirichlet(torch.ones(3)).sample((2, 5)), "mean": torch.randn(2, 5, 3)}
    found = posterior(mixture, (x,), draws).log_likelihood["x"]
    each = draws["weights"].log()[..., None, :] + dist.Normal(draws["mean"][..., None, :], 1.0).log_prob(x[:, None])
    assert found.shape == (2, 5, 6) and torch.allclose(found, each.logsumexp(-1), atol=1e-5)


def test_observations_under_one_summed_out_site_count_as_one():
    def classes(x, y):
        ability = pyro.sample("ability", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("students", x.shape[1], dim=-1):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            logits = ability[k.long()]
            pyro.sample("y", dist.Normal(logits, 1.0), obs=y)
            with pyro.plate("items", x.shape[0], dim=-2):
                pyro.sample("x", dist.Bernoulli(logits=logits), obs=x)

    x, y, ability = torch.bernoulli(torch.full((3, 4), 0.5)), normal_data(4), torch.randn(1, 6, 2)
    found = posterior(classes, (x, y), {"ability": ability}).log_likelihood
    per_class = dist.Bernoulli(logits=ability[..., None, None, :]).log_prob(x[..., None]).sum(-3)
    per_class = per_class + dist.Normal(ability[..., None, :], 1.0).log_prob(y[:, None])
    wanted = (per_class + torch.tensor([0.7, 0.3]).log()).logsumexp(-1)
    assert set(found) == {"students"} and torch.allclose(found["students"], wanted, atol=1e-5)


def test_a_chain_of_summed_out_sites_ties_its_observations_together():
    draws = {"moves": torch.full((1, 3, 2, 2), 0.5), "mean": torch.randn(1, 3, 2)}
    with pytest.raises(
        TaskUnavailable, match=r"site 'state_0' is summed out and ties .* 'x_0', 'x_1', 'x_2' and others"
    ):
        _ = posterior(hmm, (normal_data(5),), draws).log_likelihood


def test_what_is_not_known_is_said():
    with pytest.raises(ProgramError, match=r"does not know its program and observations; set posterior\.program"):
        _ = Posterior({"z": torch.zeros(1, 2)}).log_likelihood


# -- what follows ----------------------------------------------------------------------------------------------


def normal_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def exact_loo(y):
    """log p(y_i | the others) of the conjugate normal mean, [n]."""
    precision = 1 / 4 + len(y) - 1
    centre = (y.sum() - y) / precision
    return dist.Normal(centre, math.sqrt(1 + 1 / precision)).log_prob(y)


def conjugate(y, draws=4000, **more):
    precision = 1 / 4 + len(y)
    mean = y.sum() / precision + torch.randn(4, draws // 4) / math.sqrt(precision)
    return posterior(normal_mean, (y,), {"mean": mean}, **more)


def test_leave_one_out_is_that_of_the_conjugate_model():
    y = 1 + normal_data(20)
    post = conjugate(y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = post.loo()
    wanted = exact_loo(y)
    assert result.elpd_loo == pytest.approx(float(wanted.sum()), abs=0.1)
    assert torch.allclose(torch.as_tensor(result.loo_i.to_numpy()).float(), wanted, atol=0.05)
    assert torch.allclose(post.waic().value.float(), wanted, atol=0.1)


def test_weighted_draws_leave_one_out():
    y = 1 + normal_data(10)
    wide = torch.randn(1, 8000) + 0.5  # a proposal that is too wide, N(0.5, 1)
    weights = dist.Normal(0.0, 2.0).log_prob(wide) + dist.Normal(wide[..., None], 1.0).log_prob(y).sum(-1)
    weights = (weights - dist.Normal(0.5, 1.0).log_prob(wide))[0]
    post = posterior(normal_mean, (y,), {"mean": wide}, log_weights=weights)
    assert post.loo().elpd_loo == pytest.approx(float(exact_loo(y).sum()), abs=0.2)
    assert float(post.waic().value.sum()) == pytest.approx(float(exact_loo(y).sum()), abs=0.2)
    table = post.summary()
    precision = 1 / 4 + len(y)
    assert table.loc["mean", "mean"] == pytest.approx(float(y.sum()) / precision, abs=0.06)
    effective = float(1 / torch.softmax(weights.double(), 0).square().sum())
    assert table.loc["mean", "ess_bulk"] == pytest.approx(effective, rel=0.01)
    assert table.loc["mean", "mcse_mean"] == pytest.approx(1 / math.sqrt(precision * effective), rel=0.5)


def test_an_observation_that_carries_the_posterior_is_named():
    def free(y):  # the outlier alone decides where the fifth mean is
        mean = pyro.sample("mean", dist.Normal(torch.zeros(5), 30.0).to_event(1))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.0, 0.0, 0.0, 0.0, 40.0])
    post = posterior(free, (y,), {"mean": y + torch.randn(4, 500, 5)})
    with pytest.warns(RuntimeWarning, match=r"of 5 observations move the posterior .* y\[\d\] \(\d\.\d\d\)"):
        post.loo(pointwise=True)
    with pytest.raises(ProgramError, match="no observed site 'q'; there are 'y'"):
        post.loo("q")


def test_two_programs_are_compared_by_arviz():
    def shifted(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean + 1.5, 0.5), obs=y)

    y = 1 + normal_data(20)
    wrong = posterior(shifted, (y,), {"mean": (y.mean() - 1.5) + 0.1 * torch.randn(4, 500)})
    table = arviz.compare({"right": conjugate(y).loo(), "too narrow": wrong.loo()})
    assert list(table.index) == ["right", "too narrow"]


def test_groups_of_arviz(tmp_path):
    y, sigma = schools_data()
    post = dgm.infer(eight_schools, y, sigma, method=dgm.HMC(chains=2, warmup=20, draws=5), seed=0)
    plain = post.to_arviz()
    assert "theta" in plain.posterior and "log_likelihood" not in plain.groups()
    assert plain.observed_data["y"].values == pytest.approx(y.numpy())
    whole = post.to_arviz(predictive=True, log_likelihood=True)
    assert whole.posterior_predictive["y"].shape == whole.log_likelihood["y"].shape == (2, 5, 8)
    post.save(tmp_path)
    again = Posterior.load(tmp_path)
    assert torch.equal(again.log_likelihood["y"], post.log_likelihood["y"])
    assert again.to_arviz().log_likelihood["y"].shape == (2, 5, 8)
    post.keep_log_likelihood(None)
    post.save(tmp_path)
    assert not Posterior.load(tmp_path).has_log_likelihood
