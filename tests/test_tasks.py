"""The four verbs on a stranger's program: laws of the samples, seeds, given values, the choice of a method, predict."""

import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
import ppl_dgm.tasks as tasks
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable


def chain():
    """a -> b -> c, all N(parent, 1), and a deterministic sum."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(a, 1.0))
    pyro.deterministic("sum", a + b)
    return pyro.sample("c", dist.Normal(b, 1.0))


def coins(x):
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def switch():
    """x ~ N(+-10, 1) through a Python branch, which vmap cannot follow."""
    k = pyro.sample("k", dist.Bernoulli(0.3))
    return pyro.sample("x", dist.Normal(10.0 if k.item() else -10.0, 1.0))


class Sheet(dgm.Program):
    """A global rate and n examples under it."""

    def model(self, x=None, n=1):
        rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
        with pyro.plate("data", n if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            return pyro.sample("x", dist.Poisson(rate + 20 * k), obs=x)


def no_batching(*args, **kwargs):
    raise RuntimeError("vmap cannot follow")


# -- sample: the law -----------------------------------------------------------------------------------------------

N = 4000
LAWS = {  # program of no arguments: {site: (mean, variance)}
    "normal": (lambda: pyro.sample("x", dist.Normal(2.0, 3.0)), {"x": (2.0, 9.0)}),
    "gamma": (lambda: pyro.sample("x", dist.Gamma(2.0, 4.0)), {"x": (0.5, 0.125)}),
    "beta": (lambda: pyro.sample("x", dist.Beta(2.0, 3.0)), {"x": (0.4, 0.04)}),
    "exponential": (lambda: pyro.sample("x", dist.Exponential(2.0)), {"x": (0.5, 0.25)}),
    "uniform": (lambda: pyro.sample("x", dist.Uniform(1.0, 3.0)), {"x": (2.0, 1 / 3)}),
    "student": (lambda: pyro.sample("x", dist.StudentT(9.0)), {"x": (0.0, 9 / 7)}),
    "poisson": (lambda: pyro.sample("x", dist.Poisson(4.0)), {"x": (4.0, 4.0)}),
    "categorical": (lambda: pyro.sample("x", dist.Categorical(torch.tensor([0.2, 0.8]))), {"x": (0.8, 0.16)}),
    "binomial": (lambda: pyro.sample("x", dist.Binomial(5, torch.tensor(0.3))), {"x": (1.5, 1.05)}),
    "geometric": (lambda: pyro.sample("x", dist.Geometric(0.5)), {"x": (1.0, 2.0)}),
    "von mises": (lambda: pyro.sample("x", dist.VonMises(0.0, 1e4)), {"x": (0.0, 1e-4)}),
    "affine": (lambda: pyro.sample("x", dist.LogNormal(0.0, 0.5)), {"x": (1.1331, 0.36470)}),
    "chain": (chain, {"a": (0.0, 1.0), "b": (0.0, 2.0), "sum": (0.0, 5.0), "c": (0.0, 3.0)}),
    "branch": (switch, {"k": (0.3, 0.21), "x": (-4.0, 85.0)}),
}


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "looped"])
@pytest.mark.parametrize("name", LAWS)
def test_means_and_variances_are_those_of_the_program(name, batched, monkeypatch):
    if not batched:
        monkeypatch.setattr(tasks, "batched_runs", no_batching)
    program, moments = LAWS[name]
    n = N if batched and name not in ("branch", "von mises") else 1000
    drawn = dgm.sample(program, n, seed=1)
    assert list(drawn) == list(moments)
    for site, (mean, variance) in moments.items():
        x = drawn[site].double()
        assert x.shape == (n,)
        error, fourth = (variance / n) ** 0.5, float(((x - mean) ** 4).mean())
        assert abs(float(x.mean()) - mean) < 4.5 * error
        assert abs(float(((x - mean) ** 2).mean()) - variance) < 4.5 * ((fourth - variance**2) / n) ** 0.5 + 1e-9


@pytest.mark.parametrize("program", [chain, LAWS["exponential"][0], LAWS["beta"][0], LAWS["gamma"][0]])
def test_common_programs_take_the_fast_path(program, monkeypatch):
    runs = []
    values = tasks._values
    monkeypatch.setattr(tasks, "_values", lambda *args, **kwargs: runs.append(1) or values(*args, **kwargs))
    dgm.sample(program, 500, seed=0)
    assert len(runs) <= 3


@pytest.mark.parametrize("source", [random.random, np.random.rand], ids=["python", "numpy"])
def test_python_and_numpy_randomness_is_fresh_in_every_draw(source):
    drawn = dgm.sample(
        lambda: pyro.sample("x", dist.Normal(torch.zeros(2) + 100 * (source() < 0.5), 1.0).to_event(1)),
        200,
        seed=0,
    )
    assert 60 < int((drawn["x"][:, 0] > 50).sum()) < 140


def test_observations_are_drawn_too_and_not_repeated():
    """Sampling is from the joint: the data passed in give the shape alone."""
    x = torch.ones(6)
    drawn = dgm.sample(coins, 3000, x, seed=0)
    assert drawn["x"].shape == (3000, 6)
    assert float(drawn["x"].mean()) == pytest.approx(2 / 3, abs=4.5 * (1 / 18 / 3000) ** 0.5 + 0.01)
    within = torch.cov(torch.stack([drawn["x"][:, 0], drawn["x"][:, 1]]))[0, 1]
    assert float(within) == pytest.approx(1 / 18, abs=0.02)  # var(p): two coins of one draw share p


def test_one_run_of_a_program_draws_n_examples():
    drawn = dgm.sample(Sheet(), 5, seed=0)
    assert drawn["x"].shape == (5,) and drawn["rate"].shape == ()


def test_factors_and_plate_indices_are_no_sites():
    def program():
        with pyro.plate("data", 3, subsample_size=2):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -x.square().sum())

    assert {name: value.shape for name, value in dgm.sample(program, 4, seed=0).items()} == {"x": (4, 2)}


def test_structures_that_differ_cannot_be_stacked():
    def program():
        if pyro.sample("k", dist.Bernoulli(0.5)).item():
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(TaskUnavailable, match=r"differ from run to run.*draw with n=1"):
        dgm.sample(program, 50, seed=0)
    assert "k" in dgm.sample(program, 1, seed=0)


@pytest.mark.parametrize("n", [0, -1, 1.5, "3", True, None])
def test_n_must_be_a_positive_whole_number(n):
    with pytest.raises(ProgramError, match="n must be a positive number of draws"):
        dgm.sample(chain, n)


# -- sample: given values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "looped"])
def test_given_values_hold_and_the_rest_follows(batched, monkeypatch):
    if not batched:
        monkeypatch.setattr(tasks, "batched_runs", no_batching)
    drawn = dgm.sample(chain, 1000, given={"a": torch.tensor(50.0)}, seed=0)
    assert (drawn["a"] == 50).all()
    assert float(drawn["b"].mean()) == pytest.approx(50, abs=0.15) and float(drawn["b"].var()) == pytest.approx(
        1, rel=0.2
    )
    assert torch.allclose(drawn["sum"], drawn["a"] + drawn["b"])
    each = torch.arange(1000.0) * 10
    drawn = dgm.sample(chain, 1000, given={"a": each}, seed=0)
    assert torch.equal(drawn["a"], each)
    assert float((drawn["b"] - each).std()) == pytest.approx(1, rel=0.2)
    both = dgm.sample(chain, 3, given={"a": torch.tensor(1.0), "b": torch.tensor([1.0, 2.0, 3.0])}, seed=0)
    assert torch.equal(both["sum"], torch.tensor([2.0, 3.0, 4.0]))


def test_given_values_of_a_program_that_draws_n():
    drawn = dgm.sample(Sheet(), 3, given={"rate": torch.tensor(0.0001), "k": torch.tensor([0.0, 1.0, 0.0])}, seed=0)
    assert drawn["x"][0] == drawn["x"][2] == 0 and drawn["x"][1] > 5
    assert dgm.sample(Sheet(), 3, given={"k": torch.tensor(1)}, seed=0)["k"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("program", "given", "ancestor"),
    [
        (chain, {"b": torch.tensor(0.0)}, "'a'"),
        (chain, {"a": torch.tensor(0.0), "c": torch.tensor(0.0)}, "'b'"),
        (switch, {"x": torch.tensor(9.0)}, ""),  # through .item(), seen by running again
        (Sheet(), {"x": torch.tensor(1.0)}, "'k'"),
        (lambda: pyro.sample("x", dist.Normal(pyro.sample("rare", dist.Bernoulli(1e-6)), 1.0)), {"x": torch.tensor(0.0)}, "'rare'"),
    ],
    ids=["parent", "grandparent given", "branch", "plate", "rare"],
)  # fmt: skip
def test_running_forward_that_would_not_condition_is_refused(program, given, ancestor):
    with pytest.raises(TaskUnavailable, match=rf"site '.' depends on .*{ancestor}.*use infer"):
        dgm.sample(program, 4, given=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"q": torch.tensor(1.0)}, r"no site 'q'; it has a, b, sum, c"),
        (
            {"a": torch.zeros(3)},
            r"site 'a' takes a value of shape \(\), or \(4,\) for all 4 draws, not \(3,\)",
        ),
        ({"sum": torch.tensor(1.0)}, r"site 'sum' is computed from other sites; give those"),
    ],
)
def test_given_values_that_do_not_fit_are_named(given, message):
    with pytest.raises(ProgramError, match=message):
        dgm.sample(chain, 4, given=given)


def test_given_values_outside_the_support_are_refused():
    with pytest.raises(ProgramError, match="site 'rate' lies outside its support"):
        dgm.sample(Sheet(), 2, given={"rate": torch.tensor(-1.0)})
    with pytest.raises(ProgramError, match=r"takes whole numbers, but 0.5"):
        dgm.sample(lambda: pyro.sample("k", dist.Categorical(torch.ones(2))), 2, given={"k": torch.tensor(0.5)})


# -- seeds -----------------------------------------------------------------------------------------------------------


def states():
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), name, keys.tolist(), rest, random.getstate()


VERBS = {
    "sample": lambda seed: dgm.sample(chain, 3, seed=seed)["c"],
    "sample, looped": lambda seed: dgm.sample(switch, 3, seed=seed)["x"],
    "sample, given": lambda seed: dgm.sample(chain, 3, given={"a": torch.tensor(1.0)}, seed=seed)["c"],
    "score": lambda seed: dgm.score(coins, torch.ones(3), method="simple-monte-carlo", seed=seed).value,
    "infer": lambda seed: dgm.infer(coins, torch.ones(3), guide=lambda x: pyro.sample("p", dist.Beta(4.0, 1.0)), seed=seed).draws["p"],
    "learn": lambda seed: torch.cat(
        [p.flatten() for p in dgm.learn(coins, torch.ones(3), method=dgm.SVI(epochs=2), seed=seed).program.parameters()]
    ).detach(),
    "check": lambda seed: torch.tensor(len(dgm.check(coins, torch.ones(3)).sites)) if seed == 0 else None,
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_a_seed_repeats_bit_for_bit_and_leaves_the_callers_random_state(verb):
    run = VERBS[verb]
    before = states()
    first = run(0)
    assert states() == before
    torch.rand(5), np.random.rand(3), random.random()
    moved = states()
    assert torch.equal(run(0), first)
    assert states() == moved
    if verb != "check":
        assert not torch.equal(run(1), first)


def test_without_a_seed_the_callers_random_state_decides():
    torch.manual_seed(3)
    first, second = (dgm.sample(chain, 2)["a"] for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(dgm.sample(chain, 2)["a"], first) and not torch.equal(first, second)


# -- score and infer: what is chosen -----------------------------------------------------------------------------------


def test_score_is_exact_where_every_latent_site_can_be_summed_out():
    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(torch.tensor([-1.0, 2.0])[k], 1.0), obs=x)

    x = torch.tensor([-1.0, 0.5, 3.0])
    parts = torch.stack([dist.Normal(m, 1.0).log_prob(x) + torch.tensor(w).log() for m, w in ((-1.0, 0.3), (2.0, 0.7))])
    score = dgm.score(mixture, x)
    assert score.kind == "exact" and torch.allclose(score.value, parts.logsumexp(0), atol=1e-6)
    post = dgm.infer(mixture, x, seed=0)
    assert post.kind == "exact" and post.program.name == "mixture"
    assert torch.allclose(post.exact["k"].probs, parts.softmax(0).T, atol=1e-6)


def test_a_conjugate_evidence_through_the_methods_by_name():
    """B(2 + 3, 1 + 1) / B(2, 1), with the exact posterior as guide: every weight is the evidence."""
    x = torch.tensor([1.0, 1.0, 0.0, 1.0])
    wanted = torch.lgamma(torch.tensor([5.0, 2.0, 3.0, 2.0, 1.0, 7.0])) @ torch.tensor([1.0, 1, 1, -1, -1, -1])

    def posterior(x):
        pyro.sample("p", dist.Beta(5.0, 2.0))

    for method, kind in (
        (None, "lower_bound"),
        ("importance-weighted", "lower_bound"),
        ("elbo", "lower_bound"),
        ("importance", "estimate"),
    ):
        score = dgm.score(coins, x, guide=posterior, method=method, seed=0)
        assert score.kind == kind and float(score.value) == pytest.approx(float(wanted), abs=1e-4)
    rough = dgm.score(coins, x, method="simple-monte-carlo", seed=0)
    assert rough.kind == "estimate" and float(rough.value) == pytest.approx(float(wanted), abs=5 * float(rough.stderr))


def test_what_cannot_be_answered_names_what_can():
    def skewed(x):
        p = pyro.sample("p", dist.Kumaraswamy(2.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    with pytest.raises(TaskUnavailable, match=r"integral over 'p'; pass guide=.*simple-monte-carlo"):
        dgm.score(skewed, torch.ones(3))
    with pytest.raises(TaskUnavailable, match="nothing to infer"):
        dgm.infer(lambda x: pyro.sample("x", dist.Normal(0.0, 1.0), obs=x), torch.tensor(1.0))
    with pytest.raises(TaskUnavailable, match=r"has no E- and M-step.*learn it with method='svi'"):
        dgm.infer(coins, torch.ones(3), method="em")
    with pytest.raises(ProgramError, match="learns nothing; try one of"):
        dgm.learn(coins, torch.ones(3), method="simple-monte-carlo")
    with pytest.raises(TaskUnavailable, match=r"posterior but no evidence; try"):
        dgm.score(coins, torch.ones(3), guide="AutoNormal", method="amortised")


def test_infer_by_a_learner_fits_and_draws():
    post = dgm.infer(
        coins,
        torch.ones(20),
        method=dgm.SVI(guide="AutoNormal", epochs=600, batch_size=None, lr=0.05, schedule="cosine"),
        seed=0,
    )
    assert float(post.mean("p")) == pytest.approx(22 / 23, abs=0.02)
    assert post.program.name == "coins"


def test_dropout_is_off_while_scoring_and_comes_back():
    program = dgm.models.VAE(6, values=2, latent=2, hidden=8, encoder_dropout=0.5)
    program.train()
    x = torch.zeros(4, 6)
    one, other = (dgm.infer(program, x, seed=0).draws["z"] for _ in range(2))
    assert torch.equal(one, other)
    assert program.training and all(module.training for module in program.modules())


def test_observations_are_checked_before_anything_runs():
    program = dgm.models.MixtureOfCategoricals(3, 2, 2)
    before = {k: v.clone() for k, v in program.state_dict().items()}
    good, bad = torch.zeros(8, 3).long(), torch.full((8, 3), 2)
    for verb in (dgm.score, dgm.infer, dgm.learn):
        with pytest.raises(
            DataError,
            match=r"x\[0, 0\] is 2, expected an integer from 0 to 1|x\[0, 0\] is 2, expected 0 or 1",
        ):
            verb(program, bad)
    with pytest.raises(DataError, match=r"valid\[0, 0\] is 2"):
        dgm.learn(program, good, valid=bad)
    assert all(torch.equal(before[k], v) for k, v in program.state_dict().items())


def test_learn_takes_a_dataset_and_one_without_a_validation_split():
    x = torch.randint(0, 2, (30, 3))
    for valid in (x[:5], x[:0]):
        dataset = dgm.data.Dataset("toy", x, valid, x[:0], values=2)
        fit = dgm.learn(dgm.models.MixtureOfCategoricals(3, 2, 2), dataset, method=dgm.EM(steps=2), seed=0)
        assert ("valid" in fit.history) == bool(len(valid))


@pytest.mark.parametrize("device_argument", ["cpu"])
def test_device_argument_moves_the_program(device_argument):
    assert (
        dgm.sample(dgm.models.ProbabilisticPCA(3, 1), 2, device=device_argument, seed=0)["x"].device.type
        == device_argument
    )


def test_verbs_run_on_every_device(device):
    program = dgm.models.MixtureOfCategoricals(3, 2, 2)
    x = dgm.sample(program, 10, device=device, seed=0)["x"]
    assert x.device.type == device.type == program.device.type
    assert dgm.score(program, x.cpu()).value.device.type == device.type
    assert dgm.infer(program, x.cpu(), seed=0).draws["k"].device.type == device.type
    assert dgm.learn(program, x.cpu(), method=dgm.EM(steps=2), seed=0).program.device.type == device.type


# -- predict -----------------------------------------------------------------------------------------------------------


def test_posterior_predictive_of_the_beta_bernoulli():
    """P(x = 1 | data) = (a + successes) / (a + b + n), whatever weights the draws carry."""
    x = torch.tensor([1.0, 1.0, 1.0, 0.0])
    wanted = (2 + 3) / (3 + 4)
    for guide, method in (
        (lambda x: pyro.sample("p", dist.Beta(5.0, 2.0)), "amortised"),
        (lambda x: pyro.sample("p", dist.Beta(1.0, 1.0)), "importance"),
    ):
        post = dgm.infer(coins, x, guide=guide, method=method, seed=0)
        drawn = post.predict(torch.zeros(10), seed=0)["x"]
        assert drawn.shape == (1000, 10)
        assert float(drawn.mean()) == pytest.approx(wanted, abs=0.03)
    assert torch.equal(post.predict(torch.zeros(10), seed=1)["x"], post.predict(torch.zeros(10), seed=1)["x"])


def test_a_loaded_posterior_asks_for_its_program(tmp_path):
    post = dgm.infer(coins, torch.ones(2), guide=lambda x: pyro.sample("p", dist.Beta(4.0, 1.0)), seed=0)
    post.save(tmp_path)
    again = dgm.Posterior.load(tmp_path)
    with pytest.raises(ProgramError, match=r"set posterior.program"):
        again.predict(torch.ones(2))
    again.program = post.program
    assert torch.equal(again.predict(torch.ones(2), seed=0)["x"], post.predict(torch.ones(2), seed=0)["x"])
