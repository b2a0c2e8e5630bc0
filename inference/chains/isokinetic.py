"""Isokinetic dynamics, whose momenta turn but keep their length: directions, integrators, and the work done on the way."""

import math

import torch
from torch import Tensor

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point, drift

__all__ = [
    "INTEGRATORS",
    "directions",
    "energy_change",
    "isokinetic_trajectory",
    "refreshed",
    "require_two",
    "turn",
]

_MINIMAL = 0.19318332750378364  # of Omelyan, Mryglod and Folk (2003), for the least error of two gradients a step

# name -> the parts of one step: kicks, and the drifts between them
INTEGRATORS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "leapfrog": ((0.5, 0.5), (1.0,)),
    "minimal-norm": ((_MINIMAL, 1 - 2 * _MINIMAL, _MINIMAL), (0.5, 0.5)),
}


def require_two(method: str, dim: int) -> None:
    """Refuse a density on the line, where a direction cannot turn.

    Raises:
        TaskUnavailable: `dim` is 1.
    """
    if dim < 2:
        raise TaskUnavailable(
            f"{method} needs at least two coordinates, and the program has {dim}: on a line a direction of unit length "
            "cannot turn; use method='nuts'."
        )


def directions(z: Tensor) -> Tensor:
    """A direction for each chain, uniform on the unit sphere, of the shape of z, [chain, d]."""
    return torch.nn.functional.normalize(torch.randn_like(z), dim=1)


def refreshed(u: Tensor, ratio: float) -> Tensor:
    """The directions after a partial refresh: they lose memory of themselves over the length L.

        u' = (u + nu xi) / |u + nu xi|,        nu^2 = (exp(2 step / L) - 1) / d,        xi standard normal.

    Arguments:
        u: [chain, d], of unit length.
        ratio: step / L.
    """
    size = math.sqrt(math.expm1(min(2 * ratio, 80.0)) / u.shape[1])
    return torch.nn.functional.normalize(u + size * torch.randn_like(u), dim=1)


def turn(u: Tensor, force: Tensor, time: float) -> tuple[Tensor, Tensor]:
    """The directions after the flow du/dt = (1 - u u^T) force / (d - 1), solved exactly, and the work done by it.

        u' = (u + e (sinh w + e.u (cosh w - 1))) / (cosh w + e.u sinh w),        e = force / |force|,
        work = (d - 1) log(cosh w + e.u sinh w),        w = time |force| / (d - 1).

    The flow scales volume on the sphere by exp(-work).

    Arguments:
        u: [chain, d], of unit length.
        force: the gradient of the log density in the coordinates of u, [chain, d].
        time: how long.

    Returns:
        directions [chain, d], and the work [chain], nats.
    """
    rest = u.shape[1] - 1
    size = torch.linalg.vector_norm(force, dim=1, keepdim=True)
    e = force / size.clamp(min=torch.finfo(u.dtype).tiny)
    along = torch.linalg.vecdot(e, u)[:, None].clamp(-1, 1)
    angle = size * (time / rest)
    fading = torch.exp(-angle)
    turned = e * ((1 - fading) * (1 + fading + along * (1 - fading))) + 2 * fading * u
    length = torch.linalg.vector_norm(turned, dim=1, keepdim=True)
    u = torch.where(length > 0, turned / length, u)  # none is left where u = -e, which does not turn
    work = angle + torch.maximum(torch.log1p(0.5 * (1 - along) * torch.expm1(-2 * angle)), -2 * angle)
    return u, rest * work[:, 0]


def isokinetic_trajectory(
    density: Density, metric: Metric, point: Point, u: Tensor, step: float, steps: int, integrator: str
) -> tuple[Point, Tensor, Tensor]:
    """Follow the isokinetic dynamics for so many steps from (point, u).

        dz/dt = sqrt(d) S u,        du/dt = sqrt(d) (1 - u u^T) S^T grad log p(z) / (d - 1).

    Time is measured so that a coordinate moves by about one in a unit of time, as with standard normal momenta: step
    sizes and lengths compare with those of HMC. Multiplied with sqrt(d), they are those of the sources.

    Each integrator is symmetric: from the end with -u it leads back to the start. Kicks at the same place are
    taken as one, and the log density is computed at the end alone.

    Arguments:
        u: directions, [chain, d], in the metric's coordinates.
        step: the step size.
        steps: at least 1.
        integrator: one of `INTEGRATORS`; a step takes one gradient with "leapfrog", two with "minimal-norm".

    Returns:
        the point at the end, the directions there, and the work done on the way, [chain], nats.

    Source: Robnik, De Luca, Silverstein and Seljak (2023), Microcanonical Hamiltonian Monte Carlo; Steeg and
    Galstyan (2021).
    """
    kicks, drifts = INTEGRATORS[integrator]
    time = step * math.sqrt(density.dim)
    times: list[float] = [kicks[0]]
    for _ in range(steps):
        times[-1] += 0 if len(times) == 1 else kicks[0]
        times += kicks[1:]
    z = point.z
    u, work = turn(u, metric.pull(point.gradient), times[0] * time)
    last = len(times) - 1
    end = point
    for i, part in enumerate(times[1:], 1):
        z = drift(metric, z, u, drifts[(i - 1) % len(drifts)] * time)
        if i == last:
            end = Point.at(density, z)
        gradient = end.gradient if i == last else density.gradient(z)
        u, more = turn(u, metric.pull(gradient), part * time)
        work = work + more
    return end, u, work


def energy_change(start: Point, end: Point, work: Tensor) -> Tensor:
    """The error of a trajectory: the work done less the log density gained, [chain], nats; infinite if not a number.

    Exact dynamics have none. exp(-change) is the ratio of the target's mass at both ends.
    """
    change = work - (end.value - start.value)
    return torch.nan_to_num(change, nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
