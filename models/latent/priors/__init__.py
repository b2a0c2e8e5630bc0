"""Priors over the latent variables of a VAE: one a file, and the table of their names."""

from .autoregressive import AutoregressivePrior
from .categorical import CategoricalPrior
from .flow import FlowPrior
from .gtm import GTMPrior
from .gtm_vamp import GTMVampPrior
from .hierarchical import HierarchicalPrior
from .hyperbolic import HyperbolicPrior
from .mixture_of_gaussians import MixtureOfGaussiansPrior
from .prior import Prior
from .resampled import ResampledPrior
from .sphere import SpherePrior
from .standard import StandardPrior
from .vamp import VampPrior, WeightedVampPrior

__all__ = ["PRIORS", "Prior"]

PRIORS: dict[str, type[Prior]] = {
    "standard": StandardPrior,
    "mixture-of-gaussians": MixtureOfGaussiansPrior,
    "vamp": VampPrior,
    "weighted-vamp": WeightedVampPrior,
    "gtm": GTMPrior,
    "gtm-vamp": GTMVampPrior,
    "flow": FlowPrior,
    "autoregressive": AutoregressivePrior,
    "resampled": ResampledPrior,
    "hierarchical": HierarchicalPrior,
    "sphere": SpherePrior,
    "categorical": CategoricalPrior,
    "hyperbolic": HyperbolicPrior,
}
