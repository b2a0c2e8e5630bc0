"""GaussianChain: a linear-Gaussian Markov chain of T vectors as one distribution, in either direction of time."""

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

__all__ = ["GaussianChain"]


class GaussianChain(TorchDistribution):
    """z_1 ~ N(mean, S),  z_t = G_t z_{t-1} + b_t + N(0, S_t); event shape [T, M].

    With `reverse` the chain begins at the last step and goes back, which is the form in which the Rauch-Tung-Striebel
    smoother gives the posterior of a linear-Gaussian state space.

    Arguments:
        mean, scale_tril: of the step at which the chain begins, [..., M] and [..., M, M] (a Cholesky factor of S).
        gain: G_t, [..., T - 1, M, M], in the order of the chain.
        offset: b_t, [..., T - 1, M].
        step_tril: Cholesky factors of S_t, [..., T - 1, M, M].
        reverse: whether the chain begins at the last step.

    Example:
        >>> one = torch.eye(2)
        >>> GaussianChain(torch.zeros(2), one, one.expand(4, 2, 2), torch.zeros(4, 2), one.expand(4, 2, 2)).sample().shape
        torch.Size([5, 2])
    """

    arg_constraints = {"mean_of_first": constraints.real_vector}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self, mean: Tensor, scale_tril: Tensor, gain: Tensor, offset: Tensor, step_tril: Tensor, reverse: bool = False,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        batch = torch.broadcast_shapes(
            mean.shape[:-1], scale_tril.shape[:-2], gain.shape[:-3], offset.shape[:-2], step_tril.shape[:-3]
        )
        self.mean_of_first, self.scale_tril = mean.expand(*batch, -1), scale_tril.expand(*batch, -1, -1)
        self.gain, self.offset = gain.expand(*batch, -1, -1, -1), offset.expand(*batch, -1, -1)
        self.step_tril, self.reverse = step_tril.expand(*batch, -1, -1, -1), reverse
        super().__init__(batch, torch.Size([1 + gain.shape[-3], mean.shape[-1]]), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GaussianChain":
        batch = torch.Size(batch_shape)
        return GaussianChain(
            self.mean_of_first.expand(*batch, -1), self.scale_tril.expand(*batch, -1, -1),
            self.gain.expand(*batch, -1, -1, -1), self.offset.expand(*batch, -1, -1),
            self.step_tril.expand(*batch, -1, -1, -1), self.reverse,
        )  # fmt: skip

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(z) in nats, [...]; all steps at once."""
        value = value.flip(-2) if self.reverse else value
        first = _log_normal(value[..., 0, :] - self.mean_of_first, self.scale_tril)
        moved = (self.gain @ value[..., :-1, :].unsqueeze(-1)).squeeze(-1) + self.offset
        return first + _log_normal(value[..., 1:, :] - moved, self.step_tril).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """One step after another, [*sample_shape, ..., T, M]."""
        steps, size = self.event_shape
        noise = self.mean_of_first.new_empty(*sample_shape, *self.batch_shape, steps, size, 1).normal_()
        z = self.mean_of_first.unsqueeze(-1) + self.scale_tril @ noise[..., 0, :, :]
        path = [z]
        for t in range(steps - 1):
            z = self.gain[..., t, :, :] @ z + self.offset[..., t, :, None]
            z = z + self.step_tril[..., t, :, :] @ noise[..., t + 1, :, :]
            path.append(z)
        return torch.stack(path[::-1] if self.reverse else path, -3).squeeze(-1)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means [..., T, M] and covariances [..., T, M, M] of each step."""
        mean, cov = self.mean_of_first, self.scale_tril @ self.scale_tril.mT
        means, covs = [mean], [cov]
        for t in range(self.event_shape[0] - 1):
            gain, tril = self.gain[..., t, :, :], self.step_tril[..., t, :, :]
            mean = (gain @ mean.unsqueeze(-1)).squeeze(-1) + self.offset[..., t, :]
            cov = gain @ cov @ gain.mT + tril @ tril.mT
            means.append(mean)
            covs.append(cov)
        if self.reverse:
            means, covs = means[::-1], covs[::-1]
        return torch.stack(means, -2), torch.stack(covs, -3)

    @property
    def mean(self) -> Tensor:
        """E[z_t], [..., T, M]."""
        return self.marginals()[0]

    @property
    def variance(self) -> Tensor:
        """Var[z_t], [..., T, M]."""
        return self.marginals()[1].diagonal(dim1=-2, dim2=-1)


def _log_normal(residual: Tensor, tril: Tensor) -> Tensor:
    white = torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * white.square().sum(-1) - log_det - 0.5 * residual.shape[-1] * math.log(2 * math.pi)
