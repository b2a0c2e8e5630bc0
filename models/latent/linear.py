"""LinearGaussian: what probabilistic PCA and factor analysis share; every answer is exact, also where entries are missing."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["LinearGaussian"]


class LinearGaussian(Program):
    """z ~ N(0, I_M), x = W z + b + e, e ~ N(0, diag(v)); so that, with V = diag(v) and G = I_M + W^T V^-1 W,

        p(x) = N(b, W W^T + V),        p(z | x) = N(G^-1 W^T V^-1 (x - b), G^-1).

    Entries that are missing leave the sums: for each row W, b and v are cut to the rows of W that belong to its seen
    entries. Only M x M matrices are factorised, one for all rows where nothing is missing, else one for each row. The guide
    is the posterior, so that one draw gives the ELBO without variance and equal to log p(x).

    Arguments:
        observed: D, entries of an example.
        latent: M < D.
        floor: smallest noise variance, in squared data units.
        missing: whether the data may have holes, marked by NaN; they are integrated out by every verb. They are missing at
            random: what is missing says nothing of its value beyond what is seen.

    Attributes:
        weight: W, [D, M].
        bias: b, [D].
    """

    observed: int
    support = constraints.real

    def __init__(self, observed: int, latent: int, floor: float = 1e-6, missing: bool = False) -> None:
        super().__init__()
        if not 1 <= latent < observed:
            raise ProgramError(
                f"latent must be from 1 to observed - 1 = {observed - 1}, but it is {latent}: "
                "the noise is what the latents leave over."
            )
        if floor <= 0:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        self.observed, self.latent, self.floor, self.allows_missing = observed, latent, floor, missing
        self.weight = nn.Parameter(torch.randn(observed, latent) / latent**0.5)
        self.bias = nn.Parameter(torch.zeros(observed))

    @property
    def variances(self) -> Tensor:
        """v, [D], never below the floor."""
        raise NotImplementedError

    def set_variances(self, variances: Tensor) -> None:
        """Take noise variances, [D]."""
        raise NotImplementedError

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ N(0, I); x ~ N(W z + b, diag(v))."""
        origin = self.weight.new_zeros(self.latent)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))
            x = None if x is None else x.to(self.dtype)
            entries: Any = dist.Normal(z @ self.weight.mT + self.bias, self.variances.sqrt())
            if x is not None and self.allows_missing:
                entries, x = entries.mask(~x.isnan()), x.nan_to_num(0.0)
            return pyro.sample("x", entries.to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ p(z | x), the exact posterior."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x)["z"])

    # -- exact answers ---------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(z | the seen entries of x), batch shape [len(x)]."""
        x = x.to(self.dtype)
        mean, gram = self._moments(x, self._seen(x))
        return {"z": dist.MultivariateNormal(mean, precision_matrix=gram)}

    def log_density(self, x: Tensor) -> Score:
        """log N(x | b, W W^T + V) of the seen entries in nats, [batch].

        log det = sum log v + log det G, and the distance is sum (x - b - W m)^2 / v + |m|^2 with m the posterior mean, which
        unlike the difference in Woodbury's formula loses no digits.
        """
        x = x.to(self.dtype)
        seen = self._seen(x)
        mean, gram = self._moments(x, seen)  # [batch, M], [M, M] or [batch, M, M]
        filled = x if seen is None else torch.where(seen, x, 0.0)  # a NaN would reach the gradients
        residual = filled - self.bias - mean @ self.weight.mT  # [batch, D]
        distance = residual.square() / self.variances
        terms = distance + self.variances.log() + math.log(2 * math.pi)
        terms = terms.sum(-1) if seen is None else torch.where(seen, terms, 0.0).sum(-1)
        log_det = torch.linalg.cholesky(gram).diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2
        return Score(-0.5 * (terms + mean.square().sum(-1) + log_det), "exact", how="Gaussian density of continuous x")

    def _seen(self, x: Tensor) -> Tensor | None:
        """Which entries are there, [batch, D]; None where holes are not allowed for, so that no value need be looked at."""
        return ~x.isnan() if self.allows_missing else None

    def _moments(self, x: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """E[z | seen entries of x], [batch, M], and G, [M, M] (or [batch, M, M] with holes)."""
        scaled = self.weight / self.variances[:, None]  # V^-1 W
        half = self.weight / self.variances.sqrt()[:, None]  # keeps G symmetric to the last digit
        identity = torch.eye(self.latent, device=self.device, dtype=self.dtype)
        if seen is None:
            gram = identity + _symmetric(half.mT @ half)
            return torch.linalg.solve(gram, ((x - self.bias) @ scaled).mT).mT, gram
        gram = identity + _symmetric(torch.einsum("nd,di,dj->nij", seen.to(self.dtype), half, half))
        centred = torch.where(seen, torch.where(seen, x, 0.0) - self.bias, 0.0)
        return torch.linalg.solve(gram, centred @ scaled), gram

    @torch.no_grad()
    def impute(self, x: Tensor, draws: int | None = None) -> Tensor:
        """x with every NaN replaced, given the entries of its row that are there.

        Arguments:
            x: [batch, D].
            draws: None fills in the exact conditional mean; a number gives so many exact joint draws of what is missing.

        Returns:
            [batch, D], or [draws, batch, D].
        """
        x = x.to(self.dtype)
        mean, gram = self._moments(x, ~x.isnan())
        if draws is None:
            return torch.where(x.isnan(), mean @ self.weight.mT + self.bias, x)
        if draws < 1:
            raise ProgramError(f"impute: draws must be at least 1, but it is {draws}.")
        z = dist.MultivariateNormal(mean, precision_matrix=gram).sample((draws,))
        centre = z @ self.weight.mT + self.bias
        return torch.where(x.isnan(), centre + self.variances.sqrt() * torch.randn_like(centre), x)

    @torch.no_grad()
    def conditional(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of each row given its seen entries, exactly.

        Arguments:
            x: [batch, D], holes marked by NaN.

        Returns:
            [batch, D], what is seen as it is; [batch, D, D], zero in the rows and columns of what is seen. Missing entries m
            have W_m G^-1 W_m^T + V_m.
        """
        x = x.to(self.dtype)
        mean, gram = self._moments(x, ~x.isnan())
        hidden = x.isnan().to(self.dtype)  # [batch, D]
        spread = self.weight @ torch.linalg.solve(gram, self.weight.mT) + torch.diag(self.variances)
        covariance = spread * hidden.unsqueeze(-1) * hidden.unsqueeze(-2)
        return torch.where(x.isnan(), mean @ self.weight.mT + self.bias, x), covariance

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a latent, then an example"),
            "score": Answer("exact", "Gaussian density of continuous x"),
            "infer": Answer("exact", "Gaussian posterior"),
            "learn": Answer("exact", "closed-form maximum likelihood"),
        }

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Random directions that explain half of each column's variance; the other half is noise."""
        x = x.to(self.dtype)
        count = (~x.isnan()).sum(0).clamp_min(1)
        mean = x.nan_to_num(0.0).sum(0) / count
        variance = (torch.where(x.isnan(), 0.0, x - mean).square().sum(0) / count).clamp_min(self.floor)
        self.weight.copy_(torch.randn_like(self.weight) * (variance / (2 * self.latent)).sqrt()[:, None])
        self.bias.copy_(mean)
        self.set_variances(variance / 2)

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One EM step in place. Without holes b is first set to the mean, its optimum whatever W and v are.

        With m_n and C_n the posterior means and covariances, W's d-th row and b_d are the regression of column d on (m_n, 1)
        over the rows n where it is seen, with C_n added to the moments; v_d is what the regression leaves over.

        Returns:
            The mean log likelihood in nats before the step, [].
        """
        x = x.to(self.dtype)
        before = self.log_density(x).value.mean()
        if not self.allows_missing or not bool(x.isnan().any()):
            self._complete_step(x)
        else:
            self._holed_step(x)
        return before

    def _complete_step(self, x: Tensor) -> None:
        self.bias.copy_(x.mean(0))
        centred, (means, gram) = x - self.bias, self._moments(x, None)  # [N, D], [N, M], [M, M]
        spread = torch.linalg.inv(gram)  # C
        moments = means.mT @ means / len(x) + spread  # E[z z^T]
        weight = torch.linalg.solve(moments, centred.mT @ means / len(x), left=False)  # [D, M]
        residual = (centred - means @ weight.mT).square().mean(0)  # both terms positive: nothing cancels
        self.weight.copy_(weight)
        self.set_variances(self._shared(residual + ((weight @ spread) * weight).sum(-1), None))

    def _holed_step(self, x: Tensor) -> None:
        seen = ~x.isnan()
        known, filled = seen.to(self.dtype), x.nan_to_num(0.0)
        means, gram = self._moments(x, seen)
        spread = torch.linalg.inv(gram)  # C_n, [N, M, M]
        ones = torch.cat([means, torch.ones_like(means[:, :1])], 1)  # [N, M + 1]
        moments = torch.einsum("nd,ni,nj->dij", known, ones, ones)
        moments[:, :-1, :-1] += torch.einsum("nd,nij->dij", known, spread)
        count = known.sum(0)
        # a column without entries keeps its parameters, which nothing determines
        empty = count == 0
        moments[empty] = torch.eye(self.latent + 1, device=x.device, dtype=x.dtype)
        found = torch.linalg.solve(moments, (filled.mT @ ones).unsqueeze(-1)).squeeze(-1)  # [D, M + 1]
        weight = torch.where(empty[:, None], self.weight, found[:, :-1])
        bias = torch.where(empty, self.bias, found[:, -1])
        residual = torch.where(seen, x - means @ weight.mT - bias, 0.0).square().sum(0)
        around = torch.einsum("nd,di,nij,dj->d", known, weight, spread, weight)
        variances = torch.where(empty, self.variances, (residual + around) / count.clamp_min(1))
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.set_variances(self._shared(variances, count))

    def _shared(self, variances: Tensor, count: Tensor | None) -> Tensor:
        """The M-step's noise variances from those of the columns, [D]; `count` [D] says how many entries each rests on."""
        return variances


def _symmetric(square: Tensor) -> Tensor:
    """A matrix that is symmetric but for rounding, made so."""
    return (square + square.mT) / 2
