"""Probabilistic circuits: every answer exact, in one or two passes."""
