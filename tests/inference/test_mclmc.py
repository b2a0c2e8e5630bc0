"""MCLMC: the step size by the energy's variance, the length by autocorrelations, its small bias, lost chains."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ppl_dgm as dgm
from oracles.densities import Handmade, gaussian
from oracles.posteriors import eight_schools, schools_data
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.mclmc import MCLMC, EnergyVariance, MicrocanonicalLangevin, autocorrelation_times
from ppl_dgm.inference.targets import ill_conditioned_gaussian, squared_bias


def test_the_step_size_meets_the_target_of_a_power_law() -> None:
    """Where the squared change is (step / 2)^6, whatever its noise, the target is met at 2 target^(1/6)."""
    rule = EnergyVariance(0.01, 5e-4)
    noise = torch.rand(400, generator=torch.Generator().manual_seed(0)) * 2
    for factor in noise.tolist():
        rule.update(factor * (rule.step / 2) ** 6)
    assert rule.average == pytest.approx(2 * 5e-4 ** (1 / 6), rel=0.05)


def test_autocorrelation_times_of_autoregressions() -> None:
    """tau = (1 + r) / (1 - r)."""
    rates = torch.tensor([0.0, 0.5, 0.9]).double()
    x = [torch.randn(50, 3).double()]
    for _ in range(1999):
        x.append(rates * x[-1] + (1 - rates**2).sqrt() * torch.randn(50, 3).double())
    torch.testing.assert_close(autocorrelation_times(torch.stack(x)), (1 + rates) / (1 - rates), rtol=0.1, atol=0)


def test_defaults_reach_a_small_bias_on_the_ill_conditioned_gaussian() -> None:
    target = ill_conditioned_gaussian(dim=30, condition=1e4)
    post = dgm.infer(target.program, *target.args, method=MCLMC(chains=32, draws=300), seed=0)
    assert max(squared_bias(post, target).values()) < 0.01 and post.kind == "approximate"
    assert 3e-4 < float(post.stats["energy_variance"].mean()) < 8e-4
    assert 0.4 < float(post.stats["length"][0, 0]) < 2.0 and bool((post.stats["acceptance_rate"] == 1).all())


def test_the_bias_falls_with_the_energy_variance_and_stays_with_more_draws() -> None:
    density = gaussian(torch.eye(20).double())
    errors = {}
    for target in (1e-1, 1e-4):
        run = MCLMC(chains=128, warmup=150, draws=200, energy_variance=target).sample(density)
        errors[target] = float(torch.stack(run.draws).square().mean()) - 1
    # 128 x 200 x 20 draws with an autocorrelation time below 8: the standard error is below 0.006
    assert errors[1e-1] < -0.06 and abs(errors[1e-4]) < 0.03


def test_eight_schools_with_thinning() -> None:
    post = dgm.infer(eight_schools, *schools_data(), method=MCLMC(warmup=150, draws=150, thinning=3), seed=0)
    mu = post.draws["mu"]
    assert abs(float(mu.mean()) - 4.41) < 0.3 and abs(float(mu.std()) - 3.3) < 0.3
    sampling = post.cost.gradients - post.cost.warmup_gradients
    assert sampling == 64 * 150 * 3 * 2  # two gradients a step


def test_a_lost_chain_stays_where_it_was_and_does_not_stop_the_others() -> None:
    density = Handmade(lambda z: -z.square().sum(1) / 2 + torch.where(z[:, 0] > 6, math.nan, 0.0), 3)
    kernel = MicrocanonicalLangevin(1e9, "minimal-norm", 1)
    z = torch.zeros(4, 3).double()
    z[0, 0] = 5.9
    kernel.u = torch.tensor([[1.0, 0, 0]] * 4).double()
    drawn = kernel.step(density, Metric.identity(density), Point.at(density, z), 0.5, 0, True)
    assert torch.equal(drawn.point.z[0], z[0]) and bool((drawn.point.z[1:] != 0).any(1).all())
    assert float(drawn.acceptance.max()) == 1.0 and bool(kernel.u.isfinite().all())


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path: Path) -> None:
    method: dict[str, Any] = {"chains": 4, "warmup": 40}
    whole = dgm.infer(eight_schools, *schools_data(), method=MCLMC(**method, draws=20), seed=0)
    for draws in (7, 20):
        part = MCLMC(**method, draws=draws, checkpoint=tmp_path / "run.safetensors")
        post = dgm.infer(eight_schools, *schools_data(), method=part, seed=0)
    assert torch.equal(post.draws["mu"], whole.draws["mu"])


def test_a_run_interrupted_in_warm_up_goes_on_to_the_same_draws(tmp_path: Path, monkeypatch: Any) -> None:
    from ppl_dgm.inference.chains import sampling

    method = MCLMC(chains=4, warmup=40, draws=5)
    whole = dgm.infer(eight_schools, *schools_data(), method=method, seed=0)
    monkeypatch.setattr(sampling, "CHECKPOINT_SECONDS", 0.0)
    steps, original = [0], MicrocanonicalLangevin.step

    def interrupted(self: Any, *args: Any) -> Any:
        steps[0] += 1
        if steps[0] == 31:
            raise KeyboardInterrupt
        return original(self, *args)

    method = MCLMC(chains=4, warmup=40, draws=5, checkpoint=tmp_path / "run.safetensors")
    monkeypatch.setattr(MicrocanonicalLangevin, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dgm.infer(eight_schools, *schools_data(), method=method, seed=0)
    post = dgm.infer(eight_schools, *schools_data(), method=method, seed=0)
    assert torch.equal(post.draws["mu"], whole.draws["mu"])


@pytest.mark.parametrize(
    "options", [{"energy_variance": 0.0}, {"length": -1.0}, {"thinning": 0}, {"metric": "full"}, {"step_size": 0.0}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_options_are_checked(options: dict) -> None:
    with pytest.raises(dgm.ProgramError, match=f"MCLMC: {next(iter(options))} must be"):
        MCLMC(**options)
