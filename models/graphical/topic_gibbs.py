"""CollapsedTopicGibbs: Gibbs sampling of every word's topic, with documents' and topics' probabilities integrated out."""

import time
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.options import is_count, require
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

from .lda import LatentDirichletAllocation

__all__ = ["CollapsedTopicGibbs"]


@algorithm("collapsed-topic-gibbs")
@dataclass(frozen=True)
class CollapsedTopicGibbs:
    """Each word's topic given those of all other words; topics have the prior Dirichlet(concentration) here.

        p(k of word i = k | rest) proportional to (n_dk + alpha) (n_kv + concentration) / (n_k + V concentration)

    All chains move at once, one word after another. After each kept sweep theta and the topics are drawn from their Dirichlet
    posteriors given the assignments. The topics' labels have no meaning and may differ between chains.

    Arguments:
        chains: chains that run at once, each from its own random assignment.
        warmup, draws: sweeps thrown away, and kept.
        concentration: of each topic's Dirichlet prior.

    Returns, in `Posterior.draws`: `theta` [chain, draw, n, K] and `topics` [chain, draw, K, V]; in `stats` `lp`, log p(x, k).

    Raises:
        TaskUnavailable: the program is no `LatentDirichletAllocation`.

    Source: T. Griffiths and M. Steyvers (2004), Finding scientific topics.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> lda, x = LatentDirichletAllocation(4, 2), torch.randint(0, 3, (5, 4))
        >>> dgm.infer(lda, x, method=CollapsedTopicGibbs(warmup=2, draws=3), seed=0).draws["topics"].shape
        torch.Size([4, 3, 2, 4])
    """

    chains: int = 4
    warmup: int = 100
    draws: int = 100
    concentration: float = 0.1

    def __post_init__(self) -> None:
        require(
            self,
            ("chains", is_count(self.chains, 1), "a whole number, at least 1"),
            ("warmup", is_count(self.warmup, 0), "a whole number, at least 0"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
            ("concentration", self.concentration > 0, "positive"),
        )

    @torch.no_grad()
    def run(self, program: Any, x: Tensor) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`."""
        program = getattr(getattr(program, "_model", None), "__self__", program)  # the same under another guide
        if not isinstance(program, LatentDirichletAllocation):
            raise TaskUnavailable(
                f"collapsed topic Gibbs knows LatentDirichletAllocation only, not {program.name!r}; take method='gibbs'."
            )
        begun = time.perf_counter()
        state = _Assignments(program, x.long(), self.chains, self.concentration)
        kept: dict[str, list[Tensor]] = {"theta": [], "topics": [], "lp": []}
        with progress("collapsed topic Gibbs", self.warmup + self.draws) as report:
            for sweep in range(self.warmup + self.draws):
                state.sweep()
                if sweep >= self.warmup:
                    for name, value in state.draw().items():
                        kept[name].append(value)
                report()
        stacked = {name: torch.stack(values, 1) for name, values in kept.items()}
        lp = stacked.pop("lp")
        return Posterior(
            stacked,
            stats={"lp": lp},
            cost=Cost(self.chains * self.draws, time.perf_counter() - begun, path="closed form"),
            how=f"collapsed Gibbs over {len(state.words)} words, {self.chains} chains of {self.warmup} + {self.draws}",
            kind="asymptotic",
            program=program,
        )


class _Assignments:
    """Every word's topic, [chains, words], and the counts, kept up to date."""

    def __init__(self, program: LatentDirichletAllocation, x: Tensor, chains: int, concentration: float) -> None:
        size, dtype, device = program.size, program.dtype, x.device
        at = x.nonzero()  # [pairs, 2]
        repeats = x[at[:, 0], at[:, 1]]
        self.documents, self.words = at.repeat_interleave(repeats, 0).unbind(-1)
        self.alpha, self.concentration, self.size = program.alpha, concentration, size
        self.k = torch.randint(size, (chains, len(self.words)), device=device)
        self.by_document = torch.zeros(chains, len(x), size, dtype=dtype, device=device)  # n_dk
        self.by_word = torch.zeros(chains, program.observed, size, dtype=dtype, device=device)  # n_kv
        hot = torch.nn.functional.one_hot(self.k, size).to(dtype)
        self.by_document.index_add_(1, self.documents, hot)
        self.by_word.index_add_(1, self.words, hot)
        self.total = self.by_word.sum(1)  # n_k, [chains, K]
        self.eye = torch.eye(size, dtype=dtype, device=device)
        self.places = list(zip(self.documents.tolist(), self.words.tolist()))

    def sweep(self) -> None:
        room = self.by_word.shape[1] * self.concentration
        noise = torch.empty((len(self.places), *self.total.shape), dtype=self.total.dtype, device=self.total.device)
        noise.exponential_()
        for i, (d, v) in enumerate(self.places):
            old = self.eye[self.k[:, i]]  # [chains, K]
            mine, word = self.by_document[:, d], self.by_word[:, v]
            mine -= old
            word -= old
            self.total -= old
            weight = (mine + self.alpha) * (word + self.concentration) / (self.total + room)
            new = (weight / noise[i]).argmax(-1)  # the exponential race draws in proportion to weight
            self.k[:, i] = new
            hot = self.eye[new]
            mine += hot
            word += hot
            self.total += hot

    def draw(self) -> dict[str, Tensor]:
        return {
            "theta": dist.Dirichlet(self.by_document + self.alpha).sample(),
            "topics": dist.Dirichlet(self.by_word.mT + self.concentration).sample(),
            "lp": self.log_joint(),
        }

    def log_joint(self) -> Tensor:
        """log p(words, k), [chains], theta and topics integrated out."""
        return _polya(self.by_document, self.alpha) + _polya(self.by_word.mT, self.concentration)


def _polya(counts: Tensor, concentration: float) -> Tensor:
    """sum over rows of the log probability of a sequence with these counts under a Dirichlet prior; [chains, rows, cells]."""
    prior = torch.full_like(counts, concentration)
    rows = torch.lgamma(counts + prior).sum(-1) - torch.lgamma(prior).sum(-1)
    return (rows + torch.lgamma(prior.sum(-1)) - torch.lgamma((counts + prior).sum(-1))).sum(-1)
