"""BayesianPCA and BayesianFactorAnalysis: linear Gaussian latents with priors that switch off the factors not needed."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program

__all__ = ["BayesianFactorAnalysis", "BayesianPCA"]


class BayesianPCA(Program):
    """Principal components with priors on all that is unknown, and relevances that decide how many there are:

        relevance_j ~ Gamma(shape, rate),          weights_dj ~ N(0, 1 / relevance_j),      bias_d ~ N(0, bias_scale^2),
        precision ~ Gamma(shape, rate),            z_n ~ N(0, I_M),
        x_n ~ N(weights z_n + bias, I / precision).

    A factor that the data do not ask for has a relevance that grows until its column of weights is nothing (automatic
    relevance determination), so that `latent` need only be large enough.

    `CAVI` fits q(relevance) q(weights) q(bias) q(precision) q(z) by coordinate ascent; `guide` is that q. It is a plain story, too,
    for `SVI` with an autoguide and, with `collapsed=True`, which integrates z out, for `NUTS` and its like. The weights are
    known up to a rotation of the latents: judge weights weights^T.

    Arguments:
        observed: D, entries of an example.
        latent: M < D, the most factors.
        shape, rate: of the Gammas; small ones say little.
        bias_scale: standard deviation of the bias, in data units.
        collapsed: integrate z out of the story: x_n ~ N(bias, weights weights^T + I / precision), without site z.

    Sites: `relevance` [M], `weights` [D, M], `bias` [D], `precision` [], `z` [M], `x` [D].

    Raises:
        ProgramError: an argument out of range.

    Source: C. Bishop (1999), Variational principal components; D. MacKay (1995) and R. Neal (1996) for the relevances.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.randn(100, 1) * torch.tensor([1.0, 2.0, -1.0, 0.5]) + 0.3 * torch.randn(100, 4)
        >>> dgm.learn(dgm.models.BayesianPCA(4, 3), x, seed=0).program.dimensions
        1
    """

    observed: int
    support = constraints.real
    each = False  # a noise precision for every column

    def __init__(
        self,
        observed: int,
        latent: int,
        shape: float = 1e-3,
        rate: float = 1e-3,
        bias_scale: float = 100.0,
        collapsed: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= latent < observed:
            raise ProgramError(f"latent must be from 1 to observed - 1 = {observed - 1}, but it is {latent}.")
        for name, value in (("shape", shape), ("rate", rate), ("bias_scale", bias_scale)):
            if not 0 < value < math.inf:
                raise ProgramError(f"{name} must be a positive number, but it is {value!r}.")
        self.observed, self.latent, self.shape, self.rate = observed, latent, shape, rate
        self.bias_scale, self.collapsed = bias_scale, collapsed
        noises = observed if self.each else 1
        for name, start in {
            "q_weights_mean": torch.randn(observed, latent),
            "q_weights_covariance": torch.eye(latent).repeat(observed, 1, 1),
            "q_bias_mean": torch.zeros(observed),
            "q_bias_variance": torch.ones(observed),
            "q_relevance_shape": torch.ones(latent),
            "q_relevance_rate": torch.ones(latent),
            "q_precision_shape": torch.ones(noises),
            "q_precision_rate": torch.ones(noises),
        }.items():
            self.register_buffer(name, start)

    q_weights_mean: Tensor
    q_weights_covariance: Tensor
    q_bias_mean: Tensor
    q_bias_variance: Tensor
    q_relevance_shape: Tensor
    q_relevance_rate: Tensor
    q_precision_shape: Tensor
    q_precision_rate: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the factors."""
        return self.q_bias_mean.dtype

    @property
    def device(self) -> torch.device:
        """Where the factors live."""
        return self.q_bias_mean.device

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Relevances, weights, bias and precision from their priors; z ~ N(0, I); x ~ N(W z + b, 1 / precision)."""
        one = torch.ones((), dtype=self.dtype, device=self.device)
        relevance = pyro.sample("relevance", dist.Gamma(self.shape * one, self.rate).expand((self.latent,)).to_event(1))
        deviation = relevance.rsqrt().expand(self.observed, self.latent)
        weights = pyro.sample("weights", dist.Normal(torch.zeros_like(deviation), deviation).to_event(2))
        bias = pyro.sample("bias", dist.Normal(0 * one, self.bias_scale).expand((self.observed,)).to_event(1))
        noise: Any = dist.Gamma(self.shape * one, self.rate)
        precision = pyro.sample("precision", noise.expand((self.observed,)).to_event(1) if self.each else noise)
        variance = precision.reciprocal().expand(self.observed)
        x = None if x is None else x.to(self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            if self.collapsed:
                return pyro.sample("x", dist.LowRankMultivariateNormal(bias, weights, variance), obs=x)
            z = pyro.sample("z", dist.Normal(torch.zeros_like(relevance), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ weights.mT + bias, variance.sqrt()).to_event(1), obs=x)

    def guide(self, x: Tensor, n: int = 1) -> None:
        """The factors that `CAVI` has found; q(z | x) for the rows of x."""
        pyro.sample("relevance", dist.Gamma(self.q_relevance_shape, self.q_relevance_rate).to_event(1))
        pyro.sample("weights", dist.MultivariateNormal(self.q_weights_mean, self.q_weights_covariance).to_event(1))
        pyro.sample("bias", dist.Normal(self.q_bias_mean, self.q_bias_variance.sqrt()).to_event(1))
        if self.each:
            pyro.sample("precision", dist.Gamma(self.q_precision_shape, self.q_precision_rate).to_event(1))
        else:
            pyro.sample("precision", dist.Gamma(self.q_precision_shape[0], self.q_precision_rate[0]))
        if not self.collapsed:
            mean, covariance = self.latents(x)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(mean, covariance))

    def default_method(self, task: str) -> Any:
        """Coordinate ascent for `learn`, its q for `infer`; with z integrated out, the No-U-Turn sampler for `infer`."""
        if task == "learn":
            return "cavi"
        return ("nuts" if self.collapsed else "amortised") if task == "infer" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "parameters from their prior, then examples"),
            "score": Answer(
                "unavailable", "examples are tied by the unknown parameters; the bound is in notes of the Fit of CAVI"
            ),
            "infer": Answer("asymptotic", "NUTS, z integrated out")
            if self.collapsed
            else Answer("approximate", "the factors that CAVI has found"),
            "learn": Answer("lower_bound", "coordinate ascent on the evidence lower bound"),
        }

    @property
    def dimensions(self) -> int:
        """How many factors are at work: those that add at least one per cent of what noise has to the columns' variance."""
        added = self.q_weights_mean.square().mean(0)
        noise = (self.q_precision_rate / self.q_precision_shape).mean()
        return int((added > 0.01 * noise).sum())

    # -- coordinate ascent ---------------------------------------------------------------------------------------

    @property
    def _precision(self) -> Tensor:
        """E[precision] of each column, [D]."""
        return (self.q_precision_shape / self.q_precision_rate).expand(self.observed)

    def latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means [N, M] and the covariance [M, M] of q(z) given the other factors."""
        x, tau = x.to(self.dtype), self._precision
        second = self.q_weights_covariance + self.q_weights_mean.unsqueeze(-1) * self.q_weights_mean.unsqueeze(-2)
        gram = torch.eye(self.latent, dtype=self.dtype, device=self.device) + torch.einsum("d,dij->ij", tau, second)
        covariance = torch.linalg.inv(gram)
        return (x - self.q_bias_mean) * tau @ self.q_weights_mean @ covariance, covariance

    @torch.no_grad()
    def cavi_start(self, x: Tensor) -> None:
        """Random weights, the column means, and noise of the columns' own variance."""
        x = x.to(self.dtype)
        variance = x.var(0, correction=0).clamp_min(1e-6)
        self.q_weights_mean.copy_(torch.randn_like(self.q_weights_mean) * (variance / self.latent).sqrt()[:, None])
        self.q_weights_covariance.copy_(torch.eye(self.latent).to(x) * 1e-2 * variance[:, None, None])
        self.q_bias_mean.copy_(x.mean(0))
        self.q_bias_variance.copy_(variance / len(x))
        self.q_relevance_shape.fill_(1.0)
        self.q_relevance_rate.copy_(self.q_weights_mean.square().mean(0))
        self.q_precision_shape.fill_(1.0)
        self.q_precision_rate.copy_(variance if self.each else variance.mean().reshape(1))

    @torch.no_grad()
    def cavi_step(self, x: Tensor) -> Tensor:
        """Every factor once, each the best given the others: z, weights (turned), bias, relevance, precision.

        Returns:
            The evidence lower bound after the step, in nats, [].
        """
        x = x.to(self.dtype)
        count, tau = len(x), self._precision
        means, spread = self.latents(x)
        moments = means.mT @ means + count * spread  # sum_n E[z z^T]
        relevance = self.q_relevance_shape / self.q_relevance_rate
        gram = torch.diag(relevance) + tau[:, None, None] * moments  # [D, M, M]
        self.q_weights_covariance.copy_(torch.linalg.inv(gram))
        pull = tau[:, None] * ((x - self.q_bias_mean).mT @ means)  # [D, M]
        self.q_weights_mean.copy_(torch.linalg.solve(gram, pull.unsqueeze(-1)).squeeze(-1))
        turn = self._turned()
        means, spread = means @ turn, turn.mT @ spread @ turn
        self.q_bias_variance.copy_(1 / (self.bias_scale**-2 + count * tau))
        self.q_bias_mean.copy_(self.q_bias_variance * tau * (x - means @ self.q_weights_mean.mT).sum(0))
        second = self.q_weights_mean.square() + self.q_weights_covariance.diagonal(dim1=-2, dim2=-1)  # E[w_dj^2]
        self.q_relevance_shape.fill_(self.shape + self.observed / 2)
        self.q_relevance_rate.copy_(self.rate + second.sum(0) / 2)
        distance = self._distance(x, means, spread)  # [D]
        if self.each:
            self.q_precision_shape.fill_(self.shape + count / 2)
            self.q_precision_rate.copy_(self.rate + distance / 2)
        else:
            self.q_precision_shape.fill_(self.shape + count * self.observed / 2)
            self.q_precision_rate.copy_((self.rate + distance.sum() / 2).reshape(1))
        return self._bound(x, means, spread, distance)

    def _turned(self) -> Tensor:
        """Turn the weights onto the axes along which they are uncorrelated, and return the rotation, [M, M], for the latents.

        Nothing but the relevances sees a rotation, and they are best served by this one (Hadamard's inequality); without it the
        factors turn there by very small steps (J. Luttinen and A. Ilin 2010).
        """
        w = self.q_weights_mean
        turn = torch.linalg.eigh(w.mT @ w + self.q_weights_covariance.sum(0)).eigenvectors
        self.q_weights_mean.copy_(w @ turn)
        self.q_weights_covariance.copy_(turn.mT @ self.q_weights_covariance @ turn)
        return turn

    def _distance(self, x: Tensor, means: Tensor, spread: Tensor) -> Tensor:
        """E sum_n (x_nd - w_d z_n - b_d)^2 under q, [D]; a sum of positive terms."""
        w, c = self.q_weights_mean, self.q_weights_covariance
        residual = (x - means @ w.mT - self.q_bias_mean).square().sum(0)
        moments = means.mT @ means + len(x) * spread
        around = torch.einsum("dij,ij->d", c, moments) + len(x) * torch.einsum("di,ij,dj->d", w, spread, w)
        return residual + around + len(x) * self.q_bias_variance

    def _bound(self, x: Tensor, means: Tensor, spread: Tensor, distance: Tensor) -> Tensor:
        """E_q[log p(x, all sites) - log q] in nats, []."""
        count = len(x)
        tau, log_tau = self._precision, _mean_log(self.q_precision_shape, self.q_precision_rate).expand(self.observed)
        relevance = self.q_relevance_shape / self.q_relevance_rate
        log_relevance = _mean_log(self.q_relevance_shape, self.q_relevance_rate)
        data = 0.5 * (count * (log_tau - math.log(2 * math.pi)) - tau * distance).sum()
        zero = torch.zeros_like(spread[0])
        latents = count * _normal_divergence(zero, spread, 1 + zero) + 0.5 * means.square().sum()
        second = self.q_weights_mean.square() + self.q_weights_covariance.diagonal(dim1=-2, dim2=-1)
        # E log p(weights) - E log q(weights), the relevances being random
        weights = 0.5 * (
            self.observed * log_relevance.sum() - (relevance * second).sum()
            + torch.linalg.slogdet(self.q_weights_covariance).logabsdet.sum() + self.observed * self.latent
        )  # fmt: skip
        ratio = self.q_bias_variance / self.bias_scale**2
        bias = 0.5 * (ratio.log() + 1 - ratio - (self.q_bias_mean / self.bias_scale).square()).sum()
        gammas = [(self.q_relevance_shape, self.q_relevance_rate), (self.q_precision_shape, self.q_precision_rate)]
        prior = dist.Gamma(torch.full_like(tau[:1], self.shape), self.rate)
        divergence = sum(
            (torch.distributions.kl_divergence(dist.Gamma(a, b), prior.expand(a.shape)).sum() for a, b in gammas),
            torch.zeros_like(data),
        )
        return data - latents + weights + bias - divergence


class BayesianFactorAnalysis(BayesianPCA):
    """As `BayesianPCA`, with a noise precision for every column, precision_d ~ Gamma(shape, rate), [D].

    Source: Z. Ghahramani and M. Beal (2000), Variational inference for Bayesian mixtures of factor analysers.
    """

    each = True


def _mean_log(shape: Tensor, rate: Tensor) -> Tensor:
    """E log t for t ~ Gamma(shape, rate)."""
    return torch.digamma(shape) - rate.log()


def _normal_divergence(mean: Tensor, covariance: Tensor, precision: Tensor) -> Tensor:
    """KL of N(mean, covariance) from N(0, diag(1 / precision)), []."""
    trace = (precision * covariance.diagonal()).sum()
    log_det = torch.linalg.slogdet(covariance).logabsdet + precision.log().sum()
    return 0.5 * (trace + (precision * mean.square()).sum() - len(mean) - log_det)
