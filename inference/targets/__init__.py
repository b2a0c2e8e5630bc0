"""Targets for comparing samplers: each a Pyro program with its data and what is known of its posterior.

The analytic ones have exact moments, evidence and draws; the others a stored long run with its standard errors;
`posteriordb` reads references from a folder of posteriordb.

    >>> target = funnel()
    >>> target.variance["v"]
    tensor(9., dtype=torch.float64)
"""

import difflib
from collections.abc import Callable

from ppl_dgm.errors import ProgramError

from . import posteriordb
from .analytic import (
    banana,
    beta_binomial,
    cauchy,
    far_modes,
    funnel,
    ill_conditioned_gaussian,
    linear_regression,
    normal_gamma,
)
from .books import bayesian_mixture, bayesian_network, bayesian_ppca
from .classics import (
    breast_cancer,
    eight_schools,
    eight_schools_centred,
    german_credit,
    item_response,
    radon,
    sparse_logistic,
    stochastic_volatility,
)
from .reference import reference_moments
from .target import Target, squared_bias

__all__ = [
    "TARGETS",
    "Target",
    "banana",
    "bayesian_mixture",
    "bayesian_network",
    "bayesian_ppca",
    "beta_binomial",
    "breast_cancer",
    "cauchy",
    "eight_schools",
    "eight_schools_centred",
    "far_modes",
    "find",
    "funnel",
    "german_credit",
    "ill_conditioned_gaussian",
    "item_response",
    "linear_regression",
    "normal_gamma",
    "posteriordb",
    "radon",
    "reference_moments",
    "sparse_logistic",
    "squared_bias",
    "stochastic_volatility",
]


def stochastic_volatility_2500() -> Target:
    """`stochastic_volatility` of 2500 days: 2503 coordinates."""
    return stochastic_volatility(days=2500)


# name -> a function that makes it
TARGETS: dict[str, Callable[..., Target]] = {
    "ill-conditioned-gaussian": ill_conditioned_gaussian,
    "banana": banana,
    "funnel": funnel,
    "far-modes": far_modes,
    "cauchy": cauchy,
    "beta-binomial": beta_binomial,
    "linear-regression": linear_regression,
    "normal-gamma": normal_gamma,
    "eight-schools": eight_schools,
    "eight-schools-centred": eight_schools_centred,
    "breast-cancer": breast_cancer,
    "german-credit": german_credit,
    "sparse-logistic": sparse_logistic,
    "item-response": item_response,
    "stochastic-volatility": stochastic_volatility,
    "stochastic-volatility-2500": stochastic_volatility_2500,
    "radon": radon,
    "bayesian-mixture": bayesian_mixture,
    "bayesian-ppca": bayesian_ppca,
    "bayesian-network": bayesian_network,
}


def find(name: str) -> Target:
    """The target of that name with its defaults; underscores, spaces and capitals do not matter.

    Raises:
        ProgramError: there is none; the message lists those that there are.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key not in TARGETS:
        close = difflib.get_close_matches(key, TARGETS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ProgramError(f"target {name!r} is unknown; {hint}there are: {', '.join(TARGETS)}.")
    return TARGETS[key]()
