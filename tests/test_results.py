"""Score, Posterior, Fit: their numbers by hand, through files and through ArviZ."""

import json
import math
import re
from pathlib import Path

import arviz
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import FileError, ProgramError
from ppl_dgm.results import KINDS, Cost, Fit, Posterior, Score


def coins(x):
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


# -- Score -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_mean_and_standard_error_by_hand(kind):
    mean = Score(torch.tensor([1.0, 2.0, 6.0]), kind).mean()
    assert mean.kind == kind and mean.value == pytest.approx(3.0)
    assert mean.stderr == pytest.approx(math.sqrt(7.0) / math.sqrt(3))  # var = (4 + 1 + 9) / 2
    assert str(mean) == f"3.00 ± 1.53 ({kind.replace('_', ' ')})"


def test_mean_of_one_example_has_no_standard_error_and_of_many_keeps_float64():
    assert math.isnan(Score(torch.tensor([1.0]), "exact").mean().stderr)
    assert math.isnan(Score(torch.tensor(1.0), "exact").mean().stderr)
    big = torch.full((4096,), 16777216.0)
    big[::2] += 2
    assert Score(big, "exact").mean().value == 16777217.0


def test_scores_of_different_kinds_are_never_subtracted():
    one, other = Score(torch.tensor([1.0, 2.0]), "exact"), Score(torch.tensor([3.0, 3.0]), "exact")
    assert (one - other).tolist() == [-2.0, -1.0]
    with pytest.raises(ProgramError, match=r"'exact' minus one of kind 'lower_bound'.*subtract their \.value"):
        one - Score(other.value, "lower_bound")
    with pytest.raises(ProgramError, match="kind must be one of exact"):
        Score(one.value, "precise")


def test_bits_per_dimension():
    score = Score(torch.tensor([-8 * math.log(2)]), "exact")
    assert float(score.bits_per_dim(4)) == pytest.approx(2.0)
    assert len(score) == 1 and "exact" in repr(score)


# -- Posterior ---------------------------------------------------------------------------------------------------------


def test_posterior_mean_weighted_by_hand():
    draws = {"z": torch.tensor([[0.0, 1.0, 5.0]]), "k": torch.tensor([[0, 1, 1]])}
    plain = Posterior(draws)
    assert float(plain.mean("z")) == pytest.approx(2.0)
    assert float(plain.mean("k")) == pytest.approx(2 / 3)  # a fraction, though the draws are integers
    weighted = Posterior(draws, log_weights=torch.tensor([0.25, 0.5, 0.25]).log() + 100)
    assert float(weighted.mean("z")) == pytest.approx(0.5 + 1.25)
    with pytest.raises(ProgramError, match="no site 'q'; it has z, k"):
        plain.mean("q")


def test_posterior_mean_weighted_for_each_example():
    draws = {
        "z": torch.tensor([[[[1.0, 10.0], [2.0, 20.0]], [[3.0, 30.0], [4.0, 40.0]]]])
    }  # [1, 2 draws, 2 examples, 2]
    post = Posterior(draws, log_weights=torch.tensor([[0.75, 0.0], [0.25, 1.0]]).log())
    assert torch.allclose(post.mean("z"), torch.tensor([[1.5, 15.0], [4.0, 40.0]]))


def test_closed_forms_come_before_draws():
    exact = {"z": dist.Normal(torch.tensor([3.0]), 1.0), "k": dist.Categorical(torch.tensor([[0.5, 0.5]]))}
    post = Posterior({"z": torch.zeros(1, 4, 1), "k": torch.tensor([[[0], [1], [1], [1]]])}, exact)
    assert float(post.mean("z")) == 3.0
    assert float(post.mean("k")) == 0.75  # a categorical has no mean of its own


def test_resampling_gives_the_weighted_law():
    """Prior N(0, 1), one observation 1 with unit noise: the posterior is N(1/2, 1/2)."""
    z = torch.randn(1, 40000)
    post = Posterior({"z": z}, deterministic={"twice": 2 * z}, log_weights=dist.Normal(1.0, 1.0).log_prob(z[0]))
    again = post.unweighted(seed=0)
    assert again.log_weights is None and "resampled" in again.how
    assert float(again.draws["z"].mean()) == pytest.approx(0.5, abs=0.03)
    assert float(again.draws["z"].var()) == pytest.approx(0.5, abs=0.03)
    assert torch.equal(again.deterministic["twice"], 2 * again.draws["z"])
    table = post.summary(round_to=6)
    assert table.loc["z", "mean"] == pytest.approx(0.5, abs=0.03) and table.loc["z", "sd"] == pytest.approx(
        0.5**0.5, abs=0.03
    )
    each = Posterior(
        {"z": torch.arange(3.0).reshape(1, 3, 1).expand(1, 3, 2)},
        log_weights=torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]).log(),
    )
    assert each.unweighted().draws["z"].tolist() == [[[1.0, 0.0]] * 3]


def test_summary_is_arvizs_own():
    draws = torch.randn(4, 250)
    post = Posterior(
        {"z": draws, "v": draws.unsqueeze(-1).expand(4, 250, 2)},
        stats={"diverging": torch.zeros(4, 250, dtype=torch.bool)},
    )
    table = post.summary()
    assert list(table.index) == ["z", "v[0]", "v[1]"] and {
        "mean",
        "sd",
        "r_hat",
        "ess_bulk",
        "ess_tail",
    } <= set(table.columns)
    assert table.loc["z", "r_hat"] == pytest.approx(1.0, abs=0.02)
    data = post.to_arviz()
    assert float(data.posterior["z"].values[2, 3]) == pytest.approx(float(draws[2, 3]))
    assert data.sample_stats["diverging"].values.sum() == 0


def test_to_arviz_speaks_the_dialect_of_arviz_1(monkeypatch):
    """From 1.0 on, from_dict takes one dictionary of groups."""
    seen = {}

    def from_dict(data, *, name=None, sample_dims=None, save_warmup=None):
        seen.update(data)
        return "tree"

    monkeypatch.setattr(arviz, "from_dict", from_dict)
    post = Posterior({"z": torch.zeros(2, 3)}, stats={"energy": torch.ones(2, 3)})
    assert post.to_arviz() == "tree"
    assert seen["posterior"]["z"].shape == (2, 3) and seen["sample_stats"]["energy"].sum() == 6


CLOSED_FORMS = {
    "normal": dist.Normal(torch.randn(3), torch.rand(3) + 0.5),
    "independent": dist.Normal(torch.randn(3, 2), 1.0).to_event(1),
    "multivariate": dist.MultivariateNormal(torch.randn(3, 2), torch.tensor([[2.0, 0.3], [0.3, 1.0]])),
    "categorical": dist.Categorical(torch.tensor([[0.2, 0.8], [0.5, 0.5]])),
    "one hot": dist.OneHotCategorical(torch.tensor([[0.2, 0.8]])),
    "bernoulli": dist.Bernoulli(torch.tensor([0.1, 0.9])).to_event(1),
    "beta": dist.Beta(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])),
    "gamma": dist.Gamma(torch.tensor([1.0, 2.0]), 2.0),
    "dirichlet": dist.Dirichlet(torch.tensor([[1.0, 2.0, 3.0]])),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_closed_forms_survive_a_file(name, tmp_path):
    wanted = CLOSED_FORMS[name]
    Posterior({"z": wanted.sample((1, 2))}, {"z": wanted}, how="closed form", kind="exact").save(tmp_path)
    again = Posterior.load(tmp_path).exact["z"]
    value = wanted.sample()
    assert again.batch_shape == wanted.batch_shape and again.event_shape == wanted.event_shape
    assert torch.allclose(again.log_prob(value), wanted.log_prob(value), atol=1e-6)


def test_a_posterior_survives_a_file_whole(tmp_path):
    post = Posterior(
        {"z": torch.randn(2, 3, 4), "k": torch.tensor([[1, 2, 3], [4, 5, 6]]), "a.b/c": torch.randn(2, 3)},
        deterministic={"sum": torch.randn(2, 3).double()},
        log_weights=torch.randn(6),
        log_evidence=Score(torch.randn(4), "estimate", torch.rand(4), "importance"),
        stats={"diverging": torch.tensor([[True, False, True]] * 2)},
        cost=Cost(steps=3, seconds=1.5, gradients=7),
        how="a test",
        kind="asymptotic",
    )
    post.save(tmp_path)
    again = Posterior.load(tmp_path)
    for group in ("draws", "deterministic", "stats"):
        one, other = getattr(post, group), getattr(again, group)
        assert one.keys() == other.keys() and all(
            torch.equal(one[k], other[k]) and one[k].dtype == other[k].dtype for k in one
        )
    assert torch.equal(again.log_weights, post.log_weights) and torch.equal(
        again.log_evidence.stderr, post.log_evidence.stderr
    )
    assert (again.how, again.kind, again.cost, again.exact) == (post.how, post.kind, post.cost, None)
    assert again.log_evidence.kind == "estimate"


def test_a_closed_form_that_no_file_can_hold_is_refused_before_anything_is_written(tmp_path):
    post = Posterior({"z": torch.zeros(1, 1)}, {"z": dist.StudentT(3.0)})
    with pytest.raises(ProgramError, match=r"family StudentT cannot be written.*posterior.exact = None"):
        post.save(tmp_path)
    assert not list(tmp_path.iterdir())


# -- Fit ---------------------------------------------------------------------------------------------------------------


def test_a_fit_of_the_zoo_rebuilds_its_program(tmp_path):
    x = torch.randint(0, 3, (40, 4))
    fit = dgm.learn(dgm.models.MixtureOfCategoricals(4, 3, 2), x, method=dgm.EM(steps=5), seed=0)
    fit.notes["tensor"] = torch.ones(1)  # not JSON: kept as text
    fit.save(tmp_path)
    again = Fit.load(tmp_path)
    assert type(again.program) is dgm.models.MixtureOfCategoricals and again.program.config == fit.program.config
    assert torch.equal(dgm.score(again.program, x).value, dgm.score(fit.program, x).value)
    pd.testing.assert_frame_equal(again.history, fit.history)
    assert (again.stopped, again.objective, again.cost) == (fit.stopped, fit.objective, fit.cost)


def test_saving_again_replaces_every_file_whole(tmp_path):
    x = torch.randint(0, 3, (40, 4))
    for steps in (1, 4):
        fit = dgm.learn(dgm.models.MixtureOfCategoricals(4, 3, 2), x, method=dgm.EM(steps=steps), seed=0)
        fit.save(tmp_path)
    assert len(Fit.load(tmp_path).history) == len(fit.history)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "history.json",
        "weights.safetensors",
    ]


def damage(folder, name, change):
    path = Path(folder) / name
    path.write_bytes(change(path.read_bytes()))


def edited(**changes):
    return lambda raw: json.dumps({**json.loads(raw), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("weights.safetensors", lambda raw: raw[:-7], "not a whole safetensors file"),
        ("weights.safetensors", lambda raw: b"", "not a whole safetensors file"),
        ("weights.safetensors", lambda raw: b"\x80\x04pickle", "not a whole safetensors file"),
        ("config.json", lambda raw: raw[:40], "not a whole JSON file"),
        ("config.json", lambda raw: b"[1]", "does not describe a learned program"),
        ("config.json", lambda raw: b'{"program": "VAE"}', "does not describe a learned program"),
        ("config.json", edited(config={"nonsense": 1}), "do not make a MixtureOfCategoricals"),
        ("config.json", edited(program="Nonesuch"), "'Nonesuch' .* is not one of the zoo"),
        ("config.json", lambda raw: b"\xff\xfe\x00", "not a whole JSON file"),
        ("history.json", lambda raw: b'{"epoch": [1, 2], "objective": [3]}', "no table of epochs"),
        ("history.json", lambda raw: b"3", "no table of epochs"),
    ],
)
def test_damaged_run_folders_say_which_file(tmp_path, name, change, words):
    dgm.learn(
        dgm.models.MixtureOfCategoricals(4, 3, 2), torch.randint(0, 3, (9, 4)), method=dgm.EM(steps=1), seed=0
    ).save(tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(FileError, match=words) as caught:
        Fit.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_numbers_that_a_newer_version_wrote_are_left_out(tmp_path):
    dgm.learn(
        dgm.models.MixtureOfCategoricals(4, 3, 2), torch.randint(0, 3, (9, 4)), method=dgm.EM(steps=1), seed=0
    ).save(tmp_path)
    damage(tmp_path, "config.json", lambda raw: raw.replace(b'"steps"', b'"joules": 3, "steps"'))
    assert Fit.load(tmp_path).cost.steps >= 1


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-3], lambda raw: b"", lambda raw: raw.replace(b'\\"kind\\"', b'\\"kond\\"')]
)
def test_damaged_posteriors_are_refused(tmp_path, change):
    Posterior({"z": torch.zeros(1, 2)}).save(tmp_path)
    damage(tmp_path, "posterior.safetensors", change)
    with pytest.raises(FileError, match=r"posterior\.safetensors"):
        Posterior.load(tmp_path)


def test_nothing_in_the_package_unpickles():
    root = Path(dgm.__file__).parent
    houses = [root, Path(dgm.models.__file__).parent, Path(dgm.inference.__file__).parent]
    found = []
    for path in (p for house in houses for p in house.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.split("#")[0]
            if re.search(
                r"torch\.load\(|\bimport pickle|\bpickle\.load|\bjoblib\b|allow_pickle\s*=\s*True|read_pickle|\bdill\b",
                code,
            ):
                found.append(f"{path.name}:{number}: {line.strip()}")
    assert not found
