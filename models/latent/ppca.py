"""ProbabilisticPCA: a linear map of Gaussian latents plus Gaussian noise; every answer is exact."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["ProbabilisticPCA"]


class ProbabilisticPCA(Program):
    """z ~ N(0, I_M), x = W z + b + e, e ~ N(0, s^2 I_D); so that, with B = W^T W + s^2 I_M,

        p(x) = N(b, W W^T + s^2 I_D),        p(z | x) = N(B^-1 W^T (x - b), s^2 B^-1).

    The guide is that posterior, so that one draw gives the ELBO without variance and equal to log p(x). Only
    M x M matrices are factorised.

    Arguments:
        observed: D, entries of an example.
        latent: M < D.
        floor: smallest noise variance s^2, in squared data units.

    Attributes:
        weight: W, [D, M].
        bias: b, [D].
        log_variance: log s^2, [].

    Raises:
        ProgramError: an argument out of range.

    Source: M. Tipping and C. Bishop (1999), Probabilistic principal component analysis; J. Tomczak (2024),
        Deep Generative Modeling, 5.2, whose equation (5.7) prints the covariance as s^-2 B.

    Example:
        >>> import ppl_dgm as dgm
        >>> digits = dgm.data.digits()
        >>> fit = dgm.learn(dgm.models.ProbabilisticPCA(64, 16), digits)
        >>> dgm.infer(fit.program, digits.test[:5]).exact["z"].mean.shape
        torch.Size([5, 16])
    """

    observed: int
    support = constraints.real

    def __init__(self, observed: int, latent: int, floor: float = 1e-6) -> None:
        super().__init__()
        if not 1 <= latent < observed:
            raise ProgramError(
                f"latent must be from 1 to observed - 1 = {observed - 1}, but it is {latent}: "
                "the noise is what the latents leave over."
            )
        if floor <= 0:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        self.observed, self.latent, self.floor = observed, latent, floor
        self.weight = nn.Parameter(torch.randn(observed, latent) / latent**0.5)
        self.bias = nn.Parameter(torch.zeros(observed))
        self.log_variance = nn.Parameter(torch.zeros(()))

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ N(0, I); x ~ N(W z + b, s^2 I)."""
        origin = self.weight.new_zeros(self.latent)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))
            x = None if x is None else x.to(self.dtype)
            return pyro.sample(
                "x", dist.Normal(z @ self.weight.mT + self.bias, self.variance.sqrt()).to_event(1), obs=x
            )

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ p(z | x), the exact posterior."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.posterior(x)["z"])

    @property
    def variance(self) -> Tensor:
        """s^2, [], never below the floor."""
        return self.log_variance.exp().clamp_min(self.floor)

    # -- exact answers ---------------------------------------------------------------------------------------

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(z | x) = N(B^-1 W^T (x - b), s^2 B^-1), batch shape [len(x)]."""
        return {
            "z": dist.MultivariateNormal(self._mean(x.to(self.dtype)), precision_matrix=self._gram() / self.variance)
        }

    def log_density(self, x: Tensor) -> Score:
        """log N(x | b, W W^T + s^2 I) in nats, [batch], through the M x M matrix B.

        log det = (D - M) log s^2 + log det B, and (x-b)^T C^-1 (x-b) = |x - b - W m|^2 / s^2 + |m|^2 with m
        the posterior mean, which unlike the difference in Woodbury's formula loses no digits.
        """
        x = x.to(self.dtype)
        mean = self._mean(x)  # [batch, M]
        residual = x - self.bias - mean @ self.weight.mT  # [batch, D]
        distance = residual.square().sum(-1) / self.variance + mean.square().sum(-1)
        spare = self.observed - self.latent
        log_det = spare * self.variance.log() + torch.linalg.cholesky(self._gram()).diagonal().log().sum() * 2
        constant = self.observed * torch.log(torch.tensor(2 * torch.pi, device=x.device, dtype=x.dtype))
        return Score(-0.5 * (constant + log_det + distance), "exact", how="Gaussian density of continuous x")

    def _gram(self) -> Tensor:
        """B = W^T W + s^2 I, [M, M]."""
        return self.weight.mT @ self.weight + self.variance * torch.eye(
            self.latent, device=self.device, dtype=self.dtype
        )

    def _mean(self, x: Tensor) -> Tensor:
        """E[z | x] = B^-1 W^T (x - b), [batch, M]."""
        return torch.linalg.solve(self._gram(), ((x - self.bias) @ self.weight).mT).mT

    @torch.no_grad()
    def impute(self, x: Tensor) -> Tensor:
        """x [batch, D] with every NaN replaced by its exact mean given the entries that are there."""
        x = x.to(self.dtype)
        seen = ~x.isnan()
        centred = torch.where(seen, x - self.bias, 0.0)  # [batch, D]
        identity = torch.eye(self.latent, device=x.device, dtype=x.dtype)
        gram = torch.einsum("nd,di,dj->nij", seen.to(x), self.weight, self.weight) + self.variance * identity
        mean = torch.linalg.solve(gram, centred @ self.weight)  # [batch, M], from the seen entries alone
        return torch.where(seen, x, mean @ self.weight.mT + self.bias)

    def default_method(self, task: str) -> Any:
        """The closed form for `learn`."""
        return "closed-form" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a latent, then an example"),
            "score": Answer("exact", "Gaussian density of continuous x"),
            "infer": Answer("exact", "Gaussian posterior"),
            "learn": Answer("exact", "closed-form maximum likelihood"),
        }

    # -- learning --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None, correction: int = 0) -> dict[str, Any]:
        """Maximum likelihood, from the eigenvalues Lambda and eigenvectors U of the covariance.

        b is the mean, s^2 the mean of the D - M smallest eigenvalues, W = U_M (Lambda_M - s^2 I)^(1/2).

        Arguments:
            train: [N, D], N at least 2.
            valid: not needed.
            correction: the covariance divides by N - correction; 0 is maximum likelihood, 1 what
                scikit-learn's `PCA` does.

        Returns:
            The share of the variance that the M directions explain.
        """
        if len(train) < 2:
            raise ProgramError(f"a covariance needs at least 2 examples, but there is {len(train)}.")
        x = train.to(self.dtype)
        bias = x.mean(0)
        _, singular, directions = torch.linalg.svd(x - bias, full_matrices=False)
        eigenvalues = torch.zeros_like(bias)  # [D]; with fewer examples than dimensions the rest are zero
        eigenvalues[: len(singular)] = singular.square() / (len(x) - correction)
        kept = min(self.latent, len(singular))
        variance = eigenvalues[self.latent :].mean().clamp_min(self.floor)
        lengths = (eigenvalues[:kept] - variance).clamp_min(0).sqrt()
        self.weight.zero_()
        self.weight[:, :kept] = directions[:kept].mT * lengths
        self.bias.copy_(bias)
        self.log_variance.copy_(variance.log())
        return {"explained_variance": float(eigenvalues[: self.latent].sum() / eigenvalues.sum())}

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Random directions, noise of the data's own variance."""
        x = x.to(self.dtype)
        variance = x.var(0, correction=0).mean().clamp_min(self.floor)
        self.weight.copy_(torch.randn_like(self.weight) * (variance / self.latent).sqrt())
        self.bias.copy_(x.mean(0))
        self.log_variance.copy_(variance.log())

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One EM step in place, after b has been set to the mean, its optimum whatever W and s^2 are.

        With m_n the posterior means, S their second moments averaged over n, C = s^2 B^-1 and r_n = x_n - b:
        W' = (1/N sum_n r_n m_n^T) (S + C)^-1 and s'^2 = (1/N sum_n |r_n - W' m_n|^2 + tr W' C W'^T) / D.

        Returns:
            The mean log likelihood in nats before the step, [].
        """
        x = x.to(self.dtype)
        before = self.log_density(x).value.mean()
        self.bias.copy_(x.mean(0))
        centred, means = x - self.bias, self._mean(x)  # [N, D], [N, M]
        spread = self.variance * torch.linalg.inv(self._gram())  # C, [M, M]
        moments = means.mT @ means / len(x) + spread  # E[z z^T]
        weight = torch.linalg.solve(moments, centred.mT @ means / len(x), left=False)  # [D, M]
        residual = (centred - means @ weight.mT).square().sum() / len(x)  # both terms positive: nothing cancels
        variance = (residual + ((weight @ spread) * weight).sum()) / self.observed
        self.weight.copy_(weight)
        self.log_variance.copy_(variance.clamp_min(self.floor).log())
        return before
