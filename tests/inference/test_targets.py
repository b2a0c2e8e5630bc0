"""Targets: exact moments where there are some; who fails on the hard ones, and that diagnose says so."""

import pytest
import torch

import ppl_dgm as dgm
from ppl_dgm.inference.chees import ChEES
from ppl_dgm.inference.hmc import HMC
from ppl_dgm.inference.nuts import NUTS
from ppl_dgm.inference.sampling import HamiltonianSampler
from ppl_dgm.inference.targets import (
    TARGETS,
    cauchy,
    far_modes,
    funnel,
    ill_conditioned_gaussian,
    squared_bias,
)

METHODS = {
    "hmc": HMC(chains=32, warmup=150, draws=150),
    "nuts": NUTS(chains=16, warmup=150, draws=400),
    "chees": ChEES(chains=32, warmup=150, draws=150),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_ill_conditioned_gaussian_is_met(method: HamiltonianSampler) -> None:
    target = ill_conditioned_gaussian(dim=50)
    post = dgm.infer(target.program, *target.args, method=method, seed=0)
    bias = squared_bias(post, target)
    assert bias["mean"] < 0.01 and bias["square"] < 0.01


SHORT = {
    "nuts": NUTS(chains=4, warmup=60, draws=100, max_depth=6),
    "chees": ChEES(chains=16, warmup=80, draws=100, max_steps=32),
}


@pytest.mark.parametrize("method", SHORT.values(), ids=SHORT)
@pytest.mark.parametrize("make", [funnel, far_modes, cauchy], ids=["funnel", "far modes", "cauchy"])
def test_a_target_too_hard_is_said_to_be(make: object, method: HamiltonianSampler) -> None:
    target = make()  # type: ignore[operator]
    post = dgm.infer(target.program, *target.args, method=method, seed=0)
    assert post.diagnose() != []


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
def test_every_target_is_a_density_of_its_dimension(make: object) -> None:
    target = make()  # type: ignore[operator]
    density = dgm.LogDensity(target.program, *target.args)
    z = density.initial(3, seed=0)
    value, gradient = density.value_and_grad(z)
    assert density.dim == target.dim and density.path == "recorded" and density.vectorize == "vmap"
    assert bool(value.isfinite().all()) and bool(gradient.isfinite().all())


def test_moments_agree_with_draws_from_the_program() -> None:
    for target in (ill_conditioned_gaussian(dim=5), funnel()):
        drawn = dgm.sample(target.program, 20_000, seed=0)
        for site, square in target.square.items():
            errors = (drawn[site].square().mean(0) - square) / (target.square_variance[site] / 20_000).sqrt()
            assert float(errors.abs().max()) < 4


def test_far_modes_have_the_moments_of_the_mixture() -> None:
    target = far_modes(dim=1, distance=6.0)
    x = torch.linspace(-12, 12, 20_001).double()[:, None]
    density = dgm.LogDensity(target.program, dtype=torch.float64)
    weight = density.log_prob(x).exp() * 24 / 20_000
    assert abs(float(weight.sum()) - 1) < 1e-6
    assert float((weight * x[:, 0]).sum()) == pytest.approx(float(target.mean["x"]), abs=1e-6)
    assert float((weight * x[:, 0] ** 2).sum()) == pytest.approx(float(target.square["x"]), abs=1e-5)
    assert float((weight * x[:, 0] ** 4).sum() - target.square["x"] ** 2) == pytest.approx(
        float(target.square_variance["x"]), rel=1e-5
    )
