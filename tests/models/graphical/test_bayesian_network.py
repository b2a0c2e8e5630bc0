"""BayesianNetwork: textbook numbers, counts, EM with holes against the list of every configuration."""

import itertools
import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from tests.oracles.brute_force import listed, marginal, random_network

Network = dgm.models.BayesianNetwork


def made(seed, size=5):
    parents, tables = random_network(seed, False, size)
    named = {f"v{c}": [f"v{p}" for p in above] for c, above in enumerate(parents)}
    net = Network(named, {f"v{c}": table for c, table in tables.items()}).double()
    return (
        net,
        parents,
        {c: net.table(f"v{c}").detach() for c in tables},
    )  # the tables, rounded as the network holds them


def test_textbook_numbers():
    net = Network.sprinkler()
    post = dgm.infer(net, grass=1, seed=0)
    assert float(post.exact["rain"].probs[0, 1]) == pytest.approx(0.7079, abs=1e-4)
    assert float(post.exact["sprinkler"].probs[0, 1]) == pytest.approx(0.4298, abs=1e-4)
    # explaining away: rain makes the sprinkler less probable
    assert float(dgm.infer(net, grass=1, rain=1, seed=0).exact["sprinkler"].probs[0, 1]) == pytest.approx(
        0.1945, abs=1e-4
    )
    assert float(dgm.score(net, grass=1).value.exp()) == pytest.approx(0.6471, abs=1e-4)
    alarm = dgm.infer(Network.alarm(), john=1, mary=1, method="junction-tree", seed=0)
    assert float(alarm.tables["burglary"][0, 1]) == pytest.approx(0.2842, abs=1e-4)
    assert float(alarm.tables["earthquake"][0, 1]) == pytest.approx(0.1761, abs=1e-4)
    abc = Network.abc()
    wanted = 0.4 * (0.3 * 0.8 + 0.7 * 0.5)  # p(A = 1) sum_B p(C = 1 | 1, B) p(B)
    assert float(dgm.score(abc, A=1, C=1).value.exp()) == pytest.approx(wanted, abs=1e-6)
    assert float(dgm.score(abc, torch.tensor([[1, 1]])).value.exp()) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_every_query_is_that_of_the_list_with_holes_that_differ_from_row_to_row(seed):
    net, parents, tables = made(seed)
    x = dgm.sample(net, 12, seed=seed)["x"]
    x[torch.rand(x.shape) < 0.4] = -1
    x[0] = -1
    score = dgm.score(net, x)
    assert torch.allclose(dgm.score(net, x, method="exact").value, score.value, atol=1e-10)
    post = dgm.infer(net, x, seed=0)
    for row in range(len(x)):
        seen = {c: int(v) for c, v in enumerate(x[row]) if v >= 0}
        joint = listed(parents, tables, seen)
        assert float(score.value[row]) == pytest.approx(math.log(sum(joint.values())), abs=1e-10)
        for c in range(5):
            if f"v{c}" in post.exact:
                wanted = marginal(joint, c, tables[c].shape[-1])
                assert torch.allclose(post.exact[f"v{c}"].probs[row], wanted, atol=1e-10)


def test_expected_counts_are_sums_over_the_configurations():
    net, parents, tables = made(1)
    x = dgm.sample(net, 8, seed=0)["x"]
    x[:, 2] = -1
    x[0, 0] = x[3, 4] = -1
    _, counts = net.expected_counts(x)
    wanted = {c: torch.zeros_like(table) for c, table in tables.items()}
    for row in x.tolist():
        joint = listed(parents, tables, {c: v for c, v in enumerate(row) if v >= 0})
        total = sum(joint.values())
        for z, p in joint.items():
            for c, above in enumerate(parents):
                wanted[c][(*(z[a] for a in above), z[c])] += p / total
    for c in wanted:
        assert torch.allclose(counts[f"v{c}"], wanted[c], atol=1e-10)


def test_complete_rows_are_counted_in_one_step():
    net, parents, _ = made(2)
    x = dgm.sample(net, 300, seed=0)["x"]
    fresh = Network(
        {f"v{c}": [f"v{p}" for p in above] for c, above in enumerate(parents)}, values=net.sizes, count=0.5
    ).double()
    fit = dgm.learn(fresh, x, method="closed-form")
    for c, above in enumerate(parents):
        wanted = torch.full_like(fresh.table(f"v{c}"), 0.5)
        for row in x.tolist():
            wanted[(*(row[a] for a in above), row[c])] += 1
        assert torch.allclose(fresh.table(f"v{c}"), wanted / wanted.sum(-1, keepdim=True), atol=1e-12)
    again = Network(**fresh.config).double()
    dgm.learn(again, x, seed=0)
    assert all(torch.allclose(fresh.table(v), again.table(v), atol=1e-10) for v in fresh.variables)
    assert fit.stopped == "closed form"


@pytest.mark.parametrize("count", [0.0, 1.0])
def test_em_with_holes_never_falls_and_finds_the_tables(count):
    torch.manual_seed(0)
    truth = Network.sprinkler()
    x = dgm.sample(truth, 3000, seed=0)["x"]
    x[torch.rand(x.shape) < 0.2] = -1
    net = Network(truth.parents, values=2, count=count).double()
    values = []
    for _ in range(30):
        prior = float(net.log_prior().detach()) / len(x)
        values.append(float(net.em_step(x)) + prior)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))
    assert torch.allclose(net.table("rain"), truth.table("rain").double(), atol=0.06)
    assert values[-1] >= float(dgm.score(truth, x).mean().value) - (0.02 if count else 0)


def test_a_hidden_cause_is_learned():
    truth = Network({"a": ["h"], "b": ["h"], "c": ["h"]}, {
        "h": [0.4, 0.6], "a": [[0.9, 0.1], [0.2, 0.8]], "b": [[0.8, 0.2], [0.1, 0.9]], "c": [[0.7, 0.3], [0.1, 0.9]],
    }, hidden=["h"])  # fmt: skip
    x = dgm.sample(truth, 2000, seed=0)["x"]
    assert x.shape == (2000, 3)
    net = Network(truth.parents, values=2, hidden=["h"]).double()
    fit = dgm.learn(net, x, method=dgm.EM(restarts=2, steps=60), seed=0)
    assert -fit.history["objective"].min() >= float(dgm.score(truth, x).mean().value) - 1e-3
    assert dgm.infer(net, x[:4], seed=0).exact["h"].probs.shape == (4, 2)


def test_gradients_learn_it_too():
    truth = Network.sprinkler()
    x = dgm.sample(truth, 300, seed=0)["x"]
    net = Network(truth.parents, values=2)
    dgm.learn(net, x, method=dgm.MaximumLikelihood(epochs=80, lr=0.1, batch_size=None), seed=0)
    exact = Network(truth.parents, values=2)
    dgm.learn(exact, x, method="closed-form")
    assert float(dgm.score(net, x).mean().value) == pytest.approx(float(dgm.score(exact, x).mean().value), abs=5e-3)


def test_what_the_graph_separates_is_independent():
    net = Network.sprinkler()
    graph = dgm.structure(net, torch.zeros(2, 4, dtype=torch.long))
    assert graph.d_separated("sprinkler", "rain", given="cloudy") and not graph.d_separated(
        "sprinkler", "rain", given=["cloudy", "grass"]
    )
    apart = [dgm.infer(net, cloudy=1, rain=r, seed=0).exact["sprinkler"].probs for r in (0, 1)]
    tied = [dgm.infer(net, cloudy=1, grass=1, rain=r, seed=0).exact["sprinkler"].probs for r in (0, 1)]
    assert torch.allclose(*apart, atol=1e-6) and float((tied[0] - tied[1]).abs().max()) > 0.1


def test_refusals_name_the_variable():
    for arguments, words in (
        ({"parents": {"a": ["b"], "b": ["c"], "c": ["a"]}, "values": 2}, "cycle, "),
        (
            {"parents": {"a": ["b"]}, "tables": {"b": [0.5, 0.5], "a": [[0.5, 0.5], [0.5, 0.4]]}},
            "'a' sums to 0.9 where b=1",
        ),
        ({"parents": {"a": ["b"]}, "tables": {"b": [0.5, 0.5], "a": [0.5, 0.5]}}, r"'a' has shape \(2,\)"),
        ({"parents": {"a": ["b"]}, "values": {"a": 2}}, "parent 'b' that is no variable"),
        ({"parents": {"a": []}}, "number of values of 'a' is not known"),
        ({"parents": {"a": []}, "values": 2, "hidden": ["a"]}, "every variable is hidden"),
        ({"parents": {"x": []}, "values": 2}, "'x' cannot be given by name"),
        ({"parents": {"a": []}, "tables": {"a": [1.5, -0.5]}}, "probabilities from 0 to 1"),
    ):
        with pytest.raises(ProgramError, match=words):
            Network(**arguments)
    net = Network.sprinkler()
    with pytest.raises(DataError, match="'moon' is no variable"):
        dgm.score(net, moon=1)
    with pytest.raises(DataError, match="'rain' has values from 0 to 1"):
        dgm.score(net, rain=2)
    with pytest.raises(TaskUnavailable, match="'B' is not known in every row"):
        dgm.learn(Network.abc(), torch.zeros(3, 2, dtype=torch.long), method="closed-form")


def test_without_data_every_variable_is_drawn_as_latent():
    net = Network.sprinkler()
    free = dgm.structure(net).graph
    assert {v: free.nodes[v]["kind"] for v in net.variables} == dict.fromkeys(net.variables, "latent")
    assert "x" not in free and free.has_edge("rain", "grass") and not free.has_edge("rain", "sprinkler")
    assert "x" not in dgm.diagram(net).positions
    given = dgm.structure(net, grass=1).graph
    assert given.nodes["grass"]["kind"] == "observed" and given.nodes["rain"]["kind"] == "latent" and "x" not in given
    assert dgm.sample(net, 3, seed=0)["x"].shape == (3, 4)
