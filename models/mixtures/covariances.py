"""Covariance matrices in the M-step: factors that rounding cannot break, factor analysers, moments with holes."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["conditioned", "fit_factors", "hole_patterns", "positive_factor"]


def positive_factor(covariances: Tensor, floor: float) -> Tensor:
    """Lower triangular factors of matrices whose eigenvalues below `floor` are raised to it.

    That is the maximum likelihood under this constraint. The factor comes from a QR decomposition of the square root,
    which, unlike Cholesky's, rounding cannot break.

    Arguments:
        covariances: [..., D, D], symmetric.
        floor: in squared data units.

    Returns:
        [..., D, D] with a positive diagonal.
    """
    values, vectors = torch.linalg.eigh(covariances)
    root = vectors * values.clamp_min(floor).sqrt().unsqueeze(-2)  # Sigma = root root^T
    upper = torch.linalg.qr(root.mT).R
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def fit_factors(moments: Tensor, noise: Tensor, rank: int, floor: float, rounds: int) -> tuple[Tensor, Tensor]:
    """Factor analysis of second moments S: raises -log|Sigma| - tr(Sigma^-1 S) for Sigma = W W^T + diag(psi).

    Each round takes the best W given psi, in closed form from the leading eigenvectors of psi^-1/2 S psi^-1/2, then the
    best psi given W and the posterior of the factors (an EM step, psi no smaller than the floor). Neither can lower the
    objective.

    Arguments:
        moments: S, [K, D, D].
        noise: psi before, [K, D].
        rank: columns of W.
        floor: smallest psi.
        rounds: how often.

    Returns:
        W [K, D, rank] and psi [K, D].

    Source: K. Jöreskog (1967) for W given psi; D. Rubin and D. Thayer (1982) for psi.
    """
    loadings = _best_loadings(moments, noise, rank)
    for _ in range(rounds):
        beta = _regression(loadings, noise)
        covariance = torch.eye(rank, dtype=noise.dtype, device=noise.device) - beta @ loadings
        explained = beta @ moments  # [K, rank, D]
        second = covariance + explained @ beta.mT  # E[z z^T], [K, rank, rank]
        left = moments.diagonal(dim1=-2, dim2=-1) - 2 * (loadings * explained.mT).sum(-1)
        noise = (left + (loadings @ second * loadings).sum(-1)).clamp_min(floor)
        loadings = _best_loadings(moments, noise, rank)
    return loadings, noise


def _best_loadings(moments: Tensor, noise: Tensor, rank: int) -> Tensor:
    scale = noise.sqrt()
    whitened = moments / (scale.unsqueeze(-1) * scale.unsqueeze(-2))
    values, vectors = torch.linalg.eigh(whitened)  # ascending
    length = (values[..., -rank:] - 1).clamp_min(0.0).sqrt()
    return scale.unsqueeze(-1) * vectors[..., -rank:] * length.unsqueeze(-2)


def _regression(loadings: Tensor, noise: Tensor) -> Tensor:
    """E[z | x] = beta x with beta = W^T Sigma^-1 = (I + W^T psi^-1 W)^-1 W^T psi^-1, [K, rank, D]."""
    scaled = loadings.mT / noise.unsqueeze(-2)
    eye = torch.eye(loadings.shape[-1], dtype=noise.dtype, device=noise.device)
    return torch.linalg.solve(eye + scaled @ loadings, scaled)


def hole_patterns(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of x [N, D] (NaN is missing) by which entries they have: (indices [n], seen [D]) of each pattern."""
    patterns, member = torch.unique(~x.isnan(), dim=0, return_inverse=True)
    groups = member.argsort().split(member.bincount(minlength=len(patterns)).tolist())
    yield from zip(groups, patterns, strict=True)


def conditioned(x: Tensor, shares: Tensor, about: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, ...]:
    """Expected mass, first and second moments of Gaussian components where entries are missing.

    Given component k, what is missing has the mean mu_m + B (x_s - mu_s) and the covariance Sigma_mm - B Sigma_sm, with
    B = Sigma_ms Sigma_ss^-1 (m missing, s seen).

    Arguments:
        x: [N, D], NaN is missing.
        shares: responsibilities, [N, K].
        about: points that the moments are taken about, [K, D].
        means, covariances: of the components before the step, [K, D] and [K, D, D].

    Returns:
        sum_n r_nk [K], sum_n r_nk E[x - a_k] [K, D], sum_n r_nk E[(x - a_k)(x - a_k)^T] [K, D, D].

    Source: Z. Ghahramani and M. Jordan (1994), Supervised learning from incomplete data via an EM approach.
    """
    first, second = torch.zeros_like(means), torch.zeros_like(covariances)
    for rows, seen in hole_patterns(x):
        part, share = x[rows], shares[rows]  # [n, D], [n, K]
        s, m = seen.nonzero().squeeze(-1), (~seen).nonzero().squeeze(-1)
        across = covariances[:, s][:, :, m]  # Sigma_sm, [K, s, m]
        slope = torch.linalg.solve(covariances[:, s][:, :, s], across)  # B^T
        residual = part[:, s].unsqueeze(0) - means[:, s].unsqueeze(1)  # [K, n, s]
        full = part.expand(len(means), -1, -1).clone()  # [K, n, D]
        full[:, :, m] = means[:, m].unsqueeze(1) + residual @ slope
        centred = full - about.unsqueeze(1)
        weighted = centred * share.mT.unsqueeze(-1)
        first += weighted.sum(1)
        second += weighted.mT @ centred
        spread = covariances[:, m][:, :, m] - slope.mT @ across  # [K, m, m]
        second[:, m.unsqueeze(-1), m] += share.sum(0)[:, None, None] * spread
    return shares.sum(0), first, second
