"""Condition: what a program is told beside x, a class or real numbers, as input of networks and as a site."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.options import is_count

__all__ = ["Condition", "joined"]


class Condition(nn.Module):
    """The second argument of a program: one class, or `features` real numbers, for each example.

    Arguments:
        owner: the program's name, for messages.
        classes: number of classes K; values are 0, ..., K - 1, and enter networks as K indicators.
        features: number of real numbers; they enter networks as they are.
        missing: whether -1 marks a class that is not known.

    Attributes:
        size: how many numbers networks are given.

    Raises:
        ProgramError: neither or both of `classes` and `features`, or a number that is not positive.
    """

    zeros: Tensor

    def __init__(
        self, owner: str, classes: int | None = None, features: int | None = None, missing: bool = False
    ) -> None:
        super().__init__()
        if (classes is None) == (features is None):
            raise ProgramError(
                f"{owner}: give either classes, for a category, or conditions, the number of real numbers to condition on."
            )
        least = 2 if classes is not None else 1
        if not is_count(classes if classes is not None else features, least):
            what = "classes" if classes is not None else "conditions"
            raise ProgramError(f"{owner}: {what} is {classes or features!r}; give a whole number, at least {least}.")
        self.owner, self.classes, self.features, self.missing = owner, classes, features, missing
        self.size: int = classes or features or 0
        self.register_buffer("zeros", torch.zeros(self.size), persistent=False)

    def distribution(self) -> Any:
        """What stands for the conditions where none are given: any class alike, or N(0, I). The program has no belief of its own."""
        if self.classes is not None:
            return dist.Categorical(logits=self.zeros)
        return dist.Normal(self.zeros, 1.0).to_event(1)

    def code(self, y: Tensor) -> Tensor:
        """Values as input of networks, [..., size]; a missing class is all zeros."""
        if self.features is not None:
            return y.to(self.zeros.dtype)
        return (y[..., None] == torch.arange(self.size, device=y.device)).to(self.zeros.dtype)

    def checked(self, y: Any, rows: int, name: str) -> Tensor:
        """Values given by a caller, [rows] whole numbers or [rows, features].

        Raises:
            DataError: another shape, a class that there is not, or a number that is not finite.
        """
        y = torch.as_tensor(y, device=self.zeros.device)
        shape = (rows,) if self.classes is not None else (rows, self.size)
        if tuple(y.shape) != shape:
            raise DataError(
                f"{self.owner}: {name} must have the shape {shape}, a row for each example, not {tuple(y.shape)}."
            )
        if self.features is not None:
            if not bool(y.isfinite().all()):
                row, column = (~y.isfinite()).nonzero()[0].tolist()
                raise DataError(f"{name}[{row}, {column}] is {float(y[row, column])}; every condition must be finite.")
            return y.to(self.zeros.dtype)
        if y.is_floating_point() and self.missing:
            y = torch.where(y.isnan(), -1.0, y)
        wrong = (y < (-1 if self.missing else 0)) | (y >= self.size) | (y != y.long())
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            also = "; -1 marks a missing one" if self.missing else ""
            raise DataError(f"{name}[{row}] is {y[row].item()}, but classes are 0, ..., {self.size - 1}{also}.")
        return y.long()


def joined(*parts: Tensor) -> Tensor:
    """Numbers side by side along the last dimension, the dimensions before it broadcast."""
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1)
