"""Dataset: its splits, what it refuses to hold, and the digits."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppl_dgm import data
from ppl_dgm.data import Dataset
from ppl_dgm.errors import DataError

X = torch.zeros(4, 6)


def test_digits_are_scikit_learns_in_file_order() -> None:
    from sklearn.datasets import load_digits

    digits = data.digits()
    assert {split: len(x) for split, x in digits.splits.items()} == {"train": 1000, "valid": 350, "test": 447}
    together = torch.cat(list(digits.splits.values()))
    assert torch.equal(together, torch.from_numpy(load_digits().data).long())
    assert digits.labels is not None
    assert torch.cat(list(digits.labels.values())).tolist() == load_digits().target.tolist()
    assert (digits.values, digits.shape, digits.observed, digits.train.dtype) == (17, (8, 8), 64, torch.int64)
    assert int(together.min()) == 0 and int(together.max()) == 16
    assert repr(digits) == "Dataset(digits: 1000/350/447 x 64, 17 values, pixels (8, 8))"


def test_to_moves_splits_and_labels(device: torch.device) -> None:
    moons = data.moons(10, 5, 5).to(device)
    assert moons.labels is not None and moons.log_density is not None
    assert {x.device.type for x in (*moons.splits.values(), *moons.labels.values())} == {device.type}
    assert moons.log_density(moons.test).device.type == device.type


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param({"valid": torch.zeros(4)}, ["valid", "(4,)", "flatten"], id="split-not-a-matrix"),
        pytest.param({"test": torch.zeros(4, 5)}, ["test", "5 columns", "train has 6"], id="other-width"),
        pytest.param({"columns": ["a", "b"]}, ["6 columns", "2 names"], id="too-few-names"),
        pytest.param({"shape": (2, 2)}, ["6 columns", "(2, 2)"], id="shape-of-other-size"),
        pytest.param({"labels": {"train": torch.zeros(3)}}, ["labels", "train"], id="labels-of-other-length"),
        pytest.param({"labels": {"tests": torch.zeros(4)}}, ["labels", "tests"], id="labels-of-no-split"),
    ],
)
def test_refuses_what_does_not_fit(arguments: dict, says: list[str]) -> None:
    with pytest.raises(DataError) as refusal:
        Dataset(**{"name": "mine", "train": X, "valid": X, "test": X, **arguments})
    assert_one_sentence(str(refusal.value), says)


def test_a_split_may_be_empty() -> None:
    assert repr(Dataset("mine", X, X[:0], X[:0])) == "Dataset(mine: 4/0/0 x 6, float32)"


@pytest.mark.parametrize("name", ["digits", "Moons", "eight-gaussians", "checkerboard", "pinwheel"])
def test_load_by_name(name: str) -> None:
    assert data.load(name).name == name.lower().replace("-", "_")


def test_load_by_path(tmp_path: Path) -> None:
    data.write(tmp_path / "mine.csv", torch.arange(40).reshape(20, 2))
    assert repr(data.load(tmp_path / "mine.csv")) == "Dataset(mine: 16/2/2 x 2, 40 values)"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param("digit", ["'digit'", "did you mean 'digits'?", "nltcs"], id="typo"),
        pytest.param("zzz", ["'zzz'", "digits", ".parquet"], id="nothing-near"),
        pytest.param("nowhere/mine.csv", ["nowhere/mine.csv", "no file"], id="missing-file"),
    ],
)
def test_load_of_an_unknown_name(name: str, says: list[str]) -> None:
    with pytest.raises(DataError) as refusal:
        data.load(name)
    assert_one_sentence(str(refusal.value), says)


def test_import_loads_neither_scikit_learn_nor_pandas() -> None:
    code = (
        "import sys, ppl_dgm; before = set(sys.modules); import ppl_dgm.data; "
        "print(*({'sklearn', 'pandas', 'pyarrow', 'scipy'} & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == ""


def assert_one_sentence(message: str, says: list[str]) -> None:
    """The message is one line that names each of these."""
    assert "\n" not in message
    missing = [word for word in says if word not in message]
    assert not missing, f"{message!r} does not name {missing}"
