"""Pruning: fewer edges for little likelihood, which EM takes back."""

import itertools
import math

import networkx as nx
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError
from ppl_dgm.models.circuits.circuit import Circuit
from ppl_dgm.models.circuits.pruning import prune

D = 6
STATES = torch.tensor(list(itertools.product(range(2), repeat=D)))


def data(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(n, 1, generator=generator) < 0.4
    x = torch.where(kind, torch.tensor([1, 1, 1, 0, 0, 0]), torch.tensor([0, 1, 0, 1, 0, 1]))
    return torch.where(torch.rand(n, D, generator=generator) < 0.1, 1 - x, x)


@pytest.fixture(scope="module")
def learned() -> Circuit:
    program = Circuit(D, 2, "hclt", units=8, pseudo_count=0.05).double()
    dgm.learn(program, data(500), method=dgm.OnlineEM(epochs=8, polish=40, batch_size=128), seed=0)
    return program


def mean(program: Circuit, x: torch.Tensor) -> float:
    return float(program.log_density(x).value.detach().mean())


def test_half_of_the_edges_cost_little_and_em_takes_it_back(learned: Circuit) -> None:
    before, x = mean(learned, data(500)), data(500)
    whole, pruned = learned.distribution().properties(), prune(learned, x, 0.5)
    assert pruned.distribution().properties().edges <= whole.edges - 164  # half of the 328 edges of sums
    assert float(pruned.log_density(STATES).value.detach().exp().sum()) == pytest.approx(1, abs=1e-10)
    after = mean(pruned, x)
    assert before - 0.25 < after
    dgm.learn(pruned, x, method=dgm.EM(steps=60, tolerance=0.0), seed=0)
    assert mean(pruned, x) > max(after, before - 0.05)
    assert mean(learned, x) == before


def test_a_random_half_costs_more(learned: Circuit) -> None:
    x, graph = data(500), learned.distribution().to_graph()
    sums = [n for n, kind in graph.nodes(data="kind") if kind == "sum"]
    root = next(n for n in graph if graph.in_degree(n) == 0)
    generator = torch.Generator().manual_seed(0)
    for n in sums:
        children = list(graph[n])
        order = torch.randperm(len(children), generator=generator)[: len(children) // 2].tolist()
        graph.remove_edges_from([(n, children[i]) for i in order])
        total = sum(graph.edges[n, child]["weight"] for child in graph[n])
        for child in graph[n]:
            graph.edges[n, child]["weight"] /= total
    graph = graph.subgraph(nx.descendants(graph, root) | {root}).copy()
    assert mean(prune(learned, x, 0.5), x) > mean(Circuit.from_graph(graph, 2).double(), x) + 0.05


def test_edges_that_no_row_uses_only_gain() -> None:
    program, x = Circuit(2, 2).double(), torch.tensor([[0, 0], [1, 1]] * 20)
    program.em_start(x)
    pruned = prune(program, x, 0.4)  # 2 of 6 edges: x_1 = 1 given x_0 = 0, and the other way round
    assert mean(pruned, x) == pytest.approx(-math.log(2), abs=1e-9) and mean(pruned, x) > mean(program, x)
    assert float(pruned.log_density(torch.tensor([[0, 1]])).value.detach()) == -math.inf


def test_refusals(learned: Circuit) -> None:
    with pytest.raises(ProgramError, match=r"share is 1\.5"):
        prune(learned, data(10), 1.5)
