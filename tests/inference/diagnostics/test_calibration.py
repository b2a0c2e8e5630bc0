"""Calibration: exact posteriors are flat, and each way of being wrong is seen and named."""

import json
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_dgm as dgm
from oracles.posteriors import normal_data
from ppl_dgm.errors import FileError, ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics.calibration import LOG_LIKELIHOOD, Calibration, _independent, calibrate
from ppl_dgm.inference.diagnostics.replicating import Simulator
from ppl_dgm.inference.diagnostics.uniformity import bands, kolmogorov_smirnov_p
from ppl_dgm.results import Posterior


def normal_mean(y):
    mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@dataclass(frozen=True)
class Conjugate:
    """The posterior of `normal_mean`, exact, or wrong in a known way."""

    width: float = 1.0
    shift: float = 0.0
    prior: bool = False
    fail: bool = False
    draws: int = 99

    def run(self, program, y):
        if self.fail and float(y.mean()) > 1.0:
            raise ValueError("no posterior above one")
        precision = 1 / 4 + len(y)
        centre, sd = (1 / 4 + y.sum()) / precision, math.sqrt(1 / precision)
        if self.prior:
            centre, sd = torch.tensor(1.0), 2.0
        return Posterior({"mean": centre + sd * (self.shift + self.width * torch.randn(1, self.draws))})


def run(method, replications=200, **more):
    return calibrate(normal_mean, torch.zeros(5), method=method, replications=replications, seed=0, **more)


# -- verdicts ------------------------------------------------------------------------------------------------


def test_the_exact_posterior_is_flat():
    result = run(Conjugate())
    assert result.ok and set(result.place) == {"mean", LOG_LIKELIHOOD} and result.replications == 200
    table = result.table
    for c in (50, 80, 95):
        error = math.sqrt(c / 100 * (1 - c / 100) / 200)
        assert table.loc["mean", f"coverage_{c}"] == pytest.approx(c / 100, abs=4 * error)
    assert table.loc["mean", "z_mean"] == pytest.approx(0.0, abs=4 / math.sqrt(200))
    assert table.loc["mean", "contraction"] == pytest.approx(1 - 1 / (5.25 * 4), abs=0.03)
    assert "Nothing is wrong that 200 replications can show" in str(result)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Conjugate(width=0.5), "over-confident"),
        (Conjugate(width=2.0), "under-confident"),
        (Conjugate(shift=0.7), "biased to high values"),
        (Conjugate(shift=-0.7), "biased to low values"),
    ],
    ids=["narrow", "wide", "high", "low"],
)
def test_each_way_of_being_wrong_is_named(method, words):
    result = run(method, 100)
    assert words in result.verdicts["mean"] and not result.ok
    assert words in result.sentences[0]


def test_the_prior_as_posterior_is_seen_by_the_log_likelihood_alone():
    """Ranks of the sites are uniform for whoever ignores the data (Modrák et al. 2023)."""
    verdicts = run(Conjugate(prior=True), 120).verdicts
    assert verdicts["mean"] == "fine" and "jointly" in verdicts[LOG_LIKELIHOOD]


def test_a_quantity_of_ones_own():
    result = run(Conjugate(), 50, quantities={"square": lambda draws: draws["mean"] ** 2}, sites=["mean"])
    assert "square" in result.place
    with pytest.raises(ProgramError, match=r"quantity 'all' must give one number for each draw, \[99\], but gave \(\)"):
        run(Conjugate(), 10, quantities={"all": lambda draws: draws["mean"].sum()})


# -- failures, files -----------------------------------------------------------------------------------------


def test_a_replication_that_fails_is_counted():
    result = run(Conjugate(fail=True), 60)
    assert result.replications + len(result.failures) == 60 and 10 < result.replications < 50
    assert not result.ok and "replications failed" in " ".join(result.sentences)
    assert result.failures[0] == "ValueError: no posterior above one"


def test_a_file_and_a_picture(tmp_path):
    result = run(Conjugate(), 20)
    result.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json")
    assert again == result and again.table.equals(result.table)
    result.plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert "Only 20 replications" in str(result)
    (tmp_path / "other.json").write_text(json.dumps({"place": {}, "colour": 1}))
    with pytest.raises(FileError, match="not the calibration of this version"):
        Calibration.load(tmp_path / "other.json")


def test_a_seed_repeats():
    assert run(Conjugate(), 10) == run(Conjugate(), 10)


# -- what is refused -----------------------------------------------------------------------------------------


def test_programs_that_cannot_be_drawn_from_are_refused():
    def flat(y):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def energy(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -(mean**4))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor(0.0)
    with pytest.raises(TaskUnavailable, match=r"cannot be drawn from .* proper priors"):
        calibrate(flat, y, method="nuts")
    with pytest.raises(TaskUnavailable, match="factor 'energy'"):
        calibrate(energy, y, method="nuts")
    with pytest.raises(TaskUnavailable, match="observes nothing"):
        calibrate(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), method="nuts")


def test_wrong_options_are_named():
    with pytest.raises(ProgramError, match="replications must be a whole number, at least 10, but it is 3"):
        run(Conjugate(), 3)
    with pytest.raises(ProgramError, match="no draws of a site 'q'; it has 'mean'"):
        run(Conjugate(), 10, sites=["q"])
    with pytest.raises(TaskUnavailable, match="every one of 10 replications failed; the first: ValueError: no"):
        calibrate(normal_mean, torch.zeros(2), method=Never(), replications=10, seed=0)


@dataclass(frozen=True)
class Never:
    def run(self, program, y):
        raise ValueError("no")


# -- where the data go ---------------------------------------------------------------------------------------


def test_a_guide_reads_the_simulated_data():
    """z ~ N(0, 1), x | z ~ N(z, 1), and the exact guide N(x / 2, 1 / 2)."""

    class Amortised(dgm.Program):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    result = calibrate(Amortised(), torch.zeros(2), replications=100, seed=1)
    assert result.ok, result.sentences


def test_discrete_sites_break_ties_at_random():
    def alarm(rang, weight=None):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
        pyro.sample("rang", dist.Normal(k.float(), 1.0), obs=rang)

    result = calibrate(alarm, method=dgm.Exact(draws=99), replications=100, seed=0, rang=torch.tensor(0.0))
    assert result.ok, result.sentences


def test_arguments_that_are_used_twice_stay_as_they_are():
    """The lagged values of an autoregression are covariates: only the site takes the simulated data."""

    def autoregression(y, order):
        alpha = pyro.sample("alpha", dist.Normal(0.0, 1.0))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(order), 0.5).to_event(1))
        past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
        with pyro.plate("data", len(y) - order):
            pyro.sample("y", dist.Normal(alpha + past @ beta, 1.0), obs=y[order:])

    y = normal_data(12)
    simulator = Simulator(autoregression, (y, 2), {})
    (replication,) = simulator.draw(1)
    post = simulator.infer(replication, dgm.HMC(chains=2, warmup=5, draws=4), seed=0)
    assert simulator.substitutes is False
    alpha, beta = post.draws["alpha"][0, 0], post.draws["beta"][0, 0]
    past = torch.stack([y[2 - k : 12 - k] for k in (1, 2)], -1)
    wanted = dist.Normal(alpha + past @ beta, 1.0).log_prob(replication.observed["y"])
    assert torch.allclose(post.log_likelihood["y"][0, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["asymptotic", "approximate"])
def test_neighbouring_draws_of_any_sampler_are_thinned(kind):
    """Of an unadjusted one too, which says `approximate` but gives the log density: chains of correlation 0.95 have an
    effective sample size of 400 x 0.05 / 1.95, about 10 each."""
    x = torch.randn(4, 400)
    for t in range(1, 400):
        x[:, t] = 0.95 * x[:, t - 1] + math.sqrt(1 - 0.95**2) * x[:, t]
    post = Posterior({"x": x}, stats={"lp": -x.square() / 2}, kind=kind)
    few, effective = _independent(post, 100)
    assert 15 < effective < 100 and few.draws["x"].shape == (1, int(effective))
    guide = Posterior({"x": x}, kind="approximate")  # whose draws are independent by construction
    assert _independent(guide, 100)[1] == 1600


def test_observe_overrides_the_search_for_the_argument():
    def doubled(twice):
        mean = pyro.sample("mean", dist.Normal(1.0, 2.0))
        with pyro.plate("data", len(twice)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=twice / 2)

    @dataclass(frozen=True)
    class Halving:
        def run(self, program, twice):
            return Conjugate().run(program, twice / 2)

    result = calibrate(
        doubled, torch.zeros(5), method=Halving(), observe=lambda data: (2 * data["y"],), replications=100, seed=1
    )
    assert result.ok, result.sentences


# -- bands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 250])
def test_bands_hold_all_points_at_once_as_often_as_they_say(n):
    band = bands(n)
    x = torch.rand(2000, n, dtype=torch.float64)
    inside = 0
    for row in x:
        f = band.difference(row) + band.points
        inside += bool(((f >= band.lower - 1e-12) & (f <= band.upper + 1e-12)).all())
    assert inside / 2000 >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / 2000)
    p = torch.tensor([band.p_value(row) for row in x])
    for level in (0.05, 0.5):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=4 * 0.5 / math.sqrt(2000) + 0.02)


def test_bands_are_narrower_than_those_of_kolmogorov_smirnov_at_the_edges():
    band = bands(200)
    limit = float(stats.kstwo.ppf(0.95, 200))
    assert band.upper[0] - band.points[0] < limit / 2
    assert bands(200).p_value(torch.rand(200).double() ** 2) < 0.001
    assert kolmogorov_smirnov_p(torch.rand(200)) > 1e-4


# -- samplers ------------------------------------------------------------------------------------------------


def location_and_scale(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def correlated(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * x, 1.0), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuts", "chees"])
def test_samplers_are_flat(name):
    method = {
        "nuts": dgm.NUTS(chains=4, warmup=80, draws=40),
        "chees": dgm.ChEES(chains=16, warmup=100, draws=25),
    }[name]
    result = calibrate(location_and_scale, torch.zeros(6), method=method, replications=50, draws=49, seed=0)
    assert result.ok, result.sentences


@pytest.mark.slow
def test_mean_field_is_over_confident_on_a_correlated_program():
    """Slope and intercept far from the origin of x: correlation near -1, which a factorised guide cannot have."""
    x = 3.0 + torch.linspace(-0.5, 0.5, 8)
    method = dgm.SVI(guide="AutoNormal", epochs=150, lr=0.05, particles=2)
    result = calibrate(correlated, x, torch.zeros(8), method=method, replications=50, draws=49, seed=0)
    assert any("over-confident" in verdict for verdict in result.verdicts.values()), result
