"""MixtureEM: the posterior mode of a Bayesian mixture, its assignments summed out, by expectation maximisation."""

import time
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.errors import NumericalError, TaskUnavailable
from ppl_dgm.options import is_count, require
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

from .bayesian import BayesianMixture, DirichletProcessMixture
from .mixture import spread_rows

__all__ = ["MixtureEM"]


@algorithm("mixture-em")
@dataclass(frozen=True)
class MixtureEM:
    """A point in place of the posterior: the mode of p(weights, parameters | x), and k drawn given it.

        E:  r_nk = p(k_n = k | x_n, weights, parameters)
        M:  weights, parameters = argmax E_r[log p(x, k | weights, parameters)] + log prior, in closed form

    The mode is that of the density of the parameters themselves; other coordinates have other modes. Its draws all have
    the same parameters, so that they tell nothing of the posterior's width.

    Arguments:
        restarts: starts, each from rows far apart; the highest mode is kept.
        steps: most steps of each.
        tolerance: a start ends when a step raises the log posterior density by less, in nats.
        draws: of k.

    Returns, in `Posterior.stats`: `lp`, the log posterior density up to log p(x), in nats.

    Raises:
        TaskUnavailable: the program is no `BayesianMixture`, or a `DirichletProcessMixture`.
        NumericalError: a step lowered the log posterior density by more than rounding.

    Source: A. Dempster, N. Laird and D. Rubin (1977); C. Bishop (2006), PRML, 9.4.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.cat([torch.randn(30, 1) - 4, torch.randn(30, 1) + 4])
        >>> post = dgm.infer(dgm.models.BayesianMixture(1, 2), x, method="mixture-em", seed=0)
        >>> post.draws["means"].shape, post.kind
        (torch.Size([1, 200, 2, 1]), 'approximate')
    """

    restarts: int = 5
    steps: int = 500
    tolerance: float = 1e-6
    draws: int = 200

    def __post_init__(self) -> None:
        require(
            self,
            ("restarts", is_count(self.restarts, 1), "a whole number, at least 1"),
            ("steps", is_count(self.steps, 1), "a whole number, at least 1"),
            ("tolerance", self.tolerance >= 0, "at least 0"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
        )

    @torch.no_grad()
    def run(self, program: Any, x: Tensor) -> Posterior:
        """The mode; see `ppl_dgm.infer`."""
        program = getattr(getattr(program, "_model", None), "__self__", program)  # the same under another guide
        if not isinstance(program, BayesianMixture) or isinstance(program, DirichletProcessMixture):
            raise TaskUnavailable(
                f"EM to the posterior mode knows the conjugate M-steps of BayesianMixture only, not of {program.name!r}; "
                "take method='laplace'."
            )
        begun, rows = time.perf_counter(), x.double()
        best, value, steps = None, -torch.inf, 0
        with progress("EM to the posterior mode", self.restarts) as report:
            for _ in range(self.restarts):
                point, reached, count = self._climb(program, rows)
                steps += count
                if best is None or reached > value:
                    best, value = point, reached
                report(log_posterior=value)
        assert best is not None
        weights, parameters = best
        logits = program.log_joint_of(rows, weights, tuple(parameters.values()))
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        same = {
            name: one.to(dtype).expand(1, self.draws, *one.shape)
            for name, one in {"weights": weights, **parameters}.items()
        }
        return Posterior(
            {**same, "k": dist.Categorical(logits=logits).sample((1, self.draws))},
            stats={"lp": rows.new_full((1, self.draws), value)},
            cost=Cost(steps, time.perf_counter() - begun, path="closed form"),
            how=f"EM to the posterior mode, a point: the best of {self.restarts} starts",
            kind="approximate",
            program=program,
        )

    def _climb(self, program: BayesianMixture, x: Tensor) -> tuple[tuple[Tensor, dict[str, Tensor]], float, int]:
        """Weights and parameters, their log posterior density, and how many steps it took."""
        near = torch.cdist(x, x[spread_rows(x, program.components)]).argmin(-1)
        share = 0.9 * torch.nn.functional.one_hot(near, program.components).double() + 0.1 / program.components
        previous, point = -torch.inf, None
        for step in range(self.steps + 1):
            new = _maximised(program, x, share)
            log_joint = program.log_joint_of(x, new[0], tuple(new[1].values()))
            value = float(log_joint.logsumexp(-1).sum() + program.log_prior_of(*new))
            if not value > previous - 1e-8 * (1 + abs(value)):
                raise NumericalError(
                    f"EM to the posterior mode of {program.name!r}: the log posterior density went from {previous:.9g} to "
                    f"{value:.9g} in step {step}; check the data for entries that are not finite."
                )
            point, gain, previous = new, value - previous, value
            if gain < self.tolerance:
                break
            share = log_joint.softmax(-1)
        assert point is not None
        return point, previous, step


def _maximised(program: BayesianMixture, x: Tensor, share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The M-step for responsibilities [N, K]."""
    count = share.sum(0)
    weights = (count + program.concentration - 1).clamp_min(1e-12)
    return weights / weights.sum(), program.mode_parameters(count, share.mT @ x, share.mT @ x.square())
