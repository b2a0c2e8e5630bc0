"""Entropies, divergences, products, powers and information of circuits: what structure makes exact, else bounds."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import networkx as nx
import torch
from torch import Tensor

from ...errors import ProgramError, TaskUnavailable
from .blocks import Block, Blocks
from .pairs import CrossLog, Inner, PairPass
from .properties import Properties, properties_of

if TYPE_CHECKING:
    from .distribution import CircuitDistribution

__all__ = [
    "Bound",
    "cross_entropy",
    "entropy_bound",
    "kl",
    "log_inner",
    "log_power",
    "mutual_information",
    "pair_marginals",
    "power",
    "product",
]

_MOST_CELLS = 2**22  # D^2 K^2 of the pair marginals that an entropy bound computes unasked


@dataclass(frozen=True)
class Bound:
    """A number in nats that is known up to an interval.

    Attributes:
        lower, upper: what it lies between.

    >>> Bound(1.0, 1.0).exact
    True
    """

    lower: float
    upper: float

    @property
    def exact(self) -> bool:
        """Whether the interval is a point."""
        return self.lower == self.upper


def entropy_bound(p: "CircuitDistribution") -> Bound:
    """What -E[log p(x)] lies between, in nats; exact where p is deterministic.

        H(x | z) <= H(x) <= H(x, z),        z: which child of each sum is in use.

    The lower end is the larger of H(x | z) and -log E[p(x)] (where p is structured decomposable); the upper end the
    least of H(x, z) and the entropies of the independent and of the Chow-Liu tree law with p's marginals.

    Source: A. Vergari et al. (2021) for the exact case; T. Cover and J. Thomas (2006), chapter 2, for the bounds.
    """
    blocks = _blocks(p)
    if p.deterministic:
        exact = _entropy(blocks, choices=True)
        return Bound(exact, exact)
    lower, upper = _entropy(blocks, choices=False), _entropy(blocks, choices=True)
    with suppress(TaskUnavailable):  # of a circuit that is not structured decomposable
        lower = max(lower, -float(_inner(blocks, blocks, "")))
    if (p.event_shape[0] * p.values) ** 2 <= _MOST_CELLS:
        information = mutual_information(p).double()
        singles = information.diagonal().clone()
        tree = nx.maximum_spanning_tree(nx.from_numpy_array(information.fill_diagonal_(0).cpu().numpy()))
        upper = min(upper, float(singles.sum()) - tree.size(weight="weight"))
    return Bound(max(lower, 0.0), upper)


def cross_entropy(p: "CircuitDistribution", q: "CircuitDistribution") -> float:
    """-sum_x p(x) log q(x) in nats, exact; infinite where q is zero and p is not.

    Raises:
        TaskUnavailable: q is not certified to be deterministic, or the circuits are not compatible.
        ProgramError: they are over other variables or values.

    Source: A. Vergari et al. (2021), A compositional atlas of tractable circuit operations.
    """
    _same_space(p, q)
    if q.evaluator.overlap is not None:
        raise TaskUnavailable(
            f"the cross entropy -E_p[log q] needs a deterministic q, but {q.evaluator.overlap}; estimate it by "
            "-q.log_prob(p.sample((n,))).mean()."
        )
    walk = PairPass(_blocks(p), _blocks(q), "the cross entropy")
    log_mass, mean = walk.run(CrossLog())[walk.root]
    inside = float(log_mass[0, 0].exp())
    return -float(mean[0, 0]) if inside > 1 - 1e-9 else float("inf")


def kl(p: "CircuitDistribution", q: "CircuitDistribution") -> Bound:
    """KL(p || q) = -H(p) - E_p[log q] in nats; exact where both are deterministic, else p's entropy is bounded.

    Raises:
        TaskUnavailable: q is not deterministic, or the circuits are not compatible.
    """
    cross, entropy = cross_entropy(p, q), entropy_bound(p)
    return Bound(max(cross - entropy.upper, 0.0), max(cross - entropy.lower, 0.0))


def log_inner(p: "CircuitDistribution", q: "CircuitDistribution") -> float:
    """log sum_x p(x) q(x) of compatible circuits, exact.

    Raises:
        TaskUnavailable: the circuits are not compatible; the message names where.
    """
    _same_space(p, q)
    return float(_inner(_blocks(p), _blocks(q), "the product of two circuits"))


def product(p: "CircuitDistribution", q: "CircuitDistribution") -> "tuple[CircuitDistribution, float]":
    """p(x) q(x) / Z as a circuit, and log Z; its size is about that of p times that of q.

    Raises:
        TaskUnavailable: the circuits are not compatible, or no x is possible under both.
    """
    _same_space(p, q)
    walk = PairPass(_blocks(p), _blocks(q), "the product of two circuits")
    inner = walk.run(Inner())
    log_z = float(inner[walk.root][0, 0])
    if log_z == -torch.inf:
        raise TaskUnavailable("the product of the two circuits is zero for every x; it has no distribution.")
    made: list[Block] = []
    place: dict[object, int] = {}
    for pair, step in walk.steps.items():
        a, b = (circuit.blocks[names[0]] for circuit, names in zip(walk.circuits, pair, strict=True))
        if step.kind == "product" and len(step.needs) == 1:
            place[pair] = place[step.needs[0]]
            continue
        here, children = inner[pair], tuple(place[need] for need in step.needs)
        scope = frozenset().union(*(made[c].scope for c in children)) if children else a.scope
        if step.kind == "input":
            table = (a.tables[0][:, None] + b.tables[0] - here[..., None]).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
            tables: tuple[Tensor, ...] = (table.flatten(0, 1),)
        elif step.kind == "product":
            tables = ()
        else:
            assert step.block is not None
            below = zip(step.block.tables, (inner[need] for need in step.needs), strict=True)
            tables = tuple(_pair_weights(weight, there, here, step.kind == "first") for weight, there in below)
        kind = step.kind if step.kind in ("input", "product") else "sum"
        variable = a.variable if kind == "input" else -1
        place[pair] = len(made)
        made.append(Block(f"{kind} {len(made)}", kind, children, tables, variable, scope, here.numel()))
    made = made[: place[walk.root] + 1]
    return _as_circuit(p, Blocks(tuple(made), p.event_shape[0], p.values)), log_z


def log_power(p: "CircuitDistribution", alpha: float) -> float:
    """log sum_x p(x)^alpha, exact; see `power`."""
    return power(p, alpha)[1]


def power(p: "CircuitDistribution", alpha: float) -> "tuple[CircuitDistribution, float]":
    """p(x)^alpha / Z as a circuit, and log Z.

    A deterministic circuit has any power above 0, of its own size; a structured decomposable one those of whole
    exponents, of size S^alpha.

    Raises:
        ProgramError: alpha is not above 0.
        TaskUnavailable: the circuit's structure does not allow this exponent.
    """
    if not alpha > 0:
        raise ProgramError(f"alpha is {alpha}, but a power above 0 was expected.")
    if not p.deterministic:
        if alpha != int(alpha):
            raise TaskUnavailable(
                f"the power {alpha} needs a deterministic circuit, but {p.evaluator.overlap}; whole exponents need "
                "structured decomposability alone."
            )
        found, log_z = p, 0.0
        for _ in range(int(alpha) - 1):
            found, more = product(found, p)
            log_z += more
        return found, log_z
    blocks = _blocks(p)
    sizes: list[Tensor] = []  # log sum_x (unit)^alpha of each block, [S]
    made = []
    for block in blocks.blocks:
        tables = tuple(torch.where(t.isfinite(), alpha * t, t) for t in block.tables)
        if block.kind == "product":
            sizes.append(torch.stack([sizes[c] for c in block.children]).sum(0))
        else:
            if block.kind == "sum":
                tables = tuple(t + sizes[c] for c, t in zip(block.children, tables, strict=True))
            sizes.append(torch.cat(tables, -1).logsumexp(-1))
            tables = tuple((t - sizes[-1][:, None]).nan_to_num(nan=-torch.inf, neginf=-torch.inf) for t in tables)
        made.append(replace(block, tables=tables))
    return _as_circuit(p, replace(blocks, blocks=tuple(made))), float(sizes[-1][0])


def pair_marginals(p: "CircuitDistribution", x: Tensor, mask: Tensor, first: Tensor) -> Tensor:
    """p(x_i = j, x_d = k | observed entries), exact, by conditioning on each value of each x_i.

    Arguments:
        x, mask: [D], one row of evidence.
        first: [m] the variables i.

    Returns:
        [m, K, D, K].
    """
    values, count = p.values, len(first)
    single = p.marginals(x, mask)[first]  # [m, K]
    rows, seen = x.repeat(count * values, 1), mask.repeat(count * values, 1)
    index = first.repeat_interleave(values)
    row = torch.arange(len(rows), device=x.device)
    rows[row, index] = torch.arange(values, device=x.device).repeat(count)
    seen[row, index] = True
    possible = single.flatten() > 0
    joint = single.new_zeros(count * values, p.event_shape[0], values)
    joint[possible] = p.marginals(rows[possible], seen[possible]) * single.flatten()[possible, None, None]
    return joint.unflatten(0, (count, values))


def mutual_information(
    p: "CircuitDistribution", x: Tensor | None = None, mask: Tensor | None = None, target: int | None = None
) -> Tensor:
    """I(x_i; x_d | observed entries) in nats, exact: what observing x_d is expected to tell of x_i.

    Arguments:
        x, mask: [D], one row of evidence; default: nothing is observed.
        target: i; None: every variable.

    Returns:
        [D, D], with the entropies of single variables on the diagonal; with a target [D], its row. Zero for observed
        variables.
    """
    width, device = p.event_shape[0], p.evaluator.tables[0].device
    x = torch.zeros(width, dtype=torch.long, device=device) if x is None else x
    mask = torch.zeros(width, dtype=torch.bool, device=device) if mask is None else mask
    if target is not None and not 0 <= target < width:
        raise ProgramError(f"target is {target}, but the variables are numbered from 0 to {width - 1}.")
    first = torch.arange(width, device=device) if target is None else torch.tensor([target], device=device)
    joint = pair_marginals(p, x, mask, first).double()  # [m, K, D, K]
    own = joint.sum(-1)[:, :, :1]  # [m, K, 1]; any d tells p(x_i)
    other = joint.sum(1)  # [m, D, K]
    joint = torch.where(
        torch.arange(width, device=device)[:, None] == first[:, None, None, None], _diagonal(own), joint
    )
    found = torch.xlogy(joint, joint).sum((1, 3)) - torch.xlogy(own, own).sum(1) - torch.xlogy(other, other).sum(-1)
    return found.clamp(min=0) if target is None else found[0].clamp(min=0)


def _diagonal(own: Tensor) -> Tensor:
    """p(x_i = j, x_i = k), [m, K, 1, K]."""
    return torch.diag_embed(own[..., 0])[:, :, None]


def _entropy(blocks: Blocks, choices: bool) -> float:
    """The entropy of x and the choices at sums (exact H(x) where they are told by x), or of x given the choices."""
    found: list[Tensor] = []  # [S]
    for block in blocks.blocks:
        if block.kind == "input":
            found.append(-_xlogx(block.tables[0]).sum(-1))
        elif block.kind == "product":
            found.append(torch.stack([found[c] for c in block.children]).sum(0))
        else:
            weights = torch.cat(block.tables, -1)
            below = weights.exp() @ torch.cat([found[c] for c in block.children])
            found.append(below - _xlogx(weights).sum(-1) if choices else below)
    return float(found[-1][0])


def _xlogx(log: Tensor) -> Tensor:
    return torch.where(log.isfinite(), log.exp() * log, 0.0)


def _inner(p: Blocks, q: Blocks, purpose: str) -> Tensor:
    walk = PairPass(p, q, purpose)
    return walk.run(Inner())[walk.root][0, 0]


def _pair_weights(weight: Tensor, there: Tensor, here: Tensor, first: bool) -> Tensor:
    """Normalised log weights of a pair's sum over the pairs below, [S S', C S'] or [S S', S C]."""
    s, t = here.shape
    if first:  # unit (s, t) mixes (c, t)
        dense = weight[:, None, :, None] + there[None, None] - here[:, :, None, None]  # [S, S', C, S']
        same = torch.eye(t, dtype=torch.bool)[None, :, None]
    else:  # unit (s, t) mixes (s, c)
        dense = weight[None, :, None, :] + there[None, None] - here[:, :, None, None]  # [S, S', S, C]
        same = torch.eye(s, dtype=torch.bool)[:, None, :, None]
    dense = dense.nan_to_num(nan=-torch.inf, neginf=-torch.inf).masked_fill(~same, -torch.inf)
    return dense.reshape(s * t, -1)


def _as_circuit(like: "CircuitDistribution", blocks: Blocks) -> "CircuitDistribution":
    table = like.evaluator.tables[0]
    graph = blocks.to_graph(names=False)
    return type(like).from_graph(graph, blocks.values, dtype=table.dtype, device=table.device)


def _same_space(p: "CircuitDistribution", q: "CircuitDistribution") -> None:
    for what, a, b in (("variables", p.event_shape[0], q.event_shape[0]), ("values", p.values, q.values)):
        if a != b:
            raise ProgramError(f"the circuits have {a} and {b} {what}; compare circuits over the same {what}.")


def _blocks(p: "CircuitDistribution") -> Blocks:
    if p.observed is not None and not bool(p.observed.all()):
        raise TaskUnavailable(
            "this query is about all variables of a circuit, but the distribution is a marginal of some; ask the "
            "circuit that `marginal` was called on."
        )
    return Blocks.of(p.evaluator)


def describe(p: "CircuitDistribution") -> Properties:
    """What the circuit's structure is, from its nodes."""
    return properties_of(Blocks.of(p.evaluator), p.evaluator.overlap)
