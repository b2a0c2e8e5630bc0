"""Conjugacy: which sites have a full conditional of a known family, found out from the program's own densities.

There is no table of conjugate pairs. A site is conjugate given the rest if the log joint, as a function of its value,
is linear in the sufficient statistics of a family on its support. Gradients at a few points give the natural
parameters; whether values and gradients at other points, near and far, agree to rounding decides. The same gradients
give the conditional anew in each sweep of a Gibbs sampler.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import NumericalError
from ppl_dgm.graphs import short_bernoulli
from ppl_dgm.inference.conjugate.factors import Factors, Latent, Values
from ppl_dgm.inference.conjugate.families import Family, Gaussian, family_of, plate_axes

__all__ = [
    "LARGEST",
    "Conditional",
    "Slopes",
    "gaussian_blocks",
    "improper",
    "is_real",
    "recognise",
    "rows",
    "shared_groups",
]

_POINTS = 4096  # points, over all chains, whose gradients are computed at once


class Slopes:
    """Value and gradient of the Markov blanket of some sites, at several of their values for each chain.

    Arguments:
        factors: the program.
        sites: the sites to vary.
        blanket: the factors that depend on them.
    """

    def __init__(self, factors: Factors, sites: Sequence[str], blanket: Sequence[str]) -> None:
        self.factors, self.sites, self.blanket = factors, list(sites), list(blanket)
        self.rest = [name for name in factors.latent if name not in sites]
        self.gradients = 0  # evaluations so far, points times chains
        self._recorder = factors.recorded(self._evaluate)

    def __call__(self, points: Values, state: Values) -> tuple[Tensor, Values]:
        """At {site: [chain, point, *shape]}, all else as in `state`: values [chain, point], gradients likewise."""
        chains, count = points[self.sites[0]].shape[:2]
        self.gradients += chains * count
        at_once = max(1, _POINTS // chains)
        rest = [state[name] for name in self.rest]
        found = []
        for start in range(0, count, at_once):
            some = [points[name][:, start : start + at_once].contiguous() for name in self.sites]
            found.append(self._recorder(*some, *rest))
        if len(found) == 1:
            values, *slopes = found[0]
        else:
            values, *slopes = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return values, dict(zip(self.sites, slopes, strict=True))

    def _evaluate(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        varied = len(self.sites)
        with torch.enable_grad(), short_bernoulli():
            points = [x.detach().requires_grad_() for x in inputs[:varied]]
            values = self.factors.mapped(self._of_chain)(*points, *inputs[varied:])
            slopes: Any = [None] * varied
            if values.requires_grad:
                slopes = torch.autograd.grad(values.sum(), points, allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for g, x in zip(slopes, points, strict=True)]
        return values.detach(), *found

    def _of_chain(self, *row: Tensor) -> Tensor:
        rest = dict(zip(self.rest, row[len(self.sites) :], strict=True))

        def one(*values: Tensor) -> Tensor:
            return self.factors.total({**rest, **dict(zip(self.sites, values, strict=True))}, self.blanket)

        return self.factors.mapped(one)(*row[: len(self.sites)])


class Conditional:
    """The full conditional of a block of sites, in a family, for every chain.

    Arguments:
        family: what it is taken to be; `holds` tells whether that is true.
        slopes: gives values [chain, point] and gradients of the log density at values of the block.
        dtype: in which it computes.
    """

    def __init__(
        self, family: Family, slopes: Callable[[Values, Values], tuple[Tensor, Values]], dtype: torch.dtype
    ) -> None:
        self.family, self.slopes = family, slopes
        self.sites = family.sites
        self.tolerance = 1e-8 if dtype == torch.float64 else 2e-3

    @property
    def label(self) -> str:
        """In words, for reports."""
        return f"{self.family.label} (conjugate)"

    def eta(self, state: Values) -> tuple[Tensor, ...]:
        """The natural parameters given the rest of the state, {site: [chain, *shape]}."""
        points = self.family.design({name: state[name] for name in self.sites})
        _, slopes = self.slopes(points, state)
        return self.family.fit(points, slopes)

    def holds(self, state: Values) -> bool:
        """Whether gradients and values at other points are what the family says, for every chain of the state."""
        try:
            with torch.no_grad():
                eta = self.eta(state)
                return all(bool(part.isfinite().all()) for part in eta) and self._agrees(eta, state)
        except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError):
            return False  # it cannot be differentiated, or not at these values

    def _agrees(self, eta: tuple[Tensor, ...], state: Values) -> bool:
        points = self.family.others({name: state[name] for name in self.sites}, eta)
        values, slopes = self.slopes(points, state)
        if not bool(values.isfinite().all()):
            return False
        error = self.family.residual(eta, points, slopes)
        linear, size = self.family.statistic(eta, points)
        change, expected = values[:, 1:] - values[:, :1], linear[:, 1:] - linear[:, :1]
        allowed = self.tolerance * (size[:, 1:] + size[:, :1] + 1) + self.tolerance / 10 * values.abs().amax(1, True)
        return bool((error <= self.tolerance).all() and ((change - expected).abs() <= allowed).all())

    def sample(self, state: Values) -> Values:
        """A draw for each chain, given the rest of the state.

        Raises:
            NumericalError: the conditional cannot be normalised.
        """
        eta = self.eta(state)
        if not self.family.proper(eta):
            raise improper(self.sites, self.family.label)
        return self.family.sample(eta)


def improper(sites: Sequence[str], label: str) -> NumericalError:
    """The error for a conditional whose density has no finite integral."""
    named = ", ".join(map(repr, sites[:3]))
    return NumericalError(
        f"site{'s' if len(sites) > 1 else ''} {named}: given the rest, the density is of the {label} family but has no "
        "finite integral, so there is no conditional to draw from; give the site a proper prior."
    )


def recognise(factors: Factors, site: Latent, state: Values) -> Conditional | None:
    """The site's full conditional, or None where it is in no family that is known.

    Arguments:
        state: several points, {site: [chain, *shape]}, all of which have to agree.
    """
    families = family_of(site)
    if not families:
        return None
    blanket = factors.blanket([site.name], rows(state, 4))
    for family in families:
        if isinstance(family, Gaussian) and family.dim > LARGEST:
            continue
        found = Conditional(family, Slopes(factors, family.sites, blanket), factors.dtype)
        if found.holds(state):
            return found
    return None


LARGEST = 128  # coordinates of a Gaussian block: each costs a gradient in every sweep


def gaussian_blocks(factors: Factors, names: Sequence[str], state: Values, largest: int = LARGEST) -> list[Conditional]:
    """Blocks of several real sites that are jointly Gaussian given the rest, as large as can be found in one pass.

    Sites that join no block are left out.
    """
    real = [factors.latent[name] for name in names if is_real(factors.latent[name])]
    whole = _joint(factors, real, state, largest) if len(real) > 1 else None
    if whole is not None:
        return [whole]
    blocks: list[Conditional] = []
    current: list[Latent] = []
    found: Conditional | None = None
    for site in real:
        grown = _joint(factors, [*current, site], state, largest) if current else None
        if grown is not None:
            current, found = [*current, site], grown
            continue
        if found is not None:
            blocks.append(found)
        current, found = [site], None
    return blocks + ([found] if found is not None else [])


def is_real(site: Latent) -> bool:
    """Whether a site's values are real numbers or vectors of them."""
    return type(site.support).__name__ in ("_Real", "_RealVector")


def _joint(factors: Factors, sites: list[Latent], state: Values, largest: int) -> Conditional | None:
    blanket: list[str] | None = None
    for groups in shared_groups(sites):
        family = Gaussian(sites, groups)
        if family.dim > largest:
            continue
        if blanket is None:
            blanket = factors.blanket([site.name for site in sites], rows(state, 4))
        found = Conditional(family, Slopes(factors, family.sites, blanket), factors.dtype)
        if found.holds(state):
            return found
    return None


def shared_groups(sites: Sequence[Latent]) -> list[list[tuple[int, ...]]]:
    """The axes of the plates that all sites share, if there are any, and none."""
    common = set(sites[0].frames).intersection(*(site.frames for site in sites))
    dims = sorted(dim for _, dim, _ in common)
    choices = [[tuple(len(site.fn.batch_shape) + dim for dim in dims) for site in sites]] if dims else []
    if len(sites) == 1:
        choices.append([plate_axes(sites[0])])
    return [*choices, [() for _ in sites]]


def rows(state: Values, most: int | None = None) -> list[Values]:
    """{site: [chain, *shape]} as one dictionary for each of the first chains."""
    count = min(len(next(iter(state.values()))), most or 2**62)
    return [{name: value[i] for name, value in state.items()} for i in range(count)]
