"""Climbing a log density from many starts at once: batched L-BFGS, and the modes that it finds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.densities.curvature import hessian
from ppl_dgm.errors import NumericalError
from ppl_dgm.inference.chains.hamiltonian import Density, Point

__all__ = ["InverseHessian", "Iterate", "Modes", "climb", "find_modes"]

_ARMIJO, _WOLFE = 1e-4, 0.9  # shares of the first slope: rise at least so much of it, and leave at most so much of it
_TRIALS = 12  # points of a line that are tried
_SAME = 0.01  # nats below which the way between two ends of climbs is short enough for one mode
_HOPELESS = 10.0  # nats that a step may promise before the climb counts as never-ending
_FLAT = 1e-3  # nats that a Newton step may still promise at what is called a mode


class InverseHessian:
    """The inverse Hessian of -log p along each path, as L-BFGS knows it: diagonal plus low rank,

        H = diag(alpha) + B C B^T,   B = [diag(alpha) Y, S],   C = [[0, -R^-1], [-R^-T, R^-T (D + Y^T diag(alpha) Y) R^-1]],

    from the last J steps S and falls of the gradient Y, with R the upper triangle and D the diagonal of S^T Y. The
    diagonal alpha follows Gilbert and Lemaréchal (1989).

    Attributes:
        alpha: [path, d].
        s, y: the last J pairs, oldest first, [path, J, d]; zero where there is none yet.
    """

    def __init__(self, alpha: Tensor, s: Tensor, y: Tensor) -> None:
        self.alpha, self.s, self.y = alpha, s, y

    @classmethod
    def unit(cls, z: Tensor, memory: int) -> "InverseHessian":
        """Nothing is known yet, at points [path, d]."""
        nothing = z.new_zeros(len(z), memory, z.shape[1])
        return cls(torch.ones_like(z), nothing, nothing)

    def updated(self, s: Tensor, y: Tensor, where: Tensor) -> "InverseHessian":
        """With one more pair, each [path, d], for the paths marked in `where`."""
        b = torch.linalg.vecdot(y, s)  # the curvature along the step
        where = where & (b > 1e-12 * y.square().sum(1))
        b = torch.where(where, b, 1.0)[:, None]
        a = (y.square() * self.alpha).sum(1, keepdim=True)
        c = (s.square() / self.alpha).sum(1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
        precision = a / (b * self.alpha) + y.square() / b - a * (s / self.alpha).square() / (b * c)
        good = where & (precision > 0).all(1) & precision.isfinite().all(1)
        alpha = torch.where(good[:, None], 1 / precision, self.alpha)

        def pushed(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(where[:, None, None], torch.cat([old[:, 1:], new[:, None]], 1), old)

        return InverseHessian(alpha, pushed(self.s, s), pushed(self.y, y))

    def factors(self) -> tuple[Tensor, Tensor]:
        """B, [path, d, 2J], and C, [path, 2J, 2J]."""
        scaled = self.alpha[:, None] * self.y  # [path, J, d]
        products = self.s @ self.y.mT  # [path, J, J]
        diagonal = products.diagonal(dim1=-2, dim2=-1)
        eye = torch.eye(self.s.shape[1], dtype=self.s.dtype, device=self.s.device)
        r = products.triu() + torch.diag_embed((diagonal == 0).to(eye))  # an empty slot stays apart
        inverse = torch.linalg.solve_triangular(r, eye.expand_as(r), upper=True)
        corner = inverse.mT @ (torch.diag_embed(diagonal) + self.y @ scaled.mT) @ inverse
        c = torch.cat([torch.cat([torch.zeros_like(inverse), -inverse], 2), torch.cat([-inverse.mT, corner], 2)], 1)
        return torch.cat([scaled, self.s], 1).mT, c

    def times(self, x: Tensor) -> Tensor:
        """H x, [path, d]."""
        b, c = self.factors()
        return self.alpha * x + (b @ (c @ (b.mT @ x[..., None])))[..., 0]


@dataclass
class Iterate:
    """One step of every path.

    Attributes:
        point: where the paths are.
        inverse: what is known there of the inverse Hessian.
        moved: which paths came to a new point in this step, [path].
    """

    point: Point
    inverse: InverseHessian
    moved: Tensor

    @property
    def promise(self) -> Tensor:
        """Nats that the next quasi-Newton step promises, [path]."""
        return torch.linalg.vecdot(self.inverse.times(self.point.gradient), self.point.gradient)


def climb(
    density: Density, z: Tensor, memory: int = 6, iterations: int = 1000, tolerance: float = 1e-8
) -> Iterator[Iterate]:
    """L-BFGS uphill from every start at once; one gradient of all paths for each trial of a line.

    A path has arrived when a quasi-Newton step promises less than `tolerance` nats (or than rounding hides). A point
    without finite density and gradient counts as too far.

    Arguments:
        z: starts, [path, d], of finite density and gradient.
        memory: J, pairs that are remembered.
        iterations: steps of a path, at most.

    Yields:
        the starts, and then all paths after each step, until every path has arrived or cannot rise.

    Source: Liu and Nocedal (1989); the line search brackets the weak Wolfe conditions, those of Hager and Zhang (2005)
    where rounding hides the rise.
    """
    point = Point.at(density, z)
    inverse = InverseHessian.unit(z, memory)
    eps = torch.finfo(z.dtype).eps
    going = torch.ones(len(z), dtype=torch.bool, device=z.device)
    yield Iterate(point, inverse, torch.zeros_like(going))
    for _ in range(iterations):
        direction = inverse.times(point.gradient)
        slope = torch.linalg.vecdot(direction, point.gradient)
        usable = (slope > 0) & direction.isfinite().all(1)
        direction = torch.where(usable[:, None], direction, point.gradient)  # steepest ascent
        slope = torch.where(usable, slope, point.gradient.square().sum(1))
        going = going & (slope > tolerance + 10 * eps * point.value.abs())
        if not bool(going.any()):
            return
        fresh = (inverse.s[:, -1] == 0).all(1) | ~usable
        first = torch.where(fresh, 1 / point.gradient.norm(dim=1).clamp(min=1.0), 1.0)
        end, endless = _line(density, point, direction, slope, first, going)
        moved = going & (end.z != point.z).any(1)
        known = inverse.updated(end.z - point.z, point.gradient - end.gradient, moved)
        stuck = going & ~moved
        again = stuck & ~fresh  # once more, from steepest ascent
        if bool(again.any()):
            nothing = InverseHessian.unit(z, memory)
            wipe = again[:, None, None]
            known = InverseHessian(
                torch.where(again[:, None], nothing.alpha, known.alpha),
                torch.where(wipe, nothing.s, known.s),
                torch.where(wipe, nothing.y, known.y),
            )
        going = going & (moved | again) & ~endless
        point, inverse = point.moved(end, moved), known
        yield Iterate(point, inverse, moved)


def _line(
    density: Density, start: Point, direction: Tensor, slope: Tensor, step: Tensor, going: Tensor
) -> tuple[Point, Tensor]:
    """A point of each line that satisfies the Wolfe conditions, or the highest point seen, or the start itself; and
    whether the line rose however far it was followed, [path].
    """
    low, high = torch.zeros_like(step), torch.full_like(step, torch.inf)
    slope_low, slope_high = slope, torch.full_like(slope, torch.nan)
    best, searching = start, going
    blur = 10 * torch.finfo(step.dtype).eps * start.value.abs()
    for _ in range(_TRIALS):
        tried = Point.at(density, start.z + torch.where(searching, step, 0.0)[:, None] * direction)
        finite = tried.value.isfinite() & tried.gradient.isfinite().all(1)
        new = torch.linalg.vecdot(tried.gradient, direction)
        risen = tried.value >= start.value + _ARMIJO * step * slope
        level = (tried.value >= start.value - blur) & (new >= -(1 - 2 * _ARMIJO) * slope)
        risen = finite & (risen | level)
        done = risen & (new <= _WOLFE * slope)
        better = searching & risen & (done | (tried.value > best.value))
        best = best.moved(tried, better)
        low, slope_low = torch.where(risen, step, low), torch.where(risen, new, slope_low)
        high, slope_high = torch.where(risen, high, step), torch.where(risen, slope_high, new)
        searching = searching & ~done
        if not bool(searching.any()):
            break
        crossing = slope_low / (slope_low - slope_high)  # where the slope would vanish if it were linear
        share = torch.where(crossing.isfinite() & (slope_high < 0), crossing.clamp(0.1, 0.9), 0.5)
        share = torch.where(finite, share, 0.2)
        step = torch.where(high.isfinite(), low + share * (high - low), 3 * low)
    return best, searching & high.isinf()


@dataclass
class Modes:
    """The modes of a log density that several climbs have found.

    Attributes:
        z: [mode, d], the highest first.
        log_density: [mode], nats.
        starts: how many climbs ended at each, [mode].
        lost: climbs that ended nowhere.
        precision: -Hessian at the highest mode, [d, d].
        root: its lower Cholesky factor.
    """

    z: Tensor
    log_density: Tensor
    starts: Tensor
    lost: int
    precision: Tensor
    root: Tensor


def find_modes(density: Any, starts: int = 8, iterations: int = 200, initial: Tensor | None = None) -> Modes:
    """The modes that L-BFGS reaches from dispersed starts; the highest is made exact by Newton's steps.

    Arguments:
        density: a `LogDensity`.
        starts: climbs, all at once.
        iterations: steps of a climb, at most.
        initial: the starts, [start, d], instead.

    Raises:
        NumericalError: no climb ends where the density is highest in every direction: it is unbounded, flat, or
            has a kink there. The message names the site.
    """
    z = density.initial(starts) if initial is None else initial
    *_, last = climb(density, z, memory=10, iterations=iterations)
    top = int(last.point.value.argmax())
    if not bool(last.promise[top].abs() < _HOPELESS):
        raise _unbounded(density, last.point.z[top])
    best, precision, root = _newton(density, last.point, top)
    value = torch.where(last.point.value.isfinite(), last.point.value, -torch.inf)
    value[top] = best.value[0]
    near = last.point.z + torch.cholesky_solve(last.point.gradient.T, root).T  # where one more step would have led
    places = last.point.z.clone()
    places[top] = near[top] = best.z[0]
    arrived = last.promise.abs() <= torch.clamp(1e4 * torch.finfo(z.dtype).eps * value.abs(), min=_FLAT)
    left = value.argsort(descending=True).tolist()
    heads, counts, lost = [], [], 0
    blur = 100 * torch.finfo(z.dtype).eps * float(best.value.abs())  # nats that climbs may stop short of a mode
    while left:
        head, *others = left
        if head != top and not bool(arrived[head]):
            lost, left = lost + 1, others
            continue
        apart = ((near[others] - near[head]) @ root).square().sum(1) / 2
        same = {i for i, nats in zip(others, apart.tolist(), strict=True) if nats < max(_SAME, blur)}
        heads.append(head)
        counts.append(1 + len(same))
        left = [i for i in others if i not in same]
    return Modes(places[heads], value[heads], torch.tensor(counts), lost, precision, root)


def _newton(density: Any, point: Point, which: int) -> tuple[Point, Tensor, Tensor]:
    """The mode near one of the points, -Hessian there, and its root."""
    count = len(point.z)
    here = Point(*(part[which : which + 1] for part in (point.z, point.value, point.gradient)))
    eps = torch.finfo(here.z.dtype).eps
    precision = -hessian(density, here.z[0], count)
    root, promise = _root(density, here, precision), torch.inf
    for trial in range(10):
        if trial:
            precision = -hessian(density, here.z[0], count)
            root = _root(density, here, precision)
        step = torch.cholesky_solve(here.gradient.T, root).T  # [1, d]
        promise = float((step * here.gradient).sum())
        if promise <= 1e-4 * _FLAT * max(eps, 1e-12):
            break
        nearer = density_rows(density, here.z + step, count)
        if not bool(nearer.value[0] >= here.value[0] - 10 * eps * here.value[0].abs()):
            break
        shrunk = float(nearer.gradient.norm()) < 0.5 * float(here.gradient.norm())
        here = nearer
        if not shrunk:  # rounding is all that is left
            break
    if promise > max(_FLAT, 1000 * eps * float(here.value.abs())):
        raise _unbounded(density, here.z[0])
    return here, precision, root


def _unbounded(density: Any, z: Tensor) -> NumericalError:
    return NumericalError(
        f"the log density of {_name(density)} still rises where the climb ended, far out in {_blame(density, z)}: it seems "
        "unbounded; keep that site away from its bounds with a prior, write the program non-centred, or use a sampler "
        "(if it is only far to the mode, allow more iterations)."
    )


def density_rows(density: Any, z: Tensor, rows: int) -> Point:
    """The density at one point z [1, d], through the graph for that many rows that is recorded already."""
    point = Point.at(density, z.expand(rows, -1).contiguous())
    return Point(z, point.value[:1], point.gradient[:1])


def _root(density: Any, point: Point, precision: Tensor) -> Tensor:
    where, curvature = _blame(density, point.gradient[0]), "not finite"
    if bool(precision.isfinite().all()):
        root, failed = torch.linalg.cholesky_ex(precision)
        if not int(failed):
            return root
        values, vectors = torch.linalg.eigh(precision)
        where, curvature = _blame(density, vectors[:, 0]), f"{-float(values[0]):.3g}"
        rounding = 100 * len(values) * torch.finfo(precision.dtype).eps * float(values[-1])
        if abs(float(values[0])) < rounding and precision.dtype != torch.float64:
            raise NumericalError(
                f"the log density of {_name(density)} is flat in {where}, or its curvatures differ by more than "
                f"{precision.dtype} can tell; give that site a proper prior, or use dtype=torch.float64."
            )
    raise NumericalError(
        f"the log density of {_name(density)} is not curved downwards at its highest point found (second derivative "
        f"{curvature} in {where}), so that no normal distribution fits: it is flat, unbounded or kinked there; give that "
        "site a proper prior, write the program non-centred, or use a sampler or Pathfinder."
    )


def _name(density: Any) -> str:
    program = getattr(density, "program", None)
    return repr(program.name) if program is not None else "the density"


def _blame(density: Any, direction: Tensor) -> str:
    """The site in which a direction [d] of R^d is longest."""
    index = int(direction.nan_to_num(nan=torch.inf).abs().argmax())
    for name, site in getattr(density, "sites", {}).items():
        if site.place.start <= index < site.place.stop:
            return f"site {name!r}"
    return f"coordinate {index}"
