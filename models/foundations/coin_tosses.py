"""CoinTosses: Bernoulli variables fitted by maximum likelihood."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["BayesianCoinTosses", "CoinTosses"]


class CoinTosses(Program):
    """x_d ~ Bernoulli(heads_d): a coin for each column, tossed independently.

    Maximum likelihood is the share of ones, whose error is about N(0, heads (1 - heads) / N).

    Arguments:
        observed: D, coins.
        pseudo_count: heads and as many tails added to those counted; 0 is maximum likelihood, 1 Laplace's rule.

    Attributes:
        logits: [D], heads = sigmoid(logits).

    Raises:
        ProgramError: an argument out of range.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 3.1.2.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = dgm.learn(dgm.models.CoinTosses(), torch.tensor([[1], [0], [1], [1]])).program
        >>> round(program.heads.item(), 3)
        0.75
    """

    observed: int
    support = constraints.boolean

    def __init__(self, observed: int = 1, pseudo_count: float = 0.0) -> None:
        super().__init__()
        if observed < 1:
            raise ProgramError(f"CoinTosses: observed must be at least 1, but it is {observed!r}.")
        if not 0 <= pseudo_count < math.inf:
            raise ProgramError(f"CoinTosses: pseudo_count must be a number from 0, but it is {pseudo_count!r}.")
        self.observed, self.pseudo_count = observed, pseudo_count
        self.logits = nn.Parameter(torch.zeros(observed))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """x ~ Bernoulli(heads)."""
        with pyro.plate("data", n if x is None else len(x)):
            x = None if x is None else x.to(self.dtype)
            return pyro.sample("x", dist.Bernoulli(logits=self.logits).to_event(1), obs=x)

    @property
    def heads(self) -> Tensor:
        """Probabilities of a one, [D]."""
        return self.logits.sigmoid()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch]."""
        return dist.Bernoulli(logits=self.logits).to_event(1).log_prob(x.to(self.dtype))

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [batch]."""
        return Score(self.log_prob(x), "exact", how="product of Bernoulli probabilities")

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None) -> dict[str, Any]:
        """heads = (ones + pseudo_count) / (N + 2 pseudo_count), kept off 0 and 1 by rounding.

        Returns:
            The standard error of each share, sqrt(heads (1 - heads) / N).
        """
        ones = train.to(self.dtype).sum(0)
        heads, eps = (ones + self.pseudo_count) / (len(train) + 2 * self.pseudo_count), torch.finfo(self.dtype).eps
        self.logits.copy_(heads.clamp(eps, 1 - eps).logit())
        return {"stderr": (heads * (1 - heads) / len(train)).sqrt().tolist()}

    def default_method(self, task: str) -> Any:
        """The closed form for `learn`."""
        return "closed-form" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a toss of each coin"),
            "score": Answer("exact", "product of Bernoulli probabilities"),
            "infer": Answer("unavailable", "nothing is latent; BayesianCoinTosses has a posterior of the coins"),
            "learn": Answer("exact", "closed-form maximum likelihood"),
        }


class BayesianCoinTosses(Program):
    """The same with unknown coins: heads_d ~ Beta(ones, zeros), x_nd ~ Bernoulli(heads_d).

    The posterior is Beta(ones + ones counted, zeros + zeros counted). `updated` gives it as a program, `predictive` is the
    next toss, and `log_evidence` is that of all tosses together.

    Arguments:
        observed: D, coins.
        ones, zeros: the prior's, tosses that it is worth; one number, or one for each coin.

    Raises:
        ProgramError: an argument out of range.

    Source: T. Bayes (1763); P. S. Laplace (1774) for the rule of succession, (ones + 1) / (N + 2) with the uniform prior.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.tensor([[1], [0], [1], [1]])
        >>> post = dgm.infer(dgm.models.BayesianCoinTosses(), x, seed=0)
        >>> round(float(post.exact["heads"].mean), 3)
        0.667
    """

    observed: int
    support = constraints.boolean

    def __init__(self, observed: int = 1, ones: float | list[float] = 1.0, zeros: float | list[float] = 1.0) -> None:
        super().__init__()
        if observed < 1:
            raise ProgramError(f"BayesianCoinTosses: observed must be at least 1, but it is {observed!r}.")
        self.observed = observed
        for name, value in (("ones", ones), ("zeros", zeros)):
            values = [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * observed
            if len(values) != observed or not all(0 < v < math.inf for v in values):
                raise ProgramError(
                    f"BayesianCoinTosses: {name} must be one positive number, or one for each of {observed} coins, "
                    f"but it is {value!r}."
                )
            self.register_buffer(name, torch.tensor(values), persistent=False)

    ones: Tensor
    zeros: Tensor

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """heads ~ Beta(ones, zeros); x ~ Bernoulli(heads)."""
        heads = pyro.sample("heads", dist.Beta(self.ones, self.zeros).to_event(1))
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", dist.Bernoulli(heads).to_event(1), obs=None if x is None else x.to(heads.dtype))

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """heads ~ Beta(ones + sum x, zeros + N - sum x), event shape [D]: one for all examples together."""
        total = x.to(self.ones.dtype).sum(0)
        return {"heads": dist.Beta(self.ones + total, self.zeros + len(x) - total).to_event(1)}

    def updated(self, x: Tensor) -> "BayesianCoinTosses":
        """The posterior given x [N, D], as the prior of the next tosses."""
        total = x.to(self.ones.dtype).sum(0)
        twin = BayesianCoinTosses(self.observed, (self.ones + total).tolist(), (self.zeros + len(x) - total).tolist())
        return twin.to(device=self.ones.device, dtype=self.ones.dtype)

    def predictive(self) -> Any:
        """p(x) of the next toss of each coin: Bernoulli(ones / (ones + zeros)), event shape [D]."""
        return dist.Bernoulli(self.ones / (self.ones + self.zeros)).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_1, ..., x_N) = sum_d log B(ones', zeros') - log B(ones, zeros) in nats, []."""
        total = x.to(self.ones.dtype).sum(0)
        return (_log_beta(self.ones + total, self.zeros + len(x) - total) - _log_beta(self.ones, self.zeros)).sum()

    def log_density(self, x: Tensor) -> Score:
        """The evidence of all tosses together, []; they are tied by the unknown coins."""
        return Score(self.log_evidence(x), "exact", how="the coins integrated out, all examples together")

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "coins from their prior, then tosses"),
            "score": Answer("exact", "evidence of all tosses together, the coins integrated out"),
            "infer": Answer("exact", "Beta posterior of each coin"),
            "learn": Answer("unavailable", "there are no parameters; see infer, or updated(x)"),
        }


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
