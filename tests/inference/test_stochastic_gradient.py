"""SGLD and SGHMC: unbiased gradients, the stationary law in closed form, posteriors known exactly, what is refused."""

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
from oracles.posteriors import logistic
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.chains.minibatches import FullBatch, MinibatchDensity
from ppl_dgm.inference.stochastic_gradient import SGHMC, SGLD, inverse_information


def location(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(x.new_zeros(x.shape[1]), 3.0).to_event(1))
    pyro.deterministic("twice", 2 * m)
    with pyro.plate("data", len(x)):
        pyro.deterministic("rest", x - m)
        pyro.sample("x", dist.Normal(m, 2.0).to_event(1), obs=x)


def location_posterior(x: Tensor) -> tuple[Tensor, float]:
    """Mean [d] and standard deviation."""
    precision = 1 / 9 + len(x) / 4
    return x.sum(0) / 4 / precision, precision**-0.5


def two_components(x: Tensor) -> None:
    with pyro.plate("components", 2):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    pyro.factor("apart", -(mean[..., 0] - mean[..., 1]).square() / 50)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7], dtype=x.dtype)))
        pyro.sample("x", dist.Normal(mean[c], 1.0), obs=x)


def picky(x: Tensor) -> None:
    """Cuts rows by their values, which vmap cannot follow once chains have rows of their own."""
    m = pyro.sample("m", dist.Normal(x.new_zeros(()), 3.0))
    kept = x[x < 1e6]
    with pyro.plate("data", len(kept)):
        pyro.sample("x", dist.Normal(m, 2.0), obs=kept)


def regression(n: int, d: int) -> tuple[Tensor, Tensor]:
    x = torch.cat([torch.ones(n, 1), torch.randn(n, d - 1)], 1).double()
    b = torch.linspace(-1, 1, d).double()
    return x, torch.bernoulli(torch.sigmoid(x @ b))


# -- the gradient --------------------------------------------------------------------------------------------

PROGRAMS: dict[str, tuple[Callable[..., None], Callable[[], tuple[Tensor, ...]]]] = {
    "location": (location, lambda: (torch.randn(60, 2).double(),)),
    "logistic": (logistic, lambda: regression(60, 4)),
    "discrete sites summed out": (two_components, lambda: (torch.randn(60).double(),)),
    "one chain after another": (picky, lambda: (torch.randn(60).double(),)),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", PROGRAMS.values(), ids=PROGRAMS)
def test_the_batches_of_an_epoch_average_to_the_full_gradient(case: Any) -> None:
    program, make = case
    args = make()
    density, full = MinibatchDensity(program, *args, batch_size=10), dgm.LogDensity(program, *args)
    z = torch.randn(3, full.dim).double()
    value, gradient = full.value_and_grad(z)
    order = torch.stack([torch.randperm(60) for _ in range(3)])  # each chain has batches of its own
    parts = [density.estimate(z, rows) for rows in order.split(5, 1)]
    torch.testing.assert_close(torch.stack([p[0] for p in parts]).mean(0), value, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(torch.stack([p[1] for p in parts]).mean(0), gradient, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(density.full_gradient(z), gradient, rtol=1e-11, atol=1e-9)
    assert density.rows_used == 2 * 3 * 60 and density.gradients == 6


def test_the_noise_of_a_batch_is_known_and_control_variates_take_it_away() -> None:
    """For the mean of a normal, the noise has the variance N^2 / B var(x) / sigma^4, wherever the point is."""
    x = 2 * torch.randn(500, 2).double()
    density = MinibatchDensity(location, x, batch_size=20)
    z = torch.randn(400, 2).double()
    found, exact = density.minibatch(z)[1], density.full_gradient(z)
    variance = 500**2 / 20 * x.var(0, correction=0) / 16
    torch.testing.assert_close((found - exact).square().mean(0) / variance, torch.ones(2).double(), rtol=0.35, atol=0)
    torch.testing.assert_close(density.noise.square().mean(0) / variance, torch.ones(2).double(), rtol=0.35, atol=0)
    density.use_control_variates(torch.ones(2).double())
    torch.testing.assert_close(density.minibatch(z)[1], exact)  # a quadratic is corrected exactly
    assert float(density.noise.abs().max()) < 1e-8 < float(density.spread.abs().max())
    x, y = regression(500, 3)
    density = MinibatchDensity(logistic, x, y, batch_size=20)
    z = torch.tensor([[-1.0, 0, 1]]).double() + 0.1 * torch.randn(300, 3).double()
    density.minibatch(z)
    plain = float(density.noise.square().mean())
    density.use_control_variates(torch.tensor([-1.0, 0, 1]).double())
    error = density.minibatch(z)[1] - density.full_gradient(z)
    assert float(density.noise.square().mean()) < plain / 20
    assert float((error.mean(0).abs() * math.sqrt(300) / error.std(0)).max()) < 4.5


def test_the_preconditioner_is_the_inverse_of_the_information() -> None:
    x, y = regression(2000, 3)
    x[:, 2] = 3 * x[:, 1] + 0.5 * x[:, 2]
    density = MinibatchDensity(logistic, x, y, batch_size=20)
    z = torch.tensor([[-1.0, 0, 0.2]]).double().expand(3000, -1)
    density.minibatch(z)
    residual = torch.sigmoid(x @ z[0]) - y
    scores = x * residual[:, None]
    information = len(x) * torch.cov(scores.T, correction=0) + torch.eye(3).double()
    scale = inverse_information(density.spread, 20 / 2000, dense=True).scale
    torch.testing.assert_close(scale @ scale.T @ information, torch.eye(3).double(), rtol=0, atol=0.35)
    diagonal = inverse_information(density.spread, 20 / 2000, dense=False).scale
    torch.testing.assert_close(diagonal.square() * information.diagonal(), torch.ones(3).double(), rtol=0.15, atol=0)


# -- the dynamics --------------------------------------------------------------------------------------------


class NoisyNormal:
    """A normal density with standard deviation `scale`, whose gradient comes with noise of a known variance."""

    whole, dim, dtype, device = False, 1, torch.float64, torch.device("cpu")

    def __init__(self, scale: float, variance: float) -> None:
        self.scale, self.variance = scale, variance

    def minibatch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a, b = torch.randn(2, *z.shape, dtype=z.dtype) * math.sqrt(2 * self.variance)
        self.noise = self.spread = (a - b) / 2
        return -z[:, 0].square() / 2, -z / self.scale**2 + (a + b) / 2


def stationary_variance(kernel: Any, density: NoisyNormal, step: float, noise: float) -> float:
    """Over 20,000 chains after 200 steps, and 30 more."""
    kernel.noise, kernel.looks = torch.tensor([noise]).double(), 1
    z = density.scale * torch.randn(20_000, 1).double()
    point, found = Point(z, z[:, 0], z), []
    for t in range(230):
        point = kernel.step(density, Metric.identity(density), point, step, t, False).point
        if t >= 200:
            found.append(float(point.z.square().mean()))
    return sum(found) / len(found)


@pytest.mark.parametrize(("variance", "step"), [(0.0, 1.5), (0.0, 0.4), (3.0, 0.4)])
def test_the_stationary_variance_of_langevin_dynamics(variance: float, step: float) -> None:
    """s^2 (1 + e v / 4) / (1 - e / (4 s^2)); without noise, ULA's s^2 / (1 - e / (4 s^2))."""
    scale = 0.8
    exact = scale**2 * (1 + step * variance / 4) / (1 - step / (4 * scale**2))
    kernel = SGLD(batch_size=None, thinning=1, step_size=step).kernel()
    found = stationary_variance(kernel, NoisyNormal(scale, variance), step, 0.0)
    assert found == pytest.approx(exact, rel=0.03)  # 20,000 chains: a standard error below 0.01


@pytest.mark.parametrize("known", [True, False], ids=["noise known", "noise ignored"])
def test_the_stationary_variance_of_hamiltonian_dynamics(known: bool) -> None:
    """Against the discrete Lyapunov equation of (z, v)."""
    step, friction, variance = 0.05, 0.2, 6.0
    a = torch.tensor([[1 - step, 1 - friction], [-step, 1 - friction]]).double()
    noise = 2 * friction * step + (0 if known else step**2 * variance)
    right = torch.full((4,), noise).double()
    exact = float(torch.linalg.solve(torch.eye(4).double() - torch.kron(a, a), right)[0])
    kernel = SGHMC(batch_size=None, thinning=1, step_size=step, friction=friction).kernel()
    found = stationary_variance(kernel, NoisyNormal(1.0, variance), step, variance if known else 0.0)
    assert found == pytest.approx(exact, rel=0.03) and (abs(exact - 1) < 0.1) == known


def test_step_sizes_fall_as_asked() -> None:
    density = NoisyNormal(1.0, 0.0)
    kernel = SGLD(thinning=1, step_size=0.3, decay=0.5, offset=10.0).kernel()
    point = Point(torch.zeros(2, 1).double(), torch.zeros(2), torch.zeros(2, 1))
    sizes = [kernel.step(density, Metric.identity(density), point, 0.3, t, False).stats["step_size"] for t in (0, 30)]
    assert sizes == pytest.approx([0.3, 0.15])


# -- posteriors ----------------------------------------------------------------------------------------------

METHODS = {
    "ULA": SGLD(batch_size=None, warmup=100, draws=200, thinning=5),
    "SGLD": SGLD(warmup=150, draws=400),
    "SGLD-CV": SGLD(warmup=100, draws=200, thinning=5, control_variates=True),
    "SGHMC": SGHMC(warmup=100, draws=300),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_mean_of_a_normal(method: Any) -> None:
    """Correct up to the variance that the step size adds: `tolerance`, 5 %, or less than that for SGHMC."""
    x = 1 + 2 * torch.randn(800, 2).double()
    mean, deviation = location_posterior(x)
    post = dgm.infer(location, x, method=method, seed=0)
    z = (post.draws["m"] - mean) / deviation
    assert float(z.mean((0, 1)).abs().max()) < 0.2
    assert float(z.square().mean()) == pytest.approx(1.03, abs=0.12)
    assert post.kind == "approximate" and "whose bias stays" in post.how
    assert torch.equal(post.deterministic["twice"], 2 * post.draws["m"])
    if method.batch_size is not None:
        assert "rest" not in post.deterministic and "of 800 rows" in post.how
        steps = method.thinning * method.draws * method.chains * (2 if method.control_variates else 1)
        assert post.cost.gradients - post.cost.warmup_gradients == pytest.approx(steps * 100 / 800, abs=1)


@pytest.mark.parametrize(("form", "step"), [("rmsprop", 5e-5), ("none", 5e-4)], ids=["rmsprop", "none"])
def test_other_preconditioners(form: str, step: float) -> None:
    x = 1 + 2 * torch.randn(400, 2).double()
    mean, deviation = location_posterior(x)
    method = SGLD(batch_size=40, warmup=50, draws=300, preconditioner=form, step_size=step)
    post = dgm.infer(location, x, method=method, seed=0)
    z = (post.draws["m"] - mean) / deviation
    assert float(z.mean((0, 1)).abs().max()) < 0.2 and 0.9 < float(z.square().mean()) < 1.4


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path: Path) -> None:
    x = 1 + 2 * torch.randn(100, 2).double()
    for name, kind, more in (
        ("a", SGLD, {"control_variates": True}),
        ("b", SGHMC, {}),
        ("c", SGLD, {"batch_size": None}),
    ):
        options: Any = {"chains": 4, "warmup": 20, "batch_size": 10, "thinning": 2} | more
        whole = dgm.infer(location, x, method=kind(**options, draws=9), seed=0)
        for draws in (4, 9):
            method = kind(**options, draws=draws, checkpoint=tmp_path / name)
            post = dgm.infer(location, x, method=method, seed=0)
        assert torch.equal(post.draws["m"], whole.draws["m"])
        with pytest.raises(dgm.FileError, match="other data"):
            dgm.infer(location, x + 3, method=method, seed=0)


@pytest.mark.slow
def test_logistic_regression_on_many_rows() -> None:
    """100,000 rows: the posterior is normal to a percent, with the mode and curvature that Newton's method finds."""
    x, y = regression(100_000, 5)
    b = torch.zeros(5).double()
    for _ in range(20):
        p = torch.sigmoid(x @ b)
        hessian = (x.T * (p * (1 - p))) @ x + torch.eye(5).double()
        b = b + torch.linalg.solve(hessian, x.T @ (y - p) - b)
    method = SGLD(warmup=100, draws=300, thinning=10, control_variates=True)
    post = dgm.infer(logistic, x, y, method=method, seed=0)
    root = torch.linalg.cholesky(hessian)
    z = (post.draws["b"] - b) @ root  # standard normal
    assert float(z.mean((0, 1)).abs().max()) < 0.2
    assert float((z.square().mean((0, 1)) - 1.05).abs().max()) < 0.2
    assert post.cost.gradients < 500  # 16 chains of 4,000 steps and a search


# -- what is refused -----------------------------------------------------------------------------------------


def local(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unplated(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)


def standardising(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=(x - x.mean()) / x.std())


def shared_switch(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m + k, 1.0), obs=x)


REFUSED = {
    "local latents": (local, "site 'z' is latent inside the plate 'data'"),
    "no plate": (unplated, "no plate named 'data'.*batch_size=None"),
    "no sum over rows": (standardising, "no sum over the rows.*compute what depends on all rows"),
    "discrete and shared": (shared_switch, "site 'k' is discrete and shared"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_program_that_minibatches_would_get_wrong_is_refused_in_words(case: Any) -> None:
    program, words = case
    x = torch.randn(40) ** 2
    with pytest.raises(dgm.DgmError, match=words):
        dgm.infer(program, x, method=SGLD(batch_size=10, warmup=10, draws=2))
    assert FullBatch(program, x).dim >= 1  # all rows at each step are no problem


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 7}, {"preconditioner": "adam"}, {"step_size": -1.0}, {"tolerance": 2.0}, {"decay": 3.0}],
    ids=lambda o: next(iter(o)),
)
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(dgm.ProgramError, match=f"SGLD: {next(iter(options))} must be"):
        SGLD(**options)
    with pytest.raises(dgm.ProgramError, match="step_size must be given"):
        SGHMC(preconditioner="none")
    with pytest.raises(dgm.ProgramError, match="friction must be"):
        SGHMC(friction=1.0)
