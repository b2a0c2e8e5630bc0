"""MixtureOfStudents: a weighted sum of K multivariate t densities, robust against outliers."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError

from .covariances import positive_factor
from .mixture import Mixture, spread_rows

__all__ = ["MixtureOfStudents"]

_COVARIANCES = ("diagonal", "full")
_GOLDEN = (math.sqrt(5) - 1) / 2


class MixtureOfStudents(Mixture):
    """p(x) = sum_k w_k t(x | mu_k, Sigma_k, nu_k), the multivariate Student t with nu degrees of freedom.

    Given a hidden scale u ~ Gamma(nu/2, nu/2), x is Gaussian with covariance Sigma / u. EM weighs each example by E[u],
    so that outliers count for little; after each step nu climbs the likelihood itself, with the responsibilities held.

    Arguments:
        observed: D, entries of an example.
        components: K.
        covariance: "diagonal" or "full", the form of the scatter matrix Sigma.
        df: nu of every component, held fixed; None learns one for each.
        floor: smallest eigenvalue of Sigma, in squared data units.

    Attributes:
        means: [K, D].
        factors: [K, D, D], Cholesky factors with the logarithm of their diagonal on the diagonal (full).
        log_variances: [K, D] (diagonal).
        log_df: [K], log nu.

    Raises:
        ProgramError: an argument out of range.

    Source: D. Peel and G. McLachlan (2000), Robust mixture modelling using the t distribution; C. Liu and D. Rubin
    (1995), ML estimation of the t distribution using EM and its extensions, ECM and ECME.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.distributions.StudentT(3.0).sample((100, 2))
        >>> dgm.score(dgm.learn(dgm.models.MixtureOfStudents(2, 1), x, seed=0).program, x).kind
        'exact'
    """

    support = constraints.real
    density_of = "continuous x"
    df_range = (0.2, 1000.0)  # beyond, a t is as good as flat, or Gaussian

    def __init__(
        self,
        observed: int,
        components: int,
        covariance: str = "full",
        df: float | None = None,
        floor: float = 1e-3,
    ) -> None:
        super().__init__(observed, components)
        if covariance not in _COVARIANCES:
            raise ProgramError(f"covariance must be one of {', '.join(_COVARIANCES)}, but it is {covariance!r}.")
        if df is not None and not 0 < df < math.inf:
            raise ProgramError(f"df must be None or a positive number, but it is {df!r}.")
        if not 0 < floor < math.inf:
            raise ProgramError(f"floor must be positive, but it is {floor!r}.")
        self.covariance, self.fixed_df, self.floor = covariance, df, floor
        self.means = nn.Parameter(torch.randn(components, observed))
        self.register_buffer("centre", torch.zeros(observed), persistent=False)
        self.log_df = nn.Parameter(torch.full((components,), math.log(df or 10.0)), requires_grad=df is None)
        if covariance == "full":
            self.factors = nn.Parameter(torch.zeros(components, observed, observed))
        else:
            self.log_variances = nn.Parameter(torch.zeros(components, observed))

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """t(mu_k, Sigma_k, nu_k)."""
        return dist.MultivariateStudentT(self.df[k], self.means[k], self.scale_trils[k])

    @property
    def components_free_count(self) -> int:
        size = self.observed
        scatter = size if self.covariance == "diagonal" else size * (size + 1) // 2
        return self.components * (size + scatter + (self.fixed_df is None))

    @property
    def df(self) -> Tensor:
        """Degrees of freedom nu, [K]."""
        return self.log_df.exp()

    @property
    def scale_trils(self) -> Tensor:
        """Cholesky factors of Sigma, [K, D, D]; the floor bounds their diagonal."""
        if self.covariance == "diagonal":
            return torch.diag_embed((0.5 * self.log_variances).exp().clamp_min(math.sqrt(self.floor)))
        diagonal = self.factors.diagonal(dim1=-2, dim2=-1).exp().clamp_min(math.sqrt(self.floor))
        return self.factors.tril(-1) + torch.diag_embed(diagonal)

    @property
    def scatters(self) -> Tensor:
        """Sigma, [K, D, D]; the covariance is nu / (nu - 2) Sigma where nu > 2."""
        return self.scale_trils @ self.scale_trils.mT

    def distances(self, x: Tensor) -> Tensor:
        """(x - mu_k)^T Sigma_k^-1 (x - mu_k), [batch, K]."""
        trils = self.scale_trils.to(x.dtype)
        parts = [
            torch.linalg.solve_triangular(tril, (x - mean).mT, upper=False).square().sum(0)
            for tril, mean in zip(trils, self.means.to(x.dtype))
        ]
        return torch.stack(parts, -1)

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log t(x | mu_k, Sigma_k, nu_k) in nats, [batch, K]."""
        df, size = self.df, self.observed
        volume = self.scale_trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        front = torch.lgamma((df + size) / 2) - torch.lgamma(df / 2) - size / 2 * (df * math.pi).log() - volume
        return front - (df + size) / 2 * torch.log1p(self.distances(x) / df)

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Means at k-means++ seeds, scatter that of the whole data, equal weights."""
        x = self.as_data(x)
        self.centre.copy_(x.mean(0))
        self.means.copy_(x[spread_rows(x, self.components)])
        self._set_scatters(torch.diag(x.var(0, correction=0)).expand(self.components, -1, -1))
        self.set_weights(torch.ones_like(self.weight_logits))
        if self.fixed_df is None:
            self.log_df.fill_(math.log(10.0))

    def reference(self) -> Tensor:
        """The means before the step."""
        return self.means.detach().clone()

    def origin(self) -> Tensor:
        """The mean of the data that `em_start` saw, else zero."""
        return self.centre.double().expand_as(self.means)

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any) -> tuple[Tensor, ...]:
        """sum_n r_nk of 1 and of u, [K]; of u (x - a_k) [K, D] and its outer product [K, D, D]; of E[log u] - u, [K]."""
        half = (self.df.to(x.dtype) + self.observed) / 2
        scale = half / ((self.df + self.distances(x)) / 2)  # E[u], [N, K]
        weighted = responsibilities * scale
        firsts, seconds = [], []
        for point, share in zip(about, weighted.mT):
            centred = x - point
            firsts.append(share @ centred)
            seconds.append((centred * share.unsqueeze(-1)).mT @ centred)
        slack = scale.log() + torch.digamma(half) - half.log() - scale
        sums = (responsibilities * slack).sum(0)
        return responsibilities.sum(0), weighted.sum(0), torch.stack(firsts), torch.stack(seconds), sums

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any) -> None:
        """mu_k = sum r u x / sum r u; Sigma_k = sum r u (x - mu)(x - mu)^T / sum r; nu from E[log u] - E[u].

        A component without examples stays where it is.
        """
        mass, weight, first, second, slack = statistics
        tiny = torch.finfo(self.dtype).tiny * 1e8
        alive = (mass > tiny) & (weight > tiny)
        mass, weight = torch.where(alive, mass, 1.0), torch.where(alive, weight, 1.0)
        shift = first / weight.unsqueeze(-1)
        self.means.copy_(torch.where(alive.unsqueeze(-1), about + shift, self.means))
        outer = weight[:, None, None] * shift.unsqueeze(-1) * shift.unsqueeze(-2)
        moments = (second - outer) / mass[:, None, None]
        self._set_scatters(torch.where(alive[:, None, None], moments.to(self.dtype), self.scatters))
        if self.fixed_df is None:
            self.log_df.copy_(torch.where(alive, self._df_of(slack / mass).log(), self.log_df))

    @torch.no_grad()
    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """An EM step for all, then nu by golden section on sum_n r_nk log t(x_n), which never lowers it (ECME)."""
        super().maximise(x, responsibilities)
        if self.fixed_df is not None:
            return
        distances, mass, size = self.distances(x), responsibilities.sum(0), self.observed

        def climb(log_df: Tensor) -> Tensor:
            df = log_df.exp()
            front = torch.lgamma((df + size) / 2) - torch.lgamma(df / 2) - size / 2 * log_df
            return mass * front - (df + size) / 2 * (responsibilities * torch.log1p(distances / df)).sum(0)

        low, high = (torch.full_like(self.log_df, math.log(end)) for end in self.df_range)
        for _ in range(45):
            left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
            better = climb(left) > climb(right)
            low, high = torch.where(better, low, left), torch.where(better, right, high)
        found = (low + high) / 2
        self.log_df.copy_(torch.where(climb(found) > climb(self.log_df), found, self.log_df))

    def _df_of(self, slack: Tensor) -> Tensor:
        """nu with log(nu/2) - digamma(nu/2) + 1 + slack = 0, by bisection within its range, [K]."""
        low, high = (torch.full_like(slack, math.log(end)) for end in self.df_range)
        for _ in range(60):
            middle = (low + high) / 2
            half = middle.exp() / 2
            above = half.log() - torch.digamma(half) + 1 + slack > 0  # falls with nu
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return ((low + high) / 2).exp()

    def _set_scatters(self, scatters: Tensor) -> None:
        if self.covariance == "diagonal":
            self.log_variances.copy_(scatters.diagonal(dim1=-2, dim2=-1).clamp_min(self.floor).log())
            return
        lower = positive_factor(scatters, self.floor)
        self.factors.copy_(lower.tril(-1) + torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1).log()))
