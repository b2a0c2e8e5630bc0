"""Which sites of a program are coordinates of its density, which are summed out, and what it cannot do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_dgm.errors import TaskUnavailable

__all__ = [
    "Coordinates",
    "Layout",
    "Start",
    "base_of",
    "is_coordinate",
    "is_deterministic",
    "is_point",
    "layout",
]


@dataclass(frozen=True)
class Coordinates:
    """Where a latent site lies in z, and how its value is made from there.

    Attributes:
        place: slice of the last dimension of z.
        shape: the shape of the site's unconstrained coordinates.
        transform: from there to the support of the site. Where the support depends on other sites, the
            transform at one starting point only: use `LogDensity.constrain`.
        event: the shape of the site's value, plates included.
        depends: whether the support depends on other sites.
    """

    place: slice
    shape: torch.Size
    transform: Any
    event: torch.Size
    depends: bool = False


@dataclass
class Layout:
    """What one run of a program shows.

    Attributes:
        sites: {latent continuous site: coordinates}, in the order in which they run.
        summed: names of the discrete latent sites.
        deterministic: names of the sites that are functions of z alone.
        points: of the observed sites, those with a Delta at the very value: they add nothing.
        observed: names of the observed sites and factors.
        nesting: how many dimensions the plates take.
        dim: the number of coordinates.
    """

    sites: dict[str, Coordinates] = field(default_factory=dict)
    summed: list[str] = field(default_factory=list)
    deterministic: list[str] = field(default_factory=list)
    points: set[str] = field(default_factory=set)
    observed: list[str] = field(default_factory=list)
    nesting: int = 0
    dim: int = 0
    latent_points: bool = False
    dtypes: set[torch.dtype] = field(default_factory=set)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Start(Messenger):
    """Gives every continuous latent site a value that is uniform on [-radius, radius] in its coordinates.

    No site is asked for a draw, which flat priors could not give.
    """

    def __init__(self, radius: float = 0.5) -> None:
        super().__init__()
        self.radius = radius
        self.unconstrained: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["done"] or not is_coordinate(fn):
            return
        transform = _bijection(msg["name"], fn)
        shape = transform.inverse_shape(torch.Size(fn.shape()))
        device = _device(fn)
        u = (2 * torch.rand(shape, device=device) - 1) * self.radius
        self.unconstrained[msg["name"]] = u
        msg["value"] = transform(u)
        msg["infer"]["_coordinates"] = (u, transform)


def is_point(fn: Any) -> bool:
    """Whether a distribution is a Delta, under whatever wrapping."""
    return isinstance(base_of(fn), dist.Delta)


def base_of(fn: Any) -> Any:
    """The distribution inside Independent, masks and expansions."""
    while hasattr(fn, "base_dist") and not isinstance(fn, torch.distributions.TransformedDistribution):
        fn = fn.base_dist
    return fn


def is_deterministic(node: Any) -> bool:
    """Whether a site is a function of others: `pyro.deterministic`, or a Delta."""
    return bool(node["infer"].get("_deterministic")) or is_point(node["fn"])


def is_coordinate(fn: Any) -> bool:
    """Whether a latent site with this distribution is part of z."""
    if type(fn).__name__ == "_Subsample" or is_point(fn) or fn.has_enumerate_support:
        return False
    try:
        return not fn.support.is_discrete
    except NotImplementedError:
        return True


def _bijection(name: str, fn: Any) -> Any:
    try:
        return biject_to(_common(fn.support))
    except NotImplementedError:
        raise TaskUnavailable(
            f"site {name!r} ({type(base_of(fn)).__name__}) has a support that no bijection maps to real "
            "numbers, so "
            "it has no density on R^d; reparametrise it, e.g. with poutine.reparam, or use method='svi' or "
            "'importance'."
        ) from None


def _common(support: Any) -> Any:
    """The support that all components of a mixture share, for a mixture's; others as they are."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        one = _common(support.base_constraint)
        return support if any(isinstance(value, Tensor) for value in vars(one).values()) else one
    if type(support) is constraints.independent:
        return constraints.independent(_common(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


def _device(fn: Any) -> torch.device | None:
    fn = base_of(fn)
    for name in getattr(fn, "arg_constraints", None) or ():
        value = getattr(fn, name, None)
        if isinstance(value, Tensor):
            return value.device
    base = getattr(fn, "base_dist", None)
    return _device(base) if base is not None and base is not fn else None


def layout(name: str, story: Callable[[], Any]) -> Layout:
    """Run a program twice from different starting points and read its sites.

    Raises:
        TaskUnavailable: the program has no continuous latent site, subsamples a plate, has a discrete site
            without a
            finite list of values, or its sites differ from run to run.
    """
    trace, other = (poutine.trace(Start()(story)).get_trace() for _ in range(2))
    nodes: dict[str, Any] = {key: node for key, node in trace.nodes.items() if node["type"] == "sample"}
    _refuse(name, nodes, other)
    found = Layout()
    for key, node in nodes.items():
        fn, value = node["fn"], node["value"]
        if type(fn).__name__ == "_Subsample":
            continue
        found.nesting = max([found.nesting, *(-f.dim for f in node["cond_indep_stack"] if f.vectorized)])
        if isinstance(value, Tensor) and value.is_floating_point():
            found.dtypes.add(value.dtype)
        if "_coordinates" in node["infer"]:
            found.sites[key] = _coordinates(found, key, node, other.nodes[key])
            found.device = node["infer"]["_coordinates"][0].device
        elif is_deterministic(node):
            found.deterministic.append(key)
            if node["is_observed"] and not node["infer"].get("_deterministic") and _holds(node, other.nodes[key]):
                found.points.add(key)
            found.latent_points |= not node["is_observed"]
        elif node["is_observed"]:
            found.observed.append(key)
            if isinstance(value, Tensor) and value.numel() and value.device.type != "cpu":
                found.device = value.device
        else:
            found.summed.append(key)
    if not found.sites:
        _nothing_continuous(name, found)
    return found


def _holds(node: Any, other: Any) -> bool:
    """Whether an observed Delta is at the very value, so that it adds nothing, at both starting points."""
    return all(bool((n["fn"].log_prob(n["value"]) == 0).all()) for n in (node, other))


def _coordinates(found: Layout, key: str, node: Any, other: Any) -> Coordinates:
    u, transform = node["infer"]["_coordinates"]
    second = other["infer"]["_coordinates"][1]
    with torch.no_grad():
        depends = not torch.equal(transform(u), second(u))
    place = slice(found.dim, found.dim + u.numel())
    found.dim += u.numel()
    return Coordinates(place, u.shape, transform, node["value"].shape, depends)


def _refuse(name: str, nodes: dict[str, Any], other: Any) -> None:
    for key, node in nodes.items():
        fn = node["fn"]
        if type(fn).__name__ == "_Subsample":
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise TaskUnavailable(
                    f"plate {key!r} draws {fn.subsample_size} of {fn.size} rows anew at each run, so its "
                    "density is noisy; "
                    "give the plate all rows, or use method='svi'."
                )
        elif not node["is_observed"] and not is_point(fn) and not is_coordinate(fn) and not fn.has_enumerate_support:
            raise TaskUnavailable(
                f"site {key!r} ({type(base_of(fn)).__name__}) is discrete and has no finite list of values "
                "to sum over; use "
                "a continuous or finite distribution there, or method='importance' with a guide."
            )
        if key not in other.nodes or (
            "_coordinates" in node["infer"]
            and node["infer"]["_coordinates"][0].shape != other.nodes[key]["infer"]["_coordinates"][0].shape
        ):
            raise TaskUnavailable(
                f"site {key!r} is not there in every run, or not of the same shape, so that the density of "
                f"{name!r} has no "
                "fixed dimension; draw every site in every run, and mask what does not count."
            )


def _nothing_continuous(name: str, found: Layout) -> None:
    if found.summed:
        raise TaskUnavailable(
            f"every latent site of {name!r} ({', '.join(map(repr, found.summed))}) is discrete, so there is "
            "no density on "
            "R^d; method='exact' sums over them."
        )
    raise TaskUnavailable(f"{name!r} has no latent site for these arguments, so there is nothing to infer.")
