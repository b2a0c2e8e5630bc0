"""The ladder: every step against the closed form, exactly and by sampling; limits, the CLT and maximum entropy."""

import math

import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.models import Rung, central_limit, entropies, ladder, maximum_entropy

LIMITS = ("poisson", "exponential", "normal")
OTHERS = {
    "binomial": {"trials": 9, "p": 0.8},
    "categorical": {"probs": [0.1, 0.2, 0.3, 0.4]},
    "multinomial": {"trials": 3, "probs": [0.1, 0.2, 0.3, 0.4]},
    "negative-binomial": {"successes": 5, "p": 0.6},
    "gamma": {"shape": 4, "rate": 2.0},
    "gamma-poisson": {"shape": 5.0, "rate": 2.0},
    "beta": {"a": 4.0, "b": 1.0},
    "dirichlet": {"concentration": [1.0, 4.0]},
    "beta-binomial": {"trials": 8, "a": 1.0, "b": 4.0},
    "dirichlet-multinomial": {"trials": 3, "concentration": [1.0, 2.0, 1.0, 3.0]},
    "logistic-normal": {"mean": -1.0, "scale": 0.7},
    "multivariate-normal": {"mean": [1.0, 2.0, 3.0], "matrix": [[2.0, 0.0, 0.0], [0.5, 1.0, 0.0], [-1.0, 0.3, 0.4]]},
}


@pytest.mark.parametrize("name", [name for name in ladder() if name not in LIMITS])
def test_a_step_gives_the_closed_form(name):
    assert Rung(name).gap() < 1e-10
    assert Rung(name, OTHERS.get(name)).gap() < 1e-10


def test_a_rung_is_printed_in_words():
    rung = Rung("beta")
    assert repr(rung) == f"Rung('beta': below gamma, by transform, {rung.step.how})"
    assert "below nothing" in repr(Rung("bernoulli"))


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_approached_in_proportion(name):
    gaps = [Rung(name, {"limit": m}).gap() for m in (1_000, 10_000, 100_000)]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("name", list(ladder()))
def test_the_story_has_the_moments_of_the_closed_form(name):
    rung, n = Rung(name), 5_000
    drawn = dgm.sample(rung.story, n, seed=0)["x"].double()
    law = dgm.sample(rung, 20 * n, seed=1)["x"].double()
    for power in (1, 2):
        one, other = drawn.pow(power), law.pow(power)
        error = (other.var(0) / n * (1 + 1 / 20)).sqrt()
        assert bool(((one.mean(0) - other.mean(0)).abs() < 4.5 * error + 1e-12).all()), power


def test_every_rung_but_the_foot_stands_on_another():
    steps = ladder()
    for i, (name, step) in enumerate(steps.items()):
        assert (step.below is None) == (i == 0)
        assert step.below is None or list(steps).index(step.below) < i, name


def test_the_waiting_times_forget():
    geometric, exponential = Rung("geometric").law, Rung("exponential").law
    x = torch.arange(200, dtype=torch.float64)
    survival = 1 - geometric.log_prob(x).exp().cumsum(0)  # P(X > x)
    assert torch.allclose(survival[5 + 1 + 7] / survival[5], survival[7], atol=1e-12)
    tail = 1 - exponential.cdf(torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64))
    assert float(tail[2] / tail[0]) == pytest.approx(float(tail[1]), abs=1e-12)


def test_two_roads_lead_to_the_negative_binomial():
    x = torch.arange(30, dtype=torch.float64)
    by_sum = Rung("negative-binomial", {"successes": 3, "p": 1 / 3})
    by_hierarchy = Rung("gamma-poisson", {"shape": 3.0, "rate": 0.5})  # p = rate / (rate + 1)
    assert torch.allclose(by_sum.built(x), by_hierarchy.built(x), atol=1e-9)


def test_a_transformation_may_add_a_mode():
    x = torch.linspace(0.001, 0.999, 9999, dtype=torch.float64)

    def modes(variance):
        density = Rung("logistic-normal", {"mean": 0.0, "scale": math.sqrt(variance)}).law.log_prob(x)
        return int(((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum())

    assert modes(1.9) == 1 and modes(2.1) == 2


def test_unknown_rungs_and_parameters_are_refused():
    with pytest.raises(ProgramError, match="'zeta' is not on the ladder; there are: bernoulli, "):
        Rung("zeta")
    with pytest.raises(ProgramError, match="binomial has no parameter 'rate'; it has trials, p"):
        Rung("binomial", {"rate": 1.0})
    with pytest.raises(ProgramError, match=r"3\^20 sequences are too many"):
        Rung("multinomial", {"trials": 20}).built(torch.tensor([[20.0, 0, 0]]))


# -- the central limit theorem and maximum entropy ---------------------------------------------------------------------


def test_sums_become_gaussian_at_the_rate_of_their_skewness_unless_their_variance_is_infinite():
    one, many = central_limit(dist.Exponential(1.0), 1, seed=0), central_limit(dist.Exponential(1.0), 400, seed=0)
    assert one.p_value < 1e-10 and many.distance < one.distance / 5
    assert one.skewness == pytest.approx(2.0, abs=0.3) and many.skewness == pytest.approx(
        0.1, abs=4.5 * math.sqrt(6 / 10_000)
    )
    assert central_limit(dist.Uniform(0.0, 1.0), 30, seed=0).p_value > 1e-3
    for terms in (1, 100):
        assert central_limit(dist.Cauchy(0.0, 1.0), terms, seed=0).distance > 0.06


def test_the_gaussian_has_the_largest_entropy_of_its_variance():
    found = entropies(4.0)
    assert next(iter(found)) == "normal"
    laws = {
        "normal": dist.Normal(0.0, 2.0), "laplace": dist.Laplace(0.0, math.sqrt(2.0)),
        "uniform": dist.Uniform(0.0, 2 * math.sqrt(12)), "exponential": dist.Exponential(0.5),
    }  # fmt: skip
    for name, law in laws.items():
        assert float(law.variance) == pytest.approx(4.0, rel=1e-5)
        assert found[name] == pytest.approx(float(law.entropy()), abs=1e-5)
    gumbel = dist.Gumbel(torch.tensor(0.0), torch.tensor(2 * math.sqrt(6) / math.pi))
    assert float(gumbel.variance) == pytest.approx(4.0) and found["gumbel"] == pytest.approx(
        float(gumbel.entropy()), abs=1e-5
    )


def test_two_moments_give_the_gaussian_one_the_geometric_and_none_the_uniform():
    line = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    found = maximum_entropy(line, [lambda x: x, lambda x: x**2], [1.0, 1.0 + 2.0])
    gauss = dist.Normal(1.0, math.sqrt(2.0)).log_prob(line).softmax(0)
    assert torch.allclose(found.probabilities, gauss, atol=1e-9)
    assert found.multipliers.tolist() == pytest.approx([0.5, -0.25], abs=1e-6)  # mean / var, -1 / (2 var)
    counts = torch.arange(400, dtype=torch.float64)
    found = maximum_entropy(counts, [lambda x: x], [3.0])
    assert torch.allclose(found.probabilities, dist.Geometric(torch.tensor(0.25)).log_prob(counts).exp(), atol=1e-6)
    assert maximum_entropy(torch.arange(8.0)).entropy == pytest.approx(math.log(8))


def test_no_other_distribution_with_the_same_expectations_has_more_entropy():
    values = torch.arange(6, dtype=torch.float64)
    best = maximum_entropy(values, [lambda x: x], [3.2])
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        change = torch.randn(6, generator=generator, dtype=torch.float64)
        basis = torch.stack([torch.ones(6, dtype=torch.float64), values], -1)
        change = change - basis @ torch.linalg.lstsq(basis, change[:, None]).solution[:, 0]  # keeps sum and mean
        other = best.probabilities + 0.02 * change / change.abs().max()
        assert float(other @ values) == pytest.approx(3.2) and float(-(other * other.log()).sum()) < best.entropy


def test_expectations_out_of_reach_are_refused():
    with pytest.raises(NumericalError, match="not reached by any distribution"):
        maximum_entropy(torch.arange(6.0), [lambda x: x], [7.0])
    with pytest.raises(ProgramError, match="1 statistics need as many targets, not 2"):
        maximum_entropy(torch.arange(6.0), [lambda x: x], [1.0, 2.0])
