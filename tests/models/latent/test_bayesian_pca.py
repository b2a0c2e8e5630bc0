"""BayesianPCA and BayesianFactorAnalysis: the bound against its definition, ARD on made data, NUTS on the collapsed story."""

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import BayesianFactorAnalysis, BayesianPCA, ProbabilisticPCA

BOTH = pytest.mark.parametrize("family", [BayesianPCA, BayesianFactorAnalysis])


def data(n=150, observed=6, factors=2, noise=0.5):
    generator = torch.Generator().manual_seed(0)
    loadings = torch.randn(observed, factors, generator=generator, dtype=torch.float64)
    latent = torch.randn(n, factors, generator=generator, dtype=torch.float64)
    return latent @ loadings.mT + noise * torch.randn(n, observed, generator=generator, dtype=torch.float64) + 1.0


@BOTH
def test_surplus_factors_are_switched_off(family):
    x = data()
    program = family(6, 5).double()
    fit = dgm.learn(program, x, method=dgm.CAVI(steps=600, tolerance=1e-5), seed=0)
    assert program.dimensions == 2
    assert bool((fit.history["bound"].diff().dropna() >= -1e-7).all())
    relevance = (program.q_relevance_shape / program.q_relevance_rate).sort().values
    assert float(relevance[2]) > 50 * float(relevance[1])
    covariance = program.q_weights_mean @ program.q_weights_mean.mT
    closed = dgm.learn(ProbabilisticPCA(6, 2).double(), x).program
    assert torch.allclose(covariance, closed.weight @ closed.weight.mT, atol=0.15 * float(covariance.abs().max()))
    noise = program.q_precision_rate / program.q_precision_shape
    assert torch.allclose(noise, torch.full_like(noise, 0.25), rtol=0.5)


@BOTH
def test_the_bound_is_the_elbo_of_the_guide(family):
    x = data(60)
    program = family(6, 3).double()
    fit = dgm.learn(program, x, method=dgm.CAVI(steps=300), seed=0)
    bound = dgm.score(program, x, method=dgm.ELBO(draws=1000), seed=0)
    assert bound.value.shape == ()
    assert float(bound.value) == pytest.approx(fit.notes["log_evidence_bound"], abs=5 * float(bound.stderr))


def test_the_bound_prefers_the_true_number_of_factors():
    x = data(150, factors=3)
    ends = [
        dgm.learn(BayesianPCA(6, m, shape=1.0, rate=1.0).double(), x, method=dgm.CAVI(steps=400), seed=0).notes[
            "log_evidence_bound"
        ]
        for m in (1, 2, 3, 5)
    ]
    assert max(ends) == ends[2] or ends[3] - ends[2] < 3.0
    assert ends[2] > ends[1] + 20 and ends[2] > ends[0] + 20


@pytest.mark.slow
def test_the_guide_agrees_with_nuts_on_the_collapsed_story():
    x = data(80, observed=3, factors=1)
    options = {"shape": 2.0, "rate": 1.0, "bias_scale": 3.0}
    program = BayesianPCA(3, 1, **options).double()
    dgm.learn(program, x, method=dgm.CAVI(), seed=0)
    guide = dgm.infer(program, x, seed=0)
    story = BayesianPCA(3, 1, collapsed=True, **options).double()
    post = dgm.infer(story, x, method=dgm.NUTS(chains=2, warmup=200, draws=200), seed=0)
    assert "z" not in post.draws

    def explained(draws):
        weights = draws["weights"]  # [chain, draw, 3, 1]; known up to its sign
        return (weights @ weights.mT).flatten(2).mean((0, 1))

    # the product form is narrower, but its means are near
    assert torch.allclose(explained(guide.draws), explained(post.draws), rtol=0.15, atol=0.1)
    assert float(guide.draws["precision"].mean()) == pytest.approx(float(post.draws["precision"].mean()), rel=0.15)
    assert torch.allclose(guide.draws["bias"].mean((0, 1)), post.draws["bias"].mean((0, 1)), atol=0.2)


def test_the_story_is_learned_by_svi_with_an_autoguide():
    x = data(60)
    method = dgm.SVI(epochs=30, batch_size=None, lr=0.05)
    program = BayesianPCA(6, 2, shape=1.0, rate=1.0, collapsed=True).double()
    fit = dgm.learn(program, x, guide="AutoNormal", method=method, seed=0)
    assert fit.history["objective"].iloc[-1] < fit.history["objective"].iloc[0] - 0.5


def test_it_survives_a_file(tmp_path):
    x = data(40)
    fit = dgm.learn(BayesianPCA(6, 2).double(), x, method=dgm.CAVI(steps=20), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path, program=BayesianPCA(6, 2).double()).program
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), fit.program.state_dict().values()))


def test_samples_have_every_site():
    drawn = dgm.sample(BayesianFactorAnalysis(6, 2, shape=2.0, rate=2.0), 7, seed=0)
    assert drawn["x"].shape == (7, 6) and drawn["z"].shape == (7, 2) and bool(drawn["x"].isfinite().all())


def test_wrong_arguments_are_refused():
    with pytest.raises(ProgramError, match="latent must be from 1"):
        BayesianPCA(3, 3)
    with pytest.raises(ProgramError, match="rate must be a positive number"):
        BayesianPCA(3, 2, rate=0.0)
    with pytest.raises(ProgramError, match="tolerance must be at least 0"):
        dgm.CAVI(tolerance=-1.0)
    with pytest.raises(TaskUnavailable, match="conjugate factors"):
        dgm.learn(ProbabilisticPCA(6, 2), data().float(), method="cavi")
