"""FiniteMixture: a weighted sum of densities, as priors over latent vectors use it."""

from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints

from ..errors import ProgramError

__all__ = ["FiniteMixture"]


class FiniteMixture(TorchDistribution):
    """p(x) = sum_k w_k f_k(x).

    The sum is over whole vectors: log f_k is added up over the entries of x before the components are summed. Unlike
    torch's `MixtureSameFamily` it has the support of its components, on which `biject_to` and samplers rely, expanding it
    costs nothing, and a draw from Gaussians draws the one component that it needs.

    Arguments:
        logits: log w_k up to a constant, [K].
        components: f_1, ..., f_K as one distribution with batch shape [K].

    Raises:
        ProgramError: the shapes do not go together.

    Example:
        >>> import pyro.distributions as dist
        >>> two = dist.Normal(torch.tensor([[-3.0, -3.0], [3.0, 3.0]]), 1.0).to_event(1)
        >>> mixture = FiniteMixture(torch.zeros(2), two)
        >>> mixture.sample((5,)).shape, mixture.log_prob(torch.zeros(7, 2)).shape
        (torch.Size([5, 2]), torch.Size([7]))
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}

    def __init__(self, logits: Tensor, components: Any, validate_args: bool | None = None) -> None:
        if logits.dim() != 1 or tuple(components.batch_shape) != tuple(logits.shape):
            raise ProgramError(
                f"FiniteMixture: {tuple(logits.shape)} weights do not go with components of batch shape "
                f"{tuple(components.batch_shape)}; give K weights and K components."
            )
        self.logits, self.components = logits, components
        super().__init__(torch.Size(), components.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self.components.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FiniteMixture":
        new = self._get_checked_instance(FiniteMixture, _instance)
        new.logits, new.components = self.logits, self.components
        super(FiniteMixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats, the shape of `value` without its last, event dimensions."""
        if self._validate_args:
            self._validate_sample(value)
        each = self.components.log_prob(value.unsqueeze(-1 - len(self.event_shape)))  # [..., K]
        total = torch.logsumexp(each + torch.log_softmax(self.logits, -1), -1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            k = Categorical(logits=self.logits).expand(shape).sample()
            gaussian = _normals(self.components)
            if gaussian is not None:
                loc = gaussian.loc[k]
                return loc + gaussian.scale[k] * torch.randn_like(loc)
            each = self.components.sample(shape)  # [*shape, K, *event]
            dim = len(shape)
            index = k.reshape(*shape, 1, *(1,) * len(self.event_shape)).expand(*shape, 1, *self.event_shape)
            return each.gather(dim, index).squeeze(dim)


def _normals(components: Any) -> Normal | None:
    """The Gaussians behind K independent ones, whose loc and scale have K rows."""
    base = components.base_dist if isinstance(components, Independent) else components
    rows = isinstance(base, Normal) and len(base.batch_shape) == 1 + len(components.event_shape)
    return base if rows else None
