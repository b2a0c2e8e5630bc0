"""EM and ClosedForm: each step rises, the best start is kept, a wrong step is caught."""

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.models import MixtureOfCategoricals, MixtureOfGaussians, ProbabilisticPCA


def gaussian_data(n=150):
    return torch.randn(n, 4, dtype=torch.float64) * torch.tensor([1.0, 2, 0.5, 1]) + 3 * torch.randint(3, (n, 1))


def categorical_data(n=150):
    return (torch.randint(3, (n, 1)) + torch.randint(2, (n, 4))).clamp(0, 3)


CASES = {
    "diagonal": (lambda: MixtureOfGaussians(4, 5), gaussian_data),
    "spherical": (lambda: MixtureOfGaussians(4, 5, "spherical"), gaussian_data),
    "full": (lambda: MixtureOfGaussians(4, 5, "full"), gaussian_data),
    "high floor": (lambda: MixtureOfGaussians(4, 5, "full", floor=1.5), gaussian_data),
    "categorical": (lambda: MixtureOfCategoricals(4, 4, 5, pseudo_count=0.0), categorical_data),
    "pseudo-counts": (lambda: MixtureOfCategoricals(4, 4, 5, pseudo_count=2.0), categorical_data),
    "marginal pseudo-counts": (
        lambda: MixtureOfCategoricals(4, 4, 5, pseudo_count=2.0, prior="marginal"),
        categorical_data,
    ),
    "ppca": (lambda: ProbabilisticPCA(4, 2), gaussian_data),
}


@pytest.mark.parametrize("case", CASES)
def test_no_step_ever_lowers_the_objective(case):
    make, data = CASES[case]
    x = data()
    for seed in range(3):
        fit = dgm.learn(make().double(), x, method=dgm.EM(steps=60, tolerance=0.0), seed=seed)
        column = "penalised" if "penalised" in fit.history else "objective"
        assert float(fit.history[column].diff().max()) <= 1e-9
        assert ("pseudo" in case) == (column == "penalised") == ("log prior" in fit.objective)


def test_history_and_weights_belong_together():
    x, valid = gaussian_data(), gaussian_data(50)
    fit = dgm.learn(MixtureOfGaussians(4, 3).double(), x, valid=valid, method=dgm.EM(steps=25, tolerance=0.0), seed=0)
    assert list(fit.history.columns) == ["epoch", "objective", "valid", "seconds"]
    assert list(fit.history["epoch"]) == list(range(len(fit.history)))
    best = fit.history.loc[fit.history["valid"].idxmin()]
    assert -dgm.score(fit.program, x).mean().value == pytest.approx(best["objective"], abs=1e-10)
    assert -dgm.score(fit.program, valid).mean().value == pytest.approx(best["valid"], abs=1e-10)


def test_the_best_of_several_starts_is_kept():
    x = gaussian_data()
    fit = dgm.learn(MixtureOfGaussians(4, 6).double(), x, method=dgm.EM(steps=15, restarts=4), seed=1)
    ends = fit.notes["restarts"]
    assert len(ends) == 4 and len(set(ends)) > 1
    assert fit.notes["best_restart"] == ends.index(min(ends))
    assert -dgm.score(fit.program, x).mean().value == pytest.approx(min(ends), abs=1e-10)


def test_validation_stops_early_and_judges_the_starts():
    x, valid = gaussian_data(40), gaussian_data(40)
    method = dgm.EM(steps=300, restarts=3, tolerance=0.0, patience=3)
    fit = dgm.learn(MixtureOfGaussians(4, 12).double(), x, valid=valid, method=method, seed=0)
    assert "no better validation" in fit.stopped and len(fit.history) < 300
    assert min(fit.notes["restarts"]) == pytest.approx(-dgm.score(fit.program, valid).mean().value, abs=1e-10)


def test_a_warm_start_goes_on_from_the_current_parameters():
    x = gaussian_data()
    program = MixtureOfGaussians(4, 8).double()
    first = dgm.learn(program, x, method=dgm.EM(steps=2, tolerance=0.0), seed=0)
    second = dgm.learn(program, x, method=dgm.EM(steps=5, tolerance=0.0, warm_start=True))
    assert second.history["objective"].iloc[0] == pytest.approx(first.history["objective"].iloc[-1], abs=1e-12)
    assert second.history["objective"].iloc[-1] < first.history["objective"].iloc[-1]


def test_seeds_repeat_a_run_bit_for_bit():
    x = gaussian_data()
    first, second = (dgm.learn(MixtureOfGaussians(4, 4), x, seed=3).program.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class Wrong(MixtureOfGaussians):
    """An M-step that misses its maximum by a random amount."""

    def maximise(self, x, responsibilities):
        super().maximise(x, responsibilities)
        with torch.no_grad():
            self.means.add_(torch.randn_like(self.means))


class Broken(MixtureOfGaussians):
    def em_step(self, x):
        value = super().em_step(x)
        self.calls = getattr(self, "calls", 0) + 1
        return value if self.calls < 3 else value * torch.nan


def test_a_step_that_falls_is_an_error_and_the_best_weights_survive():
    x = gaussian_data()
    with pytest.raises(NumericalError, match=r"fell by .* in step") as caught:
        dgm.learn(Wrong(4, 3).double(), x, method="em", seed=0)
    fit = caught.value.fit
    assert -dgm.score(fit.program, x).mean().value == pytest.approx(fit.history["objective"].min(), abs=1e-10)


def test_a_value_that_is_not_finite_is_an_error():
    with pytest.raises(NumericalError, match="is nan in step 2"):
        dgm.learn(Broken(4, 3).double(), gaussian_data(), method=dgm.EM(tolerance=0.0), seed=0)


def coin(x):
    import pyro
    import pyro.distributions as dist

    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x)


@pytest.mark.parametrize("method, words", [("em", "em_step.*svi"), ("closed-form", "fit_closed_form.*svi")])
def test_programs_without_the_hook_are_told_what_works(method, words):
    with pytest.raises(TaskUnavailable, match=words):
        dgm.learn(coin, torch.zeros(3, 4), method=method)


def test_closed_form_of_a_mixture_points_to_em():
    with pytest.raises(TaskUnavailable, match="'em'"):
        dgm.learn(MixtureOfGaussians(4, 2), torch.randn(9, 4), method="closed-form")


@pytest.mark.parametrize("options", [{"steps": 0}, {"restarts": 0}, {"tolerance": -1.0}, {"patience": 0}])
def test_options_out_of_range_are_named(options):
    with pytest.raises(ProgramError, match=next(iter(options))):
        dgm.EM(**options)


def test_patience_without_validation_data_is_refused():
    with pytest.raises(ProgramError, match="valid"):
        dgm.learn(MixtureOfGaussians(4, 2), torch.randn(9, 4), method=dgm.EM(patience=2))


@pytest.mark.parametrize("method", [dgm.EM(steps=2), dgm.OnlineEM(epochs=1), dgm.SplitMergeEM(), dgm.ClosedForm()])
def test_validation_rows_with_further_arguments_are_refused_in_words(method):
    x = gaussian_data(40)
    with pytest.raises(ProgramError, match=f"{type(method).__name__} compares .* a tuple of 2; pass valid=x"):
        dgm.learn(MixtureOfGaussians(4, 2).double(), x, valid=(x[:5], torch.zeros(5)), method=method, seed=0)
    if isinstance(method, dgm.EM):
        fit = dgm.learn(MixtureOfGaussians(4, 2).double(), x, valid=(x[:5],), method=method, seed=0)
        assert "valid" in fit.history
