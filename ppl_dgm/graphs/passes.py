"""Makes a tape smaller without changing what it computes: folds, drops, shares and fuses calls.

Aliasing is followed by storage: every tensor has one, views share it, an in-place call writes to it. A
storage is *dynamic* if it may hold something else at the next replay.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs.rewrite import rewrite
from ppl_dgm.graphs.simplify import simplify
from ppl_dgm.graphs.tape import Node, NotRecordable, Tape, Value, map_structure, values_in

__all__ = ["Plan", "plan"]

# their result depends on the shape of the argument, not on its values
_SHAPE_ONLY = {
    "ones_like", "zeros_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty",
    "new_empty_strided",
}  # fmt: skip
_EMPTY = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_COPIES = {"clone", "_to_copy", "lift_fresh_copy"}


@dataclass(eq=False)
class Plan:
    """What is left to run: the calls in order; any other Value they name is an input or bound to a tensor."""

    inputs: list[Value]
    nodes: list[Node]
    output: Any
    bound: dict[Value, Tensor]  # constants, live tensors and views of live tensors
    live: list[Value]  # live tensors whose memory the plan refers to
    written_inputs: set[int]  # positions


def plan(tape: Tape) -> Plan:
    """Reduces a tape.

    Raises:
        NotRecordable: Python read a value, or a shape depends on one, that may differ at the next replay.
    """
    written = {storage for node in tape.nodes for storage in node.writes}
    external = {v.storage: v for node in tape.nodes for v in node.reads if v.source in ("live", "constant")}
    live = tape.live | {storage for storage in external if storage in written}
    dynamic, moving = _dynamic(tape, live)
    for node, moves in zip(tape.nodes, moving, strict=True):
        if moves and node.refusal and not _by_fixed_masks(node, dynamic):
            raise NotRecordable(node.refusal)
    kept, bound = _bind_live_views([n for n, moves in zip(tape.nodes, moving, strict=True) if moves], live)
    outside = {v.storage for v in tape.inputs} | live
    nodes, output = kept, tape.output
    for _ in range(3):  # later sweeps see the copies, duplicates and unused values that earlier ones laid bare
        nodes, output = _Reducer(tape, nodes, output, dynamic, bound).run()
        nodes = simplify(rewrite(_fuse_fills(nodes)), output, dynamic)
        nodes = _without_dead(nodes, output, outside)
    made = {v for node in nodes for v in node.made} | set(tape.inputs)
    used = [v for node in nodes for v in node.reads] + values_in(output)
    bindings = {v: v.tensor.detach() for v in used if v not in made}
    storages = {v.storage for v in bindings}
    anchors = {v.storage: v for v in external.values() if v.storage in live and v.storage in storages}
    marks = {i for i, v in enumerate(tape.inputs) if v.storage in written}
    return Plan(tape.inputs, nodes, output, bindings, list(anchors.values()), marks)


def _by_fixed_masks(node: Node, dynamic: set[int]) -> bool:
    """Whether a call picks entries by masks that never change: then its result has a fixed shape."""
    masks = [v for v in node.reads[1:] if v.tensor.dtype in (torch.bool, torch.uint8)]
    return node.name == "index" and all(v.storage not in dynamic for v in masks)


def _dynamic(tape: Tape, live: set[int]) -> tuple[set[int], list[bool]]:
    """Which storages may change between replays, and for each call whether it depends on one of them."""
    dynamic = {v.storage for v in tape.inputs} | live
    moving = [False] * len(tape.nodes)
    last_write = {storage: i for i, node in enumerate(tape.nodes) for storage in node.writes}
    size = -1
    while size != len(dynamic):
        size = len(dynamic)
        for i, node in enumerate(tape.nodes):
            touched = node.writes.union(v.storage for v in node.made)
            reads = () if node.name in _SHAPE_ONLY else node.reads
            if node.random or not dynamic.isdisjoint(touched) or any(v.storage in dynamic for v in reads):
                moving[i] = True
                dynamic |= touched
        # read by the graph before its last write: keeping the final value is not enough
        for i, node in enumerate(tape.nodes):
            if moving[i]:
                dynamic.update(v.storage for v in node.reads if last_write.get(v.storage, -1) > i)
    return dynamic, moving


def _bind_live_views(nodes: list[Node], live: set[int]) -> tuple[list[Node], dict[Value, Tensor]]:
    """A view of a live tensor is made once: it sees every later in-place update."""
    bound: dict[Value, Tensor] = {}
    kept = []
    for node in nodes:
        ok = node.made and not node.writes and not node.random and all(v.storage in live for v in node.made)
        if ok and all(v.source == "live" or v.source == "constant" or v in bound for v in node.reads):
            bound.update((v, v.tensor) for v in node.made)
        else:
            kept.append(node)
    return kept, bound


def _fuse_fills(nodes: list[Node]) -> list[Node]:
    """A fresh tensor that is filled once becomes one call: `clone` for a copy, `randn`, `rand` for draws."""
    writers: dict[int, list[Node]] = {}
    for node in nodes:
        for storage in node.writes:
            writers.setdefault(storage, []).append(node)
    empty = {v: node for node in nodes for v in node.made if node.name in _EMPTY and len(node.made) == 1}
    gone: set[Node] = set()
    fused: dict[Node, Node] = {}
    for node in nodes:
        target = node.args[0] if node.args else None
        if not isinstance(target, Value) or target not in empty or writers.get(target.storage) != [node]:
            continue
        maker = empty[target]
        new = _filled(maker, node, target)
        if new is not None:
            gone.add(maker)
            fused[node] = new
    # a view that was taken of the empty tensor before it was filled would come before its base
    early = {maker for maker in gone if _viewed_early(nodes, maker, fused)}
    kept = []
    for node in nodes:
        if node in fused and empty[node.args[0]] not in early:
            kept.append(fused[node])
        elif node not in gone or node in early:
            kept.append(node)
    return kept


def _viewed_early(nodes: list[Node], maker: Node, fused: dict[Node, Node]) -> bool:
    """Whether anything but its filling uses the empty tensor first."""
    users = [node for node in nodes if maker.made[0] in node.reads]
    return users[0] not in fused or users[0].args[0] is not maker.made[0]


def _filled(maker: Node, node: Node, target: Value) -> Node | None:
    """The one call that makes and fills `target`, if there is one."""
    aten = torch.ops.aten
    if node.op is aten.copy_.default and isinstance(node.args[1], Value):
        source = node.args[1]
        if source.geometry != target.geometry:
            return None
        return Node(aten.clone.default, (source,), {}, target, [target], [source])
    draws = {aten.normal_.default: aten.randn.default, aten.uniform_.default: aten.rand.default}
    plain = len(node.args) == 1 and not node.kwargs and maker.op is aten.empty.memory_format
    if node.op not in draws or not plain or maker.kwargs.get("memory_format") is not None:
        return None
    return Node(draws[node.op], maker.args, maker.kwargs, target, [target], [], random=True)


class _Reducer:
    """One sweep in program order: a call gets the replacements made so far and may then be replaced
    itself."""

    def __init__(
        self, tape: Tape, nodes: list[Node], output: Any, dynamic: set[int], bound: dict[Value, Tensor]
    ) -> None:
        self.nodes, self.output, self.dynamic = nodes, output, dynamic
        self.replaced: dict[Value, Value] = {}
        self.merged: dict[int, int] = {}  # storage -> the storage that took its place
        self.written = {storage for node in nodes for storage in node.writes}
        self.returned = {v.storage for v in values_in(output)}
        self.internal = {v.storage for node in nodes for v in node.made} - {v.storage for v in tape.inputs}
        outer = [v for node in tape.nodes for v in node.reads if v.source in ("live", "constant")]
        self.internal -= {v.storage for v in outer}
        self.views = {(v.storage, v.geometry): v for v in [*tape.inputs, *bound, *outer]}
        self.calls: dict[Any, Node] = {}
        self.uniform: dict[Value, float | None] = {}

    def resolve(self, leaf: Any) -> Any:
        """The Value that now stands for this one."""
        while isinstance(leaf, Value) and leaf in self.replaced:
            leaf = self.replaced[leaf]
        return leaf

    def storage(self, value: Value) -> int:
        """The storage that now stands for the value's."""
        name = value.storage
        while name in self.merged:
            name = self.merged[name]
        return name

    def run(self) -> tuple[list[Node], Any]:
        """The calls that are left and the output in terms of them."""
        kept = []
        for old in self.nodes:
            node = old
            if any(v in self.replaced for v in old.reads):
                args = map_structure(self.resolve, old.args)
                node = replace(old, args=args, kwargs=map_structure(self.resolve, old.kwargs))
                node.reads = [*values_in(node.args), *values_in(node.kwargs)]
            if not (self.drop_alias(node) or self.drop_identity(node) or self.share(node)):
                kept.append(node)
        return kept, map_structure(self.resolve, self.output)

    def drop_alias(self, node: Node) -> bool:
        """Same memory and geometry as a value at hand (`detach`, `t` of `t`): that will do, whatever is
        written."""
        fresh = []
        for value in node.made:
            key = (self.storage(value), value.geometry)
            if key in self.views:
                self.replaced[value] = self.views[key]
            else:
                self.views[key] = value
                fresh.append(value)
        return bool(node.made) and not fresh and not node.writes and not node.random

    def drop_identity(self, node: Node) -> bool:
        """A copy of something never written, a product with one, a sum with zero: the argument will do."""
        if len(node.made) != 1 or node.writes or node.random or not isinstance(node.out, Value):
            return False
        source = self.identity_of(node)
        if source is None or source.geometry != node.out.geometry:
            return False
        here, there = self.storage(source), self.storage(node.out)
        if here == there or here in self.written or there in self.written:
            return False
        if there in self.returned:
            # the caller owns what is returned: it may not be a tensor that somebody else holds
            if here not in self.internal or here not in self.dynamic or here in self.returned:
                return False
            self.returned.add(here)
        self.replaced[node.out] = source
        self.merged[there] = here
        return True

    def identity_of(self, node: Node) -> Value | None:
        """The argument that the call returns unchanged, if it does."""
        args, name = node.args, node.name
        if not args or not isinstance(args[0], Value):
            return None
        if name in _COPIES:
            return args[0]
        if name in ("pow", "sum") and node.op._overloadname in ("Tensor_Scalar", "dim_IntList"):
            unchanged = args[1] == 1 if name == "pow" else args[0].geometry[0] == node.made[0].geometry[0]
            return args[0] if unchanged else None
        if len(args) < 2 or name not in ("mul", "div", "add", "sub") or node.kwargs.get("rounding_mode"):
            return None
        neutral = 1 if name in ("mul", "div") else 0
        if self.value_of(args[1]) == neutral:
            return args[0]
        if name in ("mul", "add") and isinstance(args[1], Value) and node.kwargs.get("alpha", 1) == 1:
            return args[1] if self.value_of(args[0]) == neutral else None
        return None

    def value_of(self, leaf: Any) -> float | None:
        """The one number that a number or a constant tensor holds."""
        if isinstance(leaf, bool) or not isinstance(leaf, Value):
            return leaf if isinstance(leaf, int | float) else None
        if leaf.storage in self.dynamic or leaf.tensor.numel() == 0 or leaf.tensor.is_complex():
            return None
        if leaf not in self.uniform:
            tensor = leaf.tensor.detach()
            first = tensor[(0,) * tensor.dim()]
            self.uniform[leaf] = float(first) if bool((tensor == first).all()) else None
        return self.uniform[leaf]

    def share(self, node: Node) -> bool:
        """The same call on the same unwritten values was made before."""
        if not node.made or node.writes or node.random:
            return False
        touched = {self.storage(v) for v in [*node.reads, *node.made]}
        if not touched.isdisjoint(self.written):
            return False
        key = (node.op, _key(node.args), _key(node.kwargs))
        before = self.calls.setdefault(key, node)
        if before is node or any(self.storage(v) in self.returned for v in node.made):
            return False
        for value, same in zip(node.made, before.made, strict=True):
            same = self.resolve(same)
            self.replaced[value] = same
            if self.storage(value) != self.storage(same):
                self.merged[self.storage(value)] = self.storage(same)
        return True


def _key(tree: Any) -> Any:
    """A hashable form of arguments that tells 1 from 1.0 and True."""
    if isinstance(tree, tuple | list):
        return tuple(_key(item) for item in tree)
    if isinstance(tree, dict):
        return tuple((name, _key(item)) for name, item in sorted(tree.items()))
    return (type(tree), repr(tree)) if isinstance(tree, int | float | complex) else tree


def _without_dead(nodes: list[Node], output: Any, outside: set[int]) -> list[Node]:
    """Drops calls that nobody needs.

    Kept: what the output needs; every random draw, so that the stream of random numbers stays that of the
    function; writes to memory that is read later or belongs to the outside; calls without results, which are
    checks that raise.
    """
    needed = set(values_in(output))
    read = {v.storage for v in needed} | outside
    kept = []
    for node in reversed(nodes):
        check = not node.made and not node.writes
        if node.random or check or not needed.isdisjoint(node.made) or not read.isdisjoint(node.writes):
            kept.append(node)
            needed.update(node.reads)
            read.update(v.storage for v in node.reads)
    return kept[::-1]
