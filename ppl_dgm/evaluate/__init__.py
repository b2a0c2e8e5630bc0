"""Metrics over samples and scores, and the baselines that need no network."""

from .baselines import ChowLiuTree, IndependentCategorical
from .tables import ReportCards, report_cards

__all__ = ["ChowLiuTree", "IndependentCategorical", "ReportCards", "report_cards"]
