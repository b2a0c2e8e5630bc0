"""Every kernel leaves the density invariant: exact draws are still exact draws after steps of any size."""

import math
from collections.abc import Callable

import pytest
import torch

from oracles.densities import gaussian
from oracles.invariance import bimodal, bimodal_draws, bimodal_shares, steps_from, z_scores
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.chains.sampling import Kernel
from ppl_dgm.inference.hmc import JitteredTrajectory
from ppl_dgm.inference.mala import Langevin
from ppl_dgm.inference.meads import PersistentMomentum
from ppl_dgm.inference.nuts import Trees
from ppl_dgm.inference.random_walk import Proposals

CHAINS = 40_000


def persistent(step: float, damping: float = 0.3, scales: int = 1) -> PersistentMomentum:
    """A kernel of MEADS whose parameters are given."""
    kernel = PersistentMomentum(folds=4, steps=1, warmup=0)
    kernel.scale = torch.zeros(scales).double()
    kernel.step_size, kernel.damping = torch.tensor(step).double().log(), torch.tensor(damping).double().log()
    return kernel


KERNELS: dict[str, tuple[Callable[[], Kernel], float]] = {
    "MALA": (lambda: Langevin(1), 1.1),
    "random walk": (lambda: Proposals(1), 2.5),
    "MEADS": (lambda: persistent(0.8), 1.0),
    "HMC": (lambda: JitteredTrajectory(2.0, 0.5, 100), 0.6),
    "NUTS": (lambda: Trees(4), 0.7),
}


@pytest.mark.parametrize("name", KERNELS)
def test_exact_draws_of_two_modes_stay_exact(name: str) -> None:
    """Steps so large that a part is refused; shares of 16 cells against quadrature."""
    make, step = KERNELS[name]
    edges, shares = bimodal_shares()
    assert float(z_scores(bimodal_draws(CHAINS)[:, 0], edges, shares).abs().max()) < 4.5
    point = steps_from(make(), bimodal(), bimodal_draws(CHAINS), step, 6)
    assert float(z_scores(point.z[:, 0], edges, shares).abs().max()) < 4.5


@pytest.mark.parametrize("name", KERNELS)
def test_steps_of_that_size_are_refused_now_and_then(name: str) -> None:
    """Otherwise the test above would not see a wrong acceptance."""
    make, step = KERNELS[name]
    density = bimodal()
    point = Point.at(density, bimodal_draws(4000))
    drawn = make().step(density, Metric.identity(density), point, step, 0, False)
    assert 0.2 < float(drawn.acceptance.mean()) < 0.95
    if name != "NUTS":  # it always has somewhere to go
        assert 0.02 < float((drawn.point.z == point.z).double().mean()) < 0.8


def test_persistent_momentum_and_slice_keep_their_own_distributions() -> None:
    """After many transitions, momenta are standard normal, slice variables uniform, and neither depends on positions."""
    density, kernel = gaussian(torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double()), persistent(0.9, scales=2)
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.6], [0.6, 1.0]]).double())
    point = steps_from(kernel, density, torch.randn(CHAINS, 2).double() @ root.T, 1.0, 12)
    error = 1 / math.sqrt(CHAINS)
    assert float((kernel.momentum.square().mean(0) - 1).abs().max()) < 4.5 * error * math.sqrt(2)
    assert abs(float(kernel.slice.mean())) < 4.5 * error / math.sqrt(3)
    assert abs(float(kernel.slice.square().mean()) - 1 / 3) < 4.5 * error * math.sqrt(4 / 45)
    assert float((kernel.momentum * point.z).mean(0).abs().max()) < 4.5 * error
    assert float((kernel.slice.abs() * point.value).mean() - point.value.mean() / 2) < 4.5 * error
    assert float((point.z.square().mean(0) - 1).abs().max()) < 4.5 * error * math.sqrt(2)
