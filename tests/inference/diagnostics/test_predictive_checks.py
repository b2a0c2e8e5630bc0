"""Predictive checks against the closed form of the conjugate normal model, and programs that do not fit."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal

import ppl_dgm as dgm
from oracles.posteriors import normal_data
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics.predictive_checks import predictive_check
from ppl_dgm.inference.diagnostics.uniformity import kolmogorov_smirnov_p
from ppl_dgm.results import Posterior


def normal_mean(y, scale=1.0):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def conjugate(y, draws=4000, program=normal_mean, scale=1.0):
    """The exact posterior of the mean, as draws."""
    precision = 1 / 4 + len(y) / scale**2
    mean = y.sum() / scale**2 / precision + torch.randn(4, draws // 4) / math.sqrt(precision)
    return Posterior({"mean": mean}, program=dgm.as_program(program), arguments=((y, scale), {}), kind="asymptotic")


def test_p_value_of_the_mean_is_the_closed_form():
    y = 1 + normal_data(25)
    precision = 1 / 4 + 25
    centre, spread = float(y.sum()) / precision, math.sqrt(1 / precision + 1 / 25)
    check = conjugate(y, 8000).check("mean", draws=8000)
    (row,) = check.table.itertuples()
    wanted = 1 - float(Normal(centre, spread).cdf(y.mean()))
    assert row.observed == pytest.approx(float(y.mean())) and check.draws == 8000
    assert row.p == pytest.approx(wanted, abs=4 * 0.5 / math.sqrt(8000))
    assert row.replicated == pytest.approx(centre, abs=4 * spread / math.sqrt(8000))
    assert row.sd == pytest.approx(spread, rel=0.05)


def test_loo_pit_is_the_closed_form_and_uniform_where_the_program_is_right():
    y = 1 + normal_data(60)
    check = conjugate(y).check(draws=4000)
    precision = 1 / 4 + 59
    wanted = Normal((y.sum() - y) / precision, math.sqrt(1 + 1 / precision)).cdf(y)
    assert torch.allclose(check.loo_pit["y"].float(), wanted, atol=4 * 0.5 / math.sqrt(4000))
    assert kolmogorov_smirnov_p(check.loo_pit["y"]) > 0.01
    assert check.ok and "reproduces" in str(check)


@pytest.mark.parametrize(
    ("scale", "words"), [(0.4, "predictions are too narrow"), (3.0, "predictions are too wide")], ids=["narrow", "wide"]
)
def test_a_likelihood_of_the_wrong_width_is_named(scale, words):
    check = conjugate(1 + normal_data(60), scale=scale).check()
    assert any(words in sentence for sentence in check.sentences), check.sentences
    assert any("observed sd of y" in sentence for sentence in check.sentences)


def test_a_statistic_of_ones_own_finds_what_the_usual_ones_do_not():
    y = torch.cat([torch.zeros(30) - 1, torch.zeros(30) + 1]) + 0.3 * normal_data(60)  # sorted in time

    def lag(y):
        return (y[1:] * y[:-1]).mean()

    check = conjugate(y).check(lag)
    assert list(check.table["statistic"]) == ["lag"] and check.table["p"][0] < 0.001
    assert "observed lag of y" in check.sentences[0]


def test_masked_and_missing_observations_are_left_out():
    def masked(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)), pyro.poutine.mask(mask=y < 10):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.cat([normal_data(9), torch.tensor([99.0])])
    mean = y[:9].sum() / 9.25 + torch.randn(2, 500) / math.sqrt(9.25)
    post = Posterior({"mean": mean}, program=dgm.as_program(masked), arguments=((y,), {}))
    check = post.check("max")
    assert check.table["observed"][0] == pytest.approx(float(y[:9].max())) and len(check.loo_pit["y"]) == 9


def test_counts_have_ties():
    def counts(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = torch.poisson(torch.full((80,), 1.5))
    rate = dist.Gamma(2.0 + y.sum(), 1.0 + 80).sample((2, 1000))
    post = Posterior({"rate": rate}, program=dgm.as_program(counts), arguments=((y,), {}))
    check = post.check(draws=2000)
    low = check.table.set_index("statistic").loc["min"]
    none = 1 - float((1 - (-rate).exp()).pow(80).mean())  # P(some zero), nearly one
    assert low["p"] == pytest.approx((1 - none) + none / 2, abs=0.05)  # the observed minimum is 0: ties count half
    assert kolmogorov_smirnov_p(check.loo_pit["y"]) > 0.01


def test_weighted_draws_and_pictures(tmp_path):
    y = 1 + normal_data(20)
    wide = torch.randn(1, 4000) + 0.5
    weights = dist.Normal(0.0, 2.0).log_prob(wide) + dist.Normal(wide[..., None], 1.0).log_prob(y).sum(-1)
    weights = (weights - dist.Normal(0.5, 1.0).log_prob(wide))[0]
    post = Posterior({"mean": wide}, log_weights=weights, program=dgm.as_program(normal_mean), arguments=((y,), {}))
    check = predictive_check(post, "mean", draws=4000)
    assert check.table["replicated"][0] == pytest.approx(float(y.sum()) / 20.25, abs=0.1)
    check.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 5000


def test_wrong_calls_are_named():
    post = conjugate(normal_data(5))
    with pytest.raises(ProgramError, match="no statistic 'mode'; there are 'mean'"):
        post.check("mode")
    with pytest.raises(ProgramError, match="no observed site 'x'; there are 'y'"):
        post.check(site="x")
    with pytest.raises(ProgramError, match="must give one number, but gave shape \\(5,\\)"):
        post.check(lambda y: y)
    blind = Posterior({"z": torch.zeros(1, 3)}, arguments=((), {}))
    blind.program = dgm.as_program(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))
    with pytest.raises(TaskUnavailable, match="observes nothing"):
        blind.check()
