"""Enumeration: a program over discrete latent sites as a product of small tensors, summed exactly."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import opt_einsum  # type: ignore[import-untyped]
import pyro.distributions as dist
import torch
from opt_einsum import shared_intermediates  # type: ignore[import-untyped]
from pyro import poutine
from pyro.distributions.util import is_identically_one
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.einsum.adjoint import require_backward
from pyro.ops.rings import LogRing, SampleRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape
from torch import Tensor
from torch.distributions import Distribution

from ppl_dgm.densities.coordinates import is_coordinate
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Program
from ppl_dgm.tracing import data_dim, latent_sites

__all__ = ["Enumeration", "not_summable", "pack", "support_values"]

_ENTRIES = 2**24  # entries of the factors of all draws that are made at once


class Enumeration:
    """log p(x, z) = sum_f log f(z_f, x), each factor f a tensor over the few latent sites that it touches.

    The program runs twice: once forward, to see its sites, once with every latent site enumerated along a
    tensor dimension of its own (Pyro's parallel enumeration; `pyro.markov` bounds their number). Sums then go
    by tensor variable elimination, so that a chain costs its length and a plate its size, not the exponential
    of it.

    Arguments:
        program: any program; call inside `program.running()`.
        *args, **kwargs: the model's arguments, with the observations.

    Attributes:
        latent: {site: distribution} of what is summed out, with its batch shape.
        per_example: whether every site lies inside the plate `data`, so that the evidence has one value per
            example.
        normalised: False where the program has `pyro.factor` terms, so that its density is known up to a
            constant.
        terms: the log factors, (plates, packed tensor), and `names` the sites that they belong to.

    Raises:
        TaskUnavailable: a latent site is continuous or cannot be enumerated, a site is subsampled or
            rescaled, the program branches in Python on a latent value, or plates cross.
        ProgramError: no sites at all, or a batch dimension outside any plate.

    Source: F. Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs.
    """

    def __init__(self, program: Program, *args: Any, **kwargs: Any) -> None:
        with torch.no_grad():
            plain = prune_subsample_sites(poutine.trace(program.run_model).get_trace(*args, **kwargs))
            nodes = _random(plain)
            _check(program, plain, nodes)
            self.latent: dict[str, Any] = {
                n: node["fn"] for n, node in latent_sites(plain).items() if not _is_point(node["fn"])
            }
            self.nesting = max((-f.dim for node in nodes.values() for f in _plates(node)), default=0)
            self.per_example = all(data_dim(node) is not None for node in nodes.values())
            self.normalised = not any(isinstance(node["fn"], dist.Unit) for node in nodes.values())
            self.examples = next((f.size for node in nodes.values() for f in _plates(node) if f.name == "data"), 0)
            trace = self._enumerated(program, args, kwargs) if self.latent else plain
            _check_shapes(trace, self.nesting)
            trace.pack_tensors()
        self._collect(trace)

    def _enumerated(self, program: Program, args: tuple, kwargs: dict) -> Any:
        def configure(site: Any) -> Any:
            return (
                {"enumerate": "parallel", "expand": False, "num_samples": None} if site["name"] in self.latent else {}
            )

        trace: Any
        with _explained(program), EnumMessenger(first_available_dim=-1 - self.nesting):
            trace = poutine.trace(poutine.infer_config(program.run_model, configure)).get_trace(*args, **kwargs)
            trace = prune_subsample_sites(trace)
            trace.compute_log_prob()
        missed = [n for n in self.latent if n not in trace or trace.nodes[n]["infer"].get("_enumerate_dim") is None]
        missed += [
            name for name in latent_sites(trace) if name not in self.latent and not _is_point(trace.nodes[name]["fn"])
        ]
        if missed:
            raise TaskUnavailable(
                f"{program.name!r}: site {missed[0]!r} is not drawn in every run and cannot be enumerated; "
                "draw every site in every run, and mask what does not count."
            )
        return trace

    def _collect(self, trace: Any) -> None:
        """The packed log factors, sorted by the plates that they stand in."""
        self.symbol_to_dim = dict(trace.symbol_to_dim)
        self.data = frozenset(trace.plate_to_symbol["data"]) if self.per_example and self.examples > 1 else frozenset()
        self.terms: list[tuple[frozenset, Any]] = []
        self.own: dict[str, int] = {}  # latent site -> the index of its own factor, log p(z | parents)
        self.symbols: dict[str, str] = {}
        self.names: list[str] = []  # of the terms
        self.factor_terms: set[str] = set()  # those that are pyro.factor statements
        for name, node in _random(trace).items():
            self.names.append(name)
            if isinstance(node["fn"], dist.Unit):
                self.factor_terms.add(name)
            if name in self.latent:
                self.own[name], self.symbols[name] = len(self.terms), node["infer"]["_enumerate_symbol"]
            plates = frozenset(trace.plate_to_symbol[f.name] for f in _plates(node) if f.size > 1)
            self.terms.append((plates, self._log_factor(name, node)))
        self._check_plates(list(_random(trace)))
        self.sizes = {symbol: size for _, term in self.terms for symbol, size in zip(term._pyro_dims, term.shape)}
        self.sum_dims = set(self.symbols.values())

    def _log_factor(self, name: str, node: Any) -> Any:
        """A masked observation counts nothing; a masked latent sums to one by itself."""
        log_factor = node["packed"]["unscaled_log_prob"]
        return log_factor if name in self.latent else packed.scale_and_mask(log_factor, mask=node["packed"]["mask"])

    def _check_plates(self, names: list[str]) -> None:
        """A factor that joins the elements of a plate from outside of it is no product over that plate."""
        for name, symbol in self.symbols.items():
            own = self.terms[self.own[name]][0]
            for factor, (plates, term) in zip(names, self.terms, strict=True):
                if symbol in term._pyro_dims and not own <= plates:
                    raise TaskUnavailable(
                        f"site {factor!r} joins the elements of site {name!r}, which stand in a plate that it is not "
                        f"in, so that they cannot be summed one by one; give each element of {name!r} a site of its "
                        "own, or use method='gibbs'."
                    )

    # -- answers ---------------------------------------------------------------------------------------------

    def log_evidence(self) -> Tensor:
        """log p(x) in nats: one value per example, [batch], where `per_example`, else of the whole, []."""
        value = self._sum(_tree(self.terms), self.data)
        if not self.per_example:
            return value
        return packed.unpack(value, self.symbol_to_dim).reshape(-1).expand(self.examples)

    def _sum(self, tree: OrderedDict, plates: frozenset) -> Tensor:
        with _sensible():
            return contract_to_tensor(tree, self.sum_dims, plates, ring=LogRing(dim_to_size=self.sizes))

    @torch.enable_grad()
    def marginals(self) -> dict[str, Tensor]:
        """p(z_s | x) for each site, {site: [*batch, values]}.

        It is the gradient of log p(x) with respect to log p(z_s | parents), summed over the parents.
        """
        terms = [(plates, pack(term.detach().clone(), term._pyro_dims)) for plates, term in self.terms]
        leaves = [terms[index][1].requires_grad_() for index in self.own.values()]
        gradients = torch.autograd.grad(self._sum(_tree(terms), frozenset()), leaves)
        answer = {}
        for (name, index), gradient in zip(self.own.items(), gradients):
            plates, term = self.terms[index]
            dims = term._pyro_dims
            kept = plates | {self.symbols[name]}
            parents = [position for position, symbol in enumerate(dims) if symbol not in kept]
            joint = gradient.sum(parents) if parents else gradient
            table = pack(joint, "".join(symbol for symbol in dims if symbol in kept))
            table = self._as_batch(table, self.symbols[name], self.latent[name].batch_shape).movedim(0, -1).clamp_min(0)
            answer[name] = table / table.sum(-1, keepdim=True)
        return answer

    def _fresh_symbol(self) -> str:
        return next(s for s in map(opt_einsum.get_symbol, range(2**16)) if s not in self.symbol_to_dim)

    @torch.no_grad()
    def sample(self, draws: int) -> dict[str, Tensor]:
        """Joint draws z ~ p(z | x), {site: [draws, *batch, *event]}: sums forward, then draws backward."""
        entries = sum(term.numel() for _, term in self.terms)
        at_once = max(1, min(draws, _ENTRIES // entries))
        try:
            parts = [self._sample(min(at_once, draws - done)) for done in range(0, draws, at_once)]
        except RuntimeError as error:
            # Pyro's backward sampler cannot join the samples of steps that sum out different numbers of sites
            if "is invalid for input of size" not in str(error):
                raise
            return self._sample_by_messages(draws)
        return {name: torch.cat([part[name] for part in parts]) for name in self.latent}

    def _sample_by_messages(self, draws: int) -> dict[str, Tensor]:
        """The same from the tree of an elimination order, element by element."""
        from ppl_dgm.inference.messages.answers import native
        from ppl_dgm.inference.messages.cluster_tree import Passing
        from ppl_dgm.inference.messages.elimination import plan_elimination
        from ppl_dgm.inference.messages.factor_graph import FactorGraph
        from ppl_dgm.inference.messages.trees import bucket_tree

        graph = FactorGraph.from_enumeration(self)
        return native(graph, Passing(bucket_tree(graph, plan_elimination(graph))).sample(draws))

    def _sample(self, draws: int) -> dict[str, Tensor]:
        many = self._fresh_symbol()  # the draws' own plate
        terms = []
        for plates, term in self.terms:
            copied = pack(term.expand(draws, *term.shape), many + term._pyro_dims)
            terms.append((plates | {many}, copied))
        leaves = {name: terms[index][1] for name, index in self.own.items()}
        for leaf in leaves.values():
            require_backward(leaf)
        cache: dict = {}
        with shared_intermediates(cache), _sensible():
            ring = SampleRing(cache=cache, dim_to_size={**self.sizes, many: draws})
            for roots in contract_tensor_tree(_tree(terms), self.sum_dims, ring=ring).values():
                for root in roots:
                    if hasattr(root, "_pyro_backward"):
                        root._pyro_backward()
        return {name: self._values(name, leaf._pyro_backward_result, many, draws) for name, leaf in leaves.items()}

    def _values(self, name: str, drawn: Any, many: str, draws: int) -> Tensor:
        """Sampled indices of one site, unpacked and looked up in its support."""
        index = drawn[drawn._pyro_sample_dims.index(self.symbols[name])]
        index = pack(index, drawn._pyro_dims[1:])
        fn = self.latent[name]
        plates = {symbol for symbol in index._pyro_dims if symbol in self.terms[self.own[name]][0]}
        assert set(index._pyro_dims) <= plates | {many}
        index = self._as_batch(index, many, fn.batch_shape)
        return support_values(fn)[index.expand(draws, *fn.batch_shape)]

    def _as_batch(self, value: Tensor, first: str, batch: torch.Size) -> Tensor:
        """Unpack a packed tensor to [first, *batch], `first` being the symbol of the leading dimension."""
        dims = {**self.symbol_to_dim, first: -1 - self.nesting}
        value = packed.unpack(value, dims)
        value = value.reshape((1,) * (1 + self.nesting - value.dim()) + value.shape)  # [first, *plates]
        value = value.flatten(0, self.nesting - len(batch)) if self.nesting > len(batch) else value
        return value.expand(-1, *batch)

    def family(self, name: str, table: Tensor) -> Distribution | None:
        """A site's marginal as a distribution of its own values, or None where no family has this support."""
        support = support_values(self.latent[name])  # [values, *event]
        count = len(support)
        if (
            support.dim() == 2
            and support.shape == (count, count)
            and bool((support == torch.eye(count).to(support)).all())
        ):
            return dist.OneHotCategorical(logits=table.log())
        if support.dim() != 1 or not bool((support == torch.arange(count).to(support)).all()):
            return None
        if count == 2 and support.is_floating_point():
            return dist.Bernoulli(probs=table[..., 1])
        return dist.Categorical(logits=table.log())


# -- reading the trace ---------------------------------------------------------------------------------------


def _random(trace: Any) -> dict[str, Any]:
    """{name: node} of everything that has a log density: variables and factors, not what is deterministic."""
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    return {name: node for name, node in nodes.items() if not _is_point(node["fn"])}


def _is_point(fn: Any) -> bool:
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _plates(node: dict) -> list[Any]:
    return [frame for frame in node["cond_indep_stack"] if frame.vectorized]


def _check(program: Program, trace: Any, nodes: dict[str, Any]) -> None:
    if not nodes:
        raise ProgramError(f"{program.name!r} has no sample sites, so it has no density; add pyro.sample statements.")
    for name, node in nodes.items():
        if not node["is_observed"] and not node["fn"].has_enumerate_support:
            raise not_summable(program.name, name, node["fn"])
        if not is_identically_one(scale := node["scale"]):
            size = float(torch.as_tensor(scale).max())
            raise TaskUnavailable(
                f"site {name!r} of {program.name!r} is subsampled or rescaled ({size:g} times): its density "
                "is not that of the data given; run it on all rows, without subsample_size and poutine.scale."
            )
    trace.compute_log_prob()


def not_summable(program: str, name: str, fn: Any) -> TaskUnavailable:
    """The error for a latent site that can neither be listed nor integrated out."""
    kind = "discrete, with a support that cannot be listed" if not is_coordinate(fn) else "continuous"
    return TaskUnavailable(
        f"latent site {name!r} of {program!r} is {kind}, and the program knows no closed form and is not recognised as "
        "conjugate or linear-Gaussian; use method='nuts' for draws, dgm.SVI(guide='AutoNormal') for a guide, or "
        "'importance-weighted' with that guide for a bound."
    )


def _check_shapes(trace: Any, nesting: int) -> None:
    for name, node in _random(trace).items():
        try:
            check_site_shape(node, max_plate_nesting=nesting)
        except ValueError:
            raise ProgramError(
                f"site {name!r} has batch shape {tuple(node['fn'].batch_shape)}, but its plates have shape "
                f"{tuple(f.size for f in _plates(node))}; add a pyro.plate, or declare it with .to_event()."
            ) from None


@contextmanager
def _explained(program: Program) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "Boolean value of Tensor" in text or "converted to Scalar" in text:
            raise TaskUnavailable(
                f"{program.name!r} branches in Python on a latent value, which cannot be enumerated; "
                "choose with torch.where or by indexing a table instead."
            ) from error
        if "up to 64 dims" in text:
            raise TaskUnavailable(
                f"{program.name!r} has more latent sites than a tensor dimensions; write a loop over time "
                "as `for t in pyro.markov(range(n))`, a loop over independent examples as one pyro.plate."
            ) from error
        raise


@contextmanager
def _sensible() -> Iterator[None]:
    try:
        yield
    except NotImplementedError as error:
        if "tree-structured" not in str(error):
            raise
        raise TaskUnavailable(
            "latent sites of two crossing plates meet in one site, so that their sum does not factorise; "
            "make one of the plates a Python loop, `for i in pyro.plate(...)`."
        ) from error


# -- packed tensors ------------------------------------------------------------------------------------------


def pack(value: Tensor, dims: str) -> Any:
    """A tensor with a symbol per dimension, as `pyro.ops` wants it."""
    value._pyro_dims = dims  # type: ignore[attr-defined]
    assert value.dim() == len(dims)
    return value


def _tree(terms: list[tuple[frozenset, Any]]) -> OrderedDict:
    """{plates: [factors]}."""
    tree: OrderedDict = OrderedDict()
    for plates, term in terms:
        tree.setdefault(plates, []).append(term)
    return tree


def support_values(fn: Any) -> Tensor:
    """The values of a site, [values, *event]."""
    return fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
