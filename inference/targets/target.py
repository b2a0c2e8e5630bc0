"""A target: a program with data and what is known of its posterior, and the bias of draws against that."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.comparing.distances import b_squared
from ppl_dgm.inference.comparing.measuring import weighted_average
from ppl_dgm.inference.comparing.references import column_weights, flat_coordinates
from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior

__all__ = ["Target", "known_moments", "squared_bias"]

Moments = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """A posterior to sample, with what is known of it.

    Moments are float64 and elementwise; their keys are latent sites or deterministic ones. A program whose latents are
    known only up to a symmetry (labels of a mixture, rotations of factors) has moments of invariant deterministic sites
    alone.

    Attributes:
        name: what it is.
        program: a callable Pyro model.
        args: its arguments.
        dim: number of coordinates of R^d.
        mean, square, variance, square_variance: {site: E[x], E[x^2], Var[x], Var[x^2]}; empty where they are not known.
        mcse_mean, mcse_square: Monte Carlo standard errors of `mean` and `square`; empty where those are exact.
        quantiles: {site: {probability: quantile}}, for distributions without moments.
        log_evidence: log p(data) in nats, where it is known exactly.
        draw: n -> exact independent draws {site: [n, *shape]}, where there is a way; see `sample`.
        hard: what makes it hard, in words.
        made: how the reference was made (method, options, diagnostics); empty where it is exact.
    """

    name: str
    program: Callable[..., Any]
    args: tuple[Any, ...]
    dim: int
    mean: Moments = field(default_factory=dict)
    square: Moments = field(default_factory=dict)
    variance: Moments = field(default_factory=dict)
    square_variance: Moments = field(default_factory=dict)
    mcse_mean: Moments = field(default_factory=dict)
    mcse_square: Moments = field(default_factory=dict)
    quantiles: dict[str, dict[float, Tensor]] = field(default_factory=dict)
    log_evidence: float | None = None
    draw: Callable[[int], dict[str, Tensor]] | None = None
    hard: str = ""
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether what is known is known in closed form."""
        return not self.mcse_mean

    def sample(self, n: int, seed: int | None = None) -> dict[str, Tensor]:
        """Exact independent draws of the posterior.

        Arguments:
            n: how many.
            seed: as everywhere; None takes the caller's random state.

        Returns:
            {site: [n, *shape]}, float64.

        Raises:
            TaskUnavailable: the posterior has no closed form.
        """
        if self.draw is None:
            raise TaskUnavailable(
                f"{self.name} has no closed form to draw from; draw with dgm.infer(target.program, *target.args)."
            )
        with seeded(seed):
            return self.draw(n)

    def to(self, device: torch.device | str) -> "Target":
        """The same target with its arguments on a device; moments stay where they are."""
        moved = tuple(a.to(device) if isinstance(a, Tensor) else a for a in self.args)
        return replace(self, args=moved)


def known_moments(**raw: tuple[Tensor | float, Tensor | float, Tensor | float]) -> dict[str, Any]:
    """The four moment fields of a `Target`, as keywords, from E[x], E[x^2] and E[x^4] of each site."""
    table: dict[str, Moments] = {"mean": {}, "square": {}, "variance": {}, "square_variance": {}}
    for site, powers in raw.items():
        first, second, fourth = torch.broadcast_tensors(*(torch.as_tensor(p, dtype=torch.float64) for p in powers))
        table["mean"][site] = first.clone()
        table["square"][site] = second.clone()
        table["variance"][site] = second - first.square()
        table["square_variance"][site] = fourth - second.square()
    return table


def squared_bias(posterior: Posterior, target: Target) -> dict[str, float]:
    """How far the averages over all draws are from the truth, the largest over coordinates.

        b^2 = (average of f - E[f])^2 / Var[f],        f = x, x^2, or the indicator of x below a quantile.

    Arguments:
        posterior: draws of the target's program, weighted or not.
        target: with moments or quantiles.

    Returns:
        {"mean": ..., "square": ...}, and "quantile" where the target has some. Below 0.01 an average is worth a hundred
        independent draws. Coordinates whose truth is unknown are left out; an average that is not a number has an
        infinite bias.

    Raises:
        ProgramError: the draws lack a site of the reference.

    Source: Hoffman and Sountsov (2022), Tuning-free generalized Hamiltonian Monte Carlo, section 4.
    """
    found = {"mean": 0.0, "square": 0.0}
    for site, truth in target.mean.items():
        first = _average(posterior, site, lambda x: x)
        found["mean"] = max(found["mean"], _largest(first, truth, target.variance[site]))
        if site in target.square_variance:
            second = _average(posterior, site, Tensor.square)
            found["square"] = max(found["square"], _largest(second, target.square[site], target.square_variance[site]))
    for site, table in target.quantiles.items():
        for p, quantile in table.items():
            share = _average(posterior, site, partial(_at_most, quantile.flatten()))
            bias = _largest(share, torch.full_like(share, p), torch.full_like(share, p * (1 - p)))
            found["quantile"] = max(found.get("quantile", 0.0), bias)
    return found


def _average(posterior: Posterior, site: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Of a function of each element over chains and draws, weighted where the draws are, [*shape]."""
    table = {**posterior.draws, **posterior.deterministic}
    if site not in table:
        raise ProgramError(
            f"the reference is of site {site!r}, but there are draws of {', '.join(map(repr, table))} only; "
            "infer the target's own program."
        )
    shape = tuple(table[site].shape[2:])
    values = function(flat_coordinates(table[site]))  # [chain, draw, d]
    return weighted_average(values, column_weights(posterior, shape)).reshape(shape)


def _at_most(limit: Tensor, x: Tensor) -> Tensor:
    return (x <= limit).double()


def _largest(estimate: Tensor, truth: Tensor, variance: Tensor) -> float:
    known = truth.isfinite() & variance.isfinite()
    bias = b_squared(estimate[known], truth[known], variance[known]).nan_to_num(torch.inf)
    return float(bias.max()) if bias.numel() else 0.0
