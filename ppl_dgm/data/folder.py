"""Data sets too large to ship: read from a folder of the user's, and checked against their SHA-256."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from ..errors import DataError
from .dataset import Dataset

__all__ = ["BINARY", "binary", "mnist"]

VARIABLE = "PPL_DGM_DATA"
DEBD_URL = "https://github.com/arranger1044/DEBD"
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"

# SHA-256 of the archives that the project is tested with. Another file with the same arrays is as good, so
# the arrays have their own SHA-256: as bytes in C order, one array after the other.
FILES = {
    "mnist.npz": "379460fdbbc2f1965a7096a8dbbabdbb5a54c8ee049477981fdb97ca6f674903",
    "debd.npz": "06e29cab99e73cbafd57a1bff6f432e1f2329ae71bc31b943333d62acc77a865",
}
MNIST_SHAPES = {
    "x_train": (60000, 28, 28),
    "y_train": (60000,),
    "x_test": (10000, 28, 28),
    "y_test": (10000,),
}
MNIST_ARRAYS = "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16"
BINARY = {  # name: columns, rows of train, valid and test
    "nltcs": (16, (16181, 2157, 3236)),
    "baudio": (100, (15000, 2000, 3000)),
    "jester": (100, (9000, 1000, 4116)),
    "accidents": (111, (12758, 1700, 2551)),
    "pumsb_star": (163, (12262, 1635, 2452)),
    "dna": (180, (1600, 400, 1186)),
    "nips": (500, (400, 100, 1240)),
    "moviereview": (1001, (1600, 150, 250)),
    "voting": (1359, (1214, 200, 350)),
}
BINARY_ARRAYS = {
    "nltcs": "22a8a5af3744486e3f2f559b26ef5c67815292aa81a04f2000b325b2d45b5064",
    "baudio": "ca41754ed6762bdd77d1aac1331780751c806f652d9b502e9c16dcb6b92a4acd",
    "jester": "c94f812077f79554abb6d9bdb05028b3f9d59390dd549e410c5379ab9e22bc7b",
    "accidents": "f2057adadcae1a2a046cb7b4810e71be5ce4f417654a337d6c2ca983f0019d40",
    "pumsb_star": "130a9ffd55fa0bd72c96d06c94436567673f24ce758ab94407525e54be37344c",
    "dna": "a2b03c1b36a4044734815a5cffa5f140a3c6a2be96aa5aa4e1bfbfaaa670c1aa",
    "nips": "21d5556732ab50d51830c7c6bae988d0f7ba42dd586ec9df38915c5b955f6f1f",
    "moviereview": "70d56c8212419723c49d95b96408d7d57a2f7f463198548245c312edfd619532",
    "voting": "c3aaf7ded0520ab1005045d3179538a7c5fc4dba5e6884a7d9eb4ff8aee27613",
}
DAMAGED = (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error)
SPLITS = ("train", "valid", "test")


def mnist(folder: str | os.PathLike | None = None, binarise: Literal["static"] | None = None) -> Dataset:
    """MNIST, 28x28 pixels with integers 0 to 255: 50000/10000/10000.

    The validation split is the last 10000 images of the training file.

    Arguments:
        folder: the folder that holds `mnist.npz` (arrays x_train, y_train, x_test, y_test, as Keras
            distributes them); by default the one that the environment variable PPL_DGM_DATA names.
        binarise: None keeps the 256 values; "static" draws each pixel once from Bernoulli(x / 255) with seed
            0, the usual binary task (Salakhutdinov and Murray 2008; their own draw is another one).

    Returns:
        The data set, int64 [n, 784], with the digits as labels.

    Raises:
        DataError: the file is missing, damaged, or not MNIST.

    Source: Y. LeCun, C. Cortes and C. J. C. Burges, The MNIST database of handwritten digits; LeCun et al.
    (1998), "Gradient-based learning applied to document recognition".
    """
    if binarise not in (None, "static"):
        raise DataError(f"mnist: binarise is {binarise!r}, expected None or 'static'; choose one of the two.")
    path = _folder(folder, "mnist", f"get mnist.npz from {MNIST_URL}") / "mnist.npz"
    if not path.is_file():
        raise DataError(_missing("mnist", path, f"get it from {MNIST_URL}"))
    arrays = _verified("mnist", path, _read_npz(path, list(MNIST_SHAPES)), MNIST_SHAPES, MNIST_ARRAYS)
    x = [torch.from_numpy(arrays[key]).flatten(1) for key in ("x_train", "x_test")]  # [n, 784]
    y = [torch.from_numpy(arrays[key]).long() for key in ("y_train", "y_test")]  # [n]
    if binarise:
        generator = torch.Generator().manual_seed(0)
        x = [(torch.rand(part.shape, generator=generator) < part / 255).to(torch.uint8) for part in x]
    return Dataset(
        name="mnist_binary" if binarise else "mnist",
        train=x[0][:50000].long(),
        valid=x[0][50000:].long(),
        test=x[1].long(),
        values=2 if binarise else 256,
        shape=(28, 28),
        labels={"train": y[0][:50000], "valid": y[0][50000:], "test": y[1]},
        source="LeCun, Cortes and Burges, The MNIST database of handwritten digits",
        licence="CC BY-SA 3.0",
    )


def binary(name: str, folder: str | os.PathLike | None = None) -> Dataset:
    """One of nine binary density-estimation sets, with the splits that the literature reports.

    nltcs (16 columns), baudio and jester (100), accidents (111), pumsb_star (163), dna (180), nips (500),
    moviereview (1001), voting (1359).

    Arguments:
        name: one of the nine names.
        folder: the folder that holds `debd.npz` (arrays NAME/train, NAME/valid, NAME/test), or the text files
            NAME/NAME.train.data, .valid.data and .test.data of the DEBD collection; by default the one that
            the environment variable PPL_DGM_DATA names.

    Returns:
        The data set, int64 zeros and ones.

    Raises:
        DataError: an unknown name, or files that are missing, damaged or other than the tested ones.

    Source: cite J. Van Haaren and J. Davis (2012), "Markov network structure learning: a randomized feature
    generation approach", and, for nips, H. Larochelle and I. Murray (2011), "The neural autoregressive
    distribution estimator"; all nine are in the DEBD collection.
    """
    if name not in BINARY:
        raise DataError(f"unknown binary data set {name!r}; choose one of {', '.join(BINARY)}.")
    columns, rows = BINARY[name]
    where = f"get the folder datasets/{name} from {DEBD_URL}"
    root = _folder(folder, name, where)
    keys = [f"{name}/{split}" for split in SPLITS]
    texts = [root / name / f"{name}.{split}.data" for split in SPLITS]
    path = root / "debd.npz"
    if path.is_file():
        arrays = _read_npz(path, keys)
    elif all(text.is_file() for text in texts):
        path = root / name
        arrays = {key: _read_text(text) for key, text in zip(keys, texts, strict=True)}
    else:
        raise DataError(_missing(name, path, where))
    shapes = {key: (n, columns) for key, n in zip(keys, rows, strict=True)}
    arrays = _verified(name, path, arrays, shapes, BINARY_ARRAYS[name])
    train, valid, test = (torch.from_numpy(arrays[key]).long() for key in keys)
    paper = "Larochelle and Murray (2011)" if name == "nips" else "Van Haaren and Davis (2012)"
    return Dataset(
        name,
        train,
        valid,
        test,
        values=2,
        source=f"{paper}; the collection {DEBD_URL}",
        licence="none stated; cite the source",
    )


def _folder(folder: str | os.PathLike | None, name: str, where: str) -> Path:
    named = folder if folder is not None else os.environ.get(VARIABLE)
    if not named:
        raise DataError(
            f"{name} is read from a folder, and none is named: {where}, and set the environment variable "
            f"{VARIABLE} to the folder that holds it."
        )
    return Path(named).expanduser()


def _missing(name: str, path: Path, where: str) -> str:
    return (
        f"{name}: there is no file {path}; {where}, and set the environment variable {VARIABLE} (or "
        "folder=) to the folder that holds it."
    )


def _read_npz(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """The named arrays of an archive, never unpickled."""
    try:
        with path.open("rb") as file:  # numpy leaves the file open when the archive is damaged
            archive = np.load(file, allow_pickle=False)
            return {key: archive[key] for key in keys}
    except KeyError as error:
        raise DataError(f"{path} has no array {error}; fetch the file again.") from None
    except DAMAGED as error:
        raise DataError(f"{path} is not a whole .npz archive ({error}); fetch the file again.") from None


def _read_text(path: Path) -> np.ndarray:
    try:
        return np.loadtxt(path, dtype=np.uint8, delimiter=",", ndmin=2)
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not a table of zeros and ones ({error}); fetch the file again.") from None


def _verified(
    name: str,
    path: Path,
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    digest: str,
) -> dict[str, np.ndarray]:
    """The arrays as uint8, or a refusal if they are not the published ones."""
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise DataError(
                f"{name}: the array {key!r} of {path} has shape {arrays[key].shape}, expected {shape}; "
                "fetch the file again."
            )
    small = {key: np.ascontiguousarray(arrays[key].astype(np.uint8)) for key in shapes}
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == FILES[path.name]:
        return small
    found = hashlib.sha256()
    for array in small.values():
        found.update(array.tobytes())
    if found.hexdigest() != digest:
        raise DataError(
            f"{name}: the SHA-256 of the data in {path} is {found.hexdigest()[:12]}..., expected "
            f"{digest[:12]}...; these are other data under the same name, so fetch the file again."
        )
    return small
