"""check_observations: what passes, and what each kind of misfit is told."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions.constraints as pyro_constraints
import pytest
import torch
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from ppl_dgm import data
from ppl_dgm.data import Dataset, check_observations, describe_support
from ppl_dgm.errors import DataError

TABLE = [[0, 1, 2], [3, 4, 5]]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        pytest.param(TABLE, torch.int64, id="list-of-integers"),
        pytest.param([[0.0, 1, 2], [3, 4, 5]], torch.float32, id="list-of-floats"),
        pytest.param([torch.arange(3), torch.arange(3, 6)], torch.int64, id="list-of-tensors"),
        pytest.param([np.arange(3), np.arange(3, 6)], torch.int64, id="list-of-arrays"),
        pytest.param(np.array(TABLE, np.float64), torch.float64, id="float64-array"),
        pytest.param(np.array(TABLE, np.uint8), torch.uint8, id="uint8-array"),
        pytest.param(np.array(TABLE, np.uint32), torch.int64, id="uint32-array"),
        pytest.param(np.array(TABLE, ">i4"), torch.int32, id="big-endian-array"),
        pytest.param(np.array(TABLE, np.longdouble), torch.float64, id="long-double-array"),
        pytest.param(np.array(TABLE)[::-1][::-1], torch.int64, id="strided-array"),
        pytest.param(torch.tensor(TABLE, dtype=torch.float16), torch.float16, id="half-tensor"),
        pytest.param(torch.tensor(TABLE).T.contiguous().T, torch.int64, id="strided-tensor"),
        pytest.param(pd.DataFrame(TABLE), torch.int64, id="frame"),
        pytest.param(pd.DataFrame(TABLE).astype("Int64"), torch.int64, id="nullable-frame"),
        pytest.param(pd.DataFrame(TABLE).astype({0: "float32"}), torch.float64, id="mixed-frame"),
    ],
)
def test_accepts_tables_and_keeps_their_dtype(x: Any, dtype: torch.dtype) -> None:
    found = check_observations(x, observed=3, support=constraints.integer_interval(0, 5))
    assert found.tolist() == TABLE
    assert found.dtype == dtype


def test_a_read_only_or_reversed_array_is_copied() -> None:
    frozen = np.array(TABLE)
    frozen.flags.writeable = False
    assert check_observations(frozen).tolist() == TABLE
    assert check_observations(np.array(TABLE)[::-1]).tolist() == TABLE[::-1]


def test_booleans_become_integers() -> None:
    for x in (np.eye(2, dtype=bool), torch.eye(2, dtype=torch.bool), pd.DataFrame(np.eye(2, dtype=bool))):
        found = check_observations(x, support=constraints.boolean)
        assert found.dtype == torch.int64 and found.tolist() == [[1, 0], [0, 1]]


def test_stays_on_its_device_and_shares_its_memory(device: torch.device) -> None:
    x = torch.rand(5, 2, device=device)
    assert check_observations(x, observed=2, support=constraints.unit_interval) is x


def test_a_dataset_passes_through_with_each_split_checked() -> None:
    digits = data.digits()
    assert check_observations(digits, observed=64, support=constraints.integer_interval(0, 16)) is digits
    empty = Dataset("mine", torch.ones(3, 2), torch.ones(0, 2), torch.ones(0, 2))
    assert check_observations(empty, observed=2) is empty


@pytest.mark.parametrize(
    ("x", "observed", "says"),
    [
        pytest.param(torch.zeros(4, 3), 5, ["(4, 3)", "[examples, 5]", "observed=3"], id="columns"),
        pytest.param(torch.zeros(4, 3), 4, ["(4, 3)", "x.T"], id="transposed"),
        pytest.param(torch.zeros(4), 4, ["(4,)", "one example", "x.unsqueeze(0)"], id="one-row"),
        pytest.param(torch.zeros(4), 1, ["(4,)", "4 examples", "x.unsqueeze(1)"], id="one-column"),
        pytest.param(torch.zeros(4), 3, ["(4,)", "[examples, 3]"], id="vector-of-another-length"),
        pytest.param([1.0, 2.0], None, ["(2,)", "x.unsqueeze(0)"], id="flat-list"),
        pytest.param(pd.Series([1.0, 2.0]), None, ["(2,)", "x.unsqueeze(0)"], id="series"),
        pytest.param(torch.tensor(1.0), 1, ["()", "single number"], id="number"),
        pytest.param(torch.zeros(5, 8, 8), 64, ["(5, 8, 8)", "x.flatten(1)"], id="images"),
        pytest.param(torch.zeros(5, 8, 8), 60, ["64 entries", "[examples, 60]"], id="other-images"),
        pytest.param(torch.zeros(0, 3), 3, ["(0, 3)", "empty"], id="no-rows"),
        pytest.param(torch.zeros(3, 0), None, ["(3, 0)", "empty"], id="no-columns"),
        pytest.param([], None, ["(0,)", "x"], id="empty-list"),
        pytest.param([[1, 2], [3]], 2, ["x[1]", "1 entries", "x[0] has 2"], id="ragged-list"),
        pytest.param([torch.zeros(2), torch.zeros(3)], 2, ["(2,)", "(3,)", "one shape"], id="ragged-tensors"),
        pytest.param([["a", "b"]], 2, ["text", "'a'", "integers 0, 1"], id="list-of-words"),
        pytest.param([[1.0, None]], 2, ["x[0, 1]", "NaN"], id="list-with-none"),
        pytest.param(np.array([[1, "a"]], object), 2, ["objects", "1"], id="objects"),
        pytest.param(np.array([["2020-01-01"]], "datetime64[D]"), 1, ["dates"], id="dates"),
        pytest.param(np.array([[1j]]), 1, ["complex"], id="complex"),
        pytest.param(torch.eye(2).to_sparse(), 2, ["sparse", "to_dense"], id="sparse-tensor"),
        pytest.param("digits.csv", 2, ["a str", "convert"], id="path"),
        pytest.param(None, 2, ["NoneType"], id="none"),
        pytest.param(pd.DataFrame({"a": [1], "city": ["Rome"]}), 2, ["'city'", "integers 0, 1"], id="words"),
        pytest.param(pd.DataFrame({"a": [1], "b": pd.Categorical(["u"])}), 2, ["'b'", "category"], id="frame-category"),
    ],
)
def test_shapes_and_types(x: Any, observed: int | None, says: list[str]) -> None:
    refuses(lambda: check_observations(x, observed=observed), says)


def test_scipys_sparse_matrix_is_told_to_become_dense() -> None:
    from scipy.sparse import csr_matrix

    refuses(lambda: check_observations(csr_matrix(np.eye(2))), ["sparse", "x.toarray()"])


IMAGE = torch.zeros(4, 6)
IMAGE[2, 5] = NAN
IMAGE[3, 0] = NAN


@pytest.mark.parametrize(
    ("x", "options", "says"),
    [
        pytest.param(IMAGE, {}, ["x[2, 5] is missing (NaN)", "2 of 24 entries are not finite"], id="plain"),
        pytest.param(IMAGE, {"shape": (2, 3)}, ["x[2, 5] (pixel (1, 2))"], id="pixel"),
        pytest.param(IMAGE, {"shape": (1, 2, 3)}, ["pixel (0, 1, 2)"], id="pixel-with-channel"),
        pytest.param(IMAGE, {"columns": list("abcdef")}, ["x[2, 5] (column 'f')"], id="column"),
        pytest.param(IMAGE, {"site": "pixels"}, ["pixels[2, 5]"], id="site"),
        pytest.param([[0.0, -INF]], {}, ["x[0, 1] is infinite (-inf)", "1 of 2 entries is not"], id="infinite"),
        pytest.param(pd.DataFrame({"a": [1.0], "b": [NAN]}), {}, ["x[0, 1] (column 'b')"], id="frame"),
        pytest.param(pd.DataFrame({"a": [1, None]}, dtype="Int64"), {}, ["x[1, 0] (column 'a')"], id="nullable"),
    ],
)
def test_missing_values_are_located(x: Any, options: dict, says: list[str]) -> None:
    refuses(lambda: check_observations(x, **options), says)


SEVENTEEN = constraints.integer_interval(0, 16)
TWO_BOUNDS = constraints.interval(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 5.0]))


@pytest.mark.parametrize(
    ("x", "support", "says"),
    [
        pytest.param([[0, 17]], SEVENTEEN, ["x[0, 1] is 17", "from 0 to 16", "values=18"], id="too-large"),
        pytest.param([[0, -1]], SEVENTEEN, ["is -1", "shift", "smallest entry is 0"], id="negative"),
        pytest.param([[0.0, 0.25]], SEVENTEEN, ["is 0.25", "(x * 16).round()"], id="rescaled-to-one"),
        pytest.param([[0.0, 2.5]], SEVENTEEN, ["is 2.5", "round"], id="fraction"),
        pytest.param(np.array([[255, 0]], np.uint8), SEVENTEEN, ["is 255", "values=256"], id="bytes"),
        pytest.param([[0, 2]], constraints.boolean, ["is 2", "0 or 1", "threshold"], id="not-binary"),
        pytest.param([[0.5, 1]], constraints.boolean, ["is 0.5", "0 or 1"], id="gray"),
        pytest.param([[1, 0]], constraints.positive_integer, ["is 0", "at least 1"], id="from-one"),
        pytest.param([[1, -1]], constraints.nonnegative_integer, ["is -1", "at least 0"], id="count"),
        pytest.param([[1.0, 0.0]], constraints.positive, ["a number above 0", "rescale"], id="not-positive"),
        pytest.param([[0.5, 1.5]], constraints.unit_interval, ["from 0 to 1", "0.5 to 1.5"], id="unit"),
        pytest.param([[1, 5], [2, 5]], TWO_BOUNDS, ["x[1, 0] is 2", "from 0 to 1 "], id="bounds-by-column"),
        pytest.param([[0.5]], pyro_constraints.integer, ["is 0.5", "an integer ", "whole"], id="pyro-integer"),
        pytest.param(
            [[0.5, 0.5], [0.5, 0.6]],
            constraints.simplex,
            ["x[1] is [0.5, 0.6]", "sum to one", "1 of 2 rows does not fit"],
            id="row",
        ),
        pytest.param(
            [[3, 1]],
            constraints.independent(constraints.boolean, 1),
            ["x[0, 0] is 3", "0 or 1"],
            id="independent",
        ),
    ],
)
def test_support(x: Any, support: Constraint, says: list[str]) -> None:
    refuses(lambda: check_observations(x, support=support), says)


def test_supports_that_depend_on_other_sites_are_not_checked() -> None:
    assert check_observations([[5.0]], support=constraints.dependent).tolist() == [[5.0]]


def test_large_data_are_checked_to_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_dgm.data.checks.CHUNK", 6)
    x = torch.zeros(11, 3, dtype=torch.uint8)
    x[10, 2] = x[7, 1] = 9
    refuses(lambda: check_observations(x, support=constraints.boolean), ["x[7, 1] is 9", "2 of 33"])


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_dataset_names_the_split_and_the_pixel(split: str) -> None:
    parts = {name: torch.zeros(2, 4) for name in ("train", "valid", "test")}
    parts[split][1, 3] = 2
    mine = Dataset("mine", parts["train"], parts["valid"], parts["test"], shape=(2, 2))
    says = ["'pixels'", f"{split} split", f"mine.{split}[1, 3] (pixel (1, 1)) is 2", "0 or 1"]
    refuses(lambda: check_observations(mine, support=constraints.boolean, site="pixels"), says)


@pytest.mark.parametrize(
    ("support", "words"),
    [
        (constraints.real, "a real number"),
        (constraints.greater_than_eq(2), "a number of at least 2"),
        (constraints.less_than(-1.5), "a number below -1.5"),
        (constraints.half_open_interval(0, 1), "a number from 0 up to, not including, 1"),
        (constraints.one_hot, "a single 1 among zeros"),
        (TWO_BOUNDS, "a number from 0 to 1..5 (by column)"),
        (constraints.lower_cholesky, "LowerCholesky()"),
    ],
    ids=str,
)
def test_supports_in_words(support: Constraint, words: str) -> None:
    assert describe_support(support) == words


def refuses(action: Callable[[], object], says: list[str]) -> None:
    """The action raises DataError, in one line that names each of these."""
    with pytest.raises(DataError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    missing = [word for word in says if word not in message]
    assert not missing, f"{message!r} does not name {missing}"
