"""WordCounts: how often each word occurs in a document of given length; the multinomial with a total of its own per row."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["WordCounts"]


class WordCounts(TorchDistribution):
    """p(x) = N! / prod_v x_v! prod_v p_v^{x_v}, sum_v x_v = N, N given; event shape [V].

    Arguments:
        probs: [..., V], rows summing to one.
        total: N, [...].

    Example:
        >>> WordCounts(torch.ones(2, 5) / 5, torch.tensor([3, 30])).sample().sum(-1)
        tensor([ 3., 30.])
    """

    arg_constraints = {"probs": constraints.simplex}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(self, probs: Tensor, total: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(probs.shape[:-1], total.shape)
        self.probs, self.total = probs.expand(*batch, -1), total.expand(batch)
        super().__init__(batch, probs.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WordCounts":
        batch = torch.Size(batch_shape)
        return WordCounts(self.probs.expand(*batch, -1), self.total.expand(batch))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(x) in nats, [...]; minus infinity where the counts do not add up to N."""
        ways = torch.lgamma(self.total + 1.0) - torch.lgamma(value + 1.0).sum(-1)
        found = ways + torch.xlogy(value, self.probs).sum(-1)
        return torch.where(value.sum(-1) == self.total, found, -torch.inf)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """N words one by one, counted, [*sample_shape, ..., V]."""
        shape = (*sample_shape, *self.batch_shape)
        probs, total = self.probs.expand(*shape, -1).flatten(0, -2), self.total.expand(shape).flatten()
        most = int(total.max()) if total.numel() else 0
        counts = torch.zeros_like(probs)
        if most:
            words = torch.multinomial(probs, most, replacement=True)  # [rows, most]
            inside = torch.arange(most, device=total.device) < total.unsqueeze(-1)
            counts.scatter_add_(-1, words, inside.to(counts))
        return counts.reshape(*shape, -1)
