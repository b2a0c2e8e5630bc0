"""Made items of a shop or a channel: one category and thirty measurements, whose exact density is known."""

import math
from functools import lru_cache

import torch
from torch import Generator, Tensor

from ..errors import DataError
from .dataset import Dataset

__all__ = ["ITEM_COLUMNS", "items"]

CATEGORIES, NUMBERS, TASTES = 20, 30, 6
WITHIN, NOISE = 0.6, 0.4  # standard deviations of an item's taste around its category's, and of a measurement

ITEM_COLUMNS: dict[str, str] = {
    "category": f"categorical-{CATEGORIES}",
    **{f"number {d}": "gaussian" for d in range(NUMBERS)},
}
"""{column: kind} of `items`, as `evaluate.report_cards` and the VAE's likelihood "mixed" take it."""


def items(train: int = 2000, valid: int = 500, test: int = 1000, *, seed: int = 0) -> Dataset:
    """Items with a category k of 20 and 30 numbers that tell what it is like,

        k ~ Categorical(w),  w_k proportional to 1 / (k + 1),      taste t ~ N(c_k, 0.6^2 I_6),      x ~ N(A t, 0.4^2 I_30),

    with centres c_k ~ N(0, I) and A's columns orthonormal but for a factor, both fixed once and for all; the numbers have
    variances near 1. A category is a cloud of its own in six dimensions, and common ones lie no nearer than rare ones, so that a
    good code of six numbers or more puts items of one category beside each other.

    Arguments:
        train, valid, test: number of items of each split.
        seed: seeds the draws; each split has its own stream.

    Returns:
        float32 data [n, 31]: the category first, then the numbers; the category as label; columns are named as in `ITEM_COLUMNS`.
        The density is exact: log w_k + log N(x; A c_k, 0.36 A A^T + 0.16 I), and so is its entropy.

    Raises:
        DataError: there is no item to train on.

    Example:
        >>> items(10, 0, 5)
        Dataset(items: 10/0/5 x 31, float32)
    """
    if train < 1 or valid < 0 or test < 0:
        raise DataError(f"items: the splits have {train}, {valid} and {test} items; draw at least one to train on.")
    splits, labels = {}, {}
    weights, centres, loadings = _truth()
    for index, (split, n) in enumerate((("train", train), ("valid", valid), ("test", test))):
        generator = Generator().manual_seed(3 * seed + index)
        k = torch.multinomial(weights, n, replacement=True, generator=generator) if n else torch.zeros(0).long()
        taste = centres[k] + WITHIN * torch.randn(n, TASTES, generator=generator, dtype=torch.float64)
        numbers = taste @ loadings.mT + NOISE * torch.randn(n, NUMBERS, generator=generator, dtype=torch.float64)
        splits[split], labels[split] = torch.cat([k[:, None].double(), numbers], 1).float(), k
    return Dataset(
        "items",
        splits["train"],
        splits["valid"],
        splits["test"],
        columns=list(ITEM_COLUMNS),
        labels=labels,
        source="made: a mixture of linear Gaussians",
        licence="none needed: drawn on the spot",
        entropy=_entropy(),
        log_density=_log_density,
    )


@lru_cache
def _truth() -> tuple[Tensor, Tensor, Tensor]:
    """w [20], the centres [20, 6] and A [30, 6], in float64."""
    generator = Generator().manual_seed(12)
    weights = 1.0 / torch.arange(1, CATEGORIES + 1, dtype=torch.float64)
    centres = torch.randn(CATEGORIES, TASTES, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(NUMBERS, TASTES, generator=generator, dtype=torch.float64)).Q
    return weights / weights.sum(), centres, directions * math.sqrt(NUMBERS / TASTES) * 0.8


def _covariance() -> Tensor:
    """Of the numbers given the category, [30, 30]."""
    loadings = _truth()[2]
    return WITHIN**2 * loadings @ loadings.mT + NOISE**2 * torch.eye(NUMBERS, dtype=torch.float64)


def _log_density(x: Tensor) -> Tensor:
    weights, centres, loadings = (t.to(x) for t in _truth())
    k = x[..., 0].long()
    gaussian = torch.distributions.MultivariateNormal((centres @ loadings.mT)[k], _covariance().to(x))
    return weights[k].log() + gaussian.log_prob(x[..., 1:])


@lru_cache
def _entropy() -> float:
    weights = _truth()[0]
    spread = float(torch.linalg.slogdet(2 * math.pi * math.e * _covariance()).logabsdet)
    return -float((weights * weights.log()).sum()) + 0.5 * spread
