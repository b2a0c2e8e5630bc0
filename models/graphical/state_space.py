"""LinearGaussianStateSpace: a linear-Gaussian chain seen through linear-Gaussian observations; filter, smoother and EM exact."""

import math
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.distributions.gaussian_chain import GaussianChain
from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["Filtered", "LinearGaussianStateSpace"]


class Filtered(NamedTuple):
    """What the Kalman filter finds.

    Attributes:
        log_evidence: log p(x), [n].
        means, covariances: of z_t given x_1, ..., x_t, [n, T, M] and [n, T, M, M].
        predicted_means, predicted_covariances: of z_t given x_1, ..., x_{t-1}.
    """

    log_evidence: Tensor
    means: Tensor
    covariances: Tensor
    predicted_means: Tensor
    predicted_covariances: Tensor


class LinearGaussianStateSpace(Program):
    """z_1 ~ N(m, P),  z_t = A z_{t-1} + N(0, Q),  x_t = C z_t + d + N(0, diag(r)).

    The chain is one site z, [T, M], whose posterior is a chain too, so that draws are of whole paths. Data are [n, T], or
    [n, T, D]. Entries may be missing (NaN), some of a step or all of it; shorter sequences are those whose end is missing.

    Arguments:
        latent: M, entries of z_t.
        dimensions: D, entries of x_t.
        length: T; None takes that of the data.
        floor: smallest variance of an observation.

    Attributes:
        transition: A, [M, M]. weight: C, [D, M]. bias: d, [D].
        first_mean: m, [M]. first_factor, process_factor: Cholesky factors of P and Q, their diagonals as logarithms.
        log_noise: log r, [D].

    Raises:
        ProgramError: an argument out of range.

    Source: R. Kalman (1960); H. Rauch, F. Tung and C. Striebel (1965); R. Shumway and D. Stoffer (1982) for EM.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program, x = LinearGaussianStateSpace(2), torch.randn(3, 10)
        >>> dgm.infer(program, x, seed=0).exact["z"].mean.shape
        torch.Size([3, 10, 2])
    """

    allows_missing = True
    support = constraints.real

    def __init__(self, latent: int, dimensions: int = 1, length: int | None = None, floor: float = 1e-6) -> None:
        super().__init__()
        for name, number in (
            ("latent", latent),
            ("dimensions", dimensions),
            ("length", 1 if length is None else length),
        ):
            if not isinstance(number, int) or number < 1:
                raise ProgramError(f"{name} must be a whole number, at least 1, but it is {number!r}.")
        if floor <= 0:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        self.latent, self.dimensions, self.length, self.floor = latent, dimensions, length, floor
        self.observed = length if dimensions == 1 else None
        self.transition = nn.Parameter(0.9 * torch.eye(latent))
        self.weight = nn.Parameter(torch.randn(dimensions, latent))
        self.bias = nn.Parameter(torch.zeros(dimensions))
        self.first_mean = nn.Parameter(torch.zeros(latent))
        self.first_factor = nn.Parameter(torch.zeros(latent, latent))
        self.process_factor = nn.Parameter(torch.zeros(latent, latent))
        self.log_noise = nn.Parameter(torch.zeros(dimensions))

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1, length: int | None = None) -> Tensor:
        """z ~ the chain; x_t ~ N(C z_t + d, diag(r))."""
        entries, seen = (None, None) if x is None else self._entries(x)
        steps = (length or self.length) if entries is None else entries.shape[1]
        if steps is None:
            raise ProgramError(
                "how long a sequence is to be is not known; pass length=..., to sample or to the program."
            )
        with pyro.plate("data", n if entries is None else len(entries)):
            z = pyro.sample("z", self.chain(steps))
            mean = z @ self.weight.mT + self.bias  # [n, T, D]
            mean = mean if self.dimensions > 1 else mean.squeeze(-1)
            fn = dist.Normal(mean, self.noise.sqrt())
            if seen is not None and not bool(seen.all()):
                fn = fn.mask(seen if self.dimensions > 1 else seen.squeeze(-1))
            obs = entries if entries is None or self.dimensions > 1 else entries.squeeze(-1)
            return pyro.sample("x", fn.to_event(2 if self.dimensions > 1 else 1), obs=obs)

    def chain(self, steps: int) -> GaussianChain:
        """The prior of the states."""
        more = (steps - 1, self.latent, self.latent)
        return GaussianChain(
            self.first_mean, _tril(self.first_factor), self.transition.expand(more),
            self.first_mean.new_zeros(more[:2]), _tril(self.process_factor).expand(more),
        )  # fmt: skip

    @property
    def noise(self) -> Tensor:
        """r, [D], never below the floor."""
        return self.log_noise.exp().clamp_min(self.floor)

    @property
    def process_covariance(self) -> Tensor:
        """Q, [M, M]."""
        return _tril(self.process_factor) @ _tril(self.process_factor).mT

    @property
    def first_covariance(self) -> Tensor:
        """P, [M, M]."""
        return _tril(self.first_factor) @ _tril(self.first_factor).mT

    def _entries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x as [n, T, D] with zeros in its holes, and which entries are there."""
        x = x.unsqueeze(-1) if self.dimensions == 1 and x.dim() == 2 else x
        if x.dim() != 3 or x.shape[-1] != self.dimensions:
            wanted = "[n, T]" if self.dimensions == 1 else f"[n, T, {self.dimensions}]"
            raise DataError(f"sequences must have shape {wanted}, but x has {tuple(x.shape)}.")
        x = x.to(self.dtype)
        seen = ~x.isnan()
        return torch.where(seen, x, torch.zeros_like(x)), seen

    # -- exact answers ---------------------------------------------------------------------------------------

    def kalman_filter(self, x: Tensor) -> Filtered:
        """The filter, all sequences at once.

        A missing entry becomes one of variance 1 that does not depend on z and is met exactly, and what that adds to the
        log evidence is taken off. Covariances are updated in Joseph's form, which keeps them positive definite.
        """
        entries, seen = self._entries(x)
        rows, steps = entries.shape[:2]
        identity = torch.eye(self.latent, dtype=self.dtype, device=entries.device)
        there = seen.to(self.dtype)
        mean = self.first_mean.expand(rows, -1)
        cov = self.first_covariance.expand(rows, -1, -1)
        found: list[list[Tensor]] = [[], [], [], []]
        evidence = mean.new_zeros(rows)
        for t in range(steps):
            if t:
                mean = mean @ self.transition.mT
                cov = self.transition @ cov @ self.transition.mT + self.process_covariance
            before = (mean, cov)
            weight = there[:, t, :, None] * self.weight  # [n, D, M]
            noise = torch.where(seen[:, t], self.noise, 1.0)  # [n, D]
            residual = (entries[:, t] - self.bias) * there[:, t] - (weight @ mean.unsqueeze(-1)).squeeze(-1)
            spread = weight @ cov @ weight.mT + torch.diag_embed(noise)
            tril = torch.linalg.cholesky(spread)
            gain = torch.cholesky_solve(weight @ cov, tril).mT  # [n, M, D]
            left = identity - gain @ weight
            mean = mean + (gain @ residual.unsqueeze(-1)).squeeze(-1)
            cov = left @ cov @ left.mT + gain * noise.unsqueeze(-2) @ gain.mT
            white = torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False).squeeze(-1)
            log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            constant = 0.5 * math.log(2 * math.pi) * there[:, t].sum(-1)
            evidence = evidence - constant - log_det - 0.5 * white.square().sum(-1)
            for kept, value in zip(found, (mean, cov, *before), strict=True):
                kept.append(value)
        return Filtered(evidence, *(torch.stack(kept, 1) for kept in found))

    def smoother(self, x: Tensor) -> GaussianChain:
        """p(z | x) as a chain from the last step back (Rauch-Tung-Striebel), batch shape [n].

        z_t given z_{t+1} and x_1, ..., x_t is N(m_t + J (z_{t+1} - A m_t), (I - J A) P_t (I - J A)^T + J Q J^T).
        """
        return self._smoothed(self.kalman_filter(x))

    def _smoothed(self, found: Filtered) -> GaussianChain:
        means, covs = found.means, found.covariances
        last = (means[:, -1], torch.linalg.cholesky(covs[:, -1]))
        cross = self.transition @ covs[:, :-1]  # Cov(z_{t+1}, z_t), [n, T - 1, M, M]
        gain = torch.cholesky_solve(cross, torch.linalg.cholesky(found.predicted_covariances[:, 1:])).mT
        left = torch.eye(self.latent, dtype=self.dtype, device=means.device) - gain @ self.transition
        cov = left @ covs[:, :-1] @ left.mT + gain @ self.process_covariance @ gain.mT
        offset = means[:, :-1] - (gain @ found.predicted_means[:, 1:].unsqueeze(-1)).squeeze(-1)
        tril = torch.linalg.cholesky(0.5 * (cov + cov.mT))
        return GaussianChain(*last, gain.flip(1), offset.flip(1), tril.flip(1), reverse=True)

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [n], by the Kalman filter."""
        return Score(self.log_prob(x), "exact", how="Kalman filter, Gaussian density of continuous x")

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [n], for `MaximumLikelihood`."""
        return self.kalman_filter(x).log_evidence

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(z | x), exact."""
        return {"z": self.smoother(x)}

    def impute(self, x: Tensor) -> Tensor:
        """x with every hole filled by its mean given all that is seen, of the shape of x."""
        entries, seen = self._entries(x)
        guess = self.smoother(x).mean @ self.weight.mT + self.bias
        return torch.where(seen, entries, guess).reshape(x.shape)

    def default_method(self, task: str) -> Any:
        """EM for `learn`."""
        return "em" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "one step after another"),
            "score": Answer("exact", "Kalman filter"),
            "infer": Answer("exact", "Rauch-Tung-Striebel smoother"),
            "learn": Answer("approximate", "expectation maximisation, a local optimum"),
        }

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Slow dynamics, random directions of the size of the data, half of their variance as noise."""
        entries, seen = self._entries(x)
        holes = torch.where(seen, entries, torch.nan)
        bias = holes.nanmean((0, 1)).nan_to_num(0.0)
        variance = (holes - bias).square().nanmean((0, 1)).nan_to_num(1.0).clamp_min(self.floor)
        identity = torch.eye(self.latent).to(self.transition)
        self.transition.copy_(0.9 * identity)
        self.weight.copy_(torch.randn_like(self.weight) * (variance / self.latent / 2).sqrt().unsqueeze(-1))
        self.bias.copy_(bias)
        self.first_mean.zero_()
        self.first_factor.zero_()
        self.process_factor.copy_(identity * 0.5 * math.log(0.19))  # so that the chain has variance 1
        self.log_noise.copy_((variance / 2).log())

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One E- and M-step in place; returns the mean log likelihood per sequence in nats before it, []."""
        entries, seen = self._entries(x)
        found = self.kalman_filter(x)
        chain = self._smoothed(found)
        means, covs = chain.marginals()  # [n, T, M], [n, T, M, M]
        # Cov(z_{t-1}, z_t | x) = J_{t-1} Cov(z_t | x)
        cross = (chain.gain.flip(1) @ covs[:, 1:]).mT + means[:, 1:, :, None] * means[:, :-1, None, :]
        second = covs + means[..., :, None] * means[..., None, :]
        self._maximise_dynamics(means, covs, second, cross)
        self._maximise_observations(entries, seen.to(self.dtype), means, second)
        return found.log_evidence.mean()

    def _maximise_dynamics(self, means: Tensor, covs: Tensor, second: Tensor, cross: Tensor) -> None:
        rows, steps = means.shape[:2]
        first = means[:, 0].mean(0)
        away = means[:, 0] - first
        self.first_mean.copy_(first)
        self.first_factor.copy_(_factor(covs[:, 0].mean(0) + away.mT @ away / rows))
        if steps == 1:
            return
        before, after, both = second[:, :-1].sum((0, 1)), second[:, 1:].sum((0, 1)), cross.sum((0, 1))
        transition = torch.linalg.solve(before, both, left=False)
        self.transition.copy_(transition)
        left = both @ transition.mT
        spread = after - left - left.mT + transition @ before @ transition.mT
        self.process_factor.copy_(_factor(spread / (rows * (steps - 1))))

    def _maximise_observations(self, entries: Tensor, there: Tensor, means: Tensor, second: Tensor) -> None:
        """Each row of (C, d) by itself, from the steps at which its entry is seen."""
        size = self.latent
        extended = means.new_ones(*means.shape[:2], size + 1)
        extended[..., :size] = means
        moments = means.new_zeros(*means.shape[:2], size + 1, size + 1)
        moments[..., :size, :size] = second
        moments[..., size, :] = moments[..., :, size] = extended
        gram = torch.einsum("ntd,ntij->dij", there, moments)  # [D, M + 1, M + 1]
        with_x = torch.einsum("ntd,ntd,nti->di", there, entries, extended)
        total = there.sum((0, 1))  # [D]
        known = total > 0
        identity = torch.eye(size + 1).to(gram)
        gram = torch.where(known[:, None, None], gram, identity)
        rows = torch.linalg.solve(gram, with_x.unsqueeze(-1)).squeeze(-1)  # [D, M + 1]
        squares = (there * entries.square()).sum((0, 1))
        left = squares - 2 * (rows * with_x).sum(-1) + torch.einsum("di,dij,dj->d", rows, gram, rows)
        noise = (left / total.clamp_min(1)).clamp_min(self.floor)
        self.weight.copy_(torch.where(known[:, None], rows[:, :size], self.weight))
        self.bias.copy_(torch.where(known, rows[:, size], self.bias))
        self.log_noise.copy_(torch.where(known, noise.log(), self.log_noise))


def _tril(factor: Tensor) -> Tensor:
    """A Cholesky factor from its free form."""
    return factor.tril(-1) + torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1).exp())


def _factor(covariance: Tensor) -> Tensor:
    """The free form of a covariance's Cholesky factor."""
    tril = torch.linalg.cholesky(0.5 * (covariance + covariance.mT))
    return tril.tril(-1) + torch.diag_embed(tril.diagonal().log())
