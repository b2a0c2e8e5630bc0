"""Laplace: a normal distribution at the posterior's mode, and the mode itself."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.graphs import Recorder, value_and_gradient
from ppl_dgm.inference.approximating.approximations import require_counts, spent, weighted
from ppl_dgm.inference.approximating.optimising import Modes, climb, find_modes
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Posterior, Score

__all__ = ["Laplace", "Mode", "mode"]


@algorithm("laplace")
@dataclass(frozen=True)
class Laplace:
    """The normal distribution at the mode z* of the posterior in R^d, with the curvature there,

        q(z) = N(z*, A^-1),  A = -Hessian of log p(x, z) at z*,    log p(x) ~ log p(x, z*) + (d/2) log 2 pi - (1/2) log |A|.

    L-BFGS climbs from several dispersed starts at once; Newton's steps make the highest mode exact; draws are taken to
    the supports of the sites. Exact where the posterior is normal in R^d.

    Arguments:
        draws: how many.
        starts: climbs; how many modes they found is told in `how`.
        correct: weight the draws with p(x, z) / q(z), Pareto-smoothed, which makes averages consistent and the evidence
            an unbiased estimate. False leaves the draws those of the normal distribution, and the evidence that of the
            formula, which is neither unbiased nor a bound and has no standard error.
        iterations: steps of a climb, at most.
        backend, dtype: see `HMC`.

    Returns:
        A `Posterior` of kind `approximate` with draws {site: [1, draws, *shape]}, log weights [draws] if corrected, and the
        statistics `pareto_k`, the shape of the largest weights (above 0.7 the normal distribution is too far from the
        posterior for the correction to be trusted), and `other_modes`, how many lower modes the draws leave out.

    Raises:
        TaskUnavailable: the program has no density on R^d.
        NumericalError: no climb ends at a mode: the density is unbounded, flat or kinked there; the message names
            the site.

    Source: Tierney and Kadane (1986).
    """

    draws: int = 1000
    starts: int = 8
    correct: bool = True
    iterations: int = 200
    backend: str = "eager"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require_counts(self, draws=1, starts=1, iterations=1)

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        density = LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)
        made = time.perf_counter() - begun
        with torch.no_grad():
            modes = find_modes(density, self.starts, self.iterations)
            noise = torch.randn(self.draws, density.dim, dtype=density.dtype, device=density.device)
            spread = torch.linalg.solve_triangular(modes.root.mT, noise.T, upper=True).T
            z = modes.z[0] + spread
            log_q = -0.5 * noise.square().sum(1) - 0.5 * density.dim * math.log(2 * math.pi) + _half_log_det(modes)
            log_weights = density.log_prob(z) - log_q
        name = "Laplace approximation"
        post = weighted(density, z, log_weights, name, self.correct)
        post.how += f"; {_count(modes)}"
        post.stats["other_modes"] = torch.full((1, self.draws), len(modes.z) - 1, device=density.device)
        formula = modes.log_density[0] + 0.5 * density.dim * math.log(2 * math.pi) - _half_log_det(modes)
        if self.correct:
            assert post.log_evidence is not None
            told = f"; the formula's own value is {float(formula):.2f}"
            post.log_evidence = replace(post.log_evidence, how=post.log_evidence.how + told)
        else:
            post.log_evidence = Score(formula, "estimate", None, f"{name}, neither unbiased nor a bound")
        post.cost = spent(density, begun, made, self.draws, self.draws)
        post.program = program
        return post


def _half_log_det(modes: Modes) -> Tensor:
    """(1/2) log |A|."""
    return modes.root.diagonal().log().sum()


def _count(modes: Modes) -> str:
    heights = ", ".join(f"{value:.2f}" for value in modes.log_density[:4].tolist()) + ", ..." * (len(modes.z) > 4)
    modes_found = "one mode" if len(modes.z) == 1 else f"{len(modes.z)} modes, the highest is used"
    lost = f", {modes.lost} of the climbs ended nowhere" if modes.lost else ""
    return f"{modes_found} (log density {heights}){lost}"


# -- the mode ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mode:
    """A point of highest density.

    Attributes:
        sites: {latent site: value}.
        deterministic: {deterministic site: value}.
        log_density: log p(x, z) there, in nats; with the log Jacobian if the mode is that in R^d.
        starts: of the climbs, how many ended within 1e-3 nats of it.
    """

    sites: dict[str, Tensor]
    deterministic: dict[str, Tensor]
    log_density: Tensor
    starts: int


def mode(
    program: Any, *args: Any, jacobian: bool = False, starts: int = 8, seed: int | None = None, **kwargs: Any
) -> Mode:
    """The maximum a posteriori values of the latent sites: the highest of the modes that climbs from several starts reach.

    Arguments:
        program, *args, **kwargs: as for `ppl_dgm.infer`.
        jacobian: False: the maximum of p(z | x) as a density of the sites' own values, the usual MAP (that of
            AutoDelta). True: that of the density in R^d, with the Jacobian, where Laplace's approximation has its mean.
        starts: climbs.
        seed: random seed of the starts.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> mode(coin, torch.tensor(7.0), seed=0).sites["p"]  # (7 + 1) / (10 + 2)
        tensor(0.6667)

    Raises:
        TaskUnavailable: the program has no density on R^d.
        NumericalError: no start has a finite density.
    """
    density = LogDensity(program, *args, **kwargs)
    target: Any = density if jacobian else _WithoutJacobian(density)
    with torch.no_grad(), seeded(seed):
        *_, last = climb(target, density.initial(starts), memory=10, iterations=200)
        value = last.point.value.nan_to_num(nan=-torch.inf)
        top = int(value.argmax())
        sites, deterministic = density.constrain(last.point.z[top : top + 1])
        near = int((value > value[top] - 1e-3).sum())
    first = [{name: value[0] for name, value in part.items()} for part in (sites, deterministic)]
    return Mode(first[0], first[1], value[top].clone(), near)


class _WithoutJacobian:
    """log p(x, z) at z = T(u), as a function of u."""

    def __init__(self, density: LogDensity) -> None:
        self.dim, self.dtype, self.device = density.dim, density.dtype, density.device
        self.program, self.sites = density.program, density.sites
        joint = density._joint

        def one(u: Tensor) -> Tensor:
            return joint.log_joint(u) - joint.trace(u)[1]

        def many(u: Tensor) -> Tensor:
            if density.vectorize == "vmap":
                return torch.func.vmap(one, randomness="different")(u)
            return torch.stack([one(row) for row in u])

        self.value_and_grad = Recorder(density._inside(value_and_gradient(many, batched=True)), backend=density.backend)

    def gradient(self, z: Tensor) -> Tensor:
        return self.value_and_grad(z)[1]
