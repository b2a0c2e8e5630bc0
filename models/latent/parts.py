"""What a VAE takes for its parts: names of the zoo's, or a stranger's own modules and distributions."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.posteriors import POSTERIORS
from ppl_dgm.models.latent.priors import PRIORS

__all__ = ["make_posterior", "make_prior"]


class OwnPrior(nn.Module):
    """A stranger's prior: a distribution over z, or a module whose forward returns one.

    A distribution is kept as a copy that shares its tensors. They move with the program to another device or dtype; they
    are not learned and are no part of its state. Whether its values are checked follows `pyro.validation_enabled`, also
    where the distribution was made by `.expand`, which would write the setting of that moment into it: a check reads
    values, and so no graph of a step could be recorded.

    Arguments:
        given: the distribution, batch shape [] and event shape [latent], or the module.
    """

    needs_encoder = False

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given if isinstance(given, nn.Module) else _remade(given, lambda tensor: tensor)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OwnPrior":
        """What `.to`, `.double` and `.cuda` call; a distribution's tensors go along."""
        super()._apply(fn, recurse)
        if not isinstance(self.given, nn.Module):
            self.given = _remade(self.given, fn)
        return self

    def distribution(self, encode: Any = None) -> Any:
        """The density of z."""
        return self.given() if isinstance(self.given, nn.Module) else self.given


def _remade(part: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution, and of those inside it, with fn of every tensor and without a setting of its own to check."""
    if isinstance(part, Tensor):
        return fn(part)
    if type(part) in (list, tuple):
        return type(part)(_remade(inner, fn) for inner in part)
    if not isinstance(part, (Distribution, Transform)) or isinstance(part, nn.Module):
        return part
    made = copy.copy(part)
    made.__dict__.update({name: _remade(inner, fn) for name, inner in vars(made).items()})
    if made.__dict__.get("_validate_args"):
        del made.__dict__["_validate_args"]
    return made


def make_prior(prior: Any, latent: int, usual: str, observed: int, options: dict[str, Any]) -> Any:
    """The module of a prior that is named, or handed in.

    Arguments:
        prior: a name of `PRIORS`, a module with a method `distribution(encode=None)` (or `model(n)` and `guide(z)`, for one
            with latent sites of its own), a module whose forward returns a distribution, a distribution, or None.
        latent: dimensions of z.
        usual: the name that None stands for.
        observed: D, for priors that hold pseudo-inputs.
        options: of a named prior.

    Raises:
        ProgramError: the name is unknown, the options do not go with it, or it is none of these.
    """
    if prior is None or isinstance(prior, str):
        name = _known(prior or usual, PRIORS, "prior")
        inputs = {"observed": observed} if PRIORS[name].needs_encoder else {}
        return _made(PRIORS[name], "prior", name, latent, {**inputs, **options})
    _no_options("prior", options)
    if hasattr(prior, "distribution") or (hasattr(prior, "model") and hasattr(prior, "guide")):
        return prior
    if isinstance(prior, nn.Module) or (hasattr(prior, "log_prob") and hasattr(prior, "sample")):
        return OwnPrior(prior)
    raise ProgramError(
        f"prior is a {type(prior).__name__}; give a name ({', '.join(PRIORS)}), a distribution over z, or a module whose "
        "forward() or distribution(encode) returns one."
    )


def make_posterior(posterior: Any, latent: int, options: dict[str, Any]) -> Any:
    """The module of a posterior that is named, or handed in.

    Arguments:
        posterior: a name of `POSTERIORS`, or a module with `features`, the number of inputs [batch, features] from which its
            forward makes the distribution of z.
        latent: dimensions of z.
        options: of a named posterior.

    Raises:
        ProgramError: the name is unknown, the options do not go with it, or the module has no `features`.
    """
    if isinstance(posterior, str):
        name = _known(posterior, POSTERIORS, "posterior")
        return _made(POSTERIORS[name], "posterior", name, latent, options)
    _no_options("posterior", options)
    if not isinstance(posterior, nn.Module) or not isinstance(getattr(posterior, "features", None), int):
        raise ProgramError(
            f"posterior is a {type(posterior).__name__}; give a name ({', '.join(POSTERIORS)}), or a module with an attribute "
            "features, the number of inputs from which its forward makes the distribution of z."
        )
    return posterior


def _known(name: str, table: dict[str, Any], what: str) -> str:
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key not in table:
        raise ProgramError(
            f"{what} {name!r} is unknown; choose one of {', '.join(table)}, or give a module of your own."
        )
    return key


def _made(kind: Any, what: str, name: str, latent: int, options: dict[str, Any]) -> Any:
    try:
        return kind(latent, **options)
    except TypeError as error:
        raise ProgramError(f"{what}_options do not go with the {what} {name!r}: {error}.") from error


def _no_options(what: str, options: dict[str, Any]) -> None:
    if options:
        raise ProgramError(f"{what}_options are for a {what} that is named; give your own module its options yourself.")
