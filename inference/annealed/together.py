"""All examples of a program annealed at once: the path between prior and posterior with every example's particles as rows."""

from contextlib import AbstractContextManager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from ppl_dgm.checking import outside_support
from ppl_dgm.densities.coordinates import base_of
from ppl_dgm.densities.trees import cast
from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError, ProgramError
from ppl_dgm.graphs import Recorder, short_bernoulli
from ppl_dgm.inference.annealed.by_example import Examples
from ppl_dgm.inference.annealed.tempering import Path
from ppl_dgm.inference.learning.particles import is_random, row_sums
from ppl_dgm.program import Program
from ppl_dgm.tracing import data_dim

__all__ = ["ExamplesPath", "examples_path"]

_TRIES = 20  # how often prior draws whose coordinates are not finite are drawn again


class ExamplesPath(Path):
    """prior * likelihood^beta of each example, for particles [example * particle, d], those of one example next to each other.

    Arguments:
        density: that of one example: its coordinates are those of a row.
        program, args, kwargs: for all examples.
        examples: how the program is cut into them.
    """

    name = "the prior"

    def __init__(
        self, density: LogDensity, program: Program, args: tuple, kwargs: dict[str, Any], examples: Examples
    ) -> None:
        super().__init__(density)
        self.program, self.size = program, examples.size
        self.args, self.kwargs = cast(args, density.dtype), cast(kwargs, density.dtype)
        self.rows = examples.row_dims
        self.calls = 0
        self.transforms: dict[str, Any] = {}
        self.shapes: dict[str, torch.Size] = {}  # of a row's unconstrained coordinates
        self._recorder = Recorder(self._evaluate, backend=density.backend)
        self._learn_sites()

    @property
    def gradients(self) -> int:
        """Gradient evaluations so far."""
        return self.calls

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.calls += len(z)
        prior, rest, first, second = self._recorder(z)
        return prior, rest, first, second

    def draw(self, n: int) -> Tensor:
        """n / examples draws of each example's latent values from the prior, [n, d]."""
        z = self._drawn(n)
        for _ in range(_TRIES):
            bad = ~z.isfinite().all(1)
            if not bool(bad.any()):
                return z
            z = torch.where(bad[:, None], self._drawn(n), z)
        raise NumericalError(
            f"prior draws of {self.program.name!r} lie on the edge of their support, where coordinates are infinite; use "
            "dtype=torch.float64, or a prior with less mass there."
        )

    def unconstrain(self, draws: dict[str, Tensor], count: int) -> Tensor:
        """{site: value with `count` rows} as points, [count, d]."""
        parts = []
        for name, transform in self.transforms.items():
            value = draws[name].to(self.device, self.dtype).movedim(self.rows[name], 0)
            parts.append(transform.inv(value).reshape(count, -1))
        return torch.cat(parts, 1)

    def ends(self, draws: dict[str, Tensor], particles: int) -> Tensor:
        """Posterior draws {site: [n, *shape]} as points, [example * particle, d]: some of them, or each several times."""
        first = next(iter(self.transforms))
        count = len(draws[first])
        device = draws[first].device
        picked = (
            torch.randperm(count, device=device)[:particles]
            if count > particles
            else torch.arange(count, device=device)
        )
        picked = picked[torch.arange(particles, device=device) % len(picked)]
        flat = {}
        for name in self.transforms:
            value = draws[name][picked]  # [particle, *shape]
            value = value.movedim(self.rows[name], 0)  # [example, particle, ...]
            flat[name] = value.flatten(0, 1).movedim(0, self.rows[name])
        return self.unconstrain(flat, self.size * particles)

    def constrain(self, z: Tensor) -> dict[str, Tensor]:
        """Points [example * particle, d] as {site: [particle, *shape]}."""
        count = len(z) // self.size
        result = {}
        for name, value in self._values(z).items():
            apart = value.movedim(self.rows[name], 0).unflatten(0, (self.size, count))
            result[name] = apart.movedim(1, 0).movedim(1, self.rows[name])
        return result

    # -- running the program -------------------------------------------------------------------------------------

    def _learn_sites(self) -> None:
        """The transforms of the latent sites, in the order of the density's coordinates."""
        with torch.no_grad(), self._context():
            nodes = self._trace(self.args, self.kwargs)
            others = self._trace(self.args, self.kwargs)
        for name in self.density.sites:
            node, fn = nodes[name], nodes[name]["fn"]
            transform = biject_to(fn.support)
            value = node["value"].movedim(self.rows[name], 0)
            self.transforms[name], self.shapes[name] = transform, transform.inv(value).shape[1:]
            second = biject_to(others[name]["fn"].support)
            if not torch.equal(transform.inv(value), second.inv(value)):
                raise NotImplementedError("a support depends on other sites")
            if isinstance(base_of(fn), dist.ImproperUniform) or node["mask"] is not None or node["scale"] != 1:
                raise NotImplementedError("a prior is no distribution to draw from")
            if data_dim(node) != self.rows[name] + fn.event_dim:
                raise NotImplementedError("rows lie elsewhere")
        for name, node in nodes.items():
            if node["is_observed"]:
                problem = outside_support(node["fn"], node["value"])
                if problem:
                    raise ProgramError(f"site {name!r}: {problem}.")

    def _context(self) -> AbstractContextManager[None]:
        return self.density._context()

    def _trace(self, args: tuple, kwargs: dict[str, Any], fixed: dict[str, Tensor] | None = None) -> dict[str, Any]:
        story = poutine.trace(poutine.condition(self.program.run_model, fixed) if fixed else self.program.run_model)
        trace = story.get_trace(*args, **kwargs)
        trace.compute_log_prob()
        return {name: node for name, node in trace.nodes.items() if is_random(node)}

    def _repeated(self, count: int) -> tuple[tuple, dict[str, Any]]:
        def one(a: Any) -> Any:
            whole = isinstance(a, Tensor) and a.dim() and len(a) == self.size
            return a.repeat_interleave(count, 0) if whole else a

        return tuple(one(a) for a in self.args), {name: one(a) for name, a in self.kwargs.items()}

    def _drawn(self, n: int) -> Tensor:
        with torch.no_grad(), self._context():
            nodes = self._trace(*self._repeated(n // self.size))
            return self.unconstrain({name: nodes[name]["value"] for name in self.transforms}, n)

    def _values(self, z: Tensor) -> dict[str, Tensor]:
        values, begin = {}, 0
        for name, transform in self.transforms.items():
            width = self.shapes[name].numel()
            u = z[:, begin : begin + width].reshape(len(z), *self.shapes[name])
            values[name], begin = transform(u).movedim(0, self.rows[name]), begin + width
        return values

    def _evaluate(self, z: Tensor) -> tuple[Tensor, ...]:
        """Prior and rest of each row, [n], and the gradient of each, [n, d]."""
        with torch.enable_grad(), self._context(), short_bernoulli():
            z = z.detach().requires_grad_()
            values = self._values(z)
            nodes = self._trace(*self._repeated(len(z) // self.size), fixed=values)
            prior, rest = self._log_jacobian(z), torch.zeros_like(z[:, 0])
            for name, node in nodes.items():
                term = row_sums(node, len(z))
                prior, rest = (prior + term, rest) if name in self.transforms else (prior, rest + term)
            first = _gradient(prior, z)
            second = _gradient(rest, z)
        return prior.detach(), rest.detach(), first, second

    def _log_jacobian(self, z: Tensor) -> Tensor:
        total, begin = torch.zeros_like(z[:, 0]), 0
        for name, transform in self.transforms.items():
            width = self.shapes[name].numel()
            u = z[:, begin : begin + width].reshape(len(z), *self.shapes[name])
            begin += width
            total = total + transform.log_abs_det_jacobian(u, transform(u)).reshape(len(z), -1).sum(1)
        return total


def examples_path(
    program: Program, args: tuple, kwargs: dict[str, Any], examples: Examples, **options: Any
) -> ExamplesPath | None:
    """The path of all examples at once, or None where that cannot be done: then one example after another is.

    It can where latent sites are continuous, their supports fixed and their priors proper, where there is no deterministic
    site, and where the program follows the number of rows that it is given. At two points it is compared with the density of
    the first example alone.

    Arguments:
        **options: of `LogDensity`.
    """
    one_args, one_kwargs = examples.arguments(0)
    density = LogDensity(program, *one_args, **options, **one_kwargs)
    if density.summed or density.deterministic or set(density.sites) != set(examples.row_dims):
        return None
    try:
        path = ExamplesPath(density, program, args, kwargs, examples)
        z = 0.5 * torch.randn(2 * examples.size, density.dim, dtype=density.dtype, device=density.device)
        prior, rest, *_ = path.parts(z)
    except (RuntimeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
        if isinstance(error, ProgramError):
            raise
        return None
    exact = density.log_prob(z[:2])
    close = torch.allclose((prior + rest)[:2], exact, rtol=1e-4, atol=1e-4)
    return path if close and prior.shape == (len(z),) else None


def _gradient(values: Tensor, z: Tensor) -> Tensor:
    if not values.requires_grad:
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(values.sum(), z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if gradient is None else gradient
