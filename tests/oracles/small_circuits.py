"""Circuits over four ternary variables of every structure, small enough to sum over all 81 states."""

import itertools

import networkx as nx
import torch
from torch import Tensor

from ppl_dgm.distributions.circuit import CircuitDistribution
from ppl_dgm.distributions.circuit.regions import RegionGraph, RegionPlan
from ppl_dgm.distributions.circuit.tensorised import Tensorised

D, K = 4, 3
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tree(seed: int = 0, zeros: bool = False) -> CircuitDistribution:
    logits = 1.5 * random(seed, D, K, K)
    if zeros:
        logits[2, 1, 0] = logits[0, 0, 1] = -torch.inf
    return CircuitDistribution.from_tree([1, -1, 1, 2], logits)


def forest() -> CircuitDistribution:
    return CircuitDistribution.from_tree([-1, 0, -1, -1], random(3, D, K, K))


def tree_as_graph() -> CircuitDistribution:
    return CircuitDistribution.from_graph(tree().to_graph(), K, dtype=torch.float64)


def regions(graph: RegionGraph, seed: int, units: int = 2) -> CircuitDistribution:
    plan = RegionPlan.build(graph)
    leaves = random(seed, len(graph.leaves), units, K).log_softmax(-1)
    weights = []
    for i, group in enumerate(plan.groups):
        shape = (len(group.regions), 1 if group.is_root else units, group.products.shape[1] * units)
        weights.append(2 * random(seed + i + 1, *shape))
    return CircuitDistribution(Tensorised(plan, leaves, tuple(w.log_softmax(-1) for w in weights)))


def hidden_tree(seed: int = 5, units: int = 2) -> CircuitDistribution:
    """z_1 above z_0 and z_2, z_2 above z_3: the division of `tree`, but with the variables under hidden states."""
    return regions(RegionGraph(D, (0, 1, 2, 3), (((0,),), ((3,),), ((2, 5),), ((1, 4, 6),))), seed, units)


def crossing() -> CircuitDistribution:
    """(0 1)(2 3) mixed with (0 2)(1 3)."""
    graph = RegionGraph(D, (0, 1, 2, 3), (((0, 1),), ((2, 3),), ((0, 2),), ((1, 3),), ((4, 5), (6, 7))))
    return regions(graph, 7)


def independent(seed: int = 9) -> CircuitDistribution:
    return CircuitDistribution.from_tree([-1] * D, random(seed, D, K, K))


def mixture() -> CircuitDistribution:
    graph = nx.DiGraph()
    graph.add_node("root", kind="sum")
    probs = random(11, 2, D, K).softmax(-1).tolist()
    for k, weight in enumerate((0.4, 0.6)):
        graph.add_node(f"product {k}", kind="product")
        graph.add_edge("root", f"product {k}", weight=weight)
        for d in range(D):
            graph.add_node(f"{k} {d}", kind="input", variable=d, probs=probs[k][d])
            graph.add_edge(f"product {k}", f"{k} {d}")
    return CircuitDistribution.from_graph(graph, K, dtype=torch.float64)


def probs(circuit: CircuitDistribution) -> Tensor:
    return circuit.log_prob(STATES).exp()
