"""ReflectedNormal: a Gaussian whose principal axes are turned by reflections; and divergences from factorised Gaussians."""

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl

from ..transforms.householder import Householder, reflect
from .pushforward import Pushforward

__all__ = ["ReflectedNormal"]


class ReflectedNormal(Pushforward):
    """N(U loc, U diag(scale^2) U^T) with U = H_K ... H_1 a product of Householder reflections,

        log p(y) = sum_i log N((U^T y)_i | loc_i, scale_i^2),

    since reflections keep volumes. With K >= D vectors any covariance can be had.

    Arguments:
        loc, scale: [..., D] each.
        vectors: of the reflections, [..., K, D].

    Source: Tomczak and Welling (2016), Improving variational auto-encoders using Householder flow.

    Example:
        >>> import torch
        >>> p = ReflectedNormal(torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, -1.0]]))
        >>> p.covariance_matrix  # the reflection exchanges the axes
        tensor([[4., 0.],
                [0., 1.]])
    """

    def __init__(self, loc: Tensor, scale: Tensor, vectors: Tensor, validate_args: bool | None = None) -> None:
        self.rotation = Householder(vectors)
        super().__init__(dist.Normal(loc, scale).to_event(1), [self.rotation], validate_args)

    @property
    def mean(self) -> Tensor:
        """U loc, [..., D]."""
        return reflect(self.base.mean, self.rotation.vectors)

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, [..., D]."""
        return (self.rotation.matrix().square() @ self.base.variance.unsqueeze(-1)).squeeze(-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """U diag(scale^2) U^T, [..., D, D]."""
        u = self.rotation.matrix()
        return u @ (self.base.variance.unsqueeze(-1) * u.mT)

    def entropy(self) -> Tensor:
        """Nats, [...]."""
        return self.base.entropy()


@register_kl(ReflectedNormal, Independent)
def _kl_reflected(p: ReflectedNormal, q: Any) -> Tensor:
    return _cross_entropy(p.mean, p.variance, q) - p.entropy()


@register_kl(MultivariateNormal, Independent)
def _kl_multivariate(p: Any, q: Any) -> Tensor:
    return _cross_entropy(p.mean, p.variance, q) - p.entropy()


def _cross_entropy(mean: Tensor, variance: Tensor, q: Any) -> Tensor:
    """-E[log q] under any distribution with these moments, for q a product of Gaussians; nats, [...]."""
    if not isinstance(q.base_dist, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    return (0.5 * variance / q.base_dist.variance - q.base_dist.log_prob(mean)).sum(-1)
