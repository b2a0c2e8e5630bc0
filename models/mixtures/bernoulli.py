"""MixtureOfBernoullis: a weighted sum of K products of coins, with conjugate priors."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError

from .mixture import Mixture, entry_sums, filled

__all__ = ["MixtureOfBernoullis"]


class MixtureOfBernoullis(Mixture):
    """p(x) = sum_k w_k prod_d Bernoulli(x_d | theta_kd).

    EM finds the posterior mode under theta_kd ~ Beta(1 + heads, 1 + tails) and w ~ Dirichlet(1 + weight_count); with
    zeros it is maximum likelihood.

    Arguments:
        observed: D, entries of an example, 0 or 1.
        components: K.
        heads, tails: pseudo-counts of ones and zeros, added to the expected counts in the M-step.
        weight_count: pseudo-count of each component.
        missing: whether the data may have holes, marked by NaN or -1; they are summed out.

    Attributes:
        logits: [K, D], theta = sigmoid(logits).

    Raises:
        ProgramError: an argument out of range.

    Source: J. Tomczak (2024), Deep Generative Modeling, 2.3.4; C. Bishop (2006), PRML, 9.3.3.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.randint(0, 2, (100, 5))
        >>> dgm.learn(dgm.models.MixtureOfBernoullis(5, 2), x, seed=0).objective
        '-log likelihood, nats per example, minus the log prior (column penalised)'
    """

    def __init__(
        self,
        observed: int,
        components: int,
        heads: float = 0.1,
        tails: float = 0.1,
        weight_count: float = 0.0,
        missing: bool = False,
    ) -> None:
        super().__init__(observed, components, missing)
        for name, value in (("heads", heads), ("tails", tails), ("weight_count", weight_count)):
            if not 0 <= value < math.inf:
                raise ProgramError(f"MixtureOfBernoullis: {name} must be a number from 0, but it is {value!r}.")
        self.heads, self.tails, self.weight_count = heads, tails, weight_count
        self.support = constraints.boolean
        self.logits = nn.Parameter(0.1 * torch.randn(components, observed))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """prod_d Bernoulli(theta_kd)."""
        return dist.Bernoulli(logits=self.logits[k]).to_event(1)

    def as_data(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return x.masked_fill(x < 0, torch.nan) if self.allows_missing else x

    @property
    def theta(self) -> Tensor:
        """Probabilities of a one, [K, D]."""
        return self.logits.sigmoid()

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x_seen | k) in nats, [batch, K], as products of matrices."""
        ones = x.nan_to_num(0.0)
        zeros = 1 - x if self.seen(x) is None else (1 - x).nan_to_num(0.0)
        log_theta = nn.functional.logsigmoid(self.logits)
        return ones @ log_theta.mT + zeros @ (log_theta - self.logits).mT

    # -- expectation maximisation ----------------------------------------------------------------------------

    def log_prior(self) -> Tensor:
        """Log density of the priors up to a constant, in nats, []; EM adds it."""
        log_theta = nn.functional.logsigmoid(self.logits)
        coins = self.heads * log_theta + self.tails * (log_theta - self.logits)
        return coins.sum() + self.weight_count * self.weight_logits.log_softmax(-1).sum()

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Components from the rows nearest to k-means++ seeds, pulled half-way to the data's mean."""
        x = self.as_data(x)
        self.maximise(x, self.near_seeds(filled(x)))

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any = None) -> tuple[Tensor, ...]:
        """Expected counts of entries and of ones, [K, D] each."""
        return entry_sums(x, responsibilities)

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any = None) -> None:
        """theta_kd = (ones + heads) / (entries + heads + tails), kept off 0 and 1 by rounding; 1/2 without counts."""
        entries, ones = statistics
        total = entries + self.heads + self.tails
        eps = torch.finfo(self.dtype).eps
        some = total > torch.finfo(self.dtype).tiny
        theta = torch.where(some, (ones + self.heads) / torch.where(some, total, 1.0), 0.5)
        self.logits.copy_(theta.clamp(eps, 1 - eps).logit())
