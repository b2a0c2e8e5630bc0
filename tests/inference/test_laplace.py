"""Laplace: exact on normal posteriors, the formula elsewhere, honest refusals; Hessians and modes."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.linear_gaussian import LinearGaussian
from oracles.posteriors import PROGRAMS, eight_schools, eight_schools_centred, schools_data
from ppl_dgm import LogDensity
from ppl_dgm.densities.curvature import hessian
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.inference.approximating.optimising import find_modes
from ppl_dgm.inference.laplace import Laplace, mode

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]]).double()


def coin(heads: Tensor) -> None:
    """Beta(2, 3) prior, 10 tosses."""
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    pyro.sample("heads", dist.Binomial(10, p), obs=heads)


def coin_evidence(heads: float) -> float:
    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    choose = math.log(math.comb(10, int(heads)))
    return choose + log_beta(2.0 + heads, 3.0 + 10 - heads) - log_beta(2.0, 3.0)


@pytest.mark.parametrize("correct", [True, False])
def test_a_normal_posterior_and_its_evidence_are_exact(correct: bool) -> None:
    program = LinearGaussian().double()
    post = dgm.infer(program, X, method=Laplace(draws=4000, correct=correct), seed=0)
    assert post.log_evidence is not None
    assert float(post.log_evidence.value) == pytest.approx(float(program.evidence(X).sum()), abs=1e-5)
    assert (post.log_evidence.stderr is None) == (not correct)
    exact = program.exact_posterior(X)
    z = post.draws["z"][0]  # [draw, example, latent]
    assert z.dtype == torch.float64
    assert bool(((z.mean(0) - exact.mean).abs() < 4.5 * (exact.variance / 4000).sqrt()).all())
    for i in range(3):
        torch.testing.assert_close(z[:, i].T.cov(), exact.covariance_matrix[i], atol=0.05, rtol=0.1)
    assert bool((post.stats["pareto_k"] == -math.inf).all())  # all weights are equal
    assert post.kind == "approximate" and "one mode" in post.how


def test_many_dimensions_in_one_hessian() -> None:
    root = torch.randn(200, 200).double() / 14 + torch.eye(200).double()
    density = gaussian(root @ root.T, mean=2.0)
    modes = find_modes(density, starts=2)
    torch.testing.assert_close(modes.z[0], torch.full((200,), 2.0).double(), atol=1e-5, rtol=0)
    evidence = modes.log_density[0] + 100 * math.log(2 * math.pi) - modes.root.diagonal().log().sum()
    assert float(evidence) == pytest.approx(0.0, abs=1e-5)
    assert modes.starts.tolist() == [2] and modes.lost == 0


def test_the_formula_of_a_skewed_posterior() -> None:
    """In the logit of p the log posterior is a log p + b log (1 - p), with its mode at a / (a + b)."""
    a, b = 2.0 + 7, 3.0 + 3
    share = a / (a + b)
    log_beta = math.lgamma(2.0) + math.lgamma(3.0) - math.lgamma(5.0)
    height = math.log(math.comb(10, 7)) + a * math.log(share) + b * math.log(1 - share) - log_beta
    wanted = height + 0.5 * math.log(2 * math.pi) - 0.5 * math.log(a * b / (a + b))
    heads = torch.tensor(7.0).double()
    plain = dgm.infer(coin, heads, method=Laplace(correct=False), seed=0)
    assert plain.log_evidence is not None and float(plain.log_evidence.value) == pytest.approx(wanted, abs=1e-6)
    assert "neither unbiased nor a bound" in plain.log_evidence.how and plain.log_weights is None
    assert abs(wanted - coin_evidence(7)) > 0.01
    corrected = dgm.infer(coin, heads, method=Laplace(draws=4000), seed=0)
    score = corrected.log_evidence
    assert score is not None and score.stderr is not None
    assert abs(float(score.value) - coin_evidence(7)) < 4 * float(score.stderr) < 0.05
    assert float(corrected.mean("p")) == pytest.approx(a / (a + b), abs=0.02)  # here also the mean of Beta(a, b)


def test_score_takes_the_evidence() -> None:
    score = dgm.score(coin, torch.tensor(7.0).double(), method=Laplace(draws=4000), seed=0)
    assert float(score.value) == pytest.approx(coin_evidence(7), abs=0.05) and score.kind == "estimate"


def test_the_mode_with_and_without_the_jacobian() -> None:
    heads = torch.tensor(7.0).double()
    assert float(mode(coin, heads, seed=0).sites["p"]) == pytest.approx((9 - 1) / (15 - 2), abs=1e-5)
    assert float(mode(coin, heads, jacobian=True, seed=0).sites["p"]) == pytest.approx(9 / 15, abs=1e-5)


def test_the_mode_comes_with_deterministic_sites_and_its_height() -> None:
    y, sigma = (a.double() for a in schools_data())
    found = mode(eight_schools, y, sigma, jacobian=True, seed=0)
    theta = found.sites["mu"] + found.sites["tau"] * found.sites["t"]
    torch.testing.assert_close(found.deterministic["theta"], theta)
    z = LogDensity(eight_schools, y, sigma).unconstrain({k: v[None] for k, v in found.sites.items()})
    value, gradient = LogDensity(eight_schools, y, sigma).value_and_grad(z)
    assert float(value[0]) == pytest.approx(float(found.log_density)) and float(gradient.abs().max()) < 1e-3
    assert found.starts == 8


@pytest.mark.parametrize("name", ["mixture", "hmm", "covariance", "gaussian process", "dependent"])
def test_the_hessian_is_that_of_differences(name: str) -> None:
    """Also with discrete sites summed out, and with Cholesky factors among the coordinates."""
    program, args = PROGRAMS[name]()
    density = LogDensity(program, *(a.double() for a in args))
    z = density.initial(1, seed=0, radius=1.0)[0]
    eye = 1e-5 * torch.eye(density.dim).double()
    wanted = (density.value_and_grad(z + eye)[1] - density.value_and_grad(z - eye)[1]) / 2e-5
    torch.testing.assert_close(hessian(density, z), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class _Once(torch.autograd.Function):
    """x^4, whose derivative cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**4

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 4 * gradient * x**3


@pytest.mark.filterwarnings("ignore:the chains of:RuntimeWarning")
def test_a_density_without_second_derivatives_is_differenced() -> None:
    def program(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        pyro.factor("f", -_Once.apply(z).sum() * x)

    density = LogDensity(program, torch.tensor(0.5).double())
    z = torch.tensor([0.7, -1.1]).double()
    torch.testing.assert_close(hessian(density, z), torch.diag(-1 - 6 * z**2), atol=1e-7, rtol=1e-7)


def double_well(z: Tensor) -> Tensor:
    """Two modes near +1 and -1 of the first coordinate; the first is higher."""
    return -4 * (z[:, 0] ** 2 - 1) ** 2 + z[:, 0] / 2 - z[:, 1:].square().sum(1)


def test_all_modes_are_counted_and_the_highest_used() -> None:
    modes = find_modes(Handmade(double_well, 3), starts=32)
    assert len(modes.z) == 2 and int(modes.starts.sum()) + modes.lost == 32
    assert float(modes.z[0, 0]) > 0.9 and float(modes.z[1, 0]) < -0.9
    assert float(modes.log_density[0] - modes.log_density[1]) == pytest.approx(1.0, abs=0.02)


def test_other_modes_are_reported() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        pyro.factor("well", double_well(z[None])[0])

    post = dgm.infer(program, method=Laplace(starts=16), seed=0)
    assert "2 modes" in post.how and bool((post.stats["other_modes"] == 1).all())
    assert bool((post.draws["z"][..., 0] > 0).float().mean() > 0.99)


def flat(y: Tensor) -> None:
    pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
    b = pyro.sample("b", dist.Normal(torch.zeros_like(y), 1.0))
    pyro.sample("y", dist.Normal(b, 1.0), obs=y)


def rising(y: Tensor) -> None:
    slope = pyro.sample("slope", dist.ImproperUniform(constraints.real, (), ()))
    pyro.factor("f", slope * y)


@pytest.mark.parametrize(
    ("program", "args", "words"),
    [
        (eight_schools_centred, schools_data(), r"still rises .* site 'tau'.*non-centred"),
        (flat, (torch.tensor(1.0).double(),), r"not curved downwards.* in site 'a'.*proper prior"),
        (flat, (torch.tensor(1.0),), r"flat in site 'a'.*float64"),
        (rising, (torch.tensor(1.0).double(),), r"site 'slope'"),
    ],
    ids=["unbounded", "flat", "flat in single precision", "rising"],
)
def test_a_density_without_a_mode_is_refused_by_site(program: Any, args: tuple, words: str) -> None:
    with pytest.raises(NumericalError, match=words):
        dgm.infer(program, *args, method="laplace", seed=0)


def test_seeds_types_and_costs() -> None:
    y, sigma = schools_data()
    first, again = (dgm.infer(eight_schools, y, sigma, method=Laplace(draws=50), seed=3) for _ in range(2))
    assert torch.equal(first.draws["mu"], again.draws["mu"])
    assert first.draws["mu"].dtype == torch.float32 and first.deterministic["theta"].shape == (1, 50, 8)
    wide = dgm.infer(eight_schools, y, sigma, method=Laplace(draws=50, dtype=torch.float64), seed=3)
    assert wide.draws["mu"].dtype == torch.float64
    assert first.cost.gradients % 8 == 0 and 80 < first.cost.gradients < 2000 and first.cost.path == "recorded"


@pytest.mark.parametrize("options", [{"draws": 0}, {"starts": 0}, {"iterations": 1.5}])
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(ProgramError, match=f"Laplace: {next(iter(options))} must be a whole number"):
        Laplace(**options)
