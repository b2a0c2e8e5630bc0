"""Holes: places where the prior draws codes that no row of data has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.inference.diagnostics.latent.codes import Layout, at_rest, checked, encode, layout, rows_of, split
from ppl_dgm.inference.diagnostics.latent.densities import pair_log_density, prior_codes, prior_log_density

__all__ = ["PriorMatch", "mmd", "prior_match"]

_WORTH = 0.05  # share of the prior's codes in holes from which a sentence is due
_GRID = 60  # points along each side of a contour plot


def prior_match(
    program: Any,
    data: Any,
    heldout: Tensor | None = None,
    *,
    samples: int = 1000,
    rows: int = 1000,
    quantile: float = 0.01,
    permutations: int = 200,
    seed: int | None = 0,
) -> "PriorMatch":
    """The aggregated posterior q(z) = 1/N sum_n q(z | x_n) of training rows against the prior p(z).

    A hole is a place that the prior reaches and no row's code does: what is decoded from there is unlike the data. A code
    drawn from the prior lies in one if log q(z) is below the 1 % quantile that codes of held-out rows have. Were q(z) the
    prior, 1 % of the prior's codes would lie there.

    Second number: the maximum mean discrepancy between codes of held-out rows and the prior's codes, with a Gaussian kernel
    whose width is the median distance, and the p-value of a permutation test.

    Arguments:
        program: with an amortised guide.
        data: training rows [N, D], or a `Dataset`, whose test rows are held out. Of rows alone the last third is held out.
        heldout: rows [H, D] that the program has not seen.
        samples: codes drawn from the prior.
        rows: N and H, at most.
        quantile: of log q(z) at held-out codes, below which lies a hole.
        permutations: of the two-sample test.
        seed: of all draws.

    Returns:
        A `PriorMatch`. All sites of a hierarchy together make up z.

    Raises:
        TaskUnavailable: no guide, or one whose density is known at its own draws only.

    Source: M. Rosca, B. Lakshminarayanan and S. Mohamed (2018); J. Tomczak (2024), 5.3.6 and 5.4.1; A. Gretton et al. (2012).
    """
    train, unseen = split(data, heldout)
    with at_rest(program, seed) as resting:
        train, unseen = checked(resting, rows_of(train, rows)), rows_of(unseen, rows)
        known = layout(resting, train)
        encoded = known.joined(encode(resting, unseen, 1).draws)[0]  # [H, dim]
        drawn = prior_codes(resting, known, train, samples)
        mixed = [
            (pair_log_density(resting, known, codes, train).sum(0).logsumexp(-1) - np.log(len(train))).double().cpu()
            for codes in (encoded, drawn)
        ]
        contours = _contours(resting, known, encoded, drawn, train)
        discrepancy, p = mmd(encoded, drawn, permutations)
    threshold = float(mixed[0].quantile(quantile))
    return PriorMatch(
        log_q_encoded=mixed[0],
        log_q_prior=mixed[1],
        threshold=threshold,
        quantile=quantile,
        mmd=discrepancy,
        p_value=p,
        encoded=encoded.double().cpu(),
        drawn=drawn.double().cpu(),
        units=known.units,
        contours=contours,
    )


def mmd(first: Tensor, second: Tensor, permutations: int = 200, most: int = 500) -> tuple[float, float]:
    """The squared maximum mean discrepancy between two samples (unbiased, so that it may be negative), and its p-value.

        MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),    k(a, b) = exp(-|a - b|^2 / (2 h^2)),

    with h the median distance between all points.

    Arguments:
        first, second: [n, d] and [m, d].
        permutations: of the labels, for the p-value, which is at least 1 / (permutations + 1).
        most: points of each sample that are used.

    Source: A. Gretton et al. (2012), A kernel two-sample test.
    """
    first, second = rows_of(first, most).double(), rows_of(second, most).double()
    both = torch.cat([first, second])
    squares = torch.cdist(both, both).square()
    apart = squares[torch.ones_like(squares).triu(1).bool()]
    kernel = (-squares / (2 * apart.median().clamp_min(1e-300))).exp().fill_diagonal_(0.0)
    n, m = len(first), len(second)
    labels = torch.zeros(permutations + 1, n + m, dtype=torch.float64, device=both.device)
    labels[0, :n] = 1.0
    for k in range(1, permutations + 1):
        labels[k, torch.randperm(n + m, device=both.device)[:n]] = 1.0
    weighted = labels @ kernel
    within = (weighted * labels).sum(1) / (n * (n - 1))
    other = ((1 - labels) @ kernel * (1 - labels)).sum(1) / (m * (m - 1))
    between = (weighted * (1 - labels)).sum(1) / (n * m)
    values = within + other - 2 * between
    return float(values[0]), float((1 + (values[1:] >= values[0]).sum()) / (permutations + 1))


@dataclass(frozen=True)
class PriorMatch:
    """How well the prior covers the codes of data, and nothing else.

    Attributes:
        log_q_encoded: [H], log q(z) at codes of held-out rows, in nats.
        log_q_prior: [S], at codes drawn from the prior.
        threshold: the quantile of the first, below which lies a hole.
        quantile: which one.
        mmd, p_value: the two-sample test.
        encoded, drawn: the codes themselves, [H, dim] and [S, dim].
        units: names of their columns.
        contours: for codes of two numbers, a grid and log p(z) on it.
    """

    log_q_encoded: Tensor = field(repr=False)
    log_q_prior: Tensor = field(repr=False)
    threshold: float
    quantile: float
    mmd: float
    p_value: float
    encoded: Tensor = field(repr=False)
    drawn: Tensor = field(repr=False)
    units: list[str] = field(repr=False)
    contours: tuple[np.ndarray, np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    @property
    def share(self) -> float:
        """The share of the prior's codes that lie in holes."""
        return float((self.log_q_prior < self.threshold).double().mean())

    @property
    def stderr(self) -> float:
        """Standard error of `share` if q(z) were the prior, from both samples."""
        variance = self.quantile * (1 - self.quantile)
        return float(np.sqrt(variance * (1 / len(self.log_q_prior) + 1 / len(self.log_q_encoded))))

    @property
    def has_holes(self) -> bool:
        """Whether more of the prior lies in holes than chance explains (four standard errors), and at least 5 %."""
        return self.share > max(_WORTH, self.quantile + 4 * self.stderr)

    @property
    def ok(self) -> bool:
        """Whether there are no holes."""
        return not self.has_holes

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        said = (
            f"{self.share:.1%} of the prior's codes lie where only {self.quantile:.0%} of held-out codes do "
            f"(MMD² {self.mmd:.2g}, p = {self.p_value:.2g})"
        )
        if self.has_holes:
            return f"Holes: {said}; samples from there look unlike the data: learn the prior, or fit one to the codes."
        if self.p_value < 0.01:
            return f"No holes, but codes and prior differ: {said}."
        return f"No holes: {said}."

    def __str__(self) -> str:
        return self.verdict

    def plot(self, path: str | Path | None = None) -> Figure:
        """log q(z) of both samples with the threshold, and the codes over the prior (its contours where z has two numbers)."""
        from ppl_dgm.plots import save

        figure = Figure(figsize=(9.0, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        self._densities(left)
        self._scatter(right)
        figure.suptitle(f"{self.share:.1%} of the prior's codes lie in holes", fontsize=11)
        if path is not None:
            save(figure, path)
        return figure

    def _densities(self, axes: Axes) -> None:
        first, second = self.log_q_encoded.numpy(), self.log_q_prior.numpy()
        # far tails would flatten what matters, so that the lowest bin holds all that lies below
        low = min(float(np.quantile(first, 0.001)), float(np.quantile(second, 0.05)))
        low = max(low, self.threshold - 3 * (first.max() - self.threshold))
        bins = np.linspace(low, max(first.max(), second.max()), 40).tolist()
        axes.hist(np.clip(second, low, None), bins, density=True, color="0.75", label="drawn from the prior")
        axes.hist(first, bins, density=True, histtype="step", color="black", linewidth=1.4, label="codes of data")
        axes.axvline(self.threshold, color="tab:red", linewidth=1.0, linestyle="--", label="holes lie below")
        axes.set_xlabel("log q(z), nats")
        axes.set_ylabel("density")
        _legend_above(axes, 3)

    def _scatter(self, axes: Axes) -> None:
        first, second, names = self.encoded, self.drawn, self.units
        if first.shape[1] == 1:
            axes.hist(second[:, 0].numpy(), 40, density=True, color="0.75")
            axes.hist(first[:, 0].numpy(), 40, density=True, histtype="step", color="black")
            axes.set_xlabel(names[0])
            return
        a, b = (0, 1) if first.shape[1] == 2 else torch.topk(first.var(0), 2).indices.sort().values.tolist()
        low = self.log_q_prior < self.threshold
        if self.contours is not None:
            x, y, value = self.contours
            levels = value.max() - np.array([8.0, 4.5, 2.0, 0.5])
            axes.contour(x, y, value, levels=levels, colors="0.6", linewidths=0.8, linestyles="solid")
        else:
            axes.scatter(second[~low, a], second[~low, b], s=5, color="0.8", linewidths=0)
        axes.scatter(first[:, a], first[:, b], s=5, color="black", linewidths=0, label="codes of data")
        axes.scatter(second[low, a], second[low, b], s=5, color="tab:red", linewidths=0, label="prior, in a hole")
        axes.set_xlabel(names[a])
        axes.set_ylabel(names[b])
        _legend_above(axes, 2)


def _legend_above(axes: Axes, columns: int) -> None:
    axes.legend(
        frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=1.0,
        handlelength=1.4, markerscale=2,
    )  # fmt: skip


def _contours(
    program: Any, known: Layout, encoded: Tensor, drawn: Tensor, x: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """A grid over both samples and log p(z) on it, for codes of two real numbers."""
    if known.dim != 2:
        return None
    both = torch.cat([encoded, drawn])
    low, high = both.min(0).values, both.max(0).values
    room = 0.08 * (high - low)
    sides = [
        torch.linspace(float(lo), float(hi), _GRID, device=both.device, dtype=both.dtype)
        for lo, hi in zip(low - room, high + room)
    ]
    grid = torch.cartesian_prod(*sides)  # [grid * grid, 2], the second coordinate runs fastest
    value = prior_log_density(program, known, grid, x).unflatten(0, (_GRID, _GRID))
    if not bool(value.isfinite().any()):
        return None
    across, up = torch.meshgrid(*sides, indexing="ij")
    return across.cpu().numpy(), up.cpu().numpy(), value.double().cpu().numpy()
