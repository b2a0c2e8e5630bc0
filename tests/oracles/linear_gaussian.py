"""A linear Gaussian program whose evidence and posterior are known in closed form."""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm import Program


class LinearGaussian(Program):
    """z ~ N(0, I), x = W z + b + N(0, s^2); its guide is the exact posterior, or a wrong factorised one."""

    def __init__(self, observed: int = 4, latent: int = 2, exact: bool = False, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.observed, self.exact = observed, exact
        self.register_buffer("weight", torch.randn(observed, latent, generator=generator))
        self.register_buffer("bias", torch.randn(observed, generator=generator))
        self.scale = 0.7
        self.seen: list[int] = []  # rows of each pass

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        self.seen.append(n if x is None else len(x))
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.weight.shape[1]), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.exact_posterior(x) if self.exact else self.factorised(x))

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """p(z | x) = N(M^-1 W^T (x - b), s^2 M^-1), M = W^T W + s^2 I."""
        m = self.weight.T @ self.weight + self.scale**2 * torch.eye(self.weight.shape[1]).to(self.weight)
        covariance = self.scale**2 * torch.linalg.inv(m)
        return dist.MultivariateNormal((x - self.bias) @ self.weight @ torch.linalg.inv(m).T, covariance)

    def factorised(self, x: Tensor) -> dist.Independent:
        """Means shifted and standard deviations stretched, no correlation."""
        posterior = self.exact_posterior(x)
        return dist.Normal(posterior.mean + 0.1, 1.3 * posterior.variance.sqrt()).to_event(1)

    def evidence(self, x: Tensor) -> Tensor:
        """ln N(x | b, W W^T + s^2 I), [batch]."""
        covariance = self.weight @ self.weight.T + self.scale**2 * torch.eye(len(self.bias)).to(self.weight)
        return torch.distributions.MultivariateNormal(self.bias, covariance).log_prob(x)
