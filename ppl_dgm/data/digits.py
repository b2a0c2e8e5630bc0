"""Handwritten digits, 8x8: small enough to learn in seconds, real enough to rank models."""

import torch

from .dataset import Dataset

__all__ = ["digits"]


def digits() -> Dataset:
    """scikit-learn's 1797 images of 8x8 pixels, integers 0 to 16 (17 values), in file order: 1000/350/447.

    Returns:
        The data set, int64, with the digits as labels.

    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, doi:10.24432/C50P49, as shipped with scikit-learn (`sklearn.datasets.load_digits`).

    >>> digits()
    Dataset(digits: 1000/350/447 x 64, 17 values, pixels (8, 8))
    """
    from sklearn.datasets import load_digits  # takes a second, and only these data need it

    bunch = load_digits()
    x = torch.from_numpy(bunch.data).long()  # [1797, 64]
    y = torch.from_numpy(bunch.target).long()  # [1797]
    sizes = [1000, 350, 447]
    train, valid, test = x.split(sizes)
    return Dataset(
        name="digits",
        train=train,
        valid=valid,
        test=test,
        values=17,
        shape=(8, 8),
        labels=dict(zip(("train", "valid", "test"), y.split(sizes), strict=True)),
        source="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI",
        licence="CC BY 4.0",
    )
