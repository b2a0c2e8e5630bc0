"""Metrics over samples and scores, and the baselines that need no network."""

from .baselines import ChowLiuTree, IndependentCategorical

__all__ = ["ChowLiuTree", "IndependentCategorical"]
