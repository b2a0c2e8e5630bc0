"""Diagnoses of latent-variable programs with amortised guides: what their codes say, cost and leave out."""

from .aggregate import PriorMatch, prior_match
from .decomposition import Information, Surgery, level_information, surgery
from .defence import Defence, defend
from .exploring import Neighbours, Walk, arithmetic, interpolate, neighbours, traverse
from .gaps import InferenceGaps, inference_gaps
from .report import LatentReport, diagnose_latents
from .robustness import Attack, attack
from .typicality import Novelty, novelty
from .units import LatentUnits, active_units

__all__ = [
    "Attack",
    "Defence",
    "InferenceGaps",
    "Information",
    "LatentReport",
    "LatentUnits",
    "Neighbours",
    "Novelty",
    "PriorMatch",
    "Surgery",
    "Walk",
    "active_units",
    "arithmetic",
    "attack",
    "defend",
    "diagnose_latents",
    "inference_gaps",
    "interpolate",
    "level_information",
    "neighbours",
    "novelty",
    "prior_match",
    "surgery",
    "traverse",
]
