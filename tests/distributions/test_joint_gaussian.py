"""Marginals and conditionals of joint Gaussians against dense algebra, densities and draws."""

import pytest
import torch
from pyro.distributions import MultivariateNormal

from ppl_dgm.distributions import conditional_gaussian, marginal_gaussian
from ppl_dgm.errors import DataError, ProgramError


def joint(size: int = 5, batch: tuple[int, ...] = (), seed: int = 0) -> MultivariateNormal:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, size, size, generator=generator, dtype=torch.float64)
    loc = torch.randn(*batch, size, generator=generator, dtype=torch.float64)
    return MultivariateNormal(loc, root @ root.mT + 0.1 * torch.eye(size, dtype=torch.float64))


def test_the_formulas_written_with_inverses():
    p, a, b = joint(), [0, 2, 4], [3, 1]
    x = torch.tensor([0.3, -1.2], dtype=torch.float64)
    s = p.covariance_matrix
    gain = s[a][:, b] @ torch.linalg.inv(s[b][:, b])
    given = conditional_gaussian(p, b, x)
    torch.testing.assert_close(given.loc, p.loc[a] + gain @ (x - p.loc[b]))
    torch.testing.assert_close(given.covariance_matrix, s[a][:, a] - gain @ s[b][:, a])
    # the conditional's precision is a block of the joint's
    torch.testing.assert_close(given.precision_matrix, torch.linalg.inv(s)[a][:, a])
    some = marginal_gaussian(p, b)
    torch.testing.assert_close(some.loc, p.loc[b])
    torch.testing.assert_close(some.covariance_matrix, s[b][:, b])


def test_marginal_times_conditional_is_the_joint():
    p = joint(batch=(3,))
    rows = torch.randn(7, 3, 5, dtype=torch.float64)
    flags = torch.tensor([False, True, True, False, True])
    given = conditional_gaussian(p, flags, rows[..., flags])
    assert given.batch_shape == (7, 3) and given.event_shape == (2,)
    total = marginal_gaussian(p, flags).log_prob(rows[..., flags]) + given.log_prob(rows[..., ~flags])
    torch.testing.assert_close(total, p.log_prob(rows))


def test_a_covariance_close_to_singular_keeps_a_positive_definite_conditional():
    loc, corr = torch.zeros(2), 1 - 1e-6
    p = MultivariateNormal(loc, scale_tril=torch.tensor([[1.0, 0.0], [corr, (1 - corr**2) ** 0.5]]))
    given = conditional_gaussian(p, [0], torch.ones(4, 1))
    assert given.loc.shape == (4, 1) and bool((given.variance > 0).all())
    torch.testing.assert_close(given.loc, torch.ones(4, 1), atol=1e-5, rtol=0)


def test_refusals_in_words():
    p = joint()
    with pytest.raises(ProgramError, match="different positions from 0 to 4"):
        conditional_gaussian(p, [1, 1], torch.zeros(2))
    with pytest.raises(ProgramError, match="different positions from 0 to 4"):
        marginal_gaussian(p, [5])
    with pytest.raises(ProgramError, match="at least one position"):
        marginal_gaussian(p, [])
    with pytest.raises(ProgramError, match="none is left"):
        conditional_gaussian(p, range(5), torch.zeros(5))
    with pytest.raises(ProgramError, match=r"has \(2,\) flags, but"):
        marginal_gaussian(p, torch.tensor([True, False]))
    with pytest.raises(DataError, match="2 entries are known"):
        conditional_gaussian(p, [0, 1], torch.zeros(3))
