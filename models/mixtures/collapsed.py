"""CollapsedMixtureGibbs: Gibbs sampling of a Bayesian mixture's assignments with all parameters integrated out."""

import time
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

from .bayesian import BayesianMixture, DirichletProcessMixture
from .mixture import spread_rows

__all__ = ["CollapsedMixtureGibbs"]

_STARTS = 5  # assignments of which each chain begins with the likeliest


@algorithm("collapsed-mixture-gibbs")
@dataclass(frozen=True)
class CollapsedMixtureGibbs:
    """Each example's component given those of all others, weights and components integrated out.

        p(k_n = k | rest) proportional to (N_k + concentration) p(x_n | the examples of k)

    All chains move at once. After each kept sweep weights and parameters are drawn from their conjugate posterior, so
    that the draws are of the same sites as those of `NUTS` and `Gibbs`, and k besides.

    Arguments:
        chains: chains that run at once, each from its own start: every example with the nearest of K random rows far
            apart, the likeliest of five such assignments.
        warmup, draws: sweeps thrown away, and kept.

    Returns, in `Posterior.stats`: `lp`, log p(x, k) in nats, up to the constant of `BayesianMixture.log_marginal`.

    Raises:
        TaskUnavailable: the program is no `BayesianMixture`, or a `DirichletProcessMixture`, whose truncated weights are
            not exchangeable.

    Source: R. Neal (2000), Markov chain sampling methods for Dirichlet process mixture models, algorithm 3, for a
    finite number of components.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = dgm.models.BayesianMixture(2, 3, "bernoulli")
        >>> x = torch.randint(0, 2, (10, 2))
        >>> dgm.infer(program, x, method=CollapsedMixtureGibbs(warmup=5, draws=10), seed=0).draws["k"].shape
        torch.Size([4, 10, 10])
    """

    chains: int = 4
    warmup: int = 100
    draws: int = 500

    def __post_init__(self) -> None:
        for name, value, least in (("chains", self.chains, 1), ("warmup", self.warmup, 0), ("draws", self.draws, 1)):
            if value < least:
                raise ProgramError(f"CollapsedMixtureGibbs: {name} must be at least {least}, but it is {value!r}.")

    @torch.no_grad()
    def run(self, program: Any, x: Tensor) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`."""
        program = getattr(getattr(program, "_model", None), "__self__", program)  # the same under another guide
        if not isinstance(program, BayesianMixture) or isinstance(program, DirichletProcessMixture):
            raise TaskUnavailable(
                f"collapsed Gibbs knows the marginal likelihood of BayesianMixture only, not of {program.name!r}; "
                "take method='gibbs' or 'nuts'."
            )
        begun = time.perf_counter()
        state = _State(program, x.double(), self.chains)
        rows: list[dict[str, Tensor]] = []
        lps: list[Tensor] = []
        with progress("collapsed Gibbs", self.warmup + self.draws) as report:
            for sweep in range(self.warmup + self.draws):
                state.sweep()
                if sweep >= self.warmup:
                    rows.append(state.draw())
                    lps.append(state.log_joint())
                report()
        kept = {name: torch.stack([row[name] for row in rows], 1) for name in rows[0]}
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return Posterior(
            {name: value.to(dtype) if value.is_floating_point() else value for name, value in kept.items()},
            stats={"lp": torch.stack(lps, 1)},
            cost=Cost(self.chains * self.draws, time.perf_counter() - begun, path="closed form"),
            how=f"collapsed Gibbs, {self.chains} chains of {self.warmup} + {self.draws}",
            kind="asymptotic",
            program=program,
        )


class _State:
    """Assignments [chains, N] and the sums of each component, kept up to date."""

    def __init__(self, program: BayesianMixture, x: Tensor, chains: int) -> None:
        self.program, self.x, self.size = program, x, program.components
        # from rows far apart, the likeliest of a few: a chain that begins with two groups in one may take long to part them
        seeds = [x[spread_rows(x, self.size)] for _ in range(chains * _STARTS)]
        self.k = torch.stack([torch.cdist(x, rows).argmin(-1) for rows in seeds])
        self._count()
        best = self.log_joint().reshape(chains, _STARTS).argmax(1)
        self.all = torch.arange(chains, device=x.device)
        self.k = self.k[self.all * _STARTS + best]
        self._count()

    def _count(self) -> None:
        """Sums afresh, so that rounding does not add up from sweep to sweep."""
        member = torch.nn.functional.one_hot(self.k, self.size).to(self.x.dtype)  # [chains, N, K]
        self.count = member.sum(1)
        self.total = member.mT @ self.x  # [chains, K, D]
        self.squares = member.mT @ self.x.square()
        self.marginal = self.program.log_marginal(self.count, self.total, self.squares)

    def sweep(self) -> None:
        self._count()
        for n in torch.randperm(len(self.x)).tolist():
            row, old = self.x[n], self.k[:, n]
            self._move(old, row, -1.0)
            at = (self.all, old)
            self.marginal[at] = self.program.log_marginal(self.count[at], self.total[at], self.squares[at])
            after = self.program.log_marginal(self.count + 1, self.total + row, self.squares + row.square())
            logits = (self.count + self.program.concentration).log() + after - self.marginal
            new = (logits - torch.rand_like(logits).log().neg().log()).argmax(-1)  # Gumbel's trick
            self.k[:, n] = new
            self._move(new, row, 1.0)
            self.marginal[self.all, new] = after[self.all, new]

    def _move(self, k: Tensor, row: Tensor, sign: float) -> None:
        at = (self.all, k)
        self.count[at] += sign
        self.total[at] += sign * row
        self.squares[at] += sign * row.square()

    def draw(self) -> dict[str, Tensor]:
        weights = dist.Dirichlet(self.count + self.program.concentration).sample()
        return {
            "weights": weights,
            **self.program.draw_parameters(self.count, self.total, self.squares),
            "k": self.k.clone(),
        }

    def log_joint(self) -> Tensor:
        """log p(x, k), [chains]."""
        a = torch.full_like(self.count, self.program.concentration)
        prior = torch.lgamma(a + self.count).sum(-1) - torch.lgamma(a).sum(-1)
        prior = prior + torch.lgamma(a.sum(-1)) - torch.lgamma((a + self.count).sum(-1))
        return prior + self.marginal.sum(-1)
