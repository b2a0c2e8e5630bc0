"""Structural queries of circuits against sums over all states, and their refusals by name."""

import itertools

import pytest
import torch
from torch import Tensor

from oracles.small_circuits import (
    STATES,
    D,
    K,
    crossing,
    forest,
    hidden_tree,
    independent,
    mixture,
    probs,
    random,
    tree,
    tree_as_graph,
)
from ppl_dgm.distributions.circuit import CircuitDistribution, check_structure
from ppl_dgm.errors import ProgramError, TaskUnavailable

ALL = pytest.mark.parametrize(
    "make", [tree, forest, tree_as_graph, hidden_tree, crossing, mixture], ids=lambda f: f.__name__
)


def entropy(p: Tensor) -> float:
    return -float(torch.xlogy(p, p).sum())


@ALL
def test_the_exported_graph_is_the_same_law(make):
    made = make()
    graph = made.to_graph()
    assert check_structure(graph, K).variables == D
    again = CircuitDistribution.from_graph(graph, K, dtype=torch.float64)
    torch.testing.assert_close(probs(again), probs(made), rtol=1e-9, atol=1e-12)
    assert again.deterministic == made.deterministic
    found = made.properties()
    assert found.deterministic == made.deterministic and found.structured == (make is not crossing)
    if make is not tree_as_graph:
        assert (found.nodes, found.edges) >= (len(graph), graph.number_of_edges())


def test_properties_name_what_is_missing():
    assert "region 8" in crossing().properties().crossing
    assert "smooth; decomposable; deterministic; structured decomposable" in str(tree().properties())
    assert "mixtures over the same values" in str(hidden_tree().properties())


@ALL
def test_entropy_is_exact_where_deterministic_and_bounded_elsewhere(make):
    made = make()
    truth, found = entropy(probs(made)), made.entropy_bound()
    if made.deterministic:
        assert found.exact and found.lower == pytest.approx(truth, abs=1e-12)
        assert float(made.entropy()) == pytest.approx(truth, abs=1e-12)
    else:
        assert found.lower <= truth <= found.upper and found.upper - found.lower < 0.35 * truth
        with pytest.raises(TaskUnavailable, match="entropy_bound"):
            made.entropy()


@pytest.mark.parametrize("first", [tree, hidden_tree, mixture, independent, tree_as_graph], ids=lambda f: f.__name__)
@pytest.mark.parametrize("second", [lambda: tree(4), independent], ids=["tree", "independent"])
def test_cross_entropy_and_divergence(first, second):
    p, q = first(), second()
    table = probs(p)
    truth = -float((table * q.log_prob(STATES)).sum())
    assert p.cross_entropy(q) == pytest.approx(truth, abs=1e-10)
    divergence, exact = p.kl(q), truth - entropy(table)
    if p.deterministic:
        assert divergence.exact and divergence.lower == pytest.approx(exact, abs=1e-10)
        assert float(torch.distributions.kl_divergence(p, q)) == pytest.approx(exact, abs=1e-10)
    else:
        assert divergence.lower <= exact <= divergence.upper


def test_divergence_where_supports_differ():
    narrow, wide = tree(zeros=True), tree(4)
    truth = -float((probs(narrow) * wide.log_prob(STATES)).sum())
    assert narrow.cross_entropy(wide) == pytest.approx(truth, abs=1e-10)
    assert wide.cross_entropy(narrow) == float("inf")
    assert narrow.kl(narrow).lower == pytest.approx(0.0, abs=1e-10)


PAIRS = [
    (tree, lambda: tree(4)),
    (tree, independent),
    (hidden_tree, lambda: hidden_tree(20, 3)),
    (hidden_tree, mixture),
    (lambda: tree(zeros=True), hidden_tree),
    (mixture, mixture),
    (crossing, independent),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_product_of_compatible_circuits(pair):
    p, q = (make() for make in pair)
    table = probs(p) * probs(q)
    made, log_z = p.product(q)
    assert log_z == pytest.approx(float(table.sum().log()), abs=1e-10)
    torch.testing.assert_close(probs(made), table / table.sum(), rtol=1e-9, atol=1e-12)
    assert bool((made.sample((50,)) < K).all())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("zeros", [False, True])
def test_any_power_of_a_deterministic_circuit(alpha, zeros):
    made, log_z = tree(zeros=zeros).power(alpha)
    table = probs(tree(zeros=zeros)) ** alpha
    assert log_z == pytest.approx(float(table.sum().log()), abs=1e-10)
    torch.testing.assert_close(probs(made), table / table.sum(), rtol=1e-9, atol=1e-12)
    assert made.deterministic


@pytest.mark.parametrize("make", [hidden_tree, mixture], ids=lambda f: f.__name__)
@pytest.mark.parametrize("alpha", [1, 2, 3])
def test_whole_powers_of_a_structured_circuit(make, alpha):
    made, log_z = make().power(alpha)
    table = probs(make()) ** alpha
    assert log_z == pytest.approx(float(table.sum().log()), abs=1e-10)
    torch.testing.assert_close(probs(made), table / table.sum(), rtol=1e-8, atol=1e-12)


@ALL
def test_information_between_variables_given_evidence(make):
    made, table = make(), probs(make())
    x, mask = torch.tensor([0, 2, 0, 0]), torch.tensor([False, True, False, False])
    for given in (False, True):
        weight = table * (STATES[:, 1] == 2) if given else table
        joint = (weight / weight.sum()).reshape([K] * D)
        found = made.mutual_information(x, mask) if given else made.mutual_information()
        for i, d in itertools.product(range(D), repeat=2):
            if i == d:
                truth = entropy(joint.sum([v for v in range(D) if v != i]))
            else:
                pair = joint.sum([v for v in range(D) if v not in (i, d)])
                truth = entropy(pair.sum(0)) + entropy(pair.sum(1)) - entropy(pair)
            assert float(found[i, d]) == pytest.approx(truth, abs=1e-10)
    torch.testing.assert_close(made.mutual_information(x, mask, target=3), found[3])


@ALL
def test_approximate_completion_lies_between_what_it_says(make):
    made = make()
    x = STATES[torch.arange(0, 81, 9)]
    mask = torch.rand(9, D, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[0] = False
    agrees = ((x[:, None] == STATES) | ~mask[:, None]).all(-1)
    truth = torch.where(agrees, made.log_prob(STATES), -torch.inf).amax(-1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = made.approximate_map(x, mask)
    torch.testing.assert_close(made.log_prob(found.value), found.log_prob)
    assert bool(((found.value == x) | ~mask).all())
    assert bool((found.bound >= truth - 1e-12).all())
    torch.testing.assert_close(found.log_prob, truth)  # so few states that the search finds the best
    poor = made.approximate_map(x, mask, draws=0, sweeps=0, branches=500)  # branch and bound proves the best
    torch.testing.assert_close(poor.log_prob, truth)
    torch.testing.assert_close(made.log_prob(poor.value), truth)
    torch.testing.assert_close(poor.bound, truth)
    if made.deterministic:
        assert torch.equal(found.gap, torch.zeros(9, dtype=torch.float64))
        assert torch.equal(found.value, made.map(x, mask))


def test_refusals_name_the_reason():
    with pytest.raises(TaskUnavailable, match="deterministic q, but the units of its regions"):
        tree().cross_entropy(hidden_tree())
    with pytest.raises(TaskUnavailable, match="compatible circuits, but 'region 6' x 'region 7' and"):
        crossing().product(crossing())
    with pytest.raises(TaskUnavailable, match=r"power 0\.5 needs a deterministic circuit"):
        hidden_tree().power(0.5)
    with pytest.raises(ProgramError, match="alpha is 0"):
        tree().power(0)
    with pytest.raises(ProgramError, match="4 and 2 variables"):
        tree().kl(CircuitDistribution.from_tree([-1, 0], random(0, 2, K, K)))
    with pytest.raises(ProgramError, match="target is 7"):
        tree().mutual_information(target=7)
    with pytest.raises(TaskUnavailable, match="needs a deterministic p"):
        torch.distributions.kl_divergence(hidden_tree(), tree())
    with pytest.raises(TaskUnavailable, match="marginal of some"):
        tree().marginal(torch.tensor([True, False, True, True])).entropy()
    with pytest.raises(TaskUnavailable, match="approximate_map"):
        hidden_tree().map(STATES, torch.zeros(81, D, dtype=torch.bool))


def test_a_long_chain_needs_no_deep_recursion():
    count = 600
    p, q = (CircuitDistribution.from_tree(range(-1, count - 1), random(s, count, 2, 2)) for s in (0, 1))
    a, b = (c.evaluator.tables[0].exp() for c in (p, q))
    below = torch.zeros(2, dtype=torch.float64)  # p's mean of log p / q of what hangs below, for each value above
    for d in range(count - 1, 0, -1):
        below = (a[d] * (a[d].log() - b[d].log() + below)).sum(-1)
    truth = float((a[0, 0] * (a[0, 0].log() - b[0, 0].log() + below)).sum())
    assert p.kl(q).lower == pytest.approx(truth, rel=1e-9)


def test_single_precision_tables_are_normalised_before_they_are_compared():
    """Float32 rounding in two hundred tables is not mistaken for mass outside of the support."""
    count = 200
    p, q = (CircuitDistribution.from_tree(range(-1, count - 1), 5 * random(s, count, K, K).float()) for s in (0, 1))
    assert p.cross_entropy(q) < float("inf")
    assert p.kl(p).upper == pytest.approx(0, abs=1e-9)


def test_devices(device):
    graph = hidden_tree().to_graph()
    p = CircuitDistribution.from_graph(graph, K, device=device)
    q = CircuitDistribution.from_graph(tree().to_graph(), K, device=device)
    x, mask = STATES[:5].to(device), torch.tensor([True, False, True, False], device=device).expand(5, D)
    assert p.approximate_map(x, mask, branches=50).value.device.type == device.type
    assert p.mutual_information().device.type == device.type
    made, _ = p.product(q)
    assert made.log_prob(x).device.type == device.type and q.kl(q).exact
