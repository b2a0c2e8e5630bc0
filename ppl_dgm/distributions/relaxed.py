"""Draws of categories that a gradient can pass: relaxed ones with a density of their own, and exact ones."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Concrete", "RelaxedCategories", "StraightThroughGumbel"]


class Concrete(dist.RelaxedOneHotCategorical):
    """The Gumbel-softmax (Concrete) distribution on the simplex, whose entries never round to zero.

        y = softmax((logits + g) / temperature),  g ~ Gumbel(0, 1),

        log p(y) = log (K-1)! + (K-1) log temperature + sum_k (logits_k - (temperature + 1) log y_k)
                   - K log sum_k exp(logits_k - temperature log y_k),      logits normalised.

    At small temperatures an entry of y falls below the smallest number there is, and the density of
    `torch.distributions.RelaxedOneHotCategorical` becomes NaN; here it stops there. Also its draws do not add up to one in
    single precision, as they go by logarithms; here they do.

    Arguments:
        temperature: positive; as it falls to 0 the draws become one-hot.
        logits: [..., K].

    Source: Maddison, Mnih and Teh (2017), The Concrete distribution; Jang, Gu and Poole (2017), Categorical
    reparameterization with Gumbel-softmax.

    Example:
        >>> Concrete(torch.tensor(0.01), logits=torch.zeros(4)).sample().min() > 0
        tensor(True)
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Concrete":
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noisy = _with_gumbel(self.logits, self._extended_shape(torch.Size(sample_shape)))
        return (noisy / self.temperature).softmax(-1).clamp_min(torch.finfo(noisy.dtype).tiny)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class StraightThroughGumbel(dist.OneHotCategorical):
    """Exact one-hot draws of a categorical variable, with the gradient of their Gumbel-softmax relaxation.

        value = one_hot(argmax(logits + g)),   d value = d softmax((logits + g) / temperature),   log p(value) = log p_k.

    The density is the discrete variable's own, so that bounds and importance weights are those of the discrete program; only
    gradients through draws are biased. (`pyro.distributions.RelaxedOneHotCategoricalStraightThrough` reports the density of
    the relaxed draw behind the one-hot, which is no density of what was drawn.) Divergences are those of
    `OneHotCategorical`.

    Arguments:
        temperature: positive; the smaller, the smaller is the bias of the gradient and the larger its variance.
        logits: [..., K].

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax, section 2.2; Bengio, Leonard and
    Courville (2013).

    Example:
        >>> StraightThroughGumbel(torch.tensor(0.5), logits=torch.zeros(3)).rsample().sum()
        tensor(1.)
    """

    has_rsample = True
    # an enumeration would sum out what this class exists to draw
    has_enumerate_support = False

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        self.temperature = temperature
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StraightThroughGumbel":
        new: Any = type(self).__new__(type(self)) if _instance is None else _instance
        new.temperature = self.temperature
        return super().expand(batch_shape, _instance=new)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noisy = _with_gumbel(self.logits, self._extended_shape(torch.Size(sample_shape)))
        hard = noisy.argmax(-1, keepdim=True) == torch.arange(noisy.shape[-1], device=noisy.device)
        soft = (noisy / self.temperature).softmax(-1)
        # the bracket is exactly zero, whereas (hard + soft) - soft need not be one-hot
        return hard.to(soft.dtype) + (soft - soft.detach())

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p_k = sum_k value_k log p_k, which passes a gradient to the value too."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


class RelaxedCategories(StraightThroughGumbel):
    """Draws of a categorical variable relaxed to points of the simplex, with the log masses of the categories.

        value = softmax((logits + g) / temperature),  g ~ Gumbel(0, 1),   log p(value) = sum_k value_k log p_k,

    what a gradient learner of categories draws: the sum is the mass at a corner and its linear extension elsewhere, and
    divergences are those of `OneHotCategorical`. It is no density of the relaxed draws (`Concrete` has that one), so that no bound
    on an evidence comes of it.

    Arguments:
        temperature: positive; as it falls to 0 the draws become one-hot.
        logits: [..., K].

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax, section 2.

    Example:
        >>> RelaxedCategories(torch.tensor(0.5), logits=torch.zeros(3)).log_prob(torch.tensor([0.2, 0.3, 0.5]))
        tensor(-1.0986)
    """

    support: Any = constraints.simplex

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noisy = _with_gumbel(self.logits, self._extended_shape(torch.Size(sample_shape)))
        return (noisy / self.temperature).softmax(-1)


def _with_gumbel(logits: Tensor, shape: torch.Size) -> Tensor:
    """logits + g, g standard Gumbel, in this shape."""
    exponential = -torch.log1p(-torch.rand(shape, dtype=logits.dtype, device=logits.device))
    return logits - exponential.clamp_min(torch.finfo(logits.dtype).tiny).log()
