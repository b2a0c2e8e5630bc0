"""LogDensity: a program and its observations as one differentiable function on R^d."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .checking import outside_support
from .densities.blame import LastSite, worst_site
from .densities.coordinates import Layout, layout
from .densities.joint import Joint, unchecked
from .densities.log_einsum import mappable_hmm
from .densities.reference import check_noise, check_reference, close
from .densities.trees import cast, floats, stack
from .errors import DgmError, NumericalError, ProgramError, TaskUnavailable
from .graphs import NaNForSingular, Recorder, short_bernoulli, value_and_gradient
from .program import as_program
from .randomness import seeded

__all__ = ["LogDensity"]

_TRIES = 100  # starting points drawn for a chain before it is given up
_ROWS = 1024  # points whose values are computed at a time
_ROUTES = ("vmap", "plate", "loop")


class LogDensity:
    """log p(x, z) of a program's continuous latent sites z, for fixed observations x, as a function on R^d.

        log_prob(u) = log p(x, T(u)) + log |det dT/du|,        T = Pyro's `biject_to` of each site's support,

    with every constant term. Discrete latent sites with a finite list of values are summed out exactly. The
    effect handlers
    of Pyro run once for each number of chains; after that a graph of tensor calls is replayed.

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: the model's arguments, with the observations; floating-point tensors are taken to
            `dtype`.
        dtype: of z and of the results; by default float64 if the data or the program is, else float32.
        backend: "eager" replays the graph as it is; "inductor" compiles it at its first call.
        vectorize: how many chains are evaluated at once: "vmap"; "plate" (an outermost plate: for programs
            that vmap cannot
            follow but that broadcast); "loop" (one after another); None takes the first of these that works.
        check: compare with Pyro's own potential at two points.

    Attributes:
        dim: d.
        sites: {site: Coordinates}; each has a slice of z, the unconstrained shape, the transform and the
            site's own shape.
        summed: names of the discrete sites that are summed out.
        deterministic: names of the sites that `constrain` computes besides.
        device, dtype: of z.
        vectorize: the route that is taken.
        path: "recorded", or "python" where the program cannot be recorded.
        reason: why the route is not vmap or the path not recorded, else an empty string.
        gradients: gradient evaluations so far, chains times calls.
        evaluations: evaluations of the log density without its gradient so far, chains times calls of `log_prob`.

    Raises:
        TaskUnavailable: no continuous latent site, a subsampled plate, a support without a bijection, a
            discrete site that
            cannot be enumerated, random numbers outside of sites.
        ProgramError: the density is not the one that Pyro computes; a wrong option.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> density = LogDensity(coin, torch.tensor(7.0))
        >>> value, gradient = density.value_and_grad(torch.zeros(4, 1))
        >>> value.shape, gradient.shape
        (torch.Size([4]), torch.Size([4, 1]))
        >>> density.constrain(torch.zeros(4, 1))[0]["p"]
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    def __init__(
        self,
        program: Any,
        *args: Any,
        dtype: torch.dtype | None = None,
        backend: str = "eager",
        vectorize: str | None = None,
        check: bool = True,
        **kwargs: Any,
    ) -> None:
        if vectorize is not None and vectorize not in _ROUTES:
            raise ProgramError(f"vectorize must be one of {', '.join(map(repr, _ROUTES))}, but it is {vectorize!r}.")
        self.program = as_program(program)
        self.backend = backend
        self.path, self.reason = "recorded", ""
        self.gradients = 0
        self.evaluations = 0
        self._args, self._kwargs = args, kwargs
        self._graphs: dict[str, Recorder] = {}
        self._known: set[tuple[int, Recorder]] = set()  # numbers of chains that have been recorded
        found = self._discover(dtype)
        self.dim, self.sites, self.summed = found.dim, found.sites, found.summed
        self.device = found.device
        self._joint = Joint(found, self._story)
        self._layout = found
        with self._context(), seeded(0):
            points = (2 * torch.rand(2, self.dim, dtype=self.dtype, device=self.device) - 1) * 0.5
            if check:
                self._check_observations(points[0])
            self._settle_deterministic(points[0])
            self.vectorize = self._route(points, vectorize, check)
        self.deterministic = list(found.deterministic)

    # -- the function ----------------------------------------------------------------------------------------

    def log_prob(self, z: Tensor) -> Tensor:
        """The log density at each point, in nats.

        Arguments:
            z: [chains, d] (or [d]).

        Returns:
            [chains] (or []), without gradient history.
        """
        self.evaluations += 1 if z.dim() == 1 else len(z)
        return self._call("log_prob", self._batched("log_joint"), z)[0]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log density at each point, [chains], and its gradient, [chains, d]."""
        self.gradients += 1 if z.dim() == 1 else len(z)
        value, gradient = self._call("value_and_grad", self._differentiated, z)
        return value, gradient

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient alone, [chains, d]: cheaper where the value is not needed, as inside a trajectory."""
        self.gradients += 1 if z.dim() == 1 else len(z)
        return self._call("gradient", lambda z: self._differentiated(z)[1:], z)[0]

    @property
    def fuses(self) -> bool:
        """Whether `fused` compiles: the backend is a compiler, and chains are evaluated together."""
        return self.backend != "eager" and self.path == "recorded" and self.vectorize != "loop"

    def fused(
        self, function: Callable[..., tuple[Tensor, ...]], z: Tensor, *others: Tensor, gradients: int = 1
    ) -> tuple[Tensor, ...]:
        """A function of tensors, with gradients of this density in it, as one graph: a whole step of a sampler.

        Arguments:
            function: takes an object with this density's `gradient` and `value_and_grad`, then the tensors. Its name tells
                its graph from others.
            z: [chains, d].
            others: whatever else `function` takes.
            gradients: how often `function` evaluates the gradient.
        """
        self.gradients += gradients * len(z)
        name = f"fused {function.__name__}"
        if name not in self._graphs:
            inside = self._inside(lambda *tensors: function(_Inside(self), *tensors))
            self._graphs[name] = Recorder(inside, backend=self.backend)
        return self._replay(self._graphs[name], z, *others)

    def log_prior(self, z: Tensor) -> Tensor:
        """The part of the log density that the latent sites have, the log Jacobian included, [chains]."""
        return self._call("parts", self._batched("log_parts"), z)[0]

    def log_likelihood(self, z: Tensor) -> Tensor:
        """What the observed sites and factors add to the log density, [chains]."""
        return self._call("parts", self._batched("log_parts"), z)[1]

    def parts_and_grads(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prior and likelihood apart, each with its gradient; tempered densities follow from them.

        Returns:
            log_prior [chains], log_likelihood [chains], and the gradient of each [chains, d].
        """
        self.gradients += 1 if z.dim() == 1 else len(z)
        prior, likelihood, first, second = self._call("parts_and_grads", self._parts_differentiated, z)
        return prior, likelihood, first, second

    def pointwise(self, z: Tensor) -> dict[str, Tensor]:
        """The log density of each observation, {observed site: [..., *batch]}; factors are left out.

        Raises:
            TaskUnavailable: discrete sites are summed out, so that observations are not independent given z.
        """
        if self.summed:
            raise TaskUnavailable(
                f"site {self.summed[0]!r} is summed out, so the observations have no log densities of their "
                "own given the "
                "other sites; write the mixture as dist.MixtureSameFamily, which has them."
            )
        flat = z.reshape(-1, self.dim)
        parts = [self._mapped(self._joint.pointwise, rows) for rows in flat.split(_ROWS)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: value.reshape(z.shape[:-1] + value.shape[1:]) for name, value in joined.items()}

    def _parts_differentiated(self, z: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad(), short_bernoulli():
            z = z.detach().requires_grad_()
            prior, likelihood = self._batched("log_parts")(z)
            first = _gradient(prior, z)
            second = _gradient(likelihood, z)
        return prior.detach(), likelihood.detach(), first, second

    def _call(self, what: str, function: Callable[..., Any], z: Tensor) -> tuple[Tensor, ...]:
        if z.dim() == 1:
            return tuple(result[0] for result in self._call(what, function, z[None]))
        if z.dim() != 2 or z.shape[1] != self.dim:
            raise ProgramError(
                f"z has shape {tuple(z.shape)}, but points of this density have shape [chains, {self.dim}]; "
                "give it such points."
            )
        if what not in self._graphs:
            self._graphs[what] = Recorder(self._inside(function), backend=self.backend)
        recorder = self._graphs[what]
        if self.path == "python":
            recorder.path = "python"
        if self.vectorize == "loop" and self.path == "recorded":
            parts = [self._replay(recorder, row) for row in z.split(1)]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))
        return self._replay(recorder, z)

    def _replay(self, recorder: Recorder, z: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """A replay; the first call with so many chains records, and says once if it cannot."""
        if self.path == "python" or (z.shape[0], recorder) in self._known:
            return recorder(z, *others)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = recorder(z, *others)
        self._known.add((z.shape[0], recorder))
        unrecorded = recorder.path == "python"
        for warning in caught:
            if not (unrecorded and "without a recorded graph" in str(warning.message)):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if unrecorded:
            self.path = "python"
            self.reason = "; ".join(filter(None, [self.reason, f"recording fails: {recorder.reason}"]))
            text = f"{self.program.name!r} runs through Pyro at every call, which is slow: {self.reason}"
            warnings.warn(text, RuntimeWarning, stacklevel=4)
        return result

    def _inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*tensors: Tensor) -> Any:
            with self._context():
                return function(*tensors)

        return run

    def _differentiated(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return value_and_gradient(lambda z: self._batched("log_joint")(z)[0], batched=True)(z)

    def _batched(self, method: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The joint's method for many points, by the route that was chosen, as a function to record."""
        return self._by(self.vectorize, method)

    def _by(self, route: str, method: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
        function = getattr(self._joint, method)

        def tupled(*args: Any) -> tuple[Tensor, ...]:
            result = function(*args)
            return result if isinstance(result, tuple) else (result,)

        if route == "vmap":
            return torch.func.vmap(tupled, randomness="different")
        if route == "plate":
            return lambda z: tupled(z, len(z))

        def loop(z: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.stack(part) for part in zip(*[tupled(row) for row in z], strict=True))

        return loop

    # -- points ----------------------------------------------------------------------------------------------

    def initial(self, chains: int, seed: int | None = None, radius: float = 2.0, gradient: bool = True) -> Tensor:
        """Dispersed starting points, uniform on [-radius, radius], each with finite density and gradient.

        A point without is drawn again, after every ten failures from half the radius.

        Arguments:
            chains: how many.
            seed: repeats them; None draws from torch's own generator.
            radius: of the cube, in unconstrained coordinates.
            gradient: whether the gradient must be finite too, or is not even computed.

        Returns:
            z [chains, d].

        Raises:
            NumericalError: a chain found none; the message names the site that is to blame.
        """
        with seeded(seed):
            z = self._uniform(chains, radius)
            good = torch.zeros(chains, dtype=torch.bool, device=self.device)
            for attempt in range(_TRIES):
                if attempt:
                    fresh = self._uniform(chains, radius * 0.5 ** ((attempt - 1) // 10))
                    z = torch.where(good[:, None], z, fresh)
                if gradient:
                    value, slope = self.value_and_grad(z)
                    good = value.isfinite() & slope.isfinite().all(1)
                else:
                    good = self.log_prob(z).isfinite()
                if bool(good.all()):
                    return z
        bad = int((~good).nonzero()[0])
        with self._context():
            blamed = worst_site(self._joint, z[bad])
        raise NumericalError(
            f"no starting point of {_TRIES} has a finite density{' and gradient' if gradient else ''} in {self.program.name!r}: {blamed}."
        )

    def _uniform(self, chains: int, radius: float) -> Tensor:
        return (2 * torch.rand(chains, self.dim, dtype=self.dtype, device=self.device) - 1) * radius

    def constrain(self, z: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The sites' values at points of R^d.

        Arguments:
            z: [..., d], such as [chains, draws, d], or one point [d].

        Returns:
            {latent site: [..., *shape]} and {deterministic site: [..., *shape]}.
        """
        lead = z.shape[:-1]
        flat = z.reshape(-1, self.dim)
        if self._fixed and not self.deterministic:
            draws = {
                name: site.transform(flat[:, site.place].reshape(len(flat), *site.shape))
                for name, site in self.sites.items()
            }
            return {name: value.reshape(lead + value.shape[1:]) for name, value in draws.items()}, {}
        parts = [self._mapped(self._joint.values, rows) for rows in flat.split(_ROWS)]
        both = []
        for which in range(2):
            names = parts[0][which]
            both.append({name: torch.cat([part[which][name] for part in parts]) for name in names})
        return tuple({name: value.reshape(lead + value.shape[1:]) for name, value in part.items()} for part in both)  # type: ignore[return-value]

    def unconstrain(self, draws: dict[str, Tensor]) -> Tensor:
        """The points [..., d] of R^d at which the latent sites have these values, the inverse of `constrain`.

        Arguments:
            draws: {latent site: [..., *shape]}.
        """
        missing = [name for name in self.sites if name not in draws]
        if missing:
            raise ProgramError(
                f"site {missing[0]!r} has no value; give one to each of {', '.join(map(repr, self.sites))}."
            )
        first, site = next(iter(self.sites.items()))
        lead = draws[first].shape[: draws[first].dim() - len(site.event)]
        flat = {
            name: torch.as_tensor(draws[name]).to(self.device, self.dtype).reshape(-1, *site.event)
            for name, site in self.sites.items()
        }
        if self._fixed:
            parts = [site.transform.inv(flat[name]).reshape(len(flat[name]), -1) for name, site in self.sites.items()]
            return torch.cat(parts, 1).reshape(*lead, self.dim)
        return self._mapped(self._joint.coordinates, flat).reshape(*lead, self.dim)

    def _mapped(self, function: Callable[..., Any], rows: Any) -> Any:
        """A function of one row at every row: by vmap, or one after another."""
        with self._context(), torch.no_grad(), seeded(0):
            if self.vectorize == "vmap":
                return torch.func.vmap(function, randomness="different")(rows)
            count = len(rows) if isinstance(rows, Tensor) else len(next(iter(rows.values())))
            results = [
                function(rows[i] if isinstance(rows, Tensor) else {k: v[i] for k, v in rows.items()})
                for i in range(count)
            ]
        return stack(results)

    @property
    def _fixed(self) -> bool:
        return not any(site.depends for site in self.sites.values())

    # -- construction ----------------------------------------------------------------------------------------

    def _story(self) -> Any:
        return self.program.run_model(*self._args, **self._kwargs)

    @contextmanager
    def _context(self) -> Iterator[None]:
        """Where the program runs: its own parameters, this density's number type, without Pyro's checks."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.program.running(), unchecked(), mappable_hmm(), NaNForSingular():
                yield
        finally:
            torch.set_default_dtype(before)

    def _discover(self, dtype: torch.dtype | None) -> Layout:
        """The sites and the number type."""
        given = [*floats(self._args), *floats(self._kwargs), *(p.dtype for p in self.program.parameters())]
        self.dtype = dtype or (torch.float64 if torch.float64 in given else torch.get_default_dtype())
        try:
            found = self._look()
        except (RuntimeError, ValueError):
            if dtype is not None or self.dtype == torch.float64:
                raise
            self.dtype = torch.float64  # data that the program holds itself
            try:
                return self._look()
            except Exception:
                self.dtype = torch.get_default_dtype()
            raise
        if dtype is None and torch.float64 in found.dtypes and self.dtype != torch.float64:
            self.dtype = torch.float64
            found = self._look()
        return found

    def _look(self) -> Layout:
        self._args, self._kwargs = cast(self._args, self.dtype), cast(self._kwargs, self.dtype)
        with self._context(), seeded(0), torch.no_grad():
            return layout(self.program.name, self._story)

    def _check_observations(self, point: Tensor) -> None:
        """Observations outside their support would give a density of nothing: say so now."""
        with torch.no_grad():
            nodes = self._joint.sites_at(point)
        for name, node in nodes.items():
            if node["is_observed"] and not node["infer"].get("_deterministic"):
                problem = outside_support(node["fn"], node["value"])
                if problem:
                    raise ProgramError(f"site {name!r}: {problem}.")

    def _settle_deterministic(self, point: Tensor) -> None:
        """Leaves out deterministic sites that depend on discrete ones: their values have more dimensions."""
        names = self._layout.deterministic
        if self._layout.summed and names:
            with torch.no_grad():
                shapes = {name: value.shape for name, value in self._joint.values(point)[1].items()}
                summed, self._layout.summed = self._layout.summed, []
                plain = {name: value.shape for name, value in self._joint.values(point)[1].items()}
                self._layout.summed = summed
            self._layout.deterministic = [name for name in names if shapes[name] == plain[name]]

    def _route(self, points: Tensor, wanted: str | None, check: bool) -> str:
        """The first way of evaluating many points that works and agrees with one at a time."""
        single = torch.stack([self._joint.log_joint(point) for point in points]).detach()
        check_noise(self.program.name, self._joint, points, single)
        if check:
            check_reference(self.program.name, self._joint, points, single, self._tolerance)
        reasons = []
        for route in _ROUTES if wanted is None else (wanted,):
            if route == "loop":
                break
            last = LastSite()
            try:
                with last:
                    values = self._by(route, "log_joint")(points)[0].detach()
            except DgmError:
                raise
            except (
                RuntimeError,
                ValueError,
                NotImplementedError,
                IndexError,
                TypeError,
                AssertionError,
            ) as error:
                reasons.append(f"{route} fails {last.place()}: {_first_line(error)}")
                continue
            if values.shape == single.shape and close(values, single, self._tolerance):
                self.reason = "; ".join(reasons)
                return route
            reasons.append(f"{route} gives other values than one point at a time")
        if wanted in ("vmap", "plate"):
            raise ProgramError(
                f"vectorize={wanted!r} does not work for {self.program.name!r}: {reasons[0]}; leave it out."
            )
        self._loop(points, reasons)
        return "loop"

    def _loop(self, points: Tensor, reasons: list[str]) -> None:
        self.vectorize = "loop"
        self.reason = "; ".join(reasons)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            recorder = Recorder(self._inside(self._differentiated), backend=self.backend)
            recorder(points[:1])
        how = "one after another"
        if recorder.path == "python":
            self.path = "python"
            self.reason = "; ".join([*reasons, f"recording fails: {recorder.reason}"])
            how += ", through Pyro at every call"
        else:
            self._graphs["value_and_grad"] = recorder
        if reasons or self.path == "python":
            warnings.warn(
                f"the chains of {self.program.name!r} are evaluated {how}: {self.reason}",
                RuntimeWarning,
                stacklevel=5,
            )

    @property
    def _tolerance(self) -> float:
        return 1e-8 if self.dtype == torch.float64 else 1e-4

    def __repr__(self) -> str:
        how = f"vectorize={self.vectorize!r}, path={self.path!r}"
        return f"LogDensity({self.program.name!r}, dim={self.dim}, dtype={self.dtype}, {how})"


class _Inside:
    """A density inside a graph that is being recorded around it."""

    def __init__(self, density: LogDensity) -> None:
        self.value_and_grad = density._differentiated
        self.gradient = lambda z: density._differentiated(z)[1]


def _gradient(values: Tensor, z: Tensor) -> Tensor:
    """Zero where the values do not depend on z (no observations, or flat priors on the real line)."""
    if not values.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(values.sum(), z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if gradient is None else gradient


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
