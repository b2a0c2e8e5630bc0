"""The zoo: one program per file, one folder per family; a program is imported when it is first named."""

import difflib
import importlib
from typing import Any

from ppl_dgm.errors import ProgramError

# program -> the module that defines it
_ZOO = {
    "Heights": "foundations.heights",
    "CoinTosses": "foundations.coin_tosses",
    "IIDSequence": "foundations.iid",
    "MarkovChain": "foundations.markov",
    "ChainTable": "foundations.chain_table",
    "GaussianClassifier": "foundations.gaussian_classifier",
    "LinearDiscriminant": "foundations.linear_discriminant",
    "QuadraticDiscriminant": "foundations.quadratic_discriminant",
    "NaiveBayes": "foundations.naive_bayes",
    "MixtureOfGaussians": "mixtures.gaussian",
    "MixtureOfCategoricals": "mixtures.categorical",
    "MixtureOfBernoullis": "mixtures.bernoulli",
    "MixtureOfPoissons": "mixtures.poisson",
    "MixtureOfStudents": "mixtures.student",
    "MixtureOfVonMisesFishers": "mixtures.von_mises_fisher",
    "MixtureOfMixedColumns": "mixtures.mixed",
    "ProbabilisticPCA": "latent.ppca",
    "FactorAnalysis": "latent.factor_analysis",
    "VAE": "latent.vae",
    "AdversarialAutoencoder": "latent.adversarial_autoencoder",
    "VQVAE": "latent.vqvae",
    "DensityNetwork": "latent.density_network",
    "TopDownVAE": "hierarchical.top_down",
    "BottomUpVAE": "hierarchical.bottom_up",
    "SelfVAE": "hierarchical.self_vae",
    "SigmoidBeliefNetwork": "hierarchical.sigmoid_belief_network",
    "SemiSupervisedVAE": "latent.semi_supervised",
    "HybridVAE": "latent.hybrid",
    "DomainInvariantVAE": "latent.domain_invariant",
    "SequenceVAE": "latent.sequence_vae",
    "RealNVP": "flows.realnvp",
    "RBM": "energy.rbm",
    "DiffusionChain": "diffusion.ddpm",
    "Circuit": "circuits.circuit",
    "BayesianNetwork": "graphical.bayesian_network",
    "HiddenMarkovModel": "graphical.hidden_markov",
    "LinearGaussianStateSpace": "graphical.state_space",
    "LatentDirichletAllocation": "graphical.lda",
    "FactorialMixture": "graphical.factorial_mixture",
}

# what else the families offer: programs whose examples share unknown parameters, so that one example has no answer of
# its own, and tools for particular programs
_BESIDES = {
    "BayesianHeights": "foundations.heights",
    "BayesianCoinTosses": "foundations.coin_tosses",
    "NGram": "foundations.ngram",
    "Rung": "foundations.ladder",
    "ladder": "foundations.ladder",
    "central_limit": "foundations.principles",
    "entropies": "foundations.principles",
    "maximum_entropy": "foundations.principles",
    "adversarial_noise": "foundations.adversarial",
    "mixture_of": "foundations.algebra",
    "product_of": "foundations.algebra",
    "transformed": "foundations.algebra",
    "composed": "foundations.algebra",
    "total_variance": "foundations.algebra",
    "BayesianMixture": "mixtures.bayesian",
    "BayesianPCA": "latent.bayesian_pca",
    "BayesianFactorAnalysis": "latent.bayesian_pca",
    "ConditionalVAE": "latent.conditional",
    "FairVAE": "latent.fair",
    "RegularisedAutoencoder": "latent.regularised_autoencoder",
    "BayesianNeuralNetwork": "latent.bayesian_neural_network",
    "LatentFeatureModel": "latent.latent_features",
    "DirichletProcessMixture": "mixtures.bayesian",
    "CollapsedMixtureGibbs": "mixtures.collapsed",
    "CollapsedTopicGibbs": "graphical.topic_gibbs",
    "MixtureEM": "mixtures.mode",
    "choose_components": "mixtures.choosing",
    "relabel": "mixtures.labels",
}

__all__ = [*_ZOO, *_BESIDES, "find", "names"]


def names() -> list[str]:
    """Names of all programs."""
    return list(_ZOO)


def find(name: str) -> Any:
    """The program class of that name (case, spaces, dashes and underscores do not matter).

    Raises:
        ProgramError: there is none; the message lists those that there are.
    """
    plain = {_plain(known): known for known in _ZOO}
    if _plain(name) not in plain:
        close = difflib.get_close_matches(_plain(name), plain, 1)
        hint = f"did you mean {plain[close[0]]}? " if close else ""
        raise ProgramError(f"model {name!r} is not in the zoo; {hint}there are: {', '.join(_ZOO)}.")
    return __getattr__(plain[_plain(name)])


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def __getattr__(name: str) -> Any:
    module = _ZOO.get(name) or _BESIDES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ZOO, *_BESIDES})
