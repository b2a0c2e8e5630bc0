"""Checks of what a user hands in: every refusal names the entry, what was expected there and the remedy."""

from typing import Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ..errors import DataError
from .dataset import Dataset

__all__ = ["check_observations", "describe_support"]

CHUNK = 2**22  # entries checked at a time, so that the checks need little memory beside the data


@overload
def check_observations(
    x: Dataset,
    *,
    observed: int | None = ...,
    support: Constraint | None = ...,
    site: str = ...,
    columns: list[str] | None = ...,
    shape: tuple[int, ...] | None = ...,
) -> Dataset: ...


@overload
def check_observations(
    x: Any,
    *,
    observed: int | None = ...,
    support: Constraint | None = ...,
    site: str = ...,
    columns: list[str] | None = ...,
    shape: tuple[int, ...] | None = ...,
) -> Tensor: ...


def check_observations(
    x: Any,
    *,
    observed: int | None = None,
    support: Constraint | None = None,
    site: str = "x",
    columns: list[str] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor | Dataset:
    """Turn observations into a tensor [n, D] and check that each entry is one that the program can observe.

    Arguments:
        x: a Tensor, NumPy array, nested list or DataFrame, [n, D]; or a whole `Dataset`, to check each split.
        observed: D, the number of columns that the program observes; None accepts any.
        support: where every entry must lie, or every row where the constraint is on rows (such as `simplex`).
        site: the site that will observe x, for the messages.
        columns: the columns' names, for the messages; a DataFrame and a Dataset bring their own.
        shape: the shape of one example where the columns are pixels, for the messages; a Dataset brings its
            own.

    Returns:
        x as a tensor, of its own dtype and on its own device (booleans become int64, a list becomes float32
        or int64); the same Dataset where a Dataset is given.

    Raises:
        DataError: x is not numeric, is empty or has another shape, or an entry is missing, infinite or
            outside the support. Rows, columns and pixels count from 0, as in indexing.

    >>> check_observations([[0, 3], [1, 17]], support=constraints.boolean)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ppl_dgm.errors.DataError: x[0, 1] is 3, expected 0 or 1 (2 of 4 entries do not fit); turn the data ...
    """
    if isinstance(x, Dataset):
        return _check_dataset(x, observed, support, site)
    if columns is None and _is_frame(x):
        columns = [str(name) for name in getattr(x, "columns", [])] or None
    x = _to_tensor(x, site)
    place = _Place(site, columns, shape)
    _check_shape(x, observed, site)
    _check_finite(x, place)
    # A constraint on matrices, or one that depends on other sites, says nothing of a row by itself.
    if support is not None and not constraints.is_dependent(support) and support.event_dim <= 1:
        _check_support(x, support, place)
    return x


def describe_support(support: Constraint, column: int | None = None) -> str:
    """A support in words, as in "an integer from 0 to 16".

    Arguments:
        support: a constraint of torch or Pyro.
        column: which column's bounds to print where they differ between columns.
    """
    support = _entrywise(support)
    if _is_by_column(support) and column is not None:
        support = support.cseq[column]  # type: ignore[attr-defined]

    def bound(name: str) -> str:
        values = torch.as_tensor(getattr(support, name)).flatten()
        if bool((values == values[0]).all()):
            return _number(values[0])
        if column is not None:
            return _number(values[column % len(values)])
        return f"{_number(values.min())}..{_number(values.max())} (by column)"

    name = type(support).__name__.lstrip("_")
    match name:
        case "Boolean":
            return "0 or 1"
        case "IntegerInterval":
            return f"an integer from {bound('lower_bound')} to {bound('upper_bound')}"
        case "IntegerGreaterThan":
            return f"an integer of at least {bound('lower_bound')}"
        case "IntegerLessThan":
            return f"an integer of at most {bound('upper_bound')}"
        case "Integer":
            return "an integer"
        case "Real":
            return "a real number"
        case "GreaterThan":
            return f"a number above {bound('lower_bound')}"
        case "GreaterThanEq":
            return f"a number of at least {bound('lower_bound')}"
        case "LessThan":
            return f"a number below {bound('upper_bound')}"
        case "Interval":
            return f"a number from {bound('lower_bound')} to {bound('upper_bound')}"
        case "HalfOpenInterval":
            return f"a number from {bound('lower_bound')} up to, not including, {bound('upper_bound')}"
        case "Sphere":
            return "a row of length one"
        case "Simplex":
            return "non-negative entries that sum to one"
        case "OneHot":
            return "a single 1 among zeros"
    return repr(support)


class _Place:
    """Names an entry: `x[3, 19] (pixel (2, 3))`."""

    def __init__(self, site: str, columns: list[str] | None, shape: tuple[int, ...] | None) -> None:
        self.site, self.columns, self.shape = site, columns, shape

    def __call__(self, row: int, column: int | None) -> str:
        if column is None:
            return f"{self.site}[{row}]"
        entry = f"{self.site}[{row}, {column}]"
        if self.columns is not None and column < len(self.columns):
            return f"{entry} (column {self.columns[column]!r})"
        if self.shape is not None and len(self.shape) > 1 and column < torch.Size(self.shape).numel():
            pixel = tuple(int(index) for index in np.unravel_index(column, self.shape))
            return f"{entry} (pixel {pixel})"
        return entry


def _check_dataset(dataset: Dataset, observed: int | None, support: Constraint | None, site: str) -> Dataset:
    for split, x in dataset.splits.items():
        if split != "train" and len(x) == 0:
            continue
        try:
            check_observations(
                x,
                observed=observed,
                support=support,
                site=f"{dataset.name}.{split}",
                columns=dataset.columns,
                shape=dataset.shape,
            )
        except DataError as error:
            raise DataError(f"site {site!r} cannot observe the {split} split: {error}") from None
    return dataset


def _check_shape(x: Tensor, observed: int | None, site: str) -> None:
    found = f"{site} has shape {tuple(x.shape)}"
    want = f"[examples, {'columns' if observed is None else observed}]"
    if x.dim() == 0:
        raise DataError(f"{found}, a single number, expected {want}; put it in a matrix.")
    if x.dim() == 1:
        if observed == 1:
            remedy = f"for {len(x)} examples of one column pass {site}.unsqueeze(1)"
        elif observed in (None, len(x)):
            remedy = f"for one example pass {site}.unsqueeze(0)"
        else:
            remedy = f"pass a matrix whose rows are examples of {observed} entries"
        raise DataError(f"{found}, expected {want}; {remedy}.")
    if x.numel() == 0:
        raise DataError(f"{found}, which is empty, expected {want} with at least one example; check how it was made.")
    if x.dim() > 2:
        width = x[0].numel()
        fits = observed in (None, width)
        remedy = f"pass {site}.flatten(1)" if fits else f"an example has {width} entries, so it is for another program"
        raise DataError(f"{found}, expected {want}; {remedy}.")
    if observed is not None and x.shape[1] != observed:
        if len(x) == observed:
            remedy = f"examples are rows: pass {site}.T"
        else:
            remedy = f"choose {observed} columns, or build the program with observed={x.shape[1]}"
        raise DataError(f"{found}, that is {x.shape[1]} columns, expected {want}; {remedy}.")


def _check_finite(x: Tensor, place: _Place) -> None:
    if not x.is_floating_point():
        return
    bad = ~torch.isfinite(x.detach())
    count = int(bad.sum())
    if count == 0:
        return
    row, column = (int(index) for index in bad.nonzero()[0])
    value = x[row, column]
    kind = "missing (NaN)" if value.isnan() else f"infinite ({_number(value)})"
    share = _share(count, x.numel(), "entries are not")
    raise DataError(
        f"{place(row, column)} is {kind}, expected a finite number ({share} finite); "
        "fill such entries in or leave their rows out."
    )


def _check_support(x: Tensor, support: Constraint, place: _Place) -> None:
    entrywise = support.event_dim == 0 or _entrywise(support) is not support or _is_by_column(support)
    support = _entrywise(support)
    first: tuple[int, int | None] | None = None
    count = 0
    for start in range(0, len(x), step := max(1, CHUNK // x.shape[1])):
        part = x[start : start + step].detach()
        part = part if part.is_floating_point() else part.long()  # constraints on small integers can overflow
        bad = ~support.check(part).to(torch.bool)
        if first is None and bool(bad.any()):
            index = bad.nonzero()[0].tolist()
            first = (start + index[0], index[1] if entrywise else None)
        count += int(bad.sum())
    if first is None:
        return
    row, column = first
    found = (
        _number(x[row, column])
        if column is not None
        else f"[{', '.join(_number(v) for v in x[row][:6])}" + (", ...]" if x.shape[1] > 6 else "]")
    )
    if column is not None and _is_by_column(support):
        support, x = support.cseq[column], x[:, column : column + 1]  # type: ignore[attr-defined]
    total, noun = (x.numel(), "entries do not") if entrywise else (len(x), "rows do not")
    raise DataError(
        f"{place(row, column)} is {found}, expected {describe_support(support, column)} "
        f"({_share(count, total, noun)} fit); {_remedy(x, support)}."
    )


def _is_by_column(support: Constraint) -> bool:
    """Whether it is a constraint for each column, `constraints.stack` along the last dimension."""
    return isinstance(support, constraints.stack) and support.dim == -1


def _remedy(x: Tensor, support: Constraint) -> str:
    """What to do about data outside the support, from the data's own range."""
    low, high = float(x.min()), float(x.max())
    whole = not x.is_floating_point() or bool((x == x.round()).all())
    name = type(support).__name__.lstrip("_")
    if name in ("Boolean", "IntegerInterval"):
        bounds = (0, 1) if name == "Boolean" else (support.lower_bound, support.upper_bound)  # type: ignore[attr-defined]
        bottom, top = (int(torch.as_tensor(bound).max()) for bound in bounds)
        if not whole and low >= 0 and high <= 1 and top > 1:
            return f"the data look rescaled to [0, 1]: pass the integers themselves, (x * {top}).round()"
        if not whole:
            return "round the data, or choose a program for real numbers"
        if low < bottom:
            return f"shift the data so that the smallest entry is {bottom} (it is {_number(low)})"
        if name == "Boolean":
            return "turn the data into zeros and ones (x > threshold), or choose a categorical program"
        return f"give the program {_number(high + 1)} values (values={_number(high + 1)}) or rescale the data"
    if name.startswith("Integer"):
        return "count from the bound on in whole numbers, or choose a program for real numbers"
    if name in ("Interval", "HalfOpenInterval", "GreaterThan", "GreaterThanEq", "LessThan"):
        found = f"{_number(low)} to {_number(high)}"
        return f"rescale the data (they range from {found}) or choose a program for real numbers"
    return "transform the data, or choose a program with another support"


def _to_tensor(x: Any, site: str) -> Tensor:
    """x as a strided numeric tensor; memory is shared where torch can."""
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_quantized:
            raise DataError(f"{site} is a sparse or quantised tensor, expected a dense one; pass {site}.to_dense().")
        tensor = x
    elif _is_frame(x):
        tensor = _from_frame(x, site)
    elif isinstance(x, np.ndarray):
        tensor = _from_array(x, site)
    elif isinstance(x, (list, tuple)):
        tensor = _from_list(x, site)
    elif hasattr(x, "toarray"):
        raise DataError(f"{site} is a sparse {type(x).__name__}, expected a dense matrix; pass {site}.toarray().")
    elif hasattr(x, "__array__"):
        tensor = _from_array(np.asarray(x), site)
    else:
        raise DataError(
            f"{site} is a {type(x).__name__}, expected a Tensor, NumPy array, list, DataFrame or Dataset; convert it."
        )
    if tensor.is_complex():
        raise DataError(f"{site} is complex ({tensor.dtype}), expected real numbers; pass torch.view_as_real({site}).")
    return tensor.long() if tensor.dtype == torch.bool else tensor


def _from_array(x: np.ndarray, site: str) -> Tensor:
    if x.dtype.names is not None:
        raise DataError(
            f"{site} is a record array with fields {list(x.dtype.names)}, expected a plain matrix; stack them."
        )
    if x.dtype.kind not in "biufc":
        cell = f", such as {next(iter(x.flat))!r}" if x.size else ""
        raise DataError(
            f"{site} holds {'objects' if x.dtype.kind == 'O' else 'text or dates'} (dtype {x.dtype}{cell}), "
            "expected numbers; encode categories as integers 0, 1, ... and convert with .astype(float)."
        )
    if x.dtype.kind == "u" and x.dtype.itemsize > 1:
        x = x.astype(np.int64)  # torch computes with no unsigned integers but uint8
    elif x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    x = x.astype(x.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(x if x.flags.writeable and min(x.strides, default=0) >= 0 else x.copy())


def _from_frame(x: Any, site: str) -> Tensor:
    """A DataFrame or Series of numbers; nullable columns' missing values become NaN."""
    named = list(zip(x.columns, x.dtypes, strict=True)) if hasattr(x, "columns") else [(x.name, x.dtype)]
    for name, dtype in named:
        if getattr(dtype, "kind", "O") not in "biuf":
            raise DataError(
                f"{site}: column {str(name)!r} holds {dtype}, expected numbers; "
                "encode its categories as integers 0, 1, ... or leave it out."
            )
    if bool(x.isna().to_numpy().any()):
        return _from_array(x.to_numpy(dtype="float64", na_value=np.nan), site)
    array = x.to_numpy()
    if array.dtype.kind == "O":  # nullable columns, or booleans beside numbers
        array = array.astype(np.int64 if all(dtype.kind in "biu" for _, dtype in named) else np.float64)
    return _from_array(array, site)


def _from_list(x: list | tuple, site: str) -> Tensor:
    if len(x) and all(isinstance(row, Tensor) for row in x):
        shapes = {tuple(row.shape) for row in x}
        if len(shapes) > 1:
            raise DataError(
                f"{site} is a list of tensors of shapes {sorted(shapes)}, expected one shape; pad or cut them."
            )
        return torch.stack(list(x))
    widths = [len(row) if hasattr(row, "__len__") and not isinstance(row, str) else -1 for row in x]
    for row, width in enumerate(widths):
        if width != widths[0]:
            raise DataError(
                f"{site}[{row}] has {max(width, 0)} entries, but {site}[0] has {max(widths[0], 0)}; "
                "give every row one entry for each column."
            )
    try:
        array = np.array(x)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{site} is not a matrix of numbers ({error}); give rows of equal length.") from None
    if array.dtype.kind == "O":
        array = np.array([[np.nan if cell is None else cell for cell in row] for row in x]) if widths[0] > 0 else array
    tensor = _from_array(array, site)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def _is_frame(x: Any) -> bool:
    """A pandas DataFrame or Series, recognised without importing pandas."""
    return type(x).__module__.partition(".")[0] == "pandas" and hasattr(x, "isna")


def _entrywise(support: Constraint) -> Constraint:
    """The constraint on one entry: `independent(c, k)` says the same of each entry as c."""
    while isinstance(support, constraints.independent) and support.base_constraint.event_dim == 0:
        support = support.base_constraint
    return support


def _number(value: Tensor | float) -> str:
    number = float(value)
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else f"{number:.6g}"


def _share(count: int, total: int, verb: str) -> str:
    """As in "3 of 12 entries do not"; the verb is in the singular where it is one."""
    if count == 1:
        verb = verb.replace("are not", "is not").replace("do not", "does not")
    return f"{count} of {total} {verb}"
