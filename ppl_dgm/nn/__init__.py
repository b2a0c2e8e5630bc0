"""The networks that programs use."""

from .likelihood import LIKELIHOODS, Likelihood
from .mlp import ACTIVATIONS, mlp

__all__ = ["ACTIVATIONS", "LIKELIHOODS", "Likelihood", "mlp"]
