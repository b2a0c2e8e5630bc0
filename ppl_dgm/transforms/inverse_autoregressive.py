"""InverseAutoregressive: a gated autoregressive layer that is fast forwards, with a context for each row of a batch."""

import warnings
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform

__all__ = ["InverseAutoregressive", "autoregressive_network"]


class InverseAutoregressive(Transform):
    """y_i = g_i x_i + (1 - g_i) m_i,  log|det J| = sum_i log g_i,  with m_i and g_i functions of x_1, ..., x_{i-1} and a context.

    g = sigmoid(s + bias), so that a layer keeps or forgets but never explodes. Forwards is one pass of the network, which
    also gives the determinant; backwards is one pass for each dimension, as x_i needs those before it.

    Unlike `pyro.distributions.transforms.ConditionalAffineAutoregressive` it keeps no memory between calls, and its scale
    has no clamp that hides gradients.

    Arguments:
        network: from x [..., D] and a context [..., C] to m and s, [..., D] each, autoregressive in the order that its
            `permutation` gives; see `autoregressive_network`.
        context: [..., C].
        bias: of the gate; the larger, the closer to the identity a layer starts.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with inverse
    autoregressive flow, eq. (14); Germain et al. (2015), MADE.

    Example:
        >>> layer = InverseAutoregressive(autoregressive_network(3, 2), torch.zeros(2))
        >>> x = torch.tensor([1.0, 2.0, 3.0])
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-5)
        True
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, network: nn.Module, context: Tensor, bias: float = 1.5) -> None:
        super().__init__()
        self.network, self.context, self.bias = network, context, bias

    def __eq__(self, other: Any) -> bool:
        return (
            isinstance(other, InverseAutoregressive)
            and self.network is other.network
            and self.context is other.context
            and self.bias == other.bias
        )

    __hash__ = Transform.__hash__

    def call_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y and log|det J|, from one pass of the network."""
        shift, logit = self._network(x)
        gate = torch.sigmoid(logit)
        return gate * x + (1 - gate) * shift, nn.functional.logsigmoid(logit).sum(-1)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_log_det(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        x = torch.zeros_like(y)
        order: Any = self.network.permutation
        for position in order:  # each pass makes one more entry right
            shift, logit = self._network(x)
            gate = torch.sigmoid(logit)
            now = torch.arange(len(order), device=y.device) == position
            x = torch.where(now, (y - (1 - gate) * shift) / gate, x)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_i log g_i, [...]."""
        return nn.functional.logsigmoid(self._network(x)[1]).sum(-1)

    def _network(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1])
        context = self.context.expand(*batch, self.context.shape[-1])
        shift, logit = self.network(x.expand(*batch, x.shape[-1]), context)
        return shift, logit + self.bias


def autoregressive_network(
    dim: int, context: int, hidden: tuple[int, ...] = (64,), reverse: bool = False
) -> ConditionalAutoRegressiveNN:
    """A masked network (MADE) for `InverseAutoregressive`.

    Arguments:
        dim: D.
        context: C, at least 1.
        hidden: units of each hidden layer; raised to D where there are fewer.
        reverse: from the last entry to the first instead of the other way round.
    """
    order: Any = torch.arange(dim)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input_dim = 1")  # one dimension is an affine map of the context
        return ConditionalAutoRegressiveNN(
            dim,
            context,
            [max(units, dim) for units in hidden],
            permutation=order.flip(0) if reverse else order,
            nonlinearity=nn.ELU(),
        )
