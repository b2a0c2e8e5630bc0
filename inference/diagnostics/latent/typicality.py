"""Out-of-distribution tests: low density, and density unlike that of data, which is not the same."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Score
from ppl_dgm.tasks import score

__all__ = ["Novelty", "novelty"]

_SHOWN = 0.5  # share of a set's batches that must be flagged before a sentence says that a test sees it


def novelty(
    program: Any,
    train: Tensor,
    valid: Tensor,
    others: dict[str, Tensor],
    *,
    batch: int = 1,
    level: float = 0.05,
    bootstrap: int = 5000,
    method: Any = None,
    seed: int | None = 0,
) -> "Novelty":
    """Which rows are unlike the training data: by their density alone, and by whether their density is typical.

        low density:  mean_m log p(x_m) below the `level` quantile of batches of held-out rows
        typicality:   | mean_m -log p(x_m) - H |  above its 1 - `level` quantile on such batches,  H = mean of -log p over train

    Rows of high density may be no less foreign than rows of low density: where the data are many-dimensional hardly any of
    them is near the mode. The second test is two-sided and sees both. Both thresholds come from `bootstrap` batches drawn
    with replacement from held-out rows, so that each flags `level` of the data's own batches.

    Arguments:
        program: anything that `score` can score.
        train: [N, D], the rows that it has learned from.
        valid: [V, D], held-out rows of the same kind.
        others: {name: [n, D]}, what to judge; include held-out test rows under a name of their own.
        batch: rows that are judged together, M; one by one is hardest.
        level: false alarms on data.
        bootstrap: batches for the thresholds.
        method: of scoring, as in `score`; one and the same for all sets, since another one has another bias.
        seed: of scores and batches.

    Returns:
        A `Novelty`.

    Raises:
        DataError: too few rows for a batch.

    Source: E. Nalisnick, A. Matsukawa, Y. Teh and B. Lakshminarayanan (2019), Detecting out-of-distribution inputs to deep
        generative models using typicality.
    """
    if batch < 1 or not 0 < level < 1:
        raise ProgramError(f"batch must be at least 1 and level in (0, 1), but they are {batch!r} and {level!r}.")
    for name, rows in {"valid": valid, **others}.items():
        if len(rows) < max(batch, 2):
            raise DataError(f"{name} has {len(rows)} rows, but a batch has {batch}; give more rows or a smaller batch.")
    scorer = _scorer(program, method, seed)
    learned, known = scorer(train), scorer(valid)
    entropy = -float(learned.value.double().mean())
    held_out = known.value.double().cpu()
    with seeded(seed):
        batches = held_out[torch.randint(len(held_out), (bootstrap, batch))].mean(1)
    lowest = float(batches.quantile(level))
    widest = float((-batches - entropy).abs().quantile(1 - level))
    values = {name: scorer(other).value.double().cpu() for name, other in others.items()}
    found: list[list[Any]] = []
    for name, value in values.items():
        means = value[: len(value) - len(value) % batch].unflatten(0, (-1, batch)).mean(1)
        low = (means < lowest).double()
        strange = ((-means - entropy).abs() > widest).double()
        found.append(
            [name, len(value), float(value.mean()), float(low.mean()), float(strange.mean()),
             _auroc(held_out, value, lambda v: -v), _auroc(held_out, value, lambda v: (-v - entropy).abs())]
        )  # fmt: skip
    columns = ["set", "rows", "log p", "low density", "atypical", "auroc of density", "auroc of typicality"]
    table = pd.DataFrame(found, columns=columns).set_index("set")
    return Novelty(table, entropy, lowest, widest, batch, level, known.kind, held_out, values)


def _scorer(program: Any, method: Any, seed: int | None) -> Callable[[Tensor], Score]:
    return lambda rows: score(program, rows, method=method, seed=seed)


def _auroc(inside: Tensor, outside: Tensor, strangeness: Callable[[Tensor], Tensor]) -> float:
    """The probability that a foreign row looks stranger than one of the data, ties counted half."""
    a, b = strangeness(inside).sort().values, strangeness(outside)
    below, upto = torch.searchsorted(a, b), torch.searchsorted(a, b, right=True)
    return float((below + upto).double().mean() / (2 * len(a)))


@dataclass(frozen=True)
class Novelty:
    """Two out-of-distribution tests on some sets of rows.

    Attributes:
        table: a row per set: mean `log p` in nats, the share of batches that each test flags, and the area under each test's
            ROC curve, row by row (1/2: no better than chance).
        entropy: H, the mean of -log p over the training rows.
        lowest: mean log p of a batch, below which its density is low.
        widest: distance from H above which a batch is atypical.
        batch, level: rows judged together; false alarms on data.
        kind: of the scores.
        held_out: [V] scores of held-out rows.
        values: {set: [n]} scores.
    """

    table: pd.DataFrame
    entropy: float
    lowest: float
    widest: float
    batch: int
    level: float
    kind: str
    held_out: Tensor = field(repr=False)
    values: dict[str, Tensor] = field(repr=False)

    @property
    def verdict(self) -> str:
        """Which test sees which set."""
        said = []
        for name, row in self.table.iterrows():
            density, typical = row["low density"] > _SHOWN, row["atypical"] > _SHOWN
            shares = f"{row['low density']:.0%} by low density, {row['atypical']:.0%} by typicality"
            if density and typical:
                said.append(f"{name} is flagged by both tests ({shares}).")
            elif typical:
                where = "above" if row["log p"] > -self.entropy else "near"
                said.append(
                    f"{name} is flagged by typicality alone ({shares}): its density lies {where} that of the data, so that a "
                    "test of the likelihood misses it."
                )
            elif density:
                said.append(f"{name} is flagged by its density alone ({shares}).")
            else:
                said.append(f"{name} passes for data ({shares}; {self.level:.0%} are false alarms).")
        return " ".join(said)

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(3).to_string()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Log densities of every set over those of held-out rows, with both tests' thresholds for single rows or batches."""
        from ppl_dgm.plots import save

        sets = list(self.values.items())
        figure = Figure(figsize=(7.0, 1.5 * len(sets) + 1.1), layout="constrained")
        axes = figure.subplots(len(sets), 1, sharex=True, squeeze=False)[:, 0]
        every = torch.cat([self.held_out, *self.values.values()])
        low, high = float(every.quantile(0.005)), float(every.quantile(0.995))
        room = 0.05 * (high - low) + 1e-9
        bins = torch.linspace(low - room, high + room, 60).numpy()
        for part, (name, value) in zip(axes, sets):
            part.hist(self.held_out.clamp(low, high).numpy(), bins, density=True, color="0.8", label="held out")
            part.hist(
                value.clamp(low, high).numpy(), bins, density=True, histtype="step", color="black", label="this set"
            )
            part.axvline(self.lowest, color="tab:red", linestyle="--", linewidth=1, label="low density below")
            ends = (-self.entropy - self.widest, -self.entropy + self.widest)
            part.axvspan(*ends, color="tab:blue", alpha=0.12, linewidth=0, label="typical")
            row = self.table.loc[name]
            part.set_title(
                f"{name}: {row['low density']:.0%} of low density, {row['atypical']:.0%} atypical",
                fontsize=9,
                loc="left",
            )
            part.set_yticks([])
        of_batch = "" if self.batch == 1 else f" (thresholds are for means of {self.batch})"
        axes[-1].set_xlabel(f"log p(x), nats{of_batch}")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
        if path is not None:
            save(figure, path)
        return figure
