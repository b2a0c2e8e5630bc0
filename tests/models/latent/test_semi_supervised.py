"""SemiSupervisedVAE: labelled and unlabelled bounds against exact sums, the penalty, and what unlabelled rows bring."""

import dataclasses

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
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


def test_the_warm_up_weighs_the_divergences_of_class_and_code_alone() -> None:
    """At weight w: sum_y q(y | x) E_q(z)[log p(x | y, z)] - w (KL(q(y | x), p(y)) + sum_y q(y | x) KL(q(z | x, y), p(z)))."""
    program = linear()
    repeats, row = 20_000, 1
    with program.running(), torch.no_grad():
        q = program.classifier(X[row]).log_softmax(0)
        code = program.encode_given(X[row], torch.arange(3))  # batch of classes
        mean, variance = code.mean, code.variance  # [class, latent]
        scale, w = program.likelihood.scale, program.decoder[0].weight[:, :2]
        gap = (X[row] - program.decode_given(mean, torch.arange(3))) ** 2 + variance @ (
            w**2
        ).T  # expected squares, [class, D]
        fit = (-0.5 * gap / scale**2 - scale.log() - 0.5 * torch.tensor(2 * torch.pi).log()).sum(1)
        of_code = 0.5 * (mean**2 + variance - 1 - variance.log()).sum(1)
        of_class = (q.exp() * (q - program.weight_logits.log_softmax(0))).sum()
        x, y = X[row].expand(repeats, 3), torch.full((repeats,), -1)
        for weight in (0.0, 0.3, 1.0):
            method = dgm.PenalisedSVI(elbo=TraceEnum_ELBO(max_plate_nesting=1), kl_weight=lambda _, v=weight: v)
            objective = method.objective(program, repeats)
            objective.begin_epoch(1)
            exact_bound = (q.exp() * (fit - weight * of_code)).sum() - weight * of_class
            values = []
            for seed in range(8):
                torch.manual_seed(seed)
                values.append(-objective.bound.value(x, y))
            found = torch.tensor(values).double()
            assert abs(found.mean() - exact_bound) < 7 * found.std() / 8**0.5 + 1e-6  # seven degrees of freedom


def test_unlabelled_rows_find_the_classes_of_a_linear_program() -> None:
    """Two classes with a large direction within: the optimum is known, Bayes' rule under the truth."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.randint(0, 2, (600,), generator=generator)
    w = torch.tensor([[1.0, 0.5, 0.0, 0.0, 0.5]])
    v = torch.tensor([[1.2, 0.0, 1.2, 0.0, 0.0], [-1.2, 0.0, -1.2, 0.0, 0.0]])
    x = torch.randn(600, 1, generator=generator) @ w + v[classes] + 0.5 * torch.randn(600, 5, generator=generator)
    y = torch.full((600,), -1)
    for k in range(2):
        known = (classes == k).nonzero()[:10, 0]
        y[known] = k
    truth = MultivariateNormal(v, w.T @ w + 0.25 * torch.eye(5)).log_prob(x[:, None])  # [row, class]
    best = float((truth.argmax(1) == classes).double().mean())
    torch.manual_seed(0)
    program = SemiSupervisedVAE(5, 2, latent=1, likelihood="gaussian", depth=0, encoder_dropout=0.0)
    method = dataclasses.replace(program.default_method("learn"), lr=2e-2)
    learned = dgm.learn(program, x, y, method=method, seed=0).program
    assert float((learned.classify(x).argmax(1) == classes).double().mean()) > best - 0.02


@pytest.mark.slow
def test_unlabelled_digits_improve_the_classifier() -> None:
    """Five labels a class of a thousand rows, against the same classifier learned from the labelled rows, in as many steps."""
    digits = dgm.data.digits()
    classes, wanted = digits.labels["train"], digits.labels["valid"]
    gains = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        y = torch.full_like(classes, -1)
        for k in range(10):
            rows = (classes == k).nonzero()[:, 0]
            y[rows[torch.randperm(len(rows), generator=generator)[:5]]] = k
        known, accuracy = y >= 0, []
        for alone in (False, True):
            torch.manual_seed(seed)
            program = SemiSupervisedVAE(64, 10, 17, latent=8, hidden=64, likelihood="discretised-logistic")
            method = program.default_method("learn")
            if alone:
                method = dataclasses.replace(method, epochs=5 * method.epochs, batch_size=25)
            data = (digits.train[known], y[known]) if alone else (digits.train, y)
            learned = dgm.learn(program, *data, method=method, seed=seed).program
            accuracy.append(float((learned.classify(digits.valid).argmax(1) == wanted).double().mean()))
        gains.append(accuracy[0] - accuracy[1])
    assert sorted(gains)[1] >= 0.01, gains


def test_refusals() -> None:
    with pytest.raises(dgm.ProgramError, match="alpha"):
        SemiSupervisedVAE(4, 2, 3, alpha=-1.0)
    with pytest.raises(dgm.ProgramError, match="sites of its own"):
        SemiSupervisedVAE(4, 2, 3, prior="hierarchical")
    program = SemiSupervisedVAE(4, 2, 3)
    with pytest.raises(dgm.DataError, match=r"y\[1\] is 2, but classes are 0, ..., 1; -1 marks"):
        dgm.learn(program, torch.zeros(3, 4), torch.tensor([0, 2, -1]))
