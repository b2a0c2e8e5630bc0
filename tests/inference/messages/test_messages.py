"""Variable elimination, junction trees and belief propagation against the list of every configuration."""

import math

import networkx as nx
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.messages.cluster_tree import Cluster, ClusterTree, Passing
from ppl_dgm.inference.messages.elimination import plan_elimination
from ppl_dgm.inference.messages.loopy import LoopyPassing
from ppl_dgm.inference.messages.trees import factor_tree, junction_tree
from tests.oracles.brute_force import listed, marginal, program_of, random_network

METHODS = {
    "min-fill": dgm.VariableElimination(draws=10),
    "min-degree": dgm.VariableElimination(order="min-degree", draws=10),
    "junction": dgm.JunctionTree(draws=10),
    "junction, minimal": dgm.JunctionTree(triangulation="minimal", draws=10),
}
TREE = {**METHODS, "belief propagation": dgm.BeliefPropagation(draws=10)}
NETWORKS = [(seed, True) for seed in range(10)] + [(seed, False) for seed in range(10, 20)]


def cloudy(grass=None):
    c = pyro.sample("cloudy", dist.Bernoulli(0.5))
    s = pyro.sample("sprinkler", dist.Bernoulli(torch.where(c == 1, 0.1, 0.5)))
    r = pyro.sample("rain", dist.Bernoulli(torch.where(c == 1, 0.8, 0.2)))
    wet = torch.tensor([[0.0, 0.9], [0.9, 0.99]])[s.long(), r.long()]
    pyro.sample("grass", dist.Bernoulli(wet), obs=grass)


@pytest.mark.parametrize(("seed", "tree"), NETWORKS)
def test_random_networks_have_the_marginals_evidence_and_map_of_the_list(seed, tree):
    parents, tables = random_network(seed, tree)
    seen = {5: 1, 3: 0} if seed % 2 else {4: 1}
    story = program_of(parents, tables, seen)
    joint = listed(parents, tables, seen)
    best = max(joint.values())
    for method in (TREE if tree else METHODS).values():
        post = dgm.infer(story, seen, method=method, seed=0)
        assert post.kind == "exact"
        assert float(post.log_evidence.value) == pytest.approx(math.log(sum(joint.values())), abs=1e-12)
        for child in range(len(parents)):
            if child not in seen:
                wanted = marginal(joint, child, tables[child].shape[-1])
                assert torch.allclose(post.tables[f"z{child}"], wanted, atol=1e-12)
                assert torch.allclose(post.exact[f"z{child}"].probs, wanted, atol=1e-12)
        found = dgm.map_configuration(story, seen, method=method)
        z = tuple(seen.get(c, int(found.values.get(f"z{c}", -1))) for c in range(len(parents)))
        assert joint[z] == pytest.approx(best, rel=1e-12)
        assert float(found.log_joint.value) == pytest.approx(math.log(best), abs=1e-12)
        assert float(found.log_posterior) == pytest.approx(math.log(best / sum(joint.values())), abs=1e-12)


@pytest.mark.parametrize("seed", [1, 11, 12, 13])
def test_marginal_map_sums_before_it_maximises(seed):
    parents, tables = random_network(seed, False)
    joint = listed(parents, tables, {5: 0})
    sums = {}
    for z, p in joint.items():
        sums[z[1], z[2]] = sums.get((z[1], z[2]), 0) + p
    found = dgm.map_configuration(program_of(parents, tables, {5: 0}), {5: 0}, over=["z1", "z2"])
    assert set(found.values) == {"z1", "z2"}
    assert sums[int(found.values["z1"]), int(found.values["z2"])] == pytest.approx(max(sums.values()), rel=1e-12)
    assert float(found.log_joint.value) == pytest.approx(math.log(max(sums.values())), abs=1e-12)


def test_the_mode_of_a_mixture_is_not_the_mode_of_its_most_probable_component():
    theta = torch.tensor([[0.95, 0.95], [0.0, 0.6], [0.0, 0.7]])  # P(x_d = 1 | k)
    weights = torch.tensor([0.4, 0.3, 0.3])

    def mixture():
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x0", dist.Bernoulli(theta[k, 0]))
        pyro.sample("x1", dist.Bernoulli(theta[k, 1]))

    chance = {(a, b): sum(float(w) * float(abs(1 - a - t[0]) * abs(1 - b - t[1])) for w, t in zip(weights, theta))
              for a in (0, 1) for b in (0, 1)}  # fmt: skip
    of_x = dgm.map_configuration(mixture, over=["x0", "x1"])
    together = dgm.map_configuration(mixture)
    best = max(chance, key=chance.__getitem__)
    assert (int(of_x.values["x0"]), int(of_x.values["x1"])) == best == (0, 1)
    assert (int(together.values["x0"]), int(together.values["x1"])) == (1, 1)
    upper = sum(float(w) * float((t.maximum(1 - t)).prod()) for w, t in zip(weights, theta))
    assert math.exp(float(of_x.log_joint.value)) == pytest.approx(chance[best], rel=1e-5) and chance[best] < upper


@pytest.mark.parametrize("method", [dgm.VariableElimination(draws=40_000), dgm.JunctionTree(draws=40_000)])
def test_draws_are_joint(method):
    post = dgm.infer(cloudy, torch.tensor(1.0), method=method, seed=0)
    s, r = post.draws["sprinkler"][0], post.draws["rain"][0]
    assert s.shape == (40_000,)
    both = 0.5 * (0.5 * 0.2 + 0.1 * 0.8) * 0.99 / 0.6471
    assert float((s * r).mean()) == pytest.approx(both, abs=5 * math.sqrt(both / 40_000))
    assert float(r.mean()) == pytest.approx(0.7079, abs=5 * 0.5 / 200)
    assert torch.equal(dgm.infer(cloudy, torch.tensor(1.0), method=method, seed=0).draws["rain"][0], r)


def test_textbook_numbers_of_the_sprinkler():
    post = dgm.infer(cloudy, torch.tensor(1.0), method="variable-elimination", seed=0)
    assert float(post.exact["rain"].probs) == pytest.approx(0.7079, abs=1e-4)
    assert float(post.exact["sprinkler"].probs) == pytest.approx(0.4298, abs=1e-4)
    assert math.exp(float(post.log_evidence.value)) == pytest.approx(0.6471, abs=1e-4)


def test_plates_are_taken_apart_and_agree_with_exact():
    table = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)

    def story(x):
        top = pyro.sample("top", dist.Categorical(torch.tensor([0.4, 0.6], dtype=torch.float64)))
        with pyro.plate("groups", 3, dim=-2):
            g = pyro.sample("g", dist.Categorical(table[top]))
            with pyro.plate("rows", 2, dim=-1):
                k = pyro.sample("k", dist.Categorical(table[g]))
                pyro.sample("x", dist.Normal(k.double(), 1.0), obs=x)

    x = torch.randn(3, 2, dtype=torch.float64)
    one, other = (dgm.infer(story, x, method=method, seed=0) for method in ("exact", "junction-tree"))
    assert float(one.log_evidence.value) == pytest.approx(float(other.log_evidence.value), abs=1e-12)
    for site in ("top", "g", "k"):
        assert one.exact[site].probs.shape == other.exact[site].probs.shape
        assert torch.allclose(one.exact[site].probs, other.exact[site].probs, atol=1e-12)
        assert one.draws[site].shape == other.draws[site].shape
    assert "p(k[2,1] | g[2,0])" in str(other.graph)
    tree = dgm.infer(story, x, method="belief-propagation", seed=0)
    assert torch.allclose(tree.exact["k"].probs, one.exact["k"].probs, atol=1e-12)


def test_evidence_has_one_value_per_row_where_exact_has():
    def mixture(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=x)

    x = torch.randn(5)
    wanted = dgm.score(mixture, x, method="exact").value
    for method in TREE:
        assert torch.allclose(dgm.score(mixture, x, method=TREE[method]).value, wanted, atol=1e-6)


def test_one_hot_and_spin_sites_keep_their_own_values():
    def story():
        a = pyro.sample("a", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])))
        b = pyro.sample("b", dist.Bernoulli((a * torch.tensor([0.1, 0.5, 0.9])).sum(-1)))
        pyro.factor("push", -2.0 * b)

    one, other = (dgm.infer(story, method=method, seed=0) for method in ("exact", "variable-elimination"))
    assert other.draws["a"].shape == one.draws["a"].shape == (1, 1000, 3)
    assert torch.allclose(one.exact["a"].probs, other.exact["a"].probs, atol=1e-6)
    assert other.log_evidence.kind == "unnormalised" and "psi_push(b)" in str(other.graph)
    assert dgm.map_configuration(story).values["a"].tolist() == [1.0, 0.0, 0.0]


def test_messages_of_a_chain_are_forward_and_backward():
    initial = torch.tensor([0.6, 0.4], dtype=torch.float64)
    move = torch.tensor([[0.7, 0.3], [0.2, 0.8]], dtype=torch.float64)
    emit = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    x = torch.tensor([0, 1, 1, 0])

    def chain(x):
        z = None
        for t in range(len(x)):
            z = pyro.sample(f"z{t}", dist.Categorical(initial if z is None else move[z]))
            pyro.sample(f"x{t}", dist.Categorical(emit[z]), obs=x[t])

    post = dgm.infer(chain, x, method=dgm.VariableElimination(order=["z0", "z1", "z2", "z3"]), seed=0)
    alpha = initial * emit[:, x[0]]
    for t in range(3):
        predicted = alpha @ move  # sum over z_t of alpha_t p(z_{t+1} | z_t)
        message = post.messages[f"z{t}", f"z{t + 1}"]
        assert message.over == (f"z{t + 1}",) and torch.allclose(message.table.exp(), predicted, atol=1e-12)
        alpha = predicted * emit[:, x[t + 1]]
    assert torch.allclose(post.messages["z3", "evidence"].table.exp(), alpha.sum(), atol=1e-12)
    back = emit[:, x[2]] * (move @ emit[:, x[3]])  # on its way back a message carries its own slice's observation
    assert torch.allclose(post.messages["z2", "z1"].table.exp(), back, atol=1e-12)
    lines = post.explain().splitlines()
    assert len(lines) == 2 + len(post.messages) and "z0" in lines[2]
    with pytest.raises(ProgramError, match="no message from 'z3' to 'z0'"):
        post.messages["z3", "z0"]


def test_widths_are_told_before_anything_is_made_and_refused_in_words():
    def grid(side=5):
        z = {}
        for i in range(side):
            for j in range(side):
                bias = 0.3 + 0.2 * (z[i - 1, j] if i else 0.0) + 0.2 * (z[i, j - 1] if j else 0.0)
                z[i, j] = pyro.sample(f"z{i}{j}", dist.Bernoulli(torch.as_tensor(bias)))

    plan = dgm.VariableElimination().plan(grid)
    assert 5 <= plan.width <= 6 and plan.entries == 2 ** (plan.width + 1) and "induced width" in str(plan)
    with pytest.raises(TaskUnavailable, match=r"induced width .* more than largest=8"):
        dgm.infer(grid, method=dgm.VariableElimination(largest=8))
    with pytest.raises(TaskUnavailable, match="has a clique of"):
        dgm.infer(grid, method=dgm.JunctionTree(largest=8))
    with pytest.raises(TaskUnavailable, match="has a loop, z"):
        dgm.infer(grid, method="belief-propagation")
    with pytest.raises(TaskUnavailable, match="has loops"):
        dgm.score(grid, method=dgm.BeliefPropagation(loopy=True))


def test_min_fill_finds_no_width_above_one_on_trees_and_the_width_is_the_largest_clique():
    for seed in range(5):
        parents, tables = random_network(seed, True, size=12)
        plan = dgm.VariableElimination().plan(program_of(parents, tables))
        assert plan.width <= 1
    for seed in range(5):
        story = program_of(*random_network(seed, False, size=9))
        graph = dgm.FactorGraph.from_program(dgm.program.as_program(story))
        tree = junction_tree(graph)
        assert max(len(c.scope) for c in tree.clusters.values()) == plan_elimination(graph).width + 1
        moral = nx.Graph((a, b) for a, others in graph.neighbours().items() for b in others)
        assert all(any({a, b} <= set(c.scope) for c in tree.clusters.values()) for a, b in moral.edges)


def test_a_tree_without_the_running_intersection_is_refused():
    graph = dgm.FactorGraph.from_tables({"a": 2, "b": 2}, {("a", "b"): [[0.1, 0.2], [0.3, 0.4]]})
    clusters = [Cluster("one", ("a", "b"), tuple(graph.factors)), Cluster("two", ("a", "b"))]
    with pytest.raises(ProgramError, match="'b' do not hang together"):
        ClusterTree(graph, clusters, [("one", "two", ("a",))])


@pytest.mark.parametrize("seed", range(3))
def test_loopy_propagation_is_exact_on_trees_with_the_bethe_evidence(seed):
    parents, tables = random_network(seed, True)
    story = program_of(parents, tables, {4: 1})
    graph = dgm.FactorGraph.from_program(dgm.program.as_program(story), {4: 1})
    loopy, exact = LoopyPassing(graph, 50, 0.0, 1e-14, False), Passing(factor_tree(graph))
    for variable, wanted in exact.marginals().items():
        assert torch.allclose(loopy.marginals()[variable], wanted, atol=1e-10)
    assert float(loopy.bethe()) == pytest.approx(float(exact.log_evidence()), abs=1e-10)


def test_loopy_propagation_with_weak_ties_is_close_and_says_that_it_is_approximate():
    weak = torch.tensor([[0.55, 0.45], [0.45, 0.55]])

    def ring(x):
        z = [pyro.sample(f"z{i}", dist.Bernoulli(0.5 if i else 0.8)) for i in range(4)]
        for i in range(4):
            tie = weak[z[i].long(), z[(i + 1) % 4].long()]
            pyro.sample(f"tie{i}", dist.Bernoulli(tie), obs=x)

    x = torch.tensor(1.0)
    loopy = dgm.infer(ring, x, method=dgm.BeliefPropagation(loopy=True, damping=0.2), seed=0)
    exact = dgm.infer(ring, x, method="junction-tree", seed=0)
    assert loopy.kind == "approximate" and "converged" in loopy.how and "not converged" not in loopy.how
    assert loopy.log_evidence is None and loopy.bethe == pytest.approx(float(exact.log_evidence.value), abs=1e-3)
    assert all(torch.allclose(loopy.tables[s], exact.tables[s], atol=1e-3) for s in exact.tables)


def test_impossible_observations_have_no_posterior():
    never = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).log()

    def story(x):
        z = pyro.sample("z", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Categorical(logits=never[z]), obs=x)

    post = dgm.infer(story, torch.tensor(1), method="junction-tree")
    assert float(post.log_evidence.value) == -math.inf and not post.draws and "probability zero" in post.how
    with pytest.raises(TaskUnavailable, match="probability zero"):
        dgm.map_configuration(story, torch.tensor(1))


def test_refusals_name_what_is_wrong():
    with pytest.raises(TaskUnavailable, match=r"'z'.*continuous"):
        dgm.infer(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), method="junction-tree")
    with pytest.raises(ProgramError, match="'moon' is missing, unknown or named twice"):
        dgm.infer(cloudy, method=dgm.VariableElimination(order=["cloudy", "rain", "sprinkler", "grass", "moon"]))
    with pytest.raises(ProgramError, match="over must name latent sites"):
        dgm.map_configuration(cloudy, over=["moon"])
    with pytest.raises(ProgramError, match="which NUTS does not"):
        dgm.map_configuration(cloudy, method="nuts")
    for make in (lambda: dgm.VariableElimination(order="best"), lambda: dgm.JunctionTree(triangulation="best"),
                 lambda: dgm.BeliefPropagation(damping=1.0), lambda: dgm.JunctionTree(largest=0)):  # fmt: skip
        with pytest.raises(ProgramError, match="must be"):
            make()
    with pytest.raises(ProgramError, match=r"has shape \(3,\)"):
        dgm.FactorGraph.from_tables({"a": 2}, {("a",): [1.0, 2.0, 3.0]})


def test_a_long_chain_and_a_wide_star_are_linear():
    def chain():
        z = pyro.sample("z0", dist.Bernoulli(0.5))
        for t in pyro.markov(range(1, 200)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(0.3 + 0.4 * z))

    post = dgm.infer(chain, method=dgm.VariableElimination(draws=5), seed=0)
    assert float(post.exact["z199"].probs) == pytest.approx(0.5, abs=1e-4)
    assert float(post.log_evidence.value) == pytest.approx(0.0, abs=1e-3)

    def star(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3 + 0.4 * k))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(200)
    tree, exact = (dgm.infer(star, x, method=m, seed=0) for m in (dgm.BeliefPropagation(draws=5), "exact"))
    assert torch.allclose(tree.exact["z"].probs, exact.exact["z"].probs, atol=1e-4)


def test_on_every_device(device):
    table = torch.tensor([[0.9, 0.1], [0.3, 0.7]], device=device)

    def story(x):
        z = pyro.sample("z", dist.Categorical(table[0]))
        pyro.sample("x", dist.Categorical(table[z]), obs=x)

    for method in ("variable-elimination", "junction-tree", "belief-propagation"):
        post = dgm.infer(story, torch.tensor(1, device=device), method=method, seed=0)
        assert post.draws["z"].device.type == device.type and post.tables["z"].device.type == device.type
