"""The networks that programs use."""

from .mlp import ACTIVATIONS, mlp

__all__ = ["ACTIVATIONS", "mlp"]
