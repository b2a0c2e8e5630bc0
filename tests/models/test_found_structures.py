"""Graphs found in data: LearnSPN, cutset networks and forests as exact distributions, learned, saved and queried."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

import ppl_dgm as dgm
from ppl_dgm.distributions.circuit import CircuitDistribution
from ppl_dgm.errors import FileError, ProgramError, TaskUnavailable
from ppl_dgm.models.circuits.circuit import Circuit
from ppl_dgm.models.circuits.counted import CountedCircuit
from ppl_dgm.models.circuits.forest import forest_circuit
from ppl_dgm.models.circuits.learnspn import learn_spn

D, K = 5, 3
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))
EACH = pytest.mark.parametrize("name", ["learn-spn", "cutset", "forest"])


def data(n: int, seed: int = 0) -> torch.Tensor:
    """x_0 tells whether x_1 is x_2 or is drawn apart; (x_3, x_4) are a pair of their own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(K, (n, D), generator=generator)
    copy = (x[:, 0] == 0) & (torch.rand(n, generator=generator) < 0.9)
    x[:, 1] = torch.where(copy, x[:, 2], x[:, 1])
    x[:, 4] = torch.where(torch.rand(n, generator=generator) < 0.8, (x[:, 3] + 1) % K, x[:, 4])
    return x


def learned(name: str, **arguments) -> tuple[Circuit, dgm.Fit]:
    program = Circuit(D, K, name, **arguments)
    return program, dgm.learn(program, data(1500), valid=data(500, 1), seed=0)


@EACH
def test_a_distribution_better_than_independence_and_kept_by_a_file(name, tmp_path: Path):
    program, fit = learned(name)
    log_p = program.log_density(STATES).value.detach()
    assert float(log_p.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    independent = Circuit(D, K, "independent")
    dgm.learn(independent, data(1500), valid=data(500, 1))
    gain = program.log_density(data(2000, 2)).value - independent.log_density(data(2000, 2)).value
    assert float(gain.detach().mean()) > {"learn-spn": 0.35, "cutset": 0.5, "forest": 0.3}[name]
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert torch.equal(again.log_density(STATES).value, log_p)
    assert again.distribution().deterministic == program.distribution().deterministic == (name == "cutset")
    assert fit.notes["nodes"] == len(program.weights.structure.graph) and fit.stopped == "closed form"


@EACH
def test_the_weights_alone_rebuild_the_circuit_in_any_dtype(name):
    program = learned(name)[0].double()
    fresh = Circuit(D, K, name).double()
    fresh.load_state_dict(program.state_dict())
    assert torch.equal(fresh.log_density(STATES).value, program.log_density(STATES).value)
    assert fresh.em_step(data(200)) == program.em_step(data(200))


@EACH
def test_em_starts_from_the_found_graph_and_climbs(name):
    x = data(600).masked_fill(torch.rand(600, D, generator=torch.Generator().manual_seed(3)) < 0.2, -1)
    program = Circuit(D, K, name, pseudo_count=0.0).double()
    fit = dgm.learn(program, x, method=dgm.EM(steps=12, tolerance=0.0), seed=0)
    rises = -fit.history["objective"].diff().dropna()
    assert len(rises) > 5 and float(rises.min()) > -1e-9 and float(rises.sum()) > 1e-3
    assert float(program.log_density(STATES).value.detach().exp().sum()) == pytest.approx(1, abs=1e-9)


@EACH
def test_the_same_seed_finds_the_same_circuit(name):
    first, second = learned(name)[0], learned(name)[0]
    assert torch.equal(first.weights.found, second.weights.found)
    assert torch.equal(first.log_density(STATES).value, second.log_density(STATES).value)


def test_learn_spn_splits_what_is_independent():
    """The groups at the root are those of pairwise dependence: x_0 tells of a pair only, which no pairwise test sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = learn_spn(data(4000), K, significance=1e-4).graph
    root = next(node for node in graph if graph.in_degree(node) == 0)
    assert graph.nodes[root]["kind"] == "product"
    found = set()
    for child in graph[root]:
        below = {graph.nodes[n].get("variable") for n in [child, *_descendants(graph, child)]} - {None}
        found.add(frozenset(below))
    assert found == {frozenset({0}), frozenset({1, 2}), frozenset({3, 4})}


def _descendants(graph, node):
    return [n for child in graph[node] for n in [child, *_descendants(graph, child)]]


def test_cutset_asks_for_the_variable_that_tells_trees_apart():
    """Given x_0 the rest is a tree; no single tree has this law, so the network comes near the entropy."""
    program, _ = learned("cutset")
    graph = program.weights.structure.graph
    root = program.weights.structure.root
    asked = {graph.nodes[n].get("variable") for b in graph[root] for n in graph[b] if "value" in graph.nodes[n]}
    assert asked == {0}
    tree = Circuit(D, K)
    dgm.learn(tree, data(1500), valid=data(500, 1))
    held_out = data(4000, 2)
    assert float((program.log_density(held_out).value - tree.log_density(held_out).value).detach().mean()) > 0.05


def test_most_probable_completion_of_a_cutset_network_is_exact():
    program, _ = learned("cutset")
    x = data(40, 5).masked_fill(torch.rand(40, D, generator=torch.Generator().manual_seed(1)) < 0.6, -1)
    agrees = ((x[:, None] == STATES) | (x[:, None] < 0)).all(-1)
    best = torch.where(agrees, program.log_density(STATES).value, -torch.inf).amax(-1)
    torch.testing.assert_close(program.log_density(program.map(x)).value, best)
    p = program.distribution().log_prob(STATES).detach().double()
    assert float(program.distribution().entropy()) == pytest.approx(-float((p.exp() * p).sum()), abs=1e-5)


@pytest.mark.parametrize("target", [1, 4])
def test_a_forest_votes_as_scikit_learn_does(target):
    """With no pseudo-counts and all features seen, one tree's p(target | features) is the leaf's class frequency."""
    x = data(1500)
    features, label = np.delete(x.numpy(), target, 1), x[:, target].numpy()
    tree = DecisionTreeClassifier(min_samples_leaf=20, random_state=0).fit(features, label)
    made = forest_circuit(tree, x, K, target)
    graph = made.weighted(np.full((D, K), 1 / K), 0.0)
    circuit = CircuitDistribution.from_graph(graph, K, dtype=torch.float64)
    assert circuit.deterministic
    rows = x[:50]
    seen = torch.arange(D) != target
    found = circuit.marginals(rows, seen.expand(50, D))[:, target]
    np.testing.assert_allclose(found.numpy(), tree.predict_proba(features[:50]), atol=1e-9)


def test_a_forest_is_the_even_mixture_of_its_trees():
    x = data(800)
    forest = RandomForestClassifier(3, min_samples_leaf=30, random_state=1).fit(x[:, :4].numpy(), x[:, 4].numpy())
    base = np.full((D, K), 1 / K)

    def law(model) -> torch.Tensor:
        graph = forest_circuit(model, x, K, 4).weighted(base, 0.5)
        return CircuitDistribution.from_graph(graph, K, dtype=torch.float64).log_prob(STATES).exp()

    torch.testing.assert_close(law(forest), sum(law(tree) for tree in forest.estimators_) / 3)


def test_from_forest_is_a_program_that_classifies_with_missing_features():
    x = data(1500)
    forest = RandomForestClassifier(5, min_samples_leaf=20, random_state=0).fit(x[:, :4].numpy(), x[:, 4].numpy())
    program = Circuit.from_forest(forest, x, 4)
    seen = data(500, 7)
    asked = seen.clone()
    asked[:, [0, 4]] = -1  # x_4 is told by x_3 alone
    vote = program.posterior(asked)["x"].probs[:, 4].argmax(-1)
    full = torch.as_tensor(forest.predict(seen[:, :4].numpy()))
    assert float((vote == full).float().mean()) > 0.95
    with pytest.raises(ProgramError, match="3 features"):
        Circuit.from_forest(forest, x[:, :4], 3)


def test_counts_become_weights_by_hand_and_in_one_sweep():
    made = CountedCircuit(2)
    sides = [made.product([made.indicator(0, k), made.input(1, [3 - k, 2 * k])]) for k in range(2)]
    made.sum(sides, [3, 2], 0)
    base = np.array([[0.25, 0.75], [0.5, 0.5]])
    graph = made.weighted(base, 2.0)
    weights = [d["weight"] for _, _, d in graph.edges(data=True) if "weight" in d]
    assert weights == pytest.approx([3.5 / 7, 3.5 / 7])
    assert graph.nodes["x1.1"]["probs"] == pytest.approx([4 / 5, 1 / 5])
    leaves, edges = made.tables(list(made.graph), base)(2.0)
    np.testing.assert_allclose(np.exp(leaves), [[1, 0], [4 / 5, 1 / 5], [0, 1], [3 / 6, 3 / 6]])
    np.testing.assert_allclose(np.exp(edges), weights)
    bare = made.weighted(base, 0.0)
    assert [d["weight"] for _, _, d in bare.edges(data=True) if "weight" in d] == pytest.approx([0.6, 0.4])


def test_refusals():
    for name, options, words in (
        ("learn-spn", {"significance": 2.0}, "significance 2.0"),
        ("cutset", {"tried": 0}, "tried 0"),
        ("forest", {"target": 7}, "target 7"),
        ("cutset", {"trees": 3}, "does not take the options"),
    ):
        with pytest.raises(ProgramError, match=words):
            Circuit(D, K, name, options=options).em_start(data(50))
    with pytest.raises(ProgramError, match="4 features"):
        forest_circuit(DecisionTreeClassifier().fit(data(50)[:, :3], data(50)[:, 4]), data(50), K, 4)
    with pytest.raises(TaskUnavailable, match="deterministic"):
        learned("learn-spn")[0].map(torch.full((1, D), -1))
    broken = learned("cutset")[0].state_dict()
    broken["weights.found"] = broken["weights.found"][:-9]
    with pytest.raises(FileError, match="no circuit that can be read"):
        Circuit(D, K, "cutset").load_state_dict(broken)
