"""Targets: exact moments and evidence by quadrature, stored references, who fails on the hard ones and that it is said."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.posteriors import posteriordb_folder
from ppl_dgm.errors import FileError, ProgramError, TaskUnavailable
from ppl_dgm.inference.targets import (
    TARGETS,
    Target,
    banana,
    beta_binomial,
    cauchy,
    eight_schools,
    eight_schools_centred,
    far_modes,
    find,
    funnel,
    ill_conditioned_gaussian,
    item_response,
    linear_regression,
    normal_gamma,
    posteriordb,
    reference_moments,
    squared_bias,
    stochastic_volatility,
)
from ppl_dgm.inference.targets.reference import FOLDER, checksum, read_reference, write_reference
from ppl_dgm.results import Posterior

ANALYTIC: dict[str, Callable[[], Target]] = {
    "ill-conditioned Gaussian": lambda: ill_conditioned_gaussian(dim=5),
    "banana": banana,
    "funnel": funnel,
    "far modes": far_modes,
    "Cauchy": cauchy,
    "Beta-Binomial": beta_binomial,
    "linear regression": linear_regression,
    "Normal-Gamma": normal_gamma,
}
STORED = sorted(path.stem for path in FOLDER.glob("*.json"))


# -- what is known in closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", ANALYTIC.values(), ids=ANALYTIC)
def test_exact_draws_have_the_exact_moments(make: Callable[[], Target]) -> None:
    target, n = make(), 40_000
    draws = target.sample(n, seed=1)
    assert target.exact and set(target.mean) <= set(draws)
    for site, mean in target.mean.items():
        x = draws[site]
        assert x.dtype == torch.float64 and x.shape == (n, *mean.shape)
        for values, expected, variance in (
            (x, mean, target.variance[site]),
            (x.square(), target.square[site], target.square_variance[site]),
        ):
            errors = (values.mean(0) - expected) / (variance / n).sqrt()
            assert float(errors.abs().max()) < 4.5
        # and the variances are those of the draws, where the tails are light enough to tell
        if target.name not in ("Neal's funnel", "banana") or site == "v":
            torch.testing.assert_close(x.var(0), target.variance[site], rtol=0.06, atol=0)
            torch.testing.assert_close(x.square().var(0), target.square_variance[site], rtol=0.25, atol=0)
    for site, table in target.quantiles.items():
        for p, quantile in table.items():
            errors = ((draws[site] <= quantile).double().mean(0) - p) / math.sqrt(p * (1 - p) / n)
            assert float(errors.abs().max()) < 4.5


@pytest.mark.parametrize("make", [funnel, cauchy, lambda: ill_conditioned_gaussian(dim=5)])
def test_draws_of_the_program_have_the_exact_moments(make: Callable[[], Target]) -> None:
    target = make()
    drawn = dgm.sample(target.program, 20_000, *target.args, seed=0)
    for site, square in target.square.items():
        errors = (drawn[site].double().square().mean(0) - square) / (target.square_variance[site] / 20_000).sqrt()
        assert float(errors.abs().max()) < 4.5


# target, and the box of R^2 or R that holds all but nothing of the density
BOXES: dict[str, tuple[Callable[[], Target], list[tuple[float, float]]]] = {
    "banana": (lambda: banana(scale=1.5, curvature=0.5), [(-12, 12), (-8, 75)]),
    "far modes": (lambda: far_modes(dim=1, distance=6.0), [(-12, 12)]),
    "far modes in two dimensions": (lambda: far_modes(dim=2, distance=5.0, weight=0.4), [(-10, 10), (-10, 10)]),
    "linear regression": (lambda: linear_regression(observations=12, dim=2), [(-6, 6), (-6, 6)]),
    "Normal-Gamma": (lambda: normal_gamma(observations=6), [(-6, 4), (-12, 12)]),
}


@pytest.mark.parametrize("make, box", BOXES.values(), ids=BOXES)
def test_moments_and_evidence_are_those_of_the_programs_density(
    make: Callable[[], Target], box: list[tuple[float, float]]
) -> None:
    """Quadrature over R^d of the program's density; the trapezoidal rule is exact here up to rounding."""
    target = make()
    density = dgm.LogDensity(target.program, *target.args, dtype=torch.float64)
    axes = [torch.linspace(low, high, 1200 if len(box) == 2 else 20_001, dtype=torch.float64) for low, high in box]
    points = torch.cartesian_prod(*axes).reshape(-1, len(box))
    log_weight = torch.cat([density.log_prob(rows) for rows in points.split(100_000)])
    log_weight = log_weight + sum(math.log(float(axis[1] - axis[0])) for axis in axes)
    assert float(torch.logsumexp(log_weight, 0)) == pytest.approx(target.log_evidence, abs=1e-5)
    weight = torch.softmax(log_weight, 0)
    draws, _ = density.constrain(points)
    for site, mean in target.mean.items():
        x = draws[site].reshape(len(points), -1)
        found = [(weight[:, None] * x**power).sum(0) for power in (1, 2, 4)]
        second, fourth = target.square[site], target.square_variance[site] + target.square[site].square()
        for value, expected in zip(found, (mean, second, fourth), strict=True):
            torch.testing.assert_close(value, expected.reshape(-1), rtol=1e-4, atol=1e-5)


def test_conjugate_coins_differ_from_their_posterior_by_the_evidence() -> None:
    target = beta_binomial()
    heads, tosses = (a.double() for a in target.args)
    density = dgm.LogDensity(target.program, *target.args, dtype=torch.float64)
    u = density.initial(5, seed=0)
    p = density.constrain(u)[0]["p"]
    posterior = torch.distributions.Beta(2 + heads, 3 + tosses - heads).log_prob(p) + (p * (1 - p)).log()
    rest = density.log_prob(u) - posterior.sum(-1)
    torch.testing.assert_close(rest, torch.full_like(rest, target.log_evidence), rtol=1e-9, atol=1e-8)


def test_surprise_of_the_cauchy_has_the_moments_of_its_integral() -> None:
    target = cauchy(dim=1)
    angle = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000 * math.pi - math.pi / 2
    surprise = math.log(math.pi) - 2 * angle.cos().log()  # x = tan(angle), uniform in the angle
    for power, expected in ((1, target.mean), (2, target.square)):
        assert float((surprise**power).mean()) == pytest.approx(float(expected["surprise"]), rel=1e-4)
    fourth = target.square_variance["surprise"] + target.square["surprise"].square()
    assert float((surprise**4).mean()) == pytest.approx(float(fourth), rel=1e-3)


def test_modes_must_be_further_apart_than_they_are_wide() -> None:
    with pytest.raises(ProgramError, match="distance is 2 "):
        far_modes(distance=2.0)


# -- programs and data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_a_density_of_its_dimension(name: str) -> None:
    target = find(name)
    density = dgm.LogDensity(target.program, *target.args)
    z = density.initial(3, seed=0)
    value, gradient = density.value_and_grad(z)
    assert density.dim == target.dim and density.path == "recorded" and density.vectorize == "vmap"
    assert bool(value.isfinite().all()) and bool(gradient.isfinite().all())
    known = {**density.constrain(z)[0], **density.constrain(z)[1]}
    for site, mean in target.mean.items():
        assert known[site].shape[1:] == mean.shape
    assert target.hard != ""


def test_both_forms_of_eight_schools_are_one_posterior() -> None:
    plain, centred = eight_schools(), eight_schools_centred()
    first, second = (dgm.LogDensity(t.program, *t.args, dtype=torch.float64) for t in (plain, centred))
    z = first.initial(6, seed=0)
    draws, deterministic = first.constrain(z)
    u = second.unconstrain({"mu": draws["mu"], "tau": draws["tau"], "theta": deterministic["theta"]})
    change = 8 * draws["tau"].log()  # theta = mu + tau t
    torch.testing.assert_close(first.log_prob(z), second.log_prob(u) + change, rtol=1e-9, atol=1e-9)


def test_stochastic_volatility_is_the_recursion() -> None:
    target = stochastic_volatility(days=37)
    density = dgm.LogDensity(target.program, *target.args, dtype=torch.float64)
    z = density.initial(1, seed=0)
    draws, deterministic = density.constrain(z)
    sigma, mean, phi, e = draws["sigma"][0], draws["mean"][0], deterministic["phi"][0], draws["noise"][0]
    h = [mean + sigma / (1 - phi**2).sqrt() * e[0]]
    for shock in e[1:]:
        h.append(mean + phi * (h[-1] - mean) + sigma * shock)
    y = target.args[0].double()
    log_joint = torch.distributions.Normal(0.0, (torch.stack(h) / 2).exp()).log_prob(y).sum()
    log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(e).sum() - sigma
    log_joint = log_joint + torch.distributions.StudentT(3.0, -5.0, 2.0).log_prob(mean)
    half = draws["half"][0]
    log_joint = log_joint + torch.distributions.Beta(20.0, 1.5).log_prob(half) + (half * (1 - half)).log() + sigma.log()
    torch.testing.assert_close(density.log_prob(z)[0], log_joint, rtol=1e-6, atol=1e-6)
    assert stochastic_volatility(days=37, seed=1).args[0].tolist() != target.args[0].tolist()


def test_a_target_moves_to_a_device(device: torch.device) -> None:
    target = item_response(students=6, questions=4).to(device)
    assert dgm.LogDensity(target.program, *target.args).device.type == device.type
    assert target.mean == {}  # the stored reference is of other data


def test_names_are_found_and_others_are_told() -> None:
    assert find("Eight_Schools centred").name == eight_schools_centred().name
    with pytest.raises(ProgramError, match=r"'funel' is unknown; did you mean 'funnel'\?"):
        find("funel")
    with pytest.raises(TaskUnavailable, match="eight schools has no closed form"):
        eight_schools().sample(3)


# -- the bias of draws ---------------------------------------------------------------------------------------


def _posterior(target: Target, n: int = 4000, **change: Tensor) -> Posterior:
    draws = {site: x.reshape(4, n // 4, *x.shape[1:]) for site, x in target.sample(n, seed=2).items()}
    return Posterior(draws | change, kind="asymptotic")


@pytest.mark.parametrize("make", ANALYTIC.values(), ids=ANALYTIC)
def test_exact_draws_have_little_bias(make: Callable[[], Target]) -> None:
    bias = squared_bias(_posterior(make()), make())
    assert 0 < bias["mean"] < 0.01 and 0 < bias["square"] < 0.01
    assert ("quantile" in bias) == bool(make().quantiles) and bias.get("quantile", 0.0) < 0.01


def test_bias_is_the_error_over_the_standard_deviation_squared() -> None:
    target = ill_conditioned_gaussian(dim=3)
    x = torch.zeros(2, 5, 3, dtype=torch.float64)
    shift = 0.5 * target.variance["x"].sqrt()
    assert squared_bias(Posterior({"x": x + shift}, kind="asymptotic"), target)["mean"] == pytest.approx(0.25)
    x[0, 0, 1] = math.nan
    assert squared_bias(Posterior({"x": x}, kind="asymptotic"), target)["mean"] == math.inf
    unknown = replace(target, mean={"x": torch.tensor([math.nan, 0.0, 0.0])}, square_variance={})
    x = unknown.variance["x"].sqrt() * torch.tensor([7.0, 0.2, 0.1]).expand(2, 5, 3)
    assert squared_bias(Posterior({"x": x}, kind="asymptotic"), unknown) == {"mean": pytest.approx(0.04), "square": 0.0}
    with pytest.raises(ProgramError, match="site 'x', but there are draws of 'y'"):
        squared_bias(Posterior({"y": x}, kind="asymptotic"), target)


def test_weighted_draws_count_by_their_weights() -> None:
    target = ill_conditioned_gaussian(dim=2, condition=4.0)
    wide = 1.5 * target.variance["x"].sqrt()
    x = (torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * wide)[None]
    weights = (x / wide).square()[0].sum(-1) / 2 * (1 - 1.5**2)
    plain = squared_bias(Posterior({"x": x}, kind="asymptotic"), target)
    weighted = squared_bias(Posterior({"x": x}, log_weights=weights, kind="estimate"), target)
    assert weighted["square"] < 0.002 < 0.5 < plain["square"]


def test_half_of_the_quantiles_missed_is_seen() -> None:
    target = cauchy(dim=2)
    x = target.sample(1000, seed=0)["x"].abs().reshape(4, 250, 2)
    surprise = math.log(math.pi) + torch.log1p(x.square())
    bias = squared_bias(Posterior({"x": x, "surprise": surprise}, kind="asymptotic"), target)
    assert bias["quantile"] > 0.9 and bias["mean"] < 0.02  # P(x <= 0) is 0, not 1 / 2; the entropy is that of |x|


# -- samplers ------------------------------------------------------------------------------------------------


# short runs: more than enough for a Gaussian of condition number 1e4, too few for the hard targets
SAMPLERS: dict[str, Any] = {
    "hmc": dgm.HMC(chains=32, warmup=150, draws=150),
    "nuts": dgm.NUTS(chains=16, warmup=150, draws=300, max_depth=6),
    "chees": dgm.ChEES(chains=32, warmup=150, draws=150, max_steps=32),
    "mala": dgm.MALA(chains=32, warmup=150, draws=150),
    "random-walk": dgm.RandomWalk(chains=32, warmup=300, draws=300),
    "meads": dgm.MEADS(chains=64, warmup=150, draws=100),
    "mclmc": dgm.MCLMC(chains=32, warmup=150, draws=200),
    "adjusted-mclmc": dgm.AdjustedMCLMC(chains=32, warmup=150, draws=150),
    "parallel-tempering": dgm.ParallelTempering(chains=8, warmup=200, draws=300, temperatures=8),
    "tempered-smc": dgm.TemperedSMC(particles=1000),
}
HARD = {"funnel": funnel, "far modes": far_modes, "cauchy": cauchy}
QUICK = {"chees", "mclmc"}  # on the hard targets; the others take longer


@pytest.mark.parametrize("method", SAMPLERS.values(), ids=SAMPLERS)
def test_the_ill_conditioned_gaussian_is_met(method: Any) -> None:
    target = ill_conditioned_gaussian(dim=20)
    post = dgm.infer(target.program, *target.args, method=method, seed=0)
    bias = squared_bias(post, target)
    assert bias["mean"] < 0.01 and bias["square"] < 0.01


@pytest.mark.parametrize(
    "which, name",
    [
        pytest.param(which, name, marks=() if which in QUICK else pytest.mark.slow)
        for which in SAMPLERS
        for name in HARD
    ],
)
def test_who_misses_a_hard_target_is_told(which: str, name: str) -> None:
    target = HARD[name]()
    post = dgm.infer(target.program, *target.args, method=SAMPLERS[which], seed=0)
    missed = max(squared_bias(post, target).values()) >= 0.01
    print(f"{which} on {target.name}: {squared_bias(post, target)} {post.diagnose()}")
    assert not missed or post.diagnose() != []


@pytest.mark.parametrize("which", ["parallel-tempering", "tempered-smc"])
def test_tempering_finds_both_modes(which: str) -> None:
    target = far_modes()
    post = dgm.infer(target.program, *target.args, method=SAMPLERS[which], seed=0)
    assert max(squared_bias(post, target).values()) < 0.02  # a chain that stays in its mode has 0.2 or more
    assert post.log_evidence is not None
    assert float(post.log_evidence.value.sum()) == pytest.approx(target.log_evidence, abs=0.5)


# -- stored references ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STORED)
def test_stored_references_are_sound(name: str) -> None:
    target, path = find(name), FOLDER / f"{name}.json"
    assert path.stat().st_size < 60_000 and not target.exact
    made = target.made
    assert made["largest_r_hat"] <= 1.01 and made["dtype"] == "float64"
    assert made["largest_mcse_over_sd"] ** 2 < 0.001  # a tenth of the b^2 that samplers are measured by
    assert made["divergences"] <= 2e-3 * made["chains"] * made["draws_of_each"]
    for site, mean in target.mean.items():
        rounding = 2e-5 * target.square[site] + 1e-3 * target.variance[site]  # of six digits, of both moments
        assert bool(((target.square[site] - mean.square() - target.variance[site]).abs() < rounding).all())
        for table in (target.variance, target.square_variance, target.mcse_mean, target.mcse_square):
            assert bool((table[site] > 0).all()) and bool(table[site].isfinite().all())


@pytest.mark.skipif(posteriordb_folder() is None, reason="PPL_DGM_DATA names no folder with posteriordb/")
def test_eight_schools_agree_with_posteriordb() -> None:
    ours, theirs = eight_schools(), posteriordb.target("eight_schools-eight_schools_noncentered")
    for site in ("mu", "tau", "theta"):
        for moment, mcse in (("mean", "mcse_mean"), ("square", "mcse_square")):
            stderr = torch.hypot(getattr(ours, mcse)[site], getattr(theirs, mcse)[site])
            assert float(((getattr(ours, moment)[site] - getattr(theirs, moment)[site]) / stderr).abs().max()) < 4


def _meets_the_reference(name: str, method: Any, program: Callable[..., Any] | None = None) -> None:
    """Within 5 combined standard errors everywhere (there are up to 1000 averages), and b^2 < 0.01 for x^2."""
    target = find(name)
    post = dgm.infer(program or target.program, *target.args, method=method, seed=0)
    found = reference_moments(post, list(target.mean))
    for site in target.mean:
        for moment, mcse in (("mean", "mcse_mean"), ("square", "mcse_square")):
            stderr = torch.hypot(found[mcse][site], getattr(target, mcse)[site])
            assert float(((found[moment][site] - getattr(target, moment)[site]) / stderr).abs().max()) < 5, site
    assert squared_bias(post, target)["square"] < 0.01


# NUTS or adjusted MCLMC (many chains, for scales with heavy tails) where the reference is of ChEES, ChEES or HMC where it is of NUTS
OTHERS: dict[str, Any] = {
    "eight-schools": dgm.HMC(chains=32, warmup=300, draws=400),
    "breast-cancer": dgm.ChEES(),
    "german-credit": dgm.ChEES(),
    "radon": dgm.ChEES(),
    "bayesian-mixture": dgm.NUTS(chains=8),
    "bayesian-network": dgm.NUTS(chains=8),
    "sparse-logistic": dgm.AdjustedMCLMC(target_accept=0.95, warmup=400, draws=600),
    "item-response": dgm.NUTS(draws=400),
    "stochastic-volatility": dgm.NUTS(draws=1000),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STORED if name in OTHERS])
def test_another_sampler_meets_the_stored_reference(name: str) -> None:
    _meets_the_reference(name, OTHERS[name])


def marginal_ppca(x: Tensor) -> None:
    """`bayesian_ppca` with its factors integrated out: x_n ~ N(mu, W W^T + noise^2 I)."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(5, 2), 1.0).to_event(2))
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(5), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(x.new_tensor(-1.0), 1.0))
    pyro.deterministic("covariance", w @ w.mT + noise.square() * torch.eye(5).to(x))
    # Woodbury's identity with a matrix of two rows and columns, whose inverse is written out
    y, s = x - mu, noise.square()
    a, m = y @ w, w.mT @ w + s * torch.eye(2).to(x)  # [n, 2], [2, 2]
    determinant = m[0, 0] * m[1, 1] - m[0, 1].square()
    middle = m[1, 1] * a[:, 0].square() - 2 * m[0, 1] * a[:, 0] * a[:, 1] + m[0, 0] * a[:, 1].square()
    distance = (y.square().sum(-1) - middle / determinant) / s
    pyro.factor("x", -0.5 * (distance + 3 * s.log() + determinant.log() + 5 * math.log(2 * math.pi)).sum())


@pytest.mark.slow
def test_the_reference_of_ppca_is_that_of_its_marginal_program() -> None:
    _meets_the_reference("bayesian-ppca", dgm.ChEES(dtype=torch.float64), marginal_ppca)


def test_a_reference_is_written_and_read(tmp_path: Path) -> None:
    target = linear_regression(dim=3)
    post = _posterior(target, n=8000)
    write_reference("mine", target.args, post, {"method": "exact draws"}, folder=tmp_path)
    found = read_reference("mine", target.args, folder=tmp_path)
    assert found["made"]["method"] == "exact draws" and found["made"]["largest_r_hat"] < 1.01
    for moment in ("mean", "square"):
        errors = (found[moment]["w"] - getattr(target, moment)["w"]) / found[f"mcse_{moment}"]["w"]
        assert float(errors.abs().max()) < 4.5
    spread = (target.variance["w"] / 8000).sqrt()
    torch.testing.assert_close(found["mcse_mean"]["w"], spread, rtol=0.15, atol=0)
    again = Target("again", target.program, target.args, 3, **found)
    assert not again.exact and squared_bias(post, again)["mean"] < 1e-8
    assert read_reference("other", target.args, folder=tmp_path) == {}


def test_a_reference_of_other_data_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    target = linear_regression(dim=3)
    path = write_reference("mine", target.args, _posterior(target), {}, folder=tmp_path)
    x, y = target.args
    assert checksum((x, y)) != checksum((x.flip(0), y)) != checksum((x, y + 0.01))
    with pytest.raises(FileError, match="made with other data"):
        read_reference("mine", (x.flip(0), y), folder=tmp_path)
    record = json.loads(path.read_text())
    del record["variance"]
    path.write_text(json.dumps(record))
    with pytest.raises(FileError, match=r"mine\.json is no reference"):
        read_reference("mine", target.args, folder=tmp_path)


def test_moments_of_unknown_or_infinite_sites_are_refused() -> None:
    post = Posterior({"x": torch.full((2, 10), math.inf)}, kind="asymptotic")
    with pytest.raises(ProgramError, match="no draws of site 'y'; there are 'x'"):
        reference_moments(post, ["y"])
    with pytest.raises(ProgramError, match="mean of site 'x' is not finite"):
        reference_moments(post)
