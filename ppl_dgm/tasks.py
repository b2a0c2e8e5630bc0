"""sample, score, infer, learn: the four verbs. Each prepares its arguments and hands over to an algorithm."""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from .batched import batched_runs
from .conditioning import Unobserve, check_given, fit_given
from .errors import DgmError, ProgramError, TaskUnavailable
from .program import Program, as_program
from .randomness import seeded
from .registry import resolve
from .results import Fit, Posterior, Score
from .tracing import sites

__all__ = ["evaluating", "infer", "learn", "predict", "sample", "score"]

_COORDINATES = 256  # of a program that is asked unbidden whether its posterior is a closed form


def sample(
    program: Any,
    n: int = 1,
    *args: Any,
    given: dict[str, Tensor] | None = None,
    seed: int | None = None,
    device: Any = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Draw from a program's joint distribution, x, z ~ p(x, z).

    Every site is drawn, also those that the program observes: what comes back is what the program believes before it has seen data.

    Arguments:
        program: a `Program` or any callable Pyro model.
        n: number of draws.
        *args, **kwargs: go to the model (a zoo program needs none).
        given: {site: value} to hold fixed, each of shape [n, *event] or [*event]; the rest is drawn forward from them. (Circuits and
            other programs with their own `simulate` condition on evidence instead.)
        seed, device: random seed; where to run.

    Returns:
        {site: tensor [n, *shape]}, latent, observed and deterministic sites alike.

    Raises:
        TaskUnavailable: a given site depends on sites that are not given, so that running forward is not conditioning.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def coin():
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     return pyro.sample("x", dist.Bernoulli(p))
        >>> sample(coin, 5, seed=0)["x"].shape
        torch.Size([5])
    """
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ProgramError(f"sample: n must be a positive number of draws, but it is {n!r}.")
    program = _placed(as_program(program), device)
    given = {name: torch.as_tensor(value, device=program.device) for name, value in (given or {}).items()}
    with torch.no_grad(), seeded(seed), program.running(), evaluating(program), _explained(program, args, kwargs):
        simulate = getattr(program, "simulate", None)
        if simulate is not None:
            return simulate(n, given=given or None)
        story = Unobserve()(program.run_model)
        if program.draws_n:
            kwargs = {**kwargs, "n": n}
            if given:
                given = fit_given(given, _values(story, *args, **kwargs), n, stacked=False)
                check_given(story, given, args, kwargs)
            return _values(poutine.condition(story, given), *args, **kwargs)
        return _stacked(story, n, given, args, kwargs)


def score(
    program: Any,
    *args: Any,
    method: Any = None,
    guide: Any = None,
    seed: int | None = None,
    device: Any = None,
    **kwargs: Any,
) -> Score:
    """The log density of observations, log p(x), in nats, and how exact it is.

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: the observations, and whatever else the model takes.
        method: an algorithm (`dgm.ImportanceWeighted(draws=5000)`) or its name; the program's own best answer by default.
        guide: a guide to use instead of the program's.
        seed, device: random seed; where to run.

    Returns:
        One value per example, [batch], or of shape [] for a program without a plate `data`, whose observations are one example.

    Raises:
        TaskUnavailable: the program has no density, or none that can be computed; the message names the nearest thing that works.
        DataError: the observations do not fit the program.
    """
    program = _placed(as_program(program, guide), device)
    args = _observations(program, args)
    with torch.no_grad(), seeded(seed), program.running(), evaluating(program), _explained(program, args, kwargs):
        method = method or program.default_method("score")
        if method is None and hasattr(program, "log_density"):
            return program.log_density(*args, **kwargs)
        algorithm = resolve(method or _scoring(program, args, kwargs))
        result = getattr(algorithm, "evidence", algorithm.run)(
            program, *args, **kwargs
        )  # the evidence alone, where that is cheaper
    if isinstance(result, Posterior):
        if result.log_evidence is None:
            raise TaskUnavailable(
                f"{result.how} gives a posterior but no evidence; try method='importance-weighted' with a guide."
            )
        return result.log_evidence
    return result


def infer(
    program: Any,
    *args: Any,
    method: Any = None,
    guide: Any = None,
    seed: int | None = None,
    device: Any = None,
    **kwargs: Any,
) -> Posterior:
    """The posterior over latent sites given observations, p(z | x).

    Arguments:
        program: a `Program` or any callable Pyro model.
        *args, **kwargs: the observations, and whatever else the model takes.
        method: an algorithm (`dgm.NUTS(chains=4)`) or its name. By default the exact posterior where the program knows it, else its
            guide, else enumeration of discrete sites, else the closed form of a conjugate or linear-Gaussian program (recognised
            up to 256 coordinates), else the No-U-Turn sampler. A learner (`dgm.SVI(guide="AutoNormal")`) fits the
            guide to these observations and draws from it.
        guide: a guide to use instead of the program's.
        seed, device: random seed; where to run.

    Returns:
        A `Posterior`.

    Raises:
        TaskUnavailable: nothing is latent, or the method cannot handle a site.
        DataError: the observations do not fit the program.
    """
    program = _placed(as_program(program, guide), device)
    args = _observations(program, args)
    with seeded(seed), program.running(), evaluating(program), _explained(program, args, kwargs):
        chosen = method or program.default_method("infer") or _inference(program, args, kwargs)
        try:
            result = resolve(chosen).run(program, *args, **kwargs)
        except TaskUnavailable as error:
            if method is not None or chosen != "nuts":
                raise
            result = _fall_back(error, program, args, kwargs)
        if isinstance(result, Fit):
            result = _drawn(result, args, kwargs)
    if not isinstance(result, Posterior):
        raise ProgramError(
            f"method {type(chosen).__name__} gives no posterior; infer needs a sampler, a learner of guides, or 'exact'."
        )
    result.program, result.arguments = program, (args, kwargs)
    return result


def learn(
    program: Any, data: Any, *args: Any, valid: Any = None, method: Any = None, guide: Any = None,
    seed: int | None = None, device: Any = None, **kwargs: Any,
) -> Fit:  # fmt: skip
    """Values for a program's parameters, given a data set.

    Arguments:
        program: a `Program` or any callable Pyro model; its parameters are changed in place.
        data: the observations [n, ...], or a `Dataset`, whose training and validation splits are used.
        *args, **kwargs: further arguments of the model.
        valid: observations for early stopping and for every other choice; never trained on. A tuple holds also the further arguments
            that have a row for each example, (x, y).
        method: an algorithm (`dgm.SVI(epochs=200, patience=20)`) or its name; the program's usual learner by default.
        guide: a guide to use instead of the program's.
        seed, device: random seed; where to run.

    Returns:
        A `Fit`, whose program holds the best parameters seen.

    Raises:
        DataError: the data do not fit the program; the row and the column or pixel are named. Raised before anything is learned.
        NumericalError: the objective left the finite numbers; the message names the site.
    """
    from .data import check_observations

    program = _placed(as_program(program, guide), device)
    if hasattr(data, "train") and hasattr(data, "valid"):
        if (
            program.observed is not None and not program.allows_missing
        ):  # the whole set at once, since it knows the names of its columns and pixels
            check_observations(data, observed=program.observed, support=program.support, site=program.site)
        data, valid = data.train, (data.valid if len(data.valid) else None) if valid is None else valid
    (data, *args_checked) = _observations(program, (data, *args))
    if valid is not None:
        several = isinstance(valid, tuple)
        checked = _observations(program, valid if several else (valid,), "valid")
        kwargs["valid"] = checked if several else checked[0]
    method = method or program.default_method("learn") or "svi"
    with seeded(seed), program.running(), _explained(program, (data, *args_checked), kwargs):
        result = resolve(method).run(program, data, *args_checked, **kwargs)
    if not isinstance(result, Fit):
        raise ProgramError(
            f"method {type(method).__name__} learns nothing; try one of 'svi', 'em', 'maximum-likelihood'."
        )
    return result


def predict(posterior: Posterior, *args: Any, seed: int | None = None, **kwargs: Any) -> dict[str, Tensor]:
    """Observed and deterministic sites drawn anew under each posterior draw, {site: [draw, *shape]}; see `Posterior.predict`."""
    program = posterior.program
    draws = {name: value.flatten(0, 1) for name, value in posterior.unweighted(seed).draws.items()}
    with torch.no_grad(), seeded(seed), program.running(), evaluating(program):
        story = Unobserve()(program.run_model)

        def run(fixed: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                k: v for k, v in _values(poutine.condition(story, fixed), *args, **kwargs).items() if k not in fixed
            }

        return _each(run, len(next(iter(draws.values()))), draws)


def _drawn(fit: Fit, args: tuple, kwargs: dict) -> Posterior:
    """Draws from a learned guide; learning it is part of what they cost."""
    begun = time.perf_counter()
    posterior = fit.posterior(*args, **kwargs)
    posterior.cost.seconds = fit.cost.seconds + time.perf_counter() - begun
    posterior.cost.compile_seconds += fit.cost.compile_seconds
    posterior.cost.gradients += fit.cost.gradients
    return posterior


# -- choosing a method -------------------------------------------------------------------------------------------------


def _latent(program: Program, args: tuple, kwargs: dict) -> dict[str, Any]:
    """{site: distribution} of what the program does not observe for these arguments."""
    from .inference.conjugate.factors import latent_distributions

    return latent_distributions(program, args, kwargs)


def _scoring(program: Program, args: tuple, kwargs: dict) -> Any:
    latent = _latent(program, args, kwargs)
    if all(fn.has_enumerate_support for fn in latent.values()):
        return "exact"
    if program.has_guide:
        return "importance-weighted"
    if (closed := _closed_form(latent, program, args, kwargs)) is not None:
        return closed
    raise TaskUnavailable(
        f"the density of {program.name!r} needs an integral over {', '.join(map(repr, latent))}; pass guide=... (for instance one that learn "
        "has fitted) for a lower bound, or method='simple-monte-carlo' for a rough estimate from the prior."
    )


def _fall_back(error: DgmError, program: Program, args: tuple, kwargs: dict) -> Any:
    """Pyro's own sampler, for programs that are no recordable density; what that refuses too is refused for the first reason."""
    warnings.warn(
        f"method 'nuts' cannot take this program, so Pyro's own, far slower, is tried: {error}",
        RuntimeWarning,
        stacklevel=3,
    )
    try:
        return resolve("pyro-nuts").run(program, *args, **kwargs)
    except DgmError:
        raise error from None


def _inference(program: Program, args: tuple, kwargs: dict) -> Any:
    if hasattr(program, "posterior"):
        return "exact"
    if program.has_guide:
        return "amortised"
    latent = _latent(program, args, kwargs)
    if not latent:
        raise TaskUnavailable(
            f"every site of {program.name!r} is observed for these arguments, so there is nothing to infer."
        )
    if all(fn.has_enumerate_support for fn in latent.values()):
        return "exact"
    return _closed_form(latent, program, args, kwargs) or "nuts"


def _closed_form(latent: dict[str, Any], program: Program, args: tuple, kwargs: dict) -> Any:
    """`Exact` for a program that is conjugate or linear-Gaussian, or None; only asked where asking is cheap."""
    if any(fn.has_enumerate_support for fn in latent.values()):
        return None
    from .inference.conjugate.conjugate_posterior import recognise_posterior
    from .inference.exact import Recognised

    found = recognise_posterior(program, *args, largest=_COORDINATES, **kwargs)
    return None if found is None else Recognised(found)


# -- preparing ---------------------------------------------------------------------------------------------------------


@contextmanager
def evaluating(program: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, fixed batch statistics) for a block; each module gets its own mode back."""
    modes = [(module, module.training) for module in program.modules()]
    program.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _explained(program: Program, args: tuple, kwargs: dict) -> Iterator[None]:
    """Turn what Pyro or torch raise about a broken program into the sentence that `check` finds for it."""
    try:
        yield
    except DgmError:
        raise
    except (ValueError, RuntimeError, IndexError, TypeError, AssertionError, NotImplementedError) as error:
        from .checking import explain

        sentence = explain(program, args, {k: v for k, v in kwargs.items() if k != "valid"}, error)
        if sentence is None:
            raise
        raise ProgramError(sentence) from error


def _placed(program: Program, device: Any) -> Program:
    return program if device is None else program.to(device)


def _observations(program: Program, args: tuple, name: str | None = None) -> tuple:
    """The arguments on the program's device, the first one checked against what the program says it observes."""
    from .data import check_observations

    if args and program.observed is not None:
        x, mark = args[0], -1.0
        holes = x.isnan() if program.allows_missing and isinstance(x, Tensor) else None
        if holes is not None:  # the holes are checked as if they held a zero
            if _allows_minus_one(program):
                mark = torch.nan
            else:
                holes = holes | (x == -1)
            x = torch.where(holes, torch.zeros_like(x), x)
        first = check_observations(x, observed=program.observed, support=program.support, site=name or program.site)
        if holes is not None and bool(holes.any()):
            first = torch.where(holes, torch.full_like(first, mark), first)
        args = (first, *args[1:])
    args = tuple(arg.to(program.device) if isinstance(arg, Tensor) else arg for arg in args)
    look = getattr(program, "check_arguments", None)
    return args if look is None else look(*args)


def _allows_minus_one(program: Program) -> bool:
    """Whether -1 is a value like any other in some column, so that only NaN can mark a hole."""
    return program.support is None or bool(program.support.check(torch.full((program.observed or 1,), -1.0)).any())


# -- running forward ---------------------------------------------------------------------------------------------------


def _values(story: Callable, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """One run: the values of all sample and deterministic sites (not of plates' subsampling or factors)."""
    trace = poutine.trace(story).get_trace(*args, **kwargs)
    return {name: node["value"] for name, node in sites(trace).items()}


def _stacked(story: Callable, n: int, given: dict[str, Tensor], args: tuple, kwargs: dict) -> dict[str, Tensor]:
    """n independent runs, stacked on the left: all at once where vmap can follow the program, else one after another."""
    first = _values(story, *args, **kwargs)  # with Pyro's checks on, so that a broken program fails with its own reason
    given = fit_given(given, first, n, stacked=True)
    if given:
        check_given(story, {name: value[0] for name, value in given.items()}, args, kwargs)

    def run(fixed: dict[str, Tensor]) -> dict[str, Tensor]:
        return _values(poutine.condition(story, fixed), *args, **kwargs)

    if n == 1 and not given:
        return {name: value[None] for name, value in first.items()}
    return _each(run, n, given)


def _each(run: Callable[[dict[str, Tensor]], dict[str, Tensor]], n: int, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """n runs, each with its own row of the given values, stacked on the left."""
    try:
        return batched_runs(run, n, given)
    except (
        RuntimeError,
        ValueError,
        NotImplementedError,
    ):  # Python branches on values, masks, operations without a batching rule
        runs = [run({name: value[i] for name, value in given.items()}) for i in range(n)]
    try:
        return {name: torch.stack([values[name] for values in runs]) for name in runs[0]}
    except (KeyError, RuntimeError):
        raise TaskUnavailable(
            "the sites or their shapes differ from run to run, so that draws cannot be stacked; draw with n=1."
        ) from None
