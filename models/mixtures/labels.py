"""relabel: undo label switching in posterior draws of a mixture, and report how much of it there was."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.results import Posterior

__all__ = ["relabel", "reordered"]

_ROUNDS = 20


def relabel(
    posterior: Posterior, sites: Sequence[str], assignments: Sequence[str] = (), pivot: int | None = None
) -> Posterior:
    """The same posterior with each draw's components in the order that fits one draw, the pivot, best.

    A mixture's posterior is the same under every order of its components, so a chain may pass from one to another, and
    two chains may have settled on different ones: means over draws and R-hat then say nothing. Each draw's components
    are permuted to the least total squared distance from the pivot's (the assignment problem), coordinates divided by
    their standard deviation over all components and draws. Then distances are from each component's mean over draws, its
    coordinates divided by its own standard deviations, so that those which tell components apart count most, until no
    draw changes. That is reliable where components are separated.

    Arguments:
        posterior: draws [chain, draw, K, ...] of each of `sites`.
        sites: sites whose first axis is the components; those of them that are deterministic are permuted too.
        assignments: sites whose values are labels 0, ..., K - 1; they are renamed.
        pivot: index of a draw in [chain, draw] flattened; by default the one of highest `stats["lp"]`, else the last.

    Returns:
        A new Posterior. `how` says how many draws were permuted; `stats["relabelled"]` [chain, draw] says which.

    Raises:
        ProgramError: a site is unknown, or sites have different numbers of components.

    Source: J. Marin, K. Mengersen and C. Robert (2005), Bayesian modelling and inference on mixtures of distributions;
    M. Stephens (2000), Dealing with label switching in mixture models, for the rounds.

    Example:
        >>> import torch
        >>> from ppl_dgm.results import Posterior
        >>> draws = torch.tensor([[[-3.0, 3.0], [3.1, -2.9], [-3.2, 2.8]]])  # [1, 3, 2]
        >>> relabel(Posterior({"means": draws}), ["means"]).draws["means"].round()
        tensor([[[-3.,  3.],
                 [-3.,  3.],
                 [-3.,  3.]]])
    """
    known = {**posterior.deterministic, **posterior.draws}
    for name in (*sites, *assignments):
        if name not in known:
            raise ProgramError(f"the posterior has no site {name!r}; it has {', '.join(known)}.")
    sizes = {name: known[name].shape[2] if known[name].dim() > 2 else 0 for name in sites}
    if not sites or len(set(sizes.values())) != 1:
        raise ProgramError(f"sites must all have the components as their first axis, but their sizes are {sizes}.")
    chains, draws = known[sites[0]].shape[:2]
    table = torch.cat([_coordinates(known[name]) for name in sites], -1)  # [draw, K, coordinates]
    if pivot is None:
        lp = posterior.stats.get("lp")
        pivot = len(table) - 1 if lp is None else int(lp.flatten().argmax())
    orders = _matched(torch.cdist(table[pivot].expand(len(table), -1, -1), table).square())
    for _ in range(_ROUNDS):
        before, ordered_table = orders, table.gather(1, orders.to(table.device).unsqueeze(-1).expand_as(table))
        centre, spread = ordered_table.mean(0), ordered_table.var(0, correction=0)  # [K, coordinates]
        spread = spread.clamp_min(1e-12)
        distance = [((table - c) ** 2 / v).sum(-1) for c, v in zip(centre, spread, strict=True)]  # [draw, K] each
        orders = _matched(torch.stack(distance, 1))
        if torch.equal(orders, before):
            break
    moved = (orders != torch.arange(orders.shape[1])).any(-1)
    orders = orders.to(table.device)

    def ordered(name: str, value: Tensor) -> Tensor:
        flat = value.flatten(0, 1)
        if name in sites:
            index = orders.reshape(*orders.shape, *[1] * (flat.dim() - 2)).expand_as(flat)
            return flat.gather(1, index).reshape(value.shape)
        if name in assignments:
            renamed = orders.argsort(-1).gather(1, flat.flatten(1).long())
            return renamed.to(value.dtype).reshape(value.shape)
        return value

    return replace(
        posterior,
        draws={name: ordered(name, value) for name, value in posterior.draws.items()},
        deterministic={name: ordered(name, value) for name, value in posterior.deterministic.items()},
        exact=None,
        stats={**posterior.stats, "relabelled": moved.reshape(chains, draws)},
        how=f"{posterior.how}; {int(moved.sum())} of {len(moved)} draws relabelled",
    )


def _matched(distance: Tensor) -> Tensor:
    """Which component of each draw is each of the pivot's, at the least total distance, [draw, K, K] -> [draw, K]."""
    return torch.stack([torch.as_tensor(linear_sum_assignment(one)[1]) for one in distance.cpu().numpy()])


def reordered(posterior: Posterior, sites: Sequence[str], assignments: Sequence[str], order: Tensor) -> Posterior:
    """The same posterior with the components in one other order in every draw.

    Arguments:
        sites, assignments: as in `relabel`.
        order: [K], which component comes first, second, ...
    """

    def ordered(name: str, value: Tensor) -> Tensor:
        if name in sites:
            return value.index_select(2, order.to(value.device))
        return order.argsort().to(value.device)[value.long()].to(value.dtype) if name in assignments else value

    return replace(
        posterior,
        draws={name: ordered(name, value) for name, value in posterior.draws.items()},
        deterministic={name: ordered(name, value) for name, value in posterior.deterministic.items()},
        exact=None,
    )


def _coordinates(value: Tensor) -> Tensor:
    """[chain, draw, K, ...] -> [draw, K, coordinates], each coordinate of unit spread over draws and components."""
    flat = value.flatten(0, 1).double()
    flat = flat.reshape(*flat.shape[:2], -1)
    spread = flat.flatten(0, 1).std(0, correction=0)
    return flat / torch.where(spread > 0, spread, 1.0)
