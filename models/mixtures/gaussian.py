"""MixtureOfGaussians: a weighted sum of K Gaussian densities."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.results import Score

from .covariances import conditioned, fit_factors, hole_patterns, positive_factor
from .mixture import Mixture, filled, spread_rows

__all__ = ["MixtureOfGaussians"]

_COVARIANCES = ("diagonal", "spherical", "tied", "full", "low-rank")


class MixtureOfGaussians(Mixture):
    """p(x) = sum_k w_k N(x | mu_k, Sigma_k).

    Its score is a density of continuous x: of integers it is no probability, and it grows without bound as
    the variance floor falls; `log_mass` gives the probability of the cell around each example.

    With `covariance="low-rank"` it is the mixture of factor analysers, Sigma_k = W_k W_k^T + diag(psi_k): x is a
    linear map of `rank` standard normal factors plus independent noise.

    Arguments:
        observed: D, entries of an example.
        components: K.
        covariance: "diagonal" (D variances per component), "spherical" (one), "tied" (one matrix for all), "full", or
            "low-rank".
        floor: smallest variance along any axis, in squared data units; without it a component that sits on
            one example has unbounded likelihood.
        rank: columns of W, where the covariance is "low-rank".
        missing: whether the data may have holes, marked by NaN; they are integrated out.

    Attributes:
        means: [K, D].
        log_variances: [K, D] or [K, 1] (diagonal, spherical).
        factors: [K, D, D] or [1, D, D], Cholesky factors with the logarithm of their diagonal on the diagonal (full, tied).
        loadings, log_noise: W [K, D, rank] and log psi [K, D] (low-rank).

    Raises:
        ProgramError: an argument out of range.

    Source: J. Tomczak (2024), Deep Generative Modeling, 2.3; EM: A. Dempster, N. Laird and D. Rubin (1977); factor
    analysers and EM with holes: Z. Ghahramani and G. Hinton (1996), Z. Ghahramani and M. Jordan (1994).

    Example:
        >>> import ppl_dgm as dgm
        >>> fit = dgm.learn(dgm.models.MixtureOfGaussians(2, 8), dgm.data.eight_gaussians(500), seed=0)
        >>> dgm.sample(fit.program, 3, seed=0)["x"].shape
        torch.Size([3, 2])
    """

    support = constraints.real
    density_of = "continuous x"

    def __init__(
        self,
        observed: int,
        components: int,
        covariance: str = "diagonal",
        floor: float = 1e-3,
        rank: int = 1,
        missing: bool = False,
    ) -> None:
        super().__init__(observed, components, missing)
        if covariance not in _COVARIANCES:
            raise ProgramError(f"covariance must be one of {', '.join(_COVARIANCES)}, but it is {covariance!r}.")
        if not 0 < floor < math.inf:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        if not 1 <= rank <= observed:
            raise ProgramError(f"rank must be from 1 to observed={observed}, but it is {rank!r}.")
        self.covariance, self.floor, self.rank = covariance, floor, rank
        self.means = nn.Parameter(torch.randn(components, observed))
        self.register_buffer("centre", torch.zeros(observed), persistent=False)
        if covariance in ("full", "tied"):
            self.factors = nn.Parameter(torch.zeros(components if covariance == "full" else 1, observed, observed))
        elif covariance == "low-rank":
            self.loadings = nn.Parameter(0.1 * torch.randn(components, observed, rank))
            self.log_noise = nn.Parameter(torch.zeros(components, observed))
        else:
            self.log_variances = nn.Parameter(torch.zeros(components, observed if covariance == "diagonal" else 1))

    @property
    def _factorised(self) -> bool:
        return self.covariance in ("diagonal", "spherical")

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """N(mu_k, Sigma_k)."""
        if self.covariance == "low-rank":
            return dist.LowRankMultivariateNormal(self.means[k], self.loadings[k], self.noise[k])
        if self._factorised:
            return dist.Normal(self.means[k], self.scales[k]).to_event(1)
        return dist.MultivariateNormal(self.means[k], scale_tril=self.scale_trils[k])

    def component_of_seen(self, k: Tensor, seen: Tensor) -> TorchDistributionMixin:
        """The marginal of what is seen; a hole, filled with zero, becomes N(0, 1 / 2 pi), whose density there is one."""
        if self._factorised:
            return super().component_of_seen(k, seen)
        both = seen.unsqueeze(-1) & seen.unsqueeze(-2)
        holes = torch.diag_embed((~seen).to(self.dtype) / (2 * math.pi))
        covariance = torch.where(both, self.covariances[k], holes)
        return dist.MultivariateNormal(self.means[k] * seen, covariance)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log N(x_seen | mu_k, Sigma_k) in nats, [batch, K]; rows with the same holes share one factorisation."""
        if self._factorised or self.seen(x) is None:
            return super().component_log_prob(x)
        result = torch.zeros(len(x), self.components, device=x.device, dtype=x.dtype)
        for rows, seen in hole_patterns(x):
            if bool(seen.any()):
                part = dist.MultivariateNormal(self.means[:, seen], self.covariances[:, seen][:, :, seen])
                result = result.index_add(0, rows, part.log_prob(x[rows][:, None, seen]))
        return result

    @property
    def scales(self) -> Tensor:
        """Standard deviations, [K, D] (diagonal) or [K, 1] (spherical), never below the floor."""
        return (0.5 * self.log_variances).exp().clamp_min(math.sqrt(self.floor))

    @property
    def noise(self) -> Tensor:
        """psi, [K, D] (low-rank), never below the floor."""
        return self.log_noise.exp().clamp_min(self.floor)

    @property
    def scale_trils(self) -> Tensor:
        """Cholesky factors of full or tied covariances, [K, D, D]; the floor bounds each conditional variance."""
        diagonal = self.factors.diagonal(dim1=-2, dim2=-1).exp().clamp_min(math.sqrt(self.floor))
        return (self.factors.tril(-1) + torch.diag_embed(diagonal)).expand(self.components, -1, -1)

    @property
    def covariances(self) -> Tensor:
        """Sigma, [K, D, D], whatever its form."""
        if self.covariance == "low-rank":
            return self.loadings @ self.loadings.mT + torch.diag_embed(self.noise)
        if self._factorised:
            return torch.diag_embed(self.scales.square().expand_as(self.means))
        return self.scale_trils @ self.scale_trils.mT

    @property
    def components_free_count(self) -> int:
        means, size = self.means.numel(), self.observed
        if self._factorised:
            return means + self.log_variances.numel()
        if self.covariance == "low-rank":  # less the rotations of the factors
            return means + self.components * (size * (self.rank + 1) - self.rank * (self.rank - 1) // 2)
        return means + len(self.factors) * size * (size + 1) // 2

    @torch.no_grad()
    def assign(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        """Set all parameters, for instance those of scikit-learn's `GaussianMixture`.

        Arguments:
            weights: [K], positive, summing to one.
            means: [K, D].
            covariances: variances [K, D] (diagonal) or [K] (spherical), matrices [K, D, D] (full; low-rank, which
                takes the nearest of its form) or [D, D] (tied); what lies below the floor is raised to it.
        """
        self.set_weights(torch.as_tensor(weights))
        self.means.copy_(torch.as_tensor(means))
        covariances = torch.as_tensor(covariances).to(self.means)
        if self.covariance == "low-rank":
            self.log_noise.copy_((0.5 * covariances.diagonal(dim1=-2, dim2=-1)).clamp_min(self.floor).log())
        self._set_covariances(covariances, 100)

    def _set_covariances(self, covariances: Tensor, rounds: int = 4) -> None:
        if self.covariance == "low-rank":
            loadings, noise = fit_factors(covariances, self.noise, self.rank, self.floor, rounds)
            self.loadings.copy_(loadings)
            self.log_noise.copy_(noise.log())
        elif self._factorised:
            self.log_variances.copy_(covariances.reshape(self.log_variances.shape).clamp_min(self.floor).log())
        else:
            lower = positive_factor(covariances, self.floor)
            diagonal = lower.diagonal(dim1=-2, dim2=-1)
            self.factors.copy_(lower.tril(-1) + torch.diag_embed(diagonal.log()))

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Means at k-means++ seeds, covariances and weights those of the whole data and equal."""
        x = filled(self.as_data(x))
        self.centre.copy_(x.mean(0))
        variances = x.var(0, correction=0)  # [D]
        if self.covariance == "spherical":
            variances = variances.mean(0, keepdim=True)
        one = variances if self._factorised else torch.diag(variances)
        covariances = one if self.covariance == "tied" else one.expand(self.components, *one.shape)
        equal = torch.full_like(self.weight_logits, 1 / self.components)
        self.assign(equal, x[spread_rows(x, self.components)], covariances)

    def reference(self) -> Tensor:
        """The means before the step, near those after it, so that centring loses no digits."""
        return self.means.detach().clone()

    def origin(self) -> Tensor:
        """The mean of the data that `em_start` saw, else zero."""
        return self.centre.double().expand_as(self.means)

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any) -> tuple[Tensor, ...]:
        """Mass, and first and second moments about the points `about`, of each component.

        Of factorised components: sum_n r_nk over the rows where entry d is seen, with (x_nd - a_kd) and its square,
        three of [K, D]. Of the others [K], [K, D] and [K, D, D], where the moments of what is missing are those of its
        conditional distribution given what is seen.
        """
        if self._factorised:
            seen = ~x.isnan()
            firsts, seconds = [], []
            for point, share in zip(about, responsibilities.mT):
                centred = torch.where(seen, x - point, 0.0)  # [N, D], so that memory stays flat
                firsts.append(share @ centred)
                seconds.append(share @ centred.square())
            return responsibilities.mT @ seen.to(x.dtype), torch.stack(firsts), torch.stack(seconds)
        if self.seen(x) is not None:
            return conditioned(x, responsibilities, about, self.means.to(x.dtype), self.covariances.to(x.dtype))
        firsts, seconds = [], []
        for point, share in zip(about, responsibilities.mT):
            centred = x - point
            firsts.append(share @ centred)
            seconds.append((centred * share.unsqueeze(-1)).mT @ centred)
        return responsibilities.sum(0), torch.stack(firsts), torch.stack(seconds)

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any) -> None:
        """mu_k = sum_n r_nk x_n / N_k; Sigma_k = sum_n r_nk (x_n - mu_k)(x_n - mu_k)^T / N_k in its form.

        What lies below the floor is raised to it. A component without examples (N_k = 0) stays where it is,
        with a weight of zero.
        """
        mass, first, second = statistics
        tiny = torch.finfo(self.dtype).tiny * 1e8
        if self._factorised:
            self._maximise_entries(mass, first, second, about, tiny)
            return
        alive, shares = mass > tiny, 1 / mass.clamp_min(tiny)  # [K]
        shift = first * shares.unsqueeze(-1)
        self.means.copy_(torch.where(alive.unsqueeze(-1), about + shift, self.means))
        moments = second * shares[:, None, None] - shift.unsqueeze(-1) * shift.unsqueeze(-2)
        if self.covariance == "tied":
            used = torch.where(alive, mass, 0.0)
            self._set_covariances((used[:, None, None] * moments).sum(0) / used.sum().clamp_min(tiny))
        else:
            kept = self.covariances.to(moments.dtype)
            self._set_covariances(torch.where(alive[:, None, None], moments, kept).to(self.dtype))

    def _maximise_entries(self, mass: Tensor, first: Tensor, second: Tensor, about: Tensor, tiny: float) -> None:
        """The same for diagonal and spherical covariances; all arguments [K, D]."""
        alive = mass > tiny
        shift = first / mass.clamp_min(tiny)
        self.means.copy_(torch.where(alive, about + shift, self.means))
        moments = (second / mass.clamp_min(tiny) - shift.square()).clamp_min(0.0)
        if self.covariance == "spherical":
            total = mass.sum(-1, keepdim=True)
            moments = (mass * moments).sum(-1, keepdim=True) / total.clamp_min(tiny)
            alive = total > tiny
        self._set_covariances(torch.where(alive, moments, self.scales.square()).to(self.dtype))

    # -- discrete data ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_mass(self, x: Tensor, width: float = 1.0) -> Score:
        """log P(x - width/2 < X < x + width/2): the probability of the cell around each example, exact.

        On integers (width 1) it compares with the scores of discrete programs; what the density spends
        outside the integers' range is lost.

        Raises:
            TaskUnavailable: a covariance off whose diagonal there is something; its cells have no closed form.
        """
        if not self._factorised:
            raise TaskUnavailable(
                f"cells of a Gaussian with {self.covariance} covariance have no closed form; use covariance='diagonal'."
            )
        rows = max(1, 2**22 // (self.components * self.observed))
        parts = []
        for part in self.as_data(x).split(rows):
            distance = (part.unsqueeze(1) - self.means).abs()  # [n, K, D]; by symmetry, always the left tail
            upper = torch.special.log_ndtr((width / 2 - distance) / self.scales)
            lower = torch.special.log_ndtr((-width / 2 - distance) / self.scales)
            cell = upper + torch.log1p(-(lower - upper).exp())
            cell = torch.where(part.unsqueeze(1).isnan(), 0.0, cell)  # what is missing may lie anywhere
            parts.append(cell.sum(-1) + self.weight_logits.log_softmax(-1))
        return Score(torch.cat(parts).logsumexp(-1), "exact", how=f"probability of cells of width {width:g}")
