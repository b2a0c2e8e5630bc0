"""One contract over every program of the zoo: the four verbs, their kinds, seeds, files, copies and refusals."""

import copy
import json
import math

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.cards import TASKS, count_passes
from ppl_dgm.errors import DataError, DgmError, TaskUnavailable
from ppl_dgm.results import KINDS

# name: small constructor arguments; a program that is not listed is made from `observed`, `values` and its defaults
SMALL = {
    "Heights": {"observed": 4},
    "CoinTosses": {"observed": 4},
    "IIDSequence": {"observed": 4, "values": 3},
    "MarkovChain": {"observed": 4, "values": 3},
    "ChainTable": {"observed": 4, "values": 3},
    "GaussianClassifier": {"observed": 4},
    "LinearDiscriminant": {"observed": 4},
    "QuadraticDiscriminant": {"observed": 4},
    "NaiveBayes": {"columns": ["gaussian", "bernoulli", "poisson", "categorical-3"]},
    "MixtureOfGaussians": {"observed": 4, "components": 2},
    "MixtureOfCategoricals": {"observed": 4, "values": 3, "components": 2},
    "MixtureOfBernoullis": {"observed": 4, "components": 2},
    "MixtureOfPoissons": {"observed": 4, "components": 2},
    "MixtureOfStudents": {"observed": 4, "components": 2},
    "MixtureOfVonMisesFishers": {"observed": 4, "components": 2},
    "MixtureOfMixedColumns": {"columns": ["gaussian", "bernoulli", "poisson", "categorical-3"], "components": 2},
    "ProbabilisticPCA": {"observed": 4, "latent": 2},
    "FactorAnalysis": {"observed": 4, "latent": 2},
    "VAE": {"observed": 4, "values": 3, "latent": 2, "hidden": 8},
    "AdversarialAutoencoder": {"observed": 4, "values": 3, "latent": 2, "hidden": 8},
    "VQVAE": {"observed": 4, "values": 3, "positions": 2, "codebook": 5, "code_size": 2, "hidden": 8},
    "DensityNetwork": {"observed": 4, "values": 3, "latent": 2, "hidden": 8, "draws": 512},
    "TopDownVAE": {"observed": 4, "values": 3, "latents": (4, 2), "hidden": 8},
    "BottomUpVAE": {"observed": 4, "values": 3, "latents": (4, 2), "hidden": 8},
    "SelfVAE": {"observed": 4, "values": 3, "latents": (2, 2), "hidden": 8},
    "SigmoidBeliefNetwork": {"observed": 4, "latents": (3, 2)},
    "SemiSupervisedVAE": {"observed": 4, "values": 3, "classes": 2, "latent": 2, "hidden": 8},
    "HybridVAE": {"observed": 4, "values": 3, "classes": 2, "latent": 2, "hidden": 8},
    "DomainInvariantVAE": {
        "observed": 4,
        "domains": 2,
        "classes": 2,
        "values": 3,
        "latents": (2, 2, 2),
        "hidden": 8,
    },
    "SequenceVAE": {"observed": 4, "values": 3, "latent": 2, "hidden": 8, "embedding": 4},
    "RealNVP": {"observed": 4, "values": 3},
    "RBM": {"observed": 4, "hidden": 3},
    "DiffusionChain": {"observed": 4, "values": 3, "steps": 3},
    "Circuit": {"observed": 4, "values": 3},
    "BayesianNetwork": {
        "parents": {"a": ["h"], "b": ["h"], "c": ["a", "h"], "d": ["c"]},
        "values": {"a": 3, "b": 3, "c": 3, "d": 3, "h": 2},
        "hidden": ["h"],
    },
    "HiddenMarkovModel": {"states": 2, "values": 3, "length": 4},
    "LinearGaussianStateSpace": {"latent": 2, "length": 4},
    "LatentDirichletAllocation": {"observed": 4, "topics": 2},
    "FactorialMixture": {"observed": 4, "causes": 2},
}
VARIANTS = {
    "FactorialMixture, mean field": ("FactorialMixture", {"observed": 4, "causes": 3, "exact_up_to": 4}),
    "HiddenMarkovModel, gaussian": ("HiddenMarkovModel", {"states": 2, "emission": "gaussian", "length": 4}),
    "MarkovChain, order 2, every step its own": (
        "MarkovChain",
        {"observed": 4, "values": 3, "order": 2, "homogeneous": False, "pseudo_count": None},
    ),
    "SigmoidBeliefNetwork, bound": ("SigmoidBeliefNetwork", {"observed": 4, "latents": (3, 2), "exact_up_to": 4}),
    "VAE, bernoulli": ("VAE", {"observed": 4, "latent": 2, "hidden": 8, "likelihood": "bernoulli"}),
    "VAE, gaussian": ("VAE", {"observed": 4, "latent": 2, "hidden": 8, "likelihood": "gaussian"}),
    "MixtureOfGaussians, full": (
        "MixtureOfGaussians",
        {"observed": 4, "components": 2, "covariance": "full"},
    ),
    "MixtureOfGaussians, low-rank": (
        "MixtureOfGaussians",
        {"observed": 4, "components": 2, "covariance": "low-rank", "rank": 2, "missing": True},
    ),
    "MixtureOfCategoricals, binary": ("MixtureOfCategoricals", {"observed": 4, "values": 2, "components": 3}),
}
CASES = {name: (name, SMALL.get(name)) for name in dgm.models.names()} | VARIANTS
SHORT = {"epochs": 3, "steps": 3, "restarts": 1}


@pytest.fixture(params=CASES)
def program(request):
    return make(request.param)


def make(case):
    import inspect

    name, arguments = CASES[case]
    cls = dgm.models.find(name)
    known = inspect.signature(cls).parameters
    arguments = (
        {k: v for k, v in {"observed": 4, "values": 3}.items() if k in known} if arguments is None else arguments
    )
    torch.manual_seed(0)
    return cls(**arguments)


def rows(program, n):
    """Data that the program accepts, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    if program.values is not None:
        return torch.randint(0, program.values, (n, program.observed), generator=generator)
    if type(program.support).__name__.lstrip("_") == "Boolean":
        return torch.randint(0, 2, (n, program.observed), generator=generator)
    x = torch.randn((n, program.observed), generator=generator)
    if bool(program.support.check(x).all()):
        return x
    torch.manual_seed(1)
    return type(program)(**program.config).double().model(n=n).float()


def learner(program):
    """The program's own learner, cut short."""
    import dataclasses

    from ppl_dgm.registry import resolve

    method = resolve(program.default_method("learn") or "svi")
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{name: value for name, value in SHORT.items() if name in known})


def can(program, task):
    answers = program.answers()
    return task in answers and answers[task].kind != "unavailable"


def test_the_card_names_every_task(program):
    answers = program.answers()
    assert set(answers) == set(TASKS)
    assert all(a.kind in {*KINDS, "asymptotic", "approximate"} and a.how for a in answers.values())
    assert program.observed == 4 and program.support is not None and program.site in dgm.sample(program, 2, seed=0)


def test_samples_have_the_declared_shape_and_support_and_obey_the_seed(program):
    drawn = dgm.sample(program, 6, seed=3)
    x = drawn[program.site]
    assert x.shape == (6, 4) and x.isfinite().all()
    assert bool(program.support.check(x if x.is_floating_point() else x.long()).all())
    before = torch.get_rng_state()
    again = dgm.sample(program, 6, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[site], value) for site, value in drawn.items())
    assert not torch.equal(dgm.sample(program, 40, seed=4)[program.site], dgm.sample(program, 40, seed=5)[program.site])


def test_score_is_one_finite_number_for_each_example_of_the_declared_kind(program):
    x = rows(program, 5)
    if not can(program, "score"):
        with pytest.raises(TaskUnavailable):
            dgm.score(program, x)
        return
    score = dgm.score(program, x, seed=0)
    assert score.value.shape == (5,) and score.value.isfinite().all()
    assert score.kind == program.answers()["score"].kind
    assert score.stderr is None or (score.stderr.shape == (5,) and (score.stderr >= 0).all())
    assert torch.equal(dgm.score(program, x, seed=0).value, score.value)


def test_the_score_of_an_example_does_not_depend_on_its_neighbours_or_its_dtype(program):
    x = rows(program, 5)
    if not can(program, "score"):
        pytest.skip("it has no score")
    whole, half = dgm.score(program, x, seed=0), dgm.score(program, x[:2], seed=1)
    noise = 0.0 if whole.stderr is None else 6 * float((whole.stderr[:2] + half.stderr).max())
    assert torch.allclose(whole.value[:2], half.value, atol=1e-4 + noise)
    if not x.is_floating_point():
        for dtype in (torch.float32, torch.int32, torch.uint8):
            assert torch.equal(dgm.score(program, x.to(dtype), seed=0).value, whole.value)


def test_a_discrete_program_that_claims_to_be_exact_sums_to_one(program):
    if program.answers()["score"].kind != "exact" or (
        program.values is None and type(program.support).__name__.lstrip("_") != "Boolean"
    ):
        pytest.skip("its score is no exact probability")
    states = torch.cartesian_prod(*[torch.arange(program.values or 2)] * 4)
    assert float(dgm.score(program.double(), states).value.logsumexp(0)) == pytest.approx(0.0, abs=1e-6)


def test_a_lower_bound_on_discrete_data_sums_to_at_most_one(program):
    if program.answers()["score"].kind != "lower_bound" or program.values is None:
        pytest.skip("its score is no lower bound on a probability")
    states = torch.cartesian_prod(*[torch.arange(program.values)] * 4)
    score = dgm.score(program, states, seed=0)
    assert (
        float(score.value.double().exp().sum())
        <= 1 + 4 * float((score.value.exp() * score.stderr).double().norm()) + 1e-5
    )


def test_infer_draws_every_latent_site_for_each_example(program):
    x = rows(program, 3)
    if not can(program, "infer"):
        with pytest.raises(DgmError):
            dgm.infer(program, x)
        return
    post = dgm.infer(program, x, seed=0)
    assert post.kind == program.answers()["infer"].kind and post.draws
    for site, draws in post.draws.items():
        assert draws.shape[0] >= 1 and draws.shape[2] == 3, site
        assert draws.to(torch.float64).isfinite().all()
    assert all(torch.equal(value, dgm.infer(program, x, seed=0).draws[site]) for site, value in post.draws.items())


def test_learning_a_little_does_not_make_it_worse(program):
    x = rows(program, 60)
    fit = dgm.learn(program, x, valid=x[:20], method=learner(program), seed=0)
    assert fit.program is program and fit.stopped and fit.cost.seconds > 0 and fit.objective
    objective = fit.history["objective"].to_numpy()
    assert len(objective) >= 1 and all(math.isfinite(v) for v in objective)
    assert objective[-1] <= objective[0] + 0.05 * abs(objective[0]) + 0.05


def test_a_learned_program_survives_a_file(program, tmp_path):
    x = rows(program, 30)
    fit = dgm.learn(program, x, method=learner(program), seed=0)
    fit.save(tmp_path)
    again = dgm.Fit.load(tmp_path).program
    assert type(again) is type(program)
    assert json.dumps(again.config) == json.dumps(program.config)  # a file does not tell a tuple from a list
    one, other = (dgm.sample(p, 5, seed=0)[program.site] for p in (program, again))
    assert torch.equal(one, other)
    if can(program, "score"):
        assert torch.equal(dgm.score(program, x[:3], seed=0).value, dgm.score(again, x[:3], seed=0).value)


def test_config_rebuilds_the_program(program):
    twin = type(program)(**program.config)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in program.state_dict().items()}
    twin.load_state_dict(program.state_dict())
    assert torch.equal(dgm.sample(twin, 3, seed=0)[program.site], dgm.sample(program, 3, seed=0)[program.site])


def test_a_deep_copy_answers_alike_and_stands_alone(program):
    twin = copy.deepcopy(program)
    before = dgm.sample(program, 4, seed=0)[program.site]
    assert torch.equal(dgm.sample(twin, 4, seed=0)[program.site], before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(dgm.sample(program, 4, seed=0)[program.site], before)


def test_counted_passes_are_the_declared_ones(program):
    declared = program.answers()["sample"].passes
    counted = count_passes(program)
    if declared is None or counted is None:
        pytest.skip("it declares none, or has no network to count")
    assert counted == declared


def test_check_finds_nothing_wrong(program):
    report = dgm.check(program, rows(program, 3))
    assert report.ok, report
    assert program.site in {site.name for site in report.sites}


@pytest.mark.parametrize("verb", [dgm.score, dgm.infer, dgm.learn])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda x: x[:, :3], "3 columns"),
        (lambda x: x[0], r"shape \(4,\)"),
        (lambda x: x[:0], "empty"),
        (
            lambda x: x.float().index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(float("nan"))),
            r"x\[1, 2\].*missing",
        ),
        (
            lambda x: x.float().index_put((torch.tensor([0]), torch.tensor([3])), torch.tensor(float("inf"))),
            r"x\[0, 3\].*infinite",
        ),
    ],
    ids=["columns", "row", "empty", "NaN", "infinite"],
)
def test_bad_data_are_refused_before_anything_changes(program, verb, spoil, words):
    if program.allows_missing and "missing" in words:
        pytest.skip("a hole in the data is no mistake here")
    before = {k: v.clone() for k, v in program.state_dict().items()}
    with pytest.raises(DataError, match=words):
        verb(program, spoil(rows(program, 5)))
    assert all(torch.equal(before[k], v) for k, v in program.state_dict().items())


def test_values_outside_the_support_are_refused(program):
    if program.values is None and type(program.support).__name__.lstrip("_") == "Real":
        pytest.skip("every real number fits")
    x = rows(program, 5)
    x[2, 1] = 99
    if bool(program.support.check(x).all()):
        pytest.skip("99 fits")
    of_rows = type(program.support).__name__.lstrip("_") == "Sphere"
    with pytest.raises(DataError, match=r"x\[2\] is" if of_rows else r"x\[2, 1\] is 99"):
        dgm.learn(program, x)


def test_the_verbs_run_on_every_device(program, device):
    program.to(device)
    x = rows(program, 30)
    assert dgm.sample(program, 3, seed=0)[program.site].device.type == device.type
    if can(program, "score"):
        assert dgm.score(program, x, seed=0).value.device.type == device.type
    if can(program, "infer"):
        assert all(draws.device.type == device.type for draws in dgm.infer(program, x, seed=0).draws.values())
    assert dgm.learn(program, x, method=learner(program), seed=0).program.device.type == device.type


def test_in_float64_the_answers_are_float64(program):
    x = rows(program, 4)
    if not can(program, "score"):
        pytest.skip("it has no score")
    single = dgm.score(program, x, seed=0)
    score = dgm.score(program.double(), x.double() if x.is_floating_point() else x, seed=0)
    assert score.value.dtype == torch.float64
    noise = 0.0 if score.stderr is None else 6 * float((score.stderr + single.stderr).max())
    assert torch.allclose(score.value.float(), single.value, atol=1e-3 + noise)
