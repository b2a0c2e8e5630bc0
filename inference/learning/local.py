"""Local variational parameters: a guide's distributions for given observations, as numbers that can be moved by gradient."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import transform_to

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.particles import random_nodes, row_count
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded

__all__ = ["LocalProgram", "LocalSite", "check_independent", "local_sites"]


@dataclass(frozen=True)
class LocalSite:
    """How a latent site's distribution is made from numbers.

    Attributes:
        family: the class of the distribution of an entry (or of a vector).
        names: its parameters.
        constraints: of each.
        events: dimensions that `to_event` takes.
    """

    family: type
    names: tuple[str, ...]
    constraints: tuple[Any, ...]
    events: int

    def distribution(self, numbers: tuple[Tensor, ...]) -> Any:
        """The site's distribution for unconstrained numbers, [row, ...] each."""
        values = {n: transform_to(c)(u) for n, c, u in zip(self.names, self.constraints, numbers, strict=True)}
        made = self.family(**values)
        return made.to_event(self.events) if self.events else made


class LocalProgram(Program):
    """A program whose guide is given by numbers of its own for each row, which are passed as arguments after the program's own.

    Arguments:
        program: its model is run.
        sites: {latent site: LocalSite}.
        arguments: how many of the arguments are the program's.
    """

    def __init__(self, program: Program, sites: dict[str, LocalSite], arguments: int) -> None:
        super().__init__()
        self.inner, self.sites, self.arguments = program, sites, arguments

    @property
    def name(self) -> str:
        return self.inner.name

    def model(self, *args: Any, **kwargs: Any) -> Any:
        """The program's model."""
        return self.inner.run_model(*args[: self.arguments], **kwargs)

    def guide(self, *args: Any, **kwargs: Any) -> None:
        """Every latent site from its own numbers."""
        numbers = iter(args[self.arguments :])
        with pyro.plate("data", len(args[0])):
            for name, site in self.sites.items():
                pyro.sample(name, site.distribution(tuple(next(numbers) for _ in site.names)))


def local_sites(
    program: Program, batch: tuple, kwargs: dict[str, Any], checked: bool = True
) -> tuple[dict[str, LocalSite], list[Tensor]]:
    """The guide's distributions for a batch: how they are made, and the unconstrained numbers they are made from now.

    Arguments:
        checked: make sure that they are the same when made again.

    The numbers keep the history of the guide's parameters. Use inside `program.running()`.

    Raises:
        TaskUnavailable: a site's distribution depends on what another site drew, cannot be made from its parameters, is not
            reparameterised, or lies in more plates than `data`.
    """
    rows, sites, numbers = row_count(batch), {}, []
    trace = poutine.trace(program.run_guide).get_trace(*batch, **kwargs)
    for name, node in random_nodes(trace).items():
        fn = node["fn"]
        if len(fn.batch_shape) != 1 or fn.batch_shape[0] != rows:
            raise TaskUnavailable(
                f"site {name!r} of the guide of {program.name!r} has no distribution of its own for each of {rows} rows in the "
                "plate 'data' alone, so that it has no local parameters; method='importance' or 'chees' need none."
            )
        site, values = _taken_apart(name, fn, rows)
        with torch.no_grad():
            if not checked:
                sites[name] = site
                numbers.extend(values)
                continue
            again = site.distribution(tuple(values)).log_prob(node["value"])
            if not torch.allclose(again, fn.log_prob(node["value"]), rtol=1e-3, atol=1e-3):
                raise _unknown(name, fn)
        sites[name] = site
        numbers.extend(values)
    return sites, numbers


def check_independent(program: Program, batch: tuple, kwargs: dict[str, Any]) -> None:
    """Two runs of the guide must give the same distributions: those of no site depend on what another drew.

    Raises:
        TaskUnavailable: they differ.
    """
    runs = []
    with torch.no_grad():
        for seed in (0, 1):
            with seeded(seed):
                runs.append(local_sites(program, batch, kwargs))
    (sites, first), (_, second) = runs
    names = [name for name, site in sites.items() for _ in site.names]
    for name, one, other in zip(names, first, second, strict=True):
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
            raise TaskUnavailable(
                f"the guide of {program.name!r} draws {name!r} given what another site drew (or at random), so that there are "
                "no local parameters to refine; use method='importance' or 'chees'."
            )


def _taken_apart(name: str, fn: Any, rows: int) -> tuple[LocalSite, list[Tensor]]:
    """A distribution's family and unconstrained parameters, each [row, ...]."""
    events = 0
    while type(fn).__name__ in ("Independent", "ExpandedDistribution"):
        events += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    names = _NAMES.get(type(fn).__name__) or tuple(fn.arg_constraints)
    if not names or not fn.has_rsample:
        raise _unknown(name, fn)
    batch_shape = fn.batch_shape
    limits, numbers = [], []
    for parameter in names:
        limit = fn.arg_constraints[parameter]
        value = getattr(fn, parameter)
        if not isinstance(value, Tensor):
            raise _unknown(name, fn)
        width = limit.event_dim
        whole = value.expand(*batch_shape, *value.shape[value.dim() - width :])
        whole = whole.expand(rows, *whole.shape[1:])
        limits.append(limit)
        numbers.append(transform_to(limit).inv(whole))
    return LocalSite(type(fn), names, tuple(limits), events), numbers


# parameters that make a distribution, where its class offers several sets
_NAMES = {"MultivariateNormal": ("loc", "scale_tril"), "LowRankMultivariateNormal": ("loc", "cov_factor", "cov_diag")}


def _unknown(name: str, fn: Any) -> TaskUnavailable:
    return TaskUnavailable(
        f"site {name!r} of the guide is {type(fn).__name__}, which cannot be moved by the gradient of its parameters; "
        "method='importance' or 'chees' need no such thing."
    )
