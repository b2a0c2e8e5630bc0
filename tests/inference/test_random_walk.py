"""RandomWalk: no gradients, densities with jumps, the covariance that it learns, moments, resumption."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_dgm as dgm
from oracles.densities import gaussian
from oracles.posteriors import eight_schools, schools_data
from oracles.resumption import assert_resumes
from ppl_dgm.inference.random_walk import RandomWalk, pooled_covariance
from ppl_dgm.inference.targets import ill_conditioned_gaussian, squared_bias


def steps_of_a_stair(width: float) -> None:
    """p(x) in proportion to exp(-floor(x / width)) for x > 0: a geometric distribution of stairs."""
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), ()))
    pyro.factor("stairs", -(x / width).floor())


def test_a_density_with_jumps_has_the_right_moments() -> None:
    """floor(x / w) is geometric with p = 1 - 1/e, and x is uniform within a stair."""
    post = dgm.infer(steps_of_a_stair, 0.5, method=RandomWalk(chains=64, warmup=100, draws=200, steps=10), seed=0)
    stairs = (post.draws["x"] / 0.5).floor()
    p = 1 - math.exp(-1)
    assert abs(float(stairs.mean()) - (1 - p) / p) < 0.05
    assert abs(float((stairs == 0).float().mean()) - p) < 0.03
    within = post.draws["x"] / 0.5 - stairs
    assert abs(float(within.mean()) - 0.5) < 0.02
    assert post.cost.gradients == 0 and post.cost.evaluations == 64 * (2 + 300 * 10)


def test_the_moments_of_a_gaussian() -> None:
    target = ill_conditioned_gaussian(dim=10)
    post = dgm.infer(target.program, *target.args, method=RandomWalk(chains=64, warmup=200, draws=200), seed=0)
    bias = squared_bias(post, target)
    assert bias["mean"] < 0.01 and bias["square"] < 0.01
    assert abs(float(post.stats["acceptance_rate"].mean()) - 0.234) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_defaults_reach_a_small_bias_on_the_ill_conditioned_gaussian(seed: int) -> None:
    """With a margin: 0.0034 and 0.0022 after 800,032 evaluations at the most."""
    target = ill_conditioned_gaussian()
    bias = squared_bias(dgm.infer(target.program, *target.args, method=RandomWalk(), seed=seed), target)
    assert bias["mean"] < 0.007 and bias["square"] < 0.007


def test_the_proposals_learn_the_correlation() -> None:
    covariance = torch.tensor([[1.0, 0.99], [0.99, 1.0]]).double()
    run = RandomWalk(chains=32, warmup=150, draws=1, steps=10).sample(gaussian(covariance))
    learned = run.warmup.metric.scale @ run.warmup.metric.scale.T
    assert float(learned[0, 1] / learned.diagonal().prod().sqrt()) > 0.95
    assert abs(run.warmup.step - 2.38 / math.sqrt(2)) < 0.8


def test_the_pooled_covariance() -> None:
    z = torch.randn(5000, 3).double() @ torch.tensor([[1.0, 0.5, 0], [0, 2, 0], [0, 0, 3]]).double()
    truth = torch.cov(z.T, correction=0)
    root = pooled_covariance(z, True, 1e9).scale
    torch.testing.assert_close(root @ root.T, truth)
    half = pooled_covariance(z, True, 3.0).scale  # as many draws as coordinates: half way to the diagonal
    torch.testing.assert_close((half @ half.T)[0, 1], truth[0, 1] / 2)
    torch.testing.assert_close(pooled_covariance(z, False, 1.0).scale, truth.diagonal().sqrt())
    z[7] = math.nan
    assert bool(pooled_covariance(z, True, 100.0).scale.isfinite().all())
    assert torch.equal(pooled_covariance(z[:1], True, 1.0).scale, torch.ones(3).double())


@pytest.mark.parametrize("stop", [7, 33])
def test_a_run_is_resumed(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = RandomWalk(chains=4, warmup=30, draws=10, steps=3)
    assert_resumes(method, stop, tmp_path / "run", monkeypatch, eight_schools, *schools_data())


def test_a_wrong_option_is_said() -> None:
    with pytest.raises(dgm.ProgramError, match="RandomWalk: metric must be one of 'auto', 'dense', 'diagonal'"):
        RandomWalk(metric="low-rank")
