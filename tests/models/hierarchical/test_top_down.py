"""TopDownVAE: the residual posterior's divergences, and the bound against its linear Gaussian twin."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import ppl_dgm as dgm
from ppl_dgm.models import TopDownVAE


def small(**options: object) -> TopDownVAE:
    return TopDownVAE(observed=5, values=4, latents=(3, 2), hidden=8, **options)


X = torch.randint(0, 4, (6, 5), generator=torch.Generator().manual_seed(0))


def traces(program: TopDownVAE, x: Tensor) -> tuple:
    with program.running(), torch.no_grad():
        guide = poutine.trace(program.run_guide).get_trace(x)
        return guide, poutine.trace(poutine.replay(program.run_model, trace=guide)).get_trace(x)


def test_residual_divergence_has_the_closed_form_of_the_deltas() -> None:
    program = small().eval()
    guide, model = traces(program, X)
    (d_mu1, d_log_s1), (d_mu2, d_log_s2) = program.deltas(X)
    log_s1 = program.prior_1(guide.nodes["z2"]["value"]).chunk(2, -1)[1]
    for site, d_mu, d_log_s, log_s in (
        ("z1", d_mu1, d_log_s1, log_s1),
        ("z2", d_mu2, d_log_s2, torch.zeros(())),
    ):
        formula = 0.5 * (d_mu**2 / log_s.exp() + d_log_s.exp() - d_log_s - 1).sum(-1)
        torch.testing.assert_close(kl_divergence(guide.nodes[site]["fn"], model.nodes[site]["fn"]), formula)


def test_residual_divergence_agrees_with_quadrature() -> None:
    mu, log_s, d_mu, d_log_s = 0.3, -0.4, 0.7, -1.1
    z = torch.linspace(-15, 15, 200_001, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    q, p = (
        dist.Normal((mu + d_mu) * one, math.exp(0.5 * (log_s + d_log_s))),
        dist.Normal(mu * one, math.exp(0.5 * log_s)),
    )
    numeric = torch.trapezoid(q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), z)
    assert float(numeric) == pytest.approx(
        0.5 * (d_mu**2 / math.exp(log_s) + math.exp(d_log_s) - d_log_s - 1), abs=1e-8
    )


def test_no_deltas_leave_the_prior() -> None:
    program = small().eval()
    with torch.no_grad():
        for layer in (program.delta_1, program.delta_2):
            layer.weight.zero_()
            layer.bias.zero_()
    guide, model = traces(program, X)
    for site in ("z1", "z2"):
        torch.testing.assert_close(
            guide.nodes[site]["fn"].log_prob(guide.nodes[site]["value"]),
            model.nodes[site]["fn"].log_prob(guide.nodes[site]["value"]),
        )


@pytest.mark.parametrize(("extreme", "clipped"), [(1e4, 2.0), (-1e4, -7.0)])
def test_added_log_variances_are_clipped(extreme: float, clipped: float) -> None:
    program = small().eval()
    with torch.no_grad():
        program.delta_1.bias.fill_(extreme)
        program.delta_2.bias.fill_(extreme)
    (_, d_log_s1), (_, d_log_s2) = program.deltas(X)
    assert (d_log_s1 == clipped).all()
    assert (d_log_s2 == clipped).all()


@pytest.mark.parametrize("training", [False, True])
def test_guide_and_model_share_the_prior_network(training: bool) -> None:
    program = small(encoder_dropout=0.0, decoder_dropout=0.5).train(training)
    guide, model = traces(program, X)
    prior, posterior = model.nodes["z1"]["fn"].base_dist, guide.nodes["z1"]["fn"].base_dist
    (d_mu1, d_log_s1), _ = program.deltas(X)
    # under dropout the two would disagree by a mask, were each to draw its own
    torch.testing.assert_close(posterior.loc - prior.loc, d_mu1)
    torch.testing.assert_close(2 * (posterior.scale.log() - prior.scale.log()), d_log_s1)
    anew = program.prior_1(guide.nodes["z2"]["value"]).chunk(2, -1)[0]
    assert torch.equal(anew, prior.loc) != training


def test_analytic_divergences_agree_with_draws() -> None:
    program = small().eval()
    with program.running():
        analytic = pyro.infer.TraceMeanField_ELBO(num_particles=300).loss(program.run_model, program.run_guide, X)
    bound = dgm.score(program, X, method=dgm.ELBO(draws=4000), seed=0)
    assert abs(-analytic - float(bound.value.sum())) < 0.5


# -- the linear Gaussian twin ----------------------------------------------------------------------


def linear_twin(seed: int = 0) -> tuple[TopDownVAE, MultivariateNormal]:
    """The same program with linear networks and a constant variance of z1: all sites are jointly Gaussian."""
    torch.manual_seed(seed)
    program = TopDownVAE(observed=4, latents=(3, 2), likelihood="gaussian", depth=0)
    with torch.no_grad():
        program.prior_1[0].weight[3:].zero_()
        # a coupling weak enough that the residual posterior covers the exact one: weights of finite variance
        program.prior_1[0].weight[:3].normal_(std=0.5)
        program.decoder[0].weight.normal_(std=0.5)
        for delta in (program.delta_1, program.delta_2):
            delta.weight.normal_(std=0.1)
        (a, c), variance_1 = (
            (program.prior_1[0].weight[:3], program.prior_1[0].bias[:3]),
            program.prior_1[0].bias[3:].exp(),
        )
        w, b, scale = program.decoder[0].weight, program.decoder[0].bias, program.likelihood.scale
        covariance = w @ (a @ a.T + torch.diag(variance_1)) @ w.T + torch.diag(scale**2)
        return program, MultivariateNormal(w @ c + b, covariance)


def test_twin_draws_have_the_exact_moments() -> None:
    program, evidence = linear_twin()
    x = dgm.sample(program, 100_000, seed=0)["x"]
    torch.testing.assert_close(x.mean(0), evidence.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(x.T.cov(), evidence.covariance_matrix, atol=0.25, rtol=0.03)


def test_bounds_stay_below_the_evidence_of_the_linear_twin() -> None:
    program, evidence = linear_twin()
    dgm.learn(
        program,
        evidence.sample((2000,)),
        method=dgm.SVI(elbo="mean_field", epochs=15, lr=0.02, optim=_only_deltas(program)),
        seed=0,
    )
    x = evidence.sample((3,))
    exact = evidence.log_prob(x)
    copies = x.repeat_interleave(1000, 0)
    means = [torch.full((3,), -math.inf)]
    for draws in (1, 4, 16, 64):
        values = dgm.score(program, copies, method=dgm.ImportanceWeighted(draws=draws), seed=draws).value.view(3, 1000)
        error = values.std(1) / math.sqrt(1000)
        assert (values.mean(1) < exact + 4 * error).all()
        assert (values.mean(1) > means[-1] - 4 * error).all()
        means.append(values.mean(1))
    assert (exact - means[-1] < 0.5 * (exact - means[1])).all()
    tight = dgm.score(program, x, method=dgm.ImportanceWeighted(draws=50_000), seed=0)
    assert ((tight.value - exact).abs() < 4 * tight.stderr).all()
    assert tight.stderr.max() < 0.05


def _only_deltas(program: TopDownVAE) -> object:
    """Learn the guide and leave the model, whose evidence is known, as it is."""
    for name, parameter in program.named_parameters():
        parameter.requires_grad_("delta" in name)
    return "adam"


class ExactTwin(TopDownVAE):
    """The twin under its exact posterior p(z2 | x) p(z1 | z2, x), which no residual posterior reaches."""

    def guide(self, x: Tensor, n: int = 1) -> None:
        with torch.no_grad():
            a, c, variance_1 = (
                self.prior_1[0].weight[:3],
                self.prior_1[0].bias[:3],
                self.prior_1[0].bias[3:].exp(),
            )
            w, b, noise = self.decoder[0].weight, self.decoder[0].bias, self.likelihood.scale**2
            marginal = torch.linalg.inv(w @ torch.diag(variance_1) @ w.T + torch.diag(noise))  # precision of x given z2
            precision_2 = torch.eye(2) + (w @ a).T @ marginal @ (w @ a)
            mean_2 = torch.linalg.solve(precision_2, (w @ a).T @ marginal @ (x - b - w @ c).T).T
            precision_1 = torch.diag(1 / variance_1) + w.T @ torch.diag(1 / noise) @ w
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.MultivariateNormal(mean_2, precision_matrix=precision_2))
            pull = (z2 @ a.T + c) / variance_1 + ((x - b) / noise) @ w
            pyro.sample(
                "z1",
                dist.MultivariateNormal(torch.linalg.solve(precision_1, pull.T).T, precision_matrix=precision_1),
            )


def test_exact_posterior_makes_every_weight_the_evidence() -> None:
    program, evidence = linear_twin()
    exact = ExactTwin(observed=4, latents=(3, 2), likelihood="gaussian", depth=0)
    exact.load_state_dict(program.state_dict())
    x = evidence.sample((5,))
    score = dgm.score(exact, x, method=dgm.ImportanceWeighted(draws=7), seed=0)
    torch.testing.assert_close(score.value, evidence.log_prob(x), atol=1e-3, rtol=0)
    assert score.stderr.max() < 1e-3


# -- the verbs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_four_verbs(likelihood: str) -> None:
    program = TopDownVAE(
        observed=5,
        values=4 if likelihood == "categorical" else None,
        latents=(4, 2),
        hidden=8,
        likelihood=likelihood,
    )
    x = torch.randint(0, 2, (40, 5))
    drawn = dgm.sample(program, 7, seed=0)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "z2": (7, 2),
        "z1": (7, 4),
        "x": (7, 5),
    }
    assert program.support.check(drawn["x"]).all()
    score = dgm.score(program, x, seed=0)
    assert score.kind == "lower_bound"
    assert score.value.shape == (40,)
    posterior = dgm.infer(program, x[:3], seed=0)
    assert posterior.draws["z1"].shape == (1, 1000, 3, 4)
    assert posterior.draws["z2"].shape == (1, 1000, 3, 2)
    dgm.learn(program, x, method=dgm.SVI(elbo="mean_field", epochs=30, lr=1e-2), seed=0)
    assert dgm.score(program, x, seed=0).value.mean() > score.value.mean() + 0.1


def test_saved_and_loaded(tmp_path: object) -> None:
    program = small()
    dgm.learn(program, X, method=dgm.SVI(epochs=1), seed=0).save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    torch.testing.assert_close(dgm.score(again, X, seed=0).value, dgm.score(program, X, seed=0).value)


def test_refusals() -> None:
    with pytest.raises(dgm.ProgramError, match="depth"):
        TopDownVAE(observed=5, values=4, depth=-1)
    with pytest.raises(dgm.ProgramError, match="needs values"):
        TopDownVAE(observed=5)


@pytest.mark.slow
def test_digits() -> None:
    digits = dgm.data.digits()
    program = TopDownVAE(observed=64, values=17)
    dgm.learn(program, digits, seed=0)
    score = dgm.score(program, digits.test, seed=0).mean()
    assert -92.7 <= score.value < -85.0
