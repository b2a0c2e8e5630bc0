"""FiniteMixture: a weighted sum of densities, as priors over latent vectors use it."""

import math
from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints

from ..errors import ProgramError
from ..graphs.tape import recording

__all__ = ["FiniteMixture"]

_ENTRIES = 2**22  # numbers of a block: 16 MiB in float32
_LOST = 1e-5  # nats that the products of matrices may be wrong by


class FiniteMixture(TorchDistribution):
    """p(x) = sum_k w_k f_k(x).

    The sum is over whole vectors: log f_k is added up over the entries of x before the components are summed. Unlike
    torch's `MixtureSameFamily` it has the support of its components, on which `biject_to` and samplers rely, expanding it
    costs nothing, and a draw from Gaussians draws the one component that it needs.

    Without gradients many values are scored a block at a time, so that memory stays flat; and where the components are
    diagonal Gaussians in float32, their log densities come from products of matrices in float64 (`_gaussian_products`).

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
        dims = len(self.event_shape)
        batch = value.shape[: value.dim() - dims]
        few = batch.numel() * len(self.logits) * self.event_shape.numel() <= _ENTRIES
        if few or not batch or not _free_to_look(value):
            total = self._mixed(self._each(value))
        else:
            total = self._in_blocks(value.expand(*batch, *self.event_shape).flatten(0, len(batch) - 1)).unflatten(
                0, batch
            )
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def _each(self, value: Tensor) -> Tensor:
        """log f_k of every value, [..., K]."""
        return self.components.log_prob(value.unsqueeze(-1 - len(self.event_shape)))

    def _mixed(self, each: Tensor) -> Tensor:
        """log sum_k w_k f_k from log f_k, [..., K] to [...]."""
        return torch.logsumexp(each + torch.log_softmax(self.logits, -1), -1)

    def _in_blocks(self, value: Tensor) -> Tensor:
        """The log density of many values, [N, *event] to [N]."""
        products = _gaussian_products(self.components, value)
        width = len(self.logits) * (1 if products else self.event_shape.numel())
        return torch.cat(
            [self._mixed((products or self._each)(some)) for some in value.split(max(1, _ENTRIES // width))]
        )

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


def _free_to_look(value: Tensor) -> bool:
    """Whether Python may choose by values: no gradient is wanted, no graph recorded, no batch of runs under way."""
    return not (torch.is_grad_enabled() or recording() or torch._C._functorch.is_functorch_wrapped_tensor(value))


def _gaussian_products(components: Any, value: Tensor) -> Callable[[Tensor], Tensor] | None:
    """log f_k of diagonal Gaussians through two products of matrices,

        -1/2 sum_l (z_l - m_kl)^2 / s_kl^2 = -1/2 z^2 . (1/s^2) + z . (m/s^2) - 1/2 sum_l m_kl^2 / s_kl^2,

    z and m taken about the components' mean, from [N, L] to [N, K] without the [N, K, L] between.

    The three terms cancel where scales are small beside z and m, and a sum of 2 L terms in float64 is then wrong by up to
    2 L 2^-53 sum_l (|z_l| + |m_kl|)^2 / s_kl^2. The products are used where this bound, with the largest |z_l| of all, is
    below 1e-5 nats for every component: for values of float32, whose own rounding is of that size.

    Arguments:
        components: of the mixture.
        value: all that is to be scored, [N, L].

    Returns:
        The function, or None where the components are others, the type is not float32, or the bound does not hold.
    """
    gaussian = _normals(components)
    if gaussian is None or gaussian.loc.dim() != 2 or value.dtype != torch.float32 or value.device.type == "mps":
        return None
    loc, scale = gaussian.loc.double(), gaussian.scale.double()  # [K, L]
    centre = loc.mean(0)
    loc, precision = loc - centre, scale.square().reciprocal()
    farthest = torch.maximum(value.amax(0) - centre, centre - value.amin(0))  # [L], the largest |z|
    bound = 2 * len(centre) * 2.0**-53 * (precision * (farthest + loc.abs()).square()).sum(-1).max()
    if not bool(bound < _LOST):
        return None
    weights = torch.cat([-0.5 * precision, loc * precision], 1).mT.contiguous()  # [2 L, K]
    constant = -(0.5 * precision * loc.square() + scale.log() + 0.5 * math.log(2 * math.pi)).sum(-1)

    def log_prob(z: Tensor) -> Tensor:
        z = z - centre
        return torch.addmm(constant, torch.cat([z.square(), z], 1), weights).to(value.dtype)

    return log_prob


def _normals(components: Any) -> Normal | None:
    """The Gaussians behind K independent ones, whose loc and scale have K rows."""
    base = components.base_dist if isinstance(components, Independent) else components
    rows = isinstance(base, Normal) and len(base.batch_shape) == 1 + len(components.event_shape)
    return base if rows else None
