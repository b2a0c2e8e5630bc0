"""Which parameters a circuit's structure asks for, and what a structure has no use for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributions import constraints

from ppl_dgm.distributions.circuit.families import LeafFamily, leaf_family
from ppl_dgm.distributions.circuit.regions import RegionGraph
from ppl_dgm.errors import ProgramError

from .family_regions import FamilyRegionParameters
from .found import FOUND_STRUCTURES, FoundParameters
from .graph import GraphParameters, graph_from_json
from .region_structures import REGION_STRUCTURES, regions_named
from .regions import RegionParameters
from .tree import STRUCTURES, TreeParameters

__all__ = ["CircuitWeights", "common_support", "weights_of"]

CircuitWeights = TreeParameters | GraphParameters | RegionParameters
"""Tables of a tree, weights of a graph (also of one found in the data), weights and leaves of regions."""


def weights_of(
    structure: str | dict[str, Any],
    observed: int,
    values: int,
    pseudo_count: float | None,
    units: int,
    components: int,
    shape: Sequence[int] | None,
    options: dict[str, Any] | None,
    smoothing: float,
    leaf: Any,
) -> CircuitWeights:
    """The parameters of a circuit; the arguments are those of `Circuit`.

    Raises:
        ProgramError: an argument does not go with the structure.
    """
    _check_options(structure, components, shape, options)
    if not (isinstance(leaf, str) and leaf == "categorical"):
        if smoothing:
            raise ProgramError(f"smoothing is of tables, but leaf is {leaf!r}; leave smoothing out.")
        regions = None if structure == "hclt" else _regions_for(structure, observed, shape, options, leaf)
        families = _families(leaf, observed, values)
        return FamilyRegionParameters(families, regions, units, components, pseudo_count)
    added = values / 10 if pseudo_count is None else pseudo_count
    if structure == "hclt":
        return RegionParameters(observed, values, None, units, components, added, smoothing)
    if isinstance(structure, str) and structure in REGION_STRUCTURES:
        regions = regions_named(structure, observed, shape, options)
        return RegionParameters(observed, values, regions, units, 1, added, smoothing)
    if isinstance(structure, str) and structure in FOUND_STRUCTURES:
        return FoundParameters(observed, values, structure, pseudo_count, options)
    if isinstance(structure, str):
        return TreeParameters(observed, values, structure, pseudo_count)
    weights = GraphParameters(graph_from_json(structure), values, pseudo_count)
    if weights.structure.variables != observed:
        found = weights.structure.variables
        raise ProgramError(f"the graph has {found} variables, but observed is {observed}; make them agree.")
    return weights


def _check_options(structure: Any, components: int, shape: Any, options: Any) -> None:
    """Options that the structure has no use for are refused, not ignored."""
    known = (*STRUCTURES, "hclt", *REGION_STRUCTURES, *FOUND_STRUCTURES)
    if isinstance(structure, str) and structure not in known:
        raise ProgramError(f"structure is {structure!r}, but one of {', '.join(known)} or a graph was expected.")
    if components > 1 and structure != "hclt":
        raise ProgramError(f"components is {components}, but structure {structure!r} has one; 'hclt' takes several.")
    regions = isinstance(structure, str) and structure in REGION_STRUCTURES
    if shape is not None and not regions:
        raise ProgramError(f"shape is {shape!r}, but structure {structure!r} cuts no images; leave it out.")
    if options and not (regions or (isinstance(structure, str) and structure in FOUND_STRUCTURES)):
        raise ProgramError(f"options is {options!r}, but structure {structure!r} takes none; leave them out.")


def _families(leaf: Any, observed: int, values: int) -> list[LeafFamily]:
    """One for each variable."""
    if isinstance(leaf, (list, tuple)):
        if len(leaf) != observed:
            raise ProgramError(
                f"leaf lists {len(leaf)} families, but there are {observed} variables; give one for each."
            )
        return [leaf_family(one, values) for one in leaf]
    return [leaf_family(leaf, values)] * observed


def _regions_for(structure: Any, observed: int, shape: Any, options: Any, leaf: Any) -> RegionGraph:
    """The region graph of a circuit with leaves of other families than tables."""
    if not isinstance(structure, str) or structure not in REGION_STRUCTURES:
        named = structure if isinstance(structure, str) else "a graph"
        raise ProgramError(
            f"structure {named!r} is over categories alone, but leaf is {leaf!r}; take structure='hclt' or one of "
            f"{', '.join(REGION_STRUCTURES)}."
        )
    return regions_named(structure, observed, shape, options)


def common_support(families: Sequence[LeafFamily]) -> constraints.Constraint | None:
    """What every entry is checked against before a verb runs; None where each variable is checked against its own."""
    support = families[0].support
    same = all(family is families[0] or family == families[0] for family in families)
    return support if same and bool(support.check(torch.zeros(()))) else None
