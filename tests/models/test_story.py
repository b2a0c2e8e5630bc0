"""A circuit's latent story: enumerated it is the circuit's density, drawn from it is the circuit's law, and it is drawn."""

import itertools
import warnings

import networkx as nx
import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO

import ppl_dgm as dgm
from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.models.circuits.circuit import Circuit

D, K = 4, 3
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))


def rows(n: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(K, (n, D), generator=generator)
    x[:, 2] = torch.where(torch.rand(n, generator=generator) < 0.7, x[:, 0], x[:, 2])
    x[:, 3] = torch.where(torch.rand(n, generator=generator) < 0.7, x[:, 2], x[:, 3])
    return x


def hidden_tree() -> Circuit:
    program = Circuit(D, K, "hclt", units=2).double()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        program.em_start(rows())
    return program


def tree() -> Circuit:
    program = Circuit(D, K).double()
    program.fit_closed_form(rows())
    return program


def mixture() -> Circuit:
    graph = nx.DiGraph()
    graph.add_node("root", kind="sum")
    probs = torch.rand(2, D, K, generator=torch.Generator().manual_seed(2)) + 0.1
    probs = (probs / probs.sum(-1, keepdim=True)).tolist()
    for c, weight in enumerate((0.3, 0.7)):
        graph.add_node(f"p{c}", kind="product")
        graph.add_edge("root", f"p{c}", weight=weight)
        for d in range(D):
            graph.add_node(f"{c} {d}", kind="input", variable=d, probs=probs[c][d])
            graph.add_edge(f"p{c}", f"{c} {d}")
    return Circuit.from_graph(graph, K).double()


def cutset() -> Circuit:
    """Choices whose sites matter only after others: a decision node above trees."""
    program = Circuit(D, K, "cutset", options={"max_depth": 0}).double()
    program.em_start(rows())
    return program


EACH = pytest.mark.parametrize("make", [tree, hidden_tree, mixture, cutset], ids=lambda f: f.__name__)


def enumerated(program: Circuit, *parts: torch.Tensor) -> torch.Tensor:
    """log p of each table of rows by summing the story's hidden sites out."""
    story = program.story()
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a tree of observed entries has nothing to enumerate
        return torch.tensor([-elbo.loss(story, lambda *_: None, rows) for rows in parts], dtype=torch.float64)


@EACH
def test_enumerating_the_story_gives_the_density(make):
    program, x = make(), STATES[::9].clone()
    x[3:, 1] = -1
    exact = program.log_density(x).value.detach()
    torch.testing.assert_close(enumerated(program, *x.split(1)), exact, rtol=1e-6, atol=1e-6)
    assert float(enumerated(program, x)) == pytest.approx(float(exact.sum()), rel=1e-6)


@EACH
def test_draws_from_the_story_have_the_law(make):
    program, n = make(), 20_000
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = program.story()(n=n)
    assert drawn.shape == (n, D)
    code = (drawn * K ** torch.arange(D - 1, -1, -1)).sum(-1)
    found = torch.bincount(code, minlength=K**D) / n
    exact = program.log_density(STATES).value.detach().exp()
    assert bool(((found - exact).abs() <= 5 * (exact * (1 - exact) / n).sqrt() + 1e-9).all())


def test_the_hidden_tree_is_drawn_with_its_states_and_edges():
    program = hidden_tree()
    scene = dgm.diagram(program.story(), rows(5)).scene
    assert {f"z_{d}" for d in range(D)} | {f"x_{d}" for d in range(D)} <= set(scene.nodes)
    assert {p.name for p in scene.plates} == {"data"}
    parents = program.weights.trees[0].tolist()
    wanted = {(f"z_{d}", f"x_{d}") for d in range(D)}
    wanted |= {(f"z_{above}", f"z_{d}") for d, above in enumerate(parents) if above >= 0}
    assert {(e.source, e.target) for e in scene.edges} == wanted


def test_states_are_latent_sites_of_one_plate():
    trace = pyro.poutine.trace(hidden_tree().story()).get_trace(rows(3))
    latent = {name for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]}
    assert latent - {"data"} == {f"z_{d}" for d in range(D)}


def test_refusals():
    with pytest.raises(TaskUnavailable, match="mixes 2 hidden trees"):
        Circuit(D, K, "hclt", components=2).story()
    with pytest.raises(TaskUnavailable, match="at most 20"):
        Circuit(9, K, "linear", units=4).story()
