"""Probabilistic circuits: tractable distributions over categorical variables, as one Pyro site."""

from .distribution import CircuitDistribution
from .structure import CircuitStructure, check_structure
from .tree import tree_graph

__all__ = ["CircuitDistribution", "CircuitStructure", "check_structure", "tree_graph"]
