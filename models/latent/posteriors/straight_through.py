"""StraightThroughPosterior: categorical latent variables, with the gradient of their relaxation."""

from typing import Any

from torch import Tensor

from ppl_dgm.distributions import StraightThroughGumbel

from .categories import CategoricalPosterior

__all__ = ["StraightThroughPosterior"]


class StraightThroughPosterior(CategoricalPosterior):
    """q(z | x) = prod_l Categorical(z_l; softmax(logits_l)), L one-hot vectors of K entries.

    Draws are one-hot, and log q is that of the categories, so that the ELBO and importance-weighted bounds are below the
    evidence of the discrete program itself. Only the gradient of what the decoder says is biased: it is that of the
    Gumbel-softmax relaxation at `temperature`. With the prior "categorical" the divergence is known in closed form
    (`SVI(elbo="mean_field")`), and its gradient is exact.

    Arguments:
        latent: variables L.
        classes: K of each.
        temperature: of the gradient, positive; the buffer `temperature` can be lowered as learning goes on.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax, section 2.2.

    Example:
        >>> import torch
        >>> StraightThroughPosterior(2, classes=3)(torch.randn(5, 6)).rsample().sum(-1)[0]
        tensor([1., 1.])
    """

    support: Any = StraightThroughGumbel.support

    def forward(self, features: Tensor) -> Any:  # [batch, L K]
        return StraightThroughGumbel(self.temperature, logits=self.logits(features)).to_event(1)
