"""The passes of region circuits against a recursion in logarithms: values, gradients, chunks, rows that underflow."""

import itertools

import pytest
import torch
from torch import Tensor

from ppl_dgm.distributions.circuit import passes
from ppl_dgm.distributions.circuit.regions import RegionGraph, RegionPlan
from ppl_dgm.distributions.circuit.tensorised import Tensorised, root_values

# a hidden tree: two sums over single leaves, which are folded, below a root that mixes
TREE = RegionGraph(3, (0, 1, 2), (((1,),), ((2,),), ((0, 3, 4),)))
# two leaves mixed by a sum that is folded and feeds two products; products of 1, 2 and 3 factors in one region
UNEVEN = RegionGraph(3, (0, 1, 2, 0, 1, 0), (((0,), (3,)), ((6, 1), (5, 4)), ((6, 1, 2), (7, 2))))
# one product of seven factors
STAR = RegionGraph(7, tuple(range(7)), (*(((d,),) for d in range(1, 7)), ((0, *range(7, 13)),)))
GRAPHS = pytest.mark.parametrize("graph", [TREE, UNEVEN, STAR], ids=["tree", "uneven", "star"])


def circuit(graph: RegionGraph, values: int = 2, units: int = 3) -> Tensorised:
    plan = RegionPlan.build(graph)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1)

    sizes = [(len(g.regions), 1 if g.is_root else units, g.products.shape[1] * units) for g in plan.groups]
    return Tensorised(plan, drawn(len(graph.leaves), units, values), tuple(drawn(*size) for size in sizes))


def recursion(made: Tensorised, leaves: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """log value of the root from the leaves' log values [L, n, S]."""
    graph = made.plan.graph
    table = {int(i): w[f] for g, w in zip(made.plan.groups, weights, strict=True) for f, i in enumerate(g.regions)}
    value = list(leaves)
    for i, products in enumerate(graph.sums):
        below = torch.cat([sum(value[factor] for factor in product) for product in products], -1)  # [n, P S]
        value.append((below[:, None] + table[i]).logsumexp(-1))
    return value[-1][:, 0]


def looked_up(made: Tensorised, x: Tensor, tables: Tensor) -> Tensor:
    """[L, n, S]; entries of -1 are summed out."""
    variables = made.plan.graph.leaves
    seen = torch.stack([tables[i][:, x[:, v].clamp(min=0)].T for i, v in enumerate(variables)])
    return torch.where((x.T[list(variables)] >= 0)[..., None], seen, tables.logsumexp(-1)[:, None])


def rows(variables: int, values: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-1, values, (n, variables), generator=generator)


@GRAPHS
@pytest.mark.parametrize("values", [2, 40], ids=["products", "look-ups"])
@pytest.mark.parametrize("chunked", [False, True])
def test_values_and_gradients(graph: RegionGraph, values: int, chunked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunked:
        monkeypatch.setattr(passes, "_CACHED", 1)  # 64 rows at a time
    made, x = circuit(graph, values), rows(graph.variables, values, 150)
    tables = [table.clone().requires_grad_() for table in made.tables]
    share = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    found = made.with_tables(*tables).log_evidence(x.clamp(min=0), x >= 0)
    exact = recursion(made, looked_up(made, x, tables[0]), tuple(tables[1:]))
    torch.testing.assert_close(found, exact)
    for a, b in zip(*(torch.autograd.grad(v @ share, tables) for v in (found, exact)), strict=True):
        torch.testing.assert_close(a, b)


@GRAPHS
def test_leaves_of_any_kind(graph: RegionGraph) -> None:
    made = circuit(graph)
    leaves = 5 * torch.randn(len(graph.leaves), 90, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [leaves.requires_grad_(), *(weight.clone().requires_grad_() for weight in made.weights)]
    found = root_values(made.plan, inputs[0], inputs[1:])
    exact = recursion(made, inputs[0], tuple(inputs[1:]))
    torch.testing.assert_close(found, exact)
    for a, b in zip(*(torch.autograd.grad(v.square().sum(), inputs) for v in (found, exact)), strict=True):
        torch.testing.assert_close(a, b)


@GRAPHS
def test_expected_counts_are_the_gradient(graph: RegionGraph) -> None:
    made, x = circuit(graph), torch.tensor(list(itertools.product(range(2), repeat=graph.variables)))
    tables = [table.clone().requires_grad_() for table in made.tables]
    value = made.with_tables(*tables).log_evidence(x)
    found, counts = made.expected_counts(x)
    torch.testing.assert_close(found, value)
    for a, b in zip(counts, torch.autograd.grad(value.sum(), tables), strict=True):
        torch.testing.assert_close(a, b)
    assert float(counts[-1].sum()) == pytest.approx(len(x))


def test_units_that_exclude_each_other_do_not_underflow_in_float32() -> None:
    """Factor after factor each unit is nearly impossible under one of them: no product of floats holds that."""
    made = circuit(STAR)
    rare = torch.full((7, 3), -30.0, dtype=torch.float64)
    rare[torch.arange(7), torch.arange(7) % 3] = 0.0
    leaves = torch.stack([rare, torch.log1p(-rare.exp().clamp(max=0.5))], -1)  # [L, S, K]
    alone = torch.full((1, 3, 3), -200.0, dtype=torch.float64)
    alone[0].fill_diagonal_(-1e-6)
    weights = (alone.expand(6, 3, 3), made.weights[-1])
    x = torch.tensor([[0] * 7, [0, 1] * 3 + [0], [1] * 7])
    exact = made.with_tables(leaves, *weights)
    single = exact.with_tables(*(table.float() for table in exact.tables))
    reference = [table.clone().requires_grad_() for table in exact.tables]
    value = recursion(exact, looked_up(exact, x, reference[0]), tuple(reference[1:]))
    assert float(value.detach().min()) < -110  # below the smallest float32
    found, counts = single.expected_counts(x)
    torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-4)
    for a, b in zip(counts, torch.autograd.grad(value.sum(), reference), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)
    dense = root_values(single.plan, looked_up(single, x, single.leaves), single.weights)
    torch.testing.assert_close(dense, found, rtol=1e-5, atol=1e-4)
