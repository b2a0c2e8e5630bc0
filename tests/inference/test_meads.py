"""MEADS: its estimates of eigenvalues, folds that tune each other, moments, resumption, options."""

from pathlib import Path

import pytest
import torch

import ppl_dgm as dgm
from oracles.densities import gaussian
from oracles.posteriors import eight_schools, schools_data
from oracles.resumption import assert_resumes
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.meads import MEADS, PersistentMomentum, largest_eigenvalue, tuned
from ppl_dgm.inference.targets import ill_conditioned_gaussian, squared_bias


def test_the_largest_eigenvalue_of_rows() -> None:
    values = torch.tensor([9.0, 1.0, 0.5]).double()
    rows = torch.linalg.qr(torch.randn(40, 3).double()).Q * (40 * values).sqrt()  # second moment exactly diag(values)
    expected = float(values.square().sum() / values.sum())
    assert float(largest_eigenvalue(rows)) == pytest.approx(expected)
    wide = rows.T  # the second moment has the same eigenvalues but for the number of rows
    assert float(largest_eigenvalue(wide)) == pytest.approx(expected * 40 / 3)
    assert torch.equal(
        largest_eigenvalue(torch.stack([rows, 2 * rows])), torch.stack([largest_eigenvalue(rows) * f for f in (1, 4)])
    )


def test_the_parameters_of_a_gaussian() -> None:
    """Unit eigenvalues in units of the scales: half of one for the step, one for the damping."""
    scales = torch.tensor([0.01, 1.0, 100.0]).double()
    density = gaussian(scales.square().diag())
    z = torch.randn(4000, 3).double() * scales + 5
    found = tuned(z, density.gradient(z) * 1.0 + 5 / scales.square(), 10**6)
    torch.testing.assert_close(found.scale, scales, rtol=0.05, atol=0)
    assert abs(float(found.step) - 0.5) < 0.03 and abs(float(found.damping) - 1) < 0.05
    assert float(tuned(z, density.gradient(z), 1).damping) >= 1  # early: 1 / (t step)


def test_a_fold_moves_with_the_parameters_of_the_one_before_and_one_rests() -> None:
    density = gaussian(torch.eye(2).double())
    kernel = PersistentMomentum(folds=4, steps=1, warmup=100)
    point = Point.at(density, torch.randn(32, 2).double())
    for t in range(9):
        kernel.momentum = None if t == 0 else kernel.momentum
        before, old = point, kernel.fold
        drawn = kernel.step(density, Metric.identity(density), point, 1.0, t, True)
        point = drawn.point
        fold = kernel.fold
        assert fold.bincount().tolist() == [8, 8, 8, 8]
        if t % 4:
            assert torch.equal(fold, old)
        resting = fold == t % 4
        assert torch.equal(point.z[resting], before.z[resting])
        assert not bool((point.z[~resting] == before.z[~resting]).all())
        for k in range(4):
            theirs = tuned(before.z[fold == (k - 1) % 4], before.gradient[fold == (k - 1) % 4], t + 1)
            torch.testing.assert_close(drawn.stats["step_size"][fold == k], theirs.step.expand(8))


def test_parameters_are_fixed_after_warm_up_and_all_chains_move() -> None:
    density = gaussian(torch.eye(3).double())
    run = MEADS(chains=16, warmup=30, draws=12, steps=2).sample(density)
    sizes = torch.stack([row["step_size"] for row in run.rows])
    assert float(sizes.std()) < 1e-12 and 0.2 < float(sizes[0, 0]) < 0.7
    moved = torch.stack([a != b for a, b in zip(run.draws[:-1], run.draws[1:], strict=True)]).any(2)
    assert float(moved.double().mean()) > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_moments_of_an_ill_conditioned_gaussian(dtype: torch.dtype) -> None:
    target = ill_conditioned_gaussian(dim=50)
    method = MEADS(chains=64, warmup=120, draws=100, dtype=dtype)
    post = dgm.infer(target.program, *target.args, method=method, seed=0)
    bias = squared_bias(post, target)
    assert bias["mean"] < 0.01 and bias["square"] < 0.01
    assert post.draws["x"].dtype == dtype and not bool(post.stats["diverging"].any())
    assert post.cost.gradients - post.cost.warmup_gradients == 64 * 100 * 10


@pytest.mark.parametrize("stop", [2, 25, 33])
def test_a_run_is_resumed(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = MEADS(chains=16, warmup=30, draws=10, steps=2)
    assert_resumes(method, stop, tmp_path / "run", monkeypatch, eight_schools, *schools_data())


def test_eight_schools() -> None:
    post = dgm.infer(eight_schools, *schools_data(), method=MEADS(chains=64, warmup=90, draws=60), seed=0)
    mu = post.draws["mu"]
    assert abs(float(mu.mean()) - 4.41) < 0.4 and abs(float(mu.std()) - 3.3) < 0.4


@pytest.mark.parametrize("options", [{"chains": 30}, {"chains": 12}, {"folds": 2}, {"steps": 0}])
def test_a_wrong_option_is_said(options: dict[str, int]) -> None:
    with pytest.raises(dgm.ProgramError, match=r"MEADS: (chains|folds|steps) must be"):
        MEADS(**options)
