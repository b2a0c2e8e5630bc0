"""A program's graph: found by running the program, asked by the rules of graphical models."""

from .structure import Structure, structure

__all__ = ["Structure", "structure"]
