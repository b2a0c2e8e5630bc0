"""Probabilities of events and information per variable against sums over all states."""

import itertools
from functools import reduce

import pytest
import torch
from torch import Tensor

from oracles.small_circuits import (
    STATES,
    D,
    K,
    crossing,
    forest,
    hidden_tree,
    mixture,
    probs,
    random,
    regions,
    tree,
    tree_as_graph,
)
from ppl_dgm.distributions.circuit import CircuitDistribution
from ppl_dgm.distributions.circuit.events import allowed_values
from ppl_dgm.distributions.circuit.information import _one_by_one
from ppl_dgm.distributions.circuit.regions import RegionGraph
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable

ALL = pytest.mark.parametrize(
    "make", [tree, forest, tree_as_graph, hidden_tree, crossing, mixture], ids=lambda f: f.__name__
)
A = {0: {1, 2}, 3: 0}
B = {1: [True, False, True]}
C = {2: torch.tensor([0, 1]), 0: range(2)}


def holds(event) -> Tensor:
    """Which of the states an event contains, [81] bool, one state at a time."""
    members = [event] if isinstance(event, dict) else event
    return torch.tensor([any(_meets(member, state) for member in members) for state in STATES.tolist()])


def _meets(member, state) -> bool:
    return all(bool(allowed_values(member, D, K)[d, state[d]]) for d in member)


@ALL
@pytest.mark.parametrize("event", [{}, A, [A, B], [A, B, C], [C, A, A, {**A, 1: 2}], [{0: 0}, {0: 1}]], ids=str)
def test_probability_of_events_is_a_sum_over_states(make, event):
    made = make()
    table = probs(made)
    assert float(made.probability(event)) == pytest.approx(float(table[holds(event)].sum()), abs=1e-12)
    for given in (B, [C, {3: 2}]):
        both, condition = holds(event) & holds(given), holds(given)
        wanted = float(table[both].sum() / table[condition].sum())
        assert float(made.probability(event, given)) == pytest.approx(wanted, abs=1e-12)


def test_sets_as_flags_and_as_values_are_the_same():
    allowed = allowed_values({1: {0, 2}, 0: 1}, 3, 3)
    assert allowed.tolist() == [[False, True, False], [True, False, True], [True, True, True]]
    assert torch.equal(allowed, allowed_values({1: [True, False, True], 0: torch.tensor(1)}, 3, 3))


@ALL
def test_impossible_events(make):
    made = make()
    assert float(made.probability({0: []})) == 0 and float(made.probability([])) == 0
    assert float(made.log_probability([{0: []}, {1: set()}])) == -torch.inf
    assert float(made.probability({0: 1}, given={0: {0, 2}})) == 0
    with pytest.raises(DataError, match="probability zero"):
        made.probability({0: 1}, given={2: []})
    with pytest.raises(DataError, match="probability zero"):
        made.conditioned({2: []})


def test_events_that_are_none_are_refused_in_words():
    made = tree()
    with pytest.raises(ProgramError, match="variable 4, but the variables are numbered from 0 to 3"):
        made.probability({4: 0})
    with pytest.raises(ProgramError, match="variable 1 the value 3"):
        made.probability({1: [0, 3]})
    with pytest.raises(ProgramError, match="one for each of 3 categories"):
        made.probability({1: [True, False]})
    with pytest.raises(ProgramError, match="contains a int"):
        made.probability([{0: 1}, 2])
    with pytest.raises(TaskUnavailable, match="union of 2 conjunctions"):
        made.conditioned([A, B])


def test_a_union_with_too_many_intersections_is_refused():
    wide = CircuitDistribution.from_tree([-1] * 14, torch.zeros(14, 2, 2))
    some = [{d: 1} for d in range(12)]
    assert float(wide.probability(some)) == pytest.approx(1 - 2.0**-12, rel=1e-12)
    with pytest.raises(TaskUnavailable, match="different intersections"):
        wide.probability([{d: 1} for d in range(14)])


def test_disjoint_events_cost_one_pass_each():
    wide = CircuitDistribution.from_tree([-1, 0, 1], random(3, 3, 20, 20))
    each = [{0: i, 2: j} for i, j in itertools.product(range(20), range(10))]
    one_by_one = sum(float(wide.probability(event)) for event in each[::50])
    assert float(wide.probability(each[::50])) == pytest.approx(one_by_one, rel=1e-12)
    assert float(wide.probability(each)) == pytest.approx(float(wide.probability({0: range(20), 2: range(10)})))


@pytest.mark.parametrize("make", [tree, hidden_tree, mixture], ids=lambda f: f.__name__)
def test_log_probability_has_the_gradient_of_the_sum_over_states(make):
    """The semantic loss."""
    made = make()
    tables = [table.clone().requires_grad_() for table in made.evaluator.tables]
    circuit = CircuitDistribution(made.evaluator.with_tables(*tables))
    # the mass of all states, too, since tables that move are not normalised
    wanted = circuit.log_prob(STATES[holds([A, B])]).logsumexp(0) - circuit.log_prob(STATES).logsumexp(0)
    found = circuit.log_probability([A, B])
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-10)
    for a, b in zip(torch.autograd.grad(found, tables), torch.autograd.grad(wanted, tables), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-8)


@ALL
def test_the_circuit_given_an_event(make):
    made = make()
    inside, table = holds(A), probs(made)
    given = made.conditioned(A)
    torch.testing.assert_close(probs(given), torch.where(inside, table / table[inside].sum(), 0.0), atol=1e-12, rtol=0)
    torch.manual_seed(0)
    draws = given.sample((2000,))
    assert bool(((draws[:, 0] > 0) & (draws[:, 3] == 0)).all())
    share = (draws[:, 1] == 1).double().mean()
    truth = float(made.probability({1: 1}, given=A))
    assert abs(float(share) - truth) < 5 * (truth * (1 - truth) / 2000) ** 0.5


# -- information ----------------------------------------------------------------------------------------


def conditional_surprise(table: Tensor, seen: Tensor) -> Tensor:
    """-log p(x_d | the other seen entries) of all states by sums over the table of p, [81, D]."""
    joint = table.reshape([K] * D)
    found = torch.zeros(len(STATES), D, dtype=table.dtype)
    for d in range(D):
        if seen[d]:
            hidden = [e for e in range(D) if not seen[e]]
            own = reduce(lambda p, e: p.sum(e, keepdim=True), hidden, joint)
            found[:, d] = (own.sum(d, keepdim=True).log() - own.log()).expand([K] * D).flatten()
    return found


@ALL
@pytest.mark.parametrize("seen", [(1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 1)])
def test_information_is_the_surprise_given_the_rest(make, seen):
    made, seen = make(), torch.tensor(seen, dtype=torch.bool)
    wanted = conditional_surprise(probs(made), seen)
    mask = None if bool(seen.all()) else seen
    torch.testing.assert_close(made.information(STATES, mask), wanted, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(made.information(STATES[5], mask), wanted[5], atol=1e-10, rtol=1e-10)


def test_information_of_impossible_entries():
    made = CircuitDistribution.from_tree(
        [-1, 0], torch.tensor([[[0.5, 0.5, 0.0]] * 3, [[1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0]]]).log()
    )
    found = made.information(torch.tensor([[0, 1], [1, 1], [2, 2], [2, 0]]))
    assert found[0].isinf().all() and float(found[1, 1]) == pytest.approx(0.6931, abs=1e-4)
    assert float(found[1, 0]) == pytest.approx(0.0, abs=1e-6)
    assert found[2].isnan().all() and float(found[3, 0]) == torch.inf and found[3, 1].isnan()


def test_information_where_the_units_of_a_leaf_are_far_apart():
    """x_0 is as good as impossible under the unit that the rest points to: its use is below the smallest number."""
    made = regions(RegionGraph(2, (0, 1), (((0, 1),),)), 3)
    # unit 0 of either leaf says 0, unit 1 says 1, and the root allows only equal units
    leaves = torch.tensor(
        [[[0.0, -800.0, -900.0], [-1200.0, 0.0, -900.0]], [[0.0, -1000.0, -950.0], [-1300.0, 0.0, -900.0]]]
    )
    made = CircuitDistribution(made.evaluator.with_tables(leaves.double(), *made.evaluator.tables[1:]))
    root = made.evaluator.tables[1].flatten()  # log weight of both units 0, of both units 1
    x = torch.tensor([[0, 1], [1, 1]])
    found = made.information(x)
    assert float(found[0, 0]) == pytest.approx(float(_surprise(root, leaves, 0, 1)), rel=1e-9)
    passes = _one_by_one(made.evaluator, x, torch.ones_like(x, dtype=torch.bool))
    torch.testing.assert_close(found, passes, rtol=1e-9, atol=1e-9)


def _surprise(root: Tensor, leaves: Tensor, a: int, b: int) -> Tensor:
    rest = root + leaves[1, :, b]
    return rest.logsumexp(0) - (rest + leaves[0, :, a]).logsumexp(0)


@ALL
def test_marginal_entropies(make):
    made = make()
    joint = probs(made).reshape([K] * D)
    wanted = []
    for d in range(D):
        p = joint.sum([e for e in range(D) if e != d])
        wanted.append(-float(torch.xlogy(p, p).sum()))
    assert made.marginal_entropies().tolist() == pytest.approx(wanted, abs=1e-10)
    torch.testing.assert_close(made.marginal_entropies(), made.mutual_information().diagonal(), atol=1e-9, rtol=0)
    mask = torch.tensor([False, True, False, False])
    given = made.marginal_entropies(STATES[40], mask)
    p = joint[:, STATES[40, 1]].sum((1, 2)) / joint[:, STATES[40, 1]].sum()
    assert float(given[0]) == pytest.approx(-float(torch.xlogy(p, p).sum()), abs=1e-10) and float(given[1]) == 0
