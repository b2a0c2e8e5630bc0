"""AutoregressivePrior: one latent variable after another, each a mixture of Gaussians given those before it."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import AutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from .prior import Encode, Prior, log_variance_to_scale, positive_count

__all__ = ["AutoregressivePrior", "SequentialMixtures"]


class SequentialMixtures(dist.TorchDistribution):
    """p(z) = prod_d sum_k w_dk N(z_d | m_dk, s_dk^2), with w_d, m_d, s_d functions of z_1, ..., z_{d-1}.

    Exact. The density is one pass of the network, a draw is L of them, one after another.

    Arguments:
        network: from z [..., L] to logits, means and log-variances, [..., K, L] each, whose d-th columns depend on
            z_1, ..., z_{d-1} only.
        like: a tensor [L], for the type and device of the draws.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector

    def __init__(self, network: nn.Module, like: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.like = network, like
        super().__init__(torch.Size(), like.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SequentialMixtures":
        new = self._get_checked_instance(SequentialMixtures, _instance)
        new.network, new.like = self.network, self.like
        super(SequentialMixtures, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, loc, log_variance = self.network(value)  # [..., K, L] each
        each = dist.Normal(loc, log_variance_to_scale(log_variance), validate_args=False).log_prob(value.unsqueeze(-2))
        total = torch.logsumexp(torch.log_softmax(logits, -2) + each, -2).sum(-1)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape
            later = torch.zeros(shape + self.event_shape, dtype=self.like.dtype, device=self.like.device)
            drawn = later[..., :0]
            for d in range(len(self.like)):
                parts = self.network(torch.cat([drawn, later[..., d:]], -1))
                logits, loc, log_variance = (part[..., d] for part in parts)  # [..., K] each
                k = dist.Categorical(logits=logits).sample().unsqueeze(-1)
                loc, scale = loc.gather(-1, k), log_variance_to_scale(log_variance.gather(-1, k))
                drawn = torch.cat([drawn, loc + scale * torch.randn_like(loc)], -1)
            return drawn


class AutoregressivePrior(Prior):
    """p(z) = prod_d p(z_d | z_1, ..., z_{d-1}), each a mixture of K Gaussians whose parameters a masked network (MADE) gives.

    Arguments:
        latent: L, at least 2.
        components: K; 1 makes every conditional a Gaussian.
        hidden: units of each hidden layer; raised to L where there are fewer.
        depth: hidden layers, at least 1.

    Raises:
        ProgramError: latent is less than 2, or another size is not positive.

    Source: Germain, Gregor, Murray and Larochelle (2015), MADE; as a prior: Chen et al. (2017), Variational lossy autoencoder.
    """

    def __init__(self, latent: int, components: int = 4, hidden: int = 128, depth: int = 2) -> None:
        super().__init__(positive_count("latent, for the autoregressive prior,", latent, 2))
        positive_count("components", components)
        positive_count("hidden", hidden)
        layers = [max(hidden, latent)] * positive_count("depth", depth)
        self.components = components
        order: Any = torch.arange(latent)
        network: Any = AutoRegressiveNN(latent, layers, [components] * 3, permutation=order, nonlinearity=nn.SiLU())
        if components == 1:
            network.all_ones = False  # so that the parameters keep their axis of components
        with torch.no_grad():  # means apart from one another, so that the components differ from the first step on
            spread = torch.linspace(-1.5, 1.5, components + 2)[1:-1]
            network.layers[-1].bias.view(3, components, latent)[1] += spread.unsqueeze(-1)
        self.network = network

    def distribution(self, encode: Encode | None = None) -> Any:
        return SequentialMixtures(self.network, self.zeros)
