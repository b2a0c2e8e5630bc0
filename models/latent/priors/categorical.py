"""CategoricalPrior: discrete latent variables."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.distributions import Concrete
from ppl_dgm.errors import ProgramError

from .prior import Encode, Prior, positive_count

__all__ = ["CategoricalPrior", "Categories"]


class Categories(dist.OneHotCategorical):
    """One-hot vectors of C entries, with log p(z) = sum_k z_k log w_k, so that a gradient passes to z where z has one (that of
    a straight-through draw); at points of the simplex between the corners, which a learner may draw, the sum goes on linearly.

    Arguments:
        logits: log w, [..., C].

    Raises:
        ValueError: under validation, a value that is no point of the simplex.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args and not constraints.simplex.check(value).all():
            raise ValueError("a value of Categories is no point of the simplex; give one-hot vectors.")
        return (value * self.logits).sum(-1)


class CategoricalPrior(Prior):
    """p(z) = prod_l w_l[z_l], each z_l one of C categories written as a one-hot vector: event shape [latent, classes].

    With a temperature the categories are relaxed to points of the simplex, with the density of the Concrete (Gumbel-softmax)
    distribution; the bound is then one on the relaxed program's evidence.

    Arguments:
        latent: L, the number of categorical variables.
        classes: C.
        learned: whether the probabilities w are learned; uniform otherwise.
        temperature: None for one-hot vectors, else of the relaxation, positive.

    Raises:
        ProgramError: a size or the temperature is out of range.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax; Maddison, Mnih and Teh (2017), The
    Concrete distribution.
    """

    logits: Tensor

    def __init__(self, latent: int, classes: int = 10, learned: bool = False, temperature: float | None = None) -> None:
        super().__init__(latent)
        positive_count("classes", classes, 2)
        if temperature is not None and not temperature > 0:
            raise ProgramError(f"temperature is {temperature!r}; give a positive number, or None for one-hot vectors.")
        self.classes, self.temperature = classes, temperature
        logits = torch.zeros(latent, classes)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def distribution(self, encode: Encode | None = None) -> Any:
        if self.temperature is None:
            return Categories(logits=self.logits).to_event(1)
        temperature = torch.full_like(self.logits[0, 0], self.temperature)
        return Concrete(temperature, logits=self.logits).to_event(1)
