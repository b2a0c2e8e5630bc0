"""Bayesian mixtures compared: several ways to one posterior agree in one table, whatever order the labels are in."""

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.models import BayesianMixture, CollapsedMixtureGibbs, DirichletProcessMixture, MixtureEM
from ppl_dgm.results import Posterior


def two_groups() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.randn(40, 1) - 4, 0.7 * torch.randn(24, 1) + 3]).double()


def methods(x: torch.Tensor, program: BayesianMixture) -> dict:
    return {
        "collapsed": CollapsedMixtureGibbs(chains=8, warmup=5, draws=60),
        "gibbs": dgm.Gibbs(chains=4, warmup=20, draws=120),
        "em": "mixture-em",
    }


@pytest.mark.slow
def test_samplers_agree_in_one_table_and_labels_are_reported():
    x, program = two_groups(), BayesianMixture(1, 2)
    reference = CollapsedMixtureGibbs(chains=40, warmup=5, draws=60)
    found = dgm.compare(program, x, methods=methods(x, program), reference=reference, seeds=1)
    table = found.table
    assert not any(table["failed"])
    assert (table.loc[["collapsed", "gibbs"], "b2_x_max"] < 0.03).all()  # 100 draws or more; 1.0 where labels differ
    assert table.loc["em", "b2_x_max"] < 0.2 and table.loc["em", "kind"] == "approximate"
    assert table.loc["gibbs", "relabelled"] in (0.25, 0.5, 0.75) or 0 <= table.loc["gibbs", "relabelled"] <= 1
    assert any("Labels of components" in note for note in found.notes)
    raw = dgm.compare(
        program, x, methods={"collapsed": CollapsedMixtureGibbs(chains=8, warmup=5, draws=60)}, reference=reference,
        seeds=1, transform=lambda posterior: posterior,
    )  # fmt: skip
    assert float(raw.table["r_hat"].iloc[0]) > 1.3  # chains that chose other labels disagree
    assert float(table.loc["collapsed", "r_hat"]) < 1.1


@pytest.mark.slow
def test_nuts_and_the_variational_fit_agree_too():
    x, program = two_groups(), BayesianMixture(1, 2)
    fit = dgm.SVI(
        guide=program.variational(x=x), elbo="enum", particles=5, epochs=300, lr=0.03, batch_size=None, average=0.97
    )
    some = {"nuts": dgm.NUTS(chains=4, warmup=100, draws=150), "variational": fit}
    reference = CollapsedMixtureGibbs(chains=40, warmup=5, draws=60)
    table = dgm.compare(program, x, methods=some, reference=reference, seeds=2).table
    assert not any(table["failed"])
    assert (table["b2_x_max"] < 0.05).all()


def test_identified_draws_are_in_ascending_order_of_the_first_parameter():
    program = BayesianMixture(1, 3)
    means = torch.tensor([-5.0, 0.0, 5.0])[torch.tensor([[2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 1, 2]])]
    labels = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 0, 1]])  # of three examples with means 5, -5, 0
    noise = 0.01 * torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    posterior = Posterior(
        {"means": (means[None] + noise).unsqueeze(-1), "weights": torch.rand(1, 4, 3), "k": labels[None]}
    )
    found = program.identified(posterior)
    assert torch.allclose(found.draws["means"][0, :, :, 0], torch.tensor([-5.0, 0.0, 5.0]), atol=0.1)
    assert bool((found.draws["k"][0] == torch.tensor([2, 0, 1])).all())
    assert int(found.stats["relabelled"].sum()) == 2


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "poisson"])
def test_the_mode_is_a_stationary_point_of_the_log_posterior(likelihood):
    torch.manual_seed(1)
    x = {"gaussian": two_groups(), "bernoulli": torch.randint(2, (30, 3)).double(), "poisson": torch.poisson(
        torch.where(torch.arange(30)[:, None] < 15, 2.0, 9.0)).double()}[likelihood]  # fmt: skip
    program = BayesianMixture(x.shape[1], 2, likelihood, concentration=2.0, shape=2.0, rate=1.5)
    method = MixtureEM(tolerance=1e-12, steps=20_000)
    post = dgm.infer(program, x, method=method, seed=0)
    point = {name: post.draws[name][0, 0].clone().requires_grad_() for name in post.draws if name != "k"}
    parameters = {name: value for name, value in point.items() if name != "weights"}
    order = {"gaussian": ("means", "precisions"), "bernoulli": ("theta",), "poisson": ("rates",)}[likelihood]
    log_joint = program.log_joint_of(x, point["weights"], tuple(parameters[name] for name in order))
    value = log_joint.logsumexp(-1).sum() + program.log_prior_of(point["weights"], parameters)
    assert float(value.detach()) == pytest.approx(float(post.stats["lp"][0, 0]), abs=1e-6)
    slopes = dict(zip(point, torch.autograd.grad(value, list(point.values())), strict=True))
    for name in parameters:
        assert float(slopes[name].abs().max()) < 2e-2, name
    on_simplex = slopes["weights"] - slopes["weights"].mean()
    assert float(on_simplex.abs().max()) < 2e-2
    assert post.kind == "approximate" and "a point" in post.how


def test_refusals():
    with pytest.raises(TaskUnavailable, match="DirichletProcessMixture"):
        dgm.infer(DirichletProcessMixture(1, 3), two_groups(), method="mixture-em")
