"""Logical events over a circuit's variables and how probable they are: conjunctions, unions, one given another."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import DataError, ProgramError, TaskUnavailable
from .evaluator import in_double

if TYPE_CHECKING:
    from .distribution import CircuitDistribution

__all__ = ["Event", "allowed_values", "conditioned", "log_probability"]

Event = Mapping[int, Any] | Sequence[Mapping[int, Any]]
"""{variable: values}: every one of these variables has one of its values. A sequence of such: at least one of them
holds. Values are a category, a collection of categories, or K flags, True where the category is in the set."""

_MOST_TERMS = 4096
"""Different non-empty intersections of a union's members that are worth a pass each."""


def log_probability(p: "CircuitDistribution", event: Event, given: Event | None = None) -> Tensor:
    """log P(event | given) in nats, exact; a float64 scalar, differentiable in the circuit's parameters.

    A conjunction of sets takes one upward pass with each leaf replaced by the mass of its set. A union is the
    alternating sum over the intersections of its members, of which the empty ones are left out and equal ones are
    counted once.

    Raises:
        ProgramError: the event names an unknown variable or category.
        DataError: `given` has probability zero.
        TaskUnavailable: a union has too many intersections.

    Source: A. Vergari, N. Di Mauro and G. Van den Broeck (2019), Tractable probabilistic models, for the passes; J. Xu
    et al. (2018), A semantic loss function, for its use in learning: -log P(event).
    """
    given_members = _members(p, {} if given is None else given)
    both = (_members(p, event)[:, None] & given_members[None]).flatten(0, 1)
    condition = _log_union(p, given_members)
    if float(condition.detach()) == -torch.inf:
        raise DataError("given has probability zero under the circuit, so there is nothing to condition on.")
    return (_log_union(p, both) - condition).clamp(max=0.0)


def conditioned(p: "CircuitDistribution", event: Event) -> "CircuitDistribution":
    """The law of x given a conjunction of sets, as a circuit: draws, marginals and entropies given the event.

    Raises:
        TaskUnavailable: the event is a union.
        DataError: the event has probability zero.
    """
    members = _distinct(_members(p, event))
    if len(members) > 1:
        raise TaskUnavailable(
            f"the event is a union of {len(members)} conjunctions, whose law is no circuit of this form; condition on "
            "one {variable: values} at a time, or ask probability(event, given)."
        )
    if not len(members) or float(_log_union(p, members).detach()) == -torch.inf:
        raise DataError("the event has probability zero under the circuit, so there is nothing to condition on.")
    table = p.evaluator.tables[0]
    logits = table.new_zeros(members.shape[1], members.shape[2], members.shape[2])
    logits[:, 0] = logits[:, 0].masked_fill(~members[0], -torch.inf)
    return p.product(type(p).from_tree([-1] * members.shape[1], logits))[0]


def allowed_values(event: Mapping[int, Any], variables: int, values: int, device: Any = None) -> Tensor:
    """The categories that a conjunction allows each variable, [D, K] bool.

    Raises:
        ProgramError: an unknown variable or category.
    """
    allowed = torch.ones(variables, values, dtype=torch.bool, device=device)
    for variable, wanted in event.items():
        if isinstance(variable, bool) or not isinstance(variable, int) or not 0 <= variable < variables:
            raise ProgramError(
                f"the event names the variable {variable!r}, but the variables are numbered from 0 to {variables - 1}."
            )
        allowed[variable] = _flags(variable, wanted, values).to(allowed.device)
    return allowed


def _flags(variable: int, wanted: Any, values: int) -> Tensor:
    """[K] bool."""
    if not isinstance(wanted, Tensor):
        wanted = torch.as_tensor(list(wanted) if isinstance(wanted, Iterable) else wanted)
    if wanted.dtype == torch.bool:
        if wanted.shape != (values,):
            raise ProgramError(
                f"the event's flags for variable {variable} have shape {tuple(wanted.shape)}, but one for each of "
                f"{values} categories was expected."
            )
        return wanted
    chosen = wanted.flatten()
    wrong = (chosen < 0) | (chosen >= values) | (chosen != chosen.floor())
    if bool(wrong.any()):
        raise ProgramError(
            f"the event gives variable {variable} the value {chosen[wrong][0].item()}, but its categories are whole "
            f"numbers from 0 to {values - 1}."
        )
    flags = torch.zeros(values, dtype=torch.bool, device=chosen.device)
    flags[chosen.long()] = True
    return flags


def _members(p: "CircuitDistribution", event: Event) -> Tensor:
    """The conjunctions of a union, [m, D, K] bool."""
    members = [event] if isinstance(event, Mapping) else list(event)
    for member in members:
        if not isinstance(member, Mapping):
            raise ProgramError(
                f"the event is or contains a {type(member).__name__}, but {{variable: values}} or a list of these was "
                "expected."
            )
    size, device = (p.event_shape[0], p.values), p.evaluator.tables[0].device
    if not members:
        return torch.zeros(0, *size, dtype=torch.bool, device=device)
    return torch.stack([allowed_values(member, *size, device) for member in members])


def _distinct(members: Tensor) -> Tensor:
    """Without the empty ones, and those that another contains."""
    members = members[members.any(-1).all(-1)]
    if len(members) < 2:
        return members
    flat = members.flatten(1).unique(dim=0)
    outside = flat.double() @ (~flat).double().T  # [m, m]: how much of one is not in the other
    return flat[(outside == 0).sum(1) == 1].unflatten(1, members.shape[1:])  # each is in itself


def _log_union(p: "CircuitDistribution", members: Tensor) -> Tensor:
    """log P(at least one of the members), with the circuit normalised in float64."""
    masks, signs = _terms(_distinct(members))
    whole = torch.ones_like(members[:1]) if len(members) else members.new_ones(1, *members.shape[1:])
    log_mass = in_double(p.evaluator).log_event(torch.cat([whole, masks]))
    if not len(masks):
        return log_mass.new_tensor(-torch.inf)
    log_mass = log_mass[1:] - log_mass[0]
    largest = log_mass.detach().amax()
    if float(largest) == -torch.inf:
        return largest
    return ((log_mass - largest).exp() @ signs).clamp(min=0.0).log() + largest


def _terms(members: Tensor) -> tuple[Tensor, Tensor]:
    """The intersections of a union's members and what each counts in its probability, [t, D, K] bool and [t]."""
    masks, signs = members[:0], torch.zeros(0, dtype=torch.float64, device=members.device)
    for member in members:
        new = torch.cat([masks & member, member[None]])
        masks = torch.cat([masks, new])
        signs = torch.cat([signs, -signs, signs.new_ones(1)])
        kept = masks.any(-1).all(-1)
        found, place = masks[kept].flatten(1).unique(dim=0, return_inverse=True)
        signs = signs.new_zeros(len(found)).index_add(0, place, signs[kept])
        masks, signs = found[signs != 0].unflatten(1, members.shape[1:]), signs[signs != 0]
        if len(masks) > _MOST_TERMS:
            raise TaskUnavailable(
                f"the union of {len(members)} conjunctions has more than {_MOST_TERMS} different intersections; ask for "
                "fewer at once, or estimate it from draws: sample((n,))."
            )
    return masks, signs
