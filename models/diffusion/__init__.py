"""Diffusion models: the data are noised step by step, and the steps are undone."""

from .ddpm import DiffusionChain

__all__ = ["DiffusionChain"]
