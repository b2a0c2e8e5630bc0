"""A search for modes that no chain has visited: climbs from widely dispersed points, weighed by Laplace's formula."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.densities.curvature import hessian
from ppl_dgm.density import LogDensity
from ppl_dgm.errors import DgmError
from ppl_dgm.inference.approximating.optimising import climb
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior

__all__ = ["unseen_modes"]

_STARTS = 16
_RADII = (2.0, 10.0)  # of the starts, in the unconstrained coordinates
_SHARE = 0.1  # of the gradients that the run took
_FEWEST = 20  # steps of a climb below which none is tried
_DIM = 200  # coordinates up to which a Hessian is taken
_PROMISED = 1e-2  # nats that a climb that has arrived may still promise
_MASS = 0.01  # of what the chains explore, from which a mode is worth a sentence
_LOOKED_AT = 2000  # draws, at most
_NAMED = 3


def unseen_modes(posterior: Posterior) -> list[str]:
    """Modes of the program's density that lie far from every draw and hold at least 1 % of the mass of the draws.

    The mass of a mode is Laplace's, p(z*) (2 pi)^(d/2) |-H|^(-1/2); that of the draws the one of a normal distribution
    with their covariance and mean log density. Nothing is said where the program is not known, has no density on R^d, or
    has more than 200 coordinates.
    """
    if posterior.program is None or posterior.arguments is None or posterior.log_weights is not None:
        return []
    steps = int(_SHARE * posterior.cost.gradients / _STARTS)
    if steps < _FEWEST or any(name == "superchain" for name in posterior.stats):
        return []
    args, kwargs = posterior.arguments
    try:
        with warnings.catch_warnings(), torch.no_grad(), seeded(0), posterior.program.running():
            warnings.simplefilter("ignore")
            density = LogDensity(posterior.program, *args, **kwargs)
            if density.dim > _DIM or any(name not in posterior.draws for name in density.sites):
                return []
            return _search(density, posterior, min(steps, 200))
    except (DgmError, RuntimeError, ValueError, ArithmeticError):
        return []  # no density, or none that can be climbed: there is nothing to say


def _search(density: LogDensity, posterior: Posterior, steps: int) -> list[str]:
    visited = _Visited(density, posterior)
    z = torch.cat([density.initial(_STARTS // len(_RADII), radius=radius) for radius in _RADII])
    *_, last = climb(density, z, memory=10, iterations=steps)
    arrived = (last.promise.abs() < _PROMISED) & last.point.value.isfinite()
    best: tuple[float, Tensor] | None = None
    for end, value in zip(last.point.z[arrived], last.point.value[arrived], strict=True):
        if visited.holds(end):
            continue
        precision = -hessian(density, end, _STARTS)
        root, bad = torch.linalg.cholesky_ex(precision.double())
        if int(bad):
            continue
        log_mass = float(value) + density.dim / 2 * math.log(2 * math.pi) - float(root.diagonal().log().sum())
        if best is None or log_mass > best[0]:
            best = (log_mass, end)
    if best is None or best[0] < visited.log_mass + math.log(_MASS):
        return []
    share = math.exp(min(best[0] - visited.log_mass, 50.0))
    return [
        f"No chain has visited a mode that a search from {_STARTS} dispersed points found, at {_where(density, best[1])}, with "
        f"about {share:.2g} times the mass of what the chains explore; start more chains, or use "
        "method='parallel-tempering' or 'tempered-smc'."
    ]


class _Visited:
    """Where the draws are, as a normal distribution around each of them."""

    def __init__(self, density: LogDensity, posterior: Posterior) -> None:
        chains, length = next(iter(posterior.draws.values())).shape[:2]
        stride = max(1, -(-chains * length // _LOOKED_AT))
        some = {name: posterior.draws[name].flatten(0, 1)[::stride] for name in density.sites}
        z = density.unconstrain(some).double()
        self.z = z[z.isfinite().all(1)]
        centred = self.z - self.z.mean(0)
        covariance = centred.T @ centred / (len(self.z) - 1) + 1e-10 * torch.eye(density.dim).to(centred)
        whole = torch.linalg.cholesky(covariance)
        value = density.log_prob(self.z.to(density.dtype)).double()
        entropy = density.dim / 2 * math.log(2 * math.pi * math.e) + float(whole.diagonal().log().sum())
        self.log_mass = float(value[value.isfinite()].mean()) + entropy
        # within chains, since modes that only some chains visit would blur what is near
        chain = torch.arange(chains, device=z.device).repeat_interleave(length)[::stride][z.isfinite().all(1)]
        means = torch.stack([self.z[chain == c].mean(0) for c in chain.unique()])
        inner = self.z - means[torch.searchsorted(chain.unique(), chain)]
        self.root = torch.linalg.cholesky(inner.T @ inner / len(inner) + 1e-10 * torch.eye(density.dim).to(inner))
        self.limit = (
            density.dim + 6 * math.sqrt(2 * density.dim) + 10
        )  # far out for a chi-square of d degrees of freedom

    def holds(self, z: Tensor) -> bool:
        """Whether some draw is as near as a draw is to a mode."""
        scaled = torch.linalg.solve_triangular(self.root, (self.z - z.double()).T, upper=False)
        return bool(scaled.square().sum(0).min() < self.limit)


def _where(density: LogDensity, z: Tensor) -> str:
    values: dict[str, Any] = density.constrain(z[None])[0]
    words = []
    for name, value in values.items():
        numbers = [f"{x:.3g}" for x in value[0].flatten()[:_NAMED].tolist()]
        dots = ", ..." if value[0].numel() > _NAMED else ""
        words.append(f"{name} = {numbers[0] if value[0].dim() == 0 else '[' + ', '.join(numbers) + dots + ']'}")
    return ", ".join(words[:_NAMED]) + (" and so on" if len(words) > _NAMED else "")
