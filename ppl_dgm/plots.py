"""Pictures: images in a grid, points in the plane, learning curves. Each returns a matplotlib Figure; none needs a display."""

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from .errors import DataError
from .files import write_atomically

__all__ = ["curves", "images", "points", "predictive", "save", "uniformity"]


def images(x: Tensor, shape: tuple[int, int], columns: int = 16, values: int | None = None, title: str = "") -> Figure:
    """Rows of x as grey images in a grid, high values dark.

    Arguments:
        x: [n, height * width].
        shape: (height, width).
        columns: images per line of the grid.
        values: number of grey levels; None scales to the largest value.
        title: written above.
    """
    height, width = shape
    if x.dim() != 2 or x.shape[1] != height * width:
        raise DataError(
            f"images: x has shape {tuple(x.shape)}, but images of {height}x{width} need [n, {height * width}]."
        )
    tiles = x.detach().cpu().double().reshape(-1, height, width).numpy()
    lines = -(-len(tiles) // columns)
    top = float(values - 1) if values else float(tiles.max() or 1)
    grid = np.full((lines * (height + 1) + 1, columns * (width + 1) + 1), np.nan)  # a line of background between images
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        grid[
            row * (height + 1) + 1 : (row + 1) * (height + 1), column * (width + 1) + 1 : (column + 1) * (width + 1)
        ] = tile
    figure = Figure(figsize=(8, 8 * grid.shape[0] / grid.shape[1] + (0.35 if title else 0)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.ma.masked_invalid(grid), cmap="Greys", vmin=0, vmax=top, interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=11)
    return figure


def points(x: Tensor, title: str = "", reference: Tensor | None = None) -> Figure:
    """A scatter of points in the plane, [n, 2], over those of a reference, if given."""
    if x.dim() != 2 or x.shape[1] != 2:
        raise DataError(f"points: x has shape {tuple(x.shape)}, but a scatter needs [n, 2].")
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    if reference is not None:
        axes.scatter(
            reference[:, 0].detach().cpu().numpy(),
            reference[:, 1].detach().cpu().numpy(),
            s=4,
            color="0.75",
            label="data",
        )
    axes.scatter(x[:, 0].detach().cpu().numpy(), x[:, 1].detach().cpu().numpy(), s=4, color="black", label="samples")
    axes.set_aspect("equal")
    if reference is not None:
        axes.legend(loc="upper right", frameon=False)
    axes.set_title(title, fontsize=11)
    return figure


def curves(history: pd.DataFrame, title: str = "") -> Figure:
    """The objective and, where there is one, the validation objective against the epoch, in nats per example."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(history["epoch"], history["objective"], color="0.6", label="training")
    if "valid" in history:
        axes.plot(history["epoch"], history["valid"], color="black", label="validation")
        axes.plot(*history.loc[history["valid"].idxmin(), ["epoch", "valid"]], "o", color="black")
    # the first epochs are far above the rest and would flatten what matters
    settled = history.iloc[len(history) // 10 :][[c for c in ("objective", "valid") if c in history]].to_numpy(
        dtype=float
    )
    if np.isfinite(settled).any():
        low, high = np.nanmin(settled), np.nanmax(settled)
        axes.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.05 * (high - low) + 1e-9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("nats per example")
    axes.legend(frameon=False)
    axes.set_title(textwrap.fill(title, 70), fontsize=11)
    return figure


def uniformity(values: dict[str, Tensor], verdicts: dict[str, str], title: str = "", most: int = 12) -> Figure:
    """Numbers that should be uniform: their empirical distribution function minus the diagonal, and where chance leaves it.

    Arguments:
        values: {name: [n]}, each a panel.
        verdicts: {name: words under its title}; "fine" is drawn in grey, all else in red.
        title: written above.
        most: panels, at most: those that stray furthest are kept.
    """
    from .inference.diagnostics.uniformity import bands

    limits = {name: bands(len(u)) for name, u in values.items()}
    if len(values) > most:
        worst = sorted(values, key=lambda name: limits[name].p_value(values[name]))[:most]
        title = f"{title}; the {most} worst of {len(values)}"
        values = {name: u for name, u in values.items() if name in worst}
    columns = min(len(values), 4)
    lines = -(-len(values) // columns)
    figure = Figure(figsize=(max(2.9 * columns, 4.5), 2.5 * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for place, (name, u) in enumerate(values.items()):
        axes, band = grid[place // columns][place % columns], limits[name]
        fine = verdicts.get(name, "fine") == "fine"
        z = np.concatenate([[0.0], band.points, [1.0]])
        low, high, seen = (
            np.concatenate([[0.0], part, [0.0]])
            for part in (band.lower - band.points, band.upper - band.points, band.difference(u))
        )
        axes.fill_between(z, low, high, color="0.88", linewidth=0)
        axes.plot(z, seen, color="black" if fine else "tab:red", linewidth=1.2, drawstyle="steps-post")
        axes.axhline(0, color="0.5", linewidth=0.6)
        words = textwrap.fill(verdicts.get(name, ""), 34, max_lines=2, placeholder=" ...")
        axes.set_title(f"{textwrap.shorten(name, 34)}\n{words}", fontsize=8, color="black" if fine else "tab:red")
        axes.tick_params(labelsize=7)
    for place in range(len(values), lines * columns):
        grid[place // columns][place % columns].set_visible(False)
    figure.supxlabel("place of the truth among the draws", fontsize=9)
    figure.supylabel("ECDF minus diagonal", fontsize=9)
    if title:
        figure.suptitle(textwrap.fill(title, 26 * columns + 20), fontsize=10)
    return figure


def predictive(observed: dict[str, Tensor], replicated: dict[str, Tensor], pit: dict[str, Tensor]) -> Figure:
    """A line per site: the distribution function of what was observed among replicated ones, and the LOO-PIT's.

    Arguments:
        observed: {site: [n]}.
        replicated: {site: [draw, n]}.
        pit: {site: [n]}, for some of the sites.
    """
    from .inference.diagnostics.uniformity import bands

    columns = 2 if pit else 1
    figure = Figure(figsize=(4.2 * columns, 2.9 * len(observed) + 0.2), layout="constrained")
    grid = figure.subplots(len(observed), columns, squeeze=False)
    for line, (site, y) in zip(grid, observed.items(), strict=True):
        heights = np.arange(1, len(y) + 1) / len(y)
        for k, row in enumerate(replicated[site][:50]):
            label = "replicated" if k == 0 else None
            line[0].step(row.sort().values.numpy(), heights, where="post", color="0.8", linewidth=0.7, label=label)
        line[0].step(y.sort().values.numpy(), heights, where="post", color="black", linewidth=1.4, label="observed")
        line[0].set_xlabel(site)
        line[0].set_ylabel("distribution function")
        line[0].legend(frameon=False, fontsize=8)
        if site in pit:
            band = bands(len(pit[site]))
            low, high = band.lower - band.points, band.upper - band.points
            line[1].fill_between(band.points, low, high, color="0.88", linewidth=0, label="95 % of uniform ones")
            line[1].plot(band.points, band.difference(pit[site]), color="black", linewidth=1.2, drawstyle="steps-post")
            line[1].axhline(0, color="0.5", linewidth=0.6)
            line[1].set_xlabel(f"LOO-PIT of {site}")
            line[1].set_ylabel("ECDF minus diagonal")
            line[1].legend(frameon=False, fontsize=8)
        elif columns > 1:
            line[1].set_visible(False)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the ending of the name gives the format (.png, .svg, .pdf). An old file is replaced whole.

    Raises:
        DataError: the ending names no format of pictures.
    """
    path, known = Path(path), figure.canvas.get_supported_filetypes()
    ending = path.suffix.lower().removeprefix(".")
    if ending not in known:
        raise DataError(f"{path.name} ends in {path.suffix!r}, which is no format of pictures; use .png, .svg or .pdf.")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=ending, dpi=150)
    write_atomically(path, buffer.getvalue())
    return path


def picture(
    x: Any, shape: tuple | None, values: int | None, title: str = "", reference: Tensor | None = None
) -> Figure | None:
    """The picture that fits: a grid of images, a scatter in the plane, or None for tables."""
    x = torch.as_tensor(x)
    if shape is not None and len(shape) == 2:
        return images(x, shape, values=values, title=title)
    if x.dim() == 2 and x.shape[1] == 2:
        return points(x, title, reference)
    return None
