"""Walks through a latent space: paths between rows, one unit at a time, neighbours, and arithmetic with codes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.diagnostics.latent.codes import at_rest, checked, encode, layout
from ppl_dgm.inference.diagnostics.latent.densities import decode

__all__ = ["Neighbours", "Walk", "arithmetic", "interpolate", "neighbours", "traverse"]

_DRAWS = 64  # of the guide, for a row's mean code below a first level


@dataclass(frozen=True)
class Walk:
    """Codes and what is decoded from them.

    Attributes:
        codes: [lines, steps, dim].
        decoded: [lines, steps, D], E[x | code].
        lines: what each line is, in words.
        steps: what stands above each column, in words.
        shape: of an example, for pictures; None for tables.
        smoothness: [lines], the longest of a line's steps between decoded neighbours, over their mean: 1 for even steps; a jump
            is many times that.
    """

    codes: Tensor
    decoded: Tensor
    lines: list[str]
    steps: list[str]
    shape: tuple[int, ...] | None = field(default=None)

    @property
    def smoothness(self) -> Tensor:
        """See the attributes."""
        if self.decoded.shape[1] < 3:
            return torch.ones(len(self.decoded), dtype=self.decoded.dtype)
        steps = self.decoded.diff(dim=1).flatten(2).norm(dim=-1)
        return steps.max(1).values / steps.mean(1).clamp_min(1e-300)

    @property
    def verdict(self) -> str:
        """How even the steps are."""
        worst = int(self.smoothness.argmax())
        return (
            f"The longest step of a line is {float(self.smoothness.median()):.1f} times its mean step (median of "
            f"{len(self.lines)} lines); at worst {float(self.smoothness[worst]):.1f} times, {self.lines[worst]}."
        )

    def __str__(self) -> str:
        return self.verdict

    def plot(self, path: str | Path | None = None) -> Figure:
        """Images in a grid, a line each; for tables the columns' values along each line."""
        from ppl_dgm.plots import save

        count, steps = self.decoded.shape[:2]
        decoded = self.decoded.double().cpu().reshape(count, steps, -1)
        if self.shape is not None and len(self.shape) == 2:
            figure = self._images(decoded, count, steps)
        else:
            figure = Figure(figsize=(6.5, 1.7 * count + 0.8), layout="constrained")
            grid = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
            for axes, values, name in zip(grid, decoded, self.lines):
                axes.plot(range(steps), values.numpy(), linewidth=1)
                axes.set_title(name, fontsize=9, loc="left")
            grid[-1].set_xticks(range(steps), self.steps, fontsize=8)
        if path is not None:
            save(figure, path)
        return figure

    def _images(self, decoded: Tensor, count: int, steps: int) -> Figure:
        assert self.shape is not None
        height, width = self.shape
        figure = Figure(figsize=(0.7 * steps + 1.6, 0.7 * count * height / width + 0.6), layout="constrained")
        axes = figure.add_subplot()
        board = np.full((count * (height + 1), steps * (width + 1)), np.nan)
        for i in range(count):
            for j in range(steps):
                tile = decoded[i, j].reshape(height, width).numpy()
                board[i * (height + 1) : i * (height + 1) + height, j * (width + 1) : j * (width + 1) + width] = tile
        axes.imshow(np.ma.masked_invalid(board), cmap="Greys", interpolation="nearest")
        axes.set_xticks([j * (width + 1) + width / 2 - 0.5 for j in range(steps)], self.steps, fontsize=8)
        axes.set_yticks([i * (height + 1) + height / 2 - 0.5 for i in range(count)], self.lines, fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return figure


def interpolate(
    program: Any,
    start: Tensor,
    end: Tensor,
    *,
    steps: int = 9,
    path: str = "linear",
    shape: tuple[int, ...] | None = None,
    seed: int | None = 0,
) -> Walk:
    """The path between the codes (posterior means) of two rows, decoded.

        linear:     (1 - t) a + t b
        spherical:  sin((1 - t) w) / sin w a + sin(t w) / sin w b,   w the angle between a and b

    In many dimensions a Gaussian's mass lies on a shell, which the straight line leaves and the spherical one does not.

    Arguments:
        program: with an amortised guide.
        start, end: [pairs, D], rows.
        steps: codes on each path, its ends included.
        path: "linear" or "spherical".
        shape: of an example, for the picture.
        seed: of the draws for the mean codes.

    Raises:
        ProgramError: an unknown path, or fewer than two steps.

    Source: T. White (2016) for the spherical path.
    """
    if path not in ("linear", "spherical") or steps < 2:
        raise ProgramError(f"path must be 'linear' or 'spherical' and steps at least 2, not {path!r} and {steps!r}.")
    with at_rest(program, seed) as resting:
        codes = encode(resting, torch.cat([start, end]), _DRAWS)
        a, b = codes.posterior_means.split(len(start))
        t = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)[None, :, None]
        line = a[:, None].lerp(b[:, None], t) if path == "linear" else _slerp(a[:, None], b[:, None], t)
        decoded = decode(resting, codes.layout, line.flatten(0, 1), codes.x)
    names = [f"pair {i}" for i in range(len(start))]
    places = [f"{float(v):.2g}" for v in t.flatten()]
    return Walk(line, decoded.unflatten(0, line.shape[:2]), names, places, shape)


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The great circle between two directions, [.., dim]; lengths go along by the same weights."""
    cosine = torch.cosine_similarity(a, b, -1).clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    sine = angle.sin()
    curved = ((1 - t) * angle).sin() / sine * a + (t * angle).sin() / sine * b
    return torch.where(sine.abs() < 1e-4, torch.lerp(a, b, t), curved)  # no plane is singled out by opposite directions


def traverse(
    program: Any,
    x: Tensor,
    units: Sequence[int] | None = None,
    *,
    span: float = 3.0,
    steps: int = 9,
    most: int = 10,
    shape: tuple[int, ...] | None = None,
    seed: int | None = 0,
) -> Walk:
    """One unit of a row's code at a time moved through its range, the others held; decoded.

    Arguments:
        program: with an amortised guide.
        x: [n, D]; the first row is moved, all of them tell the units' mean and spread.
        units: which, by their place in the code (sites one after another); by default those with the widest posterior means.
        span: standard deviations of the unit, on both sides of its mean. Unit j's standard deviation is that of its aggregated
            posterior, which for a healthy program is the prior's.
        steps: of each line.
        most: lines, where `units` is None.
        shape: of an example, for the picture.
        seed: of the draws.
    """
    with at_rest(program, seed) as resting:
        codes = encode(resting, x, _DRAWS if len(x) < 100 else 4)
        drawn = codes.layout.joined(codes.draws).flatten(0, 1)
        centre, spread = drawn.mean(0), drawn.std(0)
        if units is None:
            units = codes.posterior_means.var(0).topk(min(most, codes.layout.dim)).indices.tolist()
        bad = [j for j in units if not 0 <= j < codes.layout.dim]
        if bad:
            raise ProgramError(f"traverse: there is no unit {bad[0]}; the code has units 0 to {codes.layout.dim - 1}.")
        t = torch.linspace(-span, span, steps, device=drawn.device, dtype=drawn.dtype)
        line = codes.posterior_means[0].repeat(len(units), steps, 1)  # [unit, step, dim]
        for i, j in enumerate(units):
            line[i, :, j] = centre[j] + spread[j] * t
        decoded = decode(resting, codes.layout, line.flatten(0, 1), codes.x)
    names = [codes.layout.units[j] for j in units]
    return Walk(line, decoded.unflatten(0, line.shape[:2]), names, [f"{float(v):+.2g}" for v in t], shape)


def arithmetic(
    program: Any,
    plus: Sequence[Tensor],
    minus: Sequence[Tensor] = (),
    *,
    shape: tuple[int, ...] | None = None,
    seed: int | None = 0,
) -> Walk:
    """The sum of mean codes of some groups of rows less that of others, decoded, as in "a - b + c".

    Arguments:
        program: with an amortised guide.
        plus, minus: groups of rows, each [n, D] (or one row [D]), which count by the average of their codes.
        shape: of an example, for the picture.
        seed: of the draws.

    Returns:
        A `Walk` of one line: the decoded means of the groups, and last what the arithmetic gives.
    """
    groups = [(1.0, group) for group in plus] + [(-1.0, group) for group in minus]
    if not groups:
        raise ProgramError("arithmetic: plus must hold one group of rows at least, but it is empty.")
    with at_rest(program, seed) as resting:
        means, some = [], checked(resting, torch.atleast_2d(groups[0][1]))
        for _, group in groups:
            means.append(encode(resting, torch.atleast_2d(group), _DRAWS).posterior_means.mean(0))
        total = sum((sign * mean for (sign, _), mean in zip(groups, means)), torch.zeros_like(means[0]))
        line = torch.stack([*means, total])[None]
        decoded = decode(resting, layout(resting, some), line[0], some)[None]
    words = ["+" if sign > 0 else "-" for sign, _ in groups]
    return Walk(line, decoded, ["arithmetic"], [*words, "="], shape)


@dataclass(frozen=True)
class Neighbours:
    """The rows nearest to some queries in the latent space.

    Attributes:
        indices: [queries, k], rows of the pool, nearest first.
        similarity: [queries, k]: the cosine, or minus the distance.
        metric: "cosine" or "euclidean".
        queries, found: the rows themselves, [queries, D] and [queries, k, D].
        shape: of an example, for pictures.
    """

    indices: Tensor
    similarity: Tensor
    metric: str
    queries: Tensor = field(repr=False)
    found: Tensor = field(repr=False)
    shape: tuple[int, ...] | None = None

    def agreement(self, labels: Tensor, of_queries: Tensor) -> float:
        """The share of neighbours with the label of their query, for labels [pool] and [queries]."""
        return float((labels[self.indices] == of_queries[:, None]).double().mean())

    @property
    def verdict(self) -> str:
        """How near the nearest are."""
        first, last = float(self.similarity[:, 0].mean()), float(self.similarity[:, -1].mean())
        what = "cosine" if self.metric == "cosine" else "minus the distance"
        return (
            f"The nearest of {self.indices.shape[1]} neighbours has {what} {first:.3g}, the last {last:.3g}, on average over "
            f"{len(self.indices)} queries."
        )

    def __str__(self) -> str:
        return self.verdict

    def plot(self, path: str | Path | None = None) -> Figure:
        """A line per query: itself, then its neighbours."""
        rows = torch.cat([self.queries[:, None], self.found], 1)
        steps = ["query", *(str(i + 1) for i in range(self.found.shape[1]))]
        names = [f"query {i}" for i in range(len(rows))]
        return replace(Walk(rows, rows, names, steps, self.shape)).plot(path)


def neighbours(
    program: Any,
    queries: Tensor,
    pool: Tensor,
    k: int = 5,
    *,
    metric: str = "cosine",
    shape: tuple[int, ...] | None = None,
    seed: int | None = 0,
) -> Neighbours:
    """The k rows of a pool whose mean codes are nearest to those of the queries. A query's own row, if in the pool, comes first.

    Arguments:
        program: with an amortised guide.
        queries: [queries, D].
        pool: [N, D].
        k: at most N.
        metric: "cosine" (of the angle at the origin) or "euclidean".
        shape: of an example, for the picture.
        seed: of the draws.

    Raises:
        ProgramError: an unknown metric, or k out of range.
    """
    if metric not in ("cosine", "euclidean") or not 1 <= k <= len(pool):
        raise ProgramError(
            f"metric must be 'cosine' or 'euclidean' and k from 1 to {len(pool)}, but they are {metric!r} and {k!r}."
        )
    with at_rest(program, seed) as resting:
        means = encode(resting, torch.cat([queries, pool]), 8).posterior_means
        first, second = means.split([len(queries), len(pool)])
        if metric == "cosine":
            near = torch.nn.functional.normalize(first, dim=-1) @ torch.nn.functional.normalize(second, dim=-1).mT
        else:
            near = -torch.cdist(first, second)
        similarity, indices = near.topk(k, dim=-1)
    return Neighbours(indices, similarity, metric, queries, pool.to(indices.device)[indices], shape)
