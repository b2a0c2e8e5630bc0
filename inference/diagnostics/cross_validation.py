"""Leave-one-out cross-validation of a posterior without refitting: PSIS-LOO by ArviZ, LOO-PIT, and WAIC."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.diagnostics.psis import psis, reliable_k
from ppl_dgm.results import Posterior, Score

__all__ = ["loo", "loo_weights", "waic"]

_JOINT = "observations"  # what several observed sites are called together
_NAMED = 3


def loo(posterior: Posterior, site: str | None = None, **kwargs: Any) -> Any:
    """See `Posterior.loo`."""
    import arviz

    chosen = _chosen(posterior, site)
    if posterior.log_weights is not None:
        weights = torch.softmax(posterior.log_weights.double(), 0)
        effective = float((1 / weights.square().sum(0)).min())
        kwargs.setdefault("reff", max(effective / len(weights), 1e-6))  # resampled draws look independent, and are not
        posterior = posterior.unweighted()
        chosen = _chosen(posterior, site)
    name, values = next(iter(chosen.items())) if len(chosen) == 1 else (_JOINT, _joined(chosen))
    data = _with_log_likelihood(posterior, {name: values})
    kwargs.setdefault("pointwise", True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        result = arviz.loo(data, var_name=name, **kwargs)
    _warn(result, chosen, values.shape[0] * values.shape[1])
    return result


def _with_log_likelihood(posterior: Posterior, values: dict[str, Tensor]) -> Any:
    from ppl_dgm.arviz_groups import from_groups

    draws = {name: draw for name, draw in posterior.draws.items() if draw.is_floating_point()} or posterior.draws
    return from_groups({"posterior": draws, "log_likelihood": values})


def _chosen(posterior: Posterior, site: str | None) -> dict[str, Tensor]:
    known = posterior.log_likelihood
    if not known:
        raise ProgramError("the program observes nothing for these arguments, so there is nothing to leave out.")
    if site is None:
        return known
    if site not in known:
        raise ProgramError(f"loo: there is no observed site {site!r}; there are {', '.join(map(repr, known))}.")
    return {site: known[site]}


def _joined(chosen: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten(2) if value.dim() > 2 else value[..., None] for value in chosen.values()], -1)


def _warn(result: Any, chosen: dict[str, Tensor], draws: int) -> None:
    k = getattr(result, "pareto_k", None)
    if k is None:
        return
    flat = torch.as_tensor(k.to_numpy() if hasattr(k, "to_numpy") else k).flatten()
    limit = reliable_k(draws)
    bad = (flat > limit).nonzero().flatten().tolist()
    if not bad:
        return
    names = _element_names(chosen)
    worst = sorted(bad, key=lambda i: -float(flat[i]))[:_NAMED]
    listed = ", ".join(f"{names[i]} ({float(flat[i]):.2f})" for i in worst)
    warnings.warn(
        f"{len(bad)} of {len(flat)} observations move the posterior so much that leaving them out cannot be imitated by "
        f"weighting: Pareto k exceeds {limit:.2f} for {listed}{' and others' if len(bad) > _NAMED else ''}; infer "
        "without these observations and score them, take more draws, or look whether the program can explain them.",
        RuntimeWarning,
        stacklevel=4,
    )


def _element_names(chosen: dict[str, Tensor]) -> list[str]:
    names = []
    for name, value in chosen.items():
        shape = value.shape[2:]
        if not shape:
            names.append(name)
            continue
        for index in torch.cartesian_prod(*(torch.arange(size) for size in shape)).reshape(-1, len(shape)).tolist():
            names.append(f"{name}[{', '.join(map(str, index))}]")
    return names


def loo_weights(log_likelihood: Tensor, log_weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Smoothed log weights that turn posterior draws into draws without one observation, for each observation.

    Arguments:
        log_likelihood: [draw, n].
        log_weights: [draw] of the draws themselves, if they have any.

    Returns:
        normalised log weights [draw, n], and the Pareto k of each observation, [n].
    """
    ratios = -log_likelihood.double()
    if log_weights is not None:
        ratios = ratios + log_weights.double()[:, None]
    smoothed, k = psis(ratios)
    return torch.log_softmax(smoothed, 0), k


def waic(posterior: Posterior, site: str | None = None) -> Score:
    """See `Posterior.waic`."""
    chosen = _chosen(posterior, site)
    values = _joined(chosen).flatten(0, 1).double()  # [draw, n]
    weights = posterior.log_weights
    if weights is not None and weights.dim() > 1:
        raise ProgramError("waic: each example has weights of its own; call it on posterior.unweighted().")
    log_w = torch.full((len(values),), -math.log(len(values))) if weights is None else torch.log_softmax(weights, 0)
    log_w = log_w.to(values)[:, None]
    density = (values + log_w).logsumexp(0)
    mean = (log_w.exp() * values).sum(0)
    spread = (log_w.exp() * (values - mean).square()).sum(0) * len(values) / max(len(values) - 1, 1)
    return Score(density - spread, "estimate", how=f"WAIC, p_waic = {float(spread.sum()):.2f}")
