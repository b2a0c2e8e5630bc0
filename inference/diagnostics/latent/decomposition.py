"""The evidence lower bound taken apart by the aggregated posterior: cross-entropy, entropy, mutual information, correlation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.inference.diagnostics.latent.codes import Codes, at_rest, encode, factors, rows_of, stratified, traces
from ppl_dgm.inference.diagnostics.latent.densities import PAIRS, pair_log_density
from ppl_dgm.program import Program

__all__ = ["Information", "Surgery", "level_information", "surgery"]

_SATURATED = 0.95  # share of log N from which the information is said to be limited by the rows alone


@dataclass(frozen=True)
class Surgery:
    """The parts of an evidence lower bound, averages over rows in nats.

    Attributes:
        table: a row per part: `value` and `stderr` (Monte Carlo, the rows being fixed; NaN where the part is a difference of
            others).
        rows: N, the rows whose posteriors make up q(z).
        three: whether the split with the total correlation exists, which needs one level whose posterior and prior factorise.
    """

    table: pd.DataFrame
    rows: int
    three: bool

    def __getitem__(self, part: str) -> float:
        return float(self.table.loc[part, "value"])

    @property
    def verdict(self) -> str:
        """The decomposition as one sentence, and what it says of prior and code."""
        v = self.table["value"]
        said = (
            f"ELBO {v['elbo']:.2f} = reconstruction {v['reconstruction']:.2f} - cross-entropy {v['cross-entropy']:.2f} "
            f"+ entropy {v['entropy']:.2f}; the divergence of {v['divergence']:.2f} nats is {v['information']:.2f} nats of "
            f"information on which row it is and {v['marginal divergence']:.2f} nats by which q(z) misses the prior"
        )
        if self.three:
            said += (
                f" ({v['total correlation']:.2f} between units, {v['unit divergence']:.2f} within units, "
                "which a better prior would save)"
            )
        else:
            said += " (which a better prior would save)"
        if v["information"] > _SATURATED * math.log(self.rows):
            said += (
                f". The information is near log N = {math.log(self.rows):.2f}: every row has a code of its own, and the split "
                "between the last two depends on the number of rows"
            )
        return said + "."

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(4).to_string()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """What stands between reconstruction and bound, as bars with two standard errors."""
        from ppl_dgm.plots import save

        table = self.table.drop(["elbo", "reconstruction"]).iloc[::-1]
        figure = Figure(figsize=(6.5, 0.36 * len(table) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        spread = 2 * table["stderr"].fillna(0)
        axes.barh(list(table.index), table["value"], xerr=spread, color="0.65", ecolor="tab:red")
        axes.axvline(0, color="black", linewidth=0.6)
        axes.set_xlabel("nats per row")
        axes.set_title(f"ELBO {self['elbo']:.2f}, reconstruction {self['reconstruction']:.2f}", fontsize=10)
        axes.margins(x=0.18)
        for place, (value, error) in enumerate(zip(table["value"], spread)):
            side = 1 if value >= 0 else -1
            axes.annotate(
                f"{value:.2f}", (value + side * error, place), xytext=(5 * side, 0), textcoords="offset points",
                ha="left" if value >= 0 else "right", va="center", fontsize=8,
            )  # fmt: skip
        if path is not None:
            save(figure, path)
        return figure


def surgery(program: Any, x: Tensor, *, draws: int = 4, rows: int = 1000, seed: int | None = 0) -> Surgery:
    """Take the evidence lower bound apart by the aggregated posterior q(z) = 1/N sum_n q(z | x_n).

        ELBO = E log p(x|z) - CE[q(z) || p(z)] + H[q(z|x)]                         (cross-entropy, entropy)
             = E log p(x|z) - I_q(n; z) - KL[q(z) || p(z)]                         (information, marginal divergence)
             = E log p(x|z) - I_q(n; z) - TC[q(z)] - sum_j KL[q(z_j) || p(z_j)]    (total correlation, unit divergence)

    All sites of a hierarchy together make up z. Where prior or posterior is conditional (a hierarchy) CE is that of all
    levels' densities, and the second line holds as it stands; the third is for one level whose prior factorises. I_q is at
    most log N, and KL[q(z) || p(z)] at least the divergence minus log N: both are statements about these N rows.

    Arguments:
        program: with an amortised guide.
        x: [N, D].
        draws: of the guide for each row.
        rows: N, at most; every draw is weighed against every row.
        seed: of draws and thinning.

    Returns:
        A `Surgery`, with Monte Carlo standard errors.

    Raises:
        TaskUnavailable: no guide, or one whose density is known at its own draws only.

    Source: M. Hoffman and M. Johnson (2016), ELBO surgery; R. Chen et al. (2018) for the third line; J. Tomczak (2024),
        5.4.1.
    """
    with at_rest(program, seed) as resting:
        codes = encode(resting, rows_of(x, rows), draws)
        return surgery_of(resting, codes)


def surgery_of(program: Program, codes: Codes) -> Surgery:
    """`surgery` of codes that are drawn already; inside `at_rest`."""
    log_q = sum(codes.log_q.values(), torch.zeros_like(codes.log_x))  # [draw, N]
    divergence = sum(codes.kl.values(), torch.zeros_like(codes.log_x))
    information = log_q - aggregated_log_density(program, codes)[-1]
    # what is known in closed form takes the place of its Monte Carlo terms, in such a way that the parts still add up
    parts = {
        "elbo": codes.log_x - divergence,
        "reconstruction": codes.log_x,
        "cross-entropy": divergence - log_q,
        "entropy": -log_q,
        "divergence": divergence,
        "information": information,
        "marginal divergence": divergence - information,
    }
    mixed = _unit_log_density(program, codes)
    if mixed is not None:
        correlation = log_q - information - mixed
        parts["total correlation"] = correlation
        parts["unit divergence"] = divergence - information - correlation
    table = pd.DataFrame({name: stratified(terms) for name, terms in parts.items()}, index=["value", "stderr"]).T
    return Surgery(table, len(codes), mixed is not None)


def aggregated_log_density(program: Program, codes: Codes) -> Tensor:
    """log 1/N sum_n q(z_1, ..., z_l | x_n) at every code, for the first l = 1, ..., L levels, [L, draw, N]; inside `at_rest`."""
    joined = codes.layout.joined(codes.draws)  # [draw, N, dim]
    pairs = pair_log_density(program, codes.layout, joined.flatten(0, 1), codes.x)
    mixed = pairs.cumsum(0).logsumexp(-1) - math.log(len(codes))
    return mixed.unflatten(1, joined.shape[:2])


def _unit_log_density(program: Program, codes: Codes) -> Tensor | None:
    """sum_j log 1/N sum_n q(z_j | x_n) at every code, [draw, N]; None where posterior or prior does not factorise."""
    if len(codes.layout.names) > 1:
        return None
    name = codes.layout.names[0]
    drawn, story = traces(program, codes.x)
    q, p = factors(drawn.nodes[name]["fn"]), factors(story.nodes[name]["fn"])
    value = codes.draws[name]  # [draw, N, d]
    if q is None or p is None or q.batch_shape != (len(codes), *codes.layout.shapes[name]):
        return None
    shape = codes.layout.shapes[name]
    flat = value.flatten(0, 1).unflatten(-1, shape) if shape else value.flatten(0, 1).squeeze(-1)
    mixed = torch.cat(
        [
            (q.log_prob(some.unsqueeze(1)).logsumexp(1) - math.log(len(codes))).reshape(len(some), -1).sum(1)
            for some in flat.split(max(1, PAIRS // (len(codes) * codes.layout.dim)))
        ]
    )
    return mixed.unflatten(0, value.shape[:2])


# -- hierarchies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Information:
    """How much each level of a hierarchy knows of the data, in nats.

    Attributes:
        table: a row per level in the guide's order: `information`, I_q(n; z_l | levels before), `stderr`, and `bound`, the level's
            divergence from its prior, which is no less where the model draws the levels in the guide's order.
        rows: N; the information of all levels together is at most log N.
    """

    table: pd.DataFrame
    rows: int

    @property
    def idle(self) -> list[str]:
        """Levels that add less than 0.05 nats to what the ones before them know, four standard errors allowed."""
        low = self.table["information"] + 4 * self.table["stderr"].fillna(0) < 0.05
        near_zero = self.table["information"].abs() < 0.05
        return list(self.table.index[low | near_zero])

    @property
    def verdict(self) -> str:
        """Which levels inform, and whether the rows limit what can be said."""
        total = float(self.table["information"].sum())
        parts = ", ".join(f"{name} {value:.2f}" for name, value in self.table["information"].items())
        said = f"Information on the row, level by level: {parts} nats ({total:.2f} together)"
        if self.idle:
            said += f"; {', '.join(self.idle)} {'add' if len(self.idle) > 1 else 'adds'} nothing to the levels before"
        if total > _SATURATED * math.log(self.rows):
            said += (
                f"; together that is log N = {math.log(self.rows):.2f}, the most that {self.rows} rows can show, so that levels "
                "after the first may be judged too low: read the divergences"
            )
        return said + "."

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(4).to_string()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Information and divergence of each level."""
        from ppl_dgm.plots import save

        figure = Figure(figsize=(max(4.5, 0.8 * len(self.table) + 2), 3.4), layout="constrained")
        axes = figure.add_subplot()
        places = torch.arange(len(self.table)).double().numpy()
        axes.bar(places - 0.2, self.table["bound"], 0.38, color="0.75", label="divergence from the prior")
        axes.bar(places + 0.2, self.table["information"], 0.38, color="black", label="information on the row")
        axes.axhline(math.log(self.rows), color="0.4", linestyle="--", linewidth=0.8, label="log N")
        axes.set_xticks(places, list(self.table.index))
        axes.set_ylabel("nats")
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
        if path is not None:
            save(figure, path)
        return figure


def level_information(program: Any, x: Tensor, *, draws: int = 2, rows: int = 400, seed: int | None = 0) -> Information:
    """What each level of a hierarchy adds to the information on the data, by the chain rule

        I_q(n; z_1, ..., z_L) = sum_l I_q(n; z_l | z_1, ..., z_(l-1)),

    with the levels in the order in which the guide draws them and n uniform over the rows: each term is the average of
    log q(z_l | x, before) minus the growth of log 1/N sum_n q(z_1, ..., z_l | x_n). A guide that is a Markov chain away from
    x has all its information in the first level. Where the model draws its levels in the same order, a level's
    expected divergence from its prior is its information plus how far its aggregated posterior is from the prior.

    Arguments:
        program: with an amortised guide of one or more levels.
        x: [N, D].
        draws: of the guide for each row.
        rows: N, at most; the guide runs for every pair of a draw and a row.
        seed: of draws and thinning.

    Returns:
        An `Information`.

    Source: J. Tomczak (2024), 5.5.3.5.
    """
    with at_rest(program, seed) as resting:
        return information_of(resting, encode(resting, rows_of(x, rows), draws))


def information_of(program: Program, codes: Codes) -> Information:
    """`level_information` of codes that are drawn already; inside `at_rest`."""
    mixed = aggregated_log_density(program, codes)  # [L, draw, N]
    rows = {}
    before = torch.zeros_like(mixed[0])
    for name, level in zip(codes.layout.names, mixed, strict=True):
        value, error = stratified(codes.log_q[name] - (level - before))
        rows[name] = {"information": value, "stderr": error, "bound": stratified(codes.kl[name])[0]}
        before = level
    return Information(pd.DataFrame(rows).T, len(codes))
