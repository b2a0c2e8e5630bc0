"""Probabilistic circuits: tractable distributions over categorical variables, as one Pyro site."""

from .completion import Completion
from .distribution import CircuitDistribution
from .properties import Properties
from .queries import Bound
from .structure import CircuitStructure, check_structure
from .tree import tree_graph

__all__ = [
    "Bound",
    "CircuitDistribution",
    "CircuitStructure",
    "Completion",
    "Properties",
    "check_structure",
    "tree_graph",
]
