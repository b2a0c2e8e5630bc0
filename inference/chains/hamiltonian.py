"""Hamiltonian dynamics of many chains at once: the metric, the leapfrog, energies and a trajectory's end."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = [
    "DIVERGED",
    "Density",
    "Metric",
    "Point",
    "decide",
    "drift",
    "fuses",
    "kick",
    "metropolis",
    "reasonable_steps",
    "trajectory",
]

DIVERGED = 1000.0  # nats by which the energy of a step may rise before it counts as a divergence, as in Stan


class Density(Protocol):
    """What a sampler asks of a density on R^d; `ppl_dgm.LogDensity` is one."""

    dim: int
    dtype: torch.dtype
    device: torch.device

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]: ...

    def gradient(self, z: Tensor) -> Tensor: ...


@dataclass
class Point:
    """Where the chains are.

    Attributes:
        z: positions, [chain, d].
        value: log density there, [chain], nats.
        gradient: its gradient, [chain, d].
    """

    z: Tensor
    value: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, density: Density, z: Tensor) -> "Point":
        """The density evaluated at z."""
        return cls(z, *density.value_and_grad(z))

    def moved(self, other: "Point", where: Tensor) -> "Point":
        """This point, with the chains marked in `where` [chain] at the other one."""
        rows = where[:, None]
        return Point(
            torch.where(rows, other.z, self.z),
            torch.where(where, other.value, self.value),
            torch.where(rows, other.gradient, self.gradient),
        )


class Metric:
    """An estimate of the posterior's covariance, S S^T, that makes all directions alike.

    Momenta r are kept in the coordinates in which they are standard normal, and the dynamics are those of x with
    z = S x:

        dz/dt = S r,        dr/dt = S^T grad log p(z),        energy = -log p(z) + r.r / 2.

    Arguments:
        scale: S, the square root of a diagonal covariance [d], or any square root of a dense one [d, d].
    """

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale = scale.contiguous()  # sums in one order, also after a checkpoint
        self.dense = scale.dim() == 2
        self.transposed = scale.T.contiguous() if self.dense else scale
        self._inverse: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What a compiled graph takes of it; `Metric.of` puts them together there."""
        return (self.scale, self.transposed)

    @classmethod
    def of(cls, scale: Tensor, transposed: Tensor) -> "Metric":
        """The metric of these `parts`, which are taken as they are."""
        metric = cls.__new__(cls)
        metric.scale, metric.transposed, metric.dense, metric._inverse = scale, transposed, scale.dim() == 2, None
        return metric

    @classmethod
    def identity(cls, density: Density) -> "Metric":
        """Unit scales."""
        return cls(torch.ones(density.dim, dtype=density.dtype, device=density.device))

    def push(self, r: Tensor) -> Tensor:
        """S r, the velocity, [chain, d]."""
        return r @ self.transposed if self.dense else r * self.scale

    def pull(self, gradient: Tensor) -> Tensor:
        """S^T times a gradient, [chain, d]."""
        return gradient @ self.scale if self.dense else gradient * self.scale

    def whiten(self, z: Tensor) -> Tensor:
        """S^-1 z, [chain, d]."""
        if not self.dense:
            return z / self.scale
        if self._inverse is None:
            self._inverse = torch.linalg.inv(self.scale.double()).T.to(self.scale.dtype).contiguous()
        return z @ self._inverse

    def add_push(self, z: Tensor, r: Tensor, step: float) -> Tensor:
        """z + step S r, in one pass over memory, [chain, d]."""
        if self.dense:
            return torch.addmm(z, r, self.transposed, alpha=step)
        return torch.addcmul(z, r, self.scale, value=step)

    def add_pull(self, r: Tensor, gradient: Tensor, step: float) -> Tensor:
        """r + step S^T gradient, in one pass over memory, [chain, d]."""
        if self.dense:
            return torch.addmm(r, gradient, self.scale, alpha=step)
        return torch.addcmul(r, gradient, self.scale, value=step)

    def to(self, dtype: torch.dtype) -> "Metric":
        """The same in another number type."""
        return Metric(self.scale.to(dtype))

    @property
    def finite(self) -> bool:
        """Whether every number of it is finite."""
        return all(bool(value.isfinite().all()) for value in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it; `restored_metric` makes it anew."""
        return {"metric": self.scale}


def kick(metric: Metric, r: Tensor, gradient: Tensor, step: Any) -> Tensor:
    """r + step S^T gradient; `step` is a number, or a tensor [chain, 1]."""
    if isinstance(step, float):
        return metric.add_pull(r, gradient, step)
    return torch.addcmul(r, metric.pull(gradient), step)


def drift(metric: Metric, z: Tensor, r: Tensor, step: Any) -> Tensor:
    """z + step S r."""
    if isinstance(step, float):
        return metric.add_push(z, r, step)
    return torch.addcmul(z, metric.push(r), step)


def trajectory(density: Any, metric: Metric, point: Point, r: Tensor, step: Any, steps: int) -> tuple[Point, Tensor]:
    """Follow the dynamics for so many leapfrog steps from (point, r).

    The half kicks between two steps are taken as one, and the log density is computed at the end alone.

    Arguments:
        r: momenta, [chain, d], in the metric's coordinates.
        step: the step size, a number for all chains or a tensor [chain, 1].
        steps: at least 1; the same for all chains.

    Returns:
        the point at the end, and the momenta there.
    """
    z, r = point.z, kick(metric, r, point.gradient, step / 2)
    if fuses(density, metric):
        if isinstance(step, float):
            step = z.new_full((len(z), 1), step)
        for _ in range(steps - 1):
            z, r = density.fused(fused_step, z, r, step, *metric.parts)
        z, value, gradient, r = density.fused(fused_end, z, r, step, *metric.parts)
        return Point(z, value, gradient), r
    for _ in range(steps - 1):
        z, r = leapfrog(density, metric, z, r, step)
    return last_step(density, metric, z, r, step)


def leapfrog(density: Density, metric: Metric, z: Tensor, r: Tensor, step: Any) -> tuple[Tensor, Tensor]:
    """One step in the midst of a trajectory: drift, and a whole kick."""
    z = drift(metric, z, r, step)
    return z, kick(metric, r, density.gradient(z), step)


def last_step(density: Density, metric: Metric, z: Tensor, r: Tensor, step: Any) -> tuple[Point, Tensor]:
    """The last step: drift, and half a kick."""
    end = Point.at(density, drift(metric, z, r, step))
    return end, kick(metric, r, end.gradient, step / 2)


def fuses(density: Any, metric: Metric) -> bool:
    """Whether a whole step is one compiled graph: the density is compiled, and the metric's numbers never change shape."""
    return type(metric) is Metric and getattr(density, "fuses", False)


def fused_step(density: Density, z: Tensor, r: Tensor, step: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """`leapfrog` as a function of tensors alone."""
    return leapfrog(density, Metric.of(*parts), z, r, step)


def fused_end(density: Density, z: Tensor, r: Tensor, step: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """`last_step` as a function of tensors alone."""
    end, r = last_step(density, Metric.of(*parts), z, r, step)
    return end.z, end.value, end.gradient, r


def kinetic(r: Tensor) -> Tensor:
    """r.r / 2 of each chain, [chain], nats."""
    return torch.linalg.vecdot(r, r) * 0.5


def gain(start: Point, r: Tensor, end: Point, r_end: Tensor) -> Tensor:
    """The energy lost between two points of phase space, [chain], nats: minus infinity where it is not a number.

    The differences of potential and kinetic energy are taken apart: their sum would lose digits.
    """
    lost = (end.value - start.value) + (kinetic(r) - kinetic(r_end))
    return torch.nan_to_num(lost, nan=-torch.inf, posinf=-torch.inf)  # an infinite density is no density


def metropolis(
    start: Point, r: Tensor, end: Point, r_end: Tensor, uniform: Tensor | None = None
) -> tuple[Point, Tensor, Tensor]:
    """Accept the end of a trajectory with probability min(1, exp(energy lost)).

    Returns:
        the chains' new point, the acceptance probability [chain], and whether the trajectory diverged [chain].
    """
    lost = gain(start, r, end, r_end)
    accept = lost.exp().clamp(max=1.0)
    uniform = torch.rand_like(accept) if uniform is None else uniform
    return start.moved(end, uniform < accept), accept, lost < -DIVERGED


def fused_metropolis(density: Any, z: Tensor, value: Tensor, gradient: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """`metropolis` as a function of tensors alone; the others are r, the end's three, its momenta, and uniform draws."""
    r, z_end, value_end, gradient_end, r_end, uniform = others
    start, end = Point(z, value, gradient), Point(z_end, value_end, gradient_end)
    new, accept, diverged = metropolis(start, r, end, r_end, uniform)
    return new.z, new.value, new.gradient, accept, diverged


def decide(
    density: Any, metric: Metric, start: Point, r: Tensor, end: Point, r_end: Tensor
) -> tuple[Point, Tensor, Tensor]:
    """`metropolis`, as one compiled graph where the density is compiled."""
    if not fuses(density, metric):
        return metropolis(start, r, end, r_end)
    tensors = (start.z, start.value, start.gradient, r, end.z, end.value, end.gradient, r_end)
    *new, accept, diverged = density.fused(fused_metropolis, *tensors, torch.rand_like(start.value), gradients=0)
    return Point(*new), accept, diverged


def reasonable_steps(density: Density, metric: Metric, point: Point, step: Tensor, target: float = 0.8) -> Tensor:
    """For each chain a step size whose single leapfrog step is accepted about as often as `target`.

    Doubled, or halved, from `step` [chain] until the acceptance crosses the target.

    Source: Hoffman and Gelman (2014), algorithm 4, for each chain by itself.
    """
    r = torch.randn_like(point.z)

    def crossed(step: Tensor) -> Tensor:
        end, r_end = trajectory(density, metric, point, r, step[:, None], 1)
        return gain(point, r, end, r_end).exp() > target

    up = crossed(step)
    going = torch.ones_like(up)
    for _ in range(60):
        step = torch.where(going, torch.where(up, step * 2, step / 2), step)
        going = going & (crossed(step) == up)
        if not bool(going.any()):
            break
    return torch.where(up, step / 2, step)
