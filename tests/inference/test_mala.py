"""MALA: one gradient a proposal, the acceptance that is asked for, moments, resumption."""

from pathlib import Path

import pytest
import torch

import ppl_dgm as dgm
from oracles.densities import gaussian
from oracles.posteriors import eight_schools, schools_data
from oracles.resumption import assert_resumes
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.mala import MALA, Langevin
from ppl_dgm.inference.targets import ill_conditioned_gaussian, squared_bias


def test_a_proposal_is_the_langevin_step_with_the_acceptance_of_metropolis_and_hastings() -> None:
    """The proposal's density both ways, against the leapfrog's energies."""
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double()
    density, h = gaussian(covariance), 1.2
    root = torch.tensor([[0.8, 0.0], [0.3, 1.1]]).double()
    z = torch.randn(500, 2).double()
    start = Point.at(density, z)
    state = torch.get_rng_state()
    drawn = Langevin(1).step(density, Metric(root), start, h, 0, False)
    torch.set_rng_state(state)
    noise, uniform = torch.randn_like(z), torch.rand(500, dtype=torch.float64)
    shape = root @ root.T
    mean = lambda x: x + h**2 / 2 * density.gradient(x) @ shape  # noqa: E731
    proposed = mean(z) + h * noise @ root.T

    def log_q(to: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        return torch.distributions.MultivariateNormal(centre, h**2 * shape).log_prob(to)

    end = density.value_and_grad(proposed)[0]
    ratio = end - start.value + log_q(z, mean(proposed)) - log_q(proposed, mean(z))
    accept = ratio.exp().clamp(max=1.0)
    torch.testing.assert_close(drawn.acceptance, accept)
    expected = torch.where((uniform < accept)[:, None], proposed, z)
    torch.testing.assert_close(drawn.point.z, expected)
    assert 0.1 < float((uniform < accept).double().mean()) < 0.9


def test_it_costs_a_gradient_for_each_proposal_and_accepts_as_often_as_asked() -> None:
    target = ill_conditioned_gaussian(dim=50)
    post = dgm.infer(target.program, *target.args, method=MALA(chains=32, warmup=150, draws=150), seed=0)
    assert post.cost.gradients - post.cost.warmup_gradients == 32 * 150 * 10
    assert abs(float(post.stats["acceptance_rate"].mean()) - 0.574) < 0.05
    bias = squared_bias(post, target)
    assert bias["mean"] < 0.01 and bias["square"] < 0.01
    assert post.draws["x"].dtype == torch.float32


@pytest.mark.parametrize("stop", [7, 33])
def test_a_run_is_resumed(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = MALA(chains=4, warmup=30, draws=10, steps=3)
    assert_resumes(method, stop, tmp_path / "run", monkeypatch, eight_schools, *schools_data())


def test_steps_are_checked() -> None:
    with pytest.raises(dgm.ProgramError, match="MALA: steps must be a whole number"):
        MALA(steps=0)
