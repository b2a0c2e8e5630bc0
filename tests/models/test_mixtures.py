"""Mixtures against scikit-learn, brute-force sums and sample moments, and their scores on digits."""

import copy
import itertools
import math

import pyro
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from sklearn.mixture import GaussianMixture

import ppl_dgm as dgm
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.models import MixtureOfCategoricals, MixtureOfGaussians

SKLEARN = {"diagonal": "diag", "spherical": "spherical", "full": "full"}


def blobs(n=300, seed=0):
    """Three clusters in three dimensions, [n, 3]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[0.0, 0, 0], [4, 1, -2], [-3, 5, 2]], dtype=torch.float64)
    noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return centres[torch.randint(3, (n,), generator=generator)] + noise @ torch.tensor(
        [[1.0, 0.4, 0], [0, 0.7, 0.2], [0, 0, 0.5]], dtype=torch.float64
    )


def random_gaussians(covariance="diagonal", components=3):
    program = MixtureOfGaussians(3, components, covariance).double()
    factors = torch.randn(components, 3, 3, dtype=torch.float64)
    covariances = {
        "diagonal": torch.rand(components, 3, dtype=torch.float64) + 0.2,
        "spherical": torch.rand(components, dtype=torch.float64) + 0.2,
        "full": factors @ factors.mT + 0.2 * torch.eye(3, dtype=torch.float64),
    }[covariance]
    program.assign(torch.rand(components).softmax(0), torch.randn(components, 3), covariances)
    return program


def random_categoricals(observed=3, values=3, components=4):
    program = MixtureOfCategoricals(observed, values, components).double()
    with torch.no_grad():
        program.weight_logits.normal_()
        program.logits.normal_()
    return program


PROGRAMS = [*map(random_gaussians, SKLEARN), random_categoricals()]
EVERY = pytest.mark.parametrize("program", PROGRAMS, ids=[*SKLEARN, "categorical"])


def rows(program, n=7):
    return dgm.sample(program, n, seed=3)["x"]


# -- the Gaussian mixture and scikit-learn -------------------------------------------------------------------


@pytest.mark.parametrize("covariance", SKLEARN)
def test_score_and_responsibilities_equal_scikit_learns_from_the_same_parameters(covariance):
    x = blobs()
    reference = GaussianMixture(4, covariance_type=SKLEARN[covariance], random_state=0).fit(x.numpy())
    program = MixtureOfGaussians(3, 4, covariance).double()
    program.assign(*map(torch.as_tensor, (reference.weights_, reference.means_, reference.covariances_)))
    score = dgm.score(program, x)
    assert score.kind == "exact" and "continuous" in score.how
    assert score.mean().value == pytest.approx(reference.score(x.numpy()), abs=1e-9)
    assert torch.allclose(score.value, torch.as_tensor(reference.score_samples(x.numpy())), atol=1e-8)
    post = dgm.infer(program, x)
    assert torch.allclose(post.exact["k"].probs, torch.as_tensor(reference.predict_proba(x.numpy())), atol=1e-8)


@pytest.mark.parametrize("covariance", SKLEARN)
def test_single_precision_scores_stay_within_1e_5_of_scikit_learn(covariance):
    x = blobs()
    reference = GaussianMixture(4, covariance_type=SKLEARN[covariance], random_state=0).fit(x.numpy())
    program = MixtureOfGaussians(3, 4, covariance)
    program.assign(*map(torch.as_tensor, (reference.weights_, reference.means_, reference.covariances_)))
    assert dgm.score(program, x.float()).mean().value == pytest.approx(reference.score(x.numpy()), abs=1e-5)


@pytest.mark.parametrize("covariance", SKLEARN)
def test_em_goes_where_scikit_learns_goes_from_the_same_start(covariance):
    x = blobs()
    program = MixtureOfGaussians(3, 3, covariance, floor=1e-6).double()
    program.em_start(x)
    inverse = torch.linalg.inv(program.covariances.detach())
    start = {"full": inverse, "diagonal": inverse.diagonal(dim1=-2, dim2=-1), "spherical": inverse[:, 0, 0]}[covariance]
    reference = GaussianMixture(
        3, covariance_type=SKLEARN[covariance], reg_covar=1e-12, tol=1e-10, max_iter=1000,
        weights_init=[1 / 3] * 3, means_init=program.means.detach().numpy(), precisions_init=start.numpy(),
    ).fit(x.numpy())  # fmt: skip
    fit = dgm.learn(program, x, method=dgm.EM(steps=1000, tolerance=1e-11, warm_start=True))
    assert -fit.history["objective"].iloc[-1] == pytest.approx(reference.score(x.numpy()), abs=1e-6)
    assert torch.allclose(program.means, torch.as_tensor(reference.means_), atol=1e-3)


@pytest.mark.parametrize("covariance", SKLEARN)
def test_one_component_is_the_samples_mean_and_covariance(covariance):
    x = blobs()
    program = MixtureOfGaussians(3, 1, covariance).double()
    dgm.learn(program, x, seed=0)
    sample = torch.cov(x.mT, correction=0)
    expected = {
        "full": sample,
        "diagonal": torch.diag(sample.diagonal()),
        "spherical": sample.diagonal().mean() * torch.eye(3).double(),
    }[covariance]
    assert torch.allclose(program.means[0], x.mean(0), atol=1e-10)
    assert torch.allclose(program.covariances[0], expected, atol=1e-10)


@pytest.mark.parametrize("covariance", SKLEARN)
def test_duplicates_and_more_components_than_examples_stay_finite_and_above_the_floor(covariance):
    x = torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, 3], [0, 2, 5]])
    program = MixtureOfGaussians(3, 9, covariance, floor=0.01)
    fit = dgm.learn(program, x, seed=0)
    assert all(bool(p.isfinite().all()) for p in program.parameters())
    assert math.isfinite(fit.history["objective"].iloc[-1])
    assert float(torch.linalg.eigvalsh(program.covariances.detach().double()).min()) >= 0.01 * (1 - 1e-5)
    assert bool(dgm.score(program, x).value.isfinite().all())


@pytest.mark.parametrize("covariance", SKLEARN)
def test_a_component_without_examples_keeps_its_place_and_loses_its_weight(covariance):
    x = blobs(50)
    program = random_gaussians(covariance, components=2)
    with torch.no_grad():
        program.means[1] = 1e5  # so far away that its responsibilities are exactly zero
    before = program.covariances[1].detach().clone()
    program.em_step(x)
    assert bool((program.means[1] == 1e5).all()) and torch.allclose(program.covariances[1], before, atol=1e-12)
    assert float(program.weights[1].detach()) < 1e-300 and bool(program.weight_logits.isfinite().all())


def test_cell_mass_sums_to_one_over_all_cells_and_is_no_density():
    program = MixtureOfGaussians(1, 2).double()
    program.assign(torch.tensor([0.3, 0.7]), torch.tensor([[0.2], [5.0]]), torch.tensor([[0.04], [2.0]]))
    cells = torch.arange(-60.0, 70.0, dtype=torch.float64)[:, None]
    mass = program.log_mass(cells)
    assert float(mass.value.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert bool((mass.value <= 0).all())
    assert float(dgm.score(program, torch.zeros(1, 1).double()).value) > float(mass.value[60])
    fine = torch.linspace(-0.5, 0.5, 2001, dtype=torch.float64)[:, None]
    density = dgm.score(program, fine).value.exp()
    assert float(mass.value[60].exp()) == pytest.approx(float(torch.trapezoid(density, fine[:, 0])), abs=1e-6)
    with pytest.raises(TaskUnavailable, match="diagonal"):
        MixtureOfGaussians(2, 2, "full").log_mass(torch.zeros(1, 2))


# -- the categorical mixture and brute force -----------------------------------------------------------------


def test_probabilities_of_all_states_sum_to_one_and_equal_the_direct_sum():
    program = random_categoricals()
    states = torch.tensor(list(itertools.product(range(3), repeat=3)))  # [27, 3]
    score = dgm.score(program, states).value.exp()
    assert float(score.sum()) == pytest.approx(1, abs=1e-12)
    theta = program.logits.softmax(-1)
    direct = torch.stack(
        [(program.weights * torch.stack([theta[:, d, v] for d, v in enumerate(s)]).prod(0)).sum() for s in states]
    )
    assert torch.allclose(score, direct, atol=1e-14)


def test_one_component_is_the_smoothed_marginals():
    x = torch.randint(3, (20, 2), generator=torch.Generator().manual_seed(0))
    program = MixtureOfCategoricals(2, 3, 1, pseudo_count=0.5).double()
    dgm.learn(program, x, seed=0)
    counts = torch.nn.functional.one_hot(x, 3).sum(0).double() + 0.5  # [D, V]
    assert torch.allclose(program.log_theta[0].exp(), counts / 21.5, atol=1e-12)


def test_marginal_pseudo_counts_pull_towards_the_datas_marginals():
    x = torch.randint(3, (20, 2), generator=torch.Generator().manual_seed(0))
    program = MixtureOfCategoricals(2, 3, 1, pseudo_count=2.0, prior="marginal").double()
    dgm.learn(program, x, seed=0)
    counts = torch.nn.functional.one_hot(x, 3).sum(0).double()
    prior = 6 * (counts + 0.3) / 20.9
    assert torch.allclose(program.pseudo_counts, prior, atol=1e-12)
    assert torch.allclose(program.log_theta[0].exp(), (counts + prior) / 26, atol=1e-12)


def test_values_never_seen_stay_finite_without_pseudo_counts():
    x = torch.tensor([[0, 1], [0, 1], [2, 1]])
    program = MixtureOfCategoricals(2, 4, 5, pseudo_count=0.0)
    dgm.learn(program, x, seed=0)
    assert all(bool(p.isfinite().all()) for p in program.parameters())
    unseen = dgm.infer(program, torch.tensor([[3, 3]])).exact["k"].probs
    assert float(unseen.sum()) == pytest.approx(1, abs=1e-5)
    assert float(dgm.score(program, torch.tensor([[3, 3]])).value) < -80


def test_data_of_any_number_type_score_the_same():
    program = random_categoricals()
    x = torch.randint(3, (5, 3))
    scores = [
        dgm.score(program, x.to(dtype)).value for dtype in (torch.uint8, torch.int32, torch.float32, torch.float64)
    ]
    assert all(torch.equal(score, scores[0]) for score in scores)


# -- all of them ---------------------------------------------------------------------------------------------


@EVERY
def test_the_models_own_enumeration_gives_the_score(program):
    x = rows(program)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(program.model, lambda x: None, x)
    assert -loss == pytest.approx(float(dgm.score(program, x).value.sum()), abs=1e-9)


@EVERY
def test_gradients_of_the_enumerated_elbo_are_those_of_the_score(program):
    x = rows(program)
    parameters = list(program.parameters())
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(program.model, lambda x: None, x)
    found = torch.autograd.grad(loss, parameters)
    expected = torch.autograd.grad(-program.log_density(x).value.sum(), parameters)
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(found, expected))


@EVERY
def test_responsibilities_are_the_posterior_of_the_joint(program):
    x = rows(program)
    given = [torch.full((len(x),), k) for k in range(program.components)]
    joint = []
    for k in given:
        trace = pyro.poutine.trace(pyro.poutine.condition(program.model, {"k": k})).get_trace(x)
        trace.compute_log_prob()
        joint.append(trace.nodes["k"]["log_prob"] + trace.nodes["x"]["log_prob"])
    post = dgm.infer(program, x, seed=0)
    assert torch.allclose(post.exact["k"].probs, torch.stack(joint, -1).softmax(-1), atol=1e-10)
    assert post.draws["k"].shape == (1, 1000, len(x)) and post.kind == "exact"


@EVERY
def test_samples_have_the_models_moments(program):
    drawn = dgm.sample(program, 20_000, seed=0)
    assert set(drawn) == {"k", "x"} and drawn["x"].shape == (20_000, 3)
    frequency = torch.nn.functional.one_hot(drawn["k"], program.components).double().mean(0)
    assert (frequency - program.weights).abs().max() < 0.02
    if hasattr(program, "means"):
        mean = program.weights @ program.means
    else:
        mean = (program.weights[:, None] * (program.log_theta.exp() @ torch.arange(3.0).double())).sum(0)
    assert (drawn["x"].double().mean(0) - mean).abs().max() < 0.06


@EVERY
def test_saving_and_loading_keeps_the_score(program, tmp_path):
    x = rows(program)
    fit = dgm.learn(program, x, method=dgm.EM(steps=1, warm_start=True))
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert torch.allclose(dgm.score(again.double(), x).value, dgm.score(program, x).value, atol=1e-4)


def test_a_gradient_learner_with_enumeration_approaches_em():
    x = blobs(200).float()
    program = MixtureOfGaussians(3, 3)
    program.em_start(x)
    start = dgm.score(program, x).mean().value
    em = MixtureOfGaussians(3, 3)
    best = -dgm.learn(em, x, seed=0).history["objective"].iloc[-1]
    dgm.learn(program, x, method=dgm.SVI(elbo="enum", epochs=150, batch_size=None, lr=0.05), seed=0)
    reached = dgm.score(program, x).mean().value
    assert start < best - 0.5 and reached > best - 0.1


@EVERY
def test_all_verbs_run_on_every_device(program, device):
    x = rows(program)
    moved = copy.deepcopy(program)
    dgm.learn(moved, x, valid=x, method=dgm.EM(steps=3), seed=0, device=device)
    score, post = dgm.score(moved, x), dgm.infer(moved, x, seed=0)
    drawn = dgm.sample(moved, 3, seed=0)["x"]
    assert {t.device.type for t in (score.value, post.draws["k"], drawn)} == {device.type}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: MixtureOfGaussians(2, 0), "components"),
        (lambda: MixtureOfGaussians(0, 2), "observed"),
        (lambda: MixtureOfGaussians(2, 2, "round"), "covariance.*'round'"),
        (lambda: MixtureOfGaussians(2, 2, floor=0.0), "floor"),
        (lambda: MixtureOfCategoricals(2, 0, 2), "values"),
        (lambda: MixtureOfCategoricals(2, 2, 2, pseudo_count=-1.0), "pseudo_count"),
        (lambda: MixtureOfCategoricals(2, 2, 2, prior="flat"), "prior.*'flat'"),
    ],
)
def test_arguments_out_of_range_are_named(make, words):
    with pytest.raises(ProgramError, match=words):
        make()


def test_data_outside_the_values_are_refused():
    with pytest.raises(DataError, match="0 to 2"):
        dgm.score(random_categoricals(), torch.tensor([[0, 3, 1]]))


def test_digits_by_em_beat_the_independent_baseline_on_validation():
    """102.6 nats per validation image: the split for choices; test figures are for reports, not for tests."""
    digits = dgm.data.digits()
    fit = dgm.learn(MixtureOfCategoricals(64, 17, 10), digits, method=dgm.EM(restarts=3), seed=0)
    assert dgm.score(fit.program, digits.valid).mean().value > -103.5
    smoothed = MixtureOfCategoricals(64, 17, 30, pseudo_count=1.0, prior="marginal")
    dgm.learn(smoothed, digits, method=dgm.EM(restarts=2), seed=0)
    assert dgm.score(smoothed, digits.valid).mean().value > -102.4
