"""What the methods that put a distribution beside a LogDensity share: weighted draws, costs, checks of options."""

import time
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.diagnostics.psis import psis
from ppl_dgm.inference.importance import evidence, k_in_words, shape_statistic
from ppl_dgm.results import Cost, Posterior

__all__ = ["require_counts", "spent", "weighted"]


def weighted(density: LogDensity, z: Tensor, log_weights: Tensor, how: str, correct: bool) -> Posterior:
    """A `Posterior` of draws of an approximation with their importance weights.

    Arguments:
        z: the draws in R^d, [draw, d].
        log_weights: log p(x, z) - log q(z), [draw]; NaN counts as no weight.
        how: the approximation, in words.
        correct: keep the weights, Pareto-smoothed; else only their shape is reported.

    Returns:
        a posterior with draws {site: [1, draw, *shape]}, the evidence that the raw weights estimate, and the statistic
        `pareto_k` [1, draw].
    """
    log_weights = log_weights.nan_to_num(nan=-torch.inf)
    smoothed, k = psis(log_weights)
    sites, deterministic = density.constrain(z[None])
    trust = k_in_words(k, len(z)) if len(z) >= 21 else "too few draws for a Pareto k"
    summed = [repr(name) for name in density.summed[:3]] + ["..."] * (len(density.summed) > 3)
    left_out = f"; {', '.join(summed)} summed out, so without draws" if summed else ""
    return Posterior(
        sites,
        deterministic=deterministic,
        log_weights=smoothed if correct else None,
        log_evidence=evidence(log_weights, f"importance sampling from the {how}"),
        stats=shape_statistic(k, len(z)),
        how=f"{how}, {trust}{left_out}",
    )


def spent(density: LogDensity, begun: float, made: float, draws: int, evaluations: int = 0) -> Cost:
    """What a run took that began at `begun` (by the clock), made its density in `made` seconds, and computed so many log
    densities besides the gradients.
    """
    recording = sum(recorder.seconds for recorder in density._graphs.values())
    return Cost(
        steps=draws,
        seconds=time.perf_counter() - begun,
        compile_seconds=made + float(recording),
        gradients=density.gradients,
        evaluations=evaluations,
        path=density.path,
    )


def require_counts(options: Any, **least: int) -> None:
    """Checks that options are whole numbers of at least so much.

    Raises:
        ProgramError: one is not; the message names it.
    """
    for name, smallest in least.items():
        value = getattr(options, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
            raise ProgramError(
                f"{type(options).__name__}: {name} must be a whole number, at least {smallest}, but it is {value!r}."
            )
