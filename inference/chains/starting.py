"""Where the chains of a sampler start: dispersed, in groups, at given values, or at draws of another posterior or a guide."""

from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.results import Posterior

__all__ = ["Start", "starting_points", "superchain_of"]

Start = Posterior | dict[str, Any] | Tensor | str | None


def superchain_of(chains: int, superchains: int) -> Tensor:
    """The group that each chain belongs to, [chain]: neighbours are together."""
    return torch.arange(superchains).repeat_interleave(chains // superchains)


def starting_points(sampler: Any, density: Any) -> Tensor:
    """Where a `ChainSampler` with these options starts on this density, [chain, d].

    Raises:
        ProgramError: `start` lacks a site, has another shape, or lies outside of the support.
        NumericalError: the density at a given point is not finite, or no dispersed point is.
    """
    groups = sampler.superchains or sampler.chains
    if sampler.start is None:
        z = density.initial(groups, radius=sampler.radius, gradient=sampler.needs_gradient)
    else:
        z = _given(sampler.start, density, groups)
        _check_finite(sampler, density, z)
    return z.repeat_interleave(sampler.chains // groups, 0) if groups < sampler.chains else z


def _given(start: Any, density: Any, groups: int) -> Tensor:
    """The points that `start` means, [group, d]."""
    if isinstance(start, Tensor):
        if start.shape not in ((density.dim,), (groups, density.dim)):
            raise ProgramError(
                f"start has shape {tuple(start.shape)}, but points of this density have shape ({density.dim},), or "
                f"({groups}, {density.dim}) with one for each chain."
            )
        return start.detach().to(density.device, density.dtype).expand(groups, -1).clone()
    if isinstance(start, str):
        start = _from_guide(start, density, groups)
    if isinstance(start, Posterior):
        start = _picked(start, groups)
    if not isinstance(start, dict):
        raise ProgramError(
            f"start must be a Posterior, a dictionary of sites, a tensor or 'guide', but it is a {type(start).__name__}."
        )
    z = density.unconstrain({name: _fitted(name, value, density, groups) for name, value in start.items()})
    for name, site in density.sites.items():
        if not bool(z[:, site.place].isfinite().all()):
            raise ProgramError(f"start: site {name!r} has a value outside of its support or on its edge.")
    return z


def _from_guide(start: str, density: Any, groups: int) -> Posterior:
    """A draw of the program's guide for each group."""
    from ppl_dgm.inference.amortised import Amortised

    if start != "guide":
        raise ProgramError(f"start: {start!r} is not known; 'guide' starts at draws of the program's guide.")
    with density._context():
        return Amortised(draws=groups, weigh=False).run(density.program, *density._args, **density._kwargs)


def _fitted(name: str, value: Any, density: Any, groups: int) -> Tensor:
    """The value of a site for each group, [group, *shape]."""
    value = torch.as_tensor(value).detach()
    if name not in density.sites:
        return value
    shape = tuple(density.sites[name].event)
    if tuple(value.shape) == (groups, *shape):
        return value
    if tuple(value.shape) == shape:
        return value.expand(groups, *shape)
    raise ProgramError(
        f"start: site {name!r} has shape {tuple(value.shape)}, but its values have shape {shape}, or {(groups, *shape)} "
        "with one for each chain."
    )


def _picked(posterior: Posterior, groups: int) -> dict[str, Tensor]:
    """Draws at random, in proportion to their weights, {site: [group, *shape]}."""
    if not posterior.draws:
        raise ProgramError("start: the posterior has no draws to start from.")
    flat = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
    count, device = len(next(iter(flat.values()))), next(iter(flat.values())).device
    if posterior.log_weights is None:
        rows = torch.randint(count, (groups,), device=device)
    elif posterior.log_weights.dim() == 1:
        rows = torch.multinomial(torch.softmax(posterior.log_weights.double(), 0), groups, replacement=True)
    else:
        raise ProgramError(
            "start: the posterior weighs every observation by itself; give one with a weight for each draw."
        )
    return {name: value[rows] for name, value in flat.items()}


def _check_finite(sampler: Any, density: Any, z: Tensor) -> None:
    point = sampler.point(density, z)
    good = point.value.isfinite() & point.gradient.isfinite().all(1)
    if not bool(good.all()):
        chain = int((~good).nonzero()[0])
        raise NumericalError(
            f"start: the log density at point {chain} is {float(point.value[chain]):.3g} or has no finite gradient; start "
            "from values that the program gives a density."
        )
