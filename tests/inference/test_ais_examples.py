"""AIS of many examples at once: a sandwich around each closed evidence, the same law as one after another, and its limits."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.ais import AIS, Sandwich


def test_every_simulated_example_lies_in_its_own_sandwich() -> None:
    program = LinearGaussian()
    drawn = dgm.sample(program, 10, seed=1)
    method = AIS(temperatures=60, particles=64, pilot=64, posterior={"z": drawn["z"]})  # one draw for all, [10, 2]
    score = dgm.score(program, drawn["x"], method=method, seed=0)
    exact = program.evidence(drawn["x"])
    assert isinstance(score, Sandwich) and score.lower is not None and score.upper is not None
    assert score.value.shape == score.gap.shape == score.stats["ess"].shape == (10,)
    assert bool(score.contains(exact).all()) and float(score.gap.max()) < 1.5
    assert ((score.value - exact).abs() < 4.5 * score.stderr).all()


def test_weights_are_unbiased_for_each_example() -> None:
    program = LinearGaussian()
    x = dgm.sample(program, 4, seed=2)["x"]
    posterior = dgm.infer(program, x, method=AIS(temperatures=8, particles=3000, pilot=64), seed=0)
    exact = program.evidence(x)
    ratio = (posterior.log_weights - exact).exp()  # [particle, example]
    assert ((ratio.mean(0) - 1).abs() < 4.5 * ratio.std(0) / 3000**0.5).all()
    mean = posterior.mean("z")
    assert posterior.draws["z"].shape == (1, 3000, 4, 2) and "4 examples at once" in posterior.how
    torch.testing.assert_close(mean, program.exact_posterior(x).mean, atol=0.12, rtol=0)


def test_examples_may_come_in_parts_and_on_constrained_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    """p ~ Beta, heads ~ Binomial, with a further argument that has a row for each example: log 1/(n + 1) each."""

    def coins(heads: Tensor, tosses: Tensor) -> None:
        with pyro.plate("data", len(heads)):
            p = pyro.sample("p", dist.Beta(torch.ones(len(heads)), 1.0))
            pyro.sample("heads", dist.Binomial(tosses, p), obs=heads)

    heads, tosses = torch.tensor([7.0, 0.0, 3.0, 1.0, 4.0]), torch.tensor([10.0, 2.0, 5.0, 1.0, 6.0])
    monkeypatch.setattr("ppl_dgm.inference.ais._ROWS", 64)
    ends = dist.Beta(1 + heads, 1 + tosses - heads).sample((40,))
    method = AIS(temperatures=40, particles=32, pilot=32, posterior={"p": ends})
    score = dgm.score(coins, heads, tosses, method=method, seed=0)
    exact = -(tosses + 1).log()
    assert score.value.shape == (5,) and bool(score.contains(exact).all())
    assert ((score.value - exact).abs() < 4.5 * score.stderr).all()


def test_programs_that_do_not_follow_their_rows_go_one_after_another() -> None:
    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([0.3, -1.0])
    score = dgm.score(two, x, method=AIS(temperatures=30, particles=32, pilot=32), seed=0)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)
    assert "first example" in score.how and ((score.value - exact).abs() < 4.5 * score.stderr).all()
    reference = AIS(temperatures=30, particles=32, pilot=32, reference=3.0)
    score = dgm.score(LinearGaussian(), torch.zeros(2, 4), method=reference, seed=0)
    assert "first example" in score.how


def test_posterior_draws_must_fit_the_examples() -> None:
    x = torch.zeros(3, 4)
    with pytest.raises(ProgramError, match=r"no draws of site 'z'"):
        dgm.score(LinearGaussian(), x, method=AIS(posterior={"y": torch.zeros(3, 2)}))
    with pytest.raises(ProgramError, match=r"site 'z' of shape \(3, 5\)"):
        dgm.score(LinearGaussian(), x, method=AIS(posterior={"z": torch.zeros(3, 5)}))


@pytest.mark.parametrize(
    "method",
    [dgm.ChEES(chains=32, warmup=150, draws=60, start="guide"), dgm.NUTS(warmup=100, draws=250, start="guide")],
)
def test_samplers_condition_on_any_observations_and_start_at_the_guide(method: object) -> None:
    """Against the closed posterior; dropout of the program must be off while it is sampled."""
    program = LinearGaussian()
    x = dgm.sample(program, 3, seed=3)["x"]
    posterior = dgm.infer(program, x, method=method, seed=0)
    exact = program.exact_posterior(x)
    table = posterior.summary()
    error = torch.tensor(table["mcse_mean"].to_numpy()).reshape(3, 2)
    assert ((posterior.mean("z") - exact.mean).abs() < 4.5 * error + 0.01).all()
    spread = posterior.draws["z"].flatten(0, 1).std(0)
    torch.testing.assert_close(spread, exact.variance.sqrt(), atol=0.0, rtol=0.12)
    assert torch.equal(program.bias, LinearGaussian().bias)


def test_an_unknown_start_is_named() -> None:
    with pytest.raises(ProgramError, match=r"start: 'encoder' is not known; 'guide' starts at draws"):
        dgm.infer(LinearGaussian(), torch.zeros(3, 4), method=dgm.ChEES(start="encoder"))


def test_a_vae_is_sampled_without_dropout() -> None:
    vae = dgm.models.VAE(observed=5, latent=2, hidden=8, likelihood="bernoulli")
    vae.train()
    x = torch.ones(3, 5)
    posterior = dgm.infer(vae, x, method=dgm.ChEES(chains=16, warmup=50, draws=20, start="guide"), seed=0)
    assert posterior.draws["z"].shape == (16, 20, 3, 2) and vae.training
    density = dgm.LogDensity(vae.eval(), x)
    point = density.unconstrain({"z": posterior.draws["z"][:, -1]})
    torch.testing.assert_close(posterior.stats["lp"][:, -1], density.log_prob(point), atol=1e-3, rtol=1e-4)
