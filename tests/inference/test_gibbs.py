"""Gibbs against enumeration, quadrature and closed forms; which update each site gets; resumption and refusals."""

import itertools
import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.inference.conjugate.factors import Factors

F64 = torch.float64


def t(*values: float) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64)


def close(draws: Tensor, expected: Tensor | float, errors: float = 4.5) -> bool:
    """Whether a mean over [chain, draw, ...] is within so many standard errors; chains are independent."""
    means = draws.double().mean(1)  # [chain, ...]
    error = means.std(0) / math.sqrt(len(means))
    return bool(((means.mean(0) - torch.as_tensor(expected)).abs() <= errors * error + 1e-4).all())


def joint_table(story, sites: dict[str, list[Tensor]], *args) -> dict[tuple[Tensor, ...], float]:
    """{values of the sites: probability given everything else}, by running the story at each of them."""
    table = {}
    for values in itertools.product(*sites.values()):
        trace = poutine.trace(poutine.condition(story, dict(zip(sites, values, strict=True)))).get_trace(*args)
        table[values] = float(trace.log_prob_sum())
    largest = max(table.values())
    total = sum(math.exp(v - largest) for v in table.values())
    return {k: math.exp(v - largest) / total for k, v in table.items()}


def bits(count: int) -> list[Tensor]:
    return [torch.tensor(v, dtype=F64) for v in itertools.product((0.0, 1.0), repeat=count)]


# -- discrete sites ------------------------------------------------------------------------------------------


COUPLINGS = torch.zeros(9, 9, dtype=F64)
for i in range(9):
    for j in range(i):
        if (i // 3 == j // 3 and i - j == 1) or i - j == 3:
            COUPLINGS[i, j] = COUPLINGS[j, i] = (-1) ** j * 0.8
FIELD = torch.linspace(-0.5, 0.7, 9, dtype=F64)


def lattice_event():
    z = pyro.sample("z", dist.Bernoulli(torch.full((9,), 0.5, dtype=F64)).to_event(1))
    pyro.factor("energy", (z * FIELD).sum(-1) + (z * (COUPLINGS @ z)).sum(-1) / 2)


def lattice_plate():
    with pyro.plate("sites", 9):
        z = pyro.sample("z", dist.Bernoulli(t(0.5)))
    pyro.factor("energy", (z * FIELD).sum(-1) + (z * (COUPLINGS @ z.expand(9))).sum(-1) / 2)


@pytest.mark.parametrize("story", [lattice_event, lattice_plate])
def test_a_lattice_by_chequerboard_against_enumeration(story) -> None:
    states = torch.stack(bits(9))
    logits = states @ FIELD + (states @ COUPLINGS * states).sum(1) / 2
    weights = logits.softmax(0)
    post = dgm.infer(story, method=dgm.Gibbs(chains=300, warmup=20, draws=40), seed=0)
    assert "2 groups" in post.how and post.draws["z"].shape == (300, 40, 9)
    assert close(post.draws["z"], weights @ states)
    pairs = post.draws["z"][..., :, None] * post.draws["z"][..., None, :]
    assert close(pairs, torch.einsum("s,si,sj->ij", weights, states, states))


def chain(y):
    z = 0
    start = t(0.5, 0.3, 0.2)
    move = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=F64)
    for i in pyro.markov(range(len(y))):
        z = pyro.sample(f"z_{i}", dist.Categorical(start if i == 0 else Vindex(move)[z]))
        pyro.sample(f"y_{i}", dist.Normal(Vindex(t(-1, 0, 2))[z], t(1)), obs=y[i])


def test_a_hidden_chain_is_drawn_in_one_piece() -> None:
    """With nothing else latent every sweep is an independent draw of the whole chain."""
    y = t(-0.8, 0.3, 1.5, 0.2)
    values = [torch.tensor(k) for k in range(3)]
    table = joint_table(chain, {f"z_{i}": values for i in range(4)}, y)
    post = dgm.infer(chain, y, method=dgm.Gibbs(chains=100, warmup=0, draws=100), seed=0)
    assert "z_0, z_1, z_2 and 1 more: enumerated" in post.how
    drawn = torch.stack([post.draws[f"z_{i}"] for i in range(4)], -1)  # [chain, draw, 4]
    for path, probability in table.items():
        frequency = (drawn == torch.stack(path)).all(-1).double().mean()
        assert float(frequency) == pytest.approx(
            probability, abs=4.5 * math.sqrt(probability * (1 - probability) / 1e4) + 1e-4
        )


def regimes(x):
    """A global site above a plate, a local one inside it, and another plate inside that."""
    regime = pyro.sample("regime", dist.Categorical(t(0.3, 0.7)))
    rates = torch.tensor([[0.1, 0.6], [0.5, 0.9]], dtype=F64)
    with pyro.plate("data", x.shape[1], dim=-1):
        on = pyro.sample("on", dist.Bernoulli(Vindex(t(0.2, 0.8))[regime]))
        with pyro.plate("pixels", x.shape[0], dim=-2):
            pyro.sample("x", dist.Bernoulli(Vindex(rates)[regime, on.long()]), obs=x)


def test_nested_plates_are_summed_and_drawn_jointly() -> None:
    x = torch.tensor([[1.0, 0, 1], [1, 0, 0]], dtype=F64)
    table = joint_table(regimes, {"regime": [torch.tensor(0), torch.tensor(1)], "on": bits(3)}, x)
    post = dgm.infer(regimes, x, method=dgm.Gibbs(chains=100, warmup=0, draws=100), seed=0)
    assert "regime, on: enumerated" in post.how
    for (regime, on), probability in table.items():
        same = (post.draws["regime"] == regime) & (post.draws["on"] == on).all(-1)
        assert float(same.double().mean()) == pytest.approx(
            probability, abs=4.5 * math.sqrt(probability * (1 - probability) / 1e4) + 1e-4
        )


def crossing(x):
    rows, columns = pyro.plate("rows", 2, dim=-1), pyro.plate("columns", 3, dim=-2)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(t(0.4)))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(t(0.6)))
    with rows, columns:
        pyro.sample("x", dist.Normal(a + 2 * a * b, t(1)), obs=x)


def test_crossing_plates_which_no_sum_can_do_are_drawn_in_turn() -> None:
    x = torch.tensor([[0.5, 2.0], [-0.4, 1.1], [2.2, 3.0]], dtype=F64)
    with pytest.raises(TaskUnavailable):
        dgm.infer(crossing, x, method="exact")
    table = joint_table(crossing, {"a": bits(2), "b": [b[:, None] for b in bits(3)]}, x)
    post = dgm.infer(crossing, x, method=dgm.Gibbs(chains=300, warmup=20, draws=30), seed=0)
    assert "a: enumerated; b: enumerated" in post.how
    assert close(post.draws["a"], sum(p * a for (a, _), p in table.items()))
    assert close(post.draws["b"], sum(p * b for (_, b), p in table.items()))
    both = post.draws["a"][..., 0] * post.draws["b"][..., 2, 0]
    assert close(both, sum(p * float(a[0] * b[2, 0]) for (a, b), p in table.items()))


# -- conjugate blocks ----------------------------------------------------------------------------------------


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(t(1, 1)))
    with pyro.plate("components", 2):
        precision = pyro.sample("precision", dist.Gamma(t(2), t(2)))
        mean = pyro.sample("mean", dist.Normal(t(0), 2 * precision.rsqrt()))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mean[k], precision[k].rsqrt()), obs=x)


def _component_evidence(x: Tensor) -> float:
    """log p(x) of normal observations under the normal-gamma prior of one component."""
    n = len(x)
    inner = n + 0.25
    rate = 2 + (x.square().sum() - x.sum() ** 2 / inner) / 2
    return float(
        (math.log(0.25) - math.log(inner)) / 2
        - n / 2 * math.log(2 * math.pi)
        + 2 * math.log(2)
        - (2 + n / 2) * rate.log()
        + math.lgamma(2 + n / 2)
        - math.lgamma(2)
    )


def test_a_bayesian_mixture_against_all_assignments() -> None:
    """Who is with whom: weights, means and precisions integrated out by hand, memberships enumerated."""
    x = t(-2.1, -1.4, 0.2, 1.8, 2.5)
    logs, together = [], []
    for assignment in itertools.product((0, 1), repeat=5):
        k = torch.tensor(assignment)
        sizes = [int((k == c).sum()) for c in (0, 1)]
        prior = math.lgamma(2) - math.lgamma(7) + sum(math.lgamma(1 + n) for n in sizes)
        logs.append(prior + sum(_component_evidence(x[k == c]) for c in (0, 1)))
        together.append((k[:, None] == k).double())
    expected = torch.einsum("s,sij->ij", t(*logs).softmax(0), torch.stack(together))
    post = dgm.infer(mixture, x, method=dgm.Gibbs(chains=400, warmup=40, draws=30), seed=0)
    for part in ("weights: Dirichlet", "precision: Gamma", "mean: Normal", "k: enumerated"):
        assert part in post.how
    k = post.draws["k"]
    assert close(k[..., :, None] == k[..., None, :], expected)


def topics(words):
    """Two documents of three words, two topics, three words in the dictionary."""
    with pyro.plate("topics", 2):
        phi = pyro.sample("phi", dist.Dirichlet(t(0.5, 0.5, 0.5)))
    with pyro.plate("documents", words.shape[1], dim=-1):
        theta = pyro.sample("theta", dist.Dirichlet(t(0.6, 0.6)))
        with pyro.plate("words", words.shape[0], dim=-2):
            z = pyro.sample("z", dist.Categorical(theta))
            pyro.sample("w", dist.Categorical(Vindex(phi)[z]), obs=words)


def test_topics_against_all_assignments() -> None:
    words = torch.tensor([[0, 2], [0, 1], [1, 2]])  # [word, document]
    logs, together = [], []
    for assignment in itertools.product((0, 1), repeat=6):
        z = torch.tensor(assignment).reshape(3, 2)
        value = 0.0
        for document in range(2):
            value += sum(math.lgamma(0.6 + int((z[:, document] == c).sum())) for c in (0, 1))
        for c in (0, 1):
            counts = [int(((z == c) & (words == v)).sum()) for v in range(3)]
            value += sum(math.lgamma(0.5 + n) for n in counts) - math.lgamma(1.5 + sum(counts))
        logs.append(value)
        together.append((z.flatten()[:, None] == z.flatten()).double())
    expected = torch.einsum("s,sij->ij", t(*logs).softmax(0), torch.stack(together))
    post = dgm.infer(topics, words, method=dgm.Gibbs(chains=400, warmup=30, draws=40), seed=0)
    assert "phi: Dirichlet (conjugate)" in post.how and "theta: Dirichlet (conjugate)" in post.how
    z = post.draws["z"].flatten(2)
    assert close(z[..., :, None] == z[..., None, :], expected)


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(t(0), t(5)))
    precision = pyro.sample("precision", dist.Gamma(t(2), t(20)))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, precision.rsqrt()))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.parametrize("blocks", [True, False])
def test_eight_schools_against_quadrature(blocks: bool) -> None:
    y, sigma = t(28, 8, -3, 7, -1, 1, 18, 12), t(15, 10, 16, 11, 9, 11, 10, 18)
    log_precision = torch.linspace(-14, 4, 4001, dtype=F64)
    variance = (-log_precision).exp()[:, None] + sigma.square()  # of y given mu
    weight = 1 / 25 + (1 / variance).sum(1)
    centre = (y / variance).sum(1) / weight
    marginal = (
        dist.Gamma(t(2), t(20)).log_prob(log_precision.exp())
        + log_precision
        - variance.log().sum(1) / 2
        - (y.square() / variance).sum(1) / 2
        + centre.square() * weight / 2
        - weight.log() / 2
    )
    p = marginal.softmax(0)
    shrink = log_precision.exp()[:, None] / (log_precision.exp()[:, None] + sigma.square().reciprocal())
    theta = shrink * centre[:, None] + (1 - shrink) * y
    post = dgm.infer(schools, y, sigma, method=dgm.Gibbs(chains=300, warmup=40, draws=30, blocks=blocks), seed=0)
    assert ("mu, theta: Normal" in post.how) is blocks
    assert close(post.draws["mu"], (p * centre).sum())
    assert close(post.draws["mu"].square(), (p * (centre.square() + 1 / weight)).sum())
    assert close(post.draws["precision"], (p * log_precision.exp()).sum())
    assert close(post.draws["theta"], p @ theta)


def regression(x, y):
    precision = pyro.sample("precision", dist.Gamma(t(2), t(3)))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(x.shape[1], dtype=F64), 2 * precision.rsqrt()).to_event(1))
    pyro.deterministic("twice", 2 * beta)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ beta, precision.rsqrt()), obs=y)


def test_regression_with_unknown_noise_against_the_normal_gamma_posterior() -> None:
    torch.manual_seed(2)
    x = torch.randn(12, 3, dtype=F64)
    y = x @ t(1, 2, -1) + 0.4 * torch.randn(12, dtype=F64)
    inner = x.T @ x + torch.eye(3, dtype=F64) / 4
    centre = torch.linalg.solve(inner, x.T @ y)
    rate = 3 + (y @ y - centre @ inner @ centre) / 2
    post = dgm.infer(regression, x, y, method=dgm.Gibbs(chains=200, warmup=20, draws=40), seed=0)
    assert close(post.draws["beta"], centre) and close(post.draws["precision"], (2 + 6) / rate)
    second = rate / (2 + 6 - 1) * torch.linalg.inv(inner) + torch.outer(centre, centre)
    beta = post.draws["beta"]
    assert close(beta[..., :, None] * beta[..., None, :], second)
    torch.testing.assert_close(post.deterministic["twice"], 2 * beta)
    lp = dist.Gamma(t(2), t(3)).log_prob(post.draws["precision"])
    sd = post.draws["precision"].rsqrt()[..., None]
    lp = lp + dist.Normal(t(0), 2 * sd).log_prob(beta).sum(-1) + dist.Normal(beta @ x.T, sd).log_prob(y).sum(-1)
    torch.testing.assert_close(post.stats["lp"], lp)
    assert post.cost.gradients > 0 and post.cost.path == "recorded"


# -- what is in no family ------------------------------------------------------------------------------------


def zero_inflated(y):
    """The rate is not conjugate: log-normal prior, Poisson counts where not switched off."""
    p = pyro.sample("p", dist.Beta(t(2), t(3)))
    rate = pyro.sample("rate", dist.LogNormal(t(0.5), t(0.7)))
    with pyro.plate("data", len(y)):
        on = pyro.sample("on", dist.Bernoulli(p))
        pyro.sample("y", dist.Poisson(torch.where(on == 1, rate, t(1e-6))), obs=y)


@pytest.mark.parametrize("rest", ["hmc", "slice"])
def test_zero_inflated_counts_against_quadrature(rest: str) -> None:
    y = t(0, 0, 3, 1, 0, 2)
    p = torch.linspace(0, 1, 402, dtype=F64)[1:-1, None]
    log_rate = torch.linspace(-5, 4, 600, dtype=F64)
    rate = log_rate.exp()[:, None]
    on, off = dist.Poisson(rate).log_prob(y), dist.Poisson(t(1e-6)).log_prob(y)  # [rate, y], [y]
    each = torch.logaddexp(p.log()[..., None] + on, torch.log1p(-p)[..., None] + off)
    logs = dist.Beta(t(2), t(3)).log_prob(p) + dist.Normal(t(0.5), t(0.7)).log_prob(log_rate) + each.sum(-1)
    weight = logs.exp() / logs.exp().sum()
    responsible = (p.log()[..., None] + on - each).exp()
    sampler = dgm.Gibbs(chains=200, warmup=50, draws=30, rest=rest)
    post = dgm.infer(zero_inflated, y, method=sampler, seed=0)
    assert ("rate: HMC" if rest == "hmc" else "rate: slice sampling") in post.how and "p: Beta" in post.how
    assert close(post.draws["p"], (weight * p).sum()) and close(post.draws["rate"], (weight * log_rate.exp()).sum())
    assert close(post.draws["on"], (weight[..., None] * responsible).sum((0, 1)))
    if rest == "hmc":
        assert 0.5 < float(post.stats["acceptance_rate"].mean()) < 0.99 and not bool(post.stats["diverging"].any())


def generative(n=3):
    """Nothing is observed: sites of every kind, whose joint distribution is the prior."""
    p = pyro.sample("p", dist.Beta(t(2), t(3)))
    precision = pyro.sample("precision", dist.Gamma(t(4), t(3)))
    mean = pyro.sample("mean", dist.Normal(t(1), t(2)))
    skew = pyro.sample("skew", dist.Gumbel(t(0), t(1)))
    with pyro.plate("data", n):
        k = pyro.sample("k", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(mean + skew * k, precision.rsqrt()))


def test_data_drawn_again_in_each_sweep_bring_back_the_prior() -> None:
    """Geweke's joint test: with parameters and data both latent, every update must leave the prior as it is."""
    post = dgm.infer(generative, method=dgm.Gibbs(chains=500, warmup=40, draws=30), seed=0)
    assert "skew: HMC" in post.how and "p: Beta" in post.how and "precision: Gamma" in post.how
    draws = post.draws
    euler = 0.5772156649
    for found, expected in (
        (draws["p"], 0.4), (draws["p"].square(), 0.16 + 0.04), (draws["precision"], 4 / 3),
        (draws["precision"].square(), 20 / 9), (draws["mean"], 1.0), (draws["mean"].square(), 5.0),
        (draws["skew"], euler), (draws["skew"].square(), euler**2 + math.pi**2 / 6), (draws["k"], t(0.4, 0.4, 0.4)),
        (draws["y"], t(1, 1, 1) + 0.4 * euler), (draws["p"] * draws["k"].mean(-1), 0.2),
        (draws["y"].square(), torch.full((3,), 1 + 5 + 2 * 0.4 * euler + 0.4 * (euler**2 + math.pi**2 / 6), dtype=F64)),
    ):  # fmt: skip
        assert close(found, expected)


def hidden_switch(y):
    """The mean looks conjugate wherever the scale is small; once the chains have grown it is not."""
    scale = pyro.sample("scale", dist.Gamma(t(60), t(1)))
    mean = pyro.sample("mean", dist.Normal(t(0), t(1)))
    linked = torch.where(scale > 30, torch.tanh(mean), mean)
    pyro.sample("y", dist.Normal(linked, t(1)), obs=y)


def test_a_conditional_that_changes_its_form_on_the_way_is_found_out() -> None:
    post = dgm.infer(hidden_switch, t(0.9), method=dgm.Gibbs(chains=200, warmup=40, draws=30), seed=0)
    assert "mean: HMC" in post.how or "scale, mean: HMC" in post.how
    mean = torch.linspace(-6, 6, 4001, dtype=F64)
    weight = (dist.Normal(t(0), t(1)).log_prob(mean) + dist.Normal(mean.tanh(), t(1)).log_prob(t(0.9))).softmax(0)
    assert close(post.draws["mean"], (weight * mean).sum())


def test_without_conjugacy_every_continuous_site_is_of_the_rest() -> None:
    post = dgm.infer(regression, torch.ones(4, 1), t(1, 2, 1, 2), method=dgm.Gibbs(draws=5, warmup=5, conjugate=False))
    assert post.how.endswith("precision, beta: HMC")


# -- running -------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    pass


@pytest.mark.parametrize("rest", ["hmc", "slice"])
@pytest.mark.parametrize("at", [4, 13], ids=["in warm-up", "while drawing"])
def test_an_interrupted_run_goes_on_to_the_same_draws(
    rest: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppl_dgm.inference import gibbs

    monkeypatch.setattr(gibbs, "CHECKPOINT_SECONDS", -1.0)
    y = t(0, 0, 3, 1)
    whole = dgm.infer(zero_inflated, y, method=dgm.Gibbs(chains=3, warmup=8, draws=10, rest=rest), seed=5)
    sampler = dgm.Gibbs(chains=3, warmup=8, draws=10, rest=rest, checkpoint=tmp_path / "run.safetensors")
    advance = gibbs.Gibbs._advance

    def stop(self, factors, sweep, run):
        if run.t == at:
            raise _Stopped
        advance(self, factors, sweep, run)

    monkeypatch.setattr(gibbs.Gibbs, "_advance", stop)
    with pytest.raises(_Stopped):
        dgm.infer(zero_inflated, y, method=sampler, seed=5)
    monkeypatch.setattr(gibbs.Gibbs, "_advance", advance)
    resumed = dgm.infer(zero_inflated, y, method=sampler, seed=5)
    for name, draws in whole.draws.items():
        assert torch.equal(resumed.draws[name], draws), name
    for name, values in whole.stats.items():
        assert torch.equal(resumed.stats[name], values), name
    with pytest.raises(FileError, match="warmup was 8 and is 9"):
        other = dgm.Gibbs(chains=3, warmup=9, draws=10, rest=rest, checkpoint=tmp_path / "run.safetensors")
        dgm.infer(zero_inflated, y, method=other, seed=5)


def test_a_seed_repeats_and_single_precision_is_kept() -> None:
    def story(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        pyro.sample("x", dist.Normal(mean + k, 1.0), obs=x)

    runs = [dgm.infer(story, torch.tensor(1.5), method=dgm.Gibbs(warmup=3, draws=6), seed=1) for _ in range(2)]
    assert torch.equal(runs[0].draws["mean"], runs[1].draws["mean"])
    assert runs[0].draws["mean"].dtype == torch.float32 and runs[0].draws["k"].dtype == torch.int64
    assert runs[0].draws["mean"].shape == (4, 6)


def endless():
    n = pyro.sample("n", dist.Poisson(t(3)))
    pyro.sample("x", dist.Normal(n, t(1)), obs=t(2))


def subsampled():
    with pyro.plate("rows", 10, subsample_size=3):
        z = pyro.sample("z", dist.Normal(t(0), t(1)))
        pyro.sample("x", dist.Normal(z, t(1)), obs=torch.zeros(3, dtype=F64))


def observed():
    pyro.sample("x", dist.Normal(t(0), t(1)), obs=t(2))


def wandering():
    k = pyro.sample("k", dist.Bernoulli(t(0.5)))
    a = pyro.sample("a", dist.Normal(t(0), t(1)))
    if k == 1:
        pyro.sample("b", dist.Normal(a, t(1)))


def improper():
    a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    k = pyro.sample("k", dist.Bernoulli(t(0.5)))
    pyro.sample("x", dist.Normal(a * k, t(1)), obs=t(2))


@pytest.mark.parametrize(
    "story, error, words",
    [
        (endless, TaskUnavailable, "'n' is discrete and has no finite list"),
        (subsampled, TaskUnavailable, "plate 'rows' draws 3 of 10"),
        (observed, TaskUnavailable, "nothing to infer"),
        (wandering, TaskUnavailable, "'b' is not there in every run"),
        (improper, NumericalError, "'a'.*no finite integral.*proper prior"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(story, error, words) -> None:
    with pytest.raises(error, match=words):
        for seed in range(5):  # which sites there are may depend on the draw
            dgm.infer(story, method=dgm.Gibbs(warmup=2, draws=30), seed=seed)


@pytest.mark.parametrize(
    "options", [{"chains": 0}, {"warmup": -1}, {"draws": 0}, {"rest": "nuts"}, {"target_accept": 1.0}, {"radius": 0.0}]
)
def test_wrong_options_are_named(options) -> None:
    with pytest.raises(ProgramError, match=f"Gibbs: {next(iter(options))} must be"):
        dgm.Gibbs(**options)


def test_a_program_of_single_precision_is_computed_in_double_so_that_its_rows_are_drawn_at_once() -> None:
    """Rounding of single precision would look as if the rows depended on one another."""
    torch.manual_seed(0)
    program, x = dgm.models.FactorialMixture(observed=4, causes=3, exact_up_to=4), torch.randn(30, 4)
    factors = Factors(program, x)
    held = [*factors.program.parameters(), *factors.program.buffers()]
    assert all(value.dtype == torch.float64 for value in held if value.is_floating_point())
    assert next(program.parameters()).dtype == torch.float32
    post = dgm.infer(program, x, method=dgm.Gibbs(chains=2, warmup=2, draws=2), seed=0)
    assert "element by element" not in post.how and post.draws["z_0"].shape == (2, 2, 30)
