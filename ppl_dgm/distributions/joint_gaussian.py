"""A joint Gaussian taken apart: the law of some of its entries, and of the others given these."""

from collections.abc import Sequence

import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor

from ..errors import DataError, ProgramError

__all__ = ["conditional_gaussian", "marginal_gaussian"]


def marginal_gaussian(joint: MultivariateNormal, keep: Sequence[int] | Tensor) -> MultivariateNormal:
    """N(mu_a, Sigma_aa): the law of the entries a of x ~ N(mu, Sigma), the others integrated out.

    Arguments:
        joint: over D entries, with any batch shape.
        keep: positions of the entries in the order that is wanted, or D flags.

    Returns:
        The same batch shape, one entry for each that is kept.

    Raises:
        ProgramError: a position is out of range, is given twice, or none is given.

    >>> joint = MultivariateNormal(torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 1.0], [1.0, 4.0]]))
    >>> marginal_gaussian(joint, [1]).loc, marginal_gaussian(joint, [1]).covariance_matrix
    (tensor([1.]), tensor([[4.]]))
    """
    index = _positions(joint, keep, "keep")
    covariance = joint.covariance_matrix[..., index[:, None], index]
    return MultivariateNormal(joint.loc[..., index], covariance)


def conditional_gaussian(joint: MultivariateNormal, known: Sequence[int] | Tensor, x: Tensor) -> MultivariateNormal:
    """p(x_a | x_b) of x ~ N(mu, Sigma), in closed form:

        N(mu_a + Sigma_ab Sigma_bb^-1 (x_b - mu_b),  Sigma_aa - Sigma_ab Sigma_bb^-1 Sigma_ba)

    With the known entries put first, the last block of the joint's Cholesky factor is the factor of this covariance, so
    that no difference of matrices is formed and the result is positive definite.

    Arguments:
        joint: over D entries, with any batch shape.
        known: positions of the entries b in the order in which x has them, or D flags.
        x: [..., b] their values; dimensions before the last broadcast with the batch shape.

    Returns:
        Over the other entries a, in their order in the joint.

    Raises:
        ProgramError: a position is out of range or is given twice, or none or all are known.
        DataError: x has another number of entries than there are known ones.

    Source: C. Bishop (2006), Pattern recognition and machine learning, 2.3.1.

    >>> joint = MultivariateNormal(torch.tensor([0.0, 1.0]), torch.tensor([[2.0, 1.0], [1.0, 4.0]]))
    >>> given = conditional_gaussian(joint, [1], torch.tensor([3.0]))
    >>> given.loc, given.covariance_matrix
    (tensor([0.5000]), tensor([[1.7500]]))
    """
    b = _positions(joint, known, "known")
    if x.shape[-1:] != b.shape:
        raise DataError(f"x has shape {tuple(x.shape)}, but {len(b)} entries are known: [..., {len(b)}] was expected.")
    others = torch.ones(joint.event_shape[0], dtype=torch.bool, device=b.device).index_fill(0, b, False)
    a = others.nonzero().flatten()
    if not len(a):
        raise ProgramError("known lists every entry of the joint Gaussian, so none is left to have a distribution.")
    order, m = torch.cat([b, a]), len(b)
    factor = torch.linalg.cholesky(joint.covariance_matrix[..., order[:, None], order])
    centred = (x.to(joint.loc) - joint.loc[..., b]).unsqueeze(-1)  # [..., b, 1]
    white = torch.linalg.solve_triangular(factor[..., :m, :m], centred, upper=False)
    loc = joint.loc[..., a] + (factor[..., m:, :m] @ white).squeeze(-1)
    return MultivariateNormal(loc, scale_tril=factor[..., m:, m:])


def _positions(joint: MultivariateNormal, which: Sequence[int] | Tensor, name: str) -> Tensor:
    """[m] positions, checked."""
    size, device = joint.event_shape[0], joint.loc.device
    index = torch.as_tensor(which, device=device)
    if index.dtype == torch.bool:
        if index.shape != (size,):
            raise ProgramError(f"{name} has {tuple(index.shape)} flags, but the joint Gaussian has {size} entries.")
        index = index.nonzero().flatten()
    if index.dim() != 1 or not len(index) or index.is_floating_point():
        raise ProgramError(f"{name} must list at least one position from 0 to {size - 1}, but it is {which!r}.")
    if int(index.min()) < 0 or int(index.max()) >= size or len(index.unique()) < len(index):
        raise ProgramError(
            f"{name} is {index.tolist()}, but different positions from 0 to {size - 1} were expected, one for each entry."
        )
    return index
