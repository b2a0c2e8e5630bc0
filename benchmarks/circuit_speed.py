"""How fast circuits are evaluated and learned: against the bare matrix products, SPFlow and a loop over nodes.

    PPL_DGM_DATA=folder python benchmarks/circuits.py speed

needs the sets nltcs and accidents; SPFlow 1.1 is measured where it is installed. One CPU thread. What is compared is
measured in turns, and the least of several repetitions counts: seconds of the processor's time, which other programs
disturb least, and seconds that passed.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.text import table

__all__ = ["speed"]

UNITS = 32
EDGES = 1_000_000
ROWS = 1_000

Seconds = tuple[float, float]


def least(repetitions: int, *functions: Callable[[], Any]) -> list[Seconds]:
    """Processor and wall seconds of each function, called in turns after one call that is not counted."""
    found = [(float("inf"), float("inf"))] * len(functions)
    for repetition in range(repetitions + 1):
        for i, function in enumerate(functions):
            wall, processor = time.perf_counter(), time.process_time()
            function()
            new = (time.process_time() - processor, time.perf_counter() - wall)
            if repetition:
                found[i] = (min(found[i][0], new[0]), min(found[i][1], new[1]))
    return found


def hidden_tree(x: Tensor) -> Any:
    """A hidden Chow-Liu tree of binary data with its tree found and all its states, as learning begins."""
    program = dgm.models.Circuit(x.shape[1], 2, "hclt", pseudo_count=0.2, units=UNITS)
    torch.manual_seed(0)
    program.em_start(x)
    while program.grow(1.0):
        pass
    return program


def random_circuit(units: int) -> Any:
    """A binary tree of regions with about a million edges between units."""
    program = dgm.models.Circuit(EDGES // units**2 + 2, 2, "binary-tree", units=units)
    torch.manual_seed(0)
    while program.grow(1.0):
        pass
    return program


def million(units: int, repetitions: int) -> list[list[str]]:
    """A circuit of a million edges on a thousand rows, and its edges' sums alone."""
    program = random_circuit(units)
    edges = sum(weight.numel() for weight in program.weights.sum_logits)
    x = torch.randint(0, 2, (ROWS, program.observed))
    weight, value = torch.rand(edges // units**2, units, units), torch.rand(edges // units**2, units, ROWS)
    result = torch.empty_like(value)
    bare, einsum, ours = least(
        repetitions,
        lambda: torch.bmm(weight, value, out=result),
        lambda: torch.einsum("fij,fjn->fin", weight, value),
        lambda: program.log_density(x),
    )
    name = f"{edges:,} edges, {units} units"
    return [
        _row(f"{name}: matrix product into memory at hand", bare, ours),
        _row(f"{name}: einsum", einsum, ours),
        _row(f"{name}: log density", ours, None),
    ]


def _row(name: str, seconds: Seconds, ours: Seconds | None) -> list[str]:
    ratio = "" if ours is None else f"{ours[0] / seconds[0]:.2f}"
    return [name, f"{seconds[0]:.3f}", f"{seconds[1]:.3f}", ratio]


def node_by_node(program: Any, x: Tensor) -> float:
    """One E-step that visits each node of a circuit in Python, all rows of a node at once; mean log likelihood."""
    circuit = program.weights.evaluator()
    graph, units, codes = circuit.plan.graph, circuit.units, x.numpy()
    leaves = circuit.leaves.detach().numpy()
    log_weight: dict[int, np.ndarray] = {}
    for group, logits in zip(circuit.plan.groups, circuit.weights, strict=True):
        log_weight |= {int(i): logits[f].detach().numpy() for f, i in enumerate(group.regions)}
    value = {(i, k): leaves[i, k, codes[:, v]] for i, v in enumerate(graph.leaves) for k in range(units)}
    product: dict[tuple[int, int, int], np.ndarray] = {}
    for i, products in enumerate(graph.sums):
        name = len(graph.leaves) + i
        for p, factors in enumerate(products):
            for k in range(units):
                product[i, p, k] = sum(value[factor, k] for factor in factors)  # type: ignore[assignment]
        for j, weights in enumerate(log_weight[i]):
            children = [product[i, p, k] for p in range(len(products)) for k in range(units)]
            value[name, j] = np.logaddexp.reduce([w + c for w, c in zip(weights, children, strict=True)])
    flow: dict[tuple[int, int], np.ndarray | float] = {(graph.root, 0): np.ones(len(x), leaves.dtype)}
    counts: dict[tuple[int, int, int], float] = {}
    for i in range(len(graph.sums) - 1, -1, -1):
        name = len(graph.leaves) + i
        for j, weights in enumerate(log_weight[i]):
            for c, weight in enumerate(weights):
                p, k = divmod(c, units)
                used = flow[name, j] * np.exp(weight + product[i, p, k] - value[name, j])
                counts[i, j, c] = used.sum()
                for factor in graph.sums[i][p]:
                    flow[factor, k] = flow.get((factor, k), 0.0) + used
    for i, v in enumerate(graph.leaves):
        for k in range(units):
            np.bincount(codes[:, v], weights=flow[i, k], minlength=2)
    return float(value[graph.root, 0].mean())


def peer_epoch(x: Tensor) -> Callable[[], Any] | None:
    """An EM step of SPFlow's hidden Chow-Liu tree; None where it is not installed."""
    try:
        from spflow.learn.expectation_maximization import expectation_maximization
        from spflow.zoo.hclt.learn import learn_hclt_categorical
    except ImportError:
        return None
    torch.manual_seed(0)
    circuit = learn_hclt_categorical(x.float(), num_hidden_cats=UNITS, num_cats=2, init="random")
    return lambda: expectation_maximization(circuit, x.float(), max_steps=1)


def speed(repetitions: int = 5) -> None:
    """Prints all figures."""
    header = ["what", "CPU s", "wall s", "ours / this, CPU"]
    rows = million(32, repetitions) + million(64, repetitions)
    print(table(header, rows), flush=True)
    accidents = dgm.data.load("accidents").train
    program = hidden_tree(accidents)
    regions = accidents.shape[1]
    weight, value = torch.rand(regions, UNITS, UNITS), torch.rand(regions, UNITS, 512)
    result = torch.empty_like(value)
    products = 3 * len(accidents) // 512  # up, down and counts
    step, bare = least(
        repetitions,
        lambda: program.em_step(accidents),
        lambda: [torch.bmm(weight, value, out=result) for _ in range(products)],
    )
    rows.append(_row(f"EM epoch on accidents, {UNITS} states", step, None))
    rows.append(_row("the three matrix products of each of its 111 regions", bare, step))
    nltcs = dgm.data.load("nltcs").train
    program = hidden_tree(nltcs)
    peer = peer_epoch(nltcs)
    ours, *others = least(repetitions, lambda: program.em_step(nltcs), *([peer] if peer else []))
    rows.append(_row(f"EM epoch on nltcs, {UNITS} states", ours, None))
    rows += [_row("the same in SPFlow", other, ours) for other in others]
    part = nltcs[: len(nltcs) // 8]
    (loop,) = least(1, lambda: node_by_node(program, part))
    loop = (8 * loop[0], 8 * loop[1])
    rows.append(_row("the same node by node (8 times an eighth of the rows)", loop, ours))
    print(table(header, rows), flush=True)
