"""Exponential families of full conditionals: natural parameters read off gradients at a few points.

Each family says that, as a function of a site's value z with all else held fixed, the log joint is linear in known
statistics, log p = c + eta . T(z). Its gradient is then linear in eta, so that a few gradients give eta for every
element of the site at once, and gradients and values at other points show whether it is true.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.inference.conjugate.factors import Latent, Values

__all__ = ["Beta", "Dirichlet", "Family", "Gamma", "Gaussian", "InverseGamma", "family_of", "plate_axes"]


class Family(ABC):
    """A family for the full conditional of some sites.

    Values are {site: [chain, point, *shape]}, natural parameters `eta` a tuple of tensors [chain, ...].

    Attributes:
        label: its name in reports.
        sites: whose conditional it is.
    """

    label: str
    sites: tuple[str, ...]

    @abstractmethod
    def design(self, base: Values) -> Values:
        """Points whose gradients give eta, from the current values {site: [chain, *shape]}."""

    @abstractmethod
    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        """eta from the gradients at the design points."""

    @abstractmethod
    def others(self, base: Values, eta: tuple[Tensor, ...]) -> Values:
        """Random points, near and far, at which eta is put to the test; the first of them is `base`."""

    @abstractmethod
    def residual(self, eta: tuple[Tensor, ...], points: Values, slopes: Values) -> Tensor:
        """The largest error of the predicted gradients relative to their parts, [chain, point]."""

    @abstractmethod
    def statistic(self, eta: tuple[Tensor, ...], points: Values) -> tuple[Tensor, Tensor]:
        """eta . T(z), and the sum of the absolute values of its parts, each [chain, point]."""

    @abstractmethod
    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        """Whether every element's density can be normalised."""

    @abstractmethod
    def sample(self, eta: tuple[Tensor, ...]) -> Values:
        """One draw for each chain, {site: [chain, *shape]}."""

    @abstractmethod
    def log_prob(self, eta: tuple[Tensor, ...], values: Values, keep: int | None = None) -> Tensor:
        """The normalised log density of {site: [chain, *shape]}, [chain].

        Arguments:
            keep: a plate's dimension (negative) whose rows are not summed: then [chain, rows].
        """

    @abstractmethod
    def marginals(self, eta: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Any]:
        """{site: distribution} with parameters of that number type, for eta of one chain."""


class _Elementwise(Family):
    """Families of one site whose elements are independent: natural parameters [chain, *shape], a density each."""

    def __init__(self, site: Latent) -> None:
        self.site, self.sites = site, (site.name,)
        self.event = len(site.fn.event_shape)

    @abstractmethod
    def element(self, eta: tuple[Tensor, ...]) -> Any:
        """The distribution of the elements."""

    @abstractmethod
    def parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        """The terms of eta . T(z), elementwise."""

    @abstractmethod
    def slope_parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        """The terms of its derivative in the coordinates in which `chain_rule` puts gradients."""

    @abstractmethod
    def chain_rule(self, x: Tensor, slope: Tensor) -> Tensor:
        """The gradient in coordinates in which it is linear in eta with terms of moderate size."""

    def residual(self, eta: tuple[Tensor, ...], points: Values, slopes: Values) -> Tensor:
        x, slope = points[self.site.name], slopes[self.site.name]
        actual = self.chain_rule(x, slope)
        parts = self.slope_parts(_pointwise(eta), x)
        size = 1 + actual.abs() + sum(part.abs() for part in parts)
        return _flat((actual - sum(parts)).abs() / size, 2).amax(2)

    def statistic(self, eta: tuple[Tensor, ...], points: Values) -> tuple[Tensor, Tensor]:
        parts = self.parts(_pointwise(eta), points[self.site.name])
        total, size = sum(parts), sum(part.abs() for part in parts)
        return _flat(total, 2).sum(2), _flat(size, 2).sum(2)

    def sample(self, eta: tuple[Tensor, ...]) -> Values:
        return {self.site.name: self.element(eta).sample()}

    def log_prob(self, eta: tuple[Tensor, ...], values: Values, keep: int | None = None) -> Tensor:
        fn = self.element(eta)
        each = fn.log_prob(values[self.site.name])  # [chain, *shape] without the family's own event
        if keep is None:
            return _flat(each, 1).sum(1)
        place = keep - (self.event - len(fn.event_shape))
        return _flat(each.movedim(place, 1), 2).sum(2)

    def marginals(self, eta: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Any]:
        fn = self.element(tuple(part[0].to(dtype) for part in eta))
        return {self.site.name: fn.to_event(self.event - len(fn.event_shape))}


def _flat(values: Any, lead: int) -> Tensor:
    """[*lead, ...] as [*lead, elements]."""
    return values.reshape(*values.shape[:lead], -1)


def _pointwise(eta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.unsqueeze(1) for part in eta)


class Gamma(_Elementwise):
    """x > 0 with T = (log x, x): eta = (concentration - 1, -rate)."""

    label = "Gamma"

    def design(self, base: Values) -> Values:
        x = base[self.site.name].clamp(1e-100, 1e100)
        return {self.site.name: torch.stack([x / 2, 2 * x], 1)}

    def others(self, base: Values, eta: tuple[Tensor, ...]) -> Values:
        x = base[self.site.name]
        spread = [x * (size * torch.randn_like(x)).exp() for size in (0.3, 1.0, 3.0)]
        return {self.site.name: torch.stack([x, *spread], 1)}

    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        x, g = points[self.site.name], self.chain_rule(points[self.site.name], slopes[self.site.name])
        second = (g[:, 1] - g[:, 0]) / (x[:, 1] - x[:, 0])
        return g[:, 0] - second * x[:, 0], second

    def chain_rule(self, x: Tensor, slope: Tensor) -> Tensor:
        return x * slope

    def slope_parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0].expand_as(x), eta[1] * x]

    def parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0] * x.log(), eta[1] * x]

    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        return bool((eta[0] > -1).all() and (eta[1] < 0).all())

    def element(self, eta: tuple[Tensor, ...]) -> Any:
        return dist.Gamma(eta[0] + 1, -eta[1], validate_args=False)


class InverseGamma(Gamma):
    """x > 0 with T = (log x, 1 / x): eta = (-concentration - 1, -rate)."""

    label = "InverseGamma"

    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        x, g = points[self.site.name], self.chain_rule(points[self.site.name], slopes[self.site.name])
        second = (g[:, 0] - g[:, 1]) / (1 / x[:, 1] - 1 / x[:, 0])
        return g[:, 0] + second / x[:, 0], second

    def slope_parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0].expand_as(x), -eta[1] / x]

    def parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0] * x.log(), eta[1] / x]

    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        return bool((eta[0] < -1).all() and (eta[1] < 0).all())

    def element(self, eta: tuple[Tensor, ...]) -> Any:
        return dist.InverseGamma(-eta[0] - 1, -eta[1], validate_args=False)


class Beta(_Elementwise):
    """0 < p < 1 with T = (log p, log(1 - p)): eta = both concentrations less one."""

    label = "Beta"

    def design(self, base: Values) -> Values:
        p = base[self.site.name]
        return {self.site.name: torch.stack([torch.full_like(p, 1 / 3), torch.full_like(p, 2 / 3)], 1)}

    def others(self, base: Values, eta: tuple[Tensor, ...]) -> Values:
        p = base[self.site.name]
        spread = [torch.sigmoid(size * torch.randn_like(p)).clamp(1e-3, 1 - 1e-3) for size in (0.5, 1.5, 4.0)]
        return {self.site.name: torch.stack([p.clamp(1e-6, 1 - 1e-6), *spread], 1)}

    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        g = self.chain_rule(points[self.site.name], slopes[self.site.name])
        return 2 * g[:, 0] - g[:, 1], g[:, 0] - 2 * g[:, 1]  # from g = eta_1 (1 - p) - eta_0 p at 1/3 and 2/3

    def chain_rule(self, x: Tensor, slope: Tensor) -> Tensor:
        return x * (1 - x) * slope

    def slope_parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0] * (1 - x), -eta[1] * x]

    def parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0] * x.log(), eta[1] * torch.log1p(-x)]

    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        return bool((eta[0] > -1).all() and (eta[1] > -1).all())

    def element(self, eta: tuple[Tensor, ...]) -> Any:
        return dist.Beta(eta[0] + 1, eta[1] + 1, validate_args=False)


class Dirichlet(_Elementwise):
    """p on the simplex with T = log p: eta = concentrations less one.

    In coordinates u with p = softmax(u) the gradient is eta - p sum(eta), also for a program that extends the density
    off the simplex in another way.
    """

    label = "Dirichlet"

    def design(self, base: Values) -> Values:
        p = base[self.site.name]
        ramp = torch.linspace(-1, 1, p.shape[-1], dtype=p.dtype, device=p.device)
        pair = torch.stack([torch.softmax(ramp, -1), torch.softmax(-ramp, -1)])  # [2, categories]
        shape = (p.shape[0], 2, *p.shape[1:])
        return {self.site.name: pair.reshape(1, 2, *(1,) * (p.dim() - 2), -1).expand(shape).contiguous()}

    def others(self, base: Values, eta: tuple[Tensor, ...]) -> Values:
        p = base[self.site.name].clamp(min=1e-8)
        spread = [torch.softmax(size * torch.randn_like(p), -1) for size in (0.3, 1.0, 3.0)]
        return {self.site.name: torch.stack([p / p.sum(-1, keepdim=True), *spread], 1)}

    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        p, g = points[self.site.name], self.chain_rule(points[self.site.name], slopes[self.site.name])
        apart = p[:, 1] - p[:, 0]
        total = -((g[:, 1] - g[:, 0]) * apart).sum(-1, keepdim=True) / apart.square().sum(-1, keepdim=True)
        return (g[:, 0] + p[:, 0] * total,)

    def chain_rule(self, x: Tensor, slope: Tensor) -> Tensor:
        return x * (slope - (x * slope).sum(-1, keepdim=True))

    def slope_parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0].expand_as(x), -x * eta[0].sum(-1, keepdim=True)]

    def parts(self, eta: tuple[Tensor, ...], x: Tensor) -> list[Tensor]:
        return [eta[0] * x.log()]

    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        return bool((eta[0] > -1).all())

    def element(self, eta: tuple[Tensor, ...]) -> Any:
        return dist.Dirichlet(eta[0] + 1, validate_args=False)


@dataclass(frozen=True)
class _Axes:
    """How one site's value is laid out as [groups, coordinates]: the axes of its shape that number groups."""

    shape: torch.Size
    groups: tuple[int, ...]

    def pack(self, value: Tensor, lead: int) -> Tensor:
        moved = value.movedim([lead + axis for axis in self.groups], list(range(lead, lead + len(self.groups))))
        count = math.prod(self.shape[axis] for axis in self.groups)
        return moved.reshape([*value.shape[:lead], count, math.prod(self.shape) // count])

    def unpack(self, u: Tensor, lead: int) -> Tensor:
        rest = [size for axis, size in enumerate(self.shape) if axis not in self.groups]
        moved = u.reshape([*u.shape[:lead], *[self.shape[axis] for axis in self.groups], *rest])
        return moved.movedim(list(range(lead, lead + len(self.groups))), [lead + axis for axis in self.groups])


class Gaussian(Family):
    """Real sites whose log density is quadratic: jointly Gaussian within each of several independent groups.

        log p(u) = c + g . (u - u0) + (u - u0)' H (u - u0) / 2,        covariance -H^-1, mean u0 - H^-1 g

    The gradient at u0 and at one step along each coordinate, taken in all groups at once, gives H exactly.

    Arguments:
        sites: the latent sites.
        groups: for each site the axes of its shape that number the groups; none where all is one group.
    """

    label = "Normal"

    def __init__(self, sites: Sequence[Latent], groups: Sequence[tuple[int, ...]]) -> None:
        self.latent, self.sites = list(sites), tuple(site.name for site in sites)
        self.axes = [_Axes(site.shape, axes) for site, axes in zip(sites, groups, strict=True)]
        self.groups = math.prod(sites[0].shape[axis] for axis in groups[0])
        self.sizes = [math.prod(site.shape) // self.groups for site in sites]
        self.dim = sum(self.sizes)

    def pack(self, values: Values, lead: int) -> Tensor:
        """{site: [*lead, *shape]} as [*lead, groups, dim]."""
        pairs = zip(self.sites, self.axes, strict=True)
        return torch.cat([axes.pack(values[name], lead) for name, axes in pairs], -1)

    def unpack(self, u: Tensor, lead: int) -> Values:
        """The inverse of `pack`."""
        parts = u.split(self.sizes, -1)
        triples = zip(self.sites, self.axes, parts, strict=True)
        return {name: axes.unpack(part, lead) for name, axes, part in triples}

    def design(self, base: Values) -> Values:
        u = self.pack(base, 1)  # [chain, groups, dim]
        step = 2.0 ** torch.log2(1 + u.detach().abs().amax() / 1024).round()
        steps = torch.cat([torch.zeros(1, self.dim).to(u), torch.eye(self.dim).to(u) * step])
        return self.unpack(u.unsqueeze(1) + steps[:, None], 2)

    def fit(self, points: Values, slopes: Values) -> tuple[Tensor, ...]:
        u, g = self.pack(points, 2), self.pack(slopes, 2)  # [chain, 1 + dim, groups, dim]
        apart = (u[:, 1:] - u[:, :1]).diagonal(dim1=1, dim2=3).movedim(1, 2)  # [chain, dim (moved), groups]
        hessian = ((g[:, 1:] - g[:, :1]) / apart[..., None]).movedim(1, 3)  # [chain, groups, dim, dim (moved)]
        return u[:, 0], g[:, 0], hessian

    def others(self, base: Values, eta: tuple[Tensor, ...]) -> Values:
        u = self.pack(base, 1)
        spread = (-eta[2].diagonal(dim1=-2, dim2=-1)).rsqrt()
        spread = torch.where(spread.isfinite(), spread, torch.ones_like(spread))
        wide = [size * spread for size in (1.0, 10.0)] + [1 + u.abs()]
        return self.unpack(torch.stack([u, *(u + width * torch.randn_like(u) for width in wide)], 1), 2)

    def _apart(self, eta: tuple[Tensor, ...], points: Values) -> tuple[Tensor, Tensor, Tensor]:
        """Each point's distance d from u0, H d, and the size of its terms, [chain, point, groups, dim]."""
        d = self.pack(points, 2) - eta[0][:, None]
        hessian = eta[2][:, None]
        return d, (hessian @ d[..., None])[..., 0], (hessian.abs() @ d.abs()[..., None])[..., 0]

    def residual(self, eta: tuple[Tensor, ...], points: Values, slopes: Values) -> Tensor:
        _, bend, size = self._apart(eta, points)
        actual, first = self.pack(slopes, 2), eta[1][:, None]
        error = (actual - first - bend).abs().amax(-1)
        scale = (size + first.abs() + actual.abs()).amax(-1)
        skew = (eta[2] - eta[2].mT).abs().amax((-2, -1)) / eta[2].abs().amax((-2, -1)).clamp(min=1e-300)
        return torch.maximum(error / scale.clamp(min=1e-300), skew[:, None]).amax(-1)

    def statistic(self, eta: tuple[Tensor, ...], points: Values) -> tuple[Tensor, Tensor]:
        d, bend, size = self._apart(eta, points)
        first = eta[1][:, None]
        return (first * d + d * bend / 2).sum((-2, -1)), ((first * d).abs() + d.abs() * size / 2).sum((-2, -1))

    def _factor(self, eta: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of the precision, and whether there is one."""
        factor, info = torch.linalg.cholesky_ex(-(eta[2] + eta[2].mT) / 2)
        return factor, info == 0

    def proper(self, eta: tuple[Tensor, ...]) -> bool:
        return bool(self._factor(eta)[1].all())

    def _mean(self, eta: tuple[Tensor, ...], factor: Tensor) -> Tensor:
        return eta[0] + torch.cholesky_solve(eta[1][..., None], factor)[..., 0]

    def sample(self, eta: tuple[Tensor, ...]) -> Values:
        factor, _ = self._factor(eta)
        noise = torch.randn_like(eta[0])[..., None]
        apart = torch.linalg.solve_triangular(factor.mT, noise, upper=True)[..., 0]
        return self.unpack(self._mean(eta, factor) + apart, 1)

    def log_prob(self, eta: tuple[Tensor, ...], values: Values, keep: int | None = None) -> Tensor:
        factor, _ = self._factor(eta)
        d = self.pack(values, 1) - self._mean(eta, factor)
        white = (factor.mT @ d[..., None])[..., 0]
        logs = factor.diagonal(dim1=-2, dim2=-1).log()
        each = (logs - white.square() / 2 - math.log(2 * math.pi) / 2).sum(-1)  # [chain, groups]
        if keep is None:
            return each.sum(1)
        site = self.latent[0]
        axes = self.axes[0].groups
        place = 1 + axes.index(len(site.fn.batch_shape) + keep)
        each = each.reshape([len(each), *[site.shape[axis] for axis in axes]])
        return _flat(each.movedim(place, 1), 2).sum(2)

    def marginals(self, eta: tuple[Tensor, ...], dtype: torch.dtype) -> dict[str, Any]:
        factor, _ = self._factor(eta)
        mean, covariance = self._mean(eta, factor)[0], torch.cholesky_inverse(factor)[0]
        found: dict[str, Any] = {}
        start = 0
        for site, axes, size in zip(self.latent, self.axes, self.sizes, strict=True):
            place = slice(start, start + size)
            start += size
            loc, inner = axes.unpack(mean[:, place], 0), covariance[:, place, place]
            events = len(site.fn.event_shape)
            if events == 0 or size == 1:
                scale = axes.unpack(inner.diagonal(dim1=-2, dim2=-1), 0).sqrt()
                found[site.name] = dist.Normal(loc.to(dtype), scale.to(dtype), validate_args=False).to_event(events)
            elif events == 1:
                root = torch.linalg.cholesky(_rows(site, axes, inner)).to(dtype)
                found[site.name] = dist.MultivariateNormal(loc.to(dtype), scale_tril=root, validate_args=False)
        return found


def _rows(site: Latent, axes: "_Axes", covariance: Tensor) -> Tensor:
    """The covariance of each vector of a site, [*batch, d, d], from that of each group, [groups, size, size]."""
    d = site.shape[-1]
    count = covariance.shape[-1] // d  # vectors in a group
    blocks = covariance.reshape(len(covariance), count, d, count, d).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    rest = [size for axis, size in enumerate(site.shape[:-1]) if axis not in axes.groups]
    shaped = blocks.reshape([*[site.shape[axis] for axis in axes.groups], *rest, d, d])
    return shaped.movedim(list(range(len(axes.groups))), list(axes.groups))


def plate_axes(site: Latent) -> tuple[int, ...]:
    """The axes of a site's shape that its plates hold, from left to right."""
    return tuple(sorted(len(site.fn.batch_shape) + dim for _, dim, _ in site.frames))


def family_of(site: Latent) -> list[Family]:
    """The families that a site's support allows, to be put to the test one after another."""
    support, name = site.support, type(site.support).__name__
    if name in ("_Real", "_RealVector"):
        return list(_gaussians(site))
    if name in ("_GreaterThan", "_GreaterThanEq") and _is(support.lower_bound, 0):
        return [Gamma(site), InverseGamma(site)]
    if name in ("_Interval", "_HalfOpenInterval") and _is(support.lower_bound, 0) and _is(support.upper_bound, 1):
        return [Beta(site)]
    if name == "_Simplex" and site.shape[-1] > 1:
        return [Dirichlet(site)]
    return []


def _is(bound: Any, value: float) -> bool:
    return bool((torch.as_tensor(bound) == value).all())


def _gaussians(site: Latent) -> list[Gaussian]:
    """Each element by itself, each row of the plates by itself, all together."""
    every, plates = tuple(range(len(site.shape))), plate_axes(site)
    return [Gaussian([site], [axes]) for axes in dict.fromkeys((every, plates, ()))]
