"""Energy-based models: a density up to a constant, as an improper base times a factor."""

from .rbm import RBM

__all__ = ["RBM"]
