"""ParallelTempering: swaps, ladders, far modes, labels that switch, the evidence, resumption and mistakes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.densities import gaussian
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.annealed.annealing import interpolated
from ppl_dgm.inference.annealed.tempering import Parts, PowerPath
from ppl_dgm.inference.chains import sampling
from ppl_dgm.inference.chains.hamiltonian import Metric
from ppl_dgm.inference.chains.replica_exchange import LadderMetric, ReplicaExchange, stacked_scales, swap_probabilities
from ppl_dgm.inference.parallel_tempering import ParallelTempering, stepping_stones
from ppl_dgm.inference.targets import far_modes


def regression() -> tuple[Any, tuple[Tensor, Tensor], Tensor, Tensor, float]:
    """Program, data, posterior mean and covariance, log evidence of a conjugate regression with correlated columns."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator).double()
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    y = x @ torch.tensor([1.0, -1.0, 2.0]).double() + 0.5 * torch.randn(40, generator=generator).double()

    def program(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(x.new_zeros(3), 2.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ slopes, 0.5).to_event(1), obs=y)

    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(3).double() / 4)
    marginal = torch.distributions.MultivariateNormal(y.new_zeros(40), 4 * x @ x.T + 0.25 * torch.eye(40).double())
    return program, (x, y), covariance @ (x.T @ y) / 0.25, covariance, float(marginal.log_prob(y))


# -- the pieces ------------------------------------------------------------------------------------------------


def test_swap_probabilities_are_the_ratio_of_joint_densities() -> None:
    betas = torch.tensor([0.0, 0.3, 1.0]).double()
    rest = torch.randn(3, 5).double() * 3
    found = swap_probabilities(betas, rest)
    for k in range(2):
        before = betas[k] * rest[k] + betas[k + 1] * rest[k + 1]
        after = betas[k] * rest[k + 1] + betas[k + 1] * rest[k]
        torch.testing.assert_close(found[k], (after - before).exp().clamp(max=1.0))


def test_replicas_without_density_never_take_a_place_with_one() -> None:
    rest = torch.tensor([[-math.inf, 0.0], [0.0, -math.inf], [-math.inf, -math.inf]])
    found = swap_probabilities(torch.tensor([0.0, 0.5, 1.0]).double(), rest)
    assert found[0].tolist() == [0.0, 1.0] and found[1].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])
def test_a_ladder_of_metrics_is_each_of_them_on_its_rows(dense: bool) -> None:
    scales = [torch.randn(2, 2).double() if dense or k == 1 else torch.rand(2).double() for k in range(3)]
    metrics, rows = [Metric(scale) for scale in scales], torch.randn(12, 2).double()
    ladder = LadderMetric(stacked_scales(metrics))
    for k, metric in enumerate(metrics):
        block = slice(4 * k, 4 * k + 4)
        torch.testing.assert_close(ladder.push(rows)[block], metric.push(rows[block]))
        torch.testing.assert_close(ladder.pull(rows)[block], metric.pull(rows[block]))


def test_swaps_move_whole_replicas_and_even_and_odd_pairs_take_turns() -> None:
    """With equal densities every swap is accepted, so that after as many steps as temperatures all are reversed."""
    kernel = ReplicaExchange(5, 10, 0.8, 8, "power", 10.0)
    z = torch.arange(10.0).double()[:, None]  # row = 2 temperature + chain
    kernel.betas = torch.linspace(0.1, 1, 5).double()
    kernel.parts = Parts(z, z[:, 0] * 0, z[:, 0] * 0, z, -z)
    kernel.visited, kernel.trips = torch.zeros(5, 2).long(), torch.zeros(2).long()
    kernel._swap(0)
    assert kernel.z[:, 0].tolist() == [2, 3, 0, 1, 6, 7, 4, 5, 8, 9]
    for t in range(1, 5):
        kernel._swap(t)
    assert kernel.z[:, 0].tolist() == [8, 9, 6, 7, 4, 5, 2, 3, 0, 1]
    assert torch.equal(kernel.rest_gradient, -kernel.z)
    for t in range(5, 40):
        kernel._swap(t)
    # each of five replicas comes down once in ten steps; its first time, but for the one that began there, is no trip
    assert kernel.trips.tolist() == [5 * 4 - 4] * 2


def test_equal_parts_of_the_way() -> None:
    way, knots = torch.tensor([0.0, 1.0, 4.0]).double(), torch.tensor([0.0, 0.5, 1.0]).double()
    found = interpolated(way, knots, 4)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.5, 0.5 + 0.5 / 3, 0.5 + 1 / 3, 1.0]).double())


def test_stepping_stones_from_exact_draws() -> None:
    """Reference N(0, 1), rest -2 z^2: at beta a normal of precision 1 + 4 beta, and Z = (1 + 4 beta)^(-1/2)."""
    torch.manual_seed(0)
    betas = torch.tensor([0.0, 0.1, 0.3, 1.0]).double()
    z = torch.randn(4, 5000, 4).double() * (1 + 4 * betas).rsqrt()
    ratios, total, stderr = stepping_stones(betas, -2 * z.square())
    assert 0 < float(stderr) < 0.02
    assert abs(float(total) + 0.5 * math.log(5)) < 4 * float(stderr)
    torch.testing.assert_close(ratios, -0.5 * (1 + 4 * betas).log().diff(), rtol=0.05, atol=0.0)
    assert math.isinf(float(stepping_stones(betas, -2 * z[:1, :30].square())[2]))


# -- posteriors ------------------------------------------------------------------------------------------------


def test_moments_and_evidence_of_a_conjugate_regression() -> None:
    program, data, mean, covariance, evidence = regression()
    post = dgm.infer(program, *data, method=ParallelTempering(warmup=100, draws=300, temperatures=8), seed=0)
    draws = post.draws["slopes"]
    assert draws.shape == (4, 300, 3)
    table = post.summary(round_to="none")
    error = (draws.mean((0, 1)) - mean).abs()
    assert bool((error < 4.5 * torch.tensor(table["mcse_mean"].to_numpy(dtype=float))).all())
    assert torch.allclose(draws.flatten(0, 1).std(0), covariance.diagonal().sqrt(), rtol=0.2)
    assert post.log_evidence is not None and post.log_evidence.kind == "estimate"
    stderr = float(post.log_evidence.stderr)  # type: ignore[arg-type]
    assert stderr < 0.5 and abs(float(post.log_evidence.value) - evidence) < 4.5 * stderr
    assert post.stats["round_trips"][:, -1].min() > 0 and bool((post.stats["lowest_swap_rate"] > 0.1).all())
    assert len(post.stages) == 8 and post.stages["beta"].is_monotonic_increasing  # type: ignore[attr-defined]
    spread = post.stages["swap_rate"][:-1]  # type: ignore[attr-defined]
    assert spread.max() - spread.min() < 0.25


def test_far_modes_have_their_weights() -> None:
    target = far_modes()
    method = ParallelTempering(warmup=100, draws=300, temperatures=8)
    post = dgm.infer(target.program, *target.args, method=method, seed=0)
    left = (post.draws["x"][..., 0] < 0).double()
    # by batches of 50 draws: independent to within their noise, as replicas come down every few steps
    stderr = float(left.reshape(4, 6, 50).mean(2).std() / math.sqrt(24))
    assert stderr < 0.06 and abs(float(left.mean()) - 0.3) < 4.5 * stderr
    assert bool((left.mean(1) > 0.05).all() and (left.mean(1) < 0.7).all())


@pytest.mark.slow
def test_without_a_prior_the_density_itself_is_tempered() -> None:
    def modes() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (2,)))
        squares = torch.stack([(x + 8).square().sum(-1), (x - 8).square().sum(-1)], -1)
        pyro.factor("density", torch.logsumexp(x.new_tensor([0.3, 0.7]).log() - squares / 2, -1))

    post = dgm.infer(modes, method=ParallelTempering(warmup=200, draws=500, temperatures=9, hottest=300.0), seed=0)
    left = (post.draws["x"][..., 0] < 0).double()
    stderr = float(left.reshape(4, 10, 50).mean(2).std() / math.sqrt(40))
    assert stderr < 0.06 and abs(float(left.mean()) - 0.3) < 4.5 * stderr
    assert post.log_evidence is None and "log_ratio" not in post.stages  # type: ignore[attr-defined]


def test_a_flat_prior_is_no_reference() -> None:
    def program(y: Tensor) -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    method = ParallelTempering(chains=2, warmup=20, draws=40, temperatures=3)
    assert dgm.infer(program, torch.tensor(1.0), method=method, seed=0).log_evidence is None
    with pytest.raises(TaskUnavailable, match="'x' has a flat prior"):
        dgm.infer(program, torch.tensor(1.0), method=replace(method, reference="prior"), seed=0)


@pytest.mark.slow
def test_labels_of_a_mixture_switch() -> None:
    """Two components with exchangeable means: by symmetry each order has half of the posterior."""
    generator = torch.Generator().manual_seed(1)
    y = torch.cat([torch.randn(15, generator=generator) - 2, torch.randn(15, generator=generator) + 2])

    def mixture(y: Tensor) -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(means[k], 1.0), obs=y)

    post = dgm.infer(mixture, y, method=ParallelTempering(warmup=150, draws=500, temperatures=7), seed=0)
    means = post.draws["means"]
    first = (means[..., 0] < means[..., 1]).double()
    stderr = float(first.reshape(4, 10, 50).mean(2).std() / math.sqrt(40))
    assert stderr < 0.06 and abs(float(first.mean()) - 0.5) < 4.5 * stderr
    assert torch.allclose(means.sort(-1).values.mean((0, 1)), torch.tensor([-2.0, 2.0]), atol=0.6)


# -- runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", ["auto", "power"])
def test_a_resumed_run_gives_the_same_draws(reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, data, *_ = regression()
    options: dict[str, Any] = {"chains": 2, "warmup": 20, "draws": 20, "temperatures": 4, "reference": reference}
    whole = dgm.infer(program, *data, method=ParallelTempering(**options), seed=0)
    monkeypatch.setattr(sampling, "CHECKPOINT_SECONDS", 0.0)
    resumable = ParallelTempering(**options, checkpoint=tmp_path / "run.safetensors")
    taken, step = [0], ReplicaExchange.step

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == 28:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(ReplicaExchange, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dgm.infer(program, *data, method=resumable, seed=0)
    resumed = dgm.infer(program, *data, method=resumable, seed=99)
    assert torch.equal(whole.draws["slopes"], resumed.draws["slopes"])
    for name in whole.stats:
        assert torch.equal(whole.stats[name], resumed.stats[name]), name
    assert whole.cost.gradients == resumed.cost.gradients


def test_any_density_on_r_d_can_be_tempered() -> None:
    run = ParallelTempering(chains=8, warmup=100, draws=150, temperatures=3, reference="power", hottest=5.0).sample(
        gaussian(torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double())
    )
    z = torch.cat(run.draws)
    assert torch.allclose(torch.cov(z.T), torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double(), atol=0.25)
    assert isinstance(run.kernel.path, PowerPath)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperatures": 1}, "temperatures must be a whole number, at least 2"),
        ({"warmup": 0}, "warmup must be at least 10"),
        ({"hottest": 1.0}, "hottest must be a number above 1"),
        ({"reference": "flat"}, "reference must be 'auto'"),
        ({"target_accept": 2.0}, "target_accept must be between 0 and 1"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProgramError, match=message):
        ParallelTempering(**options)
