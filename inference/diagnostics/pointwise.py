"""The log density of each observation under each posterior draw: what PSIS-LOO and predictive checks need."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from torch import Tensor

from ppl_dgm.conditioning import Unobserve
from ppl_dgm.densities.coordinates import base_of, is_deterministic
from ppl_dgm.densities.joint import _Enumerate, unchecked
from ppl_dgm.densities.log_einsum import StableLogRing, mappable_hmm
from ppl_dgm.densities.trees import cast, floats, stack
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior

__all__ = ["Replay", "pointwise_log_likelihood"]

_ENTRIES = 2**22  # numbers of the widest table of log densities that are made at once


def pointwise_log_likelihood(posterior: Posterior) -> dict[str, Tensor]:
    """log p(y_i | z) of each observation y_i at each draw z, in nats.

    Latent sites without draws are summed out: where those that meet in an observation lie in a plate of their own
    (a mixture), the value of each element of that plate is log sum_k p(k | z) p(y_i | k, z). Observations that
    share such a plate element, because it holds several observed sites or an inner plate, count as one; they go by
    the site's name, or by the plate's where there are several sites. Scaled and masked observations count as the
    density counts them.

    Arguments:
        posterior: with its program and the arguments that it was inferred with.

    Returns:
        {observed site: [chain, draw, *batch]}; an observation with event dimensions counts as one. Empty if
        nothing is observed.

    Raises:
        ProgramError: the posterior does not know its program and arguments.
        TaskUnavailable: a site that was summed out ties all observations together (a hidden Markov chain without
            a plate over sequences), or cannot be summed out.
    """
    replay = Replay(posterior)
    likelihood = _Likelihood(replay)
    lead = replay.lead
    parts = [
        replay.mapped(likelihood.one, rows) for rows in replay.chunks(max(1, _ENTRIES // max(1, likelihood.entries)))
    ]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return {name: value.reshape(*lead, *value.shape[1:]) for name, value in joined.items()}


class Replay:
    """A posterior's program at its draws: the story with each latent site that has draws held at one of them.

    Attributes:
        lead: (chains, draws).
        rows: {latent site: [chain * draw, *shape]}.
    """

    def __init__(self, posterior: Posterior) -> None:
        if posterior.program is None or posterior.arguments is None:
            raise ProgramError(
                "this posterior does not know its program and observations; set posterior.program = your_program and "
                "posterior.arguments = ((the model's arguments,), {})."
            )
        if not posterior.draws:
            raise ProgramError(
                "this posterior has no draws, so nothing can be computed from them; infer a latent site."
            )
        self.program: Program = posterior.program
        args, kwargs = posterior.arguments
        self.lead = next(iter(posterior.draws.values())).shape[:2]
        self.rows = {name: value.flatten(0, 1) for name, value in posterior.draws.items()}
        given = [*floats(args), *floats(kwargs), *floats(self.rows), *(p.dtype for p in self.program.parameters())]
        self.dtype = torch.float64 if torch.float64 in given else torch.get_default_dtype()
        self.args, self.kwargs = cast(args, self.dtype), cast(kwargs, self.dtype)

    def story(self, row: dict[str, Tensor]) -> Callable[[], Any]:
        """The program at one draw, observed as it was."""
        return lambda: poutine.condition(self.program.run_model, row)(*self.args, **self.kwargs)

    def first(self) -> dict[str, Tensor]:
        """The first draw."""
        return {name: value[0] for name, value in self.rows.items()}

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """The draws, `size` of them at a time."""
        for begin in range(0, self.lead[0] * self.lead[1], size):
            yield {name: value[begin : begin + size] for name, value in self.rows.items()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the program runs as the sampler ran it, without gradients and without Pyro's checks."""
        from ppl_dgm.tasks import evaluating

        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            quietly = evaluating(self.program), unchecked(), mappable_hmm()
            with torch.no_grad(), seeded(0), self.program.running(), quietly[0], quietly[1], quietly[2]:
                yield
        finally:
            torch.set_default_dtype(before)

    def mapped(self, function: Callable[[dict[str, Tensor]], Any], rows: dict[str, Tensor]) -> Any:
        """A function of one draw at each of these: by vmap, or where that cannot follow one after another."""
        with self.running():
            try:
                return torch.func.vmap(function, randomness="different")(rows)
            except TaskUnavailable:
                raise
            except (RuntimeError, ValueError, NotImplementedError, IndexError, TypeError, AssertionError):
                count = len(next(iter(rows.values())))
                return stack([function({name: value[i] for name, value in rows.items()}) for i in range(count)])

    def observations(self) -> dict[str, dict[str, Any]]:
        """{observed site: node} at the first draw: what is random and was given, not factors and points."""
        with self.running():
            trace: Any = poutine.trace(self.story(self.first())).get_trace()
        return {name: node for name, node in trace.nodes.items() if self.is_observation(name, node)}

    def is_observation(self, name: str, node: dict[str, Any]) -> bool:
        """Whether a node of a run at a draw is an observation."""
        return (
            node["type"] == "sample"
            and node["is_observed"]
            and name not in self.rows
            and not is_deterministic(node)
            and type(base_of(node["fn"])).__name__ not in ("_Subsample", "Unit")
            and isinstance(node["value"], Tensor)
        )

    def replicated(self) -> Callable[[dict[str, Tensor]], Any]:
        """A run at one draw with the observations drawn anew, as its trace."""

        def run(row: dict[str, Tensor]) -> Any:
            story = poutine.condition(Unobserve()(self.program.run_model), row)
            return poutine.trace(story).get_trace(*self.args, **self.kwargs)

        return run


class _Likelihood:
    """The log densities of the observations as a function of one draw, the sites without draws summed out."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        with replay.running():
            trace: Any = poutine.trace(replay.story(replay.first())).get_trace()
            nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
            self.summed = [name for name, node in nodes.items() if self._is_latent(name, node)]
            frames = [f for node in nodes.values() for f in node["cond_indep_stack"] if f.vectorized]
            self.nesting = max((-f.dim for f in frames), default=0)
            for name in self.summed:
                if not nodes[name]["fn"].has_enumerate_support:
                    raise TaskUnavailable(
                        f"site {name!r} has no draws in this posterior and cannot be summed out, so the observations "
                        "have no log densities at the draws that there are; use a method that draws every site."
                    )
            self.entries = 0
            self.one(replay.first())

    def _is_latent(self, name: str, node: dict[str, Any]) -> bool:
        return (
            not node["is_observed"]
            and name not in self.replay.rows
            and not is_deterministic(node)
            and type(base_of(node["fn"])).__name__ != "_Subsample"
        )

    def one(self, row: dict[str, Tensor]) -> dict[str, Tensor]:
        """{site: [*batch]} at one draw."""
        story = self.replay.story(row)
        if self.summed:
            story = _Enumerate(first_available_dim=-1 - self.nesting)(poutine.infer_config(story, self._configure))
        trace: Any = poutine.trace(story).get_trace()
        nodes = {name: node for name, node in trace.nodes.items() if self._counts(name, node)}
        for node in nodes.values():
            node["unscaled_log_prob"] = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
            node["log_prob"] = scale_and_mask(node["unscaled_log_prob"], node["scale"], node["mask"])
        self.entries = max(self.entries, sum(node["log_prob"].numel() for node in nodes.values()))
        tied = self._tied(trace, nodes) if self.summed else {}
        alone = [name for name in nodes if self.replay.is_observation(name, nodes[name])]
        inside = {name for names, _, _ in tied.values() for name in names}
        found = {name: _full(nodes[name]) for name in alone if name not in inside}
        return found | {key: self._summed_out(trace, nodes, *group) for key, group in tied.items()}

    def _configure(self, site: Any) -> Any:
        wanted = {"enumerate": "parallel", "expand": False, "num_samples": None}
        return wanted if site["name"] in self.summed else {}

    def _counts(self, name: str, node: dict[str, Any]) -> bool:
        """Whether a node is an observation, or takes part in a sum over latent sites."""
        if node["type"] != "sample":
            return False
        factor = type(base_of(node["fn"])).__name__ == "Unit" and bool(self.summed)
        return factor or name in self.summed or self.replay.is_observation(name, node)

    def _tied(self, trace: Any, nodes: dict[str, Any]) -> dict[str, tuple[list[str], set[str], list[Any]]]:
        """{key: (sites, their summed symbols, the plates that hold all of them)} for each set of sites that meet."""
        trace.pack_tensors()
        sums = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
        meeting: list[tuple[set[str], set[str]]] = []
        for name, node in nodes.items():
            symbols = sums & set(node["packed"]["log_prob"]._pyro_dims)
            if not symbols:
                continue
            members = {name}
            apart = []
            for others, shared in meeting:
                if shared & symbols:
                    members, symbols = members | others, symbols | shared
                else:
                    apart.append((others, shared))
            meeting = [*apart, (members, symbols)]
        found = {}
        for members, symbols in meeting:
            names = [name for name in nodes if name in members]
            observed = [name for name in names if self.replay.is_observation(name, nodes[name])]
            if not observed:
                continue
            plates = _common(nodes[name] for name in names)
            if not plates:
                raise TaskUnavailable(
                    f"site {next(n for n in names if n in self.summed)!r} is summed out and ties the observations of "
                    f"{', '.join(map(repr, observed[:3]))}{' and others' if len(observed) > 3 else ''} together, so that "
                    "they have no log densities of their own; put independent groups of observations in a pyro.plate "
                    "that holds their latent sites too."
                )
            key = observed[0] if len(observed) == 1 else ",".join(f.name for f in plates)
            found[key] = (names, symbols, plates)
        return found

    def _summed_out(
        self, trace: Any, nodes: dict[str, Any], names: list[str], symbols: set[str], plates: list[Any]
    ) -> Tensor:
        """log sum over the latent sites of the product of these factors, for each element of the plates."""
        terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        sizes: dict[str, int] = {}
        for name in names:
            node = nodes[name]
            within = frozenset(trace.plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
            term = node["packed"]["log_prob"]
            terms.setdefault(within, []).append(term)
            sizes.update(zip(term._pyro_dims, term.shape, strict=True))
        target = frozenset(trace.plate_to_symbol[f.name] for f in plates)
        try:
            total = contract_to_tensor(terms, symbols, target, ring=StableLogRing(dim_to_size=sizes))
        except NotImplementedError:
            raise TaskUnavailable(
                f"the sums over {', '.join(repr(n) for n in names if n in self.summed)} meet in crossing plates, so that "
                "they do not factorise; make one of the plates a Python loop."
            ) from None
        value = packed.unpack(total, trace.symbol_to_dim)
        shape = torch.Size([f.size for f in plates])
        dims = [f.dim for f in plates]
        value = value.reshape((1,) * (self.nesting - value.dim()) + value.shape)  # [*plates]
        value = value.reshape([value.shape[dim] for dim in dims])  # the other plates have been summed over
        return value.expand(shape)


def _common(nodes: Any) -> list[Any]:
    """The plates that all of these nodes lie in, outermost dimension first."""
    stacks = [[f for f in node["cond_indep_stack"] if f.vectorized] for node in nodes]
    names = set.intersection(*({f.name for f in stack} for stack in stacks))
    return sorted((f for f in stacks[0] if f.name in names), key=lambda f: f.dim)


def _full(node: dict[str, Any]) -> Tensor:
    """The log density of one site in its batch shape; a distribution may leave out dimensions that it repeats."""
    return node["log_prob"].expand(torch.broadcast_shapes(node["log_prob"].shape, node["fn"].batch_shape))
