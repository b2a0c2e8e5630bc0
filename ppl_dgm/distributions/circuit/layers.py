"""Any checked circuit compiled into layers of gathers and logsumexps: no Python per node at evaluation."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .evaluator import FLOOR, Pick, draw, in_chunks, log_or_floor, most_probable, restore_zero
from .structure import CircuitStructure, leaf_log_probs

__all__ = ["LayerPlan", "Layered", "compile_layers"]


@dataclass(frozen=True)
class Layer:
    """Nodes of one kind whose children lie in earlier layers; nodes with fewer children are padded.

    Attributes:
        is_sum: sums, or else products.
        children: [nodes, C] positions among the nodes; 0, a node of value 1, is the padding.
        edges: [nodes, C] positions among the weights; the one after the last, of weight 0, is the padding.
        real: [nodes, C] bool, False at the padding.
    """

    is_sum: bool
    children: Tensor
    edges: Tensor
    real: Tensor


@dataclass(frozen=True)
class LayerPlan:
    """A circuit's structure as index tensors.

    Attributes:
        leaf_variable: [I] the variable of each input node; inputs have the positions 1 to I.
        layers: children first.
        root: the root's position.
        nodes: how many nodes there are, the padding counted.
        edges: how many edges leave sum nodes.
        variables, values: D and K.
        overlap: why the circuit is not certified to be deterministic; None where it is.
        names: of the nodes in the order of their positions, from 1.
    """

    leaf_variable: Tensor
    layers: tuple[Layer, ...]
    root: int
    nodes: int
    edges: int
    variables: int
    values: int
    overlap: str | None
    names: tuple[Hashable, ...] = ()


def compile_layers(structure: CircuitStructure, device: torch.device | str = "cpu") -> tuple[LayerPlan, Tensor, Tensor]:
    """Sort a circuit into layers by height, sums and products apart.

    Returns:
        The plan; the inputs' log probabilities [I, K]; the log weights of the sums' edges [E]; both float64.
    """
    graph, kind = structure.graph, dict(structure.graph.nodes(data="kind"))
    leaves = [node for node in structure.order if kind[node] == "input"]
    position: dict[Hashable, int] = {node: i + 1 for i, node in enumerate(leaves)}
    height: dict[Hashable, int] = dict.fromkeys(leaves, 0)
    groups: dict[tuple[int, str], list[Hashable]] = {}
    for node in structure.order:
        if kind[node] != "input":
            height[node] = 1 + max(height[child] for child in graph.successors(node))
            groups.setdefault((height[node], kind[node]), []).append(node)
    layers: list[Layer] = []
    weights: list[float] = []
    for (_, node_kind), nodes in sorted(groups.items(), key=lambda group: group[0]):
        width = max(graph.out_degree(node) for node in nodes)
        children, edges = [], []
        for node in nodes:
            below = list(graph.successors(node))
            padding = [0] * (width - len(below))
            children.append([position[child] for child in below] + padding)
            edges.append([-1] * width)
            if node_kind == "sum":
                edges[-1][: len(below)] = range(len(weights), len(weights) + len(below))
                weights += [float(graph.edges[node, child].get("weight", 1 / len(below))) for child in below]
        for node in nodes:
            position[node] = len(position) + 1
        index = torch.tensor(children, device=device)
        layers.append(Layer(node_kind == "sum", index, torch.tensor(edges, device=device), index > 0))
    for i, layer in enumerate(layers):  # -1, the padding, becomes the position after the last weight
        layers[i] = replace(layer, edges=layer.edges.where(layer.edges >= 0, torch.tensor(len(weights), device=device)))
    plan = LayerPlan(
        torch.tensor([graph.nodes[node]["variable"] for node in leaves], device=device),
        tuple(layers),
        position[structure.root],
        len(position) + 1,
        len(weights),
        structure.variables,
        structure.values,
        structure.overlap,
        tuple(position),
    )
    tables = torch.stack([leaf_log_probs(graph, node, structure.values) for node in leaves]).to(device)
    return plan, tables, torch.tensor(weights, dtype=torch.float64, device=device).log()


@dataclass(frozen=True)
class Layered:
    """A circuit evaluated layer by layer in log space.

    Attributes:
        plan: the structure.
        leaves: [I, K] log probabilities of the inputs.
        weights: [E] log weights of the sums' edges.
    """

    plan: LayerPlan
    leaves: Tensor
    weights: Tensor

    @classmethod
    def from_logits(cls, plan: LayerPlan, leaf_logits: Tensor, sum_logits: Tensor) -> "Layered":
        """The circuit whose leaves and sum nodes have these unnormalised log weights, [I, K] and [E]."""
        padded = torch.cat([sum_logits, sum_logits.new_full((1,), -torch.inf)])
        weights = torch.zeros_like(padded)
        for layer in plan.layers:
            if layer.is_sum:
                normal = padded[layer.edges].log_softmax(-1)  # [nodes, C]
                weights = weights.index_put((layer.edges,), normal)
        return cls(plan, leaf_logits.log_softmax(-1), weights[:-1])  # the last one is the padding

    @property
    def variables(self) -> int:
        return self.plan.variables

    @property
    def values(self) -> int:
        return self.plan.values

    @property
    def overlap(self) -> str | None:
        return self.plan.overlap

    @property
    def tables(self) -> tuple[Tensor, ...]:
        return (self.leaves, self.weights)

    def with_tables(self, *tables: Tensor) -> "Layered":
        return replace(self, leaves=tables[0], weights=tables[1])

    def log_evidence(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed

        def chunk(x: Tensor, observed: Tensor) -> Tensor:
            return restore_zero(self._upward(self._leaf_values(x, observed))[:, self.plan.root])

        return in_chunks(chunk, self._size, x, observed)

    def log_event(self, allowed: Tensor) -> Tensor:
        def chunk(allowed: Tensor) -> Tensor:
            sets = allowed[:, self.plan.leaf_variable].to(self.leaves)  # [n, I, K]
            leaves = torch.einsum("ik,nik->ni", self.leaves.exp(), sets)
            return restore_zero(self._upward(log_or_floor(leaves))[:, self.plan.root])

        return in_chunks(chunk, max(self._size, self.leaves.numel()), allowed)

    def marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        frozen = self.with_tables(*(table.detach() for table in self.tables))
        return in_chunks(frozen._marginals, self._size, x, observed)

    def complete(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(lambda a, b: self._downward(a, b, torch.logsumexp, draw), self._size, x, observed)

    def maximise(self, x: Tensor, observed: Tensor) -> Tensor:
        return in_chunks(lambda a, b: self._downward(a, b, torch.amax, most_probable), self._size, x, observed)

    @property
    def _size(self) -> int:
        """Numbers per row in the largest intermediate tensor."""
        return max(
            [
                self.plan.nodes,
                self.variables * self.values,
                *(layer.children.numel() for layer in self.plan.layers),
            ]
        )

    def _leaf_values(self, x: Tensor, observed: Tensor, reduce: Callable[..., Tensor] = torch.logsumexp) -> Tensor:
        """Log value of each input: of the observed category, or all summed (to one) or maximised, [n, I]."""
        leaf, table = torch.arange(len(self.leaves), device=x.device), self.leaves.clamp(min=FLOOR)
        seen = table[leaf, x[:, self.plan.leaf_variable]]
        return torch.where(observed[:, self.plan.leaf_variable], seen, reduce(table, -1))

    def _upward(self, leaf_values: Tensor, reduce: Callable[..., Tensor] = torch.logsumexp) -> Tensor:
        """Log value of each node, [n, nodes]."""
        weights = torch.cat([self.weights, self.weights.new_full((1,), FLOOR)]).clamp(min=FLOOR)
        values = torch.cat([leaf_values.new_zeros(len(leaf_values), 1), leaf_values], -1)
        for layer in self.plan.layers:
            below = values[:, layer.children]  # [n, nodes, C]
            new = reduce(weights[layer.edges] + below, -1) if layer.is_sum else below.sum(-1)
            values = torch.cat([values, new], -1)
        return values

    def _marginals(self, x: Tensor, observed: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            leaf_values = self._leaf_values(x, observed).clone().requires_grad_()
            # Darwiche's differential approach:
            # d log p(e) / d log value of an input = probability that the input is in use
            flow = torch.autograd.grad(self._upward(leaf_values)[:, self.plan.root].sum(), leaf_values)[0]  # [n, I]
        use = flow[..., None] * self.leaves.exp()  # [n, I, K]
        missing = use.new_zeros(len(x), self.variables, self.values).index_add(1, self.plan.leaf_variable, use)
        known = torch.nn.functional.one_hot(x, self.values).to(missing)
        return torch.where(observed[..., None], known, missing)

    def _downward(self, x: Tensor, observed: Tensor, reduce: Callable[..., Tensor], pick: Pick) -> Tensor:
        """Pick a child of each sum from the root down, then a value from each variable's input, [n, D]."""
        values = self._upward(self._leaf_values(x, observed, reduce), reduce)
        weights = torch.cat([self.weights, self.weights.new_full((1,), FLOOR)]).clamp(min=FLOOR)
        reached = torch.zeros_like(values, dtype=torch.uint8)
        reached[:, self.plan.root] = 1
        end = self.plan.nodes
        for layer in reversed(self.plan.layers):
            start = end - len(layer.children)
            here = reached[:, start:end]  # [n, nodes]
            if layer.is_sum:
                choice = pick(weights[layer.edges] + values[:, layer.children])
                node = torch.arange(len(layer.children), device=x.device)
                target, signal = layer.children[node, choice], here
            else:
                target = layer.children.flatten().expand(len(x), -1)
                signal = here.repeat_interleave(layer.children.shape[1], 1)
            reached, end = reached.scatter_reduce(1, target, signal, "amax"), start
        leaf = (reached[:, 1:end] * torch.arange(1, end, device=x.device)).long()  # [n, I], 0 where not reached
        variable = self.plan.leaf_variable.expand(len(x), -1)
        used = torch.zeros_like(x).scatter_reduce(1, variable, leaf, "amax") - 1  # [n, D]: one input per variable
        return torch.where(observed, x, pick(self.leaves.clamp(min=FLOOR)[used]))
