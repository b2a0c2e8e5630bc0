"""The two baselines: their figures on digits, and the tree against a search over all trees."""

import itertools
import math

import networkx as nx
import pytest
import torch

from ppl_dgm.data import digits
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.evaluate import ChowLiuTree, IndependentCategorical
from ppl_dgm.evaluate.baselines import maximum_spanning_tree, mutual_information, pair_counts

D, K = 4, 3


def small_data(n: int = 200) -> torch.Tensor:
    """A chain 2 - 0 - 3 - 1 with noise."""
    generator = torch.Generator().manual_seed(0)
    columns: dict[int, torch.Tensor] = {2: torch.randint(K, (n,), generator=generator)}
    for above, below in [(2, 0), (0, 3), (3, 1)]:
        noise = torch.randint(K, (n,), generator=generator)
        columns[below] = torch.where(torch.rand(n, generator=generator) < 0.6, columns[above], noise)
    return torch.stack([columns[d] for d in range(D)], -1)


def log_likelihood_of_tree(x: torch.Tensor, edges: list[tuple[int, int]]) -> float:
    """Maximum likelihood of a tree from frequencies: pairs on the edges, divided by the shared singles."""
    total = 0.0
    for row in x.tolist():
        for d in range(D):
            degree = sum(d in edge for edge in edges)
            total += (1 - degree) * math.log((x[:, d] == row[d]).double().mean())
        for i, j in edges:
            total += math.log(((x[:, i] == row[i]) & (x[:, j] == row[j])).double().mean())
    return total / len(x)


def test_the_tree_is_the_best_of_all_trees():
    x = small_data()
    fitted = ChowLiuTree.fit(x, K, pseudo_count=0.0)
    trees = [nx.from_prufer_sequence(list(code)) for code in itertools.product(range(D), repeat=D - 2)]
    assert len(trees) == 16
    best = max(log_likelihood_of_tree(x, list(tree.edges)) for tree in trees)
    assert fitted.log_prob(x).mean().item() == pytest.approx(best, abs=1e-9)
    assert {frozenset((d, p)) for d, p in enumerate(fitted.parents.tolist()) if p >= 0} == {
        frozenset(edge) for edge in [(2, 0), (0, 3), (3, 1)]
    }


@pytest.mark.parametrize("pseudo_count", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("baseline", [IndependentCategorical, ChowLiuTree])
def test_sums_to_one(baseline, pseudo_count):
    states = torch.tensor(list(itertools.product(range(K), repeat=D)))
    fitted = baseline.fit(small_data(), K, pseudo_count)
    assert fitted.log_prob(states).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_mutual_information_equals_scikit_learns():
    from sklearn.metrics import mutual_info_score

    x = small_data()
    table = mutual_information(pair_counts(x, x >= 0, K))
    for i, j in itertools.combinations(range(D), 2):
        assert table[i, j].item() == pytest.approx(mutual_info_score(x[:, i], x[:, j]), abs=1e-12)


def test_pairs_are_counted_where_both_are_observed():
    x = torch.tensor([[0, 1], [2, 1], [0, 2]])
    counts = pair_counts(x, torch.tensor([[True, True], [False, True], [True, True]]), K)
    assert counts.pairs[0, 1].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert counts.singles.tolist() == [[2, 0, 0], [0, 2, 1]]


def test_root_is_the_centre():
    weights = torch.zeros(5, 5)
    for i in range(4):
        weights[i, i + 1] = weights[i + 1, i] = 1.0
    assert maximum_spanning_tree(weights) == [1, 2, -1, 2, 3]


def test_figures_on_digits():
    """Nats per test image; the published figures of these two baselines are 106.3 and 96.6."""
    data = digits()
    independent = IndependentCategorical.fit(data.train, 17, pseudo_count=0.1)
    assert -independent.log_prob(data.test).mean().item() == pytest.approx(106.306, abs=0.002)
    chosen = IndependentCategorical.fit(data.train, 17, valid=data.valid)
    assert -chosen.log_prob(data.test).mean().item() == pytest.approx(106.3, abs=0.3)
    tree = ChowLiuTree.fit(data.train, 17, valid=data.valid)
    assert -tree.log_prob(data.test).mean().item() == pytest.approx(96.6, abs=0.3)
    assert -tree.log_prob(data.test).mean().item() <= 96.7


def test_the_validation_split_chooses():
    x = small_data(60)
    chosen = ChowLiuTree.fit(x[:30], K, valid=x[30:])
    scores = {a: ChowLiuTree.fit(x[:30], K, a).log_prob(x[30:]).mean() for a in (1.0, 3.0, 8.0, 17.0, 34.0)}
    assert chosen.log_prob(x[30:]).mean() >= max(scores.values())


@pytest.mark.parametrize("baseline", [IndependentCategorical, ChowLiuTree])
def test_bad_data_are_named(baseline):
    with pytest.raises(DataError, match=r"x\[1, 0\] is 3, .* from 0 to 2, none of them missing"):
        baseline.fit(torch.tensor([[0, 1], [3, 1]]), K)
    with pytest.raises(DataError, match=r"x\[0, 1\] is -1"):
        baseline.fit(torch.tensor([[0, -1], [2, 1]]), K)
    with pytest.raises(ProgramError, match=r"pseudo_count is -1"):
        baseline.fit(small_data(), K, pseudo_count=-1.0)
