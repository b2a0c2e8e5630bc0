"""Tempering: the path of densities from a reference that can be drawn from to the posterior, and moves along it."""

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.batched import batched_runs
from ppl_dgm.densities.coordinates import Start, base_of
from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.inference.chains.hamiltonian import DIVERGED, Density, Point, drift, gain, kick
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior
from ppl_dgm.tracing import latent_sites

__all__ = [
    "GaussianPath",
    "Parts",
    "Path",
    "PowerPath",
    "PriorPath",
    "Reference",
    "StagedPosterior",
    "Tempered",
    "check_reference",
    "improper_site",
    "leapfrogs",
    "move",
    "path_from",
]

Reference = str | float | tuple[Tensor, Tensor]
_QUARTER = math.pi / 2  # the trajectory that makes draws of a Gaussian independent
_TRIES = 20  # how often draws whose coordinates are not finite are drawn again


class Path:
    """The geometric path between a reference density and the target,

        log p_beta(z) = reference(z) + beta rest(z),        0 <= beta <= 1,

    so that beta = 1 is the target. At beta = 0 the rest does not count, be it infinite.

    Arguments:
        density: the target, a `LogDensity` or a density with the same methods.

    Attributes:
        dim, dtype, device: of z.
        normalised: whether the reference is a probability density that `draw` draws from.
        name: the reference, in words.
    """

    normalised = True
    name = ""

    def __init__(self, density: Any) -> None:
        self.density = density
        self.dim: int = density.dim
        self.dtype: torch.dtype = density.dtype
        self.device: torch.device = density.device

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """reference [n], rest [n], and the gradient of each [n, d], at z [n, d]."""
        raise NotImplementedError

    def gradient(self, z: Tensor, beta: float | Tensor) -> Tensor:
        """The gradient of log p_beta, [n, d]."""
        _, _, first, second = self.parts(z)
        return _mixed(first, second, beta)

    def draw(self, n: int) -> Tensor:
        """Independent draws of the reference, [n, d]."""
        raise NotImplementedError

    @property
    def gradients(self) -> int:
        """Gradient evaluations so far."""
        return int(getattr(self.density, "gradients", 0))


class PriorPath(Path):
    """prior * likelihood^beta, the likelihood being what observed sites and factors add.

    Raises:
        TaskUnavailable: a site's prior is no distribution (flat, masked or scaled), so that there is no draw of it.
    """

    name = "the prior"

    def __init__(self, density: LogDensity) -> None:
        super().__init__(density)
        found = improper_site(density)
        if found is not None:
            raise TaskUnavailable(
                f"site {found[0]!r} {found[1]}, so there are no prior draws to begin with; give it a proper prior, or "
                "begin from a normal distribution of the unconstrained coordinates with reference=10.0 (its standard "
                "deviation) or reference=(mean, sd)."
            )

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.density.parts_and_grads(z)

    def draw(self, n: int) -> Tensor:
        z = self._drawn(n)
        for _ in range(_TRIES):
            bad = (~z.isfinite().all(1)).nonzero().flatten()
            if not len(bad):
                return z
            z[bad] = self._drawn(len(bad))
        raise NumericalError(
            f"prior draws of {self.density.program.name!r} lie on the edge of their support, where coordinates are "
            "infinite; use dtype=torch.float64, or a prior with less mass there."
        )

    def _drawn(self, n: int) -> Tensor:
        density = self.density

        def run() -> dict[str, Tensor]:
            trace = poutine.trace(density._story).get_trace()
            return {name: trace.nodes[name]["value"] for name in density.sites}

        with torch.no_grad(), density._context():
            try:
                values = batched_runs(run, n)
            except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError):
                rows = [run() for _ in range(n)]  # what vmap cannot follow
                values = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return density.unconstrain(values)


class GaussianPath(Path):
    """normal^(1 - beta) * target^beta, for a normal distribution of the unconstrained coordinates.

    Arguments:
        mean: [d].
        root: a square root of the covariance: standard deviations [d], or a lower triangle [d, d].
    """

    def __init__(self, density: Any, mean: Tensor, root: Tensor) -> None:
        super().__init__(density)
        self.mean, self.root = mean, root
        self.name = "a normal reference"
        scale = root.diagonal() if root.dim() == 2 else root
        self._constant = float(-scale.log().sum() - self.dim / 2 * math.log(2 * math.pi))

    def _whitened(self, centred: Tensor) -> Tensor:
        if self.root.dim() == 1:
            return centred / self.root
        return torch.linalg.solve_triangular(self.root, centred.T, upper=False).T

    def _pulled(self, x: Tensor) -> Tensor:
        if self.root.dim() == 1:
            return x / self.root
        return torch.linalg.solve_triangular(self.root.T, x.T, upper=True).T

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, gradient = self.density.value_and_grad(z)
        x = self._whitened(z - self.mean)
        reference, slope = self._constant - x.square().sum(1) / 2, -self._pulled(x)
        return reference, value - reference, slope, gradient - slope

    def draw(self, n: int) -> Tensor:
        x = torch.randn(n, self.dim, dtype=self.dtype, device=self.device)
        return self.mean + (x * self.root if self.root.dim() == 1 else x @ self.root.T)


class PowerPath(Path):
    """target^beta, a density only for beta > 0, for programs without a proper prior."""

    normalised = False
    name = "powers of the density"

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value, gradient = self.density.value_and_grad(z)
        return torch.zeros_like(value), value, torch.zeros_like(gradient), gradient

    def gradient(self, z: Tensor, beta: float | Tensor) -> Tensor:
        gradient = self.density.gradient(z)
        return gradient * (beta[:, None] if isinstance(beta, Tensor) else beta)


def path_from(density: LogDensity, reference: Reference) -> Path:
    """The path that an option `reference` means.

    Arguments:
        reference: "prior"; a number, the standard deviation of a centred normal of the unconstrained coordinates; or
            (mean [d], standard deviations [d] or covariance [d, d]).

    Raises:
        TaskUnavailable: "prior", and the prior of a site is no distribution. ProgramError: a wrong shape or value.
    """
    if isinstance(reference, str):
        return PriorPath(density)
    like: dict[str, Any] = {"dtype": density.dtype, "device": density.device}
    if not isinstance(reference, tuple):
        return GaussianPath(density, torch.zeros(density.dim, **like), torch.full((density.dim,), reference, **like))
    mean, spread = (torch.as_tensor(value, **like) for value in reference)
    if mean.shape != (density.dim,) or spread.shape not in ((density.dim,), (density.dim, density.dim)):
        raise ProgramError(
            f"reference=(mean, spread) has shapes {tuple(mean.shape)} and {tuple(spread.shape)}; for this program the "
            f"mean has shape ({density.dim},), and the spread the same (standard deviations) or "
            f"({density.dim}, {density.dim}) (a covariance)."
        )
    root, failed = torch.linalg.cholesky_ex(spread) if spread.dim() == 2 else (spread, (spread <= 0).any())
    if bool(failed):
        raise ProgramError("reference=(mean, spread): the spread is not positive; give variances above zero.")
    return GaussianPath(density, mean, root)


def check_reference(reference: Any) -> bool:
    """Whether a value is one that `path_from` takes, shapes aside."""
    if isinstance(reference, tuple):
        return len(reference) == 2
    if isinstance(reference, str):
        return reference == "prior"
    return isinstance(reference, (int, float)) and not isinstance(reference, bool) and reference > 0


def improper_site(density: LogDensity) -> tuple[str, str] | None:
    """The first latent site that cannot be drawn from with the density that the program gives it, and why."""
    with torch.no_grad(), density._context(), seeded(0):  # a look that costs the caller no random numbers
        trace = poutine.trace(Start()(density._story)).get_trace()
    for name, node in latent_sites(trace).items():
        fn = node["fn"]
        if isinstance(base_of(fn), dist.ImproperUniform):
            return name, "has a flat prior"
        if any(not _keeps_all(mask) for mask in (node["mask"], *_masks(fn))):
            return name, "is masked, so that its prior is flat there"
        if bool((torch.as_tensor(node["scale"]) != 1).any()):
            return name, "is scaled, so that its density is not the one that it is drawn from"
    return None


def _masks(fn: Any) -> list[Any]:
    found = []
    while fn is not None:
        if isinstance(fn, dist.MaskedDistribution):
            found.append(fn._mask)
        fn = getattr(fn, "base_dist", None)
    return found


def _keeps_all(mask: Any) -> bool:
    return mask is None or (bool(mask.all()) if isinstance(mask, Tensor) else bool(mask))


@dataclass
class StagedPosterior(Posterior):
    """A `Posterior` with what happened at each temperature.

    Attributes:
        stages: a table with one row per temperature; the sampler says which columns. It is not written by `save`.
    """

    stages: pd.DataFrame = field(default_factory=pd.DataFrame)


# -- points along the path -----------------------------------------------------------------------------------


def _mixed(reference: Tensor, rest: Tensor, beta: float | Tensor) -> Tensor:
    """reference + beta rest; at beta = 0 the reference alone, since the rest may be infinite there."""
    if not isinstance(beta, Tensor):
        return reference + beta * rest if beta else reference
    if reference.dim() == 2:
        beta = beta[:, None]
    return torch.where(beta > 0, reference + beta * rest, reference)


@dataclass
class Parts:
    """Where particles are, with the two parts of their log density, so that any temperature costs nothing more.

    Attributes:
        z: [n, d].
        reference, rest: log densities, [n], nats.
        reference_gradient, rest_gradient: [n, d].
    """

    z: Tensor
    reference: Tensor
    rest: Tensor
    reference_gradient: Tensor
    rest_gradient: Tensor

    @classmethod
    def at(cls, path: Path, z: Tensor) -> "Parts":
        """Evaluated at z; a log density that is not a number, or plus infinity, counts as none."""
        reference, rest, first, second = path.parts(z)
        return cls(z, _no_density(reference), _no_density(rest), first, second)

    def point(self, beta: float | Tensor) -> Point:
        """The same particles as points of p_beta; beta a number or [n]."""
        value = _mixed(self.reference, self.rest, beta)
        return Point(self.z, value, _mixed(self.reference_gradient, self.rest_gradient, beta))

    def take(self, rows: Tensor) -> "Parts":
        """The particles of these rows, [m]."""
        return Parts(*(value[rows] for value in vars(self).values()))

    def moved(self, other: "Parts", where: Tensor) -> "Parts":
        """These particles, with those marked in `where` [n] at the other place."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Parts(*(torch.where(where if a.dim() == 1 else where[:, None], b, a) for a, b in pairs))


def _no_density(value: Tensor) -> Tensor:
    return torch.nan_to_num(value, nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


@dataclass
class Tempered(Density):
    """p_beta as a density that samplers take (`ppl_dgm.inference.chains.hamiltonian.Density`).

    Arguments:
        path: where it lies.
        beta: a number, or one for each row of z, [n].
    """

    path: Path
    beta: float | Tensor

    def __post_init__(self) -> None:
        self.dim, self.dtype, self.device = self.path.dim, self.path.dtype, self.path.device

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        point = Parts.at(self.path, z).point(self.beta)
        return point.value, point.gradient

    def gradient(self, z: Tensor) -> Tensor:
        return self.path.gradient(z, self.beta)


def move(
    path: Path, metric: Any, here: Parts, beta: float | Tensor, step: Any, steps: int
) -> tuple[Parts, Tensor, Tensor]:
    """One Hamiltonian trajectory of every particle that leaves p_beta invariant; one step is the Langevin algorithm.

    Arguments:
        metric: a `Metric`, or an object with its `push` and `pull`.
        beta: a number, or [n].
        step: step size, a number or [n, 1].
        steps: leapfrog steps.

    Returns:
        where the particles are now, the acceptance probability of each [n], and whether it diverged [n].
    """
    start, r_start = here.point(beta), torch.randn_like(here.z)
    z, r = here.z, kick(metric, r_start, start.gradient, step / 2)
    for _ in range(steps - 1):
        z = drift(metric, z, r, step)
        r = kick(metric, r, path.gradient(z, beta), step)
    there = Parts.at(path, drift(metric, z, r, step))
    end = there.point(beta)
    lost = gain(start, r_start, end, kick(metric, r, end.gradient, step / 2))
    accept = lost.exp().clamp(max=1.0)
    return here.moved(there, torch.rand_like(accept) < accept), accept, lost < -DIVERGED


def leapfrogs(step: float, most: int) -> int:
    """A random number of leapfrog steps, a quarter of a turn on average, and at most so many."""
    length = _QUARTER * (0.5 + float(torch.rand(())))
    return min(max(round(length / step), 1), most)
