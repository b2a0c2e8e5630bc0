"""Variational posteriors of latent-variable programs: from an encoder's features to a distribution, one file each."""

from .concrete import ConcretePosterior
from .full_gaussian import FullGaussianPosterior
from .gaussian import GaussianPosterior
from .gumbel_softmax import GumbelSoftmaxPosterior
from .householder import HouseholderPosterior
from .inverse_autoregressive import InverseAutoregressivePosterior
from .planar import PlanarPosterior
from .posterior import AmortisedPosterior
from .straight_through import StraightThroughPosterior
from .sylvester_householder import HouseholderSylvesterPosterior
from .sylvester_orthogonal import OrthogonalSylvesterPosterior
from .sylvester_triangular import TriangularSylvesterPosterior
from .von_mises_fisher import VonMisesFisherPosterior
from .wrapped_normal import WrappedNormalPosterior

__all__ = [
    "POSTERIORS",
    "AmortisedPosterior",
    "ConcretePosterior",
    "FullGaussianPosterior",
    "GaussianPosterior",
    "GumbelSoftmaxPosterior",
    "HouseholderPosterior",
    "HouseholderSylvesterPosterior",
    "InverseAutoregressivePosterior",
    "OrthogonalSylvesterPosterior",
    "PlanarPosterior",
    "StraightThroughPosterior",
    "TriangularSylvesterPosterior",
    "VonMisesFisherPosterior",
    "WrappedNormalPosterior",
]

POSTERIORS: dict[str, type[AmortisedPosterior]] = {
    "gaussian": GaussianPosterior,
    "full-gaussian": FullGaussianPosterior,
    "householder": HouseholderPosterior,
    "sylvester-orthogonal": OrthogonalSylvesterPosterior,
    "sylvester-householder": HouseholderSylvesterPosterior,
    "sylvester-triangular": TriangularSylvesterPosterior,
    "planar": PlanarPosterior,
    "inverse-autoregressive": InverseAutoregressivePosterior,
    "von-mises-fisher": VonMisesFisherPosterior,
    "wrapped-normal": WrappedNormalPosterior,
    "gumbel-softmax": GumbelSoftmaxPosterior,
    "straight-through": StraightThroughPosterior,
    "concrete": ConcretePosterior,
}
