"""Each of Pyro's autoguides by name through infer, against a posterior that is known: means, variances, number type."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.autoguides import MessengerGuide, autoguide, autoguides
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.inference.amortised import Amortised
from ppl_dgm.inference.svi import SVI

Y = torch.tensor([1.0, -0.5, 2.0]).double()


def groups(y: Tensor) -> None:
    """mu ~ N(0, 1), theta_i ~ N(mu, 1), y_i ~ N(theta_i, 1/2)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(theta, 0.5), obs=y)


def exact() -> tuple[Tensor, Tensor]:
    """Mean [4] and precision [4, 4] of (mu, theta)."""
    precision = torch.diag(torch.tensor([4.0, 5, 5, 5])).double()
    precision[0, 1:] = precision[1:, 0] = -1
    return torch.linalg.solve(precision, torch.cat([Y.new_zeros(1), 4 * Y])), precision


FULL = {  # families that hold the posterior: covariances are right
    "AutoMultivariateNormal", "AutoGaussian", "AutoStructured", "AutoLaplaceApproximation", "AutoRegressiveMessenger",
    "AutoIAFNormal", "AutoNormalizingFlow", "AutoHierarchicalNormalMessenger", "AutoLowRankMultivariateNormal",
}  # fmt: skip
MEAN_FIELD = {"AutoNormal", "AutoDiagonalNormal", "AutoNormalMessenger"}  # variances are those given all other sites
POINT = {"AutoDelta"}
DISCRETE = {"AutoDiscreteParallel"}


def test_every_autoguide_of_pyro_is_accounted_for() -> None:
    assert set(autoguides()) == FULL | MEAN_FIELD | POINT | DISCRETE


def fitted(guide: Any, epochs: int, lr: float = 0.03) -> dgm.Posterior:
    method = SVI(guide=guide, batch_size=None, epochs=epochs, lr=lr, schedule="cosine")
    return dgm.infer(groups, Y, method=method, seed=0)


def flat(post: dgm.Posterior) -> Tensor:
    """Draws of (mu, theta), [draw, 4]."""
    return torch.cat([post.draws["mu"][0, :, None], post.draws["theta"][0]], 1)


@pytest.mark.filterwarnings("ignore:running without a recorded graph:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(FULL | MEAN_FIELD))
def test_each_runs_keeps_double_precision_and_reports_its_shape(name: str) -> None:
    post = fitted(name, epochs=3)
    assert post.draws["theta"].shape == (1, 1000, 3) and post.draws["theta"].dtype == torch.float64
    assert post.draws["mu"].dtype == torch.float64 and post.kind == "approximate"
    assert post.stats["pareto_k"].shape == (1, 1000) and "draws from the guide" in post.how
    assert torch.get_default_dtype() == torch.float32 and not list(pyro.get_param_store().keys())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:running without a recorded graph:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(FULL))
def test_families_that_hold_the_posterior_find_it(name: str) -> None:
    mean, precision = exact()
    draws = flat(fitted(name, epochs=1500))
    covariance = torch.linalg.inv(precision)
    spread = covariance.diagonal().sqrt()
    assert (
        float(((draws.mean(0) - mean) / spread).abs().max()) < 0.3
    )  # the noise of 1500 steps of one draw, and of 1000 draws
    assert float((draws.std(0) / spread - 1).abs().max()) < 0.25
    if (
        name != "AutoHierarchicalNormalMessenger"
    ):  # theta about mu, one weight for all groups: here exact up to learning
        assert 0.0 < float(draws.T.cov()[0, 1:].mean()) / float(covariance[0, 1]) < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MEAN_FIELD))
def test_mean_field_families_have_the_conditional_variances(name: str) -> None:
    """The KL divergence's minimum has the variances 1 / precision, which are too small, and no covariances."""
    mean, precision = exact()
    draws = flat(fitted(name, epochs=2000))
    wanted = precision.diagonal().rsqrt()
    assert float(((draws.mean(0) - mean) / wanted).abs().max()) < 0.3
    assert float((draws.std(0) / wanted - 1).abs().max()) < 0.15
    assert float(torch.corrcoef(draws.T)[0, 1:].abs().max()) < 4.5 / 1000**0.5


def test_the_point_of_highest_density_and_the_curvature_there() -> None:
    """AutoDelta finds the mean of a normal posterior; AutoLaplaceApproximation puts the exact covariance around it."""
    mean, precision = exact()
    point = fitted("AutoDelta", epochs=300, lr=0.1)
    torch.testing.assert_close(flat(point), mean.expand(1000, 4), atol=1e-3, rtol=0)
    assert point.stats == {} and "point" in point.how
    method = SVI(guide="AutoLaplaceApproximation", batch_size=None, epochs=300, lr=0.1, schedule="cosine")
    fit = dgm.learn(groups, Y, method=method, seed=0)
    guide = fit.program.guide
    assert isinstance(guide, AutoMultivariateNormal)
    root = guide.scale[:, None] * guide.scale_tril
    torch.testing.assert_close((root @ root.T).detach(), torch.linalg.inv(precision), atol=1e-4, rtol=0)
    assert float(fit.posterior(Y, seed=0).stats["pareto_k"][0, 0]) < 0.5


def test_a_learned_laplace_approximation_survives_a_file(tmp_path: Any) -> None:
    method = SVI(guide="AutoLaplaceApproximation", batch_size=None, epochs=50, lr=0.1)
    fit = dgm.learn(groups, Y, method=method, seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path, program=groups, args=(Y,))
    for name in ("loc", "scale", "scale_tril"):
        wanted = getattr(fit.program.guide, name)
        torch.testing.assert_close(getattr(again.program.guide, name), wanted, check_dtype=False, atol=1e-5, rtol=1e-5)


def choice(x: Tensor) -> None:
    k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)


def test_a_discrete_guide_finds_the_enumerated_posterior() -> None:
    x = torch.tensor([1.0, 0.8, 2.0])
    log_p = dist.Normal(torch.arange(3.0)[:, None], 1.0).log_prob(x).sum(1) + torch.tensor([0.5, 0.3, 0.2]).log()
    wanted = torch.softmax(log_p, 0)
    method = SVI(guide="AutoDiscreteParallel", batch_size=None, epochs=300, lr=0.1, schedule="cosine")
    fit = dgm.learn(choice, x, method=method, seed=0)
    torch.testing.assert_close(fit.program.guide.k_probs.detach(), wanted, atol=1e-3, rtol=0)  # the ELBO has no noise
    share = torch.bincount(fit.posterior(x, seed=0).draws["k"].flatten(), minlength=3) / 1000
    assert float((share - wanted).abs().max()) < 4.5 * 0.5 / 1000**0.5


def test_classes_partials_and_lists_of_guides() -> None:
    low_rank = fitted(partial(AutoLowRankMultivariateNormal, rank=2), epochs=3)
    assert low_rank.draws["mu"].shape == (1, 1000)
    assert fitted(AutoNormal, epochs=3).draws["mu"].shape == (1, 1000)
    both = AutoGuideList(groups)
    both.append(AutoMultivariateNormal(poutine.block(groups, expose=["theta"])))
    both.append(AutoNormal(poutine.block(groups, expose=["mu"])))
    post = fitted(both, epochs=3)
    assert post.draws["theta"].shape == (1, 1000, 3) and post.stats["pareto_k"].shape == (1, 1000)


def test_a_messenger_guide_scores_latent_sites_alone() -> None:
    """It runs the model itself; its observations are no part of the guide's density."""
    program = dgm.as_program(groups, "AutoNormalMessenger")
    assert isinstance(program.guide, MessengerGuide)
    with program.running():
        trace = poutine.trace(program.run_guide).get_trace(Y)
    sites = {name for name, node in trace.nodes.items() if node["type"] == "sample" and name != "data"}
    assert sites == {"mu", "theta"} and not any(trace.nodes[name]["is_observed"] for name in sites)


def test_an_explicit_guide_is_used_instead_of_the_programs() -> None:
    program = dgm.as_program(groups, "AutoNormal")
    fit = dgm.learn(program, Y, method=SVI(guide="AutoMultivariateNormal", batch_size=None, epochs=2), seed=0)
    assert isinstance(fit.program.guide, AutoMultivariateNormal)


def test_the_shape_tells_a_good_guide_from_a_bad_one() -> None:
    mean, precision = exact()
    covariance = torch.linalg.inv(precision)

    def right(y: Tensor) -> None:
        whole = pyro.sample("whole", dist.MultivariateNormal(mean, covariance), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(whole[0]))
        with pyro.plate("data", 3):
            pyro.sample("theta", dist.Delta(whole[1:]))

    def narrow(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(mean[0], 0.1))
        with pyro.plate("data", 3):
            pyro.sample("theta", dist.Normal(mean[1:], 0.1))

    good = dgm.infer(groups, Y, guide=right, seed=0)
    bad = dgm.infer(groups, Y, guide=narrow, seed=0)
    assert float(good.stats["pareto_k"].max()) < 0.5 and float(bad.stats["pareto_k"].min()) > 0.7
    assert dgm.infer(groups, Y, guide=narrow, method=Amortised(weigh=False), seed=0).stats == {}
    assert dgm.infer(groups, Y, guide=narrow, method=Amortised(draws=20), seed=0).stats == {}


@pytest.mark.parametrize(
    ("guide", "words"),
    [
        ("AutoDiscreteParallel", r"cannot take 'groups': .*\"mu\" to be discrete.*'AutoNormal'"),
        ("AutoGuideList", r"combines other guides; make it yourself"),
        ("AutoCallable", r"wraps a function of yours"),
        ("AutoContinuous", r"is not one of Pyro's autoguides: AutoDelta"),
        ("AutoNormul", r"is not one of Pyro's autoguides"),
    ],
)
def test_what_cannot_be_run_gets_a_sentence(guide: str, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        fitted(guide, epochs=1)


def test_a_program_without_arguments_and_a_saddle_are_refused() -> None:
    with pytest.raises(
        ProgramError, match=r"SVI learns from observations that the program takes as its first argument"
    ):
        dgm.infer(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), method="svi")

    def saddle(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("f", z**2 * x)

    with pytest.raises(NumericalError, match="not curved downwards"):
        method = SVI(guide="AutoLaplaceApproximation", batch_size=None, epochs=1)
        dgm.learn(saddle, torch.tensor(1.0), method=method, seed=0)


def test_a_guide_by_name_is_one_for_any_model() -> None:
    assert isinstance(autoguide("AutoNormal", groups), AutoNormal)
