"""Bijections that Pyro lacks, or whose Pyro version cannot score new data safely: one file each."""

from .coupling import BoundedCoupling, coupling_network
from .histogram import HistogramQuantile

__all__ = ["BoundedCoupling", "HistogramQuantile", "coupling_network"]
