"""Eight posteriors of posteriordb by NUTS and ChEES, all with the defaults: means, mean squares, R-hat, divergences."""

import math
import warnings

import arviz
import pytest
import torch

import ppl_dgm as dgm
from oracles.posteriors import POSTERIORDB, posteriordb, posteriordb_folder
from ppl_dgm.inference.chees import ChEES
from ppl_dgm.inference.nuts import NUTS
from ppl_dgm.inference.sampling import HamiltonianSampler

FAST = {("earnings-logearn_interaction_z", "chees"), ("eight_schools-eight_schools_noncentered", "chees")}
METHODS = {"nuts": NUTS(), "chees": ChEES()}
# eight schools: log tau has a right tail in which the curvature grows with tau^2, so that a few trajectories
# in a thousand that climb it end there
DIVERGENCES = {"eight_schools-eight_schools_noncentered": 0.005}

CASES = [
    pytest.param(
        name,
        which,
        id=f"{name.split('-')[0]}-{which}",
        marks=() if (name, which) in FAST else pytest.mark.slow,
    )
    for name in POSTERIORDB
    for which in METHODS
]


@pytest.mark.skipif(posteriordb_folder() is None, reason="PPL_DGM_DATA names no folder with posteriordb/")
@pytest.mark.parametrize("name, which", CASES)
def test_the_reference_is_met(name: str, which: str) -> None:
    method: HamiltonianSampler = METHODS[which]
    reference = posteriordb(name, dtype=torch.float64)
    post = dgm.infer(reference.program, *reference.args, method=method, seed=0)
    scalars = reference.scalars({**post.draws, **post.deterministic})
    wrong = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for power, moments in ((1, reference.mean), (2, reference.mean_squared)):
            for scalar, (expected, stderr) in moments.items():
                values = scalars[scalar].double().numpy() ** power
                errors = (values.mean() - expected) / math.hypot(float(arviz.mcse(values)), stderr)
                r_hat = float(arviz.rhat(values))
                if not (abs(errors) < 4 and r_hat <= 1.01):
                    wrong.append(f"{scalar}^{power}: {errors:.1f} standard errors, R-hat {r_hat:.4f}")
    assert wrong == []
    assert float(post.stats["diverging"].double().mean()) <= DIVERGENCES.get(name, 0.0)
