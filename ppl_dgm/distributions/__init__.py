"""Distributions that Pyro lacks, one file (or folder) each."""

from .bessel import log_bessel
from .discretised_normal import DiscretisedNormal
from .von_mises_fisher import VonMisesFisher

__all__ = ["DiscretisedNormal", "VonMisesFisher", "log_bessel"]
