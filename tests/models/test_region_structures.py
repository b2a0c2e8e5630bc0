"""Region graphs by rule: their shapes, that their circuits are distributions, learning, files, refusals."""

import itertools
from pathlib import Path

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.distributions.circuit import CircuitDistribution, check_structure
from ppl_dgm.distributions.circuit.regions import RegionGraph
from ppl_dgm.errors import ProgramError
from ppl_dgm.models.circuits.circuit import Circuit
from ppl_dgm.models.circuits.region_structures import (
    binary_tree_regions,
    linear_regions,
    poon_domingos_regions,
    quad_tree_regions,
    random_regions,
)

D, K = 6, 2
STATES = torch.tensor(list(itertools.product(range(K), repeat=D)))
NAMES = {
    "random": {"options": {"replicas": 3, "depth": 2, "seed": 4}},
    "binary-tree": {},
    "linear": {},
    "poon-domingos": {"shape": (2, 3)},
    "quad-tree": {"shape": (3, 2)},
}
EACH = pytest.mark.parametrize("name", NAMES)


def data(n: int, seed: int = 0) -> torch.Tensor:
    """Two prototypes with a tenth of the entries flipped."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.rand(n, 1, generator=generator) < 0.4
    x = torch.where(kind, torch.tensor([1, 1, 1, 0, 0, 0]), torch.tensor([0, 1, 0, 1, 0, 1]))
    return torch.where(torch.rand(n, D, generator=generator) < 0.1, 1 - x, x)


def scattered(name: str) -> Circuit:
    program = Circuit(D, K, name, units=3, **NAMES[name]).double()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for logits in program.weights.parameters():
            logits.normal_()
    return program


@EACH
def test_sums_to_one_and_agrees_with_its_graph(name):
    program = scattered(name)
    log_p = program.log_density(STATES).value.detach()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-10)
    graph = program.distribution().to_graph()
    assert check_structure(graph, K).variables == D
    again = CircuitDistribution.from_graph(graph, K, dtype=torch.float64)
    torch.testing.assert_close(again.log_prob(STATES), log_p)


@EACH
def test_structured_decomposability_is_seen(name):
    found = scattered(name).distribution().properties()
    assert found.structured == (name in ("binary-tree", "linear"))  # the others mix several divisions


@EACH
def test_learned_by_online_em_saved_and_loaded(name, tmp_path: Path):
    program = Circuit(D, K, name, units=8, **NAMES[name])
    method = dgm.OnlineEM(epochs=5, polish=15, batch_size=128)
    fit = dgm.learn(program, data(500), valid=data(200, 1), method=method, seed=0)
    held_out, flips = data(2000, 2), torch.tensor([0.1, 0.9])
    truth = 6 * float((flips * flips.log()).sum())  # and log 0.4, 0.6 at most
    assert float(program.log_density(held_out).value.detach().mean()) > truth - 0.68 - 0.15
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert torch.equal(again.log_density(STATES).value, program.log_density(STATES).value)


@EACH
def test_completions_are_found_and_proved(name):
    program = scattered(name)
    x = data(20, 5).masked_fill(torch.rand(20, D, generator=torch.Generator().manual_seed(1)) < 0.5, -1)
    agrees = ((x[:, None] == STATES) | (x[:, None] < 0)).all(-1)
    truth = torch.where(agrees, program.log_density(STATES).value.detach(), -torch.inf).amax(-1)
    found = program.approximate_map(x, draws=4, branches=200)
    torch.testing.assert_close(found.log_prob, truth)
    torch.testing.assert_close(found.bound, truth)
    assert float(found.gap.max()) < 1e-9 and bool(((found.value == x) | (x < 0)).all())


def scopes(graph: RegionGraph) -> set[tuple[int, ...]]:
    return {tuple(sorted(graph.scope(len(graph.leaves) + i))) for i in range(len(graph.sums))}


def test_random_halves_are_balanced_and_repeat_with_the_seed():
    graph = random_regions(11, replicas=5, depth=2, seed=3)
    assert graph == random_regions(11, replicas=5, depth=2, seed=3) != random_regions(11, replicas=5, depth=2, seed=4)
    assert len(graph.sums[-1]) == 5 and len(graph.leaves) == 55
    assert {len(s) for s in scopes(graph)} == {11, 6, 5, 3, 2}
    state = torch.random.get_rng_state()
    random_regions(5)
    assert torch.equal(state, torch.random.get_rng_state())


def test_poon_domingos_has_every_rectangle_with_every_cut():
    graph = poon_domingos_regions(3, 2)
    boxes = [
        (i, k, j, m) for i, k in itertools.combinations(range(4), 2) for j, m in itertools.combinations(range(3), 2)
    ]
    areas = {tuple(r * 2 + c for r in range(i, k) for c in range(j, m)) for i, k, j, m in boxes}
    assert scopes(graph) == {area for area in areas if len(area) > 1}
    for i, products in enumerate(graph.sums):
        area = sorted(graph.scope(len(graph.leaves) + i))
        height, width = len({v // 2 for v in area}), len({v % 2 for v in area})
        assert len(products) == height + width - 2
    coarse = poon_domingos_regions(5, 4, step=2)  # 3 x 2 cells
    assert len(coarse.sums) == 6 * 3 and len(coarse.sums[-1]) == 3


def test_quad_tree_cuts():
    four, binary, both = (quad_tree_regions(4, 4, cuts) for cuts in ("four", "binary", "both"))
    assert [len(p) for p in four.sums[-1]] == [4]
    assert [len(p) for p in binary.sums[-1]] == [2]
    assert scopes(both) - scopes(binary) == {
        tuple(r * 4 + c for r in range(i, i + h) for c in cols)
        for i, h, widths in (
            (0, 4, ((0, 1), (2, 3))),
            (0, 2, ((0,), (1,), (2,), (3,))),
            (2, 2, ((0,), (1,), (2,), (3,))),
        )
        for cols in widths
    }
    assert len(both.sums[-1]) == 2
    assert quad_tree_regions(1, 5).scope(quad_tree_regions(1, 5).root) == frozenset(range(5))


def test_linear_and_binary_tree_heights():
    assert [len(s) for s in sorted(scopes(linear_regions(5)), key=len)] == [2, 3, 4, 5]
    assert [len(s) for s in sorted(scopes(binary_tree_regions(5)), key=len)] == [2, 2, 3, 5]


@pytest.mark.parametrize("make", [linear_regions, binary_tree_regions, random_regions])
def test_one_variable(make):
    assert make(1).scope(make(1).root) == {0}


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"structure": "quad-tree"}, "pass shape"),
        ({"structure": "quad-tree", "shape": (2, 2)}, "height x width = 6"),
        ({"structure": "random", "shape": (2, 3)}, "takes no shape"),
        ({"structure": "hclt", "shape": (2, 3)}, "cuts no images"),
        ({"structure": "hclt", "options": {"step": 2}}, "takes none"),
        ({"structure": "random", "options": {"step": 2}}, "does not take the options"),
        ({"structure": "random", "options": {"replicas": 0}}, "replicas is 0"),
        ({"structure": "random", "components": 2}, "components is 2"),
        ({"structure": "quad-tree", "shape": (2, 3), "options": {"cuts": "three"}}, "cuts is 'three'"),
        ({"structure": "poon-domingos", "shape": (2, 3), "options": {"step": 0}}, "step is 0"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ProgramError, match=words):
        Circuit(D, K, **arguments)


def test_too_many_rectangles_are_refused_before_they_are_made():
    with pytest.raises(ProgramError, match="step is 1"):
        poon_domingos_regions(64, 64)
