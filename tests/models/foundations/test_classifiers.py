"""Classifiers against scikit-learn, Bayes' rule by hand, and the mixture that they are without labels."""

import math

import pyro.distributions as dist
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB

import ppl_dgm as dgm
from ppl_dgm.errors import DataError
from ppl_dgm.models import GaussianClassifier, LinearDiscriminant, MixtureOfGaussians, NaiveBayes, QuadraticDiscriminant


def clusters(n=240, columns=3, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (n,), generator=generator)
    centres = 2 * torch.randn(classes, columns, generator=generator, dtype=torch.float64)
    shear = torch.randn(classes, columns, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, columns, 1, generator=generator, dtype=torch.float64)
    return centres[y] + (shear[y] @ noise).squeeze(-1), y


def probabilities(program, x):
    return dgm.infer(program, x).exact["y"].probs.detach()


# -- scikit-learn ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_linear_discriminants_equal_scikit_learns(solver):
    x, y = clusters()
    reference = LinearDiscriminantAnalysis(solver=solver).fit(x.numpy(), y.numpy())
    program = dgm.learn(LinearDiscriminant(3, 3).double(), x, y).program
    assert torch.allclose(probabilities(program, x), torch.as_tensor(reference.predict_proba(x.numpy())), atol=1e-6)
    assert torch.equal(program.decide(x).label, torch.as_tensor(reference.predict(x.numpy())))
    weights, offset = program.coefficients
    assert torch.allclose((x @ weights.mT + offset).softmax(-1), probabilities(program, x), atol=1e-9)


def test_quadratic_discriminants_equal_scikit_learns():
    x, y = clusters()
    reference = QuadraticDiscriminantAnalysis(store_covariance=True).fit(x.numpy(), y.numpy())
    first = x[y == 0].mT.cov(correction=0)
    unbiased = bool(torch.as_tensor(reference.covariance_[0])[0, 0] > 1.001 * first[0, 0])  # so before version 1.8
    method = dgm.ClosedForm({"unbiased": unbiased})
    program = dgm.learn(QuadraticDiscriminant(3, 3).double(), x, y, method=method).program
    assert torch.allclose(probabilities(program, x), torch.as_tensor(reference.predict_proba(x.numpy())), atol=1e-6)
    assert torch.equal(program.decide(x).label, torch.as_tensor(reference.predict(x.numpy())))


def test_maximum_likelihood_covariances_are_those_of_each_class():
    x, y = clusters()
    program = dgm.learn(QuadraticDiscriminant(3, 3).double(), x, y).program
    for c in range(3):
        assert torch.allclose(program.mixture.means[c], x[y == c].mean(0), atol=1e-9)
        assert torch.allclose(program.mixture.covariances[c], x[y == c].mT.cov(correction=0), atol=1e-8)
    shared = sum((y == c).double().mean() * x[y == c].mT.cov(correction=0) for c in range(3))
    tied = dgm.learn(LinearDiscriminant(3, 3).double(), x, y).program
    assert torch.allclose(tied.mixture.covariances[0], shared, atol=1e-8)
    method = dgm.ClosedForm({"unbiased": True})
    program = dgm.learn(QuadraticDiscriminant(3, 3).double(), x, y, method=method).program
    assert torch.allclose(program.mixture.covariances[1], x[y == 1].mT.cov(correction=1), atol=1e-8)
    tied = dgm.learn(LinearDiscriminant(3, 3).double(), x, y, method=method).program
    assert torch.allclose(tied.mixture.covariances[0], shared * 240 / 237, atol=1e-8)


def test_gaussian_naive_bayes_equals_scikit_learns():
    x, y = clusters()
    reference = GaussianNB(var_smoothing=0.0).fit(x.numpy(), y.numpy())
    expected = torch.as_tensor(reference.predict_proba(x.numpy()))
    for program in (GaussianClassifier(3, 3), NaiveBayes(["gaussian"] * 3, 3)):
        learned = dgm.learn(program.double(), x, y).program
        assert torch.allclose(probabilities(learned, x), expected, atol=1e-6)


def test_naive_bayes_of_categories_and_bits_equals_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (200,), generator=generator)
    categories = (torch.rand(200, 2, generator=generator) * (2 + y[:, None])).long().clamp_max(3)
    bits = (torch.rand(200, 4, generator=generator) < 0.2 + 0.25 * y[:, None]).long()
    for x, reference, columns in (
        (categories, CategoricalNB(alpha=0.7, min_categories=4), ["categorical-4"] * 2),
        (bits, BernoulliNB(alpha=0.7), ["bernoulli"] * 4),
    ):
        reference.fit(x.numpy(), y.numpy())
        program = dgm.learn(NaiveBayes(columns, 3, pseudo_count=0.7).double(), x, y).program
        assert torch.allclose(probabilities(program, x), torch.as_tensor(reference.predict_proba(x.numpy())), atol=1e-6)


# -- Bayes' rule -------------------------------------------------------------------------------------------------------


def two_gaussians(scales=(1.0, 1.0)):
    program = GaussianClassifier(1, 2).double()
    program.mixture.assign(
        torch.tensor([0.3, 0.7]), torch.tensor([[-1.0], [2.0]]), torch.tensor(scales)[:, None].square()
    )
    return program


def test_bayes_rule_by_hand_and_the_density_is_the_sum_of_the_joint():
    program, x = two_gaussians((1.0, 2.0)), torch.linspace(-3, 5, 9, dtype=torch.float64)[:, None]
    joint = torch.stack(
        [w * dist.Normal(m, s).log_prob(x[:, 0]).exp() for w, m, s in ((0.3, -1.0, 1.0), (0.7, 2.0, 2.0))], -1
    )
    assert torch.allclose(probabilities(program, x), joint / joint.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(dgm.score(program, x).value.exp(), joint.sum(-1), atol=1e-6)
    for y in (0, 1):
        labels = torch.full((9,), y)
        assert torch.allclose(dgm.score(program, x, labels).value.exp(), joint[:, y], atol=1e-6)
        assert bool((dgm.infer(program, x, labels).exact["y"].probs[:, y] == 1).all())
    enumerated = dgm.infer(dgm.as_program(program.model), x, method="exact")
    assert torch.allclose(enumerated.exact["y"].probs, probabilities(program, x), atol=1e-6)


def test_equal_scales_make_the_log_odds_linear_and_others_do_not():
    x = torch.linspace(-4, 4, 21, dtype=torch.float64)[:, None]
    for scales, straight in (((1.0, 1.0), True), ((1.0, 2.0), False)):
        odds = probabilities(two_gaussians(scales), x).logit()[:, 1]
        assert (float(odds.diff(n=2).abs().max()) < 1e-6) is straight


def test_a_class_that_is_given_is_a_condition():
    program = two_gaussians((1.0, 2.0))
    for y, mean, scale in ((0, -1.0, 1.0), (1, 2.0, 2.0)):
        drawn = dgm.sample(program, 20_000, given={"y": y}, seed=0)
        assert bool((drawn["y"] == y).all())
        assert float(drawn["x"].mean()) == pytest.approx(mean, abs=4.5 * scale / math.sqrt(20_000))
        assert float(drawn["x"].std()) == pytest.approx(scale, abs=4.5 * scale / math.sqrt(40_000))
    assert float(dgm.sample(program, 20_000, seed=0)["y"].double().mean()) == pytest.approx(0.7, abs=0.015)


def test_the_joint_knows_what_the_conditional_does_not():
    x, y = clusters()
    program = dgm.learn(LinearDiscriminant(3, 3).double(), x, y).program
    far = program.decide(1000 * x[:1])
    assert float(far.probability) > 1 - 1e-9  # a discriminative classifier would be certain
    assert float(far.log_joint) < float(program.decide(x).log_joint.min()) - 1000
    near = program.decide(x)
    assert torch.equal(near.label, probabilities(program, x).argmax(-1))
    assert torch.allclose(near.probability.log() + dgm.score(program, x).value, near.log_joint, atol=1e-9)


# -- missing labels ----------------------------------------------------------------------------------------------------


def test_without_labels_it_is_the_mixture():
    x, _ = clusters()
    program, mixture = GaussianClassifier(3, 3).double(), MixtureOfGaussians(3, 3, floor=1e-6).double()
    program.mixture.load_state_dict(mixture.state_dict())
    assert torch.allclose(program.em_step(x), mixture.em_step(x))
    assert all(torch.allclose(a, b) for a, b in zip(program.mixture.parameters(), mixture.parameters()))
    assert torch.allclose(dgm.score(program, x).value, dgm.score(mixture, x).value)
    assert torch.isfinite(dgm.score(dgm.learn(program, x, seed=0).program, x).value).all()


def test_missing_labels_are_summed_out_and_help():
    x, y = clusters(n=1000, seed=3)
    train, some = x[:500], y[:500].clone()
    some[15:] = -1
    few = dgm.learn(QuadraticDiscriminant(3, 3, floor=1e-2).double(), x[:15], y[:15]).program
    more = dgm.learn(QuadraticDiscriminant(3, 3, floor=1e-2).double(), train, some, seed=0)
    objective = more.history["objective"].to_numpy()
    assert bool((objective[1:] <= objective[:-1] + 1e-9).all()) and len(objective) > 2
    accuracy = [float((p.decide(x[500:]).label == y[500:]).double().mean()) for p in (few, more.program)]
    assert accuracy[1] > accuracy[0] + 0.02
    labelled = dgm.score(more.program, train, some).value
    both = dgm.score(more.program, train, y[:500]).value, dgm.score(more.program, train).value
    assert torch.allclose(labelled[:15], both[0][:15]) and torch.allclose(labelled[15:], both[1][15:])


def test_with_every_label_expectation_maximisation_is_the_closed_form():
    x, y = clusters()
    closed = dgm.learn(GaussianClassifier(3, 3).double(), x, y, method="closed-form")
    em = dgm.learn(GaussianClassifier(3, 3).double(), x, y)
    assert len(em.history) <= 2
    assert all(torch.allclose(a, b, atol=1e-8) for a, b in zip(em.program.parameters(), closed.program.parameters()))
    assert closed.notes["examples_of_class"] == torch.bincount(y).tolist()
    assert closed.history["objective"].item() == pytest.approx(-dgm.score(closed.program, x, y).mean().value)


def test_holes_in_the_columns_leave_their_factors_out():
    x, y = clusters()
    program = dgm.learn(NaiveBayes(["gaussian"] * 3, 3, missing=True).double(), x, y).program
    holed = x.clone()
    holed[:, 1] = torch.nan
    short = NaiveBayes(["gaussian"] * 2, 3).double()
    dgm.learn(short, x[:, [0, 2]], y)
    assert torch.allclose(probabilities(program, holed), probabilities(short, x[:, [0, 2]]), atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "method", "words"),
    [
        (lambda y: y[:5], None, r"one label for each of 240 examples, but its shape is \(5,\)"),
        (lambda y: y + 1, None, "holds the label 3, but GaussianClassifier has classes 0, ..., 2"),
        (lambda y: torch.where(y == 0, -1, y), "closed-form", "needs every label"),
        (lambda y: torch.where(y == 0, 1, y), "closed-form", "class 0 of 3 has no example"),
        (lambda y: torch.where(y == 0, -1, y), "svi", "missing labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, method, words):
    x, y = clusters()
    with pytest.raises(DataError, match=words):
        dgm.learn(GaussianClassifier(3, 3).double(), x, labels(y), method=method)


def test_labels_with_nan_and_floats_are_understood():
    x, y = clusters()
    floats = y.double()
    floats[3:] = torch.nan
    program = GaussianClassifier(3, 3).double()
    assert torch.equal(program._labels(x, floats), torch.where(torch.arange(len(y)) < 3, y, -1))
    assert torch.equal(program._labels(x, y.tolist()), y)
