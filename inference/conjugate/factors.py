"""Factors: a program's log density as a function of the values of all its latent sites, many points at once."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_one, scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppl_dgm.batched import batched_runs
from ppl_dgm.checking import outside_support
from ppl_dgm.densities.coordinates import Start, base_of, is_coordinate, is_deterministic, is_point
from ppl_dgm.densities.joint import unchecked
from ppl_dgm.densities.log_einsum import mappable_hmm
from ppl_dgm.densities.trees import cast, floats, stack
from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.graphs import Recorder
from ppl_dgm.program import as_program
from ppl_dgm.tracing import data_dim, latent_sites

__all__ = ["Factors", "Latent", "Values", "latent_distributions", "log_factors"]

Values = dict[str, Tensor]  # {latent site: value}, perhaps with leading dimensions for chains and points
_TRIES = 100  # starting points drawn for a chain before it is given up
_COMPARED = 4  # points at which the factors that depend on a site are looked for


@dataclass(frozen=True)
class Latent:
    """A latent site.

    Attributes:
        name: the site.
        fn: its distribution at one starting point.
        shape: of its value, plates included.
        frames: the plates that it stands in, `(name, dim, size)`.
        support: of one element, without what `to_event` adds.
        discrete: whether its values can be counted.
        values: the finite list of values of one element, [values, *event], else None.
        dtype: of its value.
    """

    name: str
    fn: Any
    shape: torch.Size
    frames: tuple[tuple[str, int, int], ...]
    support: Any
    discrete: bool
    values: Tensor | None
    dtype: torch.dtype


class _Substitute(Messenger):
    """Gives each latent site its value, or makes it from coordinates in R^d and adds up the log Jacobians."""

    def __init__(self, values: Values, coordinates: Values | None = None, free: Iterable[str] = ()) -> None:
        super().__init__()
        self.values, self.coordinates, self.free = values, coordinates or {}, set(free)
        self.jacobian: Any = 0.0
        self.placed: Values = {}
        self.inverted: Values = {}

    def _pyro_sample(self, msg: Any) -> None:
        name, fn = msg["name"], msg["fn"]
        if msg["is_observed"] or msg["done"] or name in self.free or type(fn).__name__ == "_Subsample":
            return
        if name in self.coordinates:
            transform = biject_to(fn.support)
            u = self.coordinates[name]
            msg["value"] = transform(u)
            self.jacobian = self.jacobian + transform.log_abs_det_jacobian(u, msg["value"]).sum()
            self.placed[name] = msg["value"]
        elif name in self.values:
            msg["value"] = self.placed[name] = self.values[name]
        elif not is_point(fn):
            raise _moving(name)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"] and is_coordinate(msg["fn"]):
            self.inverted[msg["name"]] = biject_to(msg["fn"].support).inv(msg["value"])


class Factors:
    """log p(x, z) = sum_f log f of a program at given values of its latent sites z, in the sites' own spaces.

    Unlike in a `LogDensity`, discrete sites keep their values, and no Jacobian is added. Everything is
    computed in float64 where the program allows it.

    Arguments:
        program: any program; call inside `program.running()`.
        *args, **kwargs: the model's arguments, with the observations.

    Attributes:
        latent: {site: Latent} in the order in which they run.
        observed: names of the observed sites and factors.
        deterministic: names of the sites that are functions of others.
        normalised: False where the program has `pyro.factor` terms or flat priors.
        data_dim: the batch dimension (negative) of the plate `data` where every site lies in it, else None.
        scaled: the first site that is rescaled, or None.
        dtype: in which densities are computed.
        native: the number type that the program itself would compute in.
        vectorised: whether vmap can follow the program.

    Raises:
        TaskUnavailable: a plate is subsampled, or sites differ from run to run.
    """

    def __init__(self, program: Any, *args: Any, **kwargs: Any) -> None:
        self.program = as_program(program)
        self._args, self._kwargs = args, kwargs
        self._recorders: dict[str, Recorder] = {}
        self.dtype = torch.get_default_dtype()
        given = [*floats(args), *floats(kwargs)]
        try:
            given += [node["log_prob"].dtype for node in self._run(self.dtype).values()]
        except (RuntimeError, ValueError):
            given.append(torch.float64)  # constants that do not go with single precision
        self.native = torch.float64 if torch.float64 in given else torch.get_default_dtype()
        self._to_double()
        first, second = self._trace(Start(2.0)), self._trace(Start(2.0))
        self._read(first, second)
        self.vectorised = self._maps([self._values_of(first), self._values_of(second)])

    # -- running ---------------------------------------------------------------------------------------------

    def story(self) -> Any:
        """The program, run once."""
        return self.program.run_model(*self._args, **self._kwargs)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Where the program runs: its own parameters, this number type, without Pyro's checks."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.program.running(), unchecked(), mappable_hmm():
                yield
        finally:
            torch.set_default_dtype(before)

    def _trace(self, messenger: Any) -> Any:
        with self.context(), torch.no_grad(), messenger:
            return poutine.trace(self.story).get_trace()

    def _run(self, dtype: torch.dtype) -> dict[str, Any]:
        self.dtype = dtype
        trace = self._trace(Start())
        with self.context(), torch.no_grad():
            return log_factors(trace)

    def _to_double(self) -> None:
        """Double precision, if need be with a copy of the program whose parameters are; else what there is."""
        program, args, kwargs = self.program, self._args, self._kwargs
        wide = torch.float64
        # single precision parameters among double precision values would often run too, and blur every comparison
        held = [*program.parameters(), *program.buffers()]
        narrow = any(value.is_floating_point() and value.dtype != wide for value in held)
        for copied in (True, False) if narrow else (False,):
            try:
                self.program = copy.deepcopy(program).double() if copied else program
                self._args, self._kwargs = cast(args, wide), cast(kwargs, wide)
                self._run(wide)
                return
            except (RuntimeError, ValueError, TypeError, AttributeError, copy.Error):
                pass  # not in this precision, or no copy can be made
        self.program, self._args, self._kwargs = program, cast(args, self.native), cast(kwargs, self.native)
        self.dtype = self.native

    def _values_of(self, trace: Any) -> Values:
        for name, site in self.latent.items():
            if name not in trace.nodes or trace.nodes[name]["value"].shape != site.shape:
                raise _moving(name)
        return {name: trace.nodes[name]["value"].to(site.dtype) for name, site in self.latent.items()}

    def _read(self, trace: Any, other: Any) -> None:
        self.latent: dict[str, Latent] = {}
        self.observed: list[str] = []
        self.deterministic: list[str] = []
        self.nesting, self.normalised, self.scaled = 0, True, None
        places: list[int | None] = []
        for name, node in trace.nodes.items():
            if node["type"] != "sample":
                continue
            _refuse(name, node, other)
            fn = node["fn"]
            if type(fn).__name__ == "_Subsample":
                continue
            self.nesting = max([self.nesting, *(-f.dim for f in node["cond_indep_stack"] if f.vectorized)])
            if is_deterministic(node) and not (node["is_observed"] and not node["infer"].get("_deterministic")):
                self.deterministic.append(name)
                continue
            if not is_identically_one(node["scale"]):
                self.scaled = self.scaled or name
            places.append(data_dim(node))
            if node["is_observed"]:
                if problem := outside_support(fn, node["value"]):
                    raise ProgramError(f"site {name!r}: {problem}.")
                self.observed.append(name)
            else:
                self.latent[name] = _latent(name, node)
            if type(base_of(fn)).__name__ in ("Unit", "ImproperUniform") or node["infer"].get("is_auxiliary"):
                self.normalised = False
        self.data_dim = places[0] if len(set(places)) == 1 else None
        named = [*self.latent, *self.observed]
        values = [trace.nodes[name]["value"] for name in named]
        self.device = next((value.device for value in values if isinstance(value, Tensor)), None)

    def _maps(self, points: list[Values]) -> bool:
        """Whether vmap gives what one point at a time gives."""
        single = torch.stack([self.at(point) for point in points])
        rows = stack(points)
        self.vectorised = True
        try:
            both = self.mapped(lambda *row: self.total(dict(zip(rows, row, strict=True))))(*rows.values())
        except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError, AssertionError):
            return False
        return both.shape == single.shape and torch.allclose(both, single, rtol=1e-6, atol=1e-6, equal_nan=True)

    # -- densities -------------------------------------------------------------------------------------------

    def terms(self, values: Values) -> dict[str, Tensor]:
        """{site or factor: its log density [*batch]} at one point; inside `context`."""
        with _Substitute(values):
            trace = poutine.trace(self.story).get_trace()
        return {name: node["log_prob"] for name, node in log_factors(trace).items()}

    def total(self, values: Values, names: Iterable[str] | None = None) -> Tensor:
        """log p(x, z) at one point, or the sum of some factors alone; inside `context`."""
        terms = self.terms(values)
        kept = terms if names is None else names
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return sum((terms[name].sum() for name in kept), zero)

    def transformed(self, values: Values, coordinates: Values, names: Iterable[str]) -> tuple[Tensor, Values]:
        """The sum of some factors + log |det J| where some sites are given in R^d, and the values of these sites."""
        place = _Substitute(values, coordinates)
        with place:
            trace = poutine.trace(self.story).get_trace()
        nodes = log_factors(trace)
        total = sum(nodes[name]["log_prob"].sum() for name in names)
        return total + place.jacobian, {name: place.placed[name] for name in coordinates}

    def coordinates(self, values: Values, names: Iterable[str]) -> Values:
        """The coordinates in R^d of some sites; inside `context`."""
        place = _Substitute(values)
        with place:
            self.story()
        return {name: place.inverted[name] for name in names}

    def at(self, values: Values) -> Tensor:
        """log p(x, z) at one point, without gradients."""
        with self.context(), torch.no_grad():
            return self.total(values)

    def mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of one row of tensors as one of many: by vmap, or one row after another."""

        def run(*rows: Tensor) -> Any:
            with self.context():
                if self.vectorised:
                    return torch.func.vmap(function, randomness="different")(*rows)
                return stack([function(*row) for row in zip(*rows, strict=True)])

        return run

    def recorded(self, function: Callable[..., Any]) -> Recorder:
        """A function of tensors that records itself; what cannot be recorded runs as it is, without a warning."""
        recorder = _Quiet(function)
        if not self.vectorised:
            recorder.path = "python"
        self._recorders[str(len(self._recorders))] = recorder
        return recorder

    def log_joint(self, state: Values) -> Tensor:
        """log p(x, z) of many points, [chain], from {site: [chain, *shape]}."""
        if "joint" not in self._recorders:
            self._recorders["joint"] = _Quiet(self.mapped(lambda *row: self.total(self._named(row))))
            if not self.vectorised:
                self._recorders["joint"].path = "python"
        with torch.no_grad():
            return self._recorders["joint"](*[state[name] for name in self.latent])

    def _named(self, row: tuple[Tensor, ...]) -> Values:
        return dict(zip(self.latent, row, strict=True))

    def computed(self, state: Values) -> Values:
        """{deterministic site: [point, *shape]} at many points."""
        if not self.deterministic:
            return {}

        def one(*row: Tensor) -> Values:
            with _Substitute(self._named(row)):
                nodes = poutine.trace(self.story).get_trace().nodes
            return {name: torch.as_tensor(nodes[name]["value"]) for name in self.deterministic}

        with torch.no_grad():
            return self.mapped(one)(*[state[name] for name in self.latent])

    def blanket(self, sites: Iterable[str], points: list[Values]) -> list[str]:
        """The factors that depend on some sites: by autograd's graph, and by their values at several points."""
        found: set[str] = set()
        first = points[0]
        with self.context(), torch.enable_grad():
            leaves = {n: first[n].detach().requires_grad_() for n in sites if first[n].is_floating_point()}
            terms = self.terms({**first, **leaves})
            found |= {name for name, term in terms.items() if term.requires_grad and _reaches(term, leaves.values())}
        for other in points[1:_COMPARED]:
            with self.context(), torch.no_grad():
                moved = self.terms({**first, **{n: other[n] for n in sites}})
            found |= {name for name in terms if not torch.equal(moved[name], terms[name].detach())}
        return [name for name in terms if name in found]

    def to_native(self, value: Tensor) -> Tensor:
        """In the number type that the program itself computes in."""
        return value.to(self.native) if value.is_floating_point() else value

    @property
    def path(self) -> str:
        """Whether every function that ran was recorded."""
        return "python" if any(r.path == "python" for r in self._recorders.values()) else "recorded"

    @property
    def recording_seconds(self) -> float:
        """Seconds spent recording."""
        return sum(recorder.seconds for recorder in self._recorders.values())

    # -- starting points -------------------------------------------------------------------------------------

    def initial(self, chains: int, radius: float = 2.0) -> Values:
        """Dispersed starting points of finite density, {site: [chain, *shape]}.

        Continuous sites are uniform on [-radius, radius] in their unconstrained coordinates, discrete ones drawn
        from their own distributions. A point without a finite density is drawn again, nearer to the centre.

        Raises:
            NumericalError: a chain found none.
        """
        state = self._drawn(chains, radius)
        bad = torch.empty(0)
        for attempt in range(_TRIES):
            bad = (~self.log_joint(state).isfinite()).nonzero().flatten()
            if not len(bad):
                return state
            fresh = self._drawn(chains, radius * 0.5 ** (attempt // 10))
            state = {name: old.index_copy(0, bad, fresh[name][bad]) for name, old in state.items()}
        raise self._no_start({name: value[bad[0]] for name, value in state.items()})

    def _drawn(self, chains: int, radius: float) -> Values:
        """Starting points, finite or not, all at once where vmap can follow."""

        def one() -> Values:
            return self._values_of(self._trace(Start(radius)))

        if self.vectorised and chains > 4:
            try:
                with self.context():
                    return batched_runs(one, chains)
            except (RuntimeError, ValueError, NotImplementedError):
                pass
        return stack([one() for _ in range(chains)])

    def _no_start(self, point: Values) -> NumericalError:
        with self.context(), torch.no_grad():
            bad = [name for name, term in self.terms(point).items() if not bool(term.isfinite().all())]
        where = f"at site {bad[0]!r} the log density is not finite" if bad else "the sum of log densities is not finite"
        return NumericalError(
            f"no starting point of {_TRIES} has a finite density in {self.program.name!r}: {where}; compare that "
            "distribution's support and parameters with its values, and look for NaN in the data."
        )


class _Quiet(Recorder):
    """A recorder that does not warn: the path is in the posterior's cost."""

    def __call__(self, *inputs: Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*without a recorded graph")
            return super().__call__(*inputs)


def log_factors(trace: Any) -> dict[str, Any]:
    """{name: node} of what has a density, each node with its `log_prob`, scaled and masked."""
    nodes = {}
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
            continue
        if node["infer"].get("_deterministic") or (is_point(node["fn"]) and not node["is_observed"]):
            continue
        log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
        node["unscaled_log_prob"] = log_prob
        node["log_prob"] = scale_and_mask(log_prob, node["scale"], node["mask"])
        nodes[name] = node
    return nodes


def _reaches(term: Tensor, leaves: Iterable[Tensor]) -> bool:
    gradients = torch.autograd.grad(term.sum(), list(leaves), retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def _latent(name: str, node: Any) -> Latent:
    fn, value = node["fn"], node["value"]
    frames = tuple((f.name, f.dim, f.size) for f in node["cond_indep_stack"] if f.vectorized)
    discrete = not is_coordinate(fn)
    support = getattr(fn, "support", None) if not discrete else None
    while hasattr(support, "base_constraint"):
        support = support.base_constraint  # type: ignore[union-attr]
    return Latent(name, fn, value.shape, frames, support, discrete, _listed(fn) if discrete else None, value.dtype)


def _listed(fn: Any) -> Tensor | None:
    """The values of one element of a discrete site, [values, *event], or None where they cannot be listed."""
    if not fn.has_enumerate_support:
        fn = base_of(fn)
        if not fn.has_enumerate_support or fn.event_shape:
            return None
    try:
        return fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
    except NotImplementedError:  # elements with different lists of values
        return None


def _refuse(name: str, node: Any, other: Any) -> None:
    fn = node["fn"]
    if type(fn).__name__ == "_Subsample" and fn.subsample_size is not None and fn.subsample_size < fn.size:
        raise TaskUnavailable(
            f"plate {name!r} draws {fn.subsample_size} of {fn.size} rows anew at each run, so its density is noisy; "
            "give the plate all rows, or use method='svi'."
        )
    same = name in other.nodes and getattr(other.nodes[name]["value"], "shape", None) == getattr(
        node["value"], "shape", None
    )
    if not same and type(fn).__name__ != "_Subsample":
        raise _moving(name)


def _moving(name: str) -> TaskUnavailable:
    return TaskUnavailable(
        f"site {name!r} is not there in every run, or not of the same shape, so that the program has no fixed set of "
        "sites; draw every site in every run, and mask what does not count."
    )


def latent_distributions(program: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """{latent site: distribution} of one run, in which no continuous site is drawn from; inside `program.running()`."""
    with torch.no_grad(), Start():
        try:
            trace = poutine.trace(program.run_model).get_trace(*args, **kwargs)
        except RuntimeError:  # constants that do not go with single precision
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                trace = poutine.trace(program.run_model).get_trace(*args, **kwargs)
            finally:
                torch.set_default_dtype(before)
    return {name: node["fn"] for name, node in latent_sites(trace).items() if not is_point(node["fn"])}
