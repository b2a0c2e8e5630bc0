"""Which latent numbers say anything about the data: divergence of every unit and level, active units, posterior collapse."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.inference.diagnostics.latent.codes import Codes, at_rest, encode, rows_of, stratified

__all__ = ["ACTIVE", "LatentUnits", "active_units", "units_of"]

ACTIVE = 0.01  # variance of the posterior means above which Burda et al. call a unit active
_SAYS = 0.01  # nats that a unit's divergence must reach on average for it to say anything
_ALIVE = 0.05  # nats of a level below which it has collapsed as a whole


def active_units(
    program: Any,
    x: Tensor,
    *,
    draws: int = 8,
    rows: int = 2000,
    threshold: float = ACTIVE,
    seed: int | None = 0,
) -> "LatentUnits":
    """Which units of the code say anything about x, and which have collapsed onto their prior.

        activity_j = Var_x( E_q[z_j | x] ),        KL_j = E_x KL( q(z_j | x) || p(z_j) )

    A unit is active where its activity exceeds the threshold and its divergence (where posterior and prior factorise, so that
    it has one) 0.01 nats. Below a first level, means and divergences are given the draws of the levels before, so that a unit
    that merely follows its prior is not taken for active. Posterior collapse: a level whose q(z | x) is p(z) for all x.

    Arguments:
        program: a `Program` (or model) with an amortised guide whose latent sites lie in the plate `data`.
        x: rows of data, [N, D].
        draws: of the guide for each row.
        rows: of data, at most; more are thinned at random.
        threshold: of the activity, in squared units of z.
        seed: of the draws.

    Returns:
        A `LatentUnits`.

    Raises:
        TaskUnavailable: there is no guide, or a latent site that belongs to no row.

    Source: Y. Burda, R. Grosse and R. Salakhutdinov (2016); J. Tomczak (2024), 5.3.6 and 5.5.2.
    """
    with at_rest(program, seed) as resting:
        return units_of(encode(resting, rows_of(x, rows), draws), threshold)


def units_of(codes: Codes, threshold: float = ACTIVE) -> "LatentUnits":
    """`active_units` of codes that are drawn already."""
    rows: list[list[Any]] = []
    levels: list[list[Any]] = []
    for name in codes.layout.names:
        size = codes.layout.sizes[name]
        kl, error = stratified(codes.kl[name])
        activity, noise = _activity(codes, name)
        units = codes.unit_kl.get(name)
        labels = [name] if size == 1 else [f"{name}[{j}]" for j in range(size)]
        for j, label in enumerate(labels):
            value, spread = (float("nan"), float("nan")) if units is None else stratified(units[..., j])
            says = units is None or value > _SAYS
            active = float(activity[j] - 4 * noise[j]) > threshold and says
            rows.append([name, label, float(activity[j]), value, spread, active])
        levels.append([name, size, kl, error, sum(row[-1] for row in rows if row[0] == name)])
    columns = ["site", "unit", "activity", "kl", "stderr", "active"]
    table = pd.DataFrame(rows, columns=columns)
    return LatentUnits(
        table, pd.DataFrame(levels, columns=["site", "units", "kl", "stderr", "active"]), len(codes), threshold
    )


def _activity(codes: Codes, name: str) -> tuple[Tensor, Tensor]:
    """Variance over rows of E_q[z | x], [size], less what averaging over draws adds, and the standard error of what is left.

    The second is zero where the means are known; averages of draws need a margin, or noise would pass for activity.
    """
    means = codes.means[name].double()  # [draw, N, size]
    draws, rows, _ = means.shape
    between = means.mean(0).var(0)
    if draws == 1:
        return between, torch.zeros_like(between)
    added = means.var(0).mean(0) / draws
    noise = (4 * between * added / (rows - 1) + 2 * added.square() / (rows - 1) / (draws - 1)).sqrt()
    return (between - added).clamp_min(0), noise


@dataclass(frozen=True)
class LatentUnits:
    """What each unit and level of a code says about the data.

    Attributes:
        table: a row per unit: `activity`, `kl` with its Monte Carlo standard error (NaN where it has no meaning), `active`.
        levels: a row per latent site: `units`, `kl` and `stderr` in nats per row of data, `active`.
        rows: of data that were encoded.
        threshold: of the activity.
    """

    table: pd.DataFrame
    levels: pd.DataFrame
    rows: int
    threshold: float = field(default=ACTIVE)

    @property
    def active(self) -> int:
        """How many units are active."""
        return int(self.table["active"].sum())

    @property
    def collapsed(self) -> list[str]:
        """Names of the units that are not."""
        return list(self.table.loc[~self.table["active"], "unit"])

    @property
    def collapsed_levels(self) -> list[str]:
        """Names of the sites none of whose units is active or whose divergence is below 0.05 nats."""
        dead = (self.levels["active"] == 0) | (self.levels["kl"] < _ALIVE)
        return list(self.levels.loc[dead, "site"])

    @property
    def ok(self) -> bool:
        """Whether no level has collapsed."""
        return not self.collapsed_levels

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        said = []
        for row in self.levels.itertuples():
            if row.site in self.collapsed_levels:
                said.append(
                    f"Posterior collapse: {row.site} says nothing about x (divergence {row.kl:.3g} nats, "
                    f"{row.active} of {row.units} units active); warm the divergence up more slowly, or weaken the decoder."
                )
            elif row.active < row.units:
                idle = [u for u in self.collapsed if u in set(self.table.loc[self.table["site"] == row.site, "unit"])]
                named = ", ".join(idle[:6]) + (f" and {len(idle) - 6} more" if len(idle) > 6 else "")
                follow = "follows" if len(idle) == 1 else "follow"
                said.append(f"{row.active} of {row.units} units of {row.site} are active; {named} {follow} the prior.")
            else:
                said.append(f"All {row.units} units of {row.site} are active ({row.kl:.3g} nats).")
        return " ".join(said)

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(4).to_string(index=False)}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Divergence and activity of every unit, in decreasing order of divergence; collapsed units in red."""
        from ppl_dgm.plots import save

        by = "kl" if self.table["kl"].notna().all() else "activity"
        table = self.table.sort_values(by, ascending=False, kind="stable")
        count = len(table)
        figure = Figure(figsize=(max(5.0, min(0.28 * count + 1.5, 14.0)), 4.6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        colours = ["0.35" if active else "tab:red" for active in table["active"]]
        places = list(range(count))
        upper.bar(places, table["kl"], color=colours)
        if not table["kl"].notna().any():
            upper.text(0.5, 0.5, "no divergence unit by unit", ha="center", va="center", transform=upper.transAxes)
        upper.set_ylabel("KL, nats")
        lower.bar(places, table["activity"].clip(lower=1e-6), color=colours)
        lower.axhline(self.threshold, color="black", linewidth=0.8, linestyle="--")
        lower.set_yscale("log")
        lower.set_ylabel("variance of means")
        every = max(1, -(-count // 40))
        lower.set_xticks(places[::every], list(table["unit"])[::every], rotation=90, fontsize=8)
        upper.set_title(f"{self.active} of {count} units active", fontsize=10)
        if path is not None:
            save(figure, path)
        return figure
