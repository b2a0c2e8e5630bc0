"""VQVAE: its bound against the enumerated evidence, straight-through gradients, the codebook, and priors of codes."""

import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models import VAE, VQVAE, MarkovChain

SMALL = {"observed": 4, "values": 3, "positions": 2, "codebook": 4, "code_size": 2, "hidden": 8}


def small(**options: object) -> VQVAE:
    return VQVAE(**(SMALL | options))


def all_codes(program: VQVAE) -> torch.Tensor:
    return torch.cartesian_prod(*[torch.arange(program.codebook)] * program.positions)


def log_joint(program: VQVAE, x: torch.Tensor) -> torch.Tensor:
    """log p(x, k) for every code, [code, batch]."""
    rows = []
    for k in all_codes(program):
        given = program.decode(k.expand(len(x), -1)).log_prob(x)
        rows.append(given + program.prior.log_density(k[None]).value)
    return torch.stack(rows)


@pytest.mark.parametrize("prior", ["uniform", "categorical", "markov", "mixture"])
def test_the_score_is_the_evidence_less_the_surprise_of_the_nearest_code(prior):
    x = torch.randint(0, 3, (50, 4))
    program = small(prior=prior, components=2)
    dgm.learn(program, x, method=dgm.TwoStage(epochs=15), seed=0)
    joint, score = log_joint(program, x), dgm.score(program, x)
    exact = joint.logsumexp(0)
    nearest = (all_codes(program)[:, None] == program.indices(x)).all(-1).double().argmax(0)  # [batch]
    surprise = exact - joint.gather(0, nearest[None])[0]
    assert score.kind == "lower_bound" and (score.value <= exact + 1e-5).all() and (score.stderr == 0).all()
    assert torch.allclose(score.value, exact - surprise, atol=1e-4)
    assert torch.equal(dgm.infer(program, x, seed=0).draws["k"][0, 0], program.indices(x))
    elbo = dgm.score(program, x, method=dgm.ELBO(draws=1), seed=0)
    assert torch.allclose(elbo.value, score.value, atol=1e-4)


def test_the_gradient_passes_straight_through_to_the_encoder():
    program, x = small(commitment=0.0).double(), torch.randint(0, 3, (1, 4))
    last = program.encoder[-1]
    found = torch.autograd.grad(program.eval().autoencoding_loss(x).sum(), last.bias)[0]
    code = program.vectors[program.indices(x)].flatten(-2).requires_grad_()
    loss = -program.likelihood(program.decoder(code)).log_prob(x)
    assert torch.allclose(found, torch.autograd.grad(loss.sum(), code)[0][0])


def test_the_commitment_pulls_the_encoder_and_the_codebook_loss_the_codebook():
    program, x = small(commitment=2.0, average=None).double(), torch.randint(0, 3, (1, 4))
    plain = small(commitment=0.0, average=0.9).double()
    plain.load_state_dict(program.state_dict() | {"sums": plain.sums})
    outputs = program._encoded(x)
    apart = outputs - program.vectors[program.indices(x)]
    extra = program.autoencoding_loss(x) - plain.autoencoding_loss(x)
    assert torch.allclose(extra, 3 * apart.square().sum((-2, -1)))
    slope = torch.autograd.grad(program.autoencoding_loss(x).sum(), program.vectors)[0]
    expected = torch.zeros_like(slope).index_add(0, program.indices(x)[0], -2 * apart[0])
    assert torch.allclose(slope, expected)  # the decoder's loss does not reach it


def test_moving_averages_end_at_the_means_of_what_the_entries_are_used_for():
    program = small(average=0.5, restart=0.0).double().train()
    outputs, k = torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3
    before = program.vectors[3].clone()
    for _ in range(60):
        program._move(outputs, k)
    means = torch.stack([outputs[k == i].mean(0) for i in range(3)])
    assert torch.allclose(program.vectors[:3], means)
    assert torch.allclose(program.vectors[3], before)  # an entry of no use stays


def test_an_entry_of_no_use_moves_to_an_output_of_the_encoder():
    program = small(average=0.5, restart=0.1).train()
    outputs = torch.randn(30, 2) + 100
    for _ in range(10):
        program._move(outputs, torch.zeros(30, dtype=torch.long))
    assert (program.vectors > 90).all()


def test_perplexity_counts_the_entries_in_use():
    program, x = small(positions=1, code_size=1), torch.randint(0, 3, (60, 4))
    with torch.no_grad():
        program.vectors.copy_(torch.tensor([[0.0], [1e6], [2e6], [3e6]]))
    assert program.perplexity(x) == pytest.approx(1.0)
    program.counts.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert program.learning_columns()["perplexity"] == pytest.approx(2.0)


def patterns(n: int) -> torch.Tensor:
    """Four patterns, of two halves that go together."""
    kinds = torch.tensor([[0, 0, 2, 2, 1, 1], [2, 2, 0, 0, 0, 0], [1, 0, 1, 0, 2, 2], [0, 2, 0, 1, 2, 0]])
    return kinds[torch.randint(0, 4, (n,))]


@pytest.mark.parametrize("average", [0.9, None])
def test_it_finds_the_patterns_of_data_made_of_four(average):
    x = patterns(200)
    program = VQVAE(6, 3, positions=1, codebook=8, code_size=2, hidden=32, average=average)
    fit = dgm.learn(program, x, method=dgm.TwoStage(epochs=60, lr=0.01), seed=0)
    assert fit.cost.path == "recorded" and fit.history["perplexity"].between(1, 8).all()
    assert fit.notes["used"] >= 4 and fit.notes["perplexity"] == pytest.approx(program.perplexity(x))
    mean = dgm.score(program, x).mean().value
    entropy = math.log(fit.notes["perplexity"])
    assert -entropy - 0.2 < mean < -math.log(4) + 0.1  # no more is lost than what several codes of one pattern cost
    found = dgm.sample(program, 300, seed=0)["x"]
    share = (found[:, None] == patterns(400).unique(dim=0)).all(-1).any(-1).double().mean()
    assert float(share) > 0.9


@pytest.mark.parametrize("prior", ["categorical", "markov", "mixture"])
def test_the_second_stage_raises_the_bound(prior):
    x = patterns(100)
    program = VQVAE(6, 3, positions=3, codebook=4, code_size=2, hidden=8, prior=prior, components=4)
    with torch.no_grad():
        for parameter in program.prior.parameters():
            parameter.zero_()  # uniform
    program.start(x)
    before = dgm.score(program, x).mean().value
    assert program.fit_codes(x)["perplexity"] > 1
    assert dgm.score(program, x).mean().value > before + 0.1


def test_learning_on_does_not_begin_again():
    x, program = patterns(60), small(observed=6)
    dgm.learn(program, x, method=dgm.TwoStage(epochs=2), seed=0)
    kept = program.vectors.clone()
    program.start(x)
    assert torch.equal(program.vectors, kept)


def test_ones_own_prior_and_what_is_refused():
    program = small(prior=MarkovChain(2, 4))
    assert dgm.score(program, torch.zeros(2, 4)).value.shape == (2,)
    with pytest.raises(ProgramError, match=r"a code has shape \(2,\) with 4"):
        small(prior=MarkovChain(2, 5))
    for wrong in ({"prior": "pixelcnn"}, {"codebook": 1}, {"average": 1.0}, {"commitment": -1.0}, {"depth": -1}):
        with pytest.raises(ProgramError):
            small(**wrong)
    with pytest.raises(ProgramError, match="no log_density"):
        small(prior=VAE(2, 4, latent=2, hidden=4))
    with pytest.raises(TaskUnavailable):
        dgm.learn(VAE(4, 3, latent=2, hidden=4), torch.zeros(9, 4), method=dgm.TwoStage(epochs=1))
