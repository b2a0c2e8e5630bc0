"""PyroNUTS and PyroHMC: conjugate posteriors, statistics of each draw, seeds, summed-out sites, refusals."""

import json
import math
import os
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ppl_dgm as dgm
from ppl_dgm.inference.pyro_mcmc import PyroHMC, PyroNUTS, _Counted, _WatchedNUTS

KERNELS = [PyroNUTS(chains=2, warmup=80, draws=150), PyroHMC(chains=2, warmup=80, draws=150)]
Y = torch.tensor([1.0, 2.5, 0.5, 3.0, 2.0])


def gaussian(y: Tensor) -> None:
    """mu | y ~ N(sum y / (n + 1/4), 1 / (n + 1/4))."""
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=y.dtype), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def coin(x: Tensor) -> None:
    """p | x ~ Beta(2 + heads, 2 + tails)."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def schools(y: Tensor, sigma: Tensor) -> None:
    """Eight schools, non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        t = pyro.sample("t", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * t)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


# -- known posteriors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", KERNELS, ids=["nuts", "hmc"])
def test_a_conjugate_gaussian_posterior(method: PyroNUTS) -> None:
    posterior = dgm.infer(gaussian, Y.double(), method=method, seed=0)
    precision = 5 + 0.25
    row = posterior.summary(round_to="none").astype(float).loc["mu"]
    assert posterior.kind == "asymptotic" and posterior.draws["mu"].shape == (2, 150)
    assert posterior.draws["mu"].dtype == torch.float64
    assert abs(row["mean"] - 9 / precision) < 4 * row["mcse_mean"]
    assert abs(row["sd"] - precision**-0.5) < 4 * row["mcse_sd"]
    assert row["r_hat"] < 1.05


def test_a_conjugate_beta_posterior_in_the_programs_own_space() -> None:
    posterior = dgm.infer(coin, torch.tensor([1.0, 1, 1, 0, 1, 1]), method=PyroNUTS(warmup=100, draws=400), seed=1)
    p, row = posterior.draws["p"], posterior.summary(round_to="none").astype(float).loc["p"]
    exact = dist.Beta(7.0, 3.0)
    assert p.shape == (1, 400) and ((p > 0) & (p < 1)).all()
    assert abs(row["mean"] - float(exact.mean)) < 4 * row["mcse_mean"]
    assert abs(row["sd"] - float(exact.stddev)) < 4 * row["mcse_sd"]
    assert row["ess_bulk"] > 60


@pytest.mark.slow
def test_eight_schools_agree_with_posteriordb() -> None:
    folder = os.environ.get("PPL_DGM_DATA")
    if not folder or not (file := Path(folder) / "posteriordb/eight_schools-eight_schools_noncentered.json").exists():
        pytest.skip("set PPL_DGM_DATA to a folder that holds posteriordb/")
    reference = json.loads(file.read_text())
    y, sigma = (torch.tensor(reference["data"][k], dtype=torch.float32) for k in ("y", "sigma"))
    posterior = dgm.infer(
        schools, y, sigma, method=PyroNUTS(chains=2, warmup=300, draws=500, target_accept=0.85), seed=0
    )
    posterior.draws |= posterior.deterministic
    table = posterior.summary(round_to="none").astype(float)
    for name, mean, mcse in zip(*(reference["mean"][k] for k in ("names", "mean_value", "mcse_mean")), strict=True):
        site, _, index = name.partition("[")
        row = table.loc[f"{site}[{int(index[:-1]) - 1}]" if index else site]  # the reference counts from 1
        assert abs(row["mean"] - mean) < 4 * math.hypot(row["mcse_mean"], mcse), name
        assert row["r_hat"] < 1.03 and row["ess_tail"] > 100, name


# -- what is recorded ----------------------------------------------------------------------------------------


def test_every_gradient_is_counted_and_every_draw_has_its_statistics() -> None:
    asked = 0

    def counting(y: Tensor) -> None:
        nonlocal asked
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        asked += mu.requires_grad
        pyro.sample("y", dist.Normal(mu, 1.0).expand([5]).to_event(1), obs=y)

    posterior = dgm.infer(counting, Y, method=PyroNUTS(chains=2, warmup=40, draws=30), seed=0)
    stats = posterior.stats
    assert posterior.cost.gradients == asked
    assert int(stats["n_steps"].sum()) < asked
    assert {value.shape for value in stats.values()} == {(2, 30)}
    assert stats["diverging"].dtype == torch.bool
    assert (stats["n_steps"] < 2 ** stats["tree_depth"]).all() and (
        stats["n_steps"] >= 2 ** (stats["tree_depth"] - 1)
    ).all()
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert len(stats["step_size"][0].unique()) == 1  # fixed after warm-up
    log_joint = dist.Normal(0.0, 2.0).log_prob(posterior.draws["mu"]) + dist.Normal(
        posterior.draws["mu"][..., None], 1.0
    ).log_prob(Y).sum(-1)
    torch.testing.assert_close(stats["lp"], log_joint)
    assert (stats["energy"] >= -stats["lp"].roll(1, 1))[
        :, 1:
    ].all()  # kinetic energy, on top of the last draw's potential
    cost = posterior.cost
    assert 0 < cost.warmup_seconds + cost.sampling_seconds <= cost.seconds and cost.steps == 60


def test_acceptance_rates_average_to_pyros_own_figure() -> None:
    kernel = _WatchedNUTS(potential_fn=_Counted(lambda z: 0.5 * z["z"].square().sum()))
    kernel.initial_params = {"z": torch.zeros(3)}
    kernel.setup(30)
    rows = []
    for _ in range(80):
        kernel.sample(kernel.initial_params)
        rows.append(kernel.last["acceptance_rate"])
    assert sum(rows[30:]) / 50 == pytest.approx(kernel._mean_accept_prob, abs=1e-9)


def test_divergences_are_marked_draw_by_draw() -> None:
    """A quartic well with a step so long that some trajectories leave it."""
    kernel = _WatchedNUTS(potential_fn=_Counted(lambda z: z["z"].pow(4).sum()), adapt_step_size=False, step_size=0.9)
    kernel.initial_params = params = {"z": torch.zeros(2)}
    kernel.setup(0)
    marked = []
    for _ in range(60):
        params = kernel.sample(params)
        marked.append(kernel.last["diverging"])
    divergences = kernel.diagnostics()["divergences"]
    assert [index for index, diverging in enumerate(marked) if diverging] == divergences
    assert 0 < len(divergences) < 60


def test_deterministic_sites_are_computed_from_the_draws() -> None:
    y, sigma = torch.tensor([28.0, 8.0]), torch.tensor([15.0, 10.0])
    posterior = dgm.infer(schools, y, sigma, method=PyroNUTS(warmup=5, draws=8, max_tree_depth=4), seed=0)
    mu, tau, t = (posterior.draws[site] for site in ("mu", "tau", "t"))
    assert list(posterior.draws) == ["mu", "tau", "t"]
    torch.testing.assert_close(posterior.deterministic["theta"], mu[..., None] + tau[..., None] * t)


def test_discrete_sites_are_summed_out_and_said_to_be() -> None:
    """mu under a two-component observation; the posterior mean by quadrature."""

    def mixture(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.deterministic("centre", mu + 4 * k)
            pyro.sample("y", dist.Normal(mu + 4 * k, 1.0), obs=y)
        pyro.deterministic("twice", 2 * mu)

    y = torch.tensor([0.2, 4.4, -0.5])
    posterior = dgm.infer(mixture, y, method=PyroNUTS(warmup=80, draws=200), seed=0)
    grid = torch.linspace(-6, 6, 4001)
    near, far = (dist.Normal(grid[:, None] + shift, 1.0).log_prob(y).exp() for shift in (0.0, 4.0))
    weight = torch.softmax(dist.Normal(0.0, 1.0).log_prob(grid) + (0.7 * near + 0.3 * far).log().sum(-1), 0)
    row = posterior.summary(round_to="none").astype(float).loc["mu"]
    assert abs(row["mean"] - float((weight * grid).sum())) < 4 * row["mcse_mean"]
    assert list(posterior.draws) == ["mu"] and "'k' summed out" in posterior.how
    assert list(posterior.deterministic) == ["twice"]  # centre depends on k, of which there are no draws


# -- seeds and programs --------------------------------------------------------------------------------------


def test_a_seed_repeats_every_bit_and_gives_each_chain_its_own() -> None:
    method = PyroNUTS(chains=2, warmup=10, draws=10)
    state = torch.get_rng_state()
    first, again, other = (dgm.infer(gaussian, Y, method=method, seed=seed).draws["mu"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(state, torch.get_rng_state())
    alone = dgm.infer(gaussian, Y, method=PyroNUTS(chains=1, warmup=10, draws=10), seed=1).draws["mu"]
    assert alone.shape == (1, 10)


def test_a_program_keeps_its_parameters_to_itself() -> None:
    class Scaled(dgm.Program):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.5))

        def model(self, y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(pyro.param("centre", torch.tensor(1.0)), 1.0))
            pyro.sample("y", dist.Normal(mu, self.scale), obs=y)

    program = Scaled()
    posterior = dgm.infer(program, torch.tensor(2.0), method=PyroNUTS(warmup=60, draws=150), seed=0)
    row = posterior.summary(round_to="none").astype(float).loc["mu"]
    assert abs(row["mean"] - (1 + 2 * 4) / 5) < 4 * row["mcse_mean"]
    assert program.scale.grad is None and program.scale.item() == 0.5


# -- refusals ------------------------------------------------------------------------------------------------


def subsampled(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 5, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def counted(y: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    count = pyro.sample("count", dist.Poisson(rate))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def labelled(y: Tensor) -> None:
    label = pyro.sample("label", dist.Bernoulli(0.5))
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(label, 1.0), obs=y)


def observed(y: Tensor) -> None:
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (subsampled, "plate 'rows'"),
        (counted, "site 'count' is discrete"),
        (labelled, "'label'.*exact"),
        (observed, "no latent site"),
    ],
    ids=["subsampled plate", "infinite discrete", "only discrete", "nothing latent"],
)
def test_what_hamiltonian_monte_carlo_cannot_do_is_refused_by_name(program: object, words: str) -> None:
    with pytest.raises(dgm.TaskUnavailable, match=words):
        dgm.infer(program, Y, method="pyro-nuts", seed=0)


def test_a_program_without_a_finite_start_names_the_site() -> None:
    def impossible() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Uniform(mu, mu + 1, validate_args=False), obs=torch.tensor(100.0))

    with pytest.raises(dgm.ProgramError, match="observed site 'y'"):
        dgm.infer(impossible, method="pyro-nuts", seed=0)


@pytest.mark.parametrize(
    "options",
    [{"chains": 0}, {"draws": 0}, {"warmup": -1}, {"target_accept": 1.0}, {"max_tree_depth": 0}],
    ids=lambda o: next(iter(o)),
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(dgm.ProgramError, match=next(iter(options))):
        PyroNUTS(**options)
