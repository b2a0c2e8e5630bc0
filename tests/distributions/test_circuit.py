"""CircuitDistribution: every query against a sum over all states."""

import itertools
import math

import networkx as nx
import pytest
import torch
from torch import Tensor

from ppl_dgm.distributions.circuit import CircuitDistribution, check_structure, tree_graph
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable

D, K = 4, 3
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))  # [81, 4]


def tree(dtype: torch.dtype = torch.float64) -> CircuitDistribution:
    logits = 1.5 * torch.randn(D, K, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return CircuitDistribution.from_tree([1, -1, 1, 2], logits.to(dtype), validate_args=True)


def tree_as_graph(dtype: torch.dtype = torch.float64) -> CircuitDistribution:
    graph = tree_graph([1, -1, 1, 2], tree().evaluator.tables[0])
    return CircuitDistribution.from_graph(graph, K, dtype=dtype, validate_args=True)


def forest(dtype: torch.dtype = torch.float64) -> CircuitDistribution:
    logits = torch.randn(D, K, K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return CircuitDistribution.from_tree([-1, 0, -1, -1], logits.to(dtype), validate_args=True)


def mixture_graph() -> nx.DiGraph:
    """Two overlapping products over {0, 1}, a third variable shared by both, and a mixture for the fourth."""
    probs = torch.rand(8, K, generator=torch.Generator().manual_seed(2), dtype=torch.float64).clamp(min=0.05)
    probs = (probs / probs.sum(-1, keepdim=True)).tolist()
    graph = nx.DiGraph()
    for name in ("a0", "b0", "a1", "b1", "c2", "a3", "b3", "d3"):
        graph.add_node(name, kind="input", variable=int(name[1]), probs=probs[len(graph)])
    for name in ("pa", "pb", "top"):
        graph.add_node(name, kind="product")
    for name in ("s01", "s3"):
        graph.add_node(name, kind="sum")
    graph.add_edges_from([("pa", "a0"), ("pa", "a1"), ("pb", "b0"), ("pb", "b1")])
    graph.add_weighted_edges_from([("s01", "pa", 0.3), ("s01", "pb", 0.7)])
    graph.add_weighted_edges_from([("s3", "a3", 0.2), ("s3", "b3", 0.5), ("s3", "d3", 0.3)])
    graph.add_edges_from([("top", "s01"), ("top", "c2"), ("top", "s3")])
    return graph


def mixture(dtype: torch.dtype = torch.float64) -> CircuitDistribution:
    return CircuitDistribution.from_graph(mixture_graph(), dtype=dtype, validate_args=True)


CIRCUITS = pytest.mark.parametrize("make", [tree, tree_as_graph, forest, mixture], ids=lambda f: f.__name__)
DETERMINISTIC = pytest.mark.parametrize("make", [tree, tree_as_graph, forest], ids=lambda f: f.__name__)


def random_masks(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(K, (rows, D), generator=generator)
    return x, torch.rand(rows, D, generator=generator) < 0.5


def agreeing(x: Tensor, mask: Tensor) -> Tensor:
    """Which of all states agree with the observed entries of each row, [rows, states]."""
    return ((x[:, None] == STATES) | ~mask[:, None]).all(-1)


@CIRCUITS
def test_sums_to_one(make):
    assert make().log_prob(STATES).exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert make(torch.float32).log_prob(STATES).exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_hand_computed_mixture():
    graph = mixture_graph()
    p = {node: data.get("probs") for node, data in graph.nodes(data=True)}
    for x in STATES[::7].tolist():
        first = 0.3 * p["a0"][x[0]] * p["a1"][x[1]] + 0.7 * p["b0"][x[0]] * p["b1"][x[1]]
        last = 0.2 * p["a3"][x[3]] + 0.5 * p["b3"][x[3]] + 0.3 * p["d3"][x[3]]
        assert mixture().log_prob(torch.tensor(x)).item() == pytest.approx(math.log(first * p["c2"][x[2]] * last))


def test_a_hand_computed_tree():
    table = tree().evaluator.tables[0]
    for x in STATES[::7].tolist():
        terms = table[1, 0, x[1]] + table[0, x[1], x[0]] + table[2, x[1], x[2]] + table[3, x[2], x[3]]
        torch.testing.assert_close(tree().log_prob(torch.tensor(x)), terms)


@CIRCUITS
def test_marginal_queries_equal_brute_force(make):
    circuit, (x, mask) = make(), random_masks(40)
    weights = agreeing(x, mask) * circuit.log_prob(STATES).exp()
    torch.testing.assert_close(circuit.log_prob(x, mask), weights.sum(-1).log())
    torch.testing.assert_close(circuit.marginal(mask).log_prob(x), weights.sum(-1).log())


@CIRCUITS
def test_conditional_marginals_equal_brute_force(make):
    circuit, (x, mask) = make(), random_masks(40)
    weights = agreeing(x, mask) * circuit.log_prob(STATES).exp()
    exact = torch.einsum("rs,sdk->rdk", weights / weights.sum(-1, keepdim=True), one_hot(STATES))
    torch.testing.assert_close(circuit.marginals(x, mask), exact)
    with torch.inference_mode():
        torch.testing.assert_close(circuit.marginals(x, mask), exact)


@DETERMINISTIC
def test_map_equals_brute_force(make):
    circuit, (x, mask) = make(), random_masks(40)
    assert circuit.deterministic
    best = (circuit.log_prob(STATES) + agreeing(x, mask).log()).argmax(-1)
    assert torch.equal(circuit.map(x, mask), STATES[best])


def test_map_is_refused_where_the_circuit_overlaps():
    with pytest.raises(TaskUnavailable, match=r"children of sum node 's\w+' apart.*approximate_map"):
        mixture().map(*random_masks(2))


def test_max_product_is_wrong_where_the_circuit_overlaps():
    """Why `map` refuses: three agreeing but small paths outweigh the largest single one."""
    graph = nx.DiGraph()
    graph.add_node("s", kind="sum")
    for name, probs, weight in [("a", [1.0, 0.0], 0.4), ("b", [0.0, 1.0], 0.3), ("c", [0.0, 1.0], 0.3)]:
        graph.add_node(name, kind="input", variable=0, probs=probs)
        graph.add_edge("s", name, weight=weight)
    circuit = CircuitDistribution.from_graph(graph)
    x, mask = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)
    assert circuit.evaluator.maximise(x, mask).item() == 0
    assert circuit.log_prob(torch.tensor([[0], [1]])).argmax() == 1


@CIRCUITS
def test_samples_follow_the_density(make):
    torch.manual_seed(0)
    circuit, n = make(), 20_000
    index = (circuit.sample((n,)) * torch.tensor([27, 9, 3, 1])).sum(-1)
    assert within_four_errors(index, circuit.log_prob(STATES).exp(), n)


@CIRCUITS
def test_conditional_samples_follow_the_conditional(make):
    torch.manual_seed(1)
    circuit, n = make(), 20_000
    x, mask = torch.tensor([2, 0, 0, 1]), torch.tensor([True, False, False, True])
    weights = agreeing(x[None], mask[None])[0] * circuit.log_prob(STATES).exp()
    drawn = circuit.conditional_sample(x, mask, n)
    assert drawn.shape == (n, D) and (drawn[:, mask] == x[mask]).all()
    index = (drawn * torch.tensor([27, 9, 3, 1])).sum(-1)
    assert within_four_errors(index, weights / weights.sum(), n)


@CIRCUITS
def test_mean_and_variance(make):
    circuit = make()
    weights, values = circuit.log_prob(STATES).exp(), STATES.double()
    mean = weights @ values
    torch.testing.assert_close(circuit.mean, mean)
    torch.testing.assert_close(circuit.variance, weights @ (values - mean) ** 2)


@CIRCUITS
def test_gradients_are_those_of_the_density(make):
    """The expected counts of an edge, by finite differences."""
    circuit, (x, mask) = make(), random_masks(6)
    tables = tuple(table.detach().requires_grad_() for table in circuit.evaluator.tables)

    def log_likelihood(*tables: Tensor) -> Tensor:
        return circuit.evaluator.with_tables(*tables).log_evidence(x, mask).sum()

    for i, gradient in enumerate(torch.autograd.grad(log_likelihood(*tables), tables)):
        assert gradient.isfinite().all() and (gradient >= -1e-9).all()
        at = torch.unravel_index(gradient.argmax(), gradient.shape)
        shifted = []
        for step in (1e-5, -1e-5):
            moved = [table.detach().clone() for table in tables]
            moved[i][at] += step
            shifted.append(log_likelihood(*moved))
        assert ((shifted[0] - shifted[1]) / 2e-5).item() == pytest.approx(gradient[at].item(), rel=1e-5)


@CIRCUITS
def test_expand_and_shapes(make):
    circuit = make().expand((5,))
    assert circuit.batch_shape == (5,) and circuit.event_shape == (D,)
    assert circuit.sample((2,)).shape == (2, 5, D) and circuit.mean.shape == (5, D)
    x = STATES[:5]
    assert torch.equal(circuit.log_prob(x), make().log_prob(x))
    assert circuit.log_prob(x.expand(2, 5, D)).shape == (2, 5)
    assert circuit.expand((3, 5)).log_prob(x).shape == (3, 5)


@CIRCUITS
def test_many_rows_are_evaluated_in_chunks(make, monkeypatch):
    circuit, (x, mask) = make(), random_masks(50)
    whole = circuit.log_prob(x, mask), circuit.marginals(x, mask)
    monkeypatch.setattr("ppl_dgm.distributions.circuit.evaluator.LARGEST", 200)
    torch.testing.assert_close(circuit.log_prob(x, mask), whole[0])
    torch.testing.assert_close(circuit.marginals(x, mask), whole[1])


def test_tree_and_its_graph_agree():
    x, mask = random_masks(60)
    torch.testing.assert_close(tree().log_prob(x, mask), tree_as_graph().log_prob(x, mask))
    torch.testing.assert_close(tree().marginals(x, mask), tree_as_graph().marginals(x, mask))


def test_a_variable_with_many_children_does_not_underflow():
    """400 children of log p about -5: a product of probabilities would leave float32 and float64."""
    children = 400
    table = torch.tensor([[0.006, 0.994], [0.008, 0.992]]).expand(children, 2, 2)
    logits = torch.cat([torch.full((1, 2, 2), 0.5), table]).log()
    circuit = CircuitDistribution.from_tree([-1] + [0] * children, logits)
    x = torch.zeros(children + 1, dtype=torch.long)
    mask = torch.ones(children + 1, dtype=torch.bool).index_fill(0, torch.tensor(0), False)
    a, b = children * math.log(0.006), children * math.log(0.008)
    exact = b + math.log(0.5) + math.log1p(math.exp(a - b))
    assert circuit.log_prob(x, mask).item() == pytest.approx(exact, rel=1e-6)


def test_impossible_evidence():
    table = torch.tensor([[[1.0, 0.0]] * 2, [[1.0, 0.0], [0.5, 0.5]]]).log()
    for circuit in (
        CircuitDistribution(CircuitDistribution.from_tree([-1, 0], table).evaluator),
        CircuitDistribution.from_graph(tree_graph([-1, 0], table), 2),
    ):
        x, mask = torch.tensor([0, 1]), torch.tensor([False, True])
        assert circuit.log_prob(x).item() == -math.inf
        assert circuit.log_prob(x, mask).item() == -math.inf
        with pytest.raises(DataError, match="row 0 have probability zero"):
            circuit.marginals(x, mask)


def test_entries_are_checked():
    with pytest.raises(DataError, match=r"x\[1, 2\] is 3, .* from 0 to 2"):
        tree().log_prob(torch.tensor([[0, 0, 0, 0], [0, 0, 3, 0]]))
    with pytest.raises(DataError, match=r"4 variables"):
        tree().log_prob(torch.zeros(2, 5))
    with pytest.raises(ProgramError, match="bool tensor"):
        tree().marginal(torch.ones(4))


def edited(change) -> nx.DiGraph:
    graph = mixture_graph()
    change(graph)
    return graph


BROKEN = {
    "not smooth": (lambda g: g.add_edge("s3", "c2", weight=0.1), r"sum node 's3' mixes scopes \{3\} and"),
    "not decomposable": (
        lambda g: g.add_edge("top", "a0"),
        r"smooth and decomposable, but product node 'top' .* which share \{0\}",
    ),
    "a cycle": (lambda g: g.add_edge("s3", "top"), "must be acyclic"),
    "two roots": (lambda g: g.add_node("odd", kind="sum"), "one root, but the nodes 'top', 'odd'"),
    "weights": (lambda g: g.edges["s01", "pa"].update(weight=0.4), "weights of sum node 's01' sum to 1.1"),
    "negative weight": (lambda g: g.edges["s01", "pa"].update(weight=-0.4), "sum node 's01'.*positive"),
    "no children": (lambda g: g.remove_nodes_from(["a0", "a1"]),
                    "product node 'pa' has no children"),
    "kind": (lambda g: g.nodes["pa"].update(kind="max"), "node 'pa' has kind 'max'"),
    "variable": (lambda g: g.nodes["c2"].update(variable=7), "numbered from 0 without gaps"),
    "no variable": (lambda g: g.nodes["c2"].update(variable=None), "input node 'c2' has variable=None"),
    "probabilities": (lambda g: g.nodes["c2"].update(probs=[0.5, 0.2, 0.2]), "'c2' must be positive and sum"),
    "length": (lambda g: g.nodes["c2"].update(probs=[0.5, 0.5]), "input node 'c2' has 2 probabilities"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_are_refused_by_name(name):
    change, message = BROKEN[name]
    graph = edited(change)
    if name == "not smooth":
        for child, weight in zip(("a3", "b3", "d3"), (0.2, 0.5, 0.2)):
            graph.edges["s3", child]["weight"] = weight
    with pytest.raises(ProgramError, match=message):
        check_structure(graph)


def test_parents_must_form_a_tree():
    with pytest.raises(ProgramError, match="cycle"):
        CircuitDistribution.from_tree([1, 0, -1], torch.zeros(3, 2, 2))
    with pytest.raises(ProgramError, match="parent of variable 1 is 5"):
        CircuitDistribution.from_tree([-1, 5], torch.zeros(2, 2, 2))


def one_hot(x: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(x, K).double()


def within_four_errors(index: Tensor, probs: Tensor, n: int) -> bool:
    frequency = torch.bincount(index, minlength=len(probs)) / n
    error = (probs * (1 - probs) / n).sqrt()
    return bool(((frequency - probs).abs() <= 4 * error + 1e-12).all())
