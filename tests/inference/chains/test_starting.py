"""Where chains start: superchains, the radius, values, posteriors, and what is refused."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_dgm as dgm
from oracles.posteriors import eight_schools, schools_data
from ppl_dgm.density import LogDensity
from ppl_dgm.inference.chains.starting import starting_points, superchain_of
from ppl_dgm.inference.hmc import HMC
from ppl_dgm.inference.mala import MALA
from ppl_dgm.inference.random_walk import RandomWalk


def positive(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(3.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w.sum(-1), scale), obs=y)


Y = torch.tensor(0.7)


@pytest.fixture(scope="module")
def density() -> LogDensity:
    return LogDensity(positive, Y)


def test_chains_of_a_superchain_start_together_and_the_posterior_knows_them(density: LogDensity) -> None:
    method = HMC(chains=6, warmup=0, draws=5, superchains=3, step_size=0.1)
    z = starting_points(method, density)
    assert torch.equal(z[0], z[1]) and torch.equal(z[4], z[5]) and len(z.unique(dim=0)) == 3
    post = dgm.infer(positive, Y, method=method, seed=0)
    assert post.stats["superchain"].shape == (6, 5)
    assert post.stats["superchain"][:, 2].tolist() == [0, 0, 1, 1, 2, 2] == superchain_of(6, 3).tolist()
    assert "6 chains of 0 + 5 in 3 superchains" in post.how
    assert "superchain" not in dgm.infer(positive, Y, method=HMC(warmup=0, draws=2, step_size=0.1), seed=0).stats


def test_the_radius_of_starting_points(density: LogDensity) -> None:
    z = starting_points(HMC(chains=200, radius=0.01), density)
    assert 0.009 < float(z.abs().max()) <= 0.01
    assert 1.9 < float(starting_points(RandomWalk(chains=200), density).abs().max()) <= 2


def test_given_values_for_all_chains_or_each(density: LogDensity) -> None:
    values = {"scale": 2.0, "w": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}
    z = starting_points(HMC(chains=3, start=values), density)
    draws, _ = density.constrain(z)
    torch.testing.assert_close(draws["scale"], torch.full((3,), 2.0))
    torch.testing.assert_close(draws["w"], values["w"])
    point = torch.tensor([0.1, 0.2, 0.3])
    assert torch.equal(starting_points(MALA(chains=3, start=point), density), point.expand(3, 3))
    pairs = starting_points(HMC(chains=6, superchains=3, start=values), density)
    assert torch.equal(pairs[::2], z) and torch.equal(pairs[1::2], z)


def test_another_posterior_is_refined(density: LogDensity) -> None:
    """A bad start from an earlier run that is far away: the first draws are near it, and those of chains differ."""
    draws = {"scale": 5 + 0.1 * torch.rand(2, 40), "w": 0.1 * torch.randn(2, 40, 2)}
    found = dgm.Posterior(draws)
    z = starting_points(HMC(chains=8, start=found), density)
    at, _ = density.constrain(z)
    flat = draws["scale"].flatten()
    rows = [int((flat - value).abs().argmin()) for value in at["scale"]]
    torch.testing.assert_close(at["scale"], flat[rows])
    torch.testing.assert_close(at["w"], draws["w"].flatten(0, 1)[rows])
    assert len(set(rows)) > 4
    weights = torch.full((80,), -torch.inf)
    weights[[3, 50]] = 0.0
    weighted = dgm.Posterior(
        {name: value.reshape(1, 80, *value.shape[2:]) for name, value in draws.items()}, log_weights=weights
    )
    at, _ = density.constrain(starting_points(HMC(chains=20, start=weighted), density))
    assert {round(float(v), 4) for v in at["scale"]} == {round(float(flat[i]), 4) for i in (3, 50)}
    refined = dgm.infer(positive, Y, method=HMC(warmup=0, draws=3, step_size=0.01, length=0.01, start=found), seed=0)
    assert float(refined.draws["scale"].min()) > 4


@pytest.mark.parametrize(
    "start, words",
    [
        ({"scale": 1.0}, "site 'w' has no value"),
        ({"scale": -1.0, "w": torch.zeros(2)}, "site 'scale' has a value outside of its support"),
        ({"scale": 1.0, "w": torch.zeros(3)}, r"site 'w' has shape \(3,\), but its values have shape \(2,\)"),
        (torch.zeros(7), r"start has shape \(7,\).*\(3,\)"),
        ([1.0], "must be a Posterior, a dictionary of sites, a tensor or 'guide', but it is a list"),
        (dgm.Posterior({}), "no draws"),
        ({"scale": 1.0, "w": torch.full((2,), 1e30)}, "log density at point 0"),
    ],
    ids=["missing", "support", "shape", "dimension", "type", "empty", "no density"],
)
def test_a_start_that_is_none_gets_a_sentence(start: Any, words: str) -> None:
    with pytest.raises(dgm.DgmError, match=words) as caught:
        dgm.infer(positive, Y, method=HMC(chains=4, warmup=10, draws=2, start=start), seed=0)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("options", [{"superchains": 3}, {"superchains": 1}, {"radius": 0.0}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(dgm.ProgramError, match=r"HMC: (superchains|radius) must be"):
        HMC(chains=4, **options)


def test_gradients_are_counted_for_waiting_chains_too_and_per_run() -> None:
    """NUTS: all chains evaluate until the deepest tree is done; a density that is used twice counts each run's own."""
    density = LogDensity(eight_schools, *schools_data())
    method = dgm.NUTS(chains=8, warmup=20, draws=20)
    first = method.sample(density)
    own = float(torch.stack([row["n_steps"] for row in first.rows]).sum())
    deepest = float(torch.stack([row["n_steps"].max() for row in first.rows]).sum()) * 8
    drawn = first.gradients - first.warmup_gradients
    assert own < deepest <= drawn and drawn % 8 == 0
    before = density.gradients
    assert before == first.gradients
    assert method.sample(density).gradients == density.gradients - before
