"""LearnSPN: a sum-product network found by turns of splitting variables that are independent and clustering rows."""

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components
from scipy.stats import chi2
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.evaluate.baselines import mutual_information, pair_counts

from .counted import CountedCircuit

__all__ = ["learn_spn"]

_DEEPEST = 200  # splits above a leaf; clusters of single rows would go on for as many rows as there are


def learn_spn(
    x: Tensor, values: int, significance: float = 1e-3, min_rows: int = 50, clusters: int = 2, steps: int = 25
) -> CountedCircuit:
    """Learn the structure and the counts of a sum-product network.

    Variables that fall apart into groups, when pairs whose G statistic is not significant are cut, become a product;
    otherwise the rows are clustered by EM for a mixture of independent variables, and become a sum. Few rows, or rows
    that make one cluster, become a product of single variables.

    Arguments:
        x: [n, D] categories 0 to K - 1.
        values: K.
        significance: two variables are dependent where the G test of independence gives less.
        min_rows: fewer rows are not split.
        clusters: at most so many for each sum.
        steps: of EM for each clustering.

    Raises:
        ProgramError: an option is out of range.

    Source: R. Gens and P. Domingos (2013), Learning the structure of sum-product networks.
    """
    if not 0 < significance < 1 or min_rows < 2 or clusters < 2 or steps < 1:
        raise ProgramError(
            f"learn-spn: significance {significance} must lie between 0 and 1, min_rows {min_rows} and clusters "
            f"{clusters} be at least 2, and steps {steps} at least 1."
        )
    made = CountedCircuit(values)

    def factorised(rows: Tensor, scope: list[int]) -> str:
        counts = [torch.bincount(rows[:, v], minlength=values).tolist() for v in scope]
        return made.product([made.input(v, c) for v, c in zip(scope, counts, strict=True)])

    def grow(rows: Tensor, scope: list[int], try_split: bool, depth: int = 0) -> str:
        if len(scope) == 1 or len(rows) < min_rows or depth == _DEEPEST:
            return factorised(rows, scope)
        if try_split and len(parts := _independent(rows[:, scope], values, significance)) > 1:
            return made.product([grow(rows, [scope[i] for i in part], False, depth + 1) for part in parts])
        label = _cluster(rows[:, scope], values, clusters, steps)
        found = [rows[label == c] for c in range(clusters) if bool((label == c).any())]
        if len(found) < 2:
            return factorised(rows, scope)
        return made.sum([grow(part, scope, True, depth + 1) for part in found], [len(part) for part in found])

    grow(x, list(range(x.shape[1])), True)
    return made


def _independent(x: Tensor, values: int, significance: float) -> list[list[int]]:
    """Groups of columns such that none of one depends on one of another."""
    counts = pair_counts(x, torch.ones_like(x, dtype=torch.bool), values)
    statistic = 2 * len(x) * mutual_information(counts).cpu().numpy()
    seen = (counts.singles > 0).sum(-1).cpu().numpy() - 1
    dependent = chi2.sf(statistic, np.maximum(seen[:, None] * seen, 1)) < significance
    dependent &= (seen[:, None] > 0) & (seen > 0)
    count, label = connected_components(dependent, directed=False)
    return [np.flatnonzero(label == c).tolist() for c in range(count)]


def _cluster(x: Tensor, values: int, clusters: int, steps: int) -> Tensor:
    """The most probable component of each row in a mixture of independent categorical columns, [n]."""
    codes = torch.nn.functional.one_hot(x, values).float()  # [n, d, K]
    flat = codes.flatten(1)
    centres = [int(torch.randint(len(x), ()))]
    for _ in range(clusters - 1):  # k-means++
        distance = torch.stack([(x != x[c]).sum(-1) for c in centres]).amin(0).float()
        if not bool(distance.any()):
            return torch.zeros(len(x), dtype=torch.long, device=x.device)
        centres.append(int(torch.multinomial(distance, 1)))
    share = codes.mean(0)
    theta = torch.stack([0.5 * codes[c] + 0.5 * share for c in centres])  # [C, d, K]
    weight = theta.new_full((clusters,), 1 / clusters)
    label = torch.full((len(x),), -1, device=x.device)
    for _ in range(steps):
        joint = flat @ theta.flatten(1).clamp(min=1e-12).log().T + weight.log()
        chance = joint.softmax(-1)
        before, label = label, joint.argmax(-1)
        if torch.equal(before, label):
            break
        size = chance.sum(0)
        theta = ((chance.T @ flat).unflatten(-1, codes.shape[1:]) + share) / (size[:, None, None] + 1)
        weight = (size / len(x)).clamp(min=1e-12)
    return label
