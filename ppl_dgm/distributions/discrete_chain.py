"""DiscreteChain: a Markov chain of T discrete steps as one distribution, its transitions free to change from step to step."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["DiscreteChain"]


class DiscreteChain(TorchDistribution):
    """p(z) = p(z_1) prod_{t > 1} p_t(z_t | z_{t-1}), z_t from 0 to K - 1; event shape [T].

    The posterior of a hidden Markov chain given observations is such a chain too, with transitions of its own at every step.

    Arguments:
        initial: log p(z_1) up to a constant, [..., K].
        transitions: log p_t(z_t | z_{t-1}) up to a constant per row, [..., T - 1, K, K], the earlier state first.

    Example:
        >>> DiscreteChain(torch.zeros(2), torch.zeros(9, 2, 2)).sample((5,)).shape
        torch.Size([5, 10])
    """

    arg_constraints = {"initial": constraints.real_vector, "transitions": constraints.independent(constraints.real, 3)}
    has_rsample = False

    def __init__(self, initial: Tensor, transitions: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(initial.shape[:-1], transitions.shape[:-3])
        self.states = initial.shape[-1]
        self.initial = initial.log_softmax(-1).expand(*batch, -1)
        self.transitions = transitions.log_softmax(-1).expand(*batch, -1, -1, -1)
        super().__init__(batch, torch.Size([1 + transitions.shape[-3]]), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.states - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscreteChain":
        batch = torch.Size(batch_shape)
        return DiscreteChain(self.initial.expand(*batch, -1), self.transitions.expand(*batch, -1, -1, -1))

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z) in nats, [...]."""
        value = value.long()
        steps = value.shape[-1] - 1
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        value = value.expand(*shape, -1)
        first = self.initial.expand(*shape, -1).gather(-1, value[..., :1]).squeeze(-1)
        if not steps:
            return first
        rows = self.transitions.expand(*shape, -1, -1, -1).flatten(-2)  # [..., T - 1, K K]
        pair = value[..., :-1] * self.states + value[..., 1:]
        return first + rows.gather(-1, pair.unsqueeze(-1)).squeeze(-1).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """One step after another, [*sample_shape, ..., T]."""
        shape = (*sample_shape, *self.batch_shape)
        z = torch.distributions.Categorical(logits=self.initial.expand(*shape, -1)).sample()
        path = [z]
        for t in range(self.event_shape[0] - 1):
            rows = self.transitions[..., t, :, :].expand(*shape, -1, -1)
            at = z[..., None, None].expand(*shape, 1, self.states)
            z = torch.distributions.Categorical(logits=rows.gather(-2, at).squeeze(-2)).sample()
            path.append(z)
        return torch.stack(path, -1)

    @property
    def marginals(self) -> Tensor:
        """p(z_t), [..., T, K]."""
        p = self.initial.exp()
        found = [p]
        for t in range(self.event_shape[0] - 1):
            p = (p.unsqueeze(-2) @ self.transitions[..., t, :, :].exp()).squeeze(-2)
            found.append(p)
        return torch.stack(found, -2)
