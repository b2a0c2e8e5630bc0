"""Report cards of a synthetic table: marginals, correlations, utility and privacy, each against what real rows would get."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import wasserstein_distance
from torch import Tensor

from ..errors import DataError, ProgramError
from ..randomness import seeded
from .associations import association

__all__ = ["ReportCards", "report_cards"]

_KINDS = "'number', 'binary' or 'categorical-V'"
_DISTINCT = 1e-9  # scaled distance below which two records are the same
_FAR = 4.0  # standard errors from which a difference is one


@dataclass(frozen=True)
class ReportCards:
    """Four report cards of a synthetic table, and the numbers that a table of real rows would get in its place.

    Attributes:
        marginals: a row per column: its `kind`, `distance` of the synthetic column from the real test rows, `baseline`, that of
            real training rows, and `noise`, the standard deviation that resampling gives the baseline. Numbers: Wasserstein
            distance in standard deviations; categories: total variation.
        correlations: {"real", "synthetic"}: association of every pair of columns, 0 to 1, [D, D].
        correlation_error, correlation_baseline: mean absolute difference of the associations from those of the test rows, of
            synthetic and of real training rows.
        utility: a row per target column: a model's score on real test rows, learned from `synthetic` rows, from `real` rows, and
            `chance`, of the best constant. Accuracy for categories, R^2 for numbers.
        nearest: {"synthetic", "held out"}: distance of every row to its nearest training record, scaled so that a whole
            category or a standard deviation counts 1.
        copies: the share of synthetic rows that are training records.
        copies_held_out: the same of test rows.
    """

    marginals: pd.DataFrame
    correlations: dict[str, Tensor] = field(repr=False)
    correlation_error: float
    correlation_baseline: float
    utility: pd.DataFrame
    nearest: dict[str, Tensor] = field(repr=False)
    copies: float
    copies_held_out: float

    # -- one number each ------------------------------------------------------------------------------------------

    @property
    def worst_columns(self) -> list[str]:
        """Columns farther from the real ones than chance explains, the farthest first."""
        over = self.marginals["distance"] - self.marginals["baseline"] - _FAR * self.marginals["noise"]
        return list(over[over > 0].sort_values(ascending=False).index)

    @property
    def privacy(self) -> float:
        """The median distance of synthetic rows to their nearest training record, over that of held-out rows.

        About 1 is right: lower, and the table repeats its training records; much higher, and it is unlike the data.
        """
        held_out = float(self.nearest["held out"].median())
        return float(self.nearest["synthetic"].median()) / max(held_out, 1e-12)

    @property
    def leaks(self) -> bool:
        """Whether synthetic rows lie nearer to training records than held-out rows do: the 5 % quantile of the latter holds
        more than 5 % of them by four standard errors, and at least 10 %; or more of them are copies."""
        near = float(self.nearest["held out"].quantile(0.05))
        share = float((self.nearest["synthetic"] < near).double().mean())
        count, other = len(self.nearest["synthetic"]), len(self.nearest["held out"])
        room = _FAR * math.sqrt(0.05 * 0.95 * (1 / count + 1 / other))
        rate = (self.copies * count + self.copies_held_out * other) / (count + other)
        copied = _FAR * math.sqrt(rate * (1 - rate) * (1 / count + 1 / other)) + 0.01
        return share > max(0.1, 0.05 + room) or self.copies - self.copies_held_out > copied

    @property
    def kept_utility(self) -> float:
        """The share of what real rows teach above chance that synthetic rows teach, averaged over targets that can be learned
        (NaN where none can)."""
        gain = self.utility["real"] - self.utility["chance"]
        able = gain > 0.02
        if not bool(able.any()):
            return math.nan
        return float(((self.utility["synthetic"] - self.utility["chance"]) / gain)[able].mean())

    @property
    def sentences(self) -> dict[str, str]:
        """{card: sentence}."""
        m, worst = self.marginals, self.worst_columns
        named = ", ".join(worst[:4]) + (f" and {len(worst) - 4} more" if len(worst) > 4 else "")
        found = {
            "marginals": f"Columns lie {m['distance'].mean():.3f} from the real ones on average (real rows: "
            f"{m['baseline'].mean():.3f})"
            + (f"; {named} stand{'s' * (len(worst) == 1)} out." if worst else "; none stands out."),
            "correlations": f"Associations of pairs differ by {self.correlation_error:.3f} on average (real rows: "
            f"{self.correlation_baseline:.3f}).",
        }
        kept = self.kept_utility
        if math.isnan(kept):
            found["utility"] = "No target can be learned from real rows, so that utility cannot be judged."
        else:
            found["utility"] = (
                f"Models learned from synthetic rows keep {kept:.0%} of what real rows teach about {len(self.utility)} "
                f"column{'s' * (len(self.utility) != 1)}."
            )
        near = f"{self.privacy:.2f} times as far from the nearest training record as held-out rows"
        copied = f"{self.copies:.1%} are copies of one (held out: {self.copies_held_out:.1%})"
        if self.leaks:
            found["privacy"] = f"Training records leak: synthetic rows lie {near}, and {copied}."
        else:
            found["privacy"] = f"No sign of copying: synthetic rows lie {near}, and {copied}."
        return found

    @property
    def verdict(self) -> str:
        """All four, one sentence each."""
        return " ".join(self.sentences.values())

    def __str__(self) -> str:
        return "\n".join(f"{name}: {sentence}" for name, sentence in self.sentences.items())

    def plot(self, path: str | Path | None = None) -> Figure:
        """Four panels, a card each."""
        from ..plots import save

        figure = Figure(figsize=(11.0, 8.0), layout="constrained")
        (first, second), (third, fourth) = figure.subplots(2, 2)
        self._plot_marginals(first)
        error = (self.correlations["synthetic"] - self.correlations["real"]).numpy()
        image = second.imshow(error, cmap="RdBu_r", vmin=-0.5, vmax=0.5)
        figure.colorbar(image, ax=second, label="synthetic minus real", shrink=0.85)
        second.set_title(f"correlations: off by {self.correlation_error:.3f}", fontsize=10)
        second.set_xlabel("column")
        second.set_ylabel("column")
        places = np.arange(len(self.utility))
        for shift, (name, colour) in enumerate((("chance", "0.85"), ("real", "0.5"), ("synthetic", "black"))):
            third.bar(places + 0.27 * (shift - 1), self.utility[name], 0.26, color=colour, label=name)
        third.set_xticks(places, list(self.utility.index), rotation=45 if len(places) > 3 else 0, fontsize=8)
        third.axhline(0, color="black", linewidth=0.6)
        low = min(0.0, float(self.utility[["chance", "real", "synthetic"]].to_numpy().min()))
        third.set_ylim(max(low, -0.5), 1.3)
        third.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
        third.set_ylabel("accuracy or R² on real rows")
        third.set_title("utility", fontsize=10)
        top = float(torch.cat(list(self.nearest.values())).quantile(0.99))
        bins = np.linspace(0, max(top, 1e-6), 40)
        fourth.hist(self.nearest["held out"].numpy(), bins, density=True, color="0.75", label="held out")
        fourth.hist(
            self.nearest["synthetic"].numpy(), bins, density=True, histtype="step", color="black", label="synthetic"
        )
        fourth.set_xlabel("distance to the nearest training record")
        fourth.set_yticks([])
        fourth.legend(frameon=False, fontsize=8)
        fourth.set_title(f"privacy: {self.privacy:.2f} times the held-out distance", fontsize=10)
        if path is not None:
            save(figure, path)
        return figure

    def _plot_marginals(self, axes: Any) -> None:
        shown = self.marginals.sort_values("distance", ascending=False).head(15).iloc[::-1]
        places = np.arange(len(shown))
        axes.barh(places, shown["distance"], color="black", height=0.7, label="synthetic")
        axes.barh(places, shown["baseline"], color="0.7", height=0.35, label="real")
        axes.set_yticks(places, [str(name)[:20] for name in shown.index], fontsize=8)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
        more = f"; the {len(shown)} farthest of {len(self.marginals)}" if len(self.marginals) > len(shown) else ""
        axes.set_title(f"marginals: distance from real columns{more}", fontsize=10)


def report_cards(
    real_train: Tensor,
    real_test: Tensor,
    synthetic: Tensor,
    columns: Sequence[str] | dict[str, str] | None = None,
    *,
    targets: Sequence[str] | None = None,
    rows: int = 2000,
    seed: int | None = 0,
) -> ReportCards:
    """Judge a synthetic table by four cards, since no one number tells: a table may have every marginal right and no
    correlation, or be perfect by repeating its training records.

    Each card has a baseline, the number that real rows would get: real training rows in the place of the synthetic ones (for
    marginals, correlations and utility) or held-out rows (for privacy).

    Arguments:
        real_train: [N, D], the rows that the generator has learned from.
        real_test: [T, D], rows that it has not seen; all is judged against them.
        synthetic: [S, D].
        columns: the kind of each column, by position or {name: kind}: "number", "binary" or "categorical-V" (also "gaussian",
            "poisson" and "bernoulli", as in `MixtureOfMixedColumns`). None takes columns of whole numbers from 0 below 20
            for categories.
        targets: columns that models learn to predict from all others; by default up to three categories, else numbers, those
            that vary most evenly.
        rows: of each table, at most (for nearest records, all training rows count).
        seed: of thinning and models.

    Returns:
        A `ReportCards`.

    Raises:
        DataError: the tables do not go together, or hold NaN.
        ProgramError: an unknown kind of column or target.

    Example:
        >>> import torch
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch...>
        >>> table = torch.randn(600, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
        >>> cards = report_cards(table[:200], table[200:400], table[400:], {"a": "number", "b": "number"})
        >>> cards.leaks
        False
    """
    tables = {"real_train": real_train, "real_test": real_test, "synthetic": synthetic}
    kinds = _column_kinds(columns, tables)
    for name, table in tables.items():
        if table.dim() != 2 or table.shape[1] != len(kinds) or len(table) < 10:
            raise DataError(
                f"report_cards: {name} has shape {tuple(table.shape)}, but a table of at least 10 rows and {len(kinds)} columns "
                "was expected."
            )
        if bool(table.double().isnan().any()):
            raise DataError(f"report_cards: {name} has missing entries; impute them or leave their rows out.")
    with seeded(seed):
        every = real_train.detach().double().cpu()
        train, test, made = (_thinned(t.detach().double().cpu(), rows) for t in tables.values())
        marginals = _marginals(train, test, made, kinds)
        real = association(test, kinds)
        different = [(association(t, kinds) - real)[_pairs(len(kinds))].abs().mean() for t in (made, train)]
        chosen = _targets(test, kinds, targets)
        # as many rows of both kinds, or the larger table would teach more
        count = min(len(train), len(made))
        utility = pd.DataFrame({name: _taught(train[:count], made[:count], test, kinds, name) for name in chosen}).T
        scale = _scales(every, kinds)
        nearest = {name: _nearest(t, every, scale, kinds) for name, t in (("synthetic", made), ("held out", test))}
    copies = [float((nearest[name] < _DISTINCT).double().mean()) for name in ("synthetic", "held out")]
    associations = {"real": real, "synthetic": association(made, kinds)}
    error, baseline = (float(v) for v in different)
    return ReportCards(marginals, associations, error, baseline, utility, nearest, copies[0], copies[1])


# -- columns ----------------------------------------------------------------------------------------------------------


def _column_kinds(columns: Any, tables: dict[str, Tensor]) -> dict[str, int]:
    """{name: number of categories, 0 for numbers}."""
    first = tables["real_train"]
    if columns is None:
        found = {}
        for d in range(first.shape[1]):
            column = torch.cat([t[:, d].double().cpu() for t in tables.values()])
            whole = bool(((column == column.round()) & (column >= 0) & (column < 20)).all())
            found[str(d)] = int(column.max()) + 1 if whole else 0
        return found
    named = columns if isinstance(columns, dict) else {str(d): kind for d, kind in enumerate(columns)}
    kinds = {}
    for d, (name, kind) in enumerate(named.items()):
        match = re.fullmatch(r"categorical-(\d+)", kind)
        if kind in ("number", "gaussian", "poisson"):
            kinds[name] = 0
        elif kind in ("binary", "bernoulli"):
            kinds[name] = 2
        elif match and int(match[1]) > 0:
            kinds[name] = int(match[1])
        else:
            raise ProgramError(f"report_cards: column {name!r} is of kind {kind!r}; choose {_KINDS}.")
        for table_name, table in tables.items():
            if kinds[name] and d < table.shape[1]:
                column = table[:, d].double()
                if not bool(((column == column.round()) & (column >= 0) & (column < kinds[name])).all()):
                    raise DataError(
                        f"report_cards: column {name!r} of {table_name} holds values that are not categories 0 to {kinds[name] - 1}."
                    )
    return kinds


def _thinned(table: Tensor, rows: int) -> Tensor:
    return table[torch.randperm(len(table))[:rows]]


def _pairs(count: int) -> tuple[Tensor, Tensor]:
    index = torch.triu_indices(count, count, 1)
    return index[0], index[1]


def _column_distance(a: Tensor, b: Tensor, values: int, scale: float) -> float:
    if values:
        first, second = (torch.bincount(v.long(), minlength=values).double() / len(v) for v in (a, b))
        return float((first - second).abs().sum() / 2)
    return float(wasserstein_distance(a.numpy(), b.numpy())) / scale


def _marginals(train: Tensor, test: Tensor, made: Tensor, kinds: dict[str, int]) -> pd.DataFrame:
    rows = {}
    for d, (name, values) in enumerate(kinds.items()):
        scale = max(float(test[:, d].std()), 1e-12)
        real, other = test[:, d], train[:, d]
        pooled = torch.cat([real, other])
        drawn = [  # two samples of one column: what chance alone gives
            _column_distance(pooled[torch.randint(len(pooled), (len(real),))],
                             pooled[torch.randint(len(pooled), (len(made),))], values, scale)
            for _ in range(20)
        ]  # fmt: skip
        rows[name] = {
            "kind": f"categorical-{values}" if values else "number",
            "distance": _column_distance(made[:, d], real, values, scale),
            "baseline": float(np.mean([*drawn, _column_distance(other, real, values, scale)])),
            "noise": float(np.std(drawn)),
        }
    return pd.DataFrame(rows).T.astype({"distance": float, "baseline": float, "noise": float})


# -- utility --------------------------------------------------------------------------------------------------------------


def _targets(test: Tensor, kinds: dict[str, int], targets: Sequence[str] | None) -> list[str]:
    if targets is not None:
        unknown = [name for name in targets if name not in kinds]
        if unknown or not targets:
            raise ProgramError(f"report_cards: there is no column {unknown[:1]}; the columns are {', '.join(kinds)}.")
        return list(targets)
    evenness = {}
    for d, (name, values) in enumerate(kinds.items()):
        if values > 1:
            shares = torch.bincount(test[:, d].long(), minlength=values).double() / len(test)
            evenness[name] = float(-torch.xlogy(shares, shares).sum() / math.log(values))
    if evenness:
        return sorted(evenness, key=lambda name: -evenness[name])[:3]
    return list(kinds)[:3]


def _taught(train: Tensor, made: Tensor, test: Tensor, kinds: dict[str, int], target: str) -> dict[str, float]:
    """Scores on real test rows of one and the same model learned from real and from synthetic rows."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    place, values = list(kinds).index(target), kinds[target]
    truth = test[:, place].numpy()
    found = {}
    for name, table in (("real", train), ("synthetic", made)):
        forest = (RandomForestClassifier if values else RandomForestRegressor)(
            n_estimators=50, min_samples_leaf=3, random_state=0, n_jobs=1
        )
        forest.fit(_design(table, kinds, place), table[:, place].numpy())
        guess = forest.predict(_design(test, kinds, place))
        found[name] = float((guess == truth).mean()) if values else _explained(truth, guess)
    if values:
        common = np.bincount(train[:, place].long().numpy()).argmax()
        found["chance"] = float((truth == common).mean())
    else:
        found["chance"] = 0.0
    return found


def _explained(truth: np.ndarray, guess: np.ndarray) -> float:
    return 1.0 - float(np.square(truth - guess).sum() / max(np.square(truth - truth.mean()).sum(), 1e-12))


def _design(table: Tensor, kinds: dict[str, int], leave_out: int) -> np.ndarray:
    parts = []
    for d, values in enumerate(kinds.values()):
        if d != leave_out:
            column = table[:, d]
            parts.append(torch.nn.functional.one_hot(column.long(), values).double() if values > 2 else column[:, None])
    return torch.cat(parts, 1).numpy()


# -- privacy ----------------------------------------------------------------------------------------------------------------


def _scales(train: Tensor, kinds: dict[str, int]) -> Tensor:
    spread = train.std(0).clamp_min(1e-12)
    return torch.where(torch.tensor([bool(v) for v in kinds.values()]), torch.ones_like(spread), spread)


def _nearest(table: Tensor, train: Tensor, scale: Tensor, kinds: dict[str, int]) -> Tensor:
    """Distance of each row to its nearest training record: sum over columns of |difference| / scale, at most 1 for categories,
    divided by the number of columns (Gower's, with standard deviations for ranges)."""
    category = torch.tensor([bool(v) for v in kinds.values()])
    found = []
    numbers, classes = (train / scale)[:, ~category], train[:, category]
    for some in table.split(max(1, 2**22 // max(1, len(train) * max(1, int(category.sum()))))):
        distance = torch.cdist((some / scale)[:, ~category], numbers, p=1.0)
        distance = distance + (some[:, None, category] != classes).double().sum(-1)
        found.append(distance.min(1).values)
    return torch.cat(found) / len(kinds)
