"""The joint log density of a program at one point or many: a function to be mapped and recorded."""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_to_tensor
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppl_dgm.densities.coordinates import Layout, is_coordinate, is_point
from ppl_dgm.densities.log_einsum import StableLogRing
from ppl_dgm.errors import TaskUnavailable

__all__ = ["Joint", "unchecked"]

_CHAINS = "_chains"


@contextmanager
def unchecked() -> Iterator[None]:
    """Inside, no distribution looks at its parameters or values, not even one that was made outside."""
    silent = patch.object(torch.distributions.Distribution, "_validate_sample", lambda self, value: None)
    with pyro.validation_enabled(False), silent, warnings.catch_warnings():
        # slower than it could be while it is recorded, and right all the same
        warnings.filterwarnings("ignore", message=".*batching rule", category=UserWarning)
        yield


class _Place(Messenger):
    """Gives each coordinate site its value from z and adds up the log Jacobians.

    `chains` is None for one point z [d]; else z is [chains, d] and values get the chains as an outermost
    plate.
    """

    def __init__(self, layout: Layout, z: Tensor, chains: int | None) -> None:
        super().__init__()
        self.layout, self.z, self.chains = layout, z, chains
        self.jacobian: Any = 0.0
        self.placed: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        site = self.layout.sites.get(msg["name"])
        if msg["is_observed"]:
            return
        if site is None:
            if not msg["done"] and is_coordinate(msg["fn"]):
                raise _moving(msg["name"])
            return
        self.placed.add(msg["name"])
        transform = biject_to(msg["fn"].support) if site.depends else site.transform
        u = self.z[..., site.place]
        if self.chains is None:
            u = u.reshape(site.shape)
        else:
            batch = len(site.event) - msg["fn"].event_dim
            u = u.reshape(self.chains, *[1] * (self.layout.nesting - batch), *site.shape)
        value = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, value)
        if self.chains is None:
            if value.shape != site.event:
                raise TaskUnavailable(
                    f"site {msg['name']!r} has a support that depends on a discrete site, so that the sum "
                    "over that "
                    "one is no function of fixed coordinates; draw the discrete site explicitly, or use "
                    "method='importance'."
                )
            self.jacobian = self.jacobian + jacobian.sum()
        else:
            self.jacobian = self.jacobian + jacobian.reshape(self.chains, -1).sum(1)
        msg["value"] = value


def _moving(name: str) -> TaskUnavailable:
    return TaskUnavailable(
        f"site {name!r} is not there in every run, so that the density has no fixed dimension; draw every "
        "site in "
        "every run, and mask what does not count."
    )


class _Read(Messenger):
    """Takes the value of each coordinate site as given, and notes the point in its coordinates."""

    def __init__(self, layout: Layout, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.layout, self.values = layout, values
        self.unconstrained: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.layout.sites and not msg["is_observed"]:
            msg["value"] = self.values[name]
            self.unconstrained[name] = biject_to(msg["fn"].support).inv(msg["value"]).reshape(-1)


class _Enumerate(EnumMessenger):
    """Pyro's parallel enumeration, which after each site looks at `value.data`: vmap does not allow that."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is None or not isinstance(msg["fn"], TorchDistributionMixin):
            return
        shape = value.shape[: value.dim() - msg["fn"].event_dim]
        ids = msg["infer"].setdefault("_dim_to_id", {})
        ids.update(self._param_dims.get(msg["name"], {}))
        self._value_dims[msg["name"]] = {dim: id_ for dim, id_ in ids.items() if len(shape) >= -dim and shape[dim] > 1}


class Joint:
    """log p(x, z) + log |det J|, discrete sites summed out, of z [d], or of z [chains, d] with `chains`."""

    def __init__(self, layout: Layout, story: Callable[[], Any]) -> None:
        self.layout, self.story = layout, story

    def trace(self, z: Tensor, chains: int | None = None) -> tuple[Any, Any]:
        """One run at z: its trace and the sum of log Jacobians."""
        place = _Place(self.layout, z, chains)
        story = self._enumerated(self.story, chains)
        if chains is not None:
            story = pyro.plate(_CHAINS, chains, dim=-1 - self.layout.nesting)(story)
        with place:
            trace = poutine.trace(story).get_trace()
        for name in self.layout.sites:
            if name not in place.placed:
                raise _moving(name)
        return trace, place.jacobian

    def _enumerated(self, story: Callable[[], Any], chains: int | None) -> Callable[[], Any]:
        if not self.layout.summed:
            return story
        summed = set(self.layout.summed)

        def configure(site: Any) -> Any:
            wanted = {"enumerate": "parallel", "expand": False, "num_samples": None}
            return wanted if site["name"] in summed else {}

        first = -1 - self.layout.nesting - (chains is not None)
        return _Enumerate(first_available_dim=first)(poutine.infer_config(story, configure))

    def log_joint(self, z: Tensor, chains: int | None = None) -> Tensor:
        """log p(x, z) + log |det J|, in nats."""
        return self.log_parts(z, chains, split=False)[0]

    def log_parts(self, z: Tensor, chains: int | None = None, split: bool = True) -> tuple[Tensor, ...]:
        """(log p(z) + log |det J|, log p(x | z)), or with `split` False (their sum,)."""
        trace, jacobian = self.trace(z, chains)
        nodes = self._compute(trace)
        if self.layout.summed:
            trace.pack_tensors()
        everything = self._total(trace, nodes, chains) + jacobian
        if not split:
            return (everything,)
        latent = {name: node for name, node in nodes.items() if not node["is_observed"]}
        prior = self._total(trace, latent, chains) + jacobian
        return prior, everything - prior if self.layout.summed else self._rest(trace, nodes, chains)

    def _rest(self, trace: Any, nodes: dict[str, Any], chains: int | None) -> Tensor:
        seen = {name: node for name, node in nodes.items() if node["is_observed"]}
        return self._total(trace, seen, chains)

    def _compute(self, trace: Any) -> dict[str, Any]:
        """{name: node} of what counts, each with its log density."""
        nodes = {}
        for name, node in trace.nodes.items():
            if node["type"] != "sample" or type(node["fn"]).__name__ == "_Subsample":
                continue
            if node["infer"].get("_deterministic") or (is_point(node["fn"]) and not node["is_observed"]):
                continue
            if name in self.layout.points:
                continue
            log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
            node["unscaled_log_prob"] = log_prob
            node["log_prob"] = scale_and_mask(log_prob, node["scale"], node["mask"])
            nodes[name] = node
        return nodes

    def _total(self, trace: Any, nodes: dict[str, Any], chains: int | None) -> Tensor:
        if self.layout.summed:
            return self._contracted(trace, nodes, chains)
        total: Any = self.layout_zero(chains)
        for node in nodes.values():
            log_prob = node["log_prob"]
            total = total + (log_prob.sum() if chains is None else _per_chain(log_prob, chains, self.layout.nesting))
        return total

    def sites_at(self, z: Tensor) -> dict[str, Any]:
        """{name: node} at one point z [d], each with its `log_prob`."""
        return self._compute(self.trace(z)[0])

    def layout_zero(self, chains: int | None) -> Any:
        """Nothing yet."""
        return torch.zeros(() if chains is None else (chains,), device=self.layout.device)

    def _contracted(self, trace: Any, nodes: dict[str, Any], chains: int | None) -> Tensor:
        terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        sizes: dict[str, int] = {}
        for node in nodes.values():
            plates = frozenset(trace.plate_to_symbol[f.name] for f in node["cond_indep_stack"] if f.vectorized)
            term = node["packed"]["log_prob"]
            terms.setdefault(plates, []).append(term)
            sizes.update(zip(term._pyro_dims, term.shape, strict=True))
        sums = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
        target = frozenset() if chains is None else frozenset(trace.plate_to_symbol[_CHAINS])
        total = contract_to_tensor(terms, sums, target, ring=StableLogRing(dim_to_size=sizes))
        return total if chains is None else total.reshape(-1).expand(chains)

    def values(self, z: Tensor, chains: int | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The values of the coordinate sites and of the deterministic ones, without chains in z."""
        trace, _ = self.trace(z, chains)
        nodes = trace.nodes
        draws = {name: nodes[name]["value"] for name in self.layout.sites}
        return draws, {name: nodes[name]["value"] for name in self.layout.deterministic}

    def coordinates(self, values: dict[str, Tensor]) -> Tensor:
        """z [d] of one draw of each site."""
        read = _Read(self.layout, values)
        with read:
            self._enumerated(self.story, None)()
        return torch.cat([read.unconstrained[name] for name in self.layout.sites])

    def pointwise(self, z: Tensor) -> dict[str, Tensor]:
        """The log density of each observation of each observed site, {site: [*batch]}."""
        trace, _ = self.trace(z)
        nodes = self._compute(trace)
        return {name: nodes[name]["log_prob"] for name in self.layout.observed if name in nodes}


def _per_chain(log_prob: Tensor, chains: int, nesting: int) -> Tensor:
    if log_prob.dim() == nesting + 1 and log_prob.shape[0] == chains:
        return log_prob.reshape(chains, -1).sum(1)
    return log_prob.sum().expand(chains)
