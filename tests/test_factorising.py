"""Densities with matrices that have no factor: NaN for the chain that met one, the truth for the others."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.linalg import cholesky as imported_cholesky

import ppl_dgm as dgm
from ppl_dgm import LogDensity
from ppl_dgm.graphs import NaNForSingular


def _noisy_gp(x: Tensor, y: Tensor) -> None:
    """The diagonal is too small for a covariance where the shift is below about minus a half."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros_like(x[0]), 2.0))
    kernel = torch.exp(-2 * (x[:, None] - x).square()) + (0.5 + shift) * torch.eye(len(x), dtype=x.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(x), kernel), obs=y)


def _low_rank(x: Tensor, y: Tensor) -> None:
    shift = pyro.sample("shift", dist.Normal(torch.zeros_like(x[0]), 2.0))
    pyro.sample(
        "y", dist.LowRankMultivariateNormal(torch.zeros_like(x), x[:, None], (0.5 + shift).expand(len(x))), obs=y
    )


def _by_precision(x: Tensor, y: Tensor) -> None:
    """Explicit solves and inverses, with names that the program imported before."""
    shift = pyro.sample("shift", dist.Normal(torch.zeros_like(x[0]), 2.0))
    kernel = torch.exp(-2 * (x[:, None] - x).square()) + (0.5 + shift) * torch.eye(len(x), dtype=x.dtype)
    root = imported_cholesky(kernel)
    quadratic = y @ torch.linalg.solve(kernel, y) + y @ torch.inverse(kernel) @ y
    pyro.factor("y", -quadratic / 4 - root.diagonal().log().sum())


@pytest.mark.parametrize("vectorize", ["vmap", "loop"])
@pytest.mark.parametrize("program", [_noisy_gp, _low_rank, _by_precision])
@pytest.mark.parametrize("bad_first", [True, False], ids=["recorded at bad points", "recorded at good points"])
def test_a_matrix_without_a_factor_is_nan_for_its_chain_alone(program: Any, vectorize: str, bad_first: bool) -> None:
    x, y = torch.linspace(0, 1, 4).double(), torch.tensor([0.3, -0.2, 0.5, 1.0]).double()
    d = LogDensity(program, x, y, vectorize=vectorize)
    z = torch.tensor([-1.9, 0.1, -1.2, 0.7, 1.0, -0.9, 2.0, 3.0]).double()[:, None]
    good = z[:, 0] > -0.5
    if not bad_first:
        d.value_and_grad(z.abs()), d.gradient(z.abs()), d.log_prob(z.abs())
    value, gradient = d.value_and_grad(z)
    assert torch.equal(value.isfinite(), good) and torch.equal(gradient[:, 0].isfinite(), good)
    assert torch.equal(d.log_prob(z).isfinite(), good) and torch.equal(d.gradient(z).isfinite(), good[:, None])
    for row, log_prob, slope in zip(z[good], value[good], gradient[good], strict=True):
        point = row.clone().requires_grad_()
        expected = _trace_log_prob(program, {"shift": point[0]}, x, y)  # with Torch's own factorisations
        assert float(log_prob) == pytest.approx(float(expected.detach()), rel=1e-10)
        assert float(slope) == pytest.approx(float(torch.autograd.grad(expected, point)[0]), rel=1e-8)
    assert d.path == "recorded"


def _trace_log_prob(program: Any, values: dict[str, Tensor], *args: Any) -> Tensor:
    with pyro.validation_enabled(False):
        return pyro.poutine.trace(pyro.condition(program, values)).get_trace(*args).log_prob_sum()


def test_a_matrix_without_a_factor_in_python_and_for_eigenvalues() -> None:
    def program() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()).double(), 1.0))
        matrix = torch.eye(2).double() * (x.log() if float(x) < 0 else x)  # a branch on a value cannot be recorded
        pyro.factor("e", torch.linalg.eigh(matrix)[0].sum() + torch.linalg.eigvalsh(matrix).sum())

    with pytest.warns(RuntimeWarning):
        d = LogDensity(program, check=False)
        value, gradient = d.value_and_grad(torch.tensor([[-1.0], [1.0]]).double())
    assert d.path == "python" and value.isfinite().tolist() == gradient.isfinite()[:, 0].tolist() == [False, True]
    assert float(value[1]) == pytest.approx(4 - 0.5 - 0.5 * math.log(2 * math.pi))


@pytest.mark.parametrize(
    "method", [dgm.NUTS(chains=8, warmup=60, draws=60), dgm.ChEES(chains=8, warmup=60, draws=60)], ids=["nuts", "chees"]
)
def test_samplers_turn_back_where_a_matrix_has_no_factor(method: Any) -> None:
    x, y = torch.linspace(0, 1, 4).double(), torch.tensor([0.3, -0.2, 0.5, 1.0]).double()
    post = dgm.infer(_noisy_gp, x, y, method=method, seed=0)
    draws = post.draws["shift"]
    kernel = torch.exp(-2 * (x[:, None] - x).square()) + (0.5 + draws[..., None, None]) * torch.eye(4).double()
    assert bool(draws.isfinite().all()) and bool((torch.linalg.eigvalsh(kernel) > 0).all())
    assert float(draws.std()) > 0.3 and bool(post.stats["lp"].isfinite().all())


SINGULAR = {
    "inv": torch.linalg.inv,
    "inverse": torch.inverse,
    "method": lambda a: a.inverse(),
    "solve a vector": lambda a: torch.linalg.solve(a, torch.ones(2)),
    "solve a matrix": lambda a: torch.linalg.solve(a, torch.ones(2, 3)),
    "solve from the right": lambda a: torch.linalg.solve(a, torch.ones(2, 2), left=False),
    "cholesky": torch.linalg.cholesky,
    "upper": lambda a: torch.linalg.cholesky(a, upper=True),
    "eigenvalues": lambda a: torch.linalg.eigvalsh(a),
    "eigenvectors": lambda a: torch.linalg.eigh(a)[1],
}


@pytest.mark.parametrize("mapped", [False, True], ids=["batch", "vmap"])
@pytest.mark.parametrize("name", SINGULAR)
def test_only_the_failed_matrix_of_a_batch_is_nan(name: str, mapped: bool) -> None:
    function = SINGULAR[name]
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    bad = torch.ones(2, 2)  # singular
    bad = -good if name in ("cholesky", "upper") else torch.full((2, 2), math.nan) if "eigen" in name else bad
    batch = torch.stack([good, bad, 3 * good])
    expected = [function(good), function(3 * good)]
    if "eigen" not in name:  # which with NaN depends on the size and the library
        with pytest.raises(torch.linalg.LinAlgError):
            function(batch)
    with NaNForSingular():
        found = torch.func.vmap(function)(batch) if mapped else function(batch)
    assert bool(found[1].isnan().any())
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[1])
