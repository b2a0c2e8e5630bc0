"""The four classes of query (evidence, marginal, conditional, most probable) through one interface, over three programs.

One law, a mixture of two products over three ternary variables, written as a circuit, as a mixture and as a Bayesian
network with a hidden variable; every answer against the sum over all 27 states.
"""

import itertools

import networkx as nx
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.models import BayesianNetwork, Circuit, MixtureOfCategoricals

STATES = torch.tensor(list(itertools.product(range(3), repeat=3)))
WEIGHTS = torch.tensor([0.45, 0.55], dtype=torch.float64)
THETA = torch.tensor(
    [
        [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.6, 0.3, 0.1]],
        [[0.2, 0.4, 0.4], [0.3, 0.35, 0.35], [0.1, 0.1, 0.8]],
    ],
    dtype=torch.float64,
)  # [k, d, value]
TABLE = torch.einsum("k,ka,kb,kc->abc", WEIGHTS, *THETA.unbind(1))
HOLES = torch.tensor([[-1, 2, -1], [0, -1, 1], [-1, -1, -1], [1, 1, 2]])


def circuit() -> Circuit:
    graph = nx.DiGraph()
    graph.add_node("root", kind="sum")
    for k in range(2):
        graph.add_node(f"product {k}", kind="product")
        graph.add_edge("root", f"product {k}", weight=float(WEIGHTS[k]))
        for d in range(3):
            graph.add_node(f"{k} {d}", kind="input", variable=d, probs=THETA[k, d].tolist())
            graph.add_edge(f"product {k}", f"{k} {d}")
    return Circuit.from_graph(graph, 3).double()


def mixture() -> MixtureOfCategoricals:
    program = MixtureOfCategoricals(3, 3, 2, missing=True).double()
    with torch.no_grad():
        program.weight_logits.copy_(WEIGHTS.log())
        program.logits.copy_(THETA.log())
    return program


def network() -> BayesianNetwork:
    names = [f"x{d}" for d in range(3)]
    tables = {"k": WEIGHTS, **{name: THETA[:, d] for d, name in enumerate(names)}}
    parents = {"k": [], **{name: ["k"] for name in names}}
    return BayesianNetwork(parents, {name: table.tolist() for name, table in tables.items()}, hidden=["k"]).double()


ALL = pytest.mark.parametrize("make", [circuit, mixture, network], ids=lambda f: f.__name__)


def marginal(row: torch.Tensor) -> float:
    """p of the entries of a row that are not -1."""
    inside = ((row < 0) | (row == STATES)).all(-1)
    return float(TABLE.flatten()[inside].sum())


def score(program, x: torch.Tensor) -> torch.Tensor:
    found = dgm.score(program, x)
    assert found.kind == "exact"
    return found.value.detach().exp().double()


@ALL
def test_evidence_is_the_density_of_whole_rows(make):
    torch.testing.assert_close(score(make(), STATES), TABLE.flatten(), atol=1e-6, rtol=0)


@ALL
def test_a_marginal_is_the_density_of_rows_with_holes(make):
    assert score(make(), HOLES).tolist() == pytest.approx([marginal(row) for row in HOLES], abs=1e-6)


@ALL
def test_a_conditional_is_a_ratio_of_the_two(make):
    """p(x_0, x_2 | x_1 = 2); a circuit and a network also say it in one call."""
    program, known = make(), torch.tensor([[-1, 2, -1]])
    whole = STATES[STATES[:, 1] == 2]
    wanted = TABLE[:, 2] / TABLE[:, 2].sum()
    found = score(program, whole) / score(program, known)
    torch.testing.assert_close(found.reshape(3, 3), wanted, atol=1e-6, rtol=0)
    if isinstance(program, Circuit):
        posterior = dgm.infer(program, known).exact["x"].probs[0]
        torch.testing.assert_close(posterior[[0, 2]], torch.stack([wanted.sum(1), wanted.sum(0)]), atol=1e-6, rtol=0)
    if isinstance(program, BayesianNetwork):
        exact = dgm.infer(program, x1=2).exact
        torch.testing.assert_close(exact["x0"].probs[0].double(), wanted.sum(1), atol=1e-6, rtol=0)


@ALL
def test_what_is_hidden_has_an_exact_conditional_too(make):
    """p(k | x): of the circuit the ratio of its branch to its value."""
    program, row = make(), torch.tensor([[0, 1, 2]])
    joint = WEIGHTS * THETA[:, range(3), row[0]].prod(-1)
    wanted = joint / joint.sum()
    if isinstance(program, Circuit):
        found = float(WEIGHTS[0] * THETA[0, range(3), row[0]].prod()) / float(score(program, row))
    elif isinstance(program, BayesianNetwork):
        found = float(dgm.infer(program, x0=0, x1=1, x2=2).exact["k"].probs.flatten()[0])
    else:
        found = float(dgm.infer(program, row).exact["k"].probs[0, 0])
    assert found == pytest.approx(float(wanted[0]), abs=1e-6)


def test_the_most_probable_state():
    """Of the sum over k: the network sums k out first, the circuit proves its completion by branch and bound."""
    best = STATES[TABLE.flatten().argmax()]
    found = circuit().approximate_map(torch.tensor([[-1, -1, -1]]), branches=100)
    assert torch.equal(found.value[0], best) and float(found.gap[0].detach()) == pytest.approx(0.0, abs=1e-9)
    assert float(found.log_prob[0].detach().exp()) == pytest.approx(float(TABLE.max()), abs=1e-9)
    chosen = dgm.map_configuration(network(), over=["x0", "x1", "x2"])
    assert [int(chosen.values[f"x{d}"]) for d in range(3)] == best.tolist()
    assert float(chosen.log_joint.value.exp()) == pytest.approx(float(TABLE.max()), abs=1e-6)
    # the most probable component's own mode is another state
    assert THETA[WEIGHTS.argmax()].argmax(-1).tolist() != best.tolist()
