"""LatentDirichletAllocation: bars found again, bounds below quadrature, collapsed Gibbs against every assignment."""

import math
from itertools import pairwise, product

import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.distributions.word_counts import WordCounts
from ppl_dgm.errors import ProgramError, TaskUnavailable

SIDE = 4


def bars(documents=100, words=40, seed=0):
    """Documents whose topics are the rows and columns of a square of words (Griffiths and Steyvers, 2004)."""
    torch.manual_seed(seed)
    square = torch.eye(SIDE).repeat_interleave(SIDE, 1) / SIDE
    topics = torch.cat([square, torch.eye(SIDE).repeat(1, SIDE) / SIDE])  # rows, then columns
    theta = dist.Dirichlet(torch.full((documents, 2 * SIDE), 0.2)).sample()
    return WordCounts(theta @ topics, torch.full((documents,), float(words))).sample(), topics


def recovered(found, topics):
    """For each true topic the largest cosine with a found one."""
    unit = torch.nn.functional.normalize
    return (unit(topics, dim=-1) @ unit(found, dim=-1).mT).max(-1).values


@pytest.mark.slow
@pytest.mark.parametrize("method", [
    dgm.EM(restarts=2, steps=30, tolerance=1e-2),
    dgm.OnlineEM(epochs=15, batch_size=25, polish=10, tolerance=1e-2),
], ids=["batch", "minibatches"])  # fmt: skip
def test_bars_are_found_again(method):
    x, topics = bars()
    lda = dgm.models.LatentDirichletAllocation(SIDE**2, 2 * SIDE, alpha=0.2)
    dgm.learn(lda, x, method=method, seed=1)
    assert float(recovered(lda.topics.detach(), topics).sort().values[1]) > 0.9  # all but perhaps one
    held_out, _ = bars(seed=1)
    torch.manual_seed(0)
    assert lda.perplexity(held_out) < 0.75 * SIDE**2
    true = dgm.models.LatentDirichletAllocation(SIDE**2, 2 * SIDE, alpha=0.2)
    with torch.no_grad():
        true.topic_logits.copy_(topics.clamp_min(1e-6).log())
    assert lda.perplexity(held_out) > true.perplexity(held_out) * 0.98


def test_bound_importance_and_quadrature_are_in_order():
    torch.manual_seed(0)
    lda = dgm.models.LatentDirichletAllocation(5, 2, alpha=0.7, draws=4000).double()
    x = dgm.sample(lda, 6, seed=0)["x"]
    x[0] = 0
    grid = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    theta = torch.stack([grid, 1 - grid], -1)
    prior = dist.Dirichlet(torch.full((2,), 0.7, dtype=torch.float64)).log_prob(theta)
    words = torch.stack([torch.xlogy(row, theta @ lda.topics.detach()).sum(-1) for row in x])
    exact = (words + prior).logsumexp(-1) - math.log(len(grid))
    bound = lda.bound(x)
    value, error = lda._importance(x)
    assert bool((bound <= exact + 1e-3).all()) and bool((bound > exact - 1.5).all())
    assert bool(((value - exact).abs() < 5 * error + 2e-3).all())
    ways = torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
    score = dgm.score(lda, x, seed=0)
    assert score.kind == "lower_bound" and bool(((score.value - ways - exact).abs() < 5 * score.stderr + 2e-3).all())
    assert lda.perplexity(x) == pytest.approx(float((-exact.sum() / x.sum()).exp()), rel=5e-3)
    other = lda.variational(x) * 1.3
    assert bool((lda.bound(x, other) <= bound + 1e-9).all())


def test_variational_em_never_falls():
    x, _ = bars(40)
    torch.manual_seed(0)
    lda = dgm.models.LatentDirichletAllocation(SIDE**2, 4, count=0.05).double()
    lda.em_start(x)
    values = []
    for _ in range(20):
        prior = float(lda.log_prior().detach()) / len(x)
        values.append(float(lda.em_step(x)) + prior)
    assert all(b >= a - 1e-6 for a, b in pairwise(values)) and values[-1] > values[0] + 1


def test_collapsed_gibbs_visits_every_assignment_in_proportion():
    lda = dgm.models.LatentDirichletAllocation(2, 2, alpha=0.6).double()
    x = torch.tensor([[2, 1], [0, 2]])  # five words
    documents, words = [0, 0, 0, 1, 1], [0, 0, 1, 1, 1]

    def log_joint(k):
        by_document, by_word = torch.zeros(2, 2).double(), torch.zeros(2, 2).double()
        for d, v, topic in zip(documents, words, k):
            by_document[d, topic] += 1
            by_word[topic, v] += 1
        return sum(
            float((torch.lgamma(c + a) - math.lgamma(a)).sum() + math.lgamma(2 * a) - math.lgamma(2 * a + float(c.sum())))
            for a, table in ((0.6, by_document), (0.4, by_word)) for c in table
        )  # fmt: skip

    every = torch.tensor([log_joint(k) for k in product((0, 1), repeat=5)]).double()
    method = dgm.models.CollapsedTopicGibbs(chains=200, warmup=5, draws=20, concentration=0.4)
    post = dgm.infer(lda, x, method=method, seed=0)
    # lp has the same values as the list, in the same proportions
    drawn = post.stats["lp"].flatten()
    for value in every.unique():
        level = (every - value).abs() < 1e-9
        share = float(every.softmax(0)[level].sum())
        found = float(((drawn - value).abs() < 1e-6).double().mean())
        assert (
            abs(found - share) < 5 * (share * (1 - share) / 2000) ** 0.5
        )  # half as many draws as there are, for their ties
    assert post.draws["theta"].shape == (200, 20, 2, 2) and post.draws["topics"].shape == (200, 20, 2, 2)


@pytest.mark.slow
def test_collapsed_gibbs_finds_the_bars():
    x, topics = bars(25, 25)
    lda = dgm.models.LatentDirichletAllocation(SIDE**2, 2 * SIDE, alpha=0.2)
    post = dgm.infer(lda, x, method=dgm.models.CollapsedTopicGibbs(chains=4, warmup=20, draws=3), seed=0)
    best = post.stats["lp"].mean(1).argmax()
    assert float(recovered(post.draws["topics"][best].mean(0), topics).median()) > 0.8
    lp = post.stats["lp"]
    assert bool(lp.isfinite().all())


def test_refusals():
    with pytest.raises(ProgramError, match="topics must be a whole number"):
        dgm.models.LatentDirichletAllocation(5, 0)
    with pytest.raises(ProgramError, match="alpha must be positive"):
        dgm.models.LatentDirichletAllocation(5, 2, alpha=0.0)
    with pytest.raises(TaskUnavailable, match="knows LatentDirichletAllocation only"):
        dgm.infer(dgm.models.ProbabilisticPCA(3, 1), torch.zeros(2, 3), method="collapsed-topic-gibbs")
