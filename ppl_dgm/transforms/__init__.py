"""Bijections that Pyro lacks, or whose Pyro version cannot score new data safely: one file each."""

from .coupling import BoundedCoupling, coupling_network
from .histogram import HistogramQuantile
from .householder import Householder
from .inverse_autoregressive import InverseAutoregressive, autoregressive_network
from .planar import Planar
from .sylvester import Sylvester, bjorck

__all__ = [
    "BoundedCoupling",
    "HistogramQuantile",
    "Householder",
    "InverseAutoregressive",
    "Planar",
    "Sylvester",
    "autoregressive_network",
    "bjorck",
    "coupling_network",
]
