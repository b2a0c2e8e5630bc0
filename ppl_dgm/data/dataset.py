"""Dataset: three splits of observations, and what is known about them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import DataError

__all__ = ["Dataset"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Observations in three splits; a row of each tensor is one example.

    Arguments:
        name: what to call the data in messages and tables.
        train: [n, D]; categories are int64, measurements floating point.
        valid: [n, D], for every choice made while learning; no rows where there is no such split.
        test: [n, D], to be read once.
        values: number of categories of an entry (entries are 0 to values - 1); None for measurements.
        shape: the shape of one example where the columns are pixels, such as (8, 8); its product is D.
        columns: the D columns' names, where they have names.
        labels: {"train", "valid", "test"}: [n] int64, for plots; no program is shown them.
        source: where the data come from, to cite.
        licence: under which terms.
        entropy: differential entropy in nats of the density that generated the data (toys only): no density
            scores higher on average than -entropy.
        log_density: that density's logarithm, [n, D] -> [n] in nats (toys only).

    Raises:
        DataError: the splits are not matrices of one width, or names, shape or labels do not fit them.
    """

    name: str
    train: Tensor
    valid: Tensor
    test: Tensor
    values: int | None = None
    shape: tuple[int, ...] | None = None
    columns: list[str] | None = None
    labels: dict[str, Tensor] | None = None
    source: str = ""
    licence: str = ""
    entropy: float | None = None
    log_density: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for split, x in self.splits.items():
            if x.dim() != 2:
                raise DataError(
                    f"{self.name}.{split} has shape {tuple(x.shape)}, but a split is a matrix [examples, "
                    "columns]; flatten each example into a row."
                )
            if x.shape[1] != self.observed:
                raise DataError(
                    f"{self.name}.{split} has {x.shape[1]} columns, but train has {self.observed}; "
                    "give every split the same columns."
                )
        if self.columns is not None and len(self.columns) != self.observed:
            raise DataError(f"{self.name} has {self.observed} columns, but {len(self.columns)} names; name each once.")
        if self.shape is not None and torch.Size(self.shape).numel() != self.observed:
            raise DataError(
                f"{self.name} has {self.observed} columns, which are not the pixels of an example of shape "
                f"{self.shape}; correct the shape."
            )
        for split, labels in (self.labels or {}).items():
            if split not in self.splits or len(labels) != len(self.splits[split]):
                raise DataError(f"{self.name}.labels[{split!r}] does not fit a split; give one label for each row.")

    @property
    def observed(self) -> int:
        """D, the number of columns."""
        return self.train.shape[1]

    @property
    def splits(self) -> dict[str, Tensor]:
        """The three splits by name: {"train", "valid", "test"}."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def to(self, device: torch.device | str) -> "Dataset":
        """The same data on another device."""
        labels = None if self.labels is None else {split: y.to(device) for split, y in self.labels.items()}
        train, valid, test = (x.to(device) for x in self.splits.values())
        return replace(self, train=train, valid=valid, test=test, labels=labels)

    def __repr__(self) -> str:
        sizes = "/".join(str(len(x)) for x in self.splits.values())
        kind = f"{self.values} values" if self.values is not None else str(self.train.dtype).removeprefix("torch.")
        pixels = f", pixels {self.shape}" if self.shape is not None else ""
        return f"Dataset({self.name}: {sizes} x {self.observed}, {kind}{pixels})"
