"""impute: every method against the exact conditional of a Gaussian or a table; what cannot be left out is refused."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.latent_programs import BeliefNetwork, states
from oracles.linear_gaussian import LinearGaussian
from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable

X = torch.tensor([[0.5, -1.0, 0.3, 1.2], [1.0, 2.0, -0.5, 0.0], [-2.0, 0.4, 0.0, 1.0]])
HOLES = torch.tensor(
    [[False, True, False, True], [True, False, False, False], [True, True, False, True]]
)  # two, one and three


def conditional(program: Any, x: Tensor, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the missing entries of a row given the others, of N(b, W W^T + s^2 I)."""
    covariance = program.weight @ program.weight.T + program.scale**2 * torch.eye(4)
    seen = ~missing
    gain = torch.linalg.solve(covariance[seen][:, seen], covariance[seen][:, missing]).T
    mean = program.bias[missing] + gain @ (x - program.bias)[seen]
    return mean, covariance[missing][:, missing] - gain @ covariance[seen][:, missing]


class Correlated(LinearGaussian):
    """The same law of x, but the entries depend on each other given z."""

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        half = self.weight[:, :1]
        covariance = self.weight[:, 1:] @ self.weight[:, 1:].T + self.scale**2 * torch.eye(4)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.MultivariateNormal(z @ half.T + self.bias, covariance), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.exact_posterior(x).mean[:, :1], 1.0).to_event(1))


@pytest.mark.parametrize("program", [LinearGaussian(), Correlated()], ids=["factorised", "correlated"])
@pytest.mark.parametrize(
    "options", [{"method": "gibbs", "sweeps": 40}, {"method": "importance", "proposals": 100, "sweeps": 20}]
)
def test_draws_have_the_exact_conditional_law(program: Any, options: dict[str, Any]) -> None:
    draws = 500
    found = dgm.impute(program, X, HOLES, draws=draws, seed=0, **options)
    assert found.kind == "asymptotic" and found.values.shape == (draws, 3, 4)
    assert torch.equal(found.values[:, ~HOLES], X[~HOLES].expand(draws, -1))
    for row in range(3):
        mean, covariance = conditional(program, X[row], HOLES[row])
        values = found.values[:, row, HOLES[row]]
        error = (covariance.diagonal() / draws).sqrt()
        assert ((values.mean(0) - mean).abs() < 4.5 * error).all()
        spread = torch.cov(values.T).reshape(covariance.shape)
        scale = (covariance.diagonal()[:, None] * covariance.diagonal()).sqrt()
        assert ((spread - covariance).abs() < 4.5 * scale * (2 / draws) ** 0.5).all()


def test_pseudo_gibbs_is_exact_with_the_exact_guide_and_wrong_with_another() -> None:
    row, holes = X[2:].repeat(1500, 1), HOLES[2:].repeat(1500, 1)

    def spread(program: Any, method: str) -> tuple[Tensor, Tensor]:
        found = dgm.impute(program, row, holes, draws=1, sweeps=30, method=method, seed=0)
        values = found.values[0][:, HOLES[2]]
        _, covariance = conditional(program, X[2], HOLES[2])
        return values.std(0), covariance.diagonal().sqrt()

    assert dgm.impute(LinearGaussian(), X, HOLES, draws=1, sweeps=2, method="pseudo-gibbs").kind == "approximate"
    for program, method in ((LinearGaussian(exact=True), "pseudo-gibbs"), (LinearGaussian(), "gibbs")):
        found, exact = spread(program, method)
        assert ((found / exact - 1).abs() < 4.5 / 3000**0.5).all()
    found, exact = spread(LinearGaussian(), "pseudo-gibbs")
    assert (found / exact).max() > 1.12  # its guide is too wide


def test_acceptance_is_one_at_the_exact_posterior() -> None:
    found = dgm.impute(LinearGaussian(exact=True), X, HOLES, draws=20, sweeps=10, method="gibbs", seed=0)
    torch.testing.assert_close(found.stats["acceptance_rate"], torch.ones(3, dtype=torch.float64), atol=5e-3, rtol=0)


def test_bits_of_a_belief_network_by_enumeration() -> None:
    program = BeliefNetwork()
    x = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    missing = torch.tensor([[False, True, True, False]])
    h, g, other = states(2, 3, 2)
    full = torch.stack([torch.ones(128), other[:, 0], other[:, 1], torch.ones(128)], -1)
    exact = torch.softmax(program.log_joint(h, g, full), 0).reshape(32, 4).sum(0)  # of the four completions
    for options in ({"method": "gibbs", "sweeps": 60}, {"method": "importance", "proposals": 100, "sweeps": 20}):
        found = dgm.impute(program, x, missing, draws=1500, seed=0, **options)
        code = (2 * found.values[:, 0, 1] + found.values[:, 0, 2]).long()
        share = torch.bincount(code, minlength=4) / 1500
        assert ((share - exact).abs() < 4.5 * (exact * (1 - exact) / 1500).sqrt()).all()


def test_programs_that_condition_exactly_are_asked_to() -> None:
    ppca = dgm.models.ProbabilisticPCA(4, 2)
    with torch.no_grad():
        twin = LinearGaussian()
        ppca.weight.copy_(twin.weight)
        ppca.bias.copy_(twin.bias)
        ppca.log_variance.copy_(torch.tensor(twin.scale**2).log())
    found = dgm.impute(ppca, X.masked_fill(HOLES, torch.nan), draws=800, seed=0)
    assert found.kind == "exact"
    for row in range(3):
        mean, covariance = conditional(twin, X[row], HOLES[row])
        values = found.values[:, row, HOLES[row]]
        assert ((values.mean(0) - mean).abs() < 4.5 * (covariance.diagonal() / 800).sqrt()).all()
    assert torch.equal(found.values[:, ~HOLES], X[~HOLES].expand(800, -1))


def test_a_mixture_with_holes_is_completed_exactly() -> None:
    """The share of each completion against p(x_mis | x_obs) from the mixture's own scores."""
    torch.manual_seed(0)
    program = dgm.models.MixtureOfCategoricals(3, 2, components=2, missing=True)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.tensor([[1.0, torch.nan, torch.nan]])
    full = torch.tensor([[1.0, a, b] for a in (0.0, 1.0) for b in (0.0, 1.0)])
    exact = torch.softmax(dgm.score(program, full).value, 0).detach()
    found = dgm.impute(program, x, draws=3000, seed=0)
    assert found.kind == "exact"
    share = torch.bincount((2 * found.values[:, 0, 1] + found.values[:, 0, 2]).long(), minlength=4) / 3000
    assert ((share - exact).abs() < 4.5 * (exact * (1 - exact) / 3000).sqrt()).all()


def test_a_circuit_with_holes_is_completed_exactly() -> None:
    program = dgm.models.Circuit(3, 2)
    x = torch.tensor([[1.0, torch.nan, torch.nan]])
    full = torch.tensor([[1, a, b] for a in (0, 1) for b in (0, 1)])
    exact = torch.softmax(dgm.score(program, full).value, 0).detach()
    found = dgm.impute(program, x, draws=3000, seed=0)
    assert found.kind == "exact" and "conditional" in found.how
    share = torch.bincount((2 * found.values[:, 0, 1] + found.values[:, 0, 2]).long(), minlength=4) / 3000
    assert ((share - exact).abs() < 4.5 * (exact * (1 - exact) / 3000).sqrt()).all()


def test_a_vae_of_the_zoo_and_its_summaries() -> None:
    vae = dgm.models.VAE(observed=6, values=3, latent=2, hidden=8)
    x = torch.tensor([[0.0, 1.0, 2.0, 0.0, 1.0, 2.0]])
    missing = torch.tensor([[True, False, False, False, False, True]])
    found = dgm.impute(vae, x, missing, draws=7, sweeps=5, seed=0)
    again = dgm.impute(vae, x, missing, draws=7, sweeps=5, seed=0)
    assert torch.equal(found.values, again.values)
    assert ((found.values >= 0) & (found.values <= 2)).all()
    assert torch.equal(found.mean[~missing], x[~missing]) and float(found.std[~missing].max()) == 0.0
    assert "7 draws of 2 missing entries of 1 examples" in repr(found)


def test_what_cannot_be_imputed_is_refused_in_words() -> None:
    with pytest.raises(DataError, match="missing must be True or False for each entry"):
        dgm.impute(LinearGaussian(), X, HOLES[:2])
    with pytest.raises(DataError, match="which `missing` says is observed"):
        dgm.impute(LinearGaussian(), X.masked_fill(HOLES, torch.nan), torch.zeros_like(HOLES))
    with pytest.raises(ProgramError, match="method must be one of 'exact', 'gibbs'"):
        dgm.impute(LinearGaussian(), X, HOLES, method="mean")
    with pytest.raises(ProgramError, match="draws must be a whole number"):
        dgm.impute(LinearGaussian(), X, HOLES, draws=0)
    with pytest.raises(TaskUnavailable, match="cannot condition on part of an example exactly"):
        dgm.impute(LinearGaussian(), X, HOLES, method="exact")

    def mixed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Dirichlet(torch.ones(len(x), 3) * z.exp()[:, None]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(TaskUnavailable, match=r"entries of site 'x' of 'mixed' \(Dirichlet\) depend on each other"):
        dgm.impute(mixed, torch.full((2, 3), 1 / 3), torch.eye(2, 3) > 0, guide=guide)


def test_a_mixture_made_without_missing_says_what_to_do() -> None:
    x = X.masked_fill(HOLES, torch.nan)
    for method in (None, "exact", "gibbs"):
        with pytest.raises(TaskUnavailable, match="make it with missing=True"):
            dgm.impute(dgm.models.MixtureOfGaussians(4, 2), x, method=method, seed=0)
    assert dgm.impute(dgm.models.MixtureOfGaussians(4, 2, missing=True), x, draws=2, seed=0).values.isfinite().all()
