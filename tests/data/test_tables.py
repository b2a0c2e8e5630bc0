"""A user's own files: what is read, how it is split, and what every broken file is told."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_dgm.data import Dataset, read, write
from ppl_dgm.errors import DataError, FileError

ALL = (1.0, 0.0, 0.0)


def rows(dataset: Dataset) -> list[list[float]]:
    return sorted(torch.cat(list(dataset.splits.values())).tolist())


def whole(path: Path, **options: object) -> Tensor:
    """The table in file order."""
    return read(path, split=ALL, shuffle=False, **options).train  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "options", "columns", "expected", "dtype"),
    [
        pytest.param("a,b\n1,2\n3,4\n", {}, ["a", "b"], [[1, 2], [3, 4]], torch.int64, id="header"),
        pytest.param("1,2\n3,4", {}, None, [[1, 2], [3, 4]], torch.int64, id="no-header-no-last-newline"),
        pytest.param("a,b\n1,2.5\n3,4\n", {}, ["a", "b"], [[1, 2.5], [3, 4]], torch.float32, id="one-fraction"),
        pytest.param("\ufeffa,b\r\n1,2\r\n", {}, ["a", "b"], [[1, 2]], torch.int64, id="byte-order-mark-and-crlf"),
        pytest.param('"a, b",c\n"1", 2 \n\n', {}, ["a, b", "c"], [[1, 2]], torch.int64, id="quotes-and-blank-line"),
        pytest.param("a;b\n1;2\n", {"delimiter": ";"}, ["a", "b"], [[1, 2]], torch.int64, id="semicolons"),
        pytest.param("a,b,c\n1,x,3\n", {"columns": ["c", "a"]}, ["c", "a"], [[3, 1]], torch.int64, id="columns"),
        pytest.param("1,x,3\n4,y,6\n", {"columns": [2], "header": False}, None, [[3], [6]], torch.int64, id="position"),
        pytest.param("id,2020\n1,2\n", {"header": True}, ["id", "2020"], [[1, 2]], torch.int64, id="header-on-word"),
        pytest.param("1e-3,-2\n", {}, None, [[1e-3, -2]], torch.float32, id="exponent"),
        pytest.param(",a\n0,5\n", {}, ["", "a"], [[0, 5]], torch.int64, id="unnamed-index-column"),
        pytest.param("0.1\n", {"dtype": torch.float64}, None, [[0.1]], torch.float64, id="double-on-request"),
    ],
)
def test_csv(
    tmp_path: Path, text: str, options: dict, columns: list[str] | None, expected: list, dtype: torch.dtype
) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode())
    found = read(path, split=ALL, shuffle=False, **options)
    assert found.columns == columns
    assert torch.equal(found.train, torch.tensor(expected, dtype=dtype))
    assert found.train.dtype == dtype
    assert (found.name, found.source) == ("mine", str(path))


def save_npy(array: object) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.asarray(array), allow_pickle=True)


def save_npz(**arrays: object) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **{key: np.asarray(value) for key, value in arrays.items()})


@pytest.mark.parametrize(
    ("name", "save", "dtype"),
    [
        pytest.param("x.npy", save_npy([[1, 2], [3, 4]]), torch.int64, id="npy-int64"),
        pytest.param("x.npy", save_npy(np.array([[1, 2], [3, 4]], np.uint16)), torch.int64, id="npy-uint16"),
        pytest.param("x.npy", save_npy(np.array([[1, 2], [3, 4]], ">f4")), torch.float32, id="npy-big-endian"),
        pytest.param("x.npy", save_npy(np.array([[1.0, 2.0], [3.0, 4.0]])), torch.float64, id="npy-float64-stays"),
        pytest.param("x.npy", save_npy(np.asfortranarray([[1.0, 2.0], [3.0, 4.0]])), torch.float64, id="npy-fortran"),
        pytest.param("x.npz", save_npz(x=[[1, 2], [3, 4]], y=[0, 1]), torch.int64, id="npz-x-beside-others"),
        pytest.param("x.npz", save_npz(mine=[[1, 2], [3, 4]]), torch.int64, id="npz-single"),
    ],
)
def test_arrays(tmp_path: Path, name: str, save: Callable[[Path], None], dtype: torch.dtype) -> None:
    save(tmp_path / name)
    x = whole(tmp_path / name)
    assert x.dtype == dtype
    assert x.tolist() == [[1, 2], [3, 4]]
    assert whole(tmp_path / name, columns=[1]).tolist() == [[2], [4]]


def test_npz_with_three_splits_is_split_already(tmp_path: Path) -> None:
    save_npz(train=[[1, 2]] * 5, valid=[[3, 4]], test=[[5.5, 6]])(tmp_path / "x.npz")
    found = read(tmp_path / "x.npz")
    assert found.test.tolist() == [[5.5, 6]] and found.valid.tolist() == [[3, 4]] and len(found.train) == 5
    assert {x.dtype for x in found.splits.values()} == {torch.float64}


def test_images_are_flattened_and_keep_their_shape(tmp_path: Path) -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "x.npy", images)
    found = read(tmp_path / "x.npy", split=ALL, shuffle=False)
    assert found.shape == (3, 4)
    assert np.array_equal(found.train.numpy(), images.reshape(2, 12))


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        pytest.param({"a": "int64", "b": "int8"}, torch.int64, id="integers"),
        pytest.param({"a": "bool", "b": "int64"}, torch.int64, id="booleans-beside-integers"),
        pytest.param({"a": "float32", "b": "float32"}, torch.float32, id="float32"),
        pytest.param({"a": "Int64", "b": "Float64"}, torch.float64, id="nullable"),
    ],
)
def test_parquet(tmp_path: Path, dtypes: dict[str, str], expected: torch.dtype) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
    import pandas as pd

    pd.DataFrame({"a": [0, 1], "b": [2, 3]}).astype(dtypes).to_parquet(tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet", columns=["b", "a"], split=ALL, shuffle=False)
    assert found.columns == ["b", "a"]
    assert found.train.tolist() == [[2, 0], [3, 1]]
    assert found.train.dtype == expected


@pytest.mark.parametrize(
    ("table", "values"),
    [
        pytest.param([[0, 3], [1, 1]], 4, id="small-integers"),
        pytest.param([[0, 255]], 256, id="bytes"),
        pytest.param([[0, 256]], None, id="too-many-to-be-categories"),
        pytest.param([[-1, 2]], None, id="negative"),
        pytest.param([[0.0, 3.0]], None, id="floats"),
    ],
)
def test_number_of_values(tmp_path: Path, table: list, values: int | None) -> None:
    np.save(tmp_path / "x.npy", np.array(table))
    assert read(tmp_path / "x.npy", split=ALL).values == values


@pytest.mark.parametrize(
    ("n", "split", "sizes"),
    [
        (100, (0.8, 0.1, 0.1), [80, 10, 10]),
        (7, (0.8, 0.1, 0.1), [5, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (10, (0.7, 0.3, 0.0), [7, 3, 0]),
        (1, (1, 0, 0), [1, 0, 0]),
    ],
)
def test_split_sizes(tmp_path: Path, n: int, split: tuple[float, float, float], sizes: list[int]) -> None:
    np.save(tmp_path / "x.npy", np.arange(2 * n).reshape(n, 2))
    found = read(tmp_path / "x.npy", split=split)
    assert [len(x) for x in found.splits.values()] == sizes
    assert rows(found) == [[2 * i, 2 * i + 1] for i in range(n)]  # each row once


def test_shuffle_obeys_its_seed_and_leaves_the_callers_state(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(40).reshape(40, 1))
    state = torch.get_rng_state()
    one, again, other = (read(tmp_path / "x.npy", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.train, again.train) and not torch.equal(one.train, other.train)
    in_order = read(tmp_path / "x.npy", shuffle=False)
    assert in_order.train.flatten().tolist() == list(range(32)) and in_order.test.flatten().tolist() == [
        36,
        37,
        38,
        39,
    ]


@pytest.mark.parametrize("suffix", [".csv", ".npy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64], ids=str)
def test_write_then_read_gives_the_same_bits(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    x = (1000 * torch.randn(50, 3, dtype=torch.float64)).to(dtype)
    write(tmp_path / f"x{suffix}", x, columns=["a", "b", "c"])
    found = read(tmp_path / f"x{suffix}", split=ALL, shuffle=False, dtype=dtype)
    assert torch.equal(found.train, x)
    assert found.columns == (["a", "b", "c"] if suffix == ".csv" else None)


def test_write_replaces_the_old_file_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x.csv", torch.ones(2, 2))
    before = (tmp_path / "x.csv").read_bytes()

    def broken(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(FileError, match="disk is full"):
        write(tmp_path / "x.csv", torch.zeros(2, 2))
    assert (tmp_path / "x.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


BROKEN_CSV = [
    pytest.param("", {}, ["mine.csv", "empty"], id="empty"),
    pytest.param("\n \n", {}, ["mine.csv", "no rows"], id="blank-lines"),
    pytest.param("a,b\n", {}, ["names", "no rows"], id="header-alone"),
    pytest.param("a,b,c\n1,2,3\n4,5\n", {}, ["line 3", "2 cells", "expected 3", "'c'"], id="half-a-row"),
    pytest.param("1,2\n3\n", {}, ["line 2", "1 cells", "expected 2", "cut short"], id="half-a-row-no-header"),
    pytest.param("a,b\n1,2,3\n", {}, ["line 2", "3 cells", "expected 2", "too long"], id="row-too-long"),
    pytest.param("a,b\n1,2\n3,oops\n5,6\n", {}, ["line 3", "'b'", "'oops'"], id="text-cell"),
    pytest.param("a,b\n1,red\n2,blue\n", {}, ["'b'", "'red'", "0, 1", "columns=["], id="text-column"),
    pytest.param("a,b\n1,\n2,NA\n", {}, ["line 2", "'b'", "empty", "2 missing"], id="missing-cells"),
    pytest.param("a,b\n1,2\n,\n", {}, ["line 3", "'a'", "2 missing"], id="row-of-nothing"),
    pytest.param("1,2\n3,nan\n", {}, ["line 2", "column 1", "'nan'", "missing"], id="nan"),
    pytest.param("a,b\n1,inf\n", {}, ["line 2", "'b'", "inf", "finite"], id="infinite"),
    pytest.param("a\n1e300\n", {}, ["1e+300", "float32", "float64"], id="too-large-for-float32"),
    pytest.param("a\n1_000\n2\n3\n", {}, ["line 2", "'1_000'"], id="underscore"),
    pytest.param("1,oops,3\n4,5,6\n", {}, ["line 1", "column 1", "'oops'", "header=True"], id="text-in-first-row"),
    pytest.param("a,a\n1,2\n", {}, ["two columns", "'a'"], id="same-name-twice"),
    pytest.param("1;2\n3;4\n", {}, ["'3;4'", "delimiter"], id="other-delimiter-no-header"),
    pytest.param("a;b\n1;2\n", {}, ["'1;2'", "delimiter"], id="other-delimiter"),
    pytest.param('a,b\n1,"2\n3,4\n', {}, ["line"], id="open-quote"),
    pytest.param("age,size\n1,2\n", {"columns": ["agee"]}, ["'agee'", "did you mean 'age'?"], id="column-typo"),
    pytest.param("a,b\n1,2\n", {"columns": [2]}, ["2 columns", "no column 2"], id="position-out-of-range"),
    pytest.param("1,2\n", {"columns": ["a"]}, ["no column names", "'a'"], id="name-without-header"),
    pytest.param("a,b\n1,2\n", {"columns": []}, ["columns is empty"], id="no-columns"),
    pytest.param("a,b\n1,2\n", {"columns": ["a", 0]}, ["twice"], id="column-twice"),
    pytest.param("a\n1\n2\n", {"split": (0.8, 0.1, 0.1)}, ["2 rows", "split=(1, 0, 0)"], id="too-few-rows"),
    pytest.param("a\n1\n2\n", {"split": (0.5, 0.1, 0.1)}, ["split", "sum to one"], id="fractions-not-one"),
    pytest.param("a\n1\n2\n", {"split": (0.0, 0.5, 0.5)}, ["split", "train"], id="nothing-to-train-on"),
]


@pytest.mark.parametrize(("text", "options", "says"), BROKEN_CSV)
def test_broken_csv(tmp_path: Path, text: str, options: dict, says: list[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    refuses(lambda: read(path, **{"split": ALL, **options}), says)


def test_text_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_bytes("größe\n1\n".encode("latin-1"))
    refuses(lambda: read(tmp_path / "mine.csv"), ["mine.csv", "UTF-8"])


def truncated(save: Callable[[Path], None], keep: float = 0.5) -> Callable[[Path], None]:
    def write_part(path: Path) -> None:
        save(path)
        content = path.read_bytes()
        path.write_bytes(content[: int(keep * len(content))])

    return write_part


NUMBERS = np.arange(2000.0).reshape(1000, 2)


@pytest.mark.parametrize(
    ("name", "save", "says"),
    [
        pytest.param("x.txt", lambda path: path.write_text("1"), ["'.txt'", ".csv"], id="unknown-ending"),
        pytest.param("x.npy", lambda path: None, ["no file", "x.npy"], id="missing"),
        pytest.param("x.npy", lambda path: path.mkdir(), ["no file", "x.npy"], id="folder"),
        pytest.param("x.npy", lambda path: path.touch(), ["x.npy", "empty"], id="empty"),
        pytest.param("x.npy", truncated(save_npy(NUMBERS)), ["x.npy", "damaged"], id="npy-truncated"),
        pytest.param("x.npy", truncated(save_npy(NUMBERS), 0.001), ["x.npy", "damaged"], id="npy-header-truncated"),
        pytest.param("x.npy", lambda path: path.write_text("1,2"), ["x.npy", "damaged"], id="npy-of-text"),
        pytest.param("x.npy", save_npy([[1, None]]), ["objects", "astype"], id="npy-of-objects"),
        pytest.param("x.npy", save_npy([["a", "b"]]), ["text", "'a'"], id="npy-of-words"),
        pytest.param("x.npy", save_npy([1.0, 2.0]), ["(2,)", "unsqueeze"], id="npy-vector"),
        pytest.param("x.npy", save_npy(3.0), ["()", "single number"], id="npy-number"),
        pytest.param("x.npy", save_npy(np.zeros((0, 3))), ["(0, 3)", "empty"], id="npy-no-rows"),
        pytest.param("x.npy", save_npy([[1.0, np.nan]]), ["x.npy[0, 1]", "NaN"], id="npy-nan"),
        pytest.param("x.npy", save_npy(np.full((1, 2, 2), np.inf)), ["pixel (0, 0)", "inf"], id="npy-image-inf"),
        pytest.param("x.npy", save_npy([[1j]]), ["complex"], id="npy-complex"),
        pytest.param("x.npy", save_npy(np.zeros(2, [("a", "f4")])), ["record", "'a'"], id="npy-records"),
        pytest.param("x.npz", truncated(save_npz(x=NUMBERS)), ["x.npz", "damaged"], id="npz-truncated"),
        pytest.param("x.npz", save_npz(a=[[1]], b=[[2]]), ["a, b", "train"], id="npz-which-array"),
        pytest.param("x.npz", save_npz(train=[[1]], test=[[2]]), ["test, train", "valid"], id="npz-two-splits"),
        pytest.param("x.npz", save_npz(x=[[None]]), ["objects"], id="npz-of-objects"),
        pytest.param("x.npz", save_npz(train=[[1]], valid=[[1, 2]], test=[[1]]), ["valid", "2 col"], id="npz-widths"),
        pytest.param("x.parquet", lambda path: path.write_text("oops"), ["x.parquet", "damaged"], id="parquet-of-text"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, save: Callable[[Path], None], says: list[str]) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
    save(tmp_path / name)
    refuses(lambda: read(tmp_path / name), says)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "trap"),)

    import pickle

    for name in ("x.npy", "x.npz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        refuses(lambda name=name: read(tmp_path / name), ["pickle", "never"])  # type: ignore[misc]
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("column", "says"),
    [
        pytest.param(["red", "blue"], ["'c'", "integers 0, 1"], id="text"),
        pytest.param([1.0, None], ["[1, 1]", "'c'", "NaN"], id="missing"),
    ],
)
def test_broken_parquet_columns(tmp_path: Path, column: list, says: list[str]) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is an optional extra")
    import pandas as pd

    pd.DataFrame({"a": [1, 2], "c": column}).to_parquet(tmp_path / "x.parquet")
    refuses(lambda: read(tmp_path / "x.parquet"), says)
    assert whole(tmp_path / "x.parquet", columns=["a"]).tolist() == [[1], [2]]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_text("anything")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(lambda: read(tmp_path / "x.parquet"), ["pyarrow", "pip install"])


@pytest.mark.parametrize(
    ("name", "x", "columns", "says"),
    [
        pytest.param("x.txt", torch.zeros(2, 2), None, ["'.txt'", ".csv or .npy"], id="unknown-ending"),
        pytest.param("x.csv", torch.zeros(2, 2, 2), None, ["(2, 2, 2)", "flatten(1)"], id="not-a-matrix"),
        pytest.param("x.csv", torch.zeros(2, 2), ["a"], ["2 columns", "1 names"], id="too-few-names"),
    ],
)
def test_refusals_to_write(tmp_path: Path, name: str, x: Tensor, columns: list[str] | None, says: list[str]) -> None:
    refuses(lambda: write(tmp_path / name, x, columns), says)
    assert not list(tmp_path.iterdir())


def refuses(action: Callable[[], object], says: list[str]) -> None:
    """The action raises DataError, in one line that names each of these."""
    with pytest.raises(DataError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    missing = [word for word in says if word not in message]
    assert not missing, f"{message!r} does not name {missing}"
