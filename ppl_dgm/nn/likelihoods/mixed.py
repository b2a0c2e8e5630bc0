"""MixedLikelihood: rows of a table whose columns are real, binary, counts and categories."""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import softplus

from ...distributions.columns import Columns
from ...errors import ProgramError
from .likelihood import Likelihood, check_floor

__all__ = ["MixedLikelihood"]

_NUMBERS = ("gaussian", "poisson")
_RATE = 20.0  # largest |log rate|: e^20 is as large a count as float32 tells from its neighbours


class MixedLikelihood(Likelihood):
    """Each column of its own kind, independent of the others given the features:

    - "gaussian": x_d ~ Normal(c_d + r_d a, r_d s_d), with one learned s_d, at least `floor`;
    - "bernoulli": x_d ~ Bernoulli(sigmoid(a));
    - "poisson": x_d ~ Poisson(exp(a) m_d);
    - "categorical-V": x_d ~ Categorical(softmax(a_1, ..., a_V)), the codes 0, ..., V - 1 written as numbers.

    c_d and r_d are the column's mean and standard deviation, m_d its mean count; `start` sets them from the training rows, so
    that columns in very different units need no preparation. Before that they are 0, 1 and 1.

    An encoder gets `inputs` numbers: real columns standardised, counts standardised after log(1 + x), bits as -1 or 1, and V
    numbers, 1 for the category that is there and 0 for the others, for each column of categories.

    Arguments:
        observed: D, the number of columns.
        columns: the kind of each.
        floor: the smallest s_d, in standard deviations of the column.

    Raises:
        ProgramError: an unknown kind, or another number of columns than D.

    Source: Nazabal, Olmos, Ghahramani and Valera (2020), Handling incomplete heterogeneous data using VAEs.

    Example:
        >>> part = MixedLikelihood(3, columns=["gaussian", "categorical-4", "bernoulli"])
        >>> part.features, part.inputs
        (6, 6)
        >>> part(torch.zeros(2, 6)).sample().shape
        torch.Size([2, 3])
    """

    name = "mixed"
    places: Tensor
    centre: Tensor
    spread: Tensor
    mean_count: Tensor
    started: Tensor

    def __init__(
        self, observed: int, values: int | None = None, columns: Sequence[str] = (), floor: float = 1e-3
    ) -> None:
        super().__init__(observed, values)
        self._no_values()
        if len(columns) != observed:
            raise ProgramError(
                f"likelihood 'mixed': columns names {len(columns)} columns, but observed is {observed}; give the kind of "
                "each column: 'gaussian', 'bernoulli', 'poisson' or 'categorical-V'."
            )
        self.columns, self.floor = list(columns), check_floor(floor)
        self.sizes = [_size(kind) for kind in columns]  # V for categories, else 1
        self.features = self.inputs = sum(self.sizes)
        # columns of one kind are one group: its columns of x, and its numbers among the decoder's
        self.kinds = list(dict.fromkeys(columns))
        begins = torch.tensor([0, *self.sizes]).cumsum(0)
        for g, kind in enumerate(self.kinds):
            places = [d for d, other in enumerate(columns) if other == kind]
            numbers = [int(begins[d]) + v for d in places for v in range(self.sizes[d])]
            self.register_buffer(f"columns_{g}", torch.tensor(places), persistent=False)
            self.register_buffer(f"features_{g}", torch.tensor(numbers), persistent=False)
        self.free_scale = nn.Parameter(torch.full((sum(kind == "gaussian" for kind in columns),), 0.5))
        self.register_buffer("centre", torch.zeros(observed))
        self.register_buffer("spread", torch.ones(observed))
        self.register_buffer("mean_count", torch.ones(observed))
        self.register_buffer("started", torch.tensor(False))

    @property
    def support(self) -> constraints.Constraint:
        """One constraint for each column."""
        return constraints.stack([_support(kind) for kind in self.columns], -1)

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        groups = [
            (self._group(kind, features.index_select(-1, numbers), places), places)
            for kind, places, numbers in self._groups()
        ]
        return Columns(groups, features.dtype)

    def scaled(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.to(dtype)
        parts: list[Tensor] = []
        for kind, column, centre, spread, size in zip(
            self.columns, x.unbind(-1), self.centre, self.spread, self.sizes, strict=True
        ):
            if kind in _NUMBERS:
                value = torch.log1p(column) if kind == "poisson" else column
                parts.append(((value - centre) / spread).unsqueeze(-1))
            elif kind == "bernoulli":
                parts.append((2.0 * column - 1.0).unsqueeze(-1))
            else:
                parts.append((column.unsqueeze(-1) == torch.arange(size, device=x.device)).to(dtype))
        return torch.cat(parts, -1).to(dtype)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Set the centres and spreads of the columns of numbers, unless that has been done before."""
        if bool(self.started):
            return
        for d, kind in enumerate(self.columns):
            if kind not in _NUMBERS:
                continue
            column = x[:, d].double()
            self.mean_count[d] = column.mean().clamp_min(1e-3)
            value = torch.log1p(column) if kind == "poisson" else column
            deviation = value.std(correction=0)
            self.centre[d] = value.mean()
            self.spread[d] = deviation if deviation > 0 else 1.0  # a constant column has no scale of its own
        self.started.fill_(True)

    def _groups(self) -> list[tuple[str, Tensor, Tensor]]:
        return [
            (kind, getattr(self, f"columns_{g}"), getattr(self, f"features_{g}")) for g, kind in enumerate(self.kinds)
        ]

    def _group(self, kind: str, a: Tensor, places: Tensor) -> Any:
        if kind == "gaussian":
            spread = self.spread.index_select(0, places)
            scale = spread * (self.floor + softplus(self.free_scale))
            return dist.Normal(self.centre.index_select(0, places) + spread * a, scale).to_event(1)
        if kind == "bernoulli":
            return dist.Bernoulli(logits=a).to_event(1)
        if kind == "poisson":
            return dist.Poisson(self.mean_count.index_select(0, places) * a.clamp(-_RATE, _RATE).exp()).to_event(1)
        return dist.Categorical(logits=a.unflatten(-1, (len(places), -1))).to_event(1)


def _size(kind: str) -> int:
    """How many numbers of the decoder's a column takes."""
    name, _, values = kind.partition("-")
    if kind in ("gaussian", "bernoulli", "poisson"):
        return 1
    if name == "categorical" and values.isdecimal() and int(values) > 1:
        return int(values)
    raise ProgramError(
        "likelihood 'mixed': a column's kind is 'gaussian', 'bernoulli', 'poisson' or 'categorical-V' (as in "
        f"'categorical-3'), not {kind!r}."
    )


def _support(kind: str) -> constraints.Constraint:
    simple = {
        "gaussian": constraints.real,
        "bernoulli": constraints.boolean,
        "poisson": constraints.nonnegative_integer,
    }
    return simple[kind] if kind in simple else constraints.integer_interval(0, _size(kind) - 1)
