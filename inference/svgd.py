"""SVGD: particles that flow together towards the posterior and keep one another apart."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError
from ppl_dgm.inference.approximating.approximations import require_counts, spent
from ppl_dgm.options import require
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Posterior

__all__ = ["SVGD", "stein_discrepancy", "stein_force"]

KERNELS, OPTIMISERS = ("rbf", "imq"), ("adam", "adagrad")
_CHECKED = 25  # steps between two looks at the force, which wait for the device


def stein_force(z: Tensor, gradient: Tensor, kernel: str = "rbf") -> Tensor:
    """The direction in which particles lower the divergence to the posterior fastest,

        phi(z_i) = (1/n) sum_j [ k(z_j, z_i) grad log p(z_j) + grad_{z_j} k(z_j, z_i) ],

    with k = exp(-r^2 / h) ("rbf", h = med^2 / log n) or (1 + r^2 / h)^(-1/2) ("imq", h = med^2), where med is the median
    distance of two particles.

    Arguments:
        z: particles, [particle, d].
        gradient: of the log density there, [particle, d].

    Returns:
        [particle, d].
    """
    n = len(z)
    squared = _squared_distances(z)
    h = _bandwidth(squared)
    if kernel == "rbf":
        h = h / math.log(max(n, 2))
        k = torch.exp(-squared / h)
        slope = 2 * k  # -h dk / d(r^2) * 2
    else:
        k = (1 + squared / h).rsqrt()
        slope = k**3
    repulsion = (z * slope.sum(1, keepdim=True) - slope @ z) / h
    return (k @ gradient + repulsion) / n


def stein_discrepancy(z: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The kernelised Stein discrepancy between draws and the posterior, with an inverse multiquadric kernel,

        KSD^2 = (1/n^2) sum_ij [ div_x div_y k + grad log p(x_i) . grad_y k + grad log p(x_j) . grad_x k
                                 + k grad log p(x_i) . grad log p(x_j) ],    k = (1 + r^2 / h)^(-1/2),

    with h the squared median distance. It needs no draws of the posterior itself, and is zero only for a perfect match.

    Arguments:
        z: draws, [draw, d].
        gradient: of the log density there, [draw, d].

    Returns:
        the discrepancy, [], and what it would be about for as many independent draws of the posterior, [].

    Source: Gorham and Mackey (2017); Liu, Lee and Jordan (2016).
    """
    n, dim = z.shape
    squared = _squared_distances(z)
    h = _bandwidth(squared)
    k = (1 + squared / h).rsqrt()
    own = torch.linalg.vecdot(gradient, z)  # [draw]
    mixed = gradient @ z.mT  # gradient_i . z_j
    apart = own[:, None] + own - mixed - mixed.mT  # (gradient_i - gradient_j) . (z_i - z_j)
    table = dim / h * k**3 - 3 * squared / h**2 * k**5 + apart / h * k**3 + k * (gradient @ gradient.mT)
    independent = (dim / h + gradient.square().sum(1).mean()) / n
    return table.mean().clamp(min=0.0).sqrt(), independent.sqrt()


def _squared_distances(z: Tensor) -> Tensor:
    z = z - z.mean(0)  # so that little is lost to rounding
    squared = z.square().sum(1)
    return (squared[:, None] + squared - 2 * z @ z.mT).clamp(min=0.0)


def _bandwidth(squared: Tensor) -> Tensor:
    n = len(squared)
    if n == 1:
        return torch.ones_like(squared[0, 0])
    # the median over pairs: the n zeros of the diagonal come first
    return squared.flatten().kthvalue(n + (n * n - n + 1) // 2).values.clamp(min=torch.finfo(squared.dtype).tiny)


@algorithm("svgd")
@dataclass(frozen=True)
class SVGD:
    """Stein variational gradient descent: n particles in R^d follow the gradient of the log density, smoothed by a kernel,
    and repel one another, until they stand for the posterior (`stein_force`).

    Deterministic but for the start; a few particles say more than as many independent draws. In more than some ten
    dimensions the distances between particles become alike, the repulsion fades, and the variances come out far too small:
    compare the statistic `ksd` with `ksd_independent`, and use a sampler where variances matter.

    Arguments:
        particles: n; memory and time grow with n^2.
        kernel: "rbf" (of the source) or "imq", whose heavy tails repel from further away.
        steps: at most.
        lr: step size of the optimiser, in units of R^d; it falls to zero along a cosine.
        optimiser: "adam" or "adagrad" (of the source).
        tolerance: stop when the force has fallen below this share of the gradients (root mean squares).
        backend, dtype: see `HMC`.

    Returns:
        A `Posterior` of kind `approximate` with draws {site: [1, particles, *shape]}, and the statistics, alike for all
        particles, `ksd` (`stein_discrepancy`) and `ksd_independent` (its size for independent draws of the posterior):
        where the first is the larger, the particles have not arrived.

    Raises:
        TaskUnavailable: the program has no density on R^d.
        NumericalError: a particle left the finite numbers.

    Source: Liu and Wang (2016), Stein variational gradient descent.
    """

    particles: int = 100
    kernel: str = "rbf"
    steps: int = 1000
    lr: float = 0.1
    optimiser: str = "adam"
    tolerance: float = 1e-3
    backend: str = "eager"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require_counts(self, particles=1, steps=1)
        require(
            self,
            ("kernel", self.kernel in KERNELS, f"one of {', '.join(map(repr, KERNELS))}"),
            ("optimiser", self.optimiser in OPTIMISERS, f"one of {', '.join(map(repr, OPTIMISERS))}"),
            ("lr", self.lr > 0, "positive"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
        )

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        density = LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)
        made = time.perf_counter() - begun
        with torch.no_grad():
            z, taken = self.flow(density, density.initial(self.particles))
            ksd, independent = stein_discrepancy(z, density.gradient(z))
            draws, deterministic = density.constrain(z[None])
        left_out = f"; {', '.join(map(repr, density.summed))} summed out, so without draws" if density.summed else ""
        how = (
            f"SVGD, {self.particles} particles, {self.kernel} kernel, {taken} steps, Stein discrepancy {float(ksd):.3g} "
            f"({float(independent):.3g} for independent draws){left_out}"
        )
        stats = {"ksd": ksd.expand(1, self.particles), "ksd_independent": independent.expand(1, self.particles)}
        return Posterior(
            draws,
            deterministic=deterministic,
            stats=stats,
            cost=spent(density, begun, made, taken),
            how=how,
            program=program,
        )

    def flow(self, density: Any, initial: Tensor) -> tuple[Tensor, int]:
        """Where the particles come to rest, [particle, d], from `initial`, and after how many steps."""
        z = initial.clone()
        kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}
        optimiser = kinds[self.optimiser]([z], lr=self.lr)
        with progress("SVGD", self.steps) as report:
            for step in range(1, self.steps + 1):
                for group in optimiser.param_groups:
                    group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.steps))
                gradient = density.gradient(z)
                force = stein_force(z, gradient, self.kernel)
                z.grad = -force
                optimiser.step()
                if step % _CHECKED == 0 or step == self.steps:
                    share = float(force.square().mean().sqrt() / gradient.square().mean().sqrt())
                    if not math.isfinite(share):
                        raise NumericalError(
                            f"SVGD: a particle left the finite numbers by step {step}; use a smaller lr than {self.lr:g}, "
                            "or dtype=torch.float64."
                        )
                    if share < self.tolerance:
                        return z, step
                report()
        return z, self.steps
