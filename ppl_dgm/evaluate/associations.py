"""The association of columns of any kind, on one scale from 0 to 1."""

import math

import torch
from torch import Tensor

__all__ = ["association"]


def association(table: Tensor, kinds: dict[str, int]) -> Tensor:
    """The association of every pair of columns, from 0 (none) to 1, [D, D].

    Numbers: |Spearman's rank correlation|; categories: Cramer's V, less its bias; one of each: the correlation ratio, the
    share of the number's variance that the categories explain, square-rooted and likewise corrected.

    Arguments:
        table: [n, D].
        kinds: {column: number of categories, 0 for numbers}.

    Source: W. Bergsma (2013) for Cramer's V.
    """
    table = table.double()
    sizes = list(kinds.values())
    ranks = torch.stack([_ranks(table[:, d]) for d in range(len(sizes))], 1)
    result = torch.eye(len(sizes), dtype=torch.float64)
    codes = [torch.nn.functional.one_hot(table[:, d].long(), v).double() if v else None for d, v in enumerate(sizes)]
    for i in range(len(sizes)):
        for j in range(i):
            a, b = codes[i], codes[j]
            if a is not None and b is not None:
                value = _cramer(a, b)
            elif a is None and b is None:
                value = abs(_pearson(ranks[:, i], ranks[:, j]))
            else:
                value = _ratio(b, ranks[:, i]) if a is None and b is not None else _ratio(a, ranks[:, j])  # type: ignore[arg-type]
            result[i, j] = result[j, i] = value
    return result


def _ranks(column: Tensor) -> Tensor:
    """Ranks, the same (middle) one for equal values."""
    _, inverse, counts = column.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts.double() - 1) / 2)[inverse]


def _pearson(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()).clamp_min(1e-12))


def _cramer(a: Tensor, b: Tensor) -> float:
    joint = a.mT @ b / len(a)
    joint = joint[joint.sum(1) > 0][:, joint.sum(0) > 0]
    r, k = joint.shape
    if min(r, k) < 2:
        return 0.0
    expected = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    phi = float(((joint - expected).square() / expected).sum())
    n = len(a)
    phi = max(0.0, phi - (k - 1) * (r - 1) / (n - 1))
    r_, k_ = r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)
    return min(1.0, math.sqrt(phi / max(min(r_, k_) - 1, 1e-12)))


def _ratio(codes: Tensor, values: Tensor) -> float:
    counts = codes.sum(0)
    total = float((values - values.mean()).square().sum())
    means = codes.mT @ values / counts.clamp_min(1)
    between = float((counts * (means - values.mean()).square()).sum())
    groups, n = int((counts > 0).sum()), len(values)
    if groups < 2 or total <= 0 or n <= groups:
        return 0.0
    corrected = 1 - (1 - between / total) * (n - 1) / (n - groups)
    return math.sqrt(max(0.0, corrected))
