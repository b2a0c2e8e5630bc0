"""AIS: bounds that hold, sandwiches around enumerated log Z and closed evidence, examples apart, mistakes."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.ais import AIS, Sandwich
from ppl_dgm.inference.annealed.annealing import GibbsAnnealer, backward, equal_barriers, forward, sigmoidal
from ppl_dgm.inference.annealed.by_example import examples_of
from ppl_dgm.inference.chains.hamiltonian import Metric
from ppl_dgm.inference.tempered_smc import Stage
from ppl_dgm.models import RBM
from ppl_dgm.program import as_program


def machine(observed: int, hidden: int, seed: int, scale: float) -> RBM:
    """An RBM with random weights in float64."""
    torch.manual_seed(seed)
    rbm = RBM(observed, hidden).double()
    with torch.no_grad():
        rbm.weight.normal_(0, scale)
        rbm.bias.normal_()
        rbm.hidden_bias.normal_()
    return rbm


def all_bits(count: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=count))).double()


def coin(heads: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    pyro.sample("heads", dist.Binomial(40, p), obs=heads)


def regression() -> tuple[Any, tuple[Tensor, Tensor], float, dict[str, Tensor]]:
    """Program, data, log evidence, exact posterior draws."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=generator).double()
    y = x @ torch.tensor([1.0, -1.0, 2.0]).double() + 0.5 * torch.randn(30, generator=generator).double()

    def program(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(3), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ slopes, 0.5).to_event(1), obs=y)

    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(3).double() / 4)
    mean = covariance @ (x.T @ y) / 0.25
    marginal = torch.distributions.MultivariateNormal(y.new_zeros(30), 4 * x @ x.T + 0.25 * torch.eye(30).double())
    torch.manual_seed(1)
    draws = {"slopes": torch.distributions.MultivariateNormal(mean, covariance).sample((100,))}
    return program, (x, y), float(marginal.log_prob(y)), draws


# -- Boltzmann machines --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperatures", [5, 200])
def test_the_sandwich_contains_the_enumerated_log_z_of_twelve_units(seed: int, temperatures: int) -> None:
    rbm = machine(7, 5, seed, 1.5)
    x, h = all_bits(7), all_bits(5)
    exact = (-rbm.energy(x[:, None], h[None])).flatten().logsumexp(0).detach()
    found = AIS(temperatures=temperatures).log_partition(rbm, seed=seed)
    assert bool(found.contains(exact))
    assert abs(float(found.value - exact)) < 4.5 * float(found.stderr)  # type: ignore[arg-type]
    if temperatures == 200:
        assert float(found.gap) < 0.25


def test_a_larger_machine_against_the_sum_over_its_smaller_layer() -> None:
    rbm = machine(20, 16, 0, 0.8)
    exact = rbm.log_partition()
    assert exact is not None
    found = AIS(temperatures=200).log_partition(rbm, seed=0)
    assert bool(found.contains(exact.detach())) and float(found.gap) < 0.5


def test_few_temperatures_leave_a_gap_with_the_truth_well_inside() -> None:
    """Plain averages, not moved outward: uneven weights are too small one way and too large the other."""
    rbm = machine(12, 10, 0, 2.5)
    exact = rbm.log_partition()
    assert exact is not None
    found = AIS(temperatures=3, sigmas=0.0).log_partition(rbm, seed=0)
    assert found.lower is not None and found.upper is not None
    exact = exact.detach()
    assert bool(found.lower.value < exact) and bool(exact < found.upper.value) and float(found.gap) > 0.5
    assert float(found.stderr) >= float(found.gap) / 2  # type: ignore[arg-type]


def test_weights_forward_and_inverse_weights_backward_are_unbiased() -> None:
    """E[w] = Z and E[1 / w] = 1 / Z for two steps, by enumeration of every path x_0, x_1."""
    rbm, betas = machine(4, 3, 0, 1.0), [0.0, 0.4, 1.0]
    x = all_bits(4)
    annealer = GibbsAnnealer(rbm)
    with torch.no_grad():
        exact = float(rbm.log_partition())  # type: ignore[arg-type]
        torch.manual_seed(0)
        _, up = forward(annealer, betas, 20000)
        ends, known = rbm.tempered_end(20000)
        down = backward(annealer, betas, ends)
        assert known
        for ratio in ((up - exact).exp(), (exact - down).exp()):
            assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / math.sqrt(20000)
        # the law of x_0, and the expected weight, exactly
        start = torch.softmax(-rbm.tempered_free_energy(x, 0.0), 0)
        torch.testing.assert_close(start, dist.Bernoulli(logits=rbm.bias).to_event(1).log_prob(x).exp())
        log_base = (-rbm.tempered_free_energy(x, 0.0)).logsumexp(0)
        torch.testing.assert_close(log_base, rbm.tempered_log_partition())
        h = all_bits(3)
        field = 0.4 * (rbm.hidden_bias + x @ rbm.weight)
        given_x = dist.Bernoulli(logits=field[:, None]).to_event(1).log_prob(h).exp()  # [x, h]
        given_h = dist.Bernoulli(logits=(rbm.bias + 0.4 * h @ rbm.weight.T)[:, None]).to_event(1).log_prob(x).exp()
        kernel = given_x @ given_h  # [x, x']
        tempered = torch.softmax(-rbm.tempered_free_energy(x, 0.4), 0)
        flow = tempered[:, None] * kernel
        torch.testing.assert_close(flow, flow.T)  # reversible
        moved = rbm.tempered_gibbs(x[3].expand(40000, -1), 0.4) @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()
        counts = torch.bincount(moved.long(), minlength=16) / 40000
        assert float((counts - kernel[3]).abs().max()) < 4.5 * 0.5 / math.sqrt(40000)


@pytest.mark.parametrize(("observed", "hidden"), [(3, 5), (5, 3)])
def test_exact_draws_of_a_machine_have_its_law(observed: int, hidden: int) -> None:
    rbm = machine(observed, hidden, 0, 1.0)
    x = all_bits(observed)
    law = torch.softmax(-rbm.free_energy(x), 0).detach()
    torch.manual_seed(0)
    with torch.no_grad():
        draws, exact = rbm.tempered_end(20000)
    number = draws @ (2.0 ** torch.arange(observed - 1, -1, -1)).double()
    counts = torch.bincount(number.long(), minlength=2**observed) / 20000
    assert exact and float((counts - law).abs().max()) < 4.5 * 0.5 / math.sqrt(20000)


def test_scores_of_a_machine_that_cannot_be_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machine with and without permission to enumerate."""
    import ppl_dgm.models.energy.rbm as module

    rbm = machine(8, 6, 0, 1.0)
    x = dgm.sample(rbm, 5, seed=0)["x"]
    exact = dgm.score(rbm, x)
    monkeypatch.setattr(module, "_ENUMERABLE", 4)
    assert dgm.score(rbm, x).kind == "unnormalised" and "ais" in dgm.score(rbm, x).how
    found = dgm.score(rbm, x, method=AIS(temperatures=200), seed=0)
    assert isinstance(found, Sandwich) and found.kind == "estimate" and found.value.shape == (5,)
    assert "sweeps of Gibbs sampling (no strict bound)" in found.how and "gap" in found.how
    assert bool(((found.value - exact.value).abs() < 4.5 * found.stderr).all())
    assert found.lower is not None and found.lower.kind == "lower_bound"
    assert found.upper is not None and found.upper.kind == "upper_bound"
    assert bool(found.contains(exact.value).all()) and bool((found.gap > 0).all())
    given = dgm.score(rbm, x, method=AIS(temperatures=200, posterior={"x": x.repeat(50, 1)}), seed=0)
    assert "from given draws" in given.how


def test_posteriors_of_a_machine_are_not_annealed() -> None:
    rbm = machine(4, 3, 0, 1.0)
    with pytest.raises(TaskUnavailable, match=r"use dgm\.score"):
        dgm.infer(rbm, torch.zeros(2, 4).double(), method="ais")
    with pytest.raises(ProgramError, match="schedule='adaptive' needs a density on R"):
        AIS(schedule="adaptive").log_partition(rbm)
    with pytest.raises(TaskUnavailable, match="no undirected program"):
        AIS().log_partition(coin)


# -- directed programs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["sigmoidal", "linear", "adaptive"])
def test_the_sandwich_contains_the_evidence_of_a_conjugate_program(schedule: str) -> None:
    torch.manual_seed(0)
    exact = {"p": dist.Beta(8.0, 34.0).sample((100,))}
    method = AIS(particles=128, temperatures=40, schedule=schedule, posterior=exact)
    found = dgm.score(coin, torch.tensor(7.0), method=method, seed=0)
    assert isinstance(found, Sandwich) and found.value.shape == ()
    assert bool(found.contains(torch.tensor(1 / 41).log())) and float(found.gap) < 1.5


def test_a_weighted_posterior_and_the_evidence_of_a_regression() -> None:
    program, data, evidence, draws = regression()
    method = AIS(particles=256, temperatures=60, schedule="adaptive", posterior=draws)
    post = dgm.infer(program, *data, method=method, seed=0)
    assert post.log_weights is not None and post.log_weights.shape == (256,)
    assert post.draws["slopes"].shape == (1, 256, 3)
    found = post.log_evidence
    assert isinstance(found, Sandwich) and bool(found.contains(evidence)) and float(found.gap) < 2
    assert abs(float(found.value) - evidence) < 4.5 * float(found.stderr)  # type: ignore[arg-type]
    truth, spread = draws["slopes"].mean(0), draws["slopes"].std(0)
    weights = torch.softmax(post.log_weights.double(), 0)
    ess = 1 / float(weights.square().sum())
    assert ess > 20
    assert bool(((post.mean("slopes") - truth).abs() < 4.5 * spread * math.sqrt(1 / ess + 1 / 100)).all())
    again = dgm.infer(program, *data, method=method, seed=0)
    assert torch.equal(post.log_weights, again.log_weights)  # type: ignore[arg-type]


def test_simulated_data_come_with_one_exact_draw() -> None:
    """Bidirectional Monte Carlo: program and data are simulated together, so that the truth is a posterior draw."""
    joint = dgm.sample(coin, 1, torch.tensor(0.0), seed=3)
    heads = joint["heads"][0]
    method = AIS(particles=128, temperatures=40, posterior={"p": joint["p"][0]})
    found = dgm.score(coin, heads, method=method, seed=0)
    assert isinstance(found, Sandwich)
    assert "from 1 given draw:" in found.how and bool(found.contains(torch.tensor(1 / 41).log()))


def test_a_posterior_object_serves_as_the_other_end() -> None:
    long = dgm.infer(coin, torch.tensor(7.0), method=dgm.NUTS(chains=2, warmup=60, draws=60), seed=0)
    found = dgm.score(coin, torch.tensor(7.0), method=AIS(particles=64, temperatures=30, posterior=long), seed=0)
    assert isinstance(found, Sandwich) and bool(found.contains(torch.tensor(1 / 41).log()))


def test_without_posterior_draws_there_is_a_lower_bound_alone() -> None:
    found = dgm.score(coin, torch.tensor(7.0), method=AIS(particles=64, temperatures=20), seed=0)
    assert isinstance(found, Sandwich) and found.upper is None and bool(found.gap.isnan())
    assert found.lower is not None and float(found.lower.value) < math.log(1 / 41) + 0.1
    with pytest.raises(TaskUnavailable, match="no upper bound"):
        found.contains(0.0)


def test_examples_that_share_nothing_have_a_sandwich_each() -> None:
    program = LinearGaussian()
    x = dgm.sample(program, 3, seed=1)["x"]
    torch.manual_seed(0)
    draws = {"z": program.exact_posterior(x).sample((50,))}
    post = dgm.infer(program, x, method=AIS(particles=100, temperatures=30, posterior=draws), seed=0)
    found = post.log_evidence
    assert isinstance(found, Sandwich) and found.value.shape == (3,) and bool(found.contains(program.evidence(x)).all())
    assert post.draws["z"].shape == (1, 100, 3, 2) and post.log_weights is not None
    assert post.log_weights.shape == (100, 3)
    exact = program.exact_posterior(x)
    assert bool(((post.mean("z") - exact.mean).abs() < 4.5 * exact.variance.sqrt() / math.sqrt(30)).all())


def test_examples_are_told_apart_only_where_nothing_is_shared() -> None:
    def local(x: Tensor, scale: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), scale), obs=x)

    def shared(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([1.0, 2.0, 3.0])
    found = examples_of(as_program(local), (x, torch.tensor(0.5)), {})
    assert found is not None and found.size == 3 and found.row_dims == {"z": -2}
    args, _ = found.arguments(1)
    assert args[0].tolist() == [2.0] and args[1] is not None and float(args[1]) == 0.5
    assert examples_of(as_program(shared), (x,), {}) is None
    assert examples_of(as_program(fixed), (x,), {}) is None


# -- schedules and mistakes ----------------------------------------------------------------------------------------


def test_schedules_go_from_zero_to_one() -> None:
    betas = sigmoidal(10)
    assert betas[0] == 0 and betas[-1] == 1 and bool((betas.diff() > 0).all())
    torch.testing.assert_close(betas + betas.flip(0), torch.ones(11).double())
    assert betas[1] < 0.05
    metric = Metric(torch.ones(1))
    stages = [Stage(beta, metric, 1.0, {"ess": ess}) for beta, ess in ((0.01, 0.5), (0.1, 0.5), (1.0, 0.5**0.25))]
    found = equal_barriers(stages, 10)  # the last way is half as long as each of the others
    assert found[0] == 0 and found[-1] == 1
    torch.testing.assert_close(found[[4, 8, 9]], torch.tensor([0.01, 0.1, 0.55]).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"particles": 1}, "particles must be a whole number, at least 2"),
        ({"temperatures": 0}, "temperatures must be a whole number, at least 1"),
        ({"schedule": "cosine"}, "schedule must be one of 'sigmoidal', 'linear', 'adaptive'"),
        ({"posterior": 3.0}, "posterior must be a Posterior or draws"),
        ({"sigmas": -1.0}, "sigmas must be a number, at least 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        AIS(**options)


def test_posterior_draws_must_fit_the_program() -> None:
    with pytest.raises(ProgramError, match="no draws of site 'p'"):
        dgm.score(coin, torch.tensor(7.0), method=AIS(posterior={"q": torch.zeros(3)}))
    with pytest.raises(ProgramError, match="draws of site 'p' of shape"):
        dgm.score(coin, torch.tensor(7.0), method=AIS(posterior={"p": torch.zeros(3, 2)}))
