"""Codes: what an amortised guide says of rows of data, with the densities that every diagnosis of latents is made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_dgm.data.dataset import Dataset
from ppl_dgm.errors import DataError, TaskUnavailable
from ppl_dgm.program import Program, as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.tasks import _observations, evaluating
from ppl_dgm.tracing import data_dim, sites

__all__ = [
    "Codes",
    "Layout",
    "at_rest",
    "checked",
    "encode",
    "layout",
    "per_row",
    "rows_of",
    "split",
    "stratified",
    "traces",
]

ROWS = 2**13  # rows of data that go through the networks at once


@dataclass(frozen=True)
class Layout:
    """The latent sites inside the plate `data`, in the order in which the guide draws them.

    Attributes:
        names: of the sites.
        sizes: {site: numbers in one row's value}.
        shapes: {site: shape of one row's value}.
        row_dims: {site: dimension, counted from the right, along which the rows of a value lie}.
        observed: names of the observed sites.
    """

    names: tuple[str, ...]
    sizes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    row_dims: dict[str, int]
    observed: tuple[str, ...]

    @property
    def dim(self) -> int:
        """Numbers in a row's latents, all sites together."""
        return sum(self.sizes.values())

    @property
    def units(self) -> list[str]:
        """Names of all numbers, such as "z[3]"; a site of one number goes by its own name."""
        return [
            name if self.sizes[name] == 1 else f"{name}[{j}]" for name in self.names for j in range(self.sizes[name])
        ]

    def joined(self, values: dict[str, Tensor]) -> Tensor:
        """{site: [..., size]} as one tensor [..., dim]."""
        return torch.cat([values[name] for name in self.names], -1)

    def parted(self, codes: Tensor) -> dict[str, Tensor]:
        """The inverse of `joined`."""
        parts = codes.split([self.sizes[name] for name in self.names], -1)
        return dict(zip(self.names, parts, strict=True))

    def as_sites(self, codes: Tensor) -> dict[str, Tensor]:
        """[rows, dim] as the sites' own values, for conditioning."""
        return {
            name: part.unflatten(-1, self.shapes[name]).movedim(0, self.row_dims[name])
            if self.shapes[name]
            else part.squeeze(-1)
            for name, part in self.parted(codes).items()
        }

    def flat(self, name: str, value: Tensor) -> Tensor:
        """A site's own value as [rows, size]."""
        return value.movedim(self.row_dims[name], 0).flatten(1) if value.dim() > 1 else value.unsqueeze(-1)


@dataclass(frozen=True)
class Codes:
    """Draws of the guide for rows of data, and their densities in nats.

    Attributes:
        layout: the latent sites.
        x: the rows, [N, D].
        draws: {site: [draw, N, size]}.
        means: {site: [draw, N, size]}, the mean of a site given x and the draws of the sites before it (the draw itself where
            the distribution does not know its mean).
        log_q: {site: [draw, N]}, log q(z_l | x, the sites before it).
        log_p: {site: [draw, N]}, log p(z_l | its parents).
        kl: {site: [draw, N]}, the divergence of q from p at the draws of the sites before: in closed form where there is one,
            else log q - log p.
        unit_kl: {site: [draw, N, size]}, that of each number, where both sides factorise; else absent.
        log_x: [draw, N], log p(x | z).
        analytic: whether every level's divergence is in closed form.
    """

    layout: Layout
    x: Tensor
    draws: dict[str, Tensor]
    means: dict[str, Tensor]
    log_q: dict[str, Tensor]
    log_p: dict[str, Tensor]
    kl: dict[str, Tensor]
    unit_kl: dict[str, Tensor]
    log_x: Tensor
    analytic: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def elbo(self) -> Tensor:
        """[draw, N] terms whose average over draws is the evidence lower bound of each row."""
        return self.log_x - sum(self.kl.values(), torch.zeros_like(self.log_x))

    @property
    def posterior_means(self) -> Tensor:
        """E_q[z | x] of each row, [N, dim]."""
        return self.layout.joined(self.means).mean(0)


def split(data: Any, heldout: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Training rows and held-out rows: of a Dataset, or of one tensor of rows (its last third is held out unless given).

    Raises:
        DataError: there are too few rows.
    """
    if isinstance(data, Dataset):
        test = data.test if len(data.test) else data.valid
        train, heldout = data.train, test if heldout is None else heldout
    elif heldout is None:
        data = torch.as_tensor(data)
        cut = len(data) - len(data) // 3
        train, heldout = data[:cut], data[cut:]
    else:
        train = torch.as_tensor(data)
    if len(train) < 2 or len(heldout) < 2:
        raise DataError(
            f"there are {len(train)} training and {len(heldout)} held-out rows, but at least 2 of each are needed; "
            "give more data."
        )
    return train, heldout


def rows_of(x: Tensor, most: int) -> Tensor:
    """At most so many rows, drawn without replacement (all of them, in order, if they are no more)."""
    return x if len(x) <= most else x[torch.randperm(len(x), device=x.device)[:most].sort().values]


@contextmanager
def at_rest(program: Any, seed: int | None) -> Iterator[Program]:
    """The program in evaluation mode, with its own parameters and under a seed; no gradients."""
    program = as_program(program)
    with torch.no_grad(), seeded(seed), program.running(), evaluating(program), pyro.validation_enabled(False):
        yield program


def layout(program: Program, x: Tensor) -> Layout:
    """The latent sites of the guide for these rows.

    Raises:
        TaskUnavailable: there is no guide, or a latent site lies outside the plate `data`.
    """
    if not program.has_guide:
        raise TaskUnavailable(
            f"{program.name!r} has no guide, so there is nothing to diagnose; pass a program with an amortised guide."
        )
    drawn, story = traces(program, x[:2])
    found = sites(drawn)
    latent = {
        name: node
        for name, node in found.items()
        if not node["is_observed"] and name in story.nodes and not (node["infer"] or {}).get("_deterministic")
    }
    if not latent:
        raise TaskUnavailable(f"the guide of {program.name!r} draws no latent site, so there is nothing to diagnose.")
    shapes, row_dims = {}, {}
    for name, node in latent.items():
        dim = data_dim(node)
        frame = next((f for f in node["cond_indep_stack"] if f.name == "data"), None)
        if dim is None or frame is None or frame.size != len(x[:2]):
            raise TaskUnavailable(
                f"the latent site {name!r} does not lie in a plate 'data' over the rows of x, so that no row has a code of its "
                "own; put it there, or diagnose the posterior with Posterior.diagnose."
            )
        row_dims[name] = dim - node["fn"].event_dim
        shapes[name] = tuple(node["value"].movedim(row_dims[name], 0).shape[1:])
    observed = tuple(
        name
        for name, node in sites(story).items()
        if node["is_observed"] and not (node["infer"] or {}).get("_deterministic")
    )
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    return Layout(tuple(latent), sizes, shapes, row_dims, observed)


def traces(program: Program, x: Tensor) -> tuple[Any, Any]:
    """Traces of the guide and of the model under its draws."""
    drawn = poutine.trace(program.run_guide).get_trace(x)
    return drawn, poutine.trace(poutine.replay(program.run_model, trace=drawn)).get_trace(x)


def per_row(node: Any, rows: int) -> Tensor:
    """[rows]: a site's log density, masked and scaled, summed over every dimension but that of `data`."""
    dim, log_prob = data_dim(node), node["log_prob"]
    if dim is None:
        return log_prob.sum().expand(rows)
    shape = (rows, *(1,) * (-dim - 1))
    return log_prob.expand(torch.broadcast_shapes(log_prob.shape, shape)).movedim(dim, 0).reshape(rows, -1).sum(1)


def checked(program: Program, x: Tensor) -> Tensor:
    """The rows on the program's device, checked against what it says it observes."""
    return _observations(program, (x,))[0]


def encode(program: Program, x: Tensor, draws: int = 1) -> Codes:
    """Draw codes for every row; use inside `at_rest`.

    Arguments:
        program: with an amortised guide.
        x: [N, D].
        draws: of each row.
    """
    x = checked(program, x)
    known = layout(program, x)
    parts: list[dict[str, Any]] = []
    whole = x.repeat_interleave(draws, 0)  # rows of one example lie together
    for begin in range(0, len(whole), ROWS):
        parts.append(_encode(program, known, whole[begin : begin + ROWS]))

    def gather(key: str, name: str) -> Tensor:
        return torch.cat([part[key][name] for part in parts]).unflatten(0, (len(x), draws)).movedim(1, 0)

    def gathered(key: str) -> dict[str, Tensor]:
        return {name: gather(key, name) for name in known.names if name in parts[0][key]}

    return Codes(
        layout=known,
        x=x,
        draws=gathered("draws"),
        means=gathered("means"),
        log_q=gathered("log_q"),
        log_p=gathered("log_p"),
        kl=gathered("kl"),
        unit_kl=gathered("unit_kl"),
        log_x=torch.cat([part["log_x"] for part in parts]).unflatten(0, (len(x), draws)).mT,
        analytic=all(part["analytic"] for part in parts),
    )


def _encode(program: Program, known: Layout, x: Tensor) -> dict[str, Any]:
    drawn, story = traces(program, x)
    drawn.compute_log_prob()
    story.compute_log_prob()
    rows = len(x)
    found: dict[str, Any] = {key: {} for key in ("draws", "means", "log_q", "log_p", "kl", "unit_kl")}
    analytic = True
    for name in known.names:
        q, p = drawn.nodes[name], story.nodes[name]
        found["draws"][name] = known.flat(name, q["value"])
        found["means"][name] = known.flat(name, mean_of(q["fn"], q["value"]))
        found["log_q"][name], found["log_p"][name] = per_row(q, rows), per_row(p, rows)
        units, exact = _unit_divergence(q, p)
        found["kl"][name] = found["log_q"][name] - found["log_p"][name]
        if units is not None:
            found["unit_kl"][name] = known.flat(name, units)
            if factors(q["fn"]) is not None and exact:
                found["kl"][name] = found["unit_kl"][name].sum(-1)
        elif (closed := _divergence(q, p, rows)) is not None:
            found["kl"][name], exact = closed, True
        analytic &= exact
    terms = (per_row(story.nodes[name], rows) for name in known.observed)
    found["log_x"] = sum(terms, x.new_zeros(rows, dtype=program.dtype))
    found["analytic"] = analytic
    return found


def mean_of(fn: Any, value: Tensor) -> Tensor:
    """A distribution's mean, or the draw where it knows none."""
    try:
        mean = fn.mean.expand(value.shape)
    except (NotImplementedError, RuntimeError, AttributeError):
        return value
    return mean if bool(mean.isfinite().all()) else value


def factors(fn: Any) -> Any:
    """The distribution of single numbers whose product this is, or None."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    plain = fn.event_shape == torch.Size() and not isinstance(fn, dist.MaskedDistribution)
    return fn if plain else None


def _marginals(fn: Any) -> Any:
    """As `_factors`; of a multivariate normal, its marginals."""
    if factors(fn) is not None:
        return factors(fn)
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return dist.Normal(fn.mean, fn.variance.sqrt())
    return None


def _unit_divergence(q: Any, p: Any) -> tuple[Tensor | None, bool]:
    """The divergence of each number of a site, in the site's own shape, and whether it is in closed form."""
    if q["mask"] is not None or p["mask"] is not None:
        return None, False
    first, second = _marginals(q["fn"]), factors(p["fn"])
    if first is None or second is None:
        return None, False
    try:
        return kl_divergence(first, second).expand(q["value"].shape), True
    except NotImplementedError:
        return first.log_prob(q["value"]) - second.log_prob(q["value"]), False


def _divergence(q: Any, p: Any, rows: int) -> Tensor | None:
    """[rows] divergence of a whole site in closed form, or None."""
    if q["mask"] is not None or p["mask"] is not None or data_dim(q) != -1:
        return None
    try:
        value = kl_divergence(q["fn"], p["fn"])
    except (NotImplementedError, ValueError):
        return None
    return value if value.shape == (rows,) else None


def stratified(terms: Tensor) -> tuple[float, float]:
    """The average of [draw, row] terms and its Monte Carlo standard error, the rows being fixed.

    With one draw for each row the spread between rows is taken in, so that the error is too large rather than too small.
    """
    terms = terms.double()
    draws, rows = terms.shape
    if draws > 1:
        error = (terms.var(0).sum() / draws).sqrt() / rows
    else:
        error = terms.std() / rows**0.5
    return float(terms.mean()), float(error)
