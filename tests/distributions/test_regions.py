"""Region circuits against brute force: densities, marginals, draws, gradients, refusals, no underflow."""

import itertools

import pytest
import torch

from ppl_dgm.distributions.circuit import CircuitDistribution
from ppl_dgm.distributions.circuit.regions import RegionGraph, RegionPlan
from ppl_dgm.distributions.circuit.tensorised import Tensorised
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable

# variables 0, 1, 2; region 6 is over {0, 1}, region 7 over {1, 2}; the root mixes ((0, 1), 2) and (0, (1, 2))
SHARED = RegionGraph(3, (0, 1, 2, 0, 1, 2), (((0, 1),), ((4, 5),), ((6, 2), (3, 7))))
# one region in two products
REUSED = RegionGraph(3, (0, 1, 2, 1, 2), (((1, 2), (3, 4)), ((0, 5),)))


def circuit(graph: RegionGraph, units: int = 3, values: int = 2, seed: int = 0) -> Tensorised:
    plan = RegionPlan.build(graph)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        leaves = torch.randn(len(graph.leaves), units, values, dtype=torch.float64).log_softmax(-1)
        weights = tuple(
            torch.randn(
                len(group.regions),
                1 if group.is_root else units,
                group.products.shape[1] * units,
                dtype=torch.float64,
            ).log_softmax(-1)
            for group in plan.groups
        )
    return Tensorised(plan, leaves, weights)


def by_hand(circuit: Tensorised, x: torch.Tensor) -> torch.Tensor:
    """p(x) by recursion over the graph, one row at a time, in plain probabilities."""
    graph, first = circuit.plan.graph, len(circuit.plan.graph.leaves)
    weights = {}
    for group, log_weights in zip(circuit.plan.groups, circuit.weights, strict=True):
        weights |= {int(i): log_weights[f].exp() for f, i in enumerate(group.regions)}
    result = []
    for row in x.tolist():
        value = [circuit.leaves[leaf, :, row[v]].exp() for leaf, v in enumerate(graph.leaves)]
        for i, products in enumerate(graph.sums):
            parts = [torch.stack([value[factor] for factor in product]).prod(0) for product in products]
            value.append(weights[i] @ torch.cat(parts))
        assert len(value) == first + len(graph.sums)
        result.append(value[-1][0])
    return torch.stack(result)


def states(variables: int, values: int = 2) -> torch.Tensor:
    return torch.tensor(list(itertools.product(range(values), repeat=variables)))


@pytest.mark.parametrize("graph", [SHARED, REUSED], ids=["shared", "reused"])
def test_density_is_the_recursion_and_sums_to_one(graph: RegionGraph) -> None:
    made = circuit(graph, values=3)
    x = states(3, 3)
    log_p = made.log_evidence(x)
    torch.testing.assert_close(log_p.exp(), by_hand(made, x))
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("graph", [SHARED, REUSED], ids=["shared", "reused"])
def test_marginals_under_every_mask(graph: RegionGraph) -> None:
    made = circuit(graph)
    x = states(3)
    joint = by_hand(made, x)
    for mask in states(3).bool():
        same = ((x[:, None] == x) | ~mask).all(-1)  # [row, state] agree where observed
        evidence = (same * joint).sum(1)
        observed = mask.expand(8, 3)
        torch.testing.assert_close(made.log_evidence(x, observed).exp(), evidence)
        chance = torch.stack([(same * joint * (x[:, d] == k)).sum(1) for d in range(3) for k in range(2)], -1)
        torch.testing.assert_close(made.marginals(x, observed).flatten(1), chance / evidence[:, None])


@pytest.mark.parametrize("graph", [SHARED, REUSED], ids=["shared", "reused"])
def test_conditional_draws(graph: RegionGraph) -> None:
    made = circuit(graph)
    distribution = CircuitDistribution(made)
    x, mask = torch.tensor([0, 1, 0]), torch.tensor([False, True, False])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = distribution.conditional_sample(x, mask, 40_000)
    assert bool((drawn[:, 1] == 1).all())
    every = states(3)
    every = every[every[:, 1] == 1]
    exact = by_hand(made, every)
    found = torch.stack([(drawn == row).all(1).double().mean() for row in every])
    exact = exact / exact.sum()
    assert bool(((found - exact).abs() < 4.5 * (exact * (1 - exact) / 40_000).sqrt()).all())


def test_gradients() -> None:
    made, x = circuit(SHARED), states(3)
    tables = [table.clone().requires_grad_() for table in made.tables]
    for observed in (None, torch.tensor([True, False, True]).expand(8, 3)):

        def value(*tables: torch.Tensor, observed: torch.Tensor | None = observed) -> torch.Tensor:
            return made.with_tables(*tables).log_evidence(x, observed)

        assert torch.autograd.gradcheck(value, tables)


def test_expected_counts_of_each_region_sum_to_how_often_it_is_used() -> None:
    made, x = circuit(REUSED), states(3)
    tables = [table.clone().requires_grad_() for table in made.tables]
    counts = torch.autograd.grad(made.with_tables(*tables).log_evidence(x).sum(), tables)
    assert float(counts[-1].sum()) == pytest.approx(8)  # the root, once for each row
    torch.testing.assert_close(counts[0][0].sum(0), torch.tensor([4.0, 4.0], dtype=torch.float64))  # x_0, in every row


def test_a_region_with_many_factors_does_not_underflow_in_float32() -> None:
    count = 2000
    star = RegionGraph(
        count, tuple(range(count)), (*(((d,),) for d in range(1, count)), ((0, *range(count, 2 * count - 1)),))
    )
    exact = circuit(star, units=4)
    single = exact.with_tables(*(table.float() for table in exact.tables))
    x = (torch.arange(3 * count).reshape(3, count) * 7 % 5 < 2).long()
    log_p = single.log_evidence(x)
    assert bool(log_p.isfinite().all()) and float(log_p.max()) < -500
    torch.testing.assert_close(log_p.double(), exact.log_evidence(x), rtol=1e-5, atol=0)
    tables = [table.clone().requires_grad_() for table in single.tables]
    for gradient in torch.autograd.grad(single.with_tables(*tables).log_evidence(x).sum(), tables):
        assert bool(gradient.isfinite().all())


def test_impossible_rows_have_density_zero_and_finite_gradients() -> None:
    made = circuit(SHARED)
    leaves = made.leaves.clone()
    leaves[[0, 3], :, 1] = -torch.inf  # x_0 = 1 is impossible
    x = states(3)
    tables = [leaves.requires_grad_(), *(weight.clone().requires_grad_() for weight in made.weights)]
    log_p = made.with_tables(*tables).log_evidence(x)
    assert bool((log_p[4:] == -torch.inf).all()) and bool(log_p[:4].isfinite().all())
    gradients = torch.autograd.grad(log_p[:4].sum(), tables)
    assert all(bool(g.isfinite().all()) for g in gradients)
    with pytest.raises(DataError, match="probability zero"):
        CircuitDistribution(made.with_tables(*(t.detach() for t in tables))).marginals(
            x[7:], torch.tensor([[True, False, False]])
        )


def test_most_probable_completion_is_refused() -> None:
    with pytest.raises(TaskUnavailable, match="deterministic"):
        CircuitDistribution(circuit(SHARED)).map(states(3), torch.zeros(8, 3, dtype=torch.bool))


@pytest.mark.parametrize(
    "variables, leaves, sums, words",
    [
        (2, (0, 1, 0), (((0, 1), (0, 2)),), "not decomposable: variable 0"),
        (2, (0, 1), (((0,), (0, 1)),), "not smooth: variable 1"),
        (2, (0, 1), (((0, 3),), ((1, 2),)), "name earlier regions"),
        (3, (0, 1), (((0, 1),),), "does not depend on variable 2"),
        (1, (0, 1), (((0, 1),),), "leaf region is over variable 1"),
        (1, (0,), (), "at least one sum"),
    ],
)
def test_refusals(variables: int, leaves: tuple, sums: tuple, words: str) -> None:
    with pytest.raises(ProgramError, match=words):
        RegionGraph(variables, leaves, sums)
