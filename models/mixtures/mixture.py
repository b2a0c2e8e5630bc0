"""Mixture: what every finite mixture shares, whatever its components are."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["Mixture", "spread_rows"]

_ENTRIES = 2**24  # entries of [rows, components, dims] held at a time, so that memory stays flat


class Mixture(Program):
    """p(x) = sum_k w_k p(x | k), w on the simplex.

    There is no guide: the only latent site is summed out, by EM or by `SVI(elbo="enum")`, for which
    `em_start(x)` gives a good start.

    A subclass gives `component(k)`, the distribution of one example under component k, and `maximise`, the
    M-step.

    Arguments:
        observed: D, entries of an example.
        components: K.

    Attributes:
        weight_logits: [K], w = softmax(weight_logits).
    """

    observed: int
    density_of = "x"

    def __init__(self, observed: int, components: int) -> None:
        super().__init__()
        for name, value in (("observed", observed), ("components", components)):
            if value < 1:
                raise ProgramError(f"{self.name}: {name} must be at least 1, but it is {value}.")
        self.observed, self.components = observed, components
        self.weight_logits = nn.Parameter(torch.zeros(components))

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """k ~ Categorical(w); x ~ component k."""
        with pyro.plate("data", n if x is None else len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.weight_logits), infer={"enumerate": "parallel"})
            return pyro.sample("x", self.component(k), obs=None if x is None else self.as_data(x))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """The distribution of x under component k, batch shape that of k, event shape [D]."""
        raise NotImplementedError

    def as_data(self, x: Tensor) -> Tensor:
        """x in the type that the components take."""
        return x.to(self.dtype)

    # -- exact answers ---------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """w, [K]."""
        return self.weight_logits.softmax(-1)

    def log_density(self, x: Tensor) -> Score:
        """log p(x) = logsumexp_k [ log w_k + log p(x | k) ], exact, in nats, [batch]."""
        return Score(
            self.log_joint(x).logsumexp(-1),
            "exact",
            how=f"sum over {self.components} components, density of {self.density_of}",
        )

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """The responsibilities p(k | x) = w_k p(x | k) / p(x), exact."""
        log_joint = self.log_joint(x)
        return {"k": dist.Categorical(logits=log_joint - log_joint.logsumexp(-1, keepdim=True))}

    def log_joint(self, x: Tensor) -> Tensor:
        """log w_k + log p(x | k) in nats, [batch, K]."""
        rows = max(1, _ENTRIES // (self.components * self.observed))
        parts = [self.component_log_prob(part) for part in self.as_data(x).split(rows)]
        return torch.cat(parts) + self.weight_logits.log_softmax(-1)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) in nats, [batch, K]."""
        return self.component(torch.arange(self.components, device=x.device)).log_prob(x.unsqueeze(1))

    def default_method(self, task: str) -> Any:
        """Expectation maximisation with restarts for `learn`."""
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        return EM(restarts=5)

    def answers(self) -> dict[str, Answer]:
        how = f"sum over {self.components} components"
        return {
            "sample": Answer("exact", "a component, then an example"),
            "score": Answer("exact", f"{how}, density of {self.density_of}"),
            "infer": Answer("exact", f"responsibilities, {how}"),
            "learn": Answer("approximate", "expectation maximisation, a local optimum"),
        }

    # -- expectation maximisation ----------------------------------------------------------------------------

    def em_start(self, x: Tensor) -> None:
        """Draw a start from the data, for EM or for a gradient learner."""
        raise NotImplementedError

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One E- and M-step in place.

        Arguments:
            x: [N, D].

        Returns:
            The mean log likelihood in nats before the step, [].
        """
        x = self.as_data(x)
        log_joint = self.log_joint(x)  # [N, K]
        log_density = log_joint.logsumexp(-1, keepdim=True)  # [N, 1]
        responsibilities = (log_joint - log_density).exp()
        self.set_weights(responsibilities.mean(0))
        self.maximise(x, responsibilities)
        return log_density.mean()

    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """The M-step of the components, in place; x [N, D], responsibilities [N, K]."""
        raise NotImplementedError

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Set w; a weight of zero becomes the smallest positive number, so that its logit stays finite."""
        self.weight_logits.copy_(weights.clamp_min(torch.finfo(self.dtype).tiny).log())


def spread_rows(x: Tensor, count: int) -> Tensor:
    """Indices [count] of rows far from one another, by k-means++ seeding.

    Each next row is drawn in proportion to its squared distance from the nearest row so far. Duplicates
    appear only where there are too few distinct rows.

    Source: D. Arthur and S. Vassilvitskii (2007), k-means++.
    """
    chosen = torch.randint(len(x), (1,), device=x.device)
    nearest = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(-1))
        odds = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        chosen = torch.cat([chosen, _draw_row(odds)])
    return chosen


def _draw_row(odds: Tensor) -> Tensor:
    """An index in proportion to odds, [1]; any number of rows (torch.multinomial stops at 2^24)."""
    total = odds.double().cumsum(0)
    row = torch.searchsorted(total, torch.rand(1, device=odds.device, dtype=torch.float64) * total[-1], right=True)
    return row.clamp_max(len(odds) - 1)
