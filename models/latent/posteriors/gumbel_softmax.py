"""GumbelSoftmaxPosterior: categorical latent variables, relaxed to points of a simplex."""

from typing import Any

from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.distributions import Concrete

from .categories import CategoricalPosterior

__all__ = ["GumbelSoftmaxPosterior"]


class GumbelSoftmaxPosterior(CategoricalPosterior):
    """q(z | x) = prod_l Concrete(z_l; logits_l, temperature), L points of the simplex with K corners.

    The variable is continuous, and so is the program whose evidence its bound is below: the one whose prior is relaxed
    too ("categorical" with a temperature; q's at first, unless given), with a decoder that takes points between the corners. Under
    that prior the ELBO is a bound like any other, and gradients are unbiased, but it says nothing of the program with
    categories. An ELBO that joins relaxed draws with the divergence between the categorical distributions, as is often
    done, bounds no evidence at all. For categories proper see `StraightThroughPosterior`.

    Arguments:
        latent: variables L.
        classes: K of each.
        temperature: of q, positive; the buffer `temperature` can be lowered as learning goes on.

    Source: Maddison, Mnih and Teh (2017), The Concrete distribution, section 3.3 and appendix C; Jang, Gu and Poole (2017).

    Example:
        >>> import torch
        >>> GumbelSoftmaxPosterior(2, classes=3)(torch.randn(5, 6)).rsample().shape
        torch.Size([5, 2, 3])
    """

    support = constraints.independent(constraints.simplex, 1)

    def __init__(self, latent: int, classes: int = 10, temperature: float = 2 / 3) -> None:
        super().__init__(latent, classes, temperature)
        self.prior_options = {"classes": classes, "temperature": temperature}

    def forward(self, features: Tensor) -> Any:  # [batch, L K]
        return Concrete(self.temperature, logits=self.logits(features)).to_event(1)
