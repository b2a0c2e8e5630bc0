"""What annealed importance sampling runs on: schedules, the two kinds of path, chains forward and backward."""

import math
from bisect import bisect_left
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_dgm.inference.annealed.tempering import Parts, Path, leapfrogs, move
from ppl_dgm.inference.tempered_smc import Stage
from ppl_dgm.progress import progress

__all__ = ["Annealer", "GibbsAnnealer", "PathAnnealer", "backward", "equal_barriers", "forward", "sigmoidal"]


def sigmoidal(temperatures: int, steepness: float = 4.0) -> Tensor:
    """beta_0 = 0 < ... < beta_T = 1, T = `temperatures`, dense at both ends.

        beta_t = (s_t - s_0) / (s_T - s_0),        s_t = sigmoid(steepness (2 t / T - 1))

    Source: Grosse, Ghahramani and Adams (2015), section 5.

    Example:
        >>> sigmoidal(2)
        tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    s = torch.sigmoid(steepness * torch.linspace(-1, 1, temperatures + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


def equal_barriers(stages: list[Stage], temperatures: int) -> Tensor:
    """beta_0 = 0 < ... < beta_T = 1 at which all increments make weights equally uneven, from a pilot's temperatures.

    From beta_{k-1} to beta_k the pilot's weights kept the effective sample size e_k; the way between them counts
    sqrt(-log e_k), which for a short one is proportional to it.
    """
    knots = torch.tensor([0.0] + [stage.beta for stage in stages], dtype=torch.float64)
    ways = torch.tensor([0.0] + [math.sqrt(-math.log(min(stage.row["ess"], 0.999))) for stage in stages])
    return interpolated(ways.double().cumsum(0), knots, temperatures)


def interpolated(way: Tensor, knots: Tensor, temperatures: int) -> Tensor:
    """The values at T + 1 equal parts of the way, from its length at each knot, ascending; linear in between."""
    at = torch.linspace(0, float(way[-1]), temperatures + 1, dtype=torch.float64)
    right = torch.searchsorted(way, at).clamp(1, len(way) - 1)
    share = (at - way[right - 1]) / (way[right] - way[right - 1]).clamp(min=1e-300)
    values = knots[right - 1] + share.clamp(0, 1) * (knots[right] - knots[right - 1])
    values[0], values[-1] = knots[0], knots[-1]
    return values


class Annealer(Protocol):
    """A path of densities p_beta(state) = f_beta(state) / Z_beta with transitions that are reversible for each."""

    log_base: float  # ln Z_0

    def start(self, n: int) -> Any:
        """n exact draws at beta = 0."""

    def increment(self, state: Any, low: float, high: float) -> Tensor:
        """ln f_high - ln f_low at the states, [n], float64."""

    def step(self, state: Any, beta: float) -> Any:
        """One transition at beta."""


class PathAnnealer:
    """A `Path` on R^d, with the metrics and step sizes that a pilot run learned; nothing is adapted any more.

    Arguments:
        path: between reference and target.
        stages: of the pilot. Between two of its temperatures the kernel of the colder one is used.
        max_steps: leapfrog steps of a trajectory, at most.
    """

    log_base = 0.0

    def __init__(self, path: Path, stages: list[Stage], max_steps: int) -> None:
        self.path, self.stages, self.max_steps = path, stages, max_steps
        self._betas = [stage.beta for stage in stages]
        self.accepted: list[Tensor] = []

    def start(self, n: int) -> Parts:
        return Parts.at(self.path, self.path.draw(n))

    def increment(self, state: Parts, low: float, high: float) -> Tensor:
        return (high - low) * state.rest.double()

    def step(self, state: Parts, beta: float) -> Parts:
        stage = self.stages[min(bisect_left(self._betas, beta), len(self.stages) - 1)]
        step = stage.step * torch.empty_like(state.z[:, :1]).uniform_(0.6, 1.4)
        state, accept, _ = move(self.path, stage.metric, state, beta, step, leapfrogs(stage.step, self.max_steps))
        self.accepted.append(accept.mean())
        return state


class GibbsAnnealer:
    """The path of an undirected program that has `tempered_start`, `tempered_log_partition`, `tempered_free_energy` and
    `tempered_gibbs`, as `dgm.models.RBM` has.
    """

    def __init__(self, program: Any) -> None:
        self.program = program
        self.log_base = float(program.tempered_log_partition().detach())

    def start(self, n: int) -> Tensor:
        return self.program.tempered_start(n)

    def increment(self, state: Tensor, low: float, high: float) -> Tensor:
        free = self.program.tempered_free_energy
        return free(state, low).double() - free(state, high).double()

    def step(self, state: Tensor, beta: float) -> Tensor:
        return self.program.tempered_gibbs(state, beta)


def forward(annealer: Annealer, betas: list[float], n: int) -> tuple[Any, Tensor]:
    """Chains from beta = 0 to 1: x_0 ~ p_0; weigh from beta_0 to beta_1; move at beta_1; ...; weigh up to beta_T.

    Returns:
        the states at the end, and their log weights [n], float64: the mean weight is an unbiased estimate of Z_1.
    """
    state = annealer.start(n)
    log_weights: Any = annealer.log_base
    with progress("annealing", len(betas) - 1) as report:
        for t in range(1, len(betas)):
            if t > 1:
                state = annealer.step(state, betas[t - 1])
            log_weights = log_weights + annealer.increment(state, betas[t - 1], betas[t])
            report(beta=betas[t])
    return state, log_weights


def backward(annealer: Annealer, betas: list[float], state: Any) -> Tensor:
    """The same chains in the reverse order, from states at beta = 1 down to 0.

    Returns:
        log weights [n], float64: from exact states, the mean of exp(-log weight) is an unbiased estimate of 1 / Z_1.
    """
    log_weights: Any = annealer.log_base
    with progress("annealing back", len(betas) - 1) as report:
        for t in range(len(betas) - 1, 0, -1):
            if t < len(betas) - 1:
                state = annealer.step(state, betas[t])
            log_weights = log_weights + annealer.increment(state, betas[t - 1], betas[t])
            report(beta=betas[t])
    return log_weights
