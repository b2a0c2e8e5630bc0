"""Learning stays finite: many seeds, a large rate, columns that never change, parts whose densities have tails and poles."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from ppl_dgm.models import VAE, TopDownVAE

pytestmark = pytest.mark.slow

ROWS, SCORED = 128, 8
SIZES: dict[str, Any] = {"observed": 64, "hidden": 32}


def levels(x: Tensor) -> Tensor:
    """The grey levels as they are."""
    return x


def bits(x: Tensor) -> Tensor:
    """Whether a level is above the middle."""
    return (x > 8).long()


def heights(x: Tensor) -> Tensor:
    """Numbers in units of hundreds, with columns of nothing but zeros: neither centred nor scaled."""
    return 100.0 * x


CONFIGURATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[], Any]]] = {
    "categorical, vamp, inverse autoregressive": (
        levels,
        lambda: VAE(
            **SIZES,
            values=17,
            latent=8,
            prior="vamp",
            posterior="inverse-autoregressive",
            posterior_options={"steps": 2},
        ),
    ),
    "logistic mixture, flow, orthogonal Sylvester": (
        levels,
        lambda: VAE(
            **SIZES,
            values=17,
            latent=8,
            likelihood="logistic-mixture",
            prior="flow",
            posterior="sylvester-orthogonal",
            posterior_options={"steps": 2},
        ),
    ),
    "gaussian from the decoder, resampled, planar": (
        heights,
        lambda: VAE(
            **SIZES,
            latent=4,
            likelihood="gaussian",
            prior="resampled",
            posterior="planar",
            likelihood_options={"scale": "decoder"},
            prior_options={"points": 1024},
        ),
    ),
    "discretised logistic, sphere, von Mises-Fisher": (
        levels,
        lambda: VAE(**SIZES, values=17, latent=5, likelihood="discretised-logistic", posterior="von-mises-fisher"),
    ),
    "bernoulli, three levels, mixture of Gaussians above": (
        bits,
        lambda: TopDownVAE(**SIZES, latents=(8, 4, 2), likelihood="bernoulli", prior="mixture-of-gaussians", skip=True),
    ),
}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_learning_stays_finite(name: str, seed: int) -> None:
    units, made = CONFIGURATIONS[name]
    digits = dgm.data.digits()
    x, held_out = units(digits.train[:ROWS]), units(digits.test[:SCORED])
    torch.manual_seed(seed)
    program = made()
    # five times the usual rate, and no warm-up that would let the divergences in slowly
    method = dgm.SVI(elbo="mean_field", epochs=6, batch_size=32, lr=1e-2)
    fit = dgm.learn(program, x, method=method, seed=seed)  # raises a NumericalError at the first NaN
    assert fit.history["objective"].map(math.isfinite).all()
    assert all(parameter.isfinite().all() for parameter in program.parameters())
    score = dgm.score(program, held_out, method=dgm.ImportanceWeighted(draws=64), seed=0)
    assert score.value.isfinite().all()
    assert dgm.sample(program, 32, seed=seed)["x"].isfinite().all()
