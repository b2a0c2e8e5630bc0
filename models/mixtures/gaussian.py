"""MixtureOfGaussians: a weighted sum of K Gaussian densities."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.results import Score

from .mixture import Mixture, spread_rows

__all__ = ["MixtureOfGaussians"]

_COVARIANCES = ("diagonal", "spherical", "full")


class MixtureOfGaussians(Mixture):
    """p(x) = sum_k w_k N(x | mu_k, Sigma_k).

    Its score is a density of continuous x: of integers it is no probability, and it grows without bound as
    the variance floor falls; `log_mass` gives the probability of the cell around each example.

    Arguments:
        observed: D, entries of an example.
        components: K.
        covariance: "diagonal" (D variances per component), "spherical" (one), or "full".
        floor: smallest variance along any axis, in squared data units; without it a component that sits on
            one example has unbounded likelihood.

    Attributes:
        means: [K, D].
        log_variances: [K, D] or [K, 1] (diagonal, spherical).
        factors: [K, D, D], Cholesky factors with the logarithm of their diagonal on the diagonal (full).

    Raises:
        ProgramError: an argument out of range.

    Source: J. Tomczak (2024), Deep Generative Modeling, 2.3; EM: A. Dempster, N. Laird and D. Rubin (1977).

    Example:
        >>> import ppl_dgm as dgm
        >>> fit = dgm.learn(dgm.models.MixtureOfGaussians(2, 8), dgm.data.eight_gaussians(500), seed=0)
        >>> dgm.sample(fit.program, 3, seed=0)["x"].shape
        torch.Size([3, 2])
    """

    support = constraints.real
    density_of = "continuous x"

    def __init__(self, observed: int, components: int, covariance: str = "diagonal", floor: float = 1e-3) -> None:
        super().__init__(observed, components)
        if covariance not in _COVARIANCES:
            raise ProgramError(f"covariance must be one of {', '.join(_COVARIANCES)}, but it is {covariance!r}.")
        if not 0 < floor < math.inf:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        self.covariance, self.floor = covariance, floor
        self.means = nn.Parameter(torch.randn(components, observed))
        if covariance == "full":
            self.factors = nn.Parameter(torch.zeros(components, observed, observed))
        else:
            self.log_variances = nn.Parameter(torch.zeros(components, observed if covariance == "diagonal" else 1))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """N(mu_k, Sigma_k)."""
        if self.covariance == "full":
            return dist.MultivariateNormal(self.means[k], scale_tril=self.scale_trils[k])
        return dist.Normal(self.means[k], self.scales[k]).to_event(1)

    @property
    def scales(self) -> Tensor:
        """Standard deviations, [K, D] (diagonal) or [K, 1] (spherical), never below the floor."""
        return (0.5 * self.log_variances).exp().clamp_min(math.sqrt(self.floor))

    @property
    def scale_trils(self) -> Tensor:
        """Cholesky factors of the full covariances, [K, D, D]; the floor bounds each conditional variance."""
        diagonal = self.factors.diagonal(dim1=-2, dim2=-1).exp().clamp_min(math.sqrt(self.floor))
        return self.factors.tril(-1) + torch.diag_embed(diagonal)

    @property
    def covariances(self) -> Tensor:
        """Sigma, [K, D, D], whatever its form."""
        if self.covariance == "full":
            return self.scale_trils @ self.scale_trils.mT
        return torch.diag_embed(self.scales.square().expand_as(self.means))

    @torch.no_grad()
    def assign(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set all parameters, for instance those of scikit-learn's `GaussianMixture`.

        Arguments:
            weights: [K], positive, summing to one.
            means: [K, D].
            covariances: variances [K, D] (diagonal) or [K] (spherical), or matrices [K, D, D] (full); what
                lies below the floor is raised to it.
        """
        self.set_weights(torch.as_tensor(weights))
        self.means.copy_(torch.as_tensor(means))
        self._set_covariances(torch.as_tensor(covariances))

    def _set_covariances(self, covariances: Tensor) -> None:
        if self.covariance != "full":
            self.log_variances.copy_(covariances.reshape(self.log_variances.shape).clamp_min(self.floor).log())
            return
        # Raising the eigenvalues to the floor is the maximum likelihood under that constraint. The factor
        # comes from a QR decomposition of the square root, which, unlike Cholesky's, rounding cannot break.
        values, vectors = torch.linalg.eigh(covariances)
        root = vectors * values.clamp_min(self.floor).sqrt().unsqueeze(-2)  # Sigma = root root^T
        upper = torch.linalg.qr(root.mT).R
        lower = upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        diagonal = lower.diagonal(dim1=-2, dim2=-1)
        self.factors.copy_(lower.tril(-1) + torch.diag_embed(diagonal.log()))

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Means at k-means++ seeds, covariances and weights those of the whole data and equal."""
        x = self.as_data(x)
        variances = x.var(0, correction=0)  # [D]
        if self.covariance == "spherical":
            variances = variances.mean(0, keepdim=True)
        one = torch.diag(variances) if self.covariance == "full" else variances
        covariances = one.expand(self.components, *one.shape)
        equal = torch.full_like(self.weight_logits, 1 / self.components)
        self.assign(equal, x[spread_rows(x, self.components)], covariances)

    @torch.no_grad()
    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """mu_k = sum_n r_nk x_n / N_k; Sigma_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)^T / N_k.

        What lies below the floor is raised to it. A component without examples (N_k = 0) stays where it is,
        with a weight of zero.
        """
        tiny = torch.finfo(x.dtype).tiny * len(x)
        mass = responsibilities.sum(0)  # [K]
        alive = mass > tiny
        shares = responsibilities / mass.clamp_min(tiny)  # [N, K], columns sum to one
        self.means.copy_(torch.where(alive.unsqueeze(-1), shares.mT @ x, self.means))
        moments = torch.stack([self._second_moment(x - mean, share) for mean, share in zip(self.means, shares.mT)])
        kept = self.covariances if self.covariance == "full" else self.scales.square()
        self._set_covariances(torch.where(alive.reshape(-1, *[1] * (kept.dim() - 1)), moments, kept))

    def _second_moment(self, centred: Tensor, share: Tensor) -> Tensor:
        """sum_n share_n centred_n centred_n^T in this covariance's form; memory stays at [N, D]."""
        if self.covariance == "full":
            return (centred * share.unsqueeze(-1)).mT @ centred  # [D, D]
        moment = share @ centred.square()  # [D]
        return moment if self.covariance == "diagonal" else moment.mean(-1, keepdim=True)

    # -- discrete data ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_mass(self, x: Tensor, width: float = 1.0) -> Score:
        """log P(x - width/2 < X < x + width/2): the probability of the cell around each example, exact.

        On integers (width 1) it compares with the scores of discrete programs; what the density spends
        outside the integers' range is lost.

        Raises:
            TaskUnavailable: a full covariance, whose cells have no closed form.
        """
        if self.covariance == "full":
            raise TaskUnavailable(
                "cells of a Gaussian with full covariance have no closed form; use covariance='diagonal'."
            )
        rows = max(1, 2**22 // (self.components * self.observed))
        parts = []
        for part in self.as_data(x).split(rows):
            distance = (part.unsqueeze(1) - self.means).abs()  # [n, K, D]; by symmetry, always the left tail
            upper = torch.special.log_ndtr((width / 2 - distance) / self.scales)
            lower = torch.special.log_ndtr((-width / 2 - distance) / self.scales)
            cell = upper + torch.log1p(-(lower - upper).exp())
            parts.append(cell.sum(-1) + self.weight_logits.log_softmax(-1))
        return Score(torch.cat(parts).logsumexp(-1), "exact", how=f"probability of cells of width {width:g}")
