"""How many nats each variable holds: its own entropy, and what its value tells to those who know the rest."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .evaluator import FLOOR, Evaluator, in_chunks, in_double
from .family_regions import FamilyRegions
from .tensorised import Tensorised, root_values
from .tree import Tree

if TYPE_CHECKING:
    from .distribution import CircuitDistribution

__all__ = ["information", "marginal_entropies"]

_WIDEST = 300.0
"""Nats between the units of a variable's leaves up to which one pass loses nothing in float64. Units are divided by
the best of their region, so one that is smaller by a factor of 1e-154 may be lost; e^300 times that is below 1e-16."""


def information(p: "CircuitDistribution", rows: Tensor, observed: Tensor | None) -> Tensor:
    """-log p(x_d | the other observed entries) of each entry, in nats, exact.

        -log p(x_d | x_rest) = log p(x_rest) - log p(x)

    A tree needs the neighbours of x_d alone. In a region circuit one pass up and one down answers for all d at once,
    since the units u of the leaves of d are in use with the probabilities that the downward pass gives,

        p(x_rest) / p(x) = sum_u p(u in use | x) / p_u(x_d).

    Elsewhere, and in rows in which that sum could lose a unit, x_d is summed out for one d after another.

    Arguments:
        p: the circuit.
        rows, observed: [n, D]; None: all observed.

    Returns:
        [n, D]: 0 where an entry is missing, infinite where it is impossible given the rest, NaN where the rest itself
        is impossible. Of a density where x is continuous.

    Source: A. Darwiche (2003), A differential approach to inference in Bayesian networks.
    """
    circuit, dtype = p.evaluator, p.evaluator.tables[0].dtype
    with torch.no_grad():
        if isinstance(circuit, Tree) and observed is None:
            found = in_chunks(lambda x: _of_tree(in_double(circuit), x), circuit.variables * circuit.values, rows)
            observed = torch.ones_like(rows, dtype=torch.bool)
        else:
            observed = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
            if isinstance(circuit, (Tensorised, FamilyRegions)):
                found = in_chunks(partial(_of_regions, circuit), circuit.size, rows, observed)
            else:
                found = torch.full(rows.shape, torch.nan, dtype=torch.float64, device=rows.device)
        unsafe = ~found.isfinite().all(1)
        if bool(unsafe.any()):
            found[unsafe] = _one_by_one(_careful(circuit), rows[unsafe], observed[unsafe])
    return found.to(dtype)


def marginal_entropies(p: "CircuitDistribution", rows: Tensor, observed: Tensor) -> Tensor:
    """H(x_d | observed entries) of each variable in nats, exact, [n, D]; 0 for an observed one."""
    table = p.evaluator.marginals(rows, observed)  # [n, D, K]
    return torch.where(observed, 0.0, -torch.xlogy(table, table).sum(-1))


def _of_tree(tree: Tree, x: Tensor) -> Tensor:
    """From the parent and the children of each variable; complete rows [n, D]."""
    plan, table = tree.plan, tree.log_conditionals
    variable = torch.arange(tree.variables, device=x.device)
    score = table[variable, x[:, plan.parent].masked_fill(plan.is_root, 0)]  # [n, D, K]: x_d = k given the parent
    sent = table.transpose(1, 2)[variable, x].masked_fill(plan.is_root[:, None], 0.0)  # ... of the child, by its parent
    score = score.index_add(1, plan.parent, sent)
    return score.logsumexp(-1) - score.gather(-1, x[..., None])[..., 0]


def _of_regions(circuit: Tensorised | FamilyRegions, x: Tensor, observed: Tensor) -> Tensor:
    """By the downward pass; NaN in rows for which that is not safe."""
    weights, variable = tuple(weight.detach().double() for weight in circuit.weights), circuit.plan.leaf_variable
    leaves = circuit.leaf_values(x, observed).detach().double()  # [L, n, S]
    with torch.inference_mode(False), torch.enable_grad():
        leaves = leaves.clone().requires_grad_()
        value = root_values(circuit.plan, leaves, weights)
        use = torch.autograd.grad(value.sum(), leaves)[0]
    leaves, value = leaves.detach(), value.detach()
    empty = leaves.new_zeros(circuit.variables, len(x))
    index = variable[:, None].expand(-1, len(x))
    top = empty.scatter_reduce(0, index, leaves.amax(-1), "amax", include_self=False)  # [D, n]
    low = empty.scatter_reduce(0, index, leaves.amin(-1), "amin", include_self=False)
    share = (use * (top[variable, :, None] - leaves).exp()).sum(-1)
    found = torch.where(observed.T, empty.index_add(0, variable, share).log() - top, 0.0)
    safe = ((top - low) <= _WIDEST).all(0) & (value > FLOOR / 2)
    return torch.where(safe, found, torch.nan).T


def _careful(circuit: Evaluator | FamilyRegions) -> Evaluator:
    """The same in float64; leaves of families keep their type, as their parameters are no logarithms."""
    if isinstance(circuit, FamilyRegions):
        return replace(circuit, weights=tuple(weight.double() for weight in circuit.weights))  # type: ignore[return-value]
    return in_double(circuit)


def _one_by_one(circuit: Evaluator, rows: Tensor, observed: Tensor) -> Tensor:
    """Each variable summed out in turn."""
    width = circuit.variables
    own = torch.eye(width, dtype=torch.bool, device=rows.device)

    def chunk(x: Tensor, observed: Tensor) -> Tensor:
        rest = (observed[:, None] & ~own).flatten(0, 1)  # [n D, D]
        without = circuit.log_evidence(x.repeat_interleave(width, 0), rest).unflatten(0, (-1, width))
        return torch.where(observed, without - circuit.log_evidence(x, observed)[:, None], 0.0)

    return in_chunks(chunk, width * width, rows, observed)
