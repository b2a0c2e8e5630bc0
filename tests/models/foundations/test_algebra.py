"""The algebra of programs against quadrature: scores integrate to one, kinds are passed on, variances add up."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions.transforms import AbsTransform, AffineTransform, ExpTransform, SigmoidTransform

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import (
    RBM,
    VAE,
    CoinTosses,
    Heights,
    MixtureOfGaussians,
    ProbabilisticPCA,
    composed,
    mixture_of,
    product_of,
    total_variance,
    transformed,
)

LINE = torch.linspace(-30, 30, 12001, dtype=torch.float64)
STEP = float(LINE[1] - LINE[0])


def normal(mean, scale):
    return dist.Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))


def bimodal():
    return mixture_of([normal(-2.0, 1.0), normal(3.0, 2.0)], [0.25, 0.75]).double()


# -- mixture -----------------------------------------------------------------------------------------------------------


def test_a_mixture_integrates_to_one_and_is_the_sum():
    program = bimodal()
    density = dgm.score(program, LINE).value.exp()
    by_hand = 0.25 * normal(-2.0, 1.0).log_prob(LINE).exp() + 0.75 * normal(3.0, 2.0).log_prob(LINE).exp()
    assert float(density.sum()) * STEP == pytest.approx(1.0, abs=1e-7)
    assert torch.allclose(density, by_hand, atol=1e-7)
    enumerated = dgm.score(dgm.as_program(program.model), LINE[:50], method="exact")
    assert torch.allclose(enumerated.value, dgm.score(program, LINE[:50]).value, atol=1e-6)
    exact = dgm.infer(program, LINE[::100]).exact["k"].probs
    told = dgm.infer(dgm.as_program(program.model), LINE[::100], method="exact").exact["k"].probs
    assert torch.allclose(exact, told, atol=1e-6)


def test_a_mixture_of_programs_is_the_mixture_program():
    torch.manual_seed(0)
    reference = MixtureOfGaussians(2, 3).double()
    parts = []
    for k in range(3):
        part = Heights(2).double()
        with torch.no_grad():
            part.mean.copy_(reference.means[k])
            part.log_variance.copy_(reference.log_variances[k])
        parts.append(part)
    x = torch.randn(20, 2, dtype=torch.float64)
    program = mixture_of(parts).double()
    assert torch.allclose(dgm.score(program, x).value, dgm.score(reference, x).value, atol=1e-6)
    drawn = dgm.sample(program, 20_000, seed=0)
    assert drawn["x"].shape == (20_000, 2)
    for k in range(3):
        rows = drawn["x"][drawn["k"] == k]
        assert torch.allclose(rows.mean(0), reference.means[k], atol=5 / math.sqrt(len(rows)))


def test_the_weights_and_the_parts_are_learned_together():
    x = dgm.sample(bimodal(), 2000, seed=0)["x"][:, None]
    parts = [Heights(1), Heights(1)]
    for part, start in zip(parts, (-1.0, 1.0)):
        part.mean.data.fill_(start)
    method = dgm.MaximumLikelihood(epochs=120, lr=0.1, batch_size=None)
    fit = dgm.learn(mixture_of(parts), x.float(), method=method, seed=0)
    assert float(fit.program.weight_logits.softmax(0)[0].detach()) == pytest.approx(0.25, abs=0.06)
    assert parts[0].mean.item() == pytest.approx(-2.0, abs=0.3) and parts[1].mean.item() == pytest.approx(3.0, abs=0.3)


def test_the_law_of_total_variance():
    found = total_variance([0.25, 0.75], torch.tensor([-2.0, 3.0]), torch.tensor([1.0, 4.0]))
    density = dgm.score(bimodal(), LINE).value.exp() * STEP
    mean = (density * LINE).sum()
    assert float(found.total) == pytest.approx(float((density * (LINE - mean).square()).sum()), abs=1e-4)
    assert float(found.within) == pytest.approx(3.25) and float(found.between) == pytest.approx(0.1875 * 25)
    drawn = dgm.sample(bimodal(), 1000, seed=0)  # of a sample it holds exactly
    shares, means, variances = zip(
        *[(len(r) / 1000, r.mean(), r.var(correction=0)) for k in (0, 1) for r in [drawn["x"][drawn["k"] == k]]]
    )
    split = total_variance(shares, torch.stack(means), torch.stack(variances))
    assert float(split.total) == pytest.approx(float(drawn["x"].var(correction=0)), rel=1e-6)


@pytest.mark.parametrize(("distance", "modes"), [(1.9, 1), (2.1, 2)])
def test_a_mixture_has_more_modes_only_where_its_parts_are_far_apart(distance, modes):
    program = mixture_of([normal(-distance / 2, 1.0), normal(distance / 2, 1.0)])
    density = dgm.score(program, LINE).value.exp()
    inner = density[1:-1]
    assert int(((inner > density[:-2] + 1e-12) & (inner > density[2:] + 1e-12)).sum()) == modes


# -- product -----------------------------------------------------------------------------------------------------------


def test_disjoint_factors_are_independent_and_exact():
    coins = CoinTosses(2).double()
    program = product_of([coins, normal(1.0, 2.0)], [[0, 2], 1])
    x = torch.tensor([[1.0, 0.3, 0.0], [0.0, -1.0, 1.0]], dtype=torch.float64)
    score = dgm.score(program, x)
    assert score.kind == "exact"
    assert torch.allclose(score.value, normal(1.0, 2.0).log_prob(x[:, 1]) + 2 * math.log(0.5), atol=1e-7)
    drawn = dgm.sample(program, 2000, seed=0)["x"]
    assert drawn.shape == (2000, 3) and set(drawn[:, [0, 2]].unique().tolist()) == {0.0, 1.0}
    assert float(drawn[:, 1].mean()) == pytest.approx(1.0, abs=4.5 * 2 / math.sqrt(2000))


def test_gaussian_factors_add_their_precisions_and_their_z_is_known():
    one, other = normal(0.0, 1.0), normal(3.0, 0.5)
    program = product_of([one, other], [0, 0])
    score = dgm.score(program, LINE[:, None])
    post = dgm.infer(program, seed=0)
    assert score.kind == "unnormalised" and post.kind == "exact"
    z = float((score.value.exp()).sum()) * STEP
    assert float(post.log_evidence.value) == pytest.approx(math.log(z), abs=1e-4)
    exact = post.exact["x"]
    assert float(exact.mean) == pytest.approx(12 / 5, abs=1e-4) and float(exact.variance) == pytest.approx(
        1 / 5, abs=1e-4
    )


def test_a_product_may_be_wider_than_its_factors():
    """Each has most of its mass where the other has none, so that what they agree on lies far out."""
    ends = [normal(-5.0, 0.1), normal(5.0, 0.1)]
    one, other = (mixture_of([normal(centre, 0.1), *ends], [0.9, 0.05, 0.05]) for centre in (-1.0, 1.0))

    def variance(log_density):
        p = (log_density - log_density.logsumexp(0)).exp()
        return float((p * LINE.square()).sum() - (p * LINE).sum() ** 2)

    assert max(variance(dgm.score(part, LINE).value) for part in (one, other)) < 3.0
    assert variance(dgm.score(product_of([one, other], [0, 0]), LINE[:, None]).value) == pytest.approx(25.0, abs=0.1)


def test_an_undirected_chain_is_drawn_by_the_sampler():
    pair = dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    program = product_of([pair, pair], [[0, 1], [1, 2]])
    precision = torch.zeros(3, 3)
    for rows in ([0, 1], [1, 2]):
        precision[torch.tensor(rows)[:, None], torch.tensor(rows)] += pair.precision_matrix
    post = dgm.infer(program, seed=0, method=dgm.NUTS(chains=4, warmup=150, draws=200))
    draws = post.draws["x"].reshape(-1, 3)
    assert torch.allclose(draws.T.cov(), torch.linalg.inv(precision), atol=0.2)
    with pytest.raises(TaskUnavailable, match="cannot be drawn forward"):
        dgm.sample(program, 2)


# -- transformation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("transforms", "reference"),
    [
        ([ExpTransform()], dist.LogNormal(0.5, 0.8)),
        ([AffineTransform(1.0, -2.0)], dist.Normal(1.0 - 2 * 0.5, 1.6)),
        ([AffineTransform(0.0, 2.0), ExpTransform()], dist.LogNormal(1.0, 1.6)),
    ],
)
def test_changes_of_variables(transforms, reference):
    program = transformed(dist.Normal(0.5, 0.8), *transforms)
    x = reference.sample((50,))
    assert torch.allclose(dgm.score(program, x).value, reference.log_prob(x), atol=1e-5)
    assert torch.allclose(
        dgm.score(dgm.as_program(program.model), x).value.sum(), reference.log_prob(x).sum(), atol=1e-3
    )
    drawn = dgm.sample(program, 4000, seed=0)["x"]
    inside = float((drawn < reference.icdf(torch.tensor(0.3))).double().mean())
    assert inside == pytest.approx(0.3, abs=4.5 * math.sqrt(0.21 / 4000))


def test_a_transformed_program_of_several_columns_integrates_to_one():
    torch.manual_seed(0)
    program = transformed(ProbabilisticPCA(2, 1).double(), SigmoidTransform())
    line = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    grid = torch.cartesian_prod(line, line)
    assert float(dgm.score(program, grid).value.exp().mean()) == pytest.approx(1.0, abs=0.01)
    assert dgm.sample(program, 5, seed=0)["x"].shape == (5, 2)


def test_what_cannot_be_inverted_has_no_score():
    program = transformed(dist.Normal(0.0, 1.0), AbsTransform())
    assert bool((dgm.sample(program, 100, seed=0)["x"] >= 0).all())
    with pytest.raises(TaskUnavailable, match="cannot be inverted"):
        dgm.score(program, torch.ones(2))


# -- composition -------------------------------------------------------------------------------------------------------


def test_a_linear_gaussian_composition_has_its_closed_form():
    program = composed(normal(1.0, 2.0), lambda z: dist.Normal(3 * z, torch.ones_like(z)))
    x = torch.tensor([0.5], dtype=torch.float64)
    assert float(dgm.score(program, x).value) == pytest.approx(float(normal(3.0, math.sqrt(37)).log_prob(x)), abs=1e-4)
    post = dgm.infer(program, x, seed=0).exact["z"]
    assert float(post.variance) == pytest.approx(1 / (1 / 4 + 9), abs=1e-4)


def test_any_other_composition_is_estimated_and_a_bijection_of_latents_composes_too():
    program = composed(bimodal(), lambda z: dist.Bernoulli(logits=z))
    exact = float((dgm.score(bimodal(), LINE).value.exp() * LINE.sigmoid()).sum()) * STEP
    found = dgm.score(program, torch.ones(1), method=dgm.SimpleMonteCarlo(draws=20_000), seed=0)
    assert found.kind == "estimate"
    assert float(found.value.exp()) == pytest.approx(exact, abs=4.5 * 0.5 / math.sqrt(20_000))


def test_a_network_in_the_conditional_is_part_of_the_program():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

        def forward(self, z):
            return dist.Normal(self.net(z[:, None])[:, 0], 1.0)

    program = composed(dist.Normal(0.0, 1.0), Decoder())
    assert sum(p.numel() for p in program.parameters()) == 2


# -- kinds -------------------------------------------------------------------------------------------------------------


def test_kinds_are_passed_on_or_refused():
    torch.manual_seed(0)
    x = torch.randint(0, 2, (3, 4)).float()
    rbm, coins = RBM(4, 2), CoinTosses(4)
    assert dgm.score(mixture_of([coins, coins]), x).kind == "exact"
    undirected = product_of([coins, coins], [[0, 1, 2, 3]] * 2)
    assert dgm.score(mixture_of([rbm, coins]), x).kind == rbm.log_density(x).kind == "exact"
    with pytest.raises(TaskUnavailable, match="unnormalised, so the weights"):
        dgm.score(mixture_of([undirected, coins]), x)
    assert (
        dgm.score(product_of([undirected, normal(0.0, 1.0)], [[0, 1, 2, 3], 4]), torch.cat([x, x[:, :1]], -1)).kind
        == "unnormalised"
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mixture_of([normal(0.0, 1.0), Heights(2)]), "examples of one shape"),
        (lambda: mixture_of([normal(0.0, 1.0)] * 2, [1.0]), "weights must be 2 positive numbers"),
        (lambda: mixture_of([dist.Normal(torch.zeros(3), 1.0)]), r"batch shape \(3,\) is several"),
        (lambda: mixture_of([VAE(4, 2)]), "'VAE' has no log_density"),
        (lambda: product_of([Heights(2)], [[0]]), r"scope \[0\] takes examples of shape \(1,\)"),
        (lambda: product_of([Heights(1)], [[1]]), r"must cover columns 0, 1, ..., but they cover \[1\]"),
        (lambda: product_of([Heights(1)], [[0], [1]]), "1 parts need as many scopes, not 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make, words):
    with pytest.raises(ProgramError, match=words):
        make()
