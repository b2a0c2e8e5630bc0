"""The figure of a comparison of algorithms: bias as gradients are spent, effective draws, distances."""

import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["comparison_figure"]

_COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
)  # fmt: skip
_DASHES = ("-", "--", ":")
_LOW = 0.01  # of b^2
_SMALLEST = 1e-7  # of b^2 that is drawn; below lies rounding


def comparison_figure(comparison: Any) -> Figure:
    """Four panels: the largest and the mean b^2 of x^2 against gradients; effective draws; distances to the reference.

    A curve is the median over seeds, the thin ones its seeds; it begins where warm-up ends. A dot is a method whose draws
    come all at once. Methods stand in the order of the table.

    Arguments:
        comparison: a `Comparison`.
    """
    found = comparison.table
    found = found[found["seeds"] > 0]
    styles = {
        str(method): {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)]}
        for i, method in enumerate(found.index)
    }
    rows = max(2.2, 0.32 * len(found) + 1.1)
    legend_lines = -(-max(len(found), 1) // 5)
    figure = Figure(figsize=(10, 4.3 + rows + 0.25 * legend_lines), layout="constrained")
    (left, right), (lower_left, lower_right) = figure.subplots(2, 2, height_ratios=[3.6, rows])
    ruling = "square" if "square_max" in comparison.curves else "quantile"
    what = {"square": "x²", "quantile": "quantiles"}[ruling]
    for axes, which, title in (
        (left, "max", f"b² of {what}, largest over coordinates"),
        (right, "mean", f"b² of {what}, mean over coordinates"),
    ):
        _bias(axes, comparison, f"{ruling}_{which}", styles)
        axes.set_title(title, fontsize=10)
    _effective(lower_left, found, styles)
    _distance(lower_right, found, styles)
    handles = [_handle(method, comparison, style) for method, style in styles.items()]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(5, len(handles)), frameon=False, fontsize=9
        )
    title = f"{comparison.settings['program']}; reference: {comparison.reference.how}"
    figure.suptitle(textwrap.fill(title, 110), fontsize=11)
    return figure


def _handle(method: str, comparison: Any, style: dict[str, Any]) -> Line2D:
    runs = comparison.runs
    dots = bool(runs.loc[(runs["method"] == method) & (runs["failed"] == ""), "at_once"].all())
    shape = {"marker": "o", "linestyle": "none", "color": style["color"]} if dots else {"linewidth": 2, **style}
    return Line2D([], [], label=method, **shape)


def _bias(axes: Axes, comparison: Any, column: str, styles: dict[str, dict[str, Any]]) -> None:
    curves = comparison.curves
    axes.set_xscale("log")
    axes.set_yscale("log")
    if column not in curves or curves.empty:
        axes.text(0.5, 0.5, "no moments to compare", ha="center", va="center", transform=axes.transAxes, color="0.4")
        return
    for method, style in styles.items():
        mine = curves[(curves["method"] == method) & np.isfinite(curves[column])]
        seeds = [_points(run, column) for _, run in mine.groupby("seed")]
        seeds = [points for points in seeds if len(points)]
        if not seeds:
            continue
        if float(mine["gradients"].max()) == 0:  # no gradients, so no abscissa: a level
            axes.axhline(
                float(np.median([points[-1, 1] for points in seeds])), linewidth=1, **(style | {"linestyle": "-."})
            )
        elif all(len(points) == 1 for points in seeds):
            dots = np.concatenate(seeds)
            axes.plot(dots[:, 0], dots[:, 1], "o", color=style["color"], markersize=3.5, alpha=0.5)
            axes.plot(*np.median(dots, 0), "o", color=style["color"], markersize=8)
        else:
            for points in seeds:
                axes.plot(points[:, 0], points[:, 1], linewidth=0.6, alpha=0.35, **style)
            middle = _median(seeds)
            axes.plot(middle[:, 0], middle[:, 1], linewidth=2, **style)
            axes.plot(*middle[0], "|", color=style["color"], markersize=14, markeredgewidth=1.5)
    axes.axhline(_LOW, color="0.45", linewidth=0.8, linestyle="--")
    _beside(axes, "0.01", (1, _LOW), (3, 0), "center")
    values = curves.loc[np.isfinite(curves[column]) & curves["method"].isin(styles), column]
    if len(values):
        low, high = max(min(values.min(), _LOW), _SMALLEST), max(float(values.max()), 10 * _LOW)
        axes.set_ylim(low / 2, min(high * 2, 1e4))
    runs, floor = comparison.runs, f"b2_{column.removesuffix('_max').removesuffix('_mean')}_floor"
    level = float(runs[floor].max()) if floor in runs else 0.0
    if level > axes.get_ylim()[0] and column.endswith("_max"):  # else it lies below the panel
        axes.axhspan(_SMALLEST / 10, level, color="0.9", zorder=0)
        _beside(axes, "the reference's own error", (0.02, level), (0, -3), "top")
    budget = comparison.settings["budget"]
    if budget and budget[1] == "gradients":
        axes.axvline(budget[0], color="0.45", linewidth=0.8, linestyle=":")
    axes.set_xlabel("gradients of all chains; a curve begins (|) after warm-up", fontsize=9)
    axes.tick_params(labelsize=8)
    _few_labels(axes.xaxis)
    _few_labels(axes.yaxis)


def _few_labels(axis: Axis) -> None:
    """Labels on a logarithmic axis that do not run into one another: 1, 2, 5 of each decade, or powers of ten alone."""
    low, high = axis.get_view_interval()
    if high < 300 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", " ") if x >= 1 else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _beside(axes: Axes, text: str, place: tuple[float, float], by: tuple[float, float], align: str) -> None:
    """A word at a fraction of the width and a height of the data, moved by so many points."""
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": by, "textcoords": "offset points"}
    axes.annotate(text, place, va=align, fontsize=8, color="0.35", **where)


def _points(run: pd.DataFrame, column: str) -> np.ndarray:
    """[point, 2] of gradients and b^2, kept off zero for the logarithm."""
    return np.c_[run["gradients"].to_numpy(float), np.maximum(run[column].to_numpy(float), _SMALLEST)]


def _median(seeds: list[np.ndarray]) -> np.ndarray:
    """The median curve over seeds, where all of them have points, on a logarithmic grid."""
    first, last = max(points[0, 0] for points in seeds), min(points[-1, 0] for points in seeds)
    if not 0 < first < last:
        return seeds[0]
    grid = np.geomspace(first, last, 100)
    values = [np.interp(np.log(grid), np.log(np.maximum(p[:, 0], 1e-9)), np.log(p[:, 1])) for p in seeds]
    return np.c_[grid, np.exp(np.median(values, 0))]


def _effective(axes: Axes, found: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Smallest bulk and tail ESS per 1000 gradients, one line for each method."""
    axes.set_title("effective draws per 1000 gradients", fontsize=10)
    drawn = False
    for place, (method, values) in enumerate(found.iterrows()):
        colour = styles[str(method)]["color"]
        for which, face in (("bulk", colour), ("tail", "white")):
            ess = 1000 * values[f"ess_{which}_per_gradient"]
            if math.isfinite(ess) and ess > 0:
                marker = "s" if values["weighted"] else "o"
                axes.plot(ess, place, marker, color=colour, markerfacecolor=face, markersize=7, linestyle="none")
                drawn = True
    keys = [
        Line2D([], [], marker=marker, color="0.3", markerfacecolor=face, linestyle="none", label=label)
        for marker, face, label in (("o", "0.3", "bulk"), ("o", "white", "tail"), ("s", "0.3", "of weights"))
        if label != "of weights" or bool(found["weighted"].any())
    ]
    _named_lines(axes, found, drawn, "no chains")
    if drawn:
        axes.legend(handles=keys, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3)


def _distance(axes: Axes, found: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    """Sliced Wasserstein distance beside its floor, or where there are no reference draws the worst error."""
    distances = "sliced_wasserstein" in found and found["sliced_wasserstein"].notna().any()
    column = "sliced_wasserstein" if distances else "worst_error"
    title = (
        "sliced Wasserstein distance to the reference" if distances else "largest error, in standard errors (dashed: 4)"
    )
    axes.set_title(title, fontsize=10)
    drawn = False
    for place, (method, values) in enumerate(found.iterrows()):
        value, colour = values[column], styles[str(method)]["color"]
        if math.isfinite(value) and value > 0:
            axes.plot(
                [max(values[f"{column}_low"], 1e-9), values[f"{column}_high"]],
                [place, place],
                color=colour,
                linewidth=1.5,
            )
            axes.plot(value, place, "o", color=colour, markersize=7)
            drawn = True
        floor = values.get(f"{column}_floor", math.nan)
        if math.isfinite(floor) and floor > 0:
            axes.plot(floor, place, "|", color="0.3", markersize=13, markeredgewidth=1.5)
    _named_lines(axes, found, drawn, "no reference draws")
    if drawn:
        mark, label = ("|", "as many reference draws") if distances else ("none", "")
        keys = (
            [Line2D([], [], marker=mark, color="0.3", linestyle="none", markersize=11, label=label)]
            if distances
            else []
        )
        if keys:
            axes.legend(handles=keys, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18))
        else:
            axes.axvline(4.0, color="0.45", linewidth=0.8, linestyle="--")


def _named_lines(axes: Axes, found: pd.DataFrame, drawn: bool, otherwise: str) -> None:
    axes.set_yticks(range(len(found)), [str(method) for method in found.index])
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    if drawn:
        shown = np.concatenate([line.get_xdata() for line in axes.lines])
        if shown.max() > 10 * shown.min():  # on less than a decade logarithmic labels would crowd
            axes.set_xscale("log")
            _few_labels(axes.xaxis)
    else:
        axes.set_xticks([])
        axes.text(0.5, 0.5, otherwise, ha="center", va="center", transform=axes.transAxes, color="0.4")
