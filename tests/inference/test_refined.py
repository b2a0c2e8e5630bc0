"""Refined and SemiAmortised: the amortisation gap closes; Aggressive: the guide keeps up; what cannot be refined is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from oracles.latent_programs import BeliefNetwork, LearnedLinear
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.learning.information import encoder_information

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]])


def best_factorised(program: LinearGaussian, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the factorised Gaussian nearest to the posterior, in KL(q || p)."""
    exact = program.exact_posterior(x)
    return exact.mean, torch.linalg.inv(exact.covariance_matrix).diagonal(dim1=-2, dim2=-1).rsqrt()


def test_refinement_reaches_the_best_of_the_guides_family() -> None:
    program = LinearGaussian()
    post = dgm.infer(program, X, method=dgm.Refined(steps=150, draws=4000), seed=0)
    draws = post.draws["z"][0]
    mean, scale = best_factorised(program, X)
    assert post.kind == "approximate" and draws.shape == (4000, 3, 2)
    torch.testing.assert_close(draws.mean(0), mean, atol=0.06, rtol=0)
    torch.testing.assert_close(draws.std(0), scale.expand(3, 2), atol=0.0, rtol=0.12)


def test_the_bound_improves_and_stays_one() -> None:
    program = LinearGaussian()
    plain = dgm.score(program, X, method=dgm.ImportanceWeighted(draws=200), seed=0)
    score = dgm.score(program, X, method=dgm.Refined(steps=60, draws=200), seed=0)
    assert score.kind == "lower_bound" and "refined by 60 gradient steps" in score.how
    assert ((score.value - program.evidence(X)).abs() < 4.5 * score.stderr).all()
    assert (score.stats["ess"] > plain.stats["ess"]).all()


def test_steps_that_do_harm_are_not_taken() -> None:
    """At the best of the family every step is noise; with a huge rate all examples keep what the guide said."""
    program = LearnedLinear(diagonal=True)
    with torch.no_grad():
        program.shift.zero_()
        program.log_stretch.zero_()
    wild = dgm.infer(program, X, method=dgm.Refined(steps=3, lr=50.0, draws=50), seed=0)
    mean = program.exact_posterior(X).mean
    assert ((wild.draws["z"][0].mean(0) - mean).abs() < 0.6).all() and "ELBO +0 nats" in wild.how


def test_what_has_no_local_parameters_is_refused_in_words() -> None:
    with pytest.raises(TaskUnavailable, match=r"draws 'b' given what another site drew"):
        dgm.infer(LearnedLinear(two=True), X, method=dgm.Refined(steps=1))
    with pytest.raises(TaskUnavailable, match=r"site 'g' of the guide is Bernoulli, which cannot be moved"):
        dgm.infer(BeliefNetwork(), torch.ones(2, 4), method=dgm.Refined(steps=1))
    with pytest.raises(ProgramError, match="steps must be a whole number"):
        dgm.Refined(steps=0)


def test_other_families_are_refined_too() -> None:
    """A gamma posterior of Poisson counts, exact within the guide's family."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(torch.full((len(x),), 3.0), 2.0))

    x = torch.tensor([0.0, 4.0, 9.0])
    score = dgm.score(model, x, guide=guide, method=dgm.Refined(steps=300, lr=0.1, particles=16, draws=500), seed=0)
    exact = dist.GammaPoisson(2.0, 1.0).log_prob(x)
    assert ((score.value - exact).abs() < 4.5 * score.stderr + 1e-3).all() and (score.stats["ess"] > 300).all()


@pytest.mark.parametrize("through", [True, False])
def test_learning_through_refinement(through: bool) -> None:
    program = LearnedLinear(diagonal=True)
    x = dgm.sample(program, 60, seed=1)["x"]
    with torch.no_grad():
        program.shift.fill_(1.0)
    method = dgm.SemiAmortised(epochs=40, batch_size=None, lr=0.05, steps=3, through=through, particles=4)
    fit = dgm.learn(program, x, method=method, seed=0)
    assert fit.cost.path == "recorded" and abs(float(program.shift)) < 0.5
    refined, plain = fit.history.objective.iloc[-5:].mean(), -float(program.evidence(x).mean())
    assert refined == pytest.approx(plain, abs=0.15)


def test_the_gradient_goes_through_the_refinement() -> None:
    """One plain step from a Gaussian's mean: the mean's slope shrinks by what the step corrects, in closed form."""

    class Shifted(dgm.Program):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(1.0))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 0.5**0.5))

    program, x = Shifted(), torch.zeros(2000)  # ELBO(loc) = const - loc^2, so that l_1 = l_0 (1 - 2 step)
    for through, factor in ((True, (1 - 0.2) ** 2), (False, 1 - 0.2)):
        method = dgm.SemiAmortised(steps=1, step_size=0.1, through=through)
        with program.running():
            method.prepare(program, (x,))
            loss = method.objective(program, len(x))(x)
            (gradient,) = torch.autograd.grad(loss, [program.loc])
        assert float(gradient) == pytest.approx(2 * factor, abs=0.15)


def test_information_of_a_code_that_says_all_and_of_one_that_says_nothing() -> None:
    class Code(dgm.Program):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(slope))

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 0.1))

    x = torch.arange(50.0)
    for slope, nats in ((10.0, torch.tensor(50.0).log()), (0.0, torch.tensor(0.0))):
        program = Code(slope)
        with program.running():
            assert float(encoder_information(program, (x,))) == pytest.approx(float(nats), abs=1e-4)
    program, x = Code(1.0), torch.randn(2000)  # I = log(sqrt(1 + 0.01) / 0.1)
    with program.running():
        assert float(encoder_information(program, (x,))) == pytest.approx(2.307, abs=0.1)


def test_the_guide_catches_up_before_the_model_moves() -> None:
    program = LearnedLinear(diagonal=True)
    x = dgm.sample(program, 60, seed=1)["x"]
    with torch.no_grad():
        program.shift.fill_(1.0)
    method = dgm.Aggressive(elbo="mean_field", epochs=4, batch_size=None, lr=0.05, inner=60, rows=40)
    fit = dgm.learn(program, x, method=method, seed=0)
    lagging = dgm.learn(
        LearnedLinear(diagonal=True), x, method=dgm.SVI(elbo="mean_field", epochs=4, batch_size=None, lr=0.05)
    )
    assert abs(float(program.shift)) < 0.3 and fit.history.aggressive.iloc[0] == 1.0
    assert fit.history.information.between(0.0, torch.tensor(40.0).log().item()).all()
    assert fit.history.objective.iloc[-1] < lagging.history.objective.iloc[-1] + 1.0
    assert len(fit.history) == 4 and fit.cost.steps == 4


def test_aggression_ends_when_information_stops_growing() -> None:
    program = LearnedLinear(diagonal=True)
    x = dgm.sample(program, 40, seed=1)["x"]
    fit = dgm.learn(program, x, method=dgm.Aggressive(epochs=12, batch_size=None, lr=0.02, inner=10, rows=40), seed=0)
    flags, information = fit.history.aggressive.tolist(), fit.history.information.tolist()
    end = flags.index(0.0)
    assert flags == [1.0] * end + [0.0] * (12 - end)
    assert end >= 1 and (end == 1 or information[end - 1] <= information[end - 2])
    assert information[: end - 1] == sorted(information[: end - 1])
