"""Exact against brute force: all joint assignments, the forward algorithm, and what cannot be summed."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable

WET = torch.tensor([[0.01, 0.9], [0.8, 0.99]], dtype=torch.float64)  # p(wet | sprinkler, rain)


def sprinkler(wet=None):
    rain = pyro.sample("rain", dist.Bernoulli(torch.tensor(0.2, dtype=torch.float64)))
    sprinkler = pyro.sample("sprinkler", dist.Bernoulli(0.4 - 0.39 * rain))
    pyro.sample("wet", dist.Bernoulli(Vindex(WET)[sprinkler.long(), rain.long()]), obs=wet)


def brute_force(model, sites, *args):
    """{assignment: log joint} over all values of the named sites."""
    table = {}
    for values in itertools.product(*sites.values()):
        given = dict(zip(sites, values))
        trace = poutine.trace(poutine.condition(model, given)).get_trace(*args)
        table[tuple(float(v) for v in values)] = float(trace.log_prob_sum())
    return table


def test_sprinkler_network_against_all_assignments():
    wet = torch.tensor(1.0, dtype=torch.float64)
    bits = [torch.tensor(v, dtype=torch.float64) for v in (0.0, 1.0)]
    table = brute_force(sprinkler, {"rain": bits, "sprinkler": bits}, wet)
    evidence = math.log(sum(map(math.exp, table.values())))
    posterior = {k: math.exp(v - evidence) for k, v in table.items()}
    post = dgm.infer(sprinkler, wet, method=dgm.Exact(draws=40_000), seed=0)
    assert post.kind == "exact" and post.log_evidence.kind == "exact" and post.log_evidence.value.shape == ()
    assert float(post.log_evidence.value) == pytest.approx(evidence, abs=1e-12)
    for place, site in enumerate(("rain", "sprinkler")):
        probability = sum(p for key, p in posterior.items() if key[place] == 1)
        assert float(post.exact[site].probs) == pytest.approx(probability, abs=1e-12)
    # The two causes explain each other away: draws from the marginals would not have these frequencies.
    drawn = torch.stack([post.draws["rain"][0], post.draws["sprinkler"][0]], -1)
    for key, probability in posterior.items():
        frequency = float((drawn == torch.tensor(key, dtype=torch.float64)).all(-1).double().mean())
        assert frequency == pytest.approx(
            probability, abs=4 * math.sqrt(probability * (1 - probability) / 40_000) + 1e-9
        )
    marginals = float(post.exact["rain"].probs * post.exact["sprinkler"].probs)
    assert abs(marginals - posterior[1.0, 1.0]) > 0.05


def mixture(x):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    means = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_mixture_function_has_evidence_and_responsibilities_per_example(rows):
    x = torch.linspace(-3, 4, rows, dtype=torch.float64)
    joint = torch.tensor([0.2, 0.5, 0.3]).double().log() + dist.Normal(
        torch.tensor([-2.0, 0.0, 3.0]).double(), 1.0
    ).log_prob(x[:, None])
    score = dgm.score(mixture, x, method="exact")
    assert score.kind == "exact" and score.value.shape == (rows,)
    assert torch.allclose(score.value, joint.logsumexp(-1), atol=1e-12)
    post = dgm.infer(mixture, x, method=dgm.Exact(draws=4000), seed=0)
    assert torch.allclose(post.exact["k"].probs, joint.softmax(-1), atol=1e-12)
    assert post.draws["k"].shape == (1, 4000, rows)
    frequency = torch.nn.functional.one_hot(post.draws["k"][0], 3).double().mean(0)
    assert (frequency - joint.softmax(-1)).abs().max() < 0.04


def test_enumeration_agrees_with_the_programs_own_closed_form():
    program = dgm.models.MixtureOfCategoricals(4, 3, 5).double()
    with torch.no_grad():
        program.weight_logits.normal_()
        program.logits.normal_()
    x = torch.randint(3, (6, 4))
    story = dgm.as_program(program.run_model)  # a plain callable: nothing is known but its sites
    plain = dgm.infer(story, x, method="exact")
    known = dgm.infer(program, x)
    assert torch.allclose(plain.log_evidence.value, known.log_evidence.value, atol=1e-12)
    assert torch.allclose(plain.exact["k"].probs, known.exact["k"].probs, atol=1e-12)
    assert known.draws["k"].shape == plain.draws["k"].shape == (1, 1000, 6)


def hmm(x, start, move, means):
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else move[z]))
        pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=x[t])


def forward_backward(x, start, move, means):
    """Evidence and smoothed marginals of the chain, by the textbook's recursions in probability space."""
    likelihood = dist.Normal(means, 1.0).log_prob(x[:, None]).exp()  # [T, K]
    alpha = [start * likelihood[0]]
    for row in likelihood[1:]:
        alpha.append((alpha[-1] @ move) * row)
    beta = [torch.ones_like(start)]
    for row in likelihood.flip(0)[:-1]:
        beta.append(move @ (row * beta[-1]))
    smoothed = torch.stack(alpha) * torch.stack(beta[::-1])
    return alpha[-1].sum().log(), smoothed / smoothed.sum(-1, keepdim=True)


@pytest.mark.parametrize("zeros", [False, True], ids=["dense", "left-to-right"])
def test_hidden_markov_chain_against_forward_backward(zeros):
    start = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    move = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], dtype=torch.float64)
    if zeros:  # forbidden moves: -inf in the factors must reach neither the gradient nor the draws
        move = move.triu() / move.triu().sum(-1, keepdim=True)
        start = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    means = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    x = torch.randn(30, dtype=torch.float64) + torch.linspace(-1, 2, 30)
    evidence, smoothed = forward_backward(x, start, move, means)
    post = dgm.infer(hmm, x, start, move, means, method=dgm.Exact(draws=3000), seed=0)
    tolerance = 1e-10 if not zeros else 1e-6  # Pyro's Categorical keeps its smallest log probability at that of eps
    assert float(post.log_evidence.value) == pytest.approx(float(evidence), abs=tolerance)
    found = torch.stack([post.exact[f"z_{t}"].probs for t in range(30)])
    assert torch.allclose(found, smoothed, atol=tolerance)
    path = torch.stack([post.draws[f"z_{t}"][0] for t in range(30)])  # [T, draws]
    assert (torch.nn.functional.one_hot(path, 3).double().mean(1) - smoothed).abs().max() < 0.05
    if zeros:
        assert bool((path.diff(dim=0) >= 0).all())  # each draw is one possible path


def regimes(x):
    """A global latent above a plate, a local one inside it, and another plate inside that."""
    regime = pyro.sample("regime", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
    rates = torch.tensor([[0.1, 0.6], [0.5, 0.9]], dtype=torch.float64)
    with pyro.plate("data", x.shape[1], dim=-1):
        on = pyro.sample("on", dist.Bernoulli(Vindex(torch.tensor([0.2, 0.8], dtype=torch.float64))[regime]))
        with pyro.plate("pixels", x.shape[0], dim=-2):
            pyro.sample("x", dist.Bernoulli(Vindex(rates)[regime, on.long()]), obs=x)


def test_a_global_latent_above_nested_plates_against_all_assignments():
    x = torch.tensor([[1.0, 0, 1], [1, 0, 0]], dtype=torch.float64)  # [pixels, data]
    corners = [torch.tensor(v, dtype=torch.float64) for v in itertools.product((0.0, 1.0), repeat=3)]
    logs = torch.stack(
        [
            poutine.trace(poutine.condition(regimes, {"regime": torch.tensor(r), "on": on})).get_trace(x).log_prob_sum()
            for r in range(2)
            for on in corners
        ]
    ).reshape(2, 8)
    joint = (logs - logs.logsumexp((0, 1))).exp()
    post = dgm.infer(regimes, x, method=dgm.Exact(draws=20_000), seed=0)
    assert post.log_evidence.value.shape == ()  # the examples share a latent: there is one evidence, of all of them
    assert float(post.log_evidence.value) == pytest.approx(float(logs.logsumexp((0, 1))), abs=1e-12)
    assert torch.allclose(post.exact["regime"].probs, joint.sum(1), atol=1e-12)
    on = (joint.sum(0)[:, None] * torch.stack(corners)).sum(0)  # [data]
    assert torch.allclose(post.exact["on"].probs, on, atol=1e-12)
    both = (post.draws["regime"][0] == 1) & (post.draws["on"][0] == torch.tensor([1.0, 0.0, 1.0])).all(-1)
    assert float(both.double().mean()) == pytest.approx(float(joint[1, 5]), abs=0.015)


def test_no_latent_sites_give_the_log_density_per_example_or_of_the_whole():
    x = torch.randn(4, 3, dtype=torch.float64)

    def rows(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3).double(), 2.0).to_event(1), obs=x)

    def whole(x):
        pyro.sample("x", dist.Normal(0.0, 2.0).expand(x.shape).to_event(2), obs=x)

    expected = dist.Normal(0.0, 2.0).log_prob(x).sum(-1)
    assert torch.allclose(dgm.score(rows, x, method="exact").value, expected, atol=1e-12)
    score = dgm.score(whole, x, method="exact")
    assert score.value.shape == () and float(score.value) == pytest.approx(float(expected.sum()), abs=1e-12)


def test_other_supports_keep_their_own_values():
    def counts(y):
        n = pyro.sample("n", dist.Binomial(4, torch.tensor(0.3, dtype=torch.float64)))
        hot = pyro.sample("hot", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)))
        pyro.sample("y", dist.Normal(n + hot @ torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), 1.0), obs=y)

    y = torch.tensor(2.5, dtype=torch.float64)
    n, h = torch.meshgrid(torch.arange(5.0), torch.arange(3.0), indexing="ij")
    log_joint = (
        dist.Binomial(4, 0.3).log_prob(n)
        + torch.tensor([0.2, 0.3, 0.5]).log()[h.long()]
        + dist.Normal(n + h, 1.0).log_prob(y)
    ).double()
    post = dgm.infer(counts, y, method="exact", seed=0)
    assert float(post.log_evidence.value) == pytest.approx(float(log_joint.logsumexp((0, 1))), abs=1e-6)
    table = log_joint.flatten().softmax(0).reshape(5, 3)
    assert torch.allclose(post.exact["n"].probs, table.sum(1), atol=1e-6)
    assert torch.allclose(post.exact["hot"].probs, table.sum(0), atol=1e-6)
    assert post.draws["hot"].shape == (1, 1000, 3) and bool((post.draws["hot"].sum(-1) == 1).all())
    assert set(post.draws["n"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_factors_make_the_evidence_unnormalised_but_the_posterior_stays_exact():
    def ising(coupling):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        pyro.factor("energy", coupling * a * b)

    post = dgm.infer(ising, torch.tensor(1.5, dtype=torch.float64), method="exact")
    total = 3 + math.exp(1.5)
    assert post.log_evidence.kind == "unnormalised"
    assert float(post.log_evidence.value) == pytest.approx(math.log(total / 4), abs=1e-12)
    assert float(post.exact["a"].probs) == pytest.approx((1 + math.exp(1.5)) / total, abs=1e-12)


def test_masked_steps_of_a_chain_count_nothing():
    start = torch.tensor([0.6, 0.4], dtype=torch.float64)
    move = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    x = torch.randn(4, dtype=torch.float64)

    def padded(x, length):
        z = None
        for t in pyro.markov(range(len(x))):
            with poutine.mask(mask=torch.tensor(t < length)):
                z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else move[z]))
                pyro.sample(f"x_{t}", dist.Normal(means[z], 1.0), obs=x[t])

    short = dgm.score(hmm, x[:2], start, move, means, method="exact").value
    assert float(dgm.score(padded, x, 2, method="exact").value) == pytest.approx(float(short), abs=1e-12)


def test_impossible_observations_have_an_evidence_and_no_posterior():
    def story(x):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Uniform(z, z + 1), obs=x)

    with pyro.validation_enabled(False):
        post = dgm.infer(story, torch.tensor(3.0), method="exact")
    assert float(post.log_evidence.value) == -math.inf
    assert post.draws == {} and post.exact is None and "probability zero" in post.how


def continuous(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.exp(), 1.0), obs=x[0])


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x[rows])


def branching(x):
    k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
    pyro.sample("x", dist.Normal(1.0 if k else 0.0, 1.0), obs=x[0])


def crossing(x):
    rows, columns = pyro.plate("rows", 2, dim=-1), pyro.plate("columns", 3, dim=-2)
    with rows:
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)))
    with rows, columns:
        pyro.sample("x", dist.Normal(a * b, 1.0), obs=torch.zeros(3, 2))


def joined(x):
    """Two plates of one size: the values of one meet the observations of the other, which is no product over either."""
    with pyro.plate("first", 4):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("second", 4):
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def unbounded(x):
    for t in range(70):
        pyro.sample(f"k_{t}", dist.Bernoulli(torch.tensor(0.5)))


@pytest.mark.parametrize(
    "story, words",
    [
        (unbounded, "pyro.markov"),
        (continuous, "'z'.*continuous.*'nuts'"),
        (subsampled, "subsampled"),
        (joined, "'x' joins the elements of site 'k'.*gibbs"),
        (branching, "torch.where"),
        (crossing, "plates"),
    ],
)
def test_what_cannot_be_summed_says_why_and_what_works(story, words):
    with pytest.raises(TaskUnavailable, match=words):
        dgm.infer(story, torch.zeros(4), method="exact")


def test_an_undeclared_batch_dimension_is_named():
    def story(x):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("x", dist.Normal(k, 1.0).expand([4]), obs=x)

    with pytest.raises(ProgramError, match=r"'x'.*plate"):
        dgm.infer(story, torch.zeros(4), method="exact")


def test_draws_repeat_with_the_seed_and_must_be_positive():
    x = torch.zeros(3, dtype=torch.float64)
    first, second = (dgm.infer(mixture, x, method=dgm.Exact(draws=50), seed=7).draws["k"] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ProgramError, match="draws"):
        dgm.Exact(draws=0)
