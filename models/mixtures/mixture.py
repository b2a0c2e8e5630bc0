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

__all__ = ["Mixture", "entry_sums", "filled", "spread_rows"]

_ENTRIES = 2**24  # entries of [rows, components, dims] held at a time, so that memory stays flat


class Mixture(Program):
    """p(x) = sum_k w_k p(x | k), w on the simplex.

    There is no guide: the only latent site is summed out, by EM or by `SVI(elbo="enum")`, for which
    `em_start(x)` gives a good start.

    A subclass gives `component(k)`, the distribution of one example under component k, and `maximise`, the
    M-step; or `statistics` and `maximise_from`, which make the M-step and serve minibatch EM (`OnlineEM`) too.

    Entries that are missing are summed or integrated out exactly, by every verb, where the program is made with
    `missing=True`: p(x_seen) = sum_k w_k p(x_seen | k). They are missing at random: what is missing says nothing of
    the component.

    Arguments:
        observed: D, entries of an example.
        components: K.
        missing: whether the data may have holes, marked by NaN (or by -1 where that is no value).

    Attributes:
        weight_logits: [K], w = softmax(weight_logits).
        weight_count: added to each component's expected count in the M-step, the prior w ~ Dirichlet(1 + weight_count).
    """

    observed: int
    density_of = "x"
    weight_count: float = 0.0

    def __init__(self, observed: int, components: int, missing: bool = False) -> None:
        super().__init__()
        self.allows_missing = missing
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
            if x is None:
                return pyro.sample("x", self.component(k))
            fn, x = self._of_seen(k, self.as_data(x))
            return pyro.sample("x", fn, obs=x)

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """The distribution of x under component k, batch shape that of k, event shape [D]."""
        raise NotImplementedError

    def component_of_seen(self, k: Tensor, seen: Tensor) -> TorchDistributionMixin:
        """The distribution of the entries seen [batch, D] under component k; whatever the others hold adds nothing.

        As it stands, for components that factorise over entries.
        """
        return self.component(k).base_dist.mask(seen).to_event(1)  # type: ignore[attr-defined]

    def _of_seen(self, k: Tensor, x: Tensor) -> tuple[TorchDistributionMixin, Tensor]:
        """What x is observed from, and x with its holes filled by a value that counts for nothing."""
        seen = self.seen(x)
        if seen is None:
            return self.component(k), x
        return self.component_of_seen(k, seen), torch.where(seen, x, torch.zeros_like(x))

    def seen(self, x: Tensor) -> Tensor | None:
        """Which entries of x (in the components' type) are there, [batch, D]; None where all are."""
        if not self.allows_missing:
            return None
        seen = ~x.isnan() if x.is_floating_point() else x >= 0
        return None if bool(seen.all()) else seen

    def as_data(self, x: Tensor) -> Tensor:
        """x in the type that the components take, with NaN (or -1 in integers) for what is missing."""
        return x.to(self.dtype)

    # -- exact answers ---------------------------------------------------------------------------------------

    @property
    def weights(self) -> Tensor:
        """w, [K]."""
        return self.weight_logits.softmax(-1)

    @property
    def free_count(self) -> int:
        """Free parameters, for information criteria: K - 1 weights, and those of the components."""
        return self.components - 1 + self.components_free_count

    @property
    def components_free_count(self) -> int:
        """Free parameters of all components; as it stands, one for each entry of what is learned besides the weights."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and name != "weight_logits")

    def log_density(self, x: Tensor) -> Score:
        """log p(x) = logsumexp_k [ log w_k + log p(x | k) ], exact, in nats, [batch]."""
        return Score(
            self.log_joint(x).logsumexp(-1),
            "exact",
            how=f"sum over {self.components} components, density of {self.density_of}",
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], for `MaximumLikelihood`."""
        return self.log_joint(x).logsumexp(-1)

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
        fn, x = self._of_seen(torch.arange(self.components, device=x.device), x.unsqueeze(1))
        return fn.log_prob(x)

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
        value, responsibilities = self._expect(x)
        self.set_weights(responsibilities.sum(0) + self.weight_count)
        self.maximise(x, responsibilities)
        return value

    def _expect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean log likelihood, [], and the responsibilities, [N, K]."""
        log_joint = self.log_joint(x)  # [N, K]
        log_density = log_joint.logsumexp(-1, keepdim=True)  # [N, 1]
        return log_density.mean(), (log_joint - log_density).exp()

    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """The M-step of the components, in place; x [N, D], responsibilities [N, K]."""
        about = self.reference()
        self.maximise_from(self.statistics(x, responsibilities, about), about)

    def reference(self) -> Tensor | None:
        """The point about which moments are taken in a step over all rows, [K, D]; None where none are."""
        return None

    def origin(self) -> Tensor | None:
        """Such a point that stays the same from batch to batch, [K, D]."""
        return None

    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any) -> tuple[Tensor, ...]:
        """Sufficient statistics of the components, summed over rows: all that the M-step needs to know of x."""
        raise NotImplementedError

    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any) -> None:
        """The M-step of the components from their statistics, in place."""
        raise NotImplementedError

    @torch.no_grad()
    def em_statistics(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean log likelihood, [], and the expected statistics of x scaled to one row, in float64 (`OnlineEM`)."""
        x = self.as_data(x)
        value, responsibilities = self._expect(x)
        shares = responsibilities.double()
        rows = x.double() if x.is_floating_point() else x
        sums = (shares.sum(0), *self.statistics(rows, shares, self.origin()))
        return value, tuple(part / len(x) for part in sums)

    @torch.no_grad()
    def em_maximise(self, statistics: tuple[Tensor, ...], rows: int) -> None:
        """All parameters, in place, from statistics scaled to one row of `rows` (`OnlineEM`)."""
        mass, *rest = (part * rows for part in statistics)
        self.set_weights(mass + self.weight_count)
        self.maximise_from(tuple(rest), self.origin())

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Set w in proportion; a weight of zero becomes the smallest positive number, so that its logit stays finite."""
        weights = weights / weights.sum()
        self.weight_logits.copy_(weights.clamp_min(torch.finfo(self.dtype).tiny).log())

    def near_seeds(self, x: Tensor) -> Tensor:
        """Responsibilities for a start, [N, K]: half to the nearest of K k-means++ seeds, half to all alike."""
        seeds = x[spread_rows(x, self.components)]  # [K, D]
        groups = nn.functional.one_hot(torch.cdist(x, seeds).argmin(-1), self.components)
        self.set_weights(torch.ones_like(self.weight_logits))
        return 0.5 * groups.to(x.dtype) + 0.5 / self.components


def entry_sums(x: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Expected counts of the entries seen and their sums: sum_n r_nk 1[x_nd seen] and sum_n r_nk x_nd, [K, D] each."""
    seen = ~x.isnan()
    return responsibilities.mT @ seen.to(x.dtype), responsibilities.mT @ x.nan_to_num(0.0)


def filled(x: Tensor) -> Tensor:
    """x [N, D] with each hole (NaN) filled by the mean of its column's other entries, or zero where there are none."""
    return torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.0), x)


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
