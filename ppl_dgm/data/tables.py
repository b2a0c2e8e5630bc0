"""A user's own table: .csv, .npy, .npz or .parquet, read into a Dataset; samples written back."""

import csv
import io
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..files import write_atomically
from .checks import check_observations
from .dataset import Dataset

__all__ = ["read", "write"]

SUFFIXES = (".csv", ".npy", ".npz", ".parquet")
SPLITS = ("train", "valid", "test")
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?", "-"})
CATEGORIES = 256  # whole numbers from 0 below this are taken for categories
DAMAGED = (ValueError, OSError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)


def read(
    path: str | os.PathLike,
    columns: Sequence[str | int] | None = None,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    shuffle: bool = True,
    *,
    header: bool | None = None,
    delimiter: str = ",",
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Read a table of numbers whose rows are examples, and split it.

    Arguments:
        path: a file
            - .csv: one example a line; a first line of text alone is taken for the columns' names;
            - .npy: an array [n, D], or [n, *shape] for images;
            - .npz: one array, or one named "x", or three named "train", "valid" and "test", split already;
            - .parquet: a table of numeric columns (needs pyarrow).
        columns: which columns to read, by name or by position from 0, in this order; None reads all.
        split: fractions of the rows for train, valid and test; they sum to one. A split with a fraction
            above zero has one row at least.
        seed: seeds the shuffle.
        shuffle: put the rows in random order before the split; False splits in file order (a time series).
        header: whether the first line of a .csv holds names; None decides by looking.
        delimiter: what stands between the cells of a .csv.
        dtype: of the data; None takes int64 where every number is whole by type or spelling, torch's default
            for the other texts, and the stored type for the other files.

    Returns:
        The data set. Its `values` is the largest entry plus one where all are whole, from 0 and below 256.

    Raises:
        DataError: the file is missing, empty or damaged, a row is too short or too long, a cell is missing,
            infinite or text. The message names the file, the line (from 1, as editors count) and the column.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{path.name} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}; convert the file."
        )
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the name and the folder.")
    if path.stat().st_size == 0:
        raise DataError(f"{path.name} is empty; write the table again.")
    parts: dict[str, Any]
    names: list[str] | None = None
    match path.suffix.lower():
        case ".csv":
            array, names = _read_csv(path, columns, header, delimiter)
            parts = {"x": array}
            if dtype is None and array.dtype.kind == "f":
                dtype = torch.get_default_dtype()
        case ".parquet":
            frame = _read_parquet(path)
            names = [str(name) for name in frame.columns]
            if columns is not None:
                positions = _choose(columns, names, len(names), path.name)
                names = [names[position] for position in positions]
                frame = frame.iloc[:, positions]
            parts = {"x": frame}
        case _:
            parts = _read_arrays(path)
    chosen = columns if path.suffix.lower() in (".npy", ".npz") else None
    tensors, shape = _tensors(parts, path.name, names, chosen, dtype)
    if "x" in tensors:
        tensors = _split(tensors["x"], split, seed, shuffle, path.name)
    return Dataset(
        path.stem,
        tensors["train"],
        tensors["valid"],
        tensors["test"],
        values=_values(tensors),
        shape=shape,
        columns=names,
        source=str(path),
        licence="the file's own",
    )


def write(path: str | os.PathLike, x: Tensor, columns: Sequence[str] | None = None) -> None:
    """Write a table, such as samples, so that `read` gives back the same numbers.

    Arguments:
        path: a .csv (a matrix, each number in the shortest spelling that reads back the same) or a .npy file
            (any shape); an old file is replaced whole or not at all.
        x: [n, D], or [n] for a single column.
        columns: names for the first line of a .csv.

    Raises:
        DataError: another ending, another shape, or names that do not fit the columns.
    """
    path = Path(path).expanduser()
    x = x.detach().cpu()
    array: np.ndarray = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
    match path.suffix.lower():
        case ".npy":
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            write_atomically(path, buffer.getvalue())
        case ".csv":
            array = array[:, None] if array.ndim == 1 else array
            if array.ndim != 2:
                raise DataError(
                    f"x has shape {array.shape}, but a .csv holds a matrix; pass x.flatten(1), or use .npy."
                )
            if columns is not None and len(columns) != array.shape[1]:
                raise DataError(f"x has {array.shape[1]} columns, but {len(columns)} names; name each column once.")
            array = array.astype(np.int64) if array.dtype.kind == "b" else array
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if columns is not None:
                writer.writerow(columns)
            # NumPy spells a number in the fewest digits that its own dtype needs, Python as a double.
            writer.writerows(array.astype(str).tolist())
            write_atomically(path, text.getvalue().encode())
        case _:
            raise DataError(f"{path.name} ends in {path.suffix!r}, expected .csv or .npy; choose one of the two.")


def _tensors(
    parts: dict[str, Any],
    name: str,
    names: list[str] | None,
    chosen: Sequence[str | int] | None,
    dtype: torch.dtype | None,
) -> tuple[dict[str, Tensor], tuple[int, ...] | None]:
    """Checked matrices of one dtype (the widest, unless one is asked for), and the shape of an example "
    "where the rows are images."""
    tensors: dict[str, Tensor] = {}
    shape: tuple[int, ...] | None = None
    for key, part in parts.items():
        site = name if key == "x" else f"{name}:{key}"
        if isinstance(part, np.ndarray) and part.ndim > 2:
            shape = part.shape[1:] if chosen is None else None
            part = part.reshape(len(part), math.prod(part.shape[1:]))
        if isinstance(part, np.ndarray) and part.ndim == 2 and chosen is not None:
            part = part[:, _choose(chosen, None, part.shape[1], name)]
        tensor = check_observations(part, site=site, columns=names, shape=shape)
        tensors[key] = tensor if tensor.is_floating_point() else tensor.long()
    common = dtype or reduce(torch.promote_types, (x.dtype for x in tensors.values()))
    for key, x in tensors.items():
        tensors[key] = x.to(common)
        if common.is_floating_point and not bool(torch.isfinite(tensors[key]).all()):
            raise DataError(
                f"{name} holds {float(x.abs().max()):.6g}, too large for {common}; "
                "rescale the data, or pass dtype=torch.float64."
            )
    return tensors, shape


def _values(tensors: dict[str, Tensor]) -> int | None:
    filled = [x for x in tensors.values() if x.numel()]
    if any(x.is_floating_point() for x in filled) or min(int(x.min()) for x in filled) < 0:
        return None
    largest = max(int(x.max()) for x in filled)
    return largest + 1 if largest < CATEGORIES else None


def _split(x: Tensor, fractions: tuple[float, float, float], seed: int, shuffle: bool, name: str) -> dict[str, Tensor]:
    fits = len(fractions) == 3 and all(0 <= part <= 1 for part in fractions) and fractions[0] > 0
    if not fits or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise DataError(
            f"split is {tuple(fractions)}, expected three fractions for train, valid and test that sum to "
            "one, with rows to train on; for example (0.8, 0.1, 0.1)."
        )
    n = len(x)
    valid, test = (max(1, math.floor(n * part + 1e-9)) if part > 0 else 0 for part in fractions[1:])
    if valid + test >= n:
        raise DataError(
            f"{name} has {n} row{'s' * (n > 1)}, too few for the split {tuple(fractions)}; "
            "give more rows, or train on all of them with split=(1, 0, 0)."
        )
    if shuffle:
        x = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    return dict(zip(SPLITS, x.split([n - valid - test, valid, test]), strict=True))


def _choose(columns: Sequence[str | int], names: list[str] | None, width: int, file: str) -> list[int]:
    """The positions of the columns asked for."""
    if isinstance(columns, (str, int)):
        columns = [columns]
    if len(columns) == 0:
        raise DataError("columns is empty; name at least one, or leave it out to read all.")
    positions = []
    for column in columns:
        if not isinstance(column, str):
            if not -width <= column < width:
                raise DataError(f"{file} has {width} columns, so there is no column {column}; count from 0.")
            positions.append(int(column) % width)
        elif names is None:
            raise DataError(f"{file} has no column names, so there is no column {column!r}; give positions from 0.")
        elif column not in names:
            near = get_close_matches(column, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names[:20])}."
            raise DataError(f"{file} has no column {column!r}; {hint}")
        else:
            positions.append(names.index(column))
    if len(set(positions)) < len(positions):
        raise DataError(f"columns {list(columns)} names a column of {file} twice; name each once.")
    return positions


# Arrays.


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The array of a .npy or .npz file as "x", or the three splits; never unpickled."""
    try:
        with path.open("rb") as file:  # numpy leaves the file open when the archive is damaged
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                return {"x": archive}
            keys = list(archive.files)
            if set(SPLITS) <= set(keys):
                return {split: archive[split] for split in SPLITS}
            key = "x" if "x" in keys else keys[0] if len(keys) == 1 else None
            if key is not None and key not in SPLITS[1:]:
                return {"x": archive[key]}
    except DAMAGED as error:
        raise _damaged(path, error) from None
    raise DataError(
        f"{path.name} holds the arrays {', '.join(sorted(keys)) or 'none'}; expected one array, one named "
        "x, or three named train, valid and test; save it so."
    )


def _damaged(path: Path, error: BaseException) -> DataError:
    if "Object arrays" in str(error):
        return DataError(
            f"{path.name} holds an array of Python objects, expected numbers; objects are never "
            "unpickled, so save x.astype(float)."
        )
    if "pickle" in str(error):
        return DataError(
            f"{path.name} is not a {path.suffix} file: it is damaged, or a pickle, which is never loaded; "
            "save the array with numpy.save or numpy.savez."
        )
    return DataError(f"{path.name} is damaged or not a {path.suffix} file ({error}); write it again.")


def _read_parquet(path: Path) -> Any:
    try:
        import pyarrow  # noqa: F401  # optional: only this format needs it
    except ImportError:
        raise DataError(f"reading {path.name} needs pyarrow; install it with pip install 'ppl-dgm[parquet]'.") from None
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except Exception as error:  # pyarrow's errors share no base class but this
        raise _damaged(path, error) from None


# Text.


def _read_csv(
    path: Path, columns: Sequence[str | int] | None, header: bool | None, delimiter: str
) -> tuple[np.ndarray, list[str] | None]:
    """The numbers of a .csv, int64 if every cell is spelled as a whole number, else float64."""
    lines = _lines(path, delimiter)
    names = _names(path, lines, header)
    first = lines[0][0]
    if names is not None:
        lines = lines[1:]
    if not lines:
        raise DataError(f"{path.name} has column names but no rows below them; write the table again.")
    width = len(names if names is not None else lines[0][1])
    for line, cells in lines:
        if len(cells) != width:
            raise DataError(_ragged(path.name, line, len(cells), width, names, first))
    if width == 1 and any(other in cell for cell in lines[0][1] for other in ";\t"):
        raise DataError(
            f"{path.name}, line {lines[0][0]}: found {lines[0][1][0]!r}, expected cells between "
            f"{delimiter!r}; pass the file's own delimiter."
        )
    positions = list(range(width)) if columns is None else _choose(columns, names, width, path.name)
    labels = [f"{position} (from 0)" if names is None else repr(names[position]) for position in positions]
    table = [[cells[position].strip() for position in positions] for _, cells in lines]
    numbers = [[_parse(cell) for cell in row] for row in table]
    _check_cells(path.name, table, numbers, [line for line, _ in lines], labels)
    whole = all(isinstance(number, int) for row in numbers for number in row)
    array = np.array(numbers, dtype=np.int64 if whole else np.float64)
    return array, None if names is None else [names[position] for position in positions]


def _lines(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """The lines that hold something, each with its number in the file (a quoted cell can span lines)."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not text in UTF-8 ({error.reason}); save it as a UTF-8 .csv.") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, cells) for cells in reader if len(cells) > 1 or "".join(cells).strip()]
    except csv.Error as error:
        raise DataError(f"{path.name}, line {reader.line_num}: {error}; correct that line.") from None
    if not lines:
        raise DataError(f"{path.name} has no rows; write the table again.")
    return lines


def _names(path: Path, lines: list[tuple[int, list[str]]], header: bool | None) -> list[str] | None:
    """The first line, if it holds names."""
    line, cells = lines[0]
    cells = [cell.strip() for cell in cells]
    if header is None:
        given = [column for column, cell in enumerate(cells) if cell.lower() not in MISSING]
        texts = [column for column in given if _parse(cells[column]) is None]
        header = bool(texts)
        if header and len(texts) < len(given):
            column = texts[0]
            raise DataError(
                f"{path.name}, line {line}, column {column} (from 0): {cells[column]!r} is text beside "
                "numbers; correct the cell, or pass header=True if the line holds the columns' names."
            )
    if not header:
        return None
    for column, name in enumerate(cells):
        if name in cells[:column]:
            raise DataError(f"{path.name}, line {line}: two columns are named {name!r}; give each its own name.")
    return cells


def _parse(cell: str) -> int | float | None:
    """The cell's number, or None for text; Python would read 1_000, which is text in a table."""
    if "_" in cell:
        return None
    try:
        number = int(cell)
        if -(2**63) <= number < 2**63:
            return number
    except ValueError:
        pass
    try:
        return float(cell)
    except ValueError:
        return None


def _ragged(file: str, line: int, found: int, width: int, names: list[str] | None, first: int) -> str:
    if found < width:
        ends = f"the row ends before column {names[found]!r}" if names is not None else "the row is cut short"
    else:
        ends = "the row is too long"
    expected = f"expected {width} as in line {first}"
    return f"{file}, line {line}: found {found} cells, {expected}, {ends}; correct the line."


def _check_cells(
    file: str,
    table: list[list[str]],
    numbers: list[list[int | float | None]],
    lines: list[int],
    names: list[str],
) -> None:
    """Every cell is a finite number, or the first that is not is named."""
    for row, parsed in enumerate(numbers):
        for column, number in enumerate(parsed):
            if number is not None and math.isfinite(number):
                continue
            cell = table[row][column]
            where = f"{file}, line {lines[row]}, column {names[column]}"
            if cell.lower() in MISSING:
                count = sum(other.lower() in MISSING for cells in table for other in cells)
                found = f"the cell is {cell!r}" if cell else "the cell is empty"
                raise DataError(
                    f"{where}: {found}, expected a number ({count} missing in the table); "
                    "fill such cells in or leave their rows out."
                )
            if number is not None:
                raise DataError(f"{where}: the number is {cell}, expected a finite one; correct the cell.")
            texts = sum(parsed[column] is None for parsed in numbers)
            if 2 * texts > len(numbers):
                raise DataError(
                    f"{file}: column {names[column]} holds text (line {lines[row]}: {cell!r}), expected "
                    "numbers; encode its categories as integers 0, 1, ... or leave it out with columns=[...]."
                )
            raise DataError(f"{where}: {cell!r} is text in a column of numbers; correct the cell.")
