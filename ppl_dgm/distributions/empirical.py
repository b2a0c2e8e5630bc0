"""Empirical: the distribution of a data set itself, a mixture of point masses at its rows."""

from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..errors import ProgramError

__all__ = ["Empirical"]


class Empirical(TorchDistribution):
    """p(x) = sum_n w_n [x = x_n], with w_n = 1 / N unless weights are given.

    What maximum likelihood compares a model with: KL(p || q) = -H(p) - sum_n w_n log q(x_n). Of categories it is a
    distribution as any other. Of continuous data it is a mixture of Dirac masses, so that log_prob is the log of the mass
    of a point and not of a density; it goes with no model's log density. Pyro's class of this name scores one value at a
    time and knows scalar weights alone; here rows that are equal count together and any batch is scored.

    Arguments:
        rows: x_1, ..., x_N, [N, *event].
        weights: [N], not negative; they are normalised.

    Raises:
        ProgramError: there are no rows, or the weights do not fit.

    >>> p = Empirical(torch.tensor([[0, 1], [2, 0], [0, 1], [0, 0]]))
    >>> p.log_prob(torch.tensor([[0, 1], [2, 0], [1, 1]])).exp()
    tensor([0.5000, 0.2500, 0.0000])
    >>> p.entropy()
    tensor(1.0397)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(self, rows: Tensor, weights: Tensor | None = None, validate_args: bool | None = None) -> None:
        if not isinstance(rows, Tensor) or rows.dim() < 1 or not len(rows):
            found = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else f"type {type(rows).__name__}"
            raise ProgramError(f"Empirical: rows have {found}, but a tensor [N, ...] with at least one row is needed.")
        dtype = rows.dtype if rows.is_floating_point() else torch.get_default_dtype()
        weights = torch.ones(len(rows), dtype=dtype, device=rows.device) if weights is None else weights
        if weights.shape != rows.shape[:1] or bool((weights < 0).any()) or not 0 < float(weights.sum()) < torch.inf:
            raise ProgramError(
                f"Empirical: weights of shape {tuple(weights.shape)} do not go with {len(rows)} rows; give one number "
                "from 0 for each, not all of them 0."
            )
        atoms, place = rows.unique(dim=0, return_inverse=True)
        self.atoms = atoms
        self.probs = (weights / weights.sum()).new_zeros(len(atoms)).index_add(0, place, weights / weights.sum())
        super().__init__(torch.Size(), rows.shape[1:], validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """Reals or integers of the event's shape; only the rows have mass."""
        one = (
            constraints.real
            if self.atoms.is_floating_point()
            else constraints.integer_interval(int(self.atoms.min()), int(self.atoms.max()))
        )
        return constraints.independent(one, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Empirical":
        new = self._get_checked_instance(Empirical, _instance)
        new.atoms, new.probs = self.atoms, self.probs
        super(Empirical, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log of the mass of each value in nats, -inf where it is no row; compared exactly."""
        event = len(self.event_shape)
        shape = torch.broadcast_shapes(value.shape[: value.dim() - event], self.batch_shape)
        asked = value.expand(shape + self.event_shape).reshape(-1, *self.event_shape)
        dtype = torch.promote_types(asked.dtype, self.atoms.dtype)
        both = torch.cat([self.atoms.to(dtype), asked.to(dtype)])
        found, place = both.unique(dim=0, return_inverse=True)
        log_mass = self.probs.new_full((len(found),), -torch.inf)
        log_mass = log_mass.index_put((place[: len(self.atoms)],), self.probs.log())
        return log_mass[place[len(self.atoms) :]].reshape(shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Rows drawn with replacement: a bootstrap of the data."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.atoms[Categorical(probs=self.probs).sample(shape)]

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The different rows, each once."""
        atoms = self.atoms.reshape(-1, *(1 for _ in self.batch_shape), *self.event_shape)
        return atoms.expand(-1, *self.batch_shape, *self.event_shape) if expand else atoms

    @property
    def mean(self) -> Tensor:
        return self._expected(self.atoms.to(self.probs))

    @property
    def variance(self) -> Tensor:
        """Of the weighted rows, divided by N and not by N - 1."""
        return self._expected((self.atoms.to(self.probs) - self._mean) ** 2)

    def entropy(self) -> Tensor:
        """-sum p log p over the different rows in nats; log N at most."""
        return -torch.xlogy(self.probs, self.probs).sum().expand(self.batch_shape)

    @property
    def _mean(self) -> Tensor:
        return torch.tensordot(self.probs, self.atoms.to(self.probs), 1)

    def _expected(self, values: Tensor) -> Tensor:
        return torch.tensordot(self.probs, values, 1).expand(self.batch_shape + self.event_shape)
