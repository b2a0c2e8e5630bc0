"""LatentDirichletAllocation: documents as mixtures of topics, topics as distributions over words."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.distributions.word_counts import WordCounts
from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["LatentDirichletAllocation"]

_INNER = 500  # most steps of a document's coordinate ascent


class LatentDirichletAllocation(Program):
    """theta ~ Dirichlet(alpha, ..., alpha), each word: k ~ Categorical(theta), word ~ Categorical(topic_k).

    Data are counts of words, [n, V]; which topic each word came from is summed out, so that x has probabilities
    sum_k theta_k topic_kv. The guide is the mean-field posterior q(theta) = Dirichlet(gamma), found for each document
    by coordinate ascent:

        gamma_k = alpha + sum_v x_v r_vk,        r_vk proportional to exp(digamma(gamma_k)) topic_kv

    `EM` is then variational EM on all documents, `OnlineEM` the same on minibatches (stochastic variational inference).
    Topics are parameters here; `CollapsedTopicGibbs` treats them as unknown.

    Arguments:
        observed: V, words of the vocabulary.
        topics: K.
        alpha: concentration of a document's topics; small: few topics per document.
        count: pseudo-count of each word in each topic, the prior Dirichlet(1 + count).
        words: words of a document that is sampled.
        draws: importance draws of `score`.

    Attributes:
        topic_logits: [K, V], topic = softmax(topic_logits).

    Raises:
        ProgramError: an argument out of range.

    Source: D. Blei, A. Ng and M. Jordan (2003); M. Hoffman, D. Blei and F. Bach (2010) for minibatches.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.poisson(torch.rand(30, 9) * 4)
        >>> lda = LatentDirichletAllocation(9, 2)
        >>> fit = dgm.learn(lda, x, method=dgm.EM(steps=5), seed=0)
        >>> lda.topics.shape
        torch.Size([2, 9])
    """

    support = constraints.nonnegative_integer
    observed: int

    def __init__(
        self, observed: int, topics: int, alpha: float = 0.5, count: float = 0.01, words: int = 50, draws: int = 100
    ) -> None:
        super().__init__()
        for name, number in (("observed", observed), ("topics", topics), ("words", words), ("draws", draws)):
            if not isinstance(number, int) or number < 1:
                raise ProgramError(f"{name} must be a whole number, at least 1, but it is {number!r}.")
        if not 0 < alpha < math.inf or not 0 <= count < math.inf:
            raise ProgramError(f"alpha must be positive and count at least 0, but they are {alpha!r} and {count!r}.")
        self.observed, self.size, self.alpha, self.count, self.words, self.draws = (
            observed, topics, alpha, count, words, draws
        )  # fmt: skip
        self.topic_logits = nn.Parameter(torch.randn(topics, observed))

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """theta ~ Dirichlet(alpha); x ~ as many words as the document has, each by topic."""
        concentration = self.topic_logits.new_full((self.size,), self.alpha)
        x = None if x is None else x.to(self.dtype)
        total = self.topic_logits.new_tensor(float(self.words)) if x is None else x.sum(-1)
        with pyro.plate("data", n if x is None else len(x)):
            theta = pyro.sample("theta", dist.Dirichlet(concentration))
            return pyro.sample("x", WordCounts(theta @ self.topics, total), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """theta ~ Dirichlet(gamma), the mean-field posterior."""
        with pyro.plate("data", len(x)):
            return pyro.sample("theta", dist.Dirichlet(self.variational(x)))

    @property
    def topics(self) -> Tensor:
        """Words' probabilities in each topic, [K, V]."""
        return self.topic_logits.softmax(-1)

    # -- a document's topics ---------------------------------------------------------------------------------

    @torch.no_grad()
    def variational(self, x: Tensor) -> Tensor:
        """gamma, [n, K], by coordinate ascent from alpha + N / K until it moves by less than one part in 10^6."""
        topics, x = self.topics.double(), x.double()
        gamma = (self.alpha + x.sum(-1, keepdim=True) / self.size).expand(-1, self.size)
        for _ in range(_INNER):
            old, gamma = gamma, self._updated(x, topics, gamma)
            if float(((gamma - old).abs() / old).max()) < 1e-6:
                break
        return gamma.to(self.dtype)

    def _updated(self, x: Tensor, topics: Tensor, gamma: Tensor) -> Tensor:
        odds = (torch.digamma(gamma) - torch.digamma(gamma.sum(-1, keepdim=True))).exp()  # [n, K]
        word = (odds @ topics).clamp_min(torch.finfo(odds.dtype).tiny)  # [n, V]
        return self.alpha + odds * ((x / word) @ topics.mT)

    def bound(self, x: Tensor, gamma: Tensor | None = None) -> Tensor:
        """The variational lower bound of log p(words) in nats, [n], in float64, words in order (no multinomial coefficient)."""
        gamma = (self.variational(x) if gamma is None else gamma).double()
        x = x.double()
        expected = torch.digamma(gamma) - torch.digamma(gamma.sum(-1, keepdim=True))
        word = expected.exp() @ self.topics.double()
        prior = math.lgamma(self.size * self.alpha) - self.size * math.lgamma(self.alpha)
        entropy = torch.lgamma(gamma).sum(-1) - torch.lgamma(gamma.sum(-1))
        return torch.xlogy(x, word).sum(-1) + prior + entropy + ((self.alpha - gamma) * expected).sum(-1)

    @torch.no_grad()
    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [n], by importance sampling from the guide: a lower bound in expectation."""
        value, spread = self._importance(x)
        ways = torch.lgamma(x.double().sum(-1) + 1) - torch.lgamma(x.double() + 1).sum(-1)
        return Score(
            (value + ways).to(self.dtype), "lower_bound", spread.to(self.dtype),
            how=f"importance weighting, K = {self.draws}, mean-field posterior",
        )  # fmt: skip

    def _importance(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log mean_s [ p(words | theta_s) p(theta_s) / q(theta_s) ] and its standard error, [n]."""
        gamma, x = self.variational(x).double(), x.double()
        proposal = dist.Dirichlet(gamma)
        theta = proposal.sample((self.draws,)).clamp_min(torch.finfo(gamma.dtype).tiny)  # [draws, n, K]
        prior = dist.Dirichlet(torch.full_like(gamma, self.alpha))
        log_words = torch.xlogy(x, theta @ self.topics.double()).sum(-1)
        log_weight = log_words + prior.log_prob(theta) - proposal.log_prob(theta)
        share = log_weight.softmax(0) * self.draws
        value = log_weight.logsumexp(0) - math.log(self.draws)
        error = share.std(0) / math.sqrt(self.draws) if self.draws > 1 else torch.full_like(value, math.nan)
        return value, error

    @torch.no_grad()
    def perplexity(self, x: Tensor) -> float:
        """exp(- sum_d log p(words of d) / number of words), held-out documents in, small is good.

        log p(words of d) is that of the words in order, integrated over theta by importance sampling from the guide with
        `draws` draws (H. Wallach et al., 2009); it is too small in expectation, so that the perplexity errs upwards.
        """
        return float((-self._importance(x)[0].sum() / x.double().sum()).exp())

    def default_method(self, task: str) -> Any:
        """Variational EM for `learn`."""
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        return EM(restarts=3)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a document's topics, then its words"),
            "score": Answer("lower_bound", f"importance weighting, K = {self.draws}, mean-field posterior"),
            "infer": Answer("approximate", "mean-field Dirichlet, coordinate ascent"),
            "learn": Answer("approximate", "variational expectation maximisation, a local optimum"),
        }

    # -- variational expectation maximisation ----------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Each topic: some documents' words, smoothed."""
        share = x.to(self.dtype).mean(0)
        picks = torch.randint(len(x), (self.size, max(1, min(5, len(x) // self.size))), device=x.device)
        mixed = x.to(self.dtype)[picks].mean(1) + share + 0.01
        self.topic_logits.copy_((mixed * (0.5 + torch.rand_like(mixed))).log())

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One variational E- and M-step in place; returns the mean bound in nats per document before it, []."""
        value, statistics = self.em_statistics(x)
        self.em_maximise(statistics, len(x))
        return value

    @torch.no_grad()
    def em_statistics(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The mean bound, [], and expected counts of words by topic per document, [K, V] (`OnlineEM`)."""
        gamma = self.variational(x).double()
        topics, counts = self.topics.double(), x.double()
        odds = (torch.digamma(gamma) - torch.digamma(gamma.sum(-1, keepdim=True))).exp()
        word = (odds @ topics).clamp_min(torch.finfo(odds.dtype).tiny)
        return self.bound(x, gamma).mean(), (topics * (odds.mT @ (counts / word)) / len(x),)

    @torch.no_grad()
    def em_maximise(self, statistics: tuple[Tensor, ...], rows: int) -> None:
        """Topics in proportion to their expected counts plus `count`."""
        found = statistics[0] * rows + self.count
        tiny = torch.finfo(self.dtype).tiny
        self.topic_logits.copy_((found / found.sum(-1, keepdim=True).clamp_min(tiny)).clamp_min(tiny).log())

    def log_prior(self) -> Tensor:
        """Log density of the topics' prior up to a constant, in nats, []; EM adds it."""
        return self.count * self.topic_logits.log_softmax(-1).sum()
