"""HMC and what all Hamiltonian samplers share: the leapfrog's geometry, moments, seeds, resumption, mistakes."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.posteriors import breast_cancer, eight_schools, logistic, schools_data
from ppl_dgm.inference.chains import sampling
from ppl_dgm.inference.chains.hamiltonian import Metric, Point, gain, metropolis, trajectory
from ppl_dgm.inference.chains.sampling import HamiltonianSampler
from ppl_dgm.inference.chees import ChEES
from ppl_dgm.inference.hmc import HMC, JitteredTrajectory, halton
from ppl_dgm.inference.nuts import NUTS

SMALL = [
    HMC(chains=4, warmup=30, draws=20),
    NUTS(chains=4, warmup=30, draws=20),
    ChEES(chains=4, warmup=30, draws=20),
]
IDS = ["hmc", "nuts", "chees"]
METRICS = {
    "diagonal": torch.tensor([0.5, 2.0, 1.0]).double(),
    "dense": torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.7, 0.0], [-0.3, 0.2, 1.5]]).double(),
}


def quartic(z: Tensor) -> Tensor:
    return -(z**4).sum(1) / 4 - (z[:, 0] * z[:, 1]).square()


@pytest.fixture
def point() -> Point:
    return Point.at(Handmade(quartic, 3), torch.randn(6, 3).double())


# -- the leapfrog --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", METRICS.values(), ids=METRICS)
def test_a_trajectory_can_be_run_back(scale: Tensor, point: Point) -> None:
    density, metric, r = Handmade(quartic, 3), Metric(scale), torch.randn(6, 3).double()
    end, r_end = trajectory(density, metric, point, r, 0.05, 30)
    back, r_back = trajectory(density, metric, end, -r_end, 0.05, 30)
    torch.testing.assert_close(back.z, point.z, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(-r_back, r, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("scale", METRICS.values(), ids=METRICS)
def test_a_trajectory_keeps_volume(scale: Tensor) -> None:
    density, metric = Handmade(quartic, 3), Metric(scale)
    here, width = torch.randn(6).double(), 1e-5

    def moved(x: Tensor) -> Tensor:
        end, r_end = trajectory(density, metric, Point.at(density, x[None, :3]), x[None, 3:], 0.1, 7)
        return torch.cat([end.z[0], r_end[0]])

    columns = [(moved(here + width * e) - moved(here - width * e)) / (2 * width) for e in torch.eye(6).double()]
    assert abs(float(torch.linalg.det(torch.stack(columns, 1))) - 1) < 1e-6


@pytest.mark.parametrize("scale", METRICS.values(), ids=METRICS)
def test_the_energy_error_is_of_second_order(scale: Tensor, point: Point) -> None:
    density, metric, r = Handmade(quartic, 3), Metric(scale), torch.randn(6, 3).double()
    errors = []
    for steps in (50, 100, 200):
        end, r_end = trajectory(density, metric, point, r, 0.5 / steps, steps)
        errors.append(gain(point, r, end, r_end))
    for coarse, fine in itertools.pairwise(errors):
        torch.testing.assert_close(coarse / fine, torch.full((6,), 4.0).double(), rtol=0.03, atol=0)


def test_a_step_size_for_each_chain_is_that_chains_alone(point: Point) -> None:
    density, metric, r = Handmade(quartic, 3), Metric(METRICS["dense"]), torch.randn(6, 3).double()
    steps = torch.linspace(0.01, 0.1, 6).double()
    end, r_end = trajectory(density, metric, point, r, steps[:, None], 5)
    for c in range(6):
        alone = Point(*(value[c : c + 1] for value in vars(point).values()))
        one, r_one = trajectory(density, metric, alone, r[c : c + 1], float(steps[c]), 5)
        torch.testing.assert_close(end.z[c], one.z[0])
        torch.testing.assert_close(r_end[c], r_one[0])


def test_a_trajectory_that_leaves_the_finite_numbers_is_refused() -> None:
    density = Handmade(lambda z: torch.where(z[:, 0] > 0.5, math.nan, 0.0) - z.square().sum(1), 1)
    start = Point.at(density, torch.zeros(3, 1).double())
    end, r_end = trajectory(
        density, Metric.identity(density), start, torch.tensor([[9.0], [0.1], [-1]]).double(), 0.1, 3
    )
    new, accept, diverging = metropolis(start, torch.zeros(3, 1).double(), end, r_end)
    assert diverging.tolist() == [True, False, False] and accept[0] == 0 and new.z[0] == 0


def test_acceptance_is_exp_of_the_energy_lost(point: Point) -> None:
    r, r_end = torch.randn(6, 3).double(), torch.randn(6, 3).double()
    end = Point(point.z + 1, point.value + 0.1, point.gradient)
    uniform = torch.rand(6).double()
    new, accept, _ = metropolis(point, r, end, r_end, uniform)
    energy = lambda p, r: -p.value + r.square().sum(1) / 2  # noqa: E731
    expected = (energy(point, r) - energy(end, r_end)).exp().clamp(max=1)
    torch.testing.assert_close(accept, expected)
    assert torch.equal(new.z == end.z, (uniform < expected)[:, None].expand(6, 3))


def test_halton_fills_the_interval_evenly() -> None:
    values = torch.tensor([halton(i) for i in range(255)])
    assert torch.equal(values.sort().values, torch.arange(1, 256) / 256)
    steps = {JitteredTrajectory(2.0, 0.5, 12).steps(0.1, t) for t in range(64)}
    assert min(steps) == 10 and max(steps) == 12  # 30 without the limit


# -- posteriors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
@pytest.mark.parametrize("method", [HMC, ChEES], ids=["hmc", "chees"])
def test_moments_of_an_ill_conditioned_gaussian(method: type[HamiltonianSampler], metric: str) -> None:
    scales = torch.logspace(-2, 2, 10).double()
    run = method(chains=32, warmup=150, draws=150, metric=metric).sample(gaussian((scales**2).diag(), 1.0))
    z = torch.stack(run.draws)
    truth = 1 + scales**2
    assert float(((z.square().mean((0, 1)) - truth) ** 2 / (2 * scales**4 + 4 * scales**2)).max()) < 0.01
    assert float(((z.mean((0, 1)) - 1) / scales).abs().max()) < 0.1


@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_a_conjugate_posterior(method: HamiltonianSampler) -> None:
    """mu | y ~ N(sum y / (n + 1/4), 1 / (n + 1/4))."""

    def normal(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    method = type(method)(chains=4, warmup=150, draws=600)
    post = dgm.infer(normal, torch.tensor([1.0, 2.5, 0.5, 3.0, 2.0]), method=method, seed=0)
    row = post.summary(round_to="none").astype(float).loc["mu"]
    assert abs(row["mean"] - 9 / 5.25) < 4 * row["mcse_mean"]
    assert abs(row["sd"] - 5.25**-0.5) < 4 * row["mcse_sd"]
    assert row["r_hat"] < 1.02 and post.diagnose() == [] and post.draws["mu"].dtype == torch.float32


def test_chains_do_not_know_of_each_other() -> None:
    """With step size and metric given, a chain in a batch moves as it does alone."""
    density, metric = Handmade(quartic, 3), Metric(METRICS["dense"])
    z, r, uniform = torch.randn(5, 3).double(), torch.randn(5, 3).double(), torch.rand(5).double()
    start = Point.at(density, z)
    together, _, _ = metropolis(start, r, *trajectory(density, metric, start, r, 0.3, 4), uniform)
    for c in range(5):
        one = Point.at(density, z[c : c + 1])
        alone, _, _ = metropolis(
            one, r[c : c + 1], *trajectory(density, metric, one, r[c : c + 1], 0.3, 4), uniform[c : c + 1]
        )
        torch.testing.assert_close(together.z[c], alone.z[0])


# -- seeds and resumption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_a_seed_gives_the_same_draws_and_leaves_the_callers_state(method: HamiltonianSampler) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        dgm.infer(eight_schools, *schools_data(), method=method, seed=s).draws["mu"] for s in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("stop", [7, 25, 30, 40], ids=["first window", "warm-up", "between", "draws"])
@pytest.mark.parametrize("method", SMALL, ids=IDS)
def test_an_interrupted_run_goes_on_to_the_same_draws(
    method: HamiltonianSampler, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    whole = dgm.infer(eight_schools, *schools_data(), method=method, seed=0)
    monkeypatch.setattr(sampling, "CHECKPOINT_SECONDS", 0.0)
    advance = HamiltonianSampler._advance

    def until(self: Any, density: Any, run: Any, report: Any) -> None:
        if run.t == stop:
            raise Interrupted
        advance(self, density, run, report)

    resumable = type(method)(chains=4, warmup=30, draws=20, checkpoint=tmp_path / "run.safetensors")
    monkeypatch.setattr(HamiltonianSampler, "_advance", until)
    with pytest.raises(Interrupted):
        dgm.infer(eight_schools, *schools_data(), method=resumable, seed=0)
    monkeypatch.setattr(HamiltonianSampler, "_advance", advance)
    resumed = dgm.infer(eight_schools, *schools_data(), method=resumable, seed=99)
    for site in whole.draws:
        assert torch.equal(whole.draws[site], resumed.draws[site])
    for name in whole.stats:
        assert torch.equal(whole.stats[name], resumed.stats[name]), name
    assert resumed.cost.gradients == whole.cost.gradients


def test_a_finished_run_can_be_taken_further_and_a_checkpoint_knows_its_run(tmp_path: Path) -> None:
    y, sigma = schools_data()
    file = tmp_path / "run.safetensors"
    short = dgm.infer(eight_schools, y, sigma, method=HMC(warmup=30, draws=10, checkpoint=file), seed=0)
    more = dgm.infer(eight_schools, y, sigma, method=HMC(warmup=30, draws=20, checkpoint=file), seed=0)
    assert torch.equal(more.draws["mu"][:, :10], short.draws["mu"]) and more.draws["mu"].shape == (4, 20)
    with pytest.raises(dgm.FileError, match="other data"):
        dgm.infer(eight_schools, y + 5, sigma, method=HMC(warmup=30, draws=20, checkpoint=file), seed=0)
    with pytest.raises(dgm.FileError, match="warmup was 30 and is 40"):
        dgm.infer(eight_schools, y, sigma, method=HMC(warmup=40, draws=20, checkpoint=file), seed=0)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(dgm.FileError, match="whole safetensors"):
        dgm.infer(eight_schools, y, sigma, method=HMC(warmup=30, draws=20, checkpoint=file), seed=0)


# -- what users do wrong -------------------------------------------------------------------------------------

Y = torch.tensor([0.5, 1.0])


def improper() -> None:
    pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("b", dist.Poisson(3.0))


def subsampled() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 10, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=torch.arange(10.0)[rows])


def broken(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(0.0, scale).expand([2]).to_event(1), obs=y)


_RUNS = itertools.count()


def changing() -> None:
    n = 2 + next(_RUNS) % 2
    pyro.sample("w", dist.Normal(0.0, 1.0).expand([n]).to_event(1))


def nothing(y: Tensor) -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=y)


def noisy() -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    pyro.factor("f", -((w - torch.rand(())) ** 2))


def only_discrete() -> None:
    pyro.sample("k", dist.Bernoulli(0.3))


MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "discrete site without a finite list": (lambda: dgm.infer(improper, method="nuts"), "'b'.*discrete"),
    "subsampled plate": (lambda: dgm.infer(subsampled, method="chees"), "'rows'.*svi"),
    "NaN in the data": (
        lambda: dgm.infer(broken, torch.tensor([0.5, math.nan]), method="nuts"),
        "'y'.*[Nn]a[Nn]",
    ),
    "sites that change": (lambda: dgm.infer(changing, method="hmc"), "'w'"),
    "nothing latent": (lambda: dgm.infer(nothing, Y, method="nuts"), "nothing to infer"),
    "random numbers outside of sites": (lambda: dgm.infer(noisy, method="hmc"), "outside of pyro.sample"),
    "only discrete sites": (lambda: dgm.infer(only_discrete, method="nuts"), "'k'.*exact"),
    "no chains": (lambda: NUTS(chains=0), "NUTS: chains must be .*0"),
    "one chain for ChEES": (lambda: ChEES(chains=1), "at least 2.*across chains"),
    "half a draw": (lambda: HMC(draws=0.5), "HMC: draws must be a whole number"),  # type: ignore[arg-type]
    "target of 1": (lambda: NUTS(target_accept=1.0), "between 0 and 1, but it is 1.0"),
    "unknown metric": (lambda: NUTS(metric="full"), "'dense'.*'full'"),
    "negative step": (lambda: HMC(step_size=-1.0), "step_size must be positive"),
    "negative length": (lambda: HMC(length=-1.0), "length must be positive"),
    "half precision": (lambda: NUTS(dtype=torch.float16), "float32 or torch.float64"),
    "unknown backend": (lambda: ChEES(backend="jit"), "'eager' or 'inductor', but it is 'jit'"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gets_a_sentence_that_names_the_place(mistake: tuple[Callable[[], Any], str]) -> None:
    action, words = mistake
    with pytest.raises(dgm.DgmError, match=words) as caught:
        action()
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_log_density_too_large_for_its_number_type_is_said() -> None:
    def large() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.factor("f", w - 3e7)

    with pytest.warns(RuntimeWarning, match="float64"):
        dgm.infer(large, method=HMC(warmup=20, draws=5), seed=0)


# -- larger --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hmc_on_logistic_regression() -> None:
    post = dgm.infer(logistic, *breast_cancer(), method=HMC(chains=64, warmup=300, draws=300), seed=0)
    table = post.summary(kind="diagnostics", round_to="none").astype(float)
    assert table["r_hat"].max() <= 1.01 and table["ess_bulk"].min() > 5000
