"""FiniteMixture and Columns over components of any kind, in float64 against sums and products by hand."""

import math

import pyro.distributions as dist
import pytest
import torch

from ppl_dgm.batched import batched_runs
from ppl_dgm.distributions import Columns, FiniteMixture, VonMisesFisher
from ppl_dgm.errors import ProgramError


def sphere_mixture() -> FiniteMixture:
    directions = torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=-1)
    concentrations = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    return FiniteMixture(logits, VonMisesFisher(directions, concentrations))


def test_components_other_than_gaussians() -> None:
    p = sphere_mixture()
    z = p.sample(torch.Size([20_000]))
    assert p.support.check(z).all()
    weights = torch.softmax(p.logits, -1)
    each = p.components.log_prob(z[:5].unsqueeze(-2)).exp()
    torch.testing.assert_close(p.log_prob(z[:5]).exp(), each @ weights)
    expected = weights @ p.components.mean
    assert ((z.mean(0) - expected).abs() < 4.5 * z.std(0) / math.sqrt(20_000)).all()


def test_components_of_matrices() -> None:
    p = FiniteMixture(
        torch.zeros(2), dist.Normal(torch.tensor([-5.0, 5.0]).view(2, 1, 1), torch.ones(2, 3, 2)).to_event(2)
    )
    assert p.event_shape == (3, 2)
    z = p.sample(torch.Size([2000]))
    assert z.shape == (2000, 3, 2)
    assert ((z > 0).flatten(1).sum(1) % 6 == 0).all()  # one component for a whole matrix
    assert p.log_prob(z).shape == (2000,)


def test_a_mixture_is_validated() -> None:
    with pytest.raises(ProgramError, match="K weights"):
        FiniteMixture(torch.zeros(3), dist.Normal(torch.zeros(2, 2), 1.0).to_event(1))
    with pytest.raises(ValueError, match="support"):
        sphere_mixture().log_prob(torch.ones(4, dtype=torch.float64))


def row(dtype: torch.dtype = torch.float64) -> Columns:
    numbers = dist.Normal(torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=dtype), 2.0).to_event(1)
    codes = dist.Categorical(logits=torch.tensor([[[0.0, 1.0, 2.0]], [[1.0, 0.0, 0.0]]], dtype=dtype)).to_event(1)
    counts = dist.Poisson(torch.tensor([[1.5], [4.0]], dtype=dtype)).to_event(1)
    return Columns([(numbers, torch.tensor([3, 0])), (codes, torch.tensor([1])), (counts, torch.tensor([2]))], dtype)


def test_columns_are_a_product_in_their_places() -> None:
    p = row()
    assert (p.batch_shape, p.event_shape) == ((2,), (4,))
    x = torch.tensor([[0.5, 2.0, 3.0, -1.0], [0.0, 0.0, 1.0, 2.0]], dtype=torch.float64)
    by_hand = (
        dist.Normal(torch.tensor([1.0, 3.0]), 2.0).log_prob(x[:, 0])
        + dist.Normal(torch.tensor([0.0, 2.0]), 2.0).log_prob(x[:, 3])
        + torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), -1)[[0, 1], [2, 0]]
        + dist.Poisson(torch.tensor([1.5, 4.0])).log_prob(x[:, 2])
    )
    torch.testing.assert_close(p.log_prob(x), by_hand)
    draws = p.sample(torch.Size([20_000]))
    assert draws.shape == (20_000, 2, 4) and draws.dtype == torch.float64
    means = torch.tensor([[1.0, 0.0, 1.5, 0.0], [3.0, 0.0, 4.0, 2.0]], dtype=torch.float64)
    means[:, 1] = torch.softmax(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), -1) @ torch.arange(3.0)
    assert ((draws.mean(0) - means).abs() < 4.5 * draws.std(0) / math.sqrt(20_000)).all()
    wide = p.expand(torch.Size([5, 2]))
    assert wide.sample().shape == (5, 2, 4)
    assert wide.log_prob(x).shape == (5, 2)
    assert batched_runs(lambda: p.sample(), 3).shape == (3, 2, 4)


def test_every_column_has_one_place() -> None:
    with pytest.raises(ProgramError, match="event shape"):
        Columns([(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([0]))], torch.float32)
