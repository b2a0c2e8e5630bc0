"""Latent-variable programs small enough for exact answers, with parameters to learn."""

import itertools

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm import Program

from .linear_gaussian import LinearGaussian


class LearnedLinear(LinearGaussian):
    """z ~ N(0, I), x = W z + mean + N(0, s^2) with a learned mean; the guide misses the exact posterior by a learned shift and
    stretch, and is the posterior's own diagonal at shift 0 and stretch 1.

    Arguments:
        two: the guide draws the second entry of z given the first, as sites `a` and `b`.
    """

    def __init__(self, two: bool = False, diagonal: bool = False) -> None:
        super().__init__()
        self.two = two
        if diagonal:  # orthogonal columns, so that the posterior's own diagonal is the posterior
            self.weight = torch.linalg.qr(self.weight)[0] * torch.tensor([1.5, 0.8])
        self.mean = nn.Parameter(self.bias.clone())
        self.shift = nn.Parameter(torch.tensor(0.15))
        self.log_stretch = nn.Parameter(torch.tensor(0.25))
        self.slope = nn.Parameter(torch.tensor(0.3))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            if self.two:
                a = pyro.sample("a", dist.Normal(self.weight.new_zeros(()), 1.0))
                b = pyro.sample("b", dist.Normal(self.weight.new_zeros(()), 1.0))
                z = torch.stack([a, b], -1)
            else:
                z = pyro.sample("z", dist.Normal(self.weight.new_zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ self.weight.T + self.mean, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        exact = self.exact_posterior(x)
        loc, scale = exact.mean + self.shift, self.log_stretch.exp() * exact.variance.sqrt()
        with pyro.plate("data", len(x)):
            if self.two:
                a = pyro.sample("a", dist.Normal(loc[:, 0], scale[:, 0]))
                pyro.sample("b", dist.Normal(loc[:, 1] + self.slope * (a - loc[:, 0]), scale[:, 1]))
            else:
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def factorised_now(self, x: Tensor) -> dist.Independent:
        """The guide's distribution of `z` with its present parameters."""
        exact = self.exact_posterior(x)
        return dist.Normal(exact.mean + self.shift, self.log_stretch.exp() * exact.variance.sqrt()).to_event(1)

    def exact_posterior(self, x: Tensor) -> dist.MultivariateNormal:
        self.bias.copy_(self.mean.detach())
        return super().exact_posterior(x)


class BeliefNetwork(Program):
    """A sigmoid belief network: two bits h, three bits g given h, four observed bits x given g; every answer by enumeration.

    The guide is factorised bottom-up, g given x, then h given g (a Helmholtz machine).
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.top = nn.Parameter(torch.randn(2))
        self.down, self.out = nn.Linear(2, 3), nn.Linear(3, 4)
        self.up, self.upper = nn.Linear(4, 3), nn.Linear(3, 2)
        for layer in (self.down, self.out):
            with torch.no_grad():
                layer.weight.mul_(3.0)

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        with pyro.plate("data", n if x is None else len(x)):
            h = pyro.sample("h", dist.Bernoulli(logits=self.top).to_event(1))
            g = pyro.sample("g", dist.Bernoulli(logits=self.down(h)).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.out(g)).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        with pyro.plate("data", len(x)):
            g = pyro.sample("g", dist.Bernoulli(logits=self.up(x)).to_event(1))
            pyro.sample("h", dist.Bernoulli(logits=self.upper(g)).to_event(1))

    def log_joint(self, h: Tensor, g: Tensor, x: Tensor) -> Tensor:
        """log p(h, g, x), all bits of the last dimension."""
        return (
            dist.Bernoulli(logits=self.top).to_event(1).log_prob(h)
            + dist.Bernoulli(logits=self.down(h)).to_event(1).log_prob(g)
            + dist.Bernoulli(logits=self.out(g)).to_event(1).log_prob(x)
        )

    def log_guide(self, h: Tensor, g: Tensor, x: Tensor) -> Tensor:
        """log q(h, g | x)."""
        return dist.Bernoulli(logits=self.up(x)).to_event(1).log_prob(g) + dist.Bernoulli(
            logits=self.upper(g)
        ).to_event(1).log_prob(h)

    def evidence(self, x: Tensor) -> Tensor:
        """log p(x), [batch], by the sum over all 32 latent states."""
        h, g = states(2, 3)
        return self.log_joint(h, g, x[:, None].expand(-1, 32, -1)).logsumexp(1)


def states(*widths: int) -> tuple[Tensor, ...]:
    """Every joint state of bits, in groups of these widths, [state, width] each."""
    table = torch.tensor(list(itertools.product([0.0, 1.0], repeat=sum(widths))))
    return tuple(table.split(list(widths), 1))
