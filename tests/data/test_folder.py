"""MNIST and the binary sets: read from a folder, refused when they are missing or other data."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_dgm.data import binary, folder, load, mnist
from ppl_dgm.errors import DataError

FOLDER = os.environ.get("PPL_DGM_DATA", "")


def needs(name: str) -> pytest.MarkDecorator:
    here = bool(FOLDER) and (Path(FOLDER) / name).is_file()
    return pytest.mark.skipif(not here, reason=f"PPL_DGM_DATA names no folder with {name}")


@needs("mnist.npz")
def test_mnist() -> None:
    raw, drawn = mnist(), mnist(FOLDER, binarise="static")
    assert repr(raw) == "Dataset(mnist: 50000/10000/10000 x 784, 256 values, pixels (28, 28))"
    assert raw.labels is not None and raw.train.dtype == torch.int64
    assert raw.labels["train"][:5].tolist() == [5, 0, 4, 1, 9] and raw.labels["test"][:3].tolist() == [
        7,
        2,
        1,
    ]
    assert float(torch.cat([raw.train, raw.valid]).double().mean()) / 255 == pytest.approx(0.13066, abs=1e-5)
    assert drawn.values == 2 and set(drawn.test.unique().tolist()) == {0, 1}
    # The draw is Bernoulli(x / 255): certain at the ends, right on average between.
    p = raw.test.double() / 255
    assert bool((drawn.test[p == 0] == 0).all()) and bool((drawn.test[p == 1] == 1).all())
    error = float((p * (1 - p)).sum().sqrt())
    assert abs(float(drawn.test.sum() - p.sum())) < 4 * error


@needs("debd.npz")
@pytest.mark.parametrize("name", folder.BINARY)
def test_binary_sets(name: str) -> None:
    columns, rows = folder.BINARY[name]
    found = binary(name)
    assert [len(x) for x in found.splits.values()] == list(rows) and found.observed == columns
    assert found.values == 2 and found.train.dtype == torch.int64 and set(found.train.unique().tolist()) == {0, 1}
    assert repr(load(name)) == repr(found)


@needs("debd.npz")
def test_the_collections_text_files_are_as_good(tmp_path: Path) -> None:
    reference = binary("nips")
    (tmp_path / "nips").mkdir()
    for split, x in reference.splits.items():
        np.savetxt(tmp_path / "nips" / f"nips.{split}.data", x.numpy(), fmt="%d", delimiter=",")
    found = binary("nips", tmp_path)
    assert all(torch.equal(found.splits[split], reference.splits[split]) for split in found.splits)


@needs("debd.npz")
def test_the_same_arrays_in_another_archive_are_as_good(tmp_path: Path) -> None:
    reference = binary("nltcs")
    np.savez(tmp_path / "debd.npz", **{f"nltcs/{split}": x.numpy() for split, x in reference.splits.items()})
    assert torch.equal(binary("nltcs", tmp_path).test, reference.test)


def forged(name: str, change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    """An archive of zeros, shaped as the real one and then changed."""

    def save(path: Path) -> None:
        if name == "mnist":
            arrays = {key: np.zeros(shape, np.uint8) for key, shape in folder.MNIST_SHAPES.items()}
            change(arrays)
            np.savez_compressed(path / "mnist.npz", **arrays)
        else:
            columns, rows = folder.BINARY[name]
            arrays = {
                f"{name}/{split}": np.zeros((n, columns), np.uint8)
                for split, n in zip(("train", "valid", "test"), rows, strict=True)
            }
            change(arrays)
            np.savez_compressed(path / "debd.npz", **arrays)

    return save


def nothing(*_: object) -> None:
    """Leaves things as they are."""


@pytest.mark.parametrize(
    ("name", "save", "says"),
    [
        pytest.param("mnist", nothing, ["no file", "https://", "PPL_DGM_DATA"], id="mnist-missing"),
        pytest.param("nltcs", nothing, ["no file", "https://", "PPL_DGM_DATA"], id="binary-missing"),
        pytest.param("nltcs", forged("nltcs", nothing), ["SHA-256", "22a8a5af3744", "fetch"], id="other-numbers"),
        pytest.param("mnist", forged("mnist", nothing), ["SHA-256", "06b0d1f124c4", "fetch"], id="other-images"),
        pytest.param(
            "nltcs",
            forged("nltcs", lambda arrays: arrays.update({"nltcs/test": np.zeros((3, 16), np.uint8)})),
            ["'nltcs/test'", "(3, 16)", "(3236, 16)"],
            id="too-few-rows",
        ),
        pytest.param(
            "nltcs",
            forged("nltcs", lambda arrays: arrays.__delitem__("nltcs/valid")),
            ["nltcs/valid", "no array"],
            id="split-left-out",
        ),
        pytest.param(
            "nltcs",
            forged("nltcs", lambda arrays: arrays.update({"nltcs/test": np.array([None])})),
            ["debd.npz", "not a whole"],
            id="pickled-objects",
        ),
        pytest.param("mnist", lambda p: (p / "mnist.npz").write_bytes(b"PK\3\4"), ["not a whole"], id="truncated"),
        pytest.param("mnist", lambda p: (p / "mnist.npz").write_bytes(b"<html>"), ["not a whole"], id="web-page"),
        pytest.param("mnist", lambda p: (p / "mnist.npz").touch(), ["not a whole"], id="empty"),
    ],
)
def test_refusals(
    tmp_path: Path, name: str, save: Callable[[Path], None], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path)
    monkeypatch.setenv("PPL_DGM_DATA", str(tmp_path))
    refuses(lambda: load(name), [name, *says] if name == "mnist" else says)


@pytest.mark.parametrize(
    ("action", "says"),
    [
        pytest.param(mnist, ["mnist", "none is named", "https://", "PPL_DGM_DATA"], id="mnist-no-folder"),
        pytest.param(lambda: binary("dna"), ["dna", "none is named", "https://", "PPL_DGM_DATA"], id="dna-no-folder"),
        pytest.param(lambda: binary("dan"), ["'dan'", "nltcs", "dna"], id="unknown-set"),
        pytest.param(lambda: mnist(binarise="yes"), ["binarise", "'yes'", "'static'"], id="unknown-binarisation"),  # type: ignore[arg-type]
    ],
)
def test_refusals_without_a_folder(
    action: Callable[[], object], says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PPL_DGM_DATA", raising=False)
    refuses(action, says)


def refuses(action: Callable[[], object], says: list[str]) -> None:
    """The action raises DataError, in one line that names each of these."""
    with pytest.raises(DataError) as refusal:
        action()
    message = str(refusal.value)
    assert "\n" not in message
    missing = [word for word in says if word not in message]
    assert not missing, f"{message!r} does not name {missing}"
