"""ChEES: the gradient of its criterion, the length that it learns, many chains in little memory."""

import math
import subprocess
import sys

import pytest
import torch

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.posteriors import breast_cancer, eight_schools, logistic, schools_data
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.chees import ChEES, LearnedTrajectory, chees_gradient


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_the_gradient_is_that_of_the_criterion(dense: bool) -> None:
    """Along exact circles of a Gaussian, against a finite difference in the length."""
    scale = torch.tensor([[1.0, 0.0], [0.5, 2.0]]).double() if dense else torch.tensor([1.0, 2.0]).double()
    metric = Metric(scale)
    x, r = torch.randn(400, 2).double(), torch.randn(400, 2).double()
    accept = torch.rand(400).double()

    def at(time: float) -> tuple[Point, torch.Tensor]:
        z = metric.push(x * math.cos(time) + r * math.sin(time))
        return Point(z, torch.zeros(400).double(), z), r * math.cos(time) - x * math.sin(time)

    start, _ = at(0.0)
    mean = x.mean(0)
    weight = accept / accept.sum()

    def criterion(time: float) -> float:
        y = x * math.cos(time) + r * math.sin(time)
        centre = (weight[:, None] * (x * math.cos(0.7) + r * math.sin(0.7))).sum(0)  # held fixed, as in the source
        change = (y - centre).square().sum(1) - (x - mean).square().sum(1)
        return float((weight * change.square()).sum() / 4)

    slope = (criterion(0.7 + 1e-5) - criterion(0.7 - 1e-5)) / 2e-5
    end, r_end = at(0.7)
    assert float(chees_gradient(metric, start, end, r_end, accept)) == pytest.approx(slope, rel=1e-6)


def test_trajectories_that_left_the_finite_numbers_teach_nothing() -> None:
    metric = Metric(torch.ones(2).double())
    start, r = (
        Point(torch.randn(8, 2).double(), torch.zeros(8).double(), torch.zeros(8, 2).double()),
        torch.randn(8, 2).double(),
    )
    end = Point(start.z + r, start.value, start.gradient)
    broken = Point(torch.cat([end.z, torch.full((1, 2), math.nan).double()]), end.value, end.gradient)
    first = Point(torch.cat([start.z, start.z[:1] * 0 + start.z.mean(0)]), start.value, start.gradient)
    accept = torch.rand(8).double()
    expected = chees_gradient(metric, start, end, r, accept)
    found = chees_gradient(metric, first, broken, torch.cat([r, r[:1]]), torch.cat([accept, torch.ones(1).double()]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("first", [0.3, 2.2])
def test_a_quarter_of_a_turn_is_learned_for_a_gaussian(first: float) -> None:
    density = gaussian(torch.eye(8).double())
    kernel = LearnedTrajectory(first, 0.5, 1000)
    point = Point.at(density, torch.randn(64, 8).double())
    for t in range(120):
        point = kernel.step(density, Metric.identity(density), point, 0.2, t, True).point
    kernel.settle()
    assert 1.2 < kernel.length < 1.8


def test_a_new_metric_begins_a_new_search() -> None:
    kernel = LearnedTrajectory(1.5, 0.5, 1000)
    kernel.length, kernel.count = 40.0, 7
    kernel.restart()
    assert kernel.length == 1.5 and kernel.count == 0


def test_length_grows_where_the_metric_cannot_help() -> None:
    """With a diagonal metric, a correlation of 0.99 leaves one direction 14 times as long as the other."""
    correlated = torch.tensor([[1.0, 0.99], [0.99, 1.0]]).double()
    density = gaussian(correlated)
    run = ChEES(chains=64, warmup=150, draws=50, metric="diagonal").sample(density)
    z = torch.stack(run.draws)
    assert run.kernel.length > 3  # type: ignore[attr-defined]
    assert float((z.square().mean((0, 1)) - 1).abs().max()) < 0.2


def test_many_short_chains_of_eight_schools() -> None:
    post = dgm.infer(eight_schools, *schools_data(), method=ChEES(chains=256, warmup=150, draws=30), seed=0)
    mu = post.draws["mu"]
    assert mu.shape == (256, 30) and post.stats["n_steps"].shape == (256, 30)
    assert abs(float(mu.mean()) - 4.41) < 0.3 and abs(float(mu.std()) - 3.3) < 0.3


@pytest.mark.slow
def test_1024_chains_of_eight_schools_fit_in_two_gigabytes() -> None:
    script = (
        "import resource, torch; torch.set_num_threads(1)\n"
        "import ppl_dgm as dgm\n"
        "from oracles.posteriors import eight_schools, schools_data\n"
        "post = dgm.infer(eight_schools, *schools_data(), method=dgm.ChEES(chains=1024), seed=0)\n"
        "assert post.draws['mu'].shape == (1024, 300)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    path = next(folder for folder in sys.path if folder.endswith("tests"))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n" + script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes here
    assert int(done.stdout.split()[-1]) * unit < 2e9


@pytest.mark.slow
def test_logistic_regression_in_float32() -> None:
    post = dgm.infer(logistic, *breast_cancer(), method=ChEES(), seed=0)
    table = post.summary(kind="diagnostics", round_to="none").astype(float)
    assert table["r_hat"].max() <= 1.01 and table["ess_bulk"].min() > 9000
    assert not bool(post.stats["diverging"].any())


def test_divergent_chains_do_not_spoil_the_length() -> None:
    density = Handmade(lambda z: -z.square().sum(1) / 2 - 1e8 * (z[:, 0] - 2).clamp(min=0), 3)
    run = ChEES(chains=32, warmup=100, draws=50).sample(density)
    assert math.isfinite(run.kernel.length) and bool(torch.stack(run.draws).isfinite().all())  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", "diagonal", "low-rank"])
def test_compiled_steps_are_the_steps(form: str) -> None:
    """In float64 the chains stay together for a while; every gradient is counted once."""
    x, y = breast_cancer()
    options = {"chains": 8, "warmup": 12, "draws": 5, "metric": form, "dtype": torch.float64}
    runs = [
        dgm.infer(logistic, x, y, method=ChEES(**options, backend=backend), seed=0) for backend in ("eager", "inductor")
    ]
    torch.testing.assert_close(runs[1].draws["b"], runs[0].draws["b"], rtol=1e-6, atol=1e-6)
    assert runs[0].cost.gradients == runs[1].cost.gradients and runs[1].cost.path == "recorded"
