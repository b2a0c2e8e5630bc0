"""A circuit's own latent story: its hidden states and choices as Pyro sites that can be drawn, enumerated and sampled."""

from collections.abc import Callable
from typing import Any

import networkx as nx
import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

from ppl_dgm.distributions.circuit.blocks import Blocks
from ppl_dgm.distributions.circuit.entries import split_missing
from ppl_dgm.distributions.circuit.family_regions import FamilyRegions
from ppl_dgm.distributions.circuit.structure import check_structure, leaf_log_probs
from ppl_dgm.distributions.circuit.tree import Tree
from ppl_dgm.errors import TaskUnavailable

from .hidden_tree import hidden_tree_regions
from .regions import RegionParameters

__all__ = ["circuit_story"]

_MOST_CHOICES = 20

Story = Callable[..., Tensor]


def circuit_story(weights: Any) -> Story:
    """The program `story(x=None, n=1)` whose law of x is the circuit's, with one site for each variable and choice.

    - a tree: x_d | x_parent(d);
    - a hidden Chow-Liu tree: z_d | z_parent(d) and x_d | z_d, all Categorical;
    - any other circuit of at most 20 sums: a Categorical site for each sum, which of its children is in use, and x_d
      from the input that these choices lead to.

    The hidden sites are marked for parallel enumeration, and the present weights are taken.

    Arguments:
        weights: of a `Circuit`.

    Returns:
        A program of x [n, D] (entries of -1 or NaN: missing), or of n alone for draws. It returns x.

    Raises:
        TaskUnavailable: a mixture of several hidden trees, or more than 20 sums.

    Example:
        dgm.diagram(circuit.story(), n=1)
    """
    evaluator = weights.evaluator()
    if isinstance(evaluator, Tree):
        return _tree(evaluator)
    if isinstance(evaluator, FamilyRegions):
        raise TaskUnavailable("the story is told of circuits over categories, but the leaves are of other families.")
    if isinstance(weights, RegionParameters) and weights.graph is None:
        if len(weights.trees) > 1:
            raise TaskUnavailable(
                f"the circuit mixes {len(weights.trees)} hidden trees, whose states have no parents in common; the story "
                "is told of one (components=1)."
            )
        return _hidden_tree(weights)
    return _choices(Blocks.of(evaluator).to_graph(), evaluator.values, evaluator.tables[0].device)


def _tree(tree: Tree) -> Story:
    parents = tree.plan.parents
    order = [d for level in tree.plan.levels for d in level.nodes.tolist()]
    tables = tree.log_conditionals.detach()  # [D, K, K]

    def story(x: Tensor | None = None, n: int = 1) -> Tensor:
        """x_d | x_parent(d)."""
        data = _Data(x, len(parents))
        with pyro.plate("data", n if x is None else len(x)):
            found: dict[int, Tensor] = {}
            for d in order:
                logits = tables[d, 0] if parents[d] < 0 else Vindex(tables[d])[found[parents[d]]]
                found[d] = data.sample(d, logits, d in parents)
        return data.stacked(found)

    return story


def _hidden_tree(weights: RegionParameters) -> Story:
    circuit, parents = weights.evaluator(), weights.trees[0].tolist()
    place = {int(i): (g, f) for g, group in enumerate(circuit.plan.groups) for f, i in enumerate(group.regions)}
    places = hidden_tree_regions(weights.trees.tolist())[1]
    moves: dict[int, Tensor] = {}  # [S, S] of z_d given z_parent, [S] of the root
    order: list[int] = [parents.index(-1)]
    for d in order:
        order += [child for child, above in enumerate(parents) if above == d]
        group, f = place[places[0, d]] if parents[d] >= 0 else (len(circuit.weights) - 1, 0)
        table = circuit.weights[group][f].detach()
        moves[d] = table if parents[d] >= 0 else table[0]
    emissions = circuit.leaves.detach()  # [D, S, K]

    def story(x: Tensor | None = None, n: int = 1) -> Tensor:
        """z_d | z_parent(d) and x_d | z_d."""
        data = _Data(x, len(parents))
        with pyro.plate("data", n if x is None else len(x)):
            state: dict[int, Tensor] = {}
            found: dict[int, Tensor] = {}
            for d in order:
                logits = moves[d] if parents[d] < 0 else Vindex(moves[d])[state[parents[d]]]
                state[d] = pyro.sample(f"z_{d}", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
                found[d] = data.sample(d, Vindex(emissions[d])[state[d]])
        return data.stacked(found)

    return story


def _choices(graph: nx.DiGraph, values: int, device: torch.device) -> Story:
    structure = check_structure(graph, values)
    order = list(reversed(structure.order))
    sums = [node for node in order if graph.nodes[node]["kind"] == "sum" and graph.out_degree(node) > 1]
    if len(sums) > _MOST_CHOICES:
        raise TaskUnavailable(
            f"the circuit has {len(sums)} sums, and each would be a site of the story, which is told of at most "
            f"{_MOST_CHOICES}; draw a smaller circuit of the same structure."
        )
    tables = {n: leaf_log_probs(graph, n, values).exp().to(device) for n in order if graph.nodes[n]["kind"] == "input"}
    names = {node: f"z_{i}" for i, node in enumerate(sums)}
    shares = {s: torch.tensor([graph.edges[s, c]["weight"] for c in graph[s]], device=device).double() for s in sums}

    def story(x: Tensor | None = None, n: int = 1) -> Tensor:
        """A choice at each sum, and each variable from the input that the choices lead to."""
        data = _Data(x, structure.variables)
        with pyro.plate("data", n if x is None else len(x)):
            used: dict[Any, Tensor] = {structure.root: torch.ones((), dtype=torch.float64, device=device)}
            chance: dict[int, Tensor] = {}
            for node in order:
                children = list(graph.successors(node))
                if node in tables:
                    v = graph.nodes[node]["variable"]
                    chance[v] = chance.get(v, 0.0) + used[node][..., None] * tables[node]
                pick = None
                if node in names:
                    pick = pyro.sample(names[node], dist.Categorical(shares[node]), infer={"enumerate": "parallel"})
                for i, child in enumerate(children):
                    share = used[node] if pick is None else used[node] * (pick == i)
                    used[child] = used.get(child, 0.0) + share
            found = {v: data.sample(v, chance[v].log()) for v in range(structure.variables)}
        return data.stacked(found)

    return story


class _Data:
    """The rows that a story is conditioned on, if any."""

    def __init__(self, x: Tensor | None, variables: int) -> None:
        self.variables = variables
        self.rows = None if x is None else split_missing(x)

    def sample(self, d: int, logits: Tensor, has_children: bool = False) -> Tensor:
        """x_d; where others depend on it, a missing entry is the hidden site x_d_missing."""
        law = dist.Categorical(logits=logits)
        if self.rows is None:
            return pyro.sample(f"x_{d}", law)
        x, seen = (part[:, d] for part in self.rows)
        if bool(seen.all()):
            return pyro.sample(f"x_{d}", law, obs=x)
        value = pyro.sample(f"x_{d}", law.mask(seen), obs=x)
        if not has_children:
            return value
        # rows that are seen have the one value 0 here, which adds nothing to a sum over values
        nothing = torch.full_like(logits[..., :1, :] if logits.dim() > 1 else logits[None], -torch.inf)
        nothing[..., 0] = 0
        hidden = dist.Categorical(logits=torch.where(seen[:, None], nothing, logits))
        return torch.where(seen, x, pyro.sample(f"x_{d}_missing", hidden, infer={"enumerate": "parallel"}))

    def stacked(self, found: dict[int, Tensor]) -> Tensor:
        return torch.stack([found[d] for d in range(self.variables)], -1)
