"""The log density of a program and its gradient, estimated from some rows of the data at a time."""

import math
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_dgm.densities.coordinates import Start, is_deterministic
from ppl_dgm.densities.joint import Joint
from ppl_dgm.densities.trees import cast, floats
from ppl_dgm.density import LogDensity
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.graphs import Recorder, short_bernoulli
from ppl_dgm.program import as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.tracing import data_dim, sites

__all__ = ["FullBatch", "MinibatchDensity", "rows_of"]

_PARTS = 16  # into which the rows are cut where all of them are evaluated


class FullBatch(LogDensity):
    """A `LogDensity` with the face of a `MinibatchDensity` that uses all rows at each call, so that there is no noise."""

    whole = True

    def minibatch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The exact log density and gradient."""
        self.noise = self.spread = torch.zeros_like(z)
        return self.value_and_grad(z)


class _SplitJoint(Joint):
    """The joint density in two terms: what all rows share, and what the rows at hand add."""

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(what is outside of the plate `data`, log Jacobian included; what is inside), for z [d], in nats."""
        trace, jacobian = self.trace(z)
        nodes = self._compute(trace)
        if self.layout.summed:
            trace.pack_tensors()
        shared = self._total(trace, {name: node for name, node in nodes.items() if data_dim(node) is None}, None)
        if self.layout.summed:  # sums over discrete sites mix all factors inside
            return shared + jacobian, self._total(trace, nodes, None) - shared
        inside = {name: node for name, node in nodes.items() if data_dim(node) is not None}
        return shared + jacobian, self._total(trace, inside, None)


class MinibatchDensity(LogDensity):
    """A log density on R^d whose gradient is estimated, without bias, from B of the N rows of the data.

        log p(z) + N / B sum over the batch of log p(x_i | z),

    with rows drawn anew at each call and for each chain, independently and with replacement. The program has a plate
    named `data` around its observations, of the size of its arguments; every tensor of N rows among the
    arguments is cut. Latent sites are outside of that plate; discrete ones inside of it are summed out.

    A batch is evaluated in two halves, whose difference tells the noise of the estimate.

    Arguments:
        program, *args, dtype, backend, **kwargs: as for `LogDensity`, with all rows.
        batch_size: B, even and less than N.

    Attributes:
        total: N.
        rows_used: rows whose gradient was evaluated so far, over all chains.
        gradients: the same in full gradients, rounded up.
        noise: half the difference of the gradients of the two halves at the latest call, [chain, d]; the mean of its
            square is the variance of the estimate.
        spread: the same without control variates.
        anchor, at_anchor: the point of the control variates and the gradient of all rows there, [d]; None without.

    Raises:
        TaskUnavailable: each row has latent sites of its own.
        ProgramError: no plate `data`, one that does not follow the rows, or a density that is no sum over rows.
    """

    whole = False

    def __init__(
        self, program: Any, *args: Any, batch_size: int, dtype: torch.dtype | None = None, **options: Any
    ) -> None:
        backend = options.pop("backend", "eager")
        program = as_program(program)
        self.total, self.batch_size = rows_of(program, args, options), batch_size
        self.rows_used, self._half = 0.0, torch.empty(0)
        self.anchor: Tensor | None = None
        first = torch.arange(batch_size // 2)
        super().__init__(program, *self._cut(args, first), dtype=dtype, backend=backend, **self._cut(options, first))
        self._given = cast((args, options), self.dtype)
        self._flat = [x for x in (*args, *options.values()) if self._long(x)]
        self._flat = cast(self._flat, self.dtype)
        self._half = first.to(self.device)
        self._split = _SplitJoint(self._layout, self._story)
        points = self._uniform(2, 0.5)
        with self._context(), seeded(0), torch.no_grad():
            self._check_sum(points[0])
            self._drop_deterministic(points[0])
            self._together = self.vectorize == "vmap" and self._follows(points)
        self._estimator = Recorder(self._estimate, backend=backend)
        self.rows_used = 0.0

    # -- the estimate ----------------------------------------------------------------------------------------

    def estimate(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The log density at each point as these rows estimate it, [chain], and its gradient, [chain, d].

        Arguments:
            z: [chain, d].
            rows: which rows each chain looks at, [chain, row].
        """
        self.rows_used += rows.numel()
        tensors = [x[rows] for x in self._flat]  # [chain, row, ...]
        if self._together:
            return self._estimator(z, *tensors)
        parts = [self._estimator(z[c : c + 1], *(x[c : c + 1] for x in tensors)) for c in range(len(z))]
        value, gradient = (torch.cat(part) for part in zip(*parts, strict=True))
        return value, gradient

    def minibatch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates at z [chain, d] from a fresh batch for each chain; renews `noise` and `spread`."""
        rows = torch.randint(self.total, (2 * len(z), self.batch_size // 2), device=self.device)
        value, gradient = self.estimate(z.repeat(2, 1), rows)
        first, second = gradient.chunk(2)
        self.noise = self.spread = (first - second) / 2
        value, gradient = value.reshape(2, -1).mean(0), (first + second) / 2
        if self.anchor is not None:
            first, second = self.estimate(self.anchor.expand(len(rows), -1), rows)[1].chunk(2)
            self.noise = self.spread - (first - second) / 2
            gradient = gradient - (first + second) / 2 + self.at_anchor
        return value, gradient

    def use_control_variates(self, anchor: Tensor, gradient: Tensor | None = None) -> None:
        """From now on, correct the exact gradient at a point by the batch's, instead of estimating it:

            grad(anchor) + estimate(z) - estimate(anchor),

        both estimates from the same rows. The nearer z is to the anchor, the less noise.

        Arguments:
            anchor: [d].
            gradient: of all rows there, [d], where it is known.

        Source: Baker, Fearnhead, Fox and Nemeth (2019), Control variates for stochastic gradient MCMC.
        """
        self.anchor = anchor
        self.at_anchor = self.full_gradient(anchor[None])[0] if gradient is None else gradient

    def full_gradient(self, z: Tensor) -> Tensor:
        """The gradient of all rows at z, [chain, d], some of them at a time."""
        parts = torch.arange(self.total, device=self.device).chunk(_PARTS)
        # each part estimates the whole; their average, by rows, is exact
        return sum(self.estimate(z, rows.expand(len(z), -1))[1] * (len(rows) / self.total) for rows in parts)  # type: ignore[return-value]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The estimates from the first rows, the same at each call."""
        twice = z.repeat(2, 1)  # the shapes of `minibatch`, so that its graph is recorded by now
        value, gradient = self.estimate(twice, self._half.expand(len(twice), -1))
        return value[: len(z)], gradient[: len(z)]

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient's estimate from the first rows, the same at each call."""
        return self.value_and_grad(z)[1]

    @property
    def gradients(self) -> int:  # type: ignore[override]
        return math.ceil(self.rows_used / self.total)

    @gradients.setter
    def gradients(self, number: int) -> None:
        self.rows_used = float(number * self.total)

    # -- how it is computed ----------------------------------------------------------------------------------

    def _estimate(self, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Made to be recorded: z [chain, d], tensors [chain, row, ...]."""
        with self._context(), torch.enable_grad(), short_bernoulli():
            z = z.detach().requires_grad_()
            if self._together:
                shared, inside = torch.func.vmap(self._of_rows, randomness="different")(z, *tensors)
            else:
                pairs = [self._of_rows(*row) for row in zip(z, *tensors, strict=True)]
                shared, inside = (torch.stack(part) for part in zip(*pairs, strict=True))
            value = shared + (self.total / tensors[0].shape[1]) * inside
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def _of_rows(self, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the density of these rows: z [d], tensors [row, ...]."""
        before = self._args, self._kwargs
        rest = iter(tensors)
        args, options = self._given
        self._args = tuple(next(rest) if self._long(x) else x for x in args)
        self._kwargs = {name: next(rest) if self._long(x) else x for name, x in options.items()}
        try:
            return self._split.split(z)
        finally:
            self._args, self._kwargs = before

    def _long(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.dim() > 0 and len(x) == self.total

    def _cut(self, given: Any, rows: Tensor) -> Any:
        if isinstance(given, dict):
            return {name: x[rows.to(x.device)] if self._long(x) else x for name, x in given.items()}
        return tuple(x[rows.to(x.device)] if self._long(x) else x for x in given)

    # -- checks ----------------------------------------------------------------------------------------------

    def _check_sum(self, z: Tensor) -> None:
        """The rows' terms must add up, as they do not where a program standardises its data."""
        shared, inside = self._of_rows(z, *self._flat)
        count = min(_PARTS, self.total * 2 // self.batch_size)
        parts = [self._of_rows(z, *rows) for rows in zip(*(x.chunk(count) for x in self._flat), strict=True)]
        summed = torch.stack([part[1] for part in parts]).sum()
        values = torch.stack([summed, *(part[0] for part in parts)])
        expected = torch.stack([inside, *(shared for _ in parts)])
        if not torch.allclose(values, expected, self._tolerance, self._tolerance * (1 + float(inside.abs()))):
            raise ProgramError(
                f"the density of {self.program.name!r} is no sum over the rows of the plate 'data': all rows give "
                f"{float(shared + inside):.6g} nats, and {len(parts)} parts together {float(parts[0][0] + summed):.6g}; "
                "compute what depends on all rows (means, scales, counts) before, and keep every observation in that plate."
            )

    def _drop_deterministic(self, z: Tensor) -> None:
        """Keeps those deterministic sites alone that are the same for other rows."""
        values = []
        for begin in (0, self.total - self.batch_size // 2):
            rows = torch.arange(begin, begin + self.batch_size // 2)
            before = self._args, self._kwargs
            self._args, self._kwargs = (self._cut(x, rows) for x in self._given)
            values.append(self._joint.values(z)[1])
            self._args, self._kwargs = before
        kept = [name for name, value in values[0].items() if torch.equal(value, values[1][name])]
        self.deterministic = self._layout.deterministic = [name for name in self.deterministic if name in kept]

    def _follows(self, points: Tensor) -> bool:
        """Whether vmap can follow the program with other rows for each chain."""
        size = self.batch_size // 2
        tensors = [torch.stack([x[:size], x[-size:]]) for x in self._flat]
        alone = [self._of_rows(*row) for row in zip(points, *tensors, strict=True)]
        expected = torch.stack([torch.stack(pair) for pair in alone])
        try:
            found = torch.func.vmap(self._of_rows, randomness="different")(points, *tensors)
        except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError):
            return False
        return torch.allclose(torch.stack(found, 1), expected, rtol=self._tolerance, atol=self._tolerance)


def rows_of(program: Any, args: tuple, options: dict[str, Any]) -> int:
    """N, the size of the plate `data` of this program for these arguments.

    Raises:
        TaskUnavailable: a latent site inside the plate, or a discrete one outside.
        ProgramError: there is no such plate, or no argument has its size.
    """
    wide = torch.float64 in [*floats(args), *floats(options), *(p.dtype for p in program.parameters())]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else before)
    try:
        with torch.no_grad(), Start(), program.running():
            nodes = sites(poutine.trace(program.run_model).get_trace(*args, **options))
    finally:
        torch.set_default_dtype(before)
    sizes = {frame.size for node in nodes.values() for frame in node["cond_indep_stack"] if frame.name == "data"}
    longs = [x for x in (*args, *options.values()) if isinstance(x, Tensor) and x.dim() and len(x) in sizes]
    if len(sizes) != 1 or not longs:
        found = "no plate named 'data' around its observations" if not sizes else (
            f"a plate 'data' of size {', '.join(map(str, sizes))} and no argument with as many rows"
        )  # fmt: skip
        raise ProgramError(
            f"{program.name!r} has {found}, so minibatches cannot be taken; write pyro.plate('data', len(x)) for an argument x, "
            "or pass batch_size=None to use all rows at each step."
        )
    _refuse_local(nodes)
    return sizes.pop()


def _refuse_local(nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        if node["is_observed"] or is_deterministic(node):
            continue
        inside, discrete = data_dim(node) is not None, node["fn"].has_enumerate_support
        if inside and not discrete:
            raise TaskUnavailable(
                f"site {name!r} is latent inside the plate 'data', so that each row has coordinates of its own, which a "
                "minibatch cannot move; integrate it out, pass batch_size=None, or use method='svi'."
            )
        if discrete and not inside:
            raise TaskUnavailable(
                f"site {name!r} is discrete and shared by all rows, so that its sum is no sum over rows; pass "
                "batch_size=None, or use method='nuts'."
            )
