"""The ELBO against closed forms: evidence minus the divergence of the guide from the posterior."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]])


def closed_form(program: LinearGaussian, x: Tensor) -> Tensor:
    """ln p(x) - KL(q(z|x) || p(z|x)), [batch]."""
    q = program.factorised(x)
    full = torch.distributions.MultivariateNormal(q.mean, scale_tril=torch.diag_embed(q.variance.sqrt()))
    return program.evidence(x) - torch.distributions.kl_divergence(full, program.exact_posterior(x))


def test_average_is_evidence_minus_divergence() -> None:
    program = LinearGaussian()
    score = dgm.score(program, X, method=dgm.ELBO(draws=20_000), seed=0)
    assert score.kind == "lower_bound"
    assert score.value.shape == score.stderr.shape == (3,)
    assert ((score.value - closed_form(program, X)).abs() < 4 * score.stderr).all()
    assert score.stderr.max() < 0.02
    assert (score.value < program.evidence(X)).all()


def test_exact_guide_makes_the_bound_tight_at_every_draw() -> None:
    program = LinearGaussian(exact=True)
    score = dgm.score(program, X, method="elbo", seed=0)
    torch.testing.assert_close(score.value, program.evidence(X), atol=1e-4, rtol=0)
    assert score.stderr.max() < 1e-4


def test_one_draw_equals_importance_weighting_with_one_draw() -> None:
    program = LinearGaussian()
    bound = dgm.score(program, X, method=dgm.ELBO(draws=1), seed=0)
    torch.testing.assert_close(bound.value, dgm.score(program, X, method=dgm.ImportanceWeighted(draws=1), seed=0).value)
    assert bound.stderr is None


def test_shared_latent_site_gives_one_value() -> None:
    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    x = torch.tensor([0.5, 1.0, -0.3])
    score = dgm.score(model, x, guide=guide, method=dgm.ELBO(draws=10_000), seed=0)
    exact = dist.Normal(0.0, 1.0).log_prob(x).sum() - 0.5 * len(x)  # the guide is the prior: E (x - m)^2 = x^2 + 1
    assert score.value.shape == ()
    assert abs(float(score.value - exact)) < 4 * float(score.stderr) < 0.5


def test_svi_reports_the_same_objective() -> None:
    program = LinearGaussian()
    with program.running():
        loss = pyro.infer.Trace_ELBO(num_particles=300, vectorize_particles=False).loss(
            program.run_model, program.run_guide, X
        )
    assert abs(-loss - float(closed_form(program, X).sum())) < 0.5
