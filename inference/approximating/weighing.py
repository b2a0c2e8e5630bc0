"""Draws from a guide (or from the prior) and their log importance weights, for any program, in flat memory.

What importance weighting, the ELBO and amortised inference share. A program whose latent sites all lie inside
the plate `data` has one weight per draw and example; any other program has one weight per draw.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.util import check_site_shape
from torch import Tensor

from ppl_dgm.batched import batched_runs
from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import NumericalError, ProgramError, TaskUnavailable
from ppl_dgm.inference.approximating.shared import ManyDraws
from ppl_dgm.program import Program

__all__ = ["Draws", "LogMean", "Weighing"]

_BUDGET = 2**22  # numbers in the widest tensor of one pass: 16 MiB in float32


@dataclass(frozen=True)
class Draws:
    """Some draws for some of the examples.

    Attributes:
        rows: which examples; all of them for a program with one weight per draw.
        sites: {latent site: [draw, *shape]}.
        log_weights: [draw, example], or [draw, 1] for a program with one weight per draw; in nats,
            log p(x, z) - log q(z).
    """

    rows: slice
    sites: dict[str, Tensor]
    log_weights: Tensor


class LogMean:
    """A streaming log mean of weights given as logarithms, its standard error and the effective sample size.

    For weights w_1, ..., w_K: log (1/K) sum_k w_k; by the delta method its standard error is that of the mean
    divided by the mean, sd(w) / (mean(w) sqrt(K)); the effective sample size is (sum w)^2 / sum w^2.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: Tensor | None = None  # log sum w
        self._second: Tensor | None = None  # log sum w^2

    def add(self, log_weights: Tensor) -> None:
        """Take in more weights, [draw, ...]."""
        log_weights = log_weights.double()
        first, second = log_weights.logsumexp(0), (2 * log_weights).logsumexp(0)
        self._first = first if self._first is None else torch.logaddexp(self._first, first)
        self._second = second if self._second is None else torch.logaddexp(self._second, second)
        self.count += len(log_weights)

    def result(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Log mean, its standard error and the effective sample size.

        The standard error is None for a single draw, and infinite where every weight is zero.
        """
        assert self._first is not None and self._second is not None
        log_mean = self._first - math.log(self.count)
        ess = (2 * self._first - self._second).exp().nan_to_num(0.0)
        if self.count == 1:
            return log_mean, None, ess
        variance = (self.count * (self._second - 2 * self._first).exp() - 1).clamp(min=0.0)  # of w / mean(w)
        return log_mean, (variance / (self.count - 1)).sqrt().nan_to_num(math.inf), ess


class Weighing:
    """Draws from a program's guide (or prior) for given observations, and their log weights.

    Arguments:
        program, args, kwargs: what to run; use inside `program.running()`.
        prior: propose from the model's own latent sites instead of the guide; the log weight is then
            log p(x | z).
        chunk: rows (examples x draws) that go through the networks at once; None chooses by size.
        model: False leaves the model out: draws without weights.

    Every tensor argument whose first dimension is the size of the plate `data` is taken to hold one row per
    example. Its rows are repeated, once for each draw, and the program is run on them as on so many
    observations; a guide with one site makes all its draws for a row from one run over that row. Where the rows
    cannot be repeated (the plate's size is written into the program, an autoguide remembers the data set's)
    the program is run once per draw.

    Attributes:
        size: the size of the plate `data` where the weights are per example, else None.

    Raises:
        ProgramError: the guide misses a latent site, or draws one that the model does not have.
        TaskUnavailable: there is no guide.
    """

    def __init__(
        self,
        program: Program,
        args: tuple,
        kwargs: dict,
        prior: bool = False,
        chunk: int | None = None,
        model: bool = True,
    ) -> None:
        if not prior and not program.has_guide:
            raise TaskUnavailable(
                f"{program.name!r} has no guide to draw from; pass guide=... (a function, or one that "
                "dgm.learn has fitted), or use method='simple-monte-carlo', which draws from the prior."
            )
        if chunk is not None and chunk < 1:
            raise ProgramError(f"chunk must be a positive number of rows, but it is {chunk}.")
        self.program, self.args, self.kwargs, self.prior, self.model = program, args, kwargs, prior, model
        try:
            drawn, story = self._traces(args, kwargs, checked=True)  # autoguides set themselves up here
        except ValueError:
            if not prior:
                _check_supports(program, args, kwargs)
            raise
        self.names = _latent_names(program, drawn, story, prior)
        self.dim, self.size = _data_plate(drawn, story)
        examples = self.size or 1
        numbers = sum(node["value"].numel() for node in story.nodes.values() if _is_site(node)) // examples
        self.chunk = chunk or max(64, min(2**14, _BUDGET // max(1, numbers * (program.values or 1))))
        self._event_dims = {name: drawn.nodes[name]["fn"].event_dim for name in self.names}
        self._repeats = self.size is not None and self._can_repeat()
        self._shares = self._repeats and self._can_share(drawn)

    def row_dim(self, name: str) -> int:
        """The dimension, counted from the right, of a site's draws along which its examples lie."""
        assert self.dim is not None
        return self.dim - self._event_dims[name]

    def blocks(self, draws: int) -> Iterator[Draws]:
        """All draws for all examples, a bounded number of rows at a time."""
        if self.size is not None and self._repeats:
            examples = min(self.size, max(1, self.chunk // draws))
            for begin in range(0, self.size, examples):
                rows = slice(begin, min(begin + examples, self.size))
                for count in _parts(draws, max(1, self.chunk // examples)):
                    yield self._repeated(rows, count)
        else:
            for count in _parts(draws, max(1, self.chunk // (self.size or 1))):
                yield self._at_once(count) if self.size is None else self._stacked(count)

    def _can_repeat(self) -> bool:
        """Whether the program follows another number of rows than its own; tried on one example, repeated."""
        assert self.size is not None
        if not any(_has_rows(a, self.size) for a in (*self.args, *self.kwargs.values())):
            return False
        count = 3 if self.size == 2 else 2  # differs from the plate's size, lest a size written in go unnoticed
        try:
            drawn, story = self._traces(*self._rows(slice(0, 1), count))
        except (RuntimeError, ValueError, IndexError):  # whatever a program says to rows that do not fit it
            return False
        return _data_plate(drawn, story) == (self.dim, count)

    def _can_share(self, drawn: Any) -> bool:
        """Whether the guide's one run over a row serves all draws for it; tried on one example, or two."""
        found = [node for node in drawn.nodes.values() if _is_site(node)]
        if self.prior or len(found) != 1 or found[0]["is_observed"] or len(found[0]["fn"].batch_shape) != 1:
            return False
        if any(_is_subsample(node) and len(node["value"]) != node["fn"].size for node in drawn.nodes.values()):
            return False  # it draws rows of its own
        rows, count = slice(0, min(2, self.size or 1)), 3
        try:
            drawn, story = self._shared_traces(rows, count)
            if self.model:
                self._per_example(drawn, story, rows.stop * count)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, NumericalError):
            return False
        shape = (rows.stop * count, *found[0]["fn"].event_shape)
        return all(trace.nodes[name]["value"].shape == shape for trace in (drawn, story) for name in self.names)

    def _rows(self, rows: slice, count: int) -> tuple[tuple, dict]:
        """The program's arguments for these examples, each repeated `count` times in a row."""

        def one(a: Any) -> Any:
            return a[rows].repeat_interleave(count, 0) if _has_rows(a, self.size) else a

        return tuple(one(a) for a in self.args), {name: one(a) for name, a in self.kwargs.items()}

    # -- three ways of drawing -------------------------------------------------------------------------

    def _repeated(self, rows: slice, count: int) -> Draws:
        """`count` draws for each of these examples in one run over repeated rows."""
        examples = rows.stop - rows.start
        if self._shares:
            drawn, story = self._shared_traces(rows, count)
        else:
            drawn, story = self._traces(*self._rows(rows, count))
        log_weights = self._per_example(drawn, story, examples * count)  # [example * draw]
        sites = {}
        for name in self.names:
            dim = self.row_dim(name)
            value = drawn.nodes[name]["value"].unflatten(dim, (examples, count))
            sites[name] = value.movedim(dim, 0)  # the draws came to lie where the rows were
        return Draws(rows, sites, log_weights.unflatten(0, (examples, count)).T)

    def _stacked(self, count: int) -> Draws:
        """`count` draws of all examples, one run each."""
        assert self.size is not None
        sites: dict[str, list[Tensor]] = {name: [] for name in self.names}
        weights = []
        for _ in range(count):
            drawn, story = self._traces(self.args, self.kwargs)
            weights.append(self._per_example(drawn, story, self.size))
            for name in self.names:
                sites[name].append(drawn.nodes[name]["value"])
        stacked = {name: torch.stack(values) for name, values in sites.items()}
        return Draws(slice(0, self.size), stacked, torch.stack(weights))

    def _at_once(self, count: int) -> Draws:
        """`count` draws with one weight each: at once where vmap can follow the program, else in a loop."""

        def one() -> tuple[dict[str, Tensor], Tensor]:
            drawn, story = self._traces(self.args, self.kwargs)
            return {name: drawn.nodes[name]["value"] for name in self.names}, self._total(drawn, story)

        try:
            sites, weights = batched_runs(one, count)
        except (RuntimeError, ValueError, NotImplementedError):  # branches on values, or no batching rule
            runs = [one() for _ in range(count)]
            sites = {name: torch.stack([values[name] for values, _ in runs]) for name in self.names}
            weights = torch.stack([weight for _, weight in runs])
        if self.model and weights.isnan().any():
            drawn, story = self._traces(self.args, self.kwargs)
            self._total(drawn, story)
            _raise_nan(self.program, drawn, story)
        return Draws(slice(0, self.size or 1), sites, weights[:, None])

    # -- running the program ---------------------------------------------------------------------------

    def _traces(self, args: tuple, kwargs: dict, checked: bool = False) -> tuple[Any, Any]:
        """The traces of the proposal and of the model under its draws; one and the same for the prior."""
        with pyro.validation_enabled(checked), number_type(self.program, (args, kwargs)):
            proposal = self.program.run_model if self.prior else self.program.run_guide
            story = drawn = poutine.trace(proposal).get_trace(*args, **kwargs)
            if not self.prior and (self.model or checked):
                replayed = poutine.replay(self.program.run_model, trace=drawn)
                story = poutine.trace(replayed).get_trace(*args, **kwargs)
            if checked:
                _check_shapes(drawn, story)
        return drawn, story

    def _shared_traces(self, rows: slice, count: int) -> tuple[Any, Any]:
        """As `_traces` of these rows, each repeated, from one run of the guide over the rows as they are."""
        (args, kwargs), (many, many_kwargs) = self._rows(rows, 1), self._rows(rows, count)
        with pyro.validation_enabled(False), number_type(self.program, (many, many_kwargs)):
            story = drawn = poutine.trace(ManyDraws(count)(self.program.run_guide)).get_trace(*args, **kwargs)
            for name in [name for name, node in drawn.nodes.items() if _is_subsample(node)]:
                drawn.remove_node(name)  # the model's plate has more rows than the guide's
            if self.model:
                replayed = poutine.replay(self.program.run_model, trace=drawn)
                story = poutine.trace(replayed).get_trace(*many, **many_kwargs)
        return drawn, story

    def _terms(self, drawn: Any, story: Any) -> Iterator[tuple[Tensor, float]]:
        """Each site's log density (scaled and masked) and its sign in the log weight."""
        if not self.model:
            return
        with pyro.validation_enabled(False):
            story.compute_log_prob()
            if not self.prior:
                drawn.compute_log_prob()
        for node in story.nodes.values():
            if _is_site(node) and (node["is_observed"] or not self.prior):
                yield node["log_prob"], 1.0
        if not self.prior:
            for node in drawn.nodes.values():
                if _is_site(node):
                    yield node["log_prob"], -1.0

    def _per_example(self, drawn: Any, story: Any, size: int) -> Tensor:
        """[size] log weights: each site's log density summed over all dimensions but that of `data`."""
        assert self.dim is not None
        shape = (size, *(1,) * (-self.dim - 1))
        total = torch.zeros(size, device=self.program.device, dtype=self.program.dtype)
        for log_prob, sign in self._terms(drawn, story):
            log_prob = log_prob.expand(torch.broadcast_shapes(log_prob.shape, shape))
            total = total + sign * log_prob.movedim(self.dim, 0).reshape(size, -1).sum(1)
        if total.isnan().any():
            _raise_nan(self.program, drawn, story)
        return total

    def _total(self, drawn: Any, story: Any) -> Tensor:
        """[] log weight of one draw."""
        terms = (sign * log_prob.sum() for log_prob, sign in self._terms(drawn, story))
        return sum(terms, torch.zeros(()))


# -- reading traces --------------------------------------------------------------------------------


def _is_site(node: Any) -> bool:
    """A sample statement; Pyro records a plate's subsampling and pyro.deterministic as such, too."""
    return node["type"] == "sample" and not _is_subsample(node) and not (node["infer"] or {}).get("_deterministic")


def _is_subsample(node: Any) -> bool:
    """A plate's choice of rows."""
    return node["type"] == "sample" and type(node["fn"]).__name__ == "_Subsample"


def _is_auxiliary(node: Any) -> bool:
    return bool((node["infer"] or {}).get("is_auxiliary"))


def _latent_names(program: Program, drawn: Any, story: Any, prior: bool) -> list[str]:
    """Names of the model's latent sites, once it is certain that the proposal draws exactly them."""
    latent = [name for name, node in story.nodes.items() if _is_site(node) and not node["is_observed"]]
    if not latent and prior:
        raise TaskUnavailable(
            f"every site of {program.name!r} is observed for these arguments, so there is nothing "
            "to average over; use method='exact'."
        )
    proposed = [
        name
        for name, node in drawn.nodes.items()
        if _is_site(node) and not node["is_observed"] and not _is_auxiliary(node)
    ]
    for name in latent:
        if name not in proposed:
            raise ProgramError(
                f"the guide of {program.name!r} does not draw the latent site {name!r}; "
                f"add pyro.sample({name!r}, ...) to it."
            )
    for name in proposed:
        if name not in latent:
            what = "observes" if name in story.nodes else "does not have"
            raise ProgramError(
                f"the guide of {program.name!r} draws the site {name!r}, which the model {what}; "
                "remove it, or mark it infer={'is_auxiliary': True}."
            )
    return latent


def _data_plate(drawn: Any, story: Any) -> tuple[int | None, int | None]:
    """Dimension and size of the plate `data` if every site lies inside it, else (None, None)."""
    found = set()
    for trace in (drawn, story):
        for node in trace.nodes.values():
            if _is_site(node):
                frame = next((f for f in node["cond_indep_stack"] if f.name == "data" and f.vectorized), None)
                found.add(None if frame is None else (frame.dim, frame.size))
    only = found.pop() if len(found) == 1 else None
    return only if only is not None else (None, None)


def _check_shapes(drawn: Any, story: Any) -> None:
    """Pyro's own check that every batch dimension is declared by a plate; it names the site."""
    nesting = 100  # as many plates as a program may have
    for trace in (drawn, story):
        trace.compute_log_prob()
        for node in trace.nodes.values():
            if _is_site(node):
                check_site_shape(node, nesting)


def _check_supports(program: Program, args: tuple, kwargs: dict) -> None:
    """Say so if the guide's draws lie where the model's distribution has no density."""
    with pyro.validation_enabled(False):
        drawn = poutine.trace(program.run_guide).get_trace(*args, **kwargs)
        story = poutine.trace(program.run_model).get_trace(*args, **kwargs)
    for name, node in drawn.nodes.items():
        if _is_site(node) and name in story.nodes:
            fn: Any = story.nodes[name]["fn"]
            support = fn.support
            if not support.check(node["value"]).all():
                raise ProgramError(
                    f"the guide of {program.name!r} draws {name!r} outside the support of the model's "
                    f"distribution, {support}; give it a distribution over that support."
                )


def _raise_nan(program: Program, drawn: Any, story: Any) -> None:
    for what, trace in (("guide", drawn), ("model", story)):
        for name, node in trace.nodes.items():
            if _is_site(node) and "log_prob" in node and node["log_prob"].isnan().any():
                raise NumericalError(
                    f"site {name!r} in the {what} of {program.name!r} has the log density nan; check that "
                    "the guide's draws lie in the model's support and that the parameters are finite."
                )
    raise NumericalError(
        f"a log weight of {program.name!r} is nan: two infinite log densities were subtracted; "
        "check the guide's supports."
    )


def _has_rows(argument: Any, size: int | None) -> bool:
    return isinstance(argument, Tensor) and argument.dim() > 0 and len(argument) == size


def _parts(total: int, most: int) -> Iterator[int]:
    for begin in range(0, total, most):
        yield min(most, total - begin)
