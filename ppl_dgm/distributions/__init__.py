"""Distributions that Pyro lacks, one file (or folder) each."""

from .discretised_normal import DiscretisedNormal

__all__ = ["DiscretisedNormal"]
