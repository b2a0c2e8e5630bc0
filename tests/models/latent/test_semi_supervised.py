"""SemiSupervisedVAE: labelled and unlabelled bounds against exact sums, and the penalty."""

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import ppl_dgm as dgm
from ppl_dgm.models import SemiSupervisedVAE


def linear() -> SemiSupervisedVAE:
    torch.manual_seed(0)
    program = SemiSupervisedVAE(3, 3, latent=2, likelihood="gaussian", depth=0)
    with torch.no_grad():
        program.weight_logits.copy_(torch.tensor([0.5, 0.0, -1.0]))
        for parameter in program.decoder.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return program.double().eval()


def log_joint(program: SemiSupervisedVAE, x: Tensor) -> Tensor:
    """log p(x, y) of every class, [batch, classes]."""
    with torch.no_grad():
        layer = program.decoder[0]
        w, v = layer.weight.split([2, 3], 1)
        covariance = w @ w.T + torch.diag(program.likelihood.scale**2)
        means = v.T + layer.bias  # [class, D]
        return program.weight_logits.log_softmax(0) + MultivariateNormal(means, covariance).log_prob(x[:, None])


X = torch.randn(4, 3, generator=torch.Generator().manual_seed(2)).double()
Y = torch.tensor([2, -1, 0, -1])


def exact(program: SemiSupervisedVAE, y: Tensor) -> Tensor:
    joint = log_joint(program, X)
    return torch.where(y >= 0, joint.gather(1, y.clamp(min=0)[:, None])[:, 0], joint.logsumexp(1))


@pytest.mark.parametrize("method", [dgm.ImportanceWeighted(draws=200_000), dgm.SimpleMonteCarlo(draws=200_000)])
@pytest.mark.parametrize("y", [Y, torch.full((4,), -1)])
def test_scores_tend_to_the_density_with_and_without_labels(method: object, y: Tensor) -> None:
    program = linear()
    score = dgm.score(program, X, y, method=method, seed=0)
    assert ((score.value - exact(program, y)).abs() < 5 * score.stderr + 1e-3).all() and score.stderr.max() < 0.1


def test_no_labels_and_missing_labels_are_the_same() -> None:
    program = linear()
    one = dgm.score(program, X, seed=0).value
    assert torch.allclose(one, dgm.score(program, X, torch.full((4,), -1), seed=0).value)
    assert torch.allclose(one, dgm.score(program, X, torch.full((4,), torch.nan), seed=0).value)


def test_the_enumerated_objective_is_the_expectation_that_draws_estimate() -> None:
    """Every class summed, z drawn: rows repeated often, against ELBO with y drawn too; below the density."""
    program = linear()
    bound = dgm.score(program, X, Y, method=dgm.ELBO(draws=20_000), seed=0)
    method = dgm.PenalisedSVI(elbo="enum")
    repeats = 4000
    with program.running(), torch.no_grad():
        for row in range(4):
            torch.manual_seed(row)
            x, y = X[row : row + 1].expand(repeats, 3), Y[row : row + 1].expand(repeats)
            found = -method.objective(program, repeats).bound.value(x, y)
            assert abs(found - float(bound.value[row])) < 5 * float(bound.stderr[row]) * (1 + (20_000 / repeats) ** 0.5)
    assert (bound.value < exact(program, Y) + 4 * bound.stderr).all()


def test_the_penalty_is_the_labelled_cross_entropy_and_no_part_of_the_score() -> None:
    program = linear()
    by_hand = nn.functional.cross_entropy(program.classifier(X)[[0, 2]], Y[[0, 2]], reduction="sum")
    torch.testing.assert_close(program.penalty(X, Y), program.alpha * by_hand / 4)
    assert float(program.penalty(X)) == 0.0
    before = dgm.score(program, X, Y, seed=0).value
    program.alpha = 1000.0
    assert torch.equal(dgm.score(program, X, Y, seed=0).value, before)


def test_a_labelled_example_teaches_the_classifier_by_the_penalty_alone() -> None:
    program = linear()
    x, y = X[:1].expand(64, 3), torch.full((64,), 1)
    for alpha, moves in ((0.0, False), (1.0, True)):
        program.alpha = alpha
        with program.running():
            pyro.set_rng_seed(0)
            loss = dgm.PenalisedSVI(elbo="enum").objective(program, 64)(x, y)
        (gradient,) = torch.autograd.grad(loss, program.classifier[0].weight, allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().max() > 1e-9)) == moves


def test_inference_keeps_known_labels_and_classifies_the_others() -> None:
    program = linear()
    drawn = dgm.infer(program, X, Y, method=dgm.Importance(draws=100_000), seed=0)
    weights = drawn.log_weights.softmax(0)
    truth = log_joint(program, X).softmax(1)
    for row in range(4):
        shares = torch.stack([(weights[:, row] * (drawn.draws["y"][0, :, row] == k)).sum() for k in range(3)])
        wanted = truth[row] if Y[row] < 0 else torch.eye(3).double()[Y[row]]
        torch.testing.assert_close(shares, wanted, atol=0.02, rtol=0.0)
    torch.testing.assert_close(program.classify(X).sum(1), torch.ones(4).double())


def test_refusals() -> None:
    with pytest.raises(dgm.ProgramError, match="alpha"):
        SemiSupervisedVAE(4, 2, 3, alpha=-1.0)
    with pytest.raises(dgm.ProgramError, match="sites of its own"):
        SemiSupervisedVAE(4, 2, 3, prior="hierarchical")
    program = SemiSupervisedVAE(4, 2, 3)
    with pytest.raises(dgm.DataError, match=r"y\[1\] is 2, but classes are 0, ..., 1; -1 marks"):
        dgm.learn(program, torch.zeros(3, 4), torch.tensor([0, 2, -1]))
