"""AdversarialAutoencoder: its codes get the law of the prior, and its score stays a bound."""

import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.models import AdversarialAutoencoder


def crosses(n: int) -> torch.Tensor:
    """Rows near one of four points, which a code must spread to look normal."""
    corners = torch.tensor([[3.0, 3.0, 0.0], [3.0, -3.0, 0.0], [-3.0, 3.0, 0.0], [-3.0, -3.0, 0.0]])
    return 4 + corners[torch.randint(0, 4, (n,))] + 0.8 * torch.randn(n, 3)


def make(**options: object) -> AdversarialAutoencoder:
    given = {"latent": 2, "hidden": 32, "likelihood": "gaussian", "encoder_dropout": 0.0, "judge_hidden": 32}
    return AdversarialAutoencoder(3, **(given | options))


def codes(program: AdversarialAutoencoder, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return program.eval().play(x)[1]


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The energy distance of two samples, 0 for the same law."""
    apart, within = torch.cdist(one, other).mean(), [torch.pdist(z).mean() for z in (one, other)]
    return float(2 * apart - sum(within))


@pytest.mark.parametrize("deterministic", [False, True])
def test_codes_get_the_law_of_the_prior_and_still_tell_rows_apart(deterministic):
    x, program = crosses(512), make(deterministic=deterministic)
    normal = torch.randn(512, 2)
    unforced = make(deterministic=deterministic)
    dgm.learn(unforced, x, method=dgm.Adversarial(epochs=40, lr=5e-3, weight=0.0), seed=0)
    before = distance(codes(unforced, x), normal)
    method = dgm.Adversarial(epochs=120, batch_size=128, lr=5e-3, schedule="cosine", weight=5.0, gradient_penalty=0.5)
    fit = dgm.learn(program, x, method=method, seed=0)
    assert fit.cost.path == "recorded"
    z = codes(program, x)
    assert distance(z, normal) < 0.06 < 0.15 < before
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=0.3)
    assert torch.allclose(z.T.cov(), torch.eye(2), atol=0.4)
    # a reconstruction explains most of the variance, and samples look like rows
    assert float(program.likelihood(program.decode(z)).mean.sub(x).square().mean()) < 0.3 * float(x.var(0).mean())
    drawn = dgm.sample(program, 512, seed=1)["x"]
    assert distance(drawn, x) < 0.5 < distance(x, x.mean(0) + torch.randn_like(x))


def test_the_score_is_a_bound_below_a_long_run_of_simple_monte_carlo():
    x = crosses(64)
    program = make(latent=1, hidden=8)
    dgm.learn(program, x, method=dgm.Adversarial(epochs=10), seed=0)
    score = dgm.score(program, x[:10], seed=0)
    long = dgm.score(program, x[:10], method=dgm.SimpleMonteCarlo(draws=100000), seed=0)
    assert score.kind == "lower_bound"
    assert (score.value < long.value + 5 * (score.stderr + long.stderr) + 1e-3).all()


def test_a_deterministic_one_has_no_density_to_weight_with():
    program = make(deterministic=True)
    assert not program.has_guide and program.answers()["score"].kind == "estimate"
    assert dgm.score(program, crosses(3), seed=0).kind == "estimate"


def test_the_prior_is_any_that_can_be_drawn_from_and_is_not_learned():
    modes = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([[-3.0, 0.0], [3.0, 0.0]]), 0.5).to_event(1)
    )
    program = make(prior=modes)
    fit = dgm.learn(program, crosses(40), method=dgm.Adversarial(epochs=1), seed=0)
    assert fit.history["objective"].notna().all()
    for learned in ("vamp", "mixture-of-gaussians", "flow"):
        with pytest.raises(ProgramError, match="does not learn"):
            make(prior=learned)
    with pytest.raises(ProgramError, match="deterministic"):
        make(posterior="full-gaussian", deterministic=True)
