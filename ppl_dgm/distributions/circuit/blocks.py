"""Any compiled circuit as blocks of units, the one form that pairwise queries and exports work on."""

from dataclasses import dataclass

import networkx as nx
import torch
from torch import Tensor

from ...errors import TaskUnavailable
from .evaluator import Evaluator
from .layers import Layered
from .tensorised import Tensorised
from .tree import Tree

__all__ = ["Block", "Blocks"]


@dataclass(frozen=True)
class Block:
    """S nodes of one kind that are over the same variables.

    Attributes:
        name: what a message or a graph calls it.
        kind: "input", "product" (unit s multiplies unit s of each child) or "sum" (each unit mixes all units of all
            children).
        children: positions of earlier blocks.
        tables: an input: one [S, K] of log probabilities; a sum: for each child [S, units of the child] log weights;
            float64.
        variable: of an input, else -1.
        scope: the variables.
        units: S.
    """

    name: str
    kind: str
    children: tuple[int, ...]
    tables: tuple[Tensor, ...]
    variable: int
    scope: frozenset[int]
    units: int


@dataclass(frozen=True)
class Blocks:
    """A circuit as blocks, each after its children; unit 0 of the last one is the root.

    >>> table = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> from ppl_dgm.distributions.circuit import CircuitDistribution
    >>> circuit = CircuitDistribution.from_tree([-1, 0], table.log())
    >>> [block.kind for block in Blocks.of(circuit.evaluator).blocks]
    ['input', 'product', 'sum', 'input', 'product', 'sum']
    """

    blocks: tuple[Block, ...]
    variables: int
    values: int

    @classmethod
    def of(cls, evaluator: Evaluator) -> "Blocks":
        """The blocks of a compiled circuit, with its present weights, apart from autograd."""
        made = _Maker(evaluator.variables, evaluator.values)
        if isinstance(evaluator, Tree):
            _from_tree(made, evaluator)
        elif isinstance(evaluator, Layered):
            _from_layers(made, evaluator)
        elif isinstance(evaluator, Tensorised):
            _from_regions(made, evaluator)
        else:
            raise TaskUnavailable(f"a circuit compiled as {type(evaluator).__name__} has no list of its nodes.")
        return cls(tuple(made.blocks), evaluator.variables, evaluator.values)

    def to_graph(self, names: bool = True) -> nx.DiGraph:
        """The circuit node by node, as `check_structure` takes it; edges of weight 0 are left out.

        Arguments:
            names: nodes are called "block name | unit"; False: by numbers.
        """
        graph = nx.DiGraph()
        label: dict[tuple[int, int], object] = {}
        wanted = self._reachable()
        for position, block in enumerate(self.blocks):
            for unit in sorted(wanted[position]):
                key = (f"{block.name} | {unit}" if block.units > 1 else block.name) if names else len(label)
                label[position, unit] = key
                if block.kind == "input":
                    probs = block.tables[0][unit].exp()
                    graph.add_node(key, kind="input", variable=block.variable, probs=(probs / probs.sum()).tolist())
                    continue
                graph.add_node(key, kind=block.kind)
                if block.kind == "product":
                    graph.add_edges_from((key, label[child, unit]) for child in block.children)
                    continue
                weights = torch.cat([table[unit].exp() for table in block.tables])
                rows = [(child, k) for child in block.children for k in range(self.blocks[child].units)]
                total = float(weights.sum())
                for (child, k), weight in zip(rows, weights.tolist(), strict=True):
                    if weight > 0:
                        graph.add_edge(key, label[child, k], weight=weight / total)
        return graph

    def _reachable(self) -> list[set[int]]:
        """The units of each block that the root uses."""
        wanted: list[set[int]] = [set() for _ in self.blocks]
        wanted[-1].add(0)
        for block, units in zip(reversed(self.blocks), reversed(wanted), strict=True):
            if block.kind == "product":
                for child in block.children:
                    wanted[child] |= units
            elif block.kind == "sum" and units:
                for child, table in zip(block.children, block.tables, strict=True):
                    used = table[sorted(units)].isfinite().any(0)
                    wanted[child] |= set(used.nonzero().flatten().tolist())
        return wanted


class _Maker:
    """Adds blocks, and keeps their scopes."""

    def __init__(self, variables: int, values: int) -> None:
        self.blocks: list[Block] = []
        self.variables, self.values = variables, values

    def input(self, name: str, variable: int, table: Tensor) -> int:
        scope = frozenset([variable])
        return self._add(Block(name, "input", (), _normal(_plain(table)), variable, scope, len(table)))

    def product(self, name: str, children: list[int]) -> int:
        scope = frozenset().union(*(self.blocks[c].scope for c in children))
        return self._add(Block(name, "product", tuple(children), (), -1, scope, self.blocks[children[0]].units))

    def sum(self, name: str, children: list[int], tables: list[Tensor]) -> int:
        """Children that are named twice are joined."""
        joined: dict[int, Tensor] = {}
        for child, table in zip(children, map(_plain, tables), strict=True):
            joined[child] = torch.logaddexp(joined[child], table) if child in joined else table
        scope = self.blocks[children[0]].scope
        weights = _normal(*joined.values())
        return self._add(Block(name, "sum", tuple(joined), weights, -1, scope, len(tables[0])))

    def _add(self, block: Block) -> int:
        self.blocks.append(block)
        return len(self.blocks) - 1


def _plain(table: Tensor) -> Tensor:
    """Float64 on the CPU, where the many small products of pairwise passes are fastest."""
    return table.detach().double().cpu()


def _normal(*tables: Tensor) -> tuple[Tensor, ...]:
    """Log weights whose rows together sum to one in float64, whatever precision they come from."""
    total = torch.cat(tables, -1).logsumexp(-1, keepdim=True)
    return tuple(table - total.where(total.isfinite(), torch.zeros_like(total)) for table in tables)


def _from_tree(made: _Maker, tree: Tree) -> None:
    """A variable's values are the units of one product block; a sum unit for each value of its parent."""
    values = tree.values
    indicator = torch.eye(values, dtype=torch.float64).log()
    below: dict[int, list[int]] = {}
    tops: list[int] = []
    for level in reversed(tree.plan.levels):
        for d in level.nodes.tolist():
            mine = made.product(f"p{d}", [made.input(f"x{d}", d, indicator), *below.pop(d, [])])
            parent = tree.plan.parents[d]
            table = tree.log_conditionals[d] if parent >= 0 else tree.log_conditionals[d, :1]
            node = made.sum(f"s{d}", [mine], [table])
            if parent >= 0:
                below.setdefault(parent, []).append(node)
            else:
                tops.append(node)
    if len(tops) > 1:
        made.product("root", tops)


def _from_layers(made: _Maker, circuit: Layered) -> None:
    """Blocks of one unit, called by the nodes of the graph that was compiled."""
    plan, place = circuit.plan, {}
    names = [str(name) for name in plan.names] or [f"node {i}" for i in range(1, plan.nodes)]
    for i, variable in enumerate(plan.leaf_variable.tolist()):
        place[i + 1] = made.input(names[i], variable, circuit.leaves[i : i + 1])
    position = len(place)
    for layer in plan.layers:
        for children, edges, real in zip(layer.children.tolist(), layer.edges, layer.real.tolist(), strict=True):
            position += 1
            below = [place[c] for c, there in zip(children, real, strict=True) if there]
            if layer.is_sum:
                weights = circuit.weights[edges[: len(below)]]
                place[position] = made.sum(names[position - 1], below, [w.reshape(1, 1) for w in weights])
            else:
                place[position] = made.product(names[position - 1], below)


def _from_regions(made: _Maker, circuit: Tensorised) -> None:
    """A block for each leaf, product and sum region."""
    graph, units = circuit.plan.graph, circuit.units
    weights: dict[int, Tensor] = {}
    for group, table in zip(circuit.plan.groups, circuit.weights, strict=True):
        weights |= {int(i): table[f] for f, i in enumerate(group.regions)}
    place = [made.input(f"leaf {i} of x{v}", v, circuit.leaves[i]) for i, v in enumerate(graph.leaves)]
    for i, products in enumerate(graph.sums):
        name = f"region {len(graph.leaves) + i}"
        below = [
            made.product(f"product {p} of {name}", [place[f] for f in product]) for p, product in enumerate(products)
        ]
        place.append(made.sum(name, below, list(weights[i].split(units, -1))))
