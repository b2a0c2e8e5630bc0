"""What a decoder's numbers say about x: one kind of likelihood a file, and the table of their names."""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...errors import ProgramError
from .autoregressive import AutoregressiveLikelihood
from .bernoulli import BernoulliLikelihood
from .categorical import CategoricalLikelihood
from .chained_logistic import ChainedLogisticLikelihood
from .discretised_logistic import DiscretisedLogisticLikelihood, LogisticMixtureLikelihood
from .gaussian import GaussianLikelihood
from .likelihood import Likelihood
from .mixed import MixedLikelihood

__all__ = ["LIKELIHOODS", "Likelihood", "make_likelihood"]

LIKELIHOODS: dict[str, type[Likelihood]] = {
    kind.name: kind
    for kind in (
        CategoricalLikelihood,
        BernoulliLikelihood,
        GaussianLikelihood,
        DiscretisedLogisticLikelihood,
        LogisticMixtureLikelihood,
        ChainedLogisticLikelihood,
        AutoregressiveLikelihood,
        MixedLikelihood,
    )
}


def make_likelihood(
    likelihood: Any,
    observed: int,
    values: int | None = None,
    floor: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The likelihood that is named, or handed in.

    Arguments:
        likelihood: a name of `LIKELIHOODS` ("categorical", "bernoulli", "gaussian", "discretised-logistic",
            "logistic-mixture", "chained-logistic", "autoregressive", "mixed"), or a module with what `Likelihood` has: `features`,
            `values`, `support`, `scaled`, `observation`, and a forward from features [batch, features] to the distribution of x.
        observed: D.
        values: V, for the kinds that count levels or categories.
        floor: the smallest scale; the kinds without a scale do not look at it. None is the kind's own default.
        options: of a named kind: `scale`, `components`, `columns`, `reach`, ...

    Raises:
        ProgramError: the name is unknown, the options do not go with it, or the module lacks something.

    Example:
        >>> make_likelihood("gaussian", observed=3, options={"scale": "decoder"}).features
        6
    """
    options = dict(options or {})
    if not isinstance(likelihood, str):
        return _own(likelihood, options)
    name = likelihood.lower().replace("_", "-").replace(" ", "-")
    if name not in LIKELIHOODS:
        raise ProgramError(
            f"likelihood {likelihood!r} is unknown; choose one of {', '.join(LIKELIHOODS)}, or give a module of your own."
        )
    known = inspect.signature(LIKELIHOODS[name]).parameters
    own = [option for option in known if option not in ("observed", "values")]
    for option in options:
        if option not in own:
            raise ProgramError(f"likelihood {name!r} has no option {option!r}; it has {', '.join(own) or 'none'}.")
    if floor is not None and "floor" in own:
        options.setdefault("floor", floor)
    return LIKELIHOODS[name](observed, values, **options)


def _own(likelihood: Any, options: dict[str, Any]) -> nn.Module:
    """A stranger's module, looked at."""
    if options:
        raise ProgramError(
            "likelihood_options are for a likelihood that is named; give your own module its options yourself."
        )
    if not isinstance(likelihood, nn.Module):
        raise ProgramError(
            f"likelihood is a {type(likelihood).__name__}; give a name ({', '.join(LIKELIHOODS)}), or a module like those."
        )
    missing = [
        part for part in ("features", "values", "support", "scaled", "observation") if not hasattr(likelihood, part)
    ]
    if missing:
        raise ProgramError(
            f"likelihood {type(likelihood).__name__} has no {missing[0]!r}; a likelihood of your own is best a subclass of "
            "ppl_dgm.nn.Likelihood."
        )
    return likelihood
