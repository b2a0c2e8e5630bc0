"""Distributions that Pyro lacks, one file (or folder) each."""

from .bessel import log_bessel
from .chained_logistics import ChainedLogistics
from .columns import Columns
from .discrete_chain import DiscreteChain
from .discretised_logistic import DiscretisedLogistic, MixtureOfDiscretisedLogistics
from .discretised_normal import DiscretisedNormal
from .empirical import Empirical
from .finite_mixture import FiniteMixture
from .gaussian_chain import GaussianChain
from .joint_gaussian import conditional_gaussian, marginal_gaussian
from .pushforward import Pushforward
from .reflected_normal import ReflectedNormal
from .relaxed import Concrete, RelaxedCategories, StraightThroughGumbel
from .uniform_on_sphere import UniformOnSphere
from .von_mises_fisher import VonMisesFisher
from .word_counts import WordCounts
from .wrapped_normal import WrappedNormal

__all__ = [
    "ChainedLogistics",
    "Columns",
    "Concrete",
    "DiscreteChain",
    "DiscretisedLogistic",
    "DiscretisedNormal",
    "Empirical",
    "FiniteMixture",
    "GaussianChain",
    "MixtureOfDiscretisedLogistics",
    "Pushforward",
    "ReflectedNormal",
    "RelaxedCategories",
    "StraightThroughGumbel",
    "UniformOnSphere",
    "VonMisesFisher",
    "WordCounts",
    "WrappedNormal",
    "conditional_gaussian",
    "log_bessel",
    "marginal_gaussian",
]
