"""Pathfinder: normal distributions along the paths of L-BFGS, the best of each pooled by importance weights."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError
from ppl_dgm.inference.approximating.approximations import require_counts, spent, weighted
from ppl_dgm.inference.approximating.optimising import InverseHessian, climb
from ppl_dgm.inference.diagnostics.psis import psis
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Posterior

__all__ = ["LowRankNormals", "Pathfinder", "Paths", "follow_paths", "pathfinder_initial"]

_PATIENCE = 50  # steps without a better bound on any path after which all stop: the density may be unbounded


class LowRankNormals:
    """Normal distributions, one for each path, with the covariance that L-BFGS knows, factored as M M^T with

        M = diag(alpha)^(1/2) (I + Q (L - I) Q^T),      Q R = diag(alpha)^(-1/2) B,      L L^T = I + R C R^T.

    Attributes:
        mean: [path, d].
        root_alpha: [path, d].
        q: orthonormal columns, [path, d, rank].
        l: lower triangular, [path, rank, rank].
        log_det: log |M|, [path].
        valid: whether the covariance is positive definite and all numbers are finite, [path].
    """

    def __init__(self, mean: Tensor, root_alpha: Tensor, q: Tensor, l: Tensor, valid: Tensor) -> None:  # noqa: E741
        self.mean, self.root_alpha, self.q, self.l, self.valid = mean, root_alpha, q, l, valid
        self.log_det = root_alpha.log().sum(1) + l.diagonal(dim1=-2, dim2=-1).log().sum(1)

    @classmethod
    def at(cls, z: Tensor, gradient: Tensor, inverse: InverseHessian) -> "LowRankNormals":
        """N(z + H grad log p(z), H) for each path."""
        root_alpha = inverse.alpha.sqrt()
        b, c = inverse.factors()
        mean = z + inverse.alpha * gradient + (b @ (c @ (b.mT @ gradient[..., None])))[..., 0]
        scaled = b / root_alpha[..., None]
        finite = scaled.isfinite().flatten(1).all(1) & c.isfinite().flatten(1).all(1) & mean.isfinite().all(1)
        scaled = torch.where(finite[:, None, None], scaled, 0.0)
        q, r = torch.linalg.qr(scaled)
        eye = torch.eye(r.shape[1], dtype=z.dtype, device=z.device)
        inner = torch.where(finite[:, None, None], eye + r @ torch.where(c.isfinite(), c, 0.0) @ r.mT, eye)
        l, failed = torch.linalg.cholesky_ex((inner + inner.mT) / 2)  # noqa: E741
        valid = finite & (failed == 0)
        l = torch.where(valid[:, None, None], l, eye)  # noqa: E741
        return cls(torch.where(valid[:, None], mean, z), root_alpha, q, l, valid)

    def moved(self, other: "LowRankNormals", where: Tensor) -> "LowRankNormals":
        """These, with the paths marked in `where` [path] taken from the others."""
        row, block = where[:, None], where[:, None, None]
        return LowRankNormals(
            torch.where(row, other.mean, self.mean),
            torch.where(row, other.root_alpha, self.root_alpha),
            torch.where(block, other.q, self.q),
            torch.where(block, other.l, self.l),
            torch.where(where, other.valid, self.valid),
        )

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draws and their log densities, [..., path, d] and [..., path], from standard normal numbers [..., path, d]."""
        inside = noise[..., None, :] @ self.q  # [..., path, 1, rank]
        turned = (inside @ self.l.mT - inside) @ self.q.mT
        z = self.mean + self.root_alpha * (noise + turned[..., 0, :])
        return z, self._log_density(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """[..., path] for points [..., d]: the log density of each under every path's distribution."""
        x = (z[..., None, :] - self.mean) / self.root_alpha  # [..., path, d]
        inside = x[..., None, :] @ self.q
        back = torch.linalg.solve_triangular(self.l.mT, inside, upper=True, left=False)
        return self._log_density(x + ((back - inside) @ self.q.mT)[..., 0, :])

    def _log_density(self, noise: Tensor) -> Tensor:
        return -0.5 * noise.square().sum(-1) - 0.5 * noise.shape[-1] * math.log(2 * math.pi) - self.log_det


@dataclass
class Paths:
    """What following several paths has found.

    Attributes:
        normals: the best distribution of each path.
        elbo: its evidence lower bound, nats, [path]; minus infinity for a path without any.
        steps: at which step of L-BFGS it lies, [path].
        evaluations: log densities that were computed without a gradient.
    """

    normals: LowRankNormals
    elbo: Tensor
    steps: Tensor
    evaluations: int

    def draw(self, density: Any, draws: int) -> tuple[Tensor, Tensor]:
        """Draws [draw, d], shared evenly among the paths, and their log weights [draw]: log p less the log density of
        the mixture from which they come.
        """
        paths = int((self.elbo > -torch.inf).sum())
        usable = (self.elbo > -torch.inf).nonzero().flatten()
        rounds = -(-draws // paths)
        noise = torch.randn(rounds, *self.normals.mean.shape, dtype=self.normals.mean.dtype, device=self.elbo.device)
        z = self.normals.push(noise)[0][:, usable].flatten(0, 1)[:draws]  # [draw, d]
        share = torch.bincount(torch.arange(draws, device=z.device) % paths, minlength=paths).to(z) / draws
        log_q = torch.cat([self.normals.log_prob(some)[:, usable] for some in z.split(1024)])
        return z, density.log_prob(z) - (log_q + share.log()).logsumexp(1)


def follow_paths(
    density: Any,
    initial: Tensor,
    memory: int = 10,
    iterations: int = 1000,
    elbo_draws: int = 25,
    tolerance: float = 1e-8,
) -> Paths:
    """L-BFGS from every start at once, and at each of its steps the normal distribution that its history implies;
    of each path the one with the highest evidence lower bound is kept.

    Arguments:
        density: a `LogDensity`.
        initial: starts, [path, d].
        memory, iterations, tolerance: see `climb`.
        elbo_draws: draws by which a lower bound is estimated.

    Raises:
        NumericalError: no step of any path has a distribution with a finite bound.
    """
    best, elbo, steps = None, None, None
    evaluations = 0
    for count, here in enumerate(climb(density, initial, memory, iterations, tolerance)):
        normals = LowRankNormals.at(here.point.z, here.point.gradient, here.inverse)
        noise = torch.randn(elbo_draws, *initial.shape, dtype=initial.dtype, device=initial.device)
        z, log_q = normals.push(noise)
        log_p = density.log_prob(z.flatten(0, 1)).reshape(log_q.shape)
        evaluations += log_p.numel()
        bound = (log_p - log_q).mean(0)  # [path]
        bound = torch.where(normals.valid & bound.isfinite(), bound, -torch.inf)
        if best is None or elbo is None or steps is None:
            best, elbo, steps = normals, bound, torch.zeros(len(initial), dtype=torch.long, device=initial.device)
            continue
        better = here.moved & (bound > elbo)
        best, elbo = best.moved(normals, better), torch.where(better, bound, elbo)
        steps = torch.where(better, count, steps)
        if count - int(steps.max()) > _PATIENCE:
            break
    assert best is not None and elbo is not None and steps is not None
    if not bool((elbo > -torch.inf).any()):
        raise NumericalError(
            "Pathfinder found no normal distribution with a finite evidence lower bound on any path; the density may be "
            "zero or infinite near every start: check the program with dgm.check, or use dtype=torch.float64."
        )
    return Paths(best, elbo, steps, evaluations)


@algorithm("pathfinder")
@dataclass(frozen=True)
class Pathfinder:
    """Multi-path Pathfinder: variational inference along the way to a mode.

    From each start L-BFGS climbs towards a mode; at each step l its history implies a normal distribution

        q_l = N(z_l + H_l grad log p(z_l), H_l),

    and that with the highest evidence lower bound is kept, often well before the mode, where the bulk of the posterior
    lies. Draws of all paths are pooled with weights p / (mean of the paths' q), Pareto-smoothed. All paths climb at once.
    It costs some hundred gradients, and is a good start for a sampler (`dgm.NUTS(start=posterior)`).

    Arguments:
        draws: of all paths together.
        paths: climbs from dispersed starts.
        elbo_draws: draws by which each lower bound is estimated; they need no gradients.
        memory: steps that L-BFGS remembers, J; the covariance has rank 2J beyond its diagonal. More cost next to nothing
            and bring the weights nearer to equal, where a posterior has more than J directions.
        iterations: steps of a climb, at most.
        resample: return draws with equal weights, drawn again (with repetition) by their weights.
        backend, dtype: see `HMC`.

    Returns:
        A `Posterior` of kind `approximate` with draws {site: [1, draws, *shape]}, log weights [draws] (unless
        resampled), the evidence as an estimate by importance sampling, and the statistic `pareto_k`: above 0.7 the paths'
        distributions are too far from the posterior for the weights to be trusted. `cost.gradients` counts those of all
        paths, `cost.evaluations` the log densities besides.

    Raises:
        TaskUnavailable: the program has no density on R^d.
        NumericalError: no path has a distribution with a finite lower bound.

    Source: Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: parallel quasi-Newton variational inference. There, a
    draw is weighted by its own path's density; the mixture's is as correct, and steadier.
    """

    draws: int = 1000
    paths: int = 8
    elbo_draws: int = 25
    memory: int = 10
    iterations: int = 1000
    resample: bool = False
    backend: str = "eager"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require_counts(self, draws=1, paths=1, elbo_draws=1, memory=1, iterations=1)

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        density = LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)
        made = time.perf_counter() - begun
        with torch.no_grad():
            initial = density.initial(self.paths)
            found = follow_paths(density, initial, self.memory, self.iterations, self.elbo_draws)
            z, log_weights = found.draw(density, self.draws)
        name = f"Pathfinder, {self.paths} path{'s' if self.paths > 1 else ''}"
        post = weighted(density, z, log_weights, name, correct=True)
        if self.resample:
            post = _resampled(post)
        lost = int((found.elbo == -torch.inf).sum())
        post.how += f"; {lost} of the paths lost" if lost else ""
        post.cost = spent(density, begun, made, self.draws, found.evaluations + self.draws)
        post.program = program
        return post


def _resampled(post: Posterior) -> Posterior:
    equal = post.unweighted(seed=None)
    equal.stats = post.stats
    return equal


def pathfinder_initial(density: Any, chains: int, paths: int = 8, seed: int | None = None, **options: Any) -> Tensor:
    """Starting points for a sampler, [chains, d]: draws of Pathfinder, drawn again by their smoothed weights.

    Points that the posterior might well have produced save a sampler the way there. They are less dispersed than those
    of `density.initial`, so that R-hat has less to find: a mode that no path reached stays unseen.

    Arguments:
        density: a `LogDensity`.
        chains: how many points.
        paths: climbs.
        seed: random seed.
        **options: of `follow_paths`.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_dgm import LogDensity
        >>> density = LogDensity(lambda: pyro.sample("z", dist.Normal(3.0, 0.1)))
        >>> pathfinder_initial(density, 4, seed=0).shape
        torch.Size([4, 1])
    """
    with torch.no_grad(), seeded(seed):
        found = follow_paths(density, density.initial(paths), **options)
        z, log_weights = found.draw(density, max(1000, 10 * chains))
        smoothed, _ = psis(log_weights.nan_to_num(nan=-torch.inf))
        picked = torch.multinomial(torch.softmax(smoothed.double(), 0), chains, replacement=True)
        return z[picked]
