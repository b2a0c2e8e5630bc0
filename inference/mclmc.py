"""MCLMC: unadjusted microcanonical Langevin dynamics of many chains, its step held to a small error of the energy."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.inference.chains.adaptation import Adaptation, Warmup, metric_form
from ppl_dgm.inference.chains.hamiltonian import DIVERGED, Density, Metric, Point
from ppl_dgm.inference.chains.isokinetic import (
    INTEGRATORS,
    directions,
    energy_change,
    isokinetic_trajectory,
    refreshed,
    require_two,
)
from ppl_dgm.inference.chains.sampling import METRICS, ChainSampler, Drawn, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["MCLMC", "EnergyVariance", "MicrocanonicalLangevin", "autocorrelation_times"]

_WORST = 1.0  # nats^2 per dimension that a chain's error counts for, at most: a lost chain should not stop the others
_MEMORY, _LEAST = 0.4, 20  # L in autocorrelation times, as published; steps from which these can be seen
_KEPT = 20_000_000  # numbers kept for autocorrelations; of more, the first chains


@dataclass
class EnergyVariance:
    """The step size at which the squared energy change of a step, per dimension, is `target` on average.

    The change of one step is of third order, its square of sixth: each step of all chains says at which step size
    the target would be met, and the average of these over about `memory` steps is used.

    Arguments:
        step: where to begin.
        target: E[change^2] / d, in nats^2.

    Source: Robnik, De Luca, Silverstein and Seljak (2023), section 4; there for one chain.
    """

    step: float
    target: float
    memory: float = 30.0
    total: float = 0.0
    weight: float = 0.0

    def restart(self, step: float) -> None:
        """Forget everything, and begin from another step size."""
        self.step, self.total, self.weight = step, 0.0, 0.0

    def update(self, variance: float) -> float:
        """Takes E[change^2] / d of one step, over all chains; returns the step size to use next."""
        ratio = max(variance / self.target, 1e-6)
        fading = 1 - 1 / self.memory
        self.total = fading * self.total + ratio / self.step**6
        self.weight = fading * self.weight + 1
        self.step = (self.weight / self.total) ** (1 / 6)
        return self.step

    @property
    def average(self) -> float:
        """The step size for use after warm-up."""
        return self.step


class MicrocanonicalWarmup(Warmup):
    """The course of `Warmup`, with the step size from the energy's variance; what the kernel calls acceptance is that."""

    averaging: EnergyVariance  # type: ignore[assignment]

    def _restart(self, density: Density, point: Point) -> None:
        if isinstance(self.averaging, EnergyVariance):
            self.averaging.restart(self.averaging.step)
            return
        super()._restart(density, point)  # the first time: from what a leapfrog step can be
        self.averaging = EnergyVariance(self.averaging.step, self.target)

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        super().restore(tensors, {**notes, "averaging": {"step": 1.0, "target": self.target}})
        self.averaging = EnergyVariance(**notes["averaging"])


def autocorrelation_times(x: Tensor) -> Tensor:
    """The integrated autocorrelation time of each coordinate, in draws, [d].

        tau = 1 + 2 (rho_1 + rho_2 + ...),

    cut where the sum of two neighbours is no longer positive; the mean is that over all chains and draws.

    Arguments:
        x: [draw, chain, d].

    Source: Geyer (1992), Practical Markov chain Monte Carlo, section 3.3.
    """
    draws = len(x)
    x = (x - x.mean((0, 1))).double()
    spectrum = torch.fft.rfft(x, n=2 * draws, dim=0).abs().square().mean(1)
    covariance = torch.fft.irfft(spectrum, n=2 * draws, dim=0)[: draws // 2 * 2]
    covariance = covariance / torch.arange(draws, draws - len(covariance), -1, device=x.device)[:, None]
    rho = covariance / covariance[0].clamp(min=torch.finfo(x.dtype).tiny)
    pairs = rho.unflatten(0, (-1, 2)).sum(1)  # [draw / 2, d]
    positive = (pairs > 0).cumprod(0)
    return 2 * (pairs * positive).sum(0) - 1


class MicrocanonicalLangevin(Kernel):
    """Integrator steps of the isokinetic dynamics, the directions refreshed in part before each."""

    name = "microcanonical Langevin"
    remembered = ("u", "length", "seen", "last_step")

    def __init__(self, length: float | None, integrator: str, thinning: int) -> None:
        self.learns, self.integrator, self.thinning = length is None, integrator, thinning
        self.length, self.last_step = length or 1.0, 1.0
        self.u = torch.empty(0)
        self._seen: list[Tensor] = []

    @property
    def seen(self) -> Tensor:
        """Positions from which the length is to be learned, [step, chain, d]."""
        return torch.stack(self._seen) if self._seen else torch.empty(0)

    @seen.setter
    def seen(self, rows: Tensor) -> None:
        self._seen = list(rows.unbind(0))

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        if self.u.shape != point.z.shape:
            self.u = directions(point.z)
        change = squared = torch.zeros_like(point.value)
        diverging = torch.zeros_like(change, dtype=torch.bool)
        for _ in range(self.thinning):
            u = refreshed(self.u, step / self.length)
            end, u, work = isokinetic_trajectory(density, metric, point, u, step, 1, self.integrator)
            change = energy_change(point, end, work)
            lost = ~(change.abs() < DIVERGED)  # stays where it is, and takes another direction
            point = end.moved(point, lost)
            self.u = torch.where(lost[:, None], directions(u), u)
            squared, diverging = squared + change.square(), diverging | lost
        variance = squared / (self.thinning * density.dim)
        if not learning:
            stats = {"diverging": diverging, "energy_change": change / density.dim, "energy_variance": variance}
            return Drawn(point, torch.ones_like(variance), {**stats, "length": self.length})
        self._look(point, step)
        return Drawn(point, variance.clamp(max=_WORST), {})

    def _look(self, point: Point, step: float) -> None:
        if self.learns:
            chains = max(1, _KEPT // (1000 * point.z.shape[1]))
            self._seen.append(point.z[:chains])
            self.last_step = step

    def restart(self) -> None:
        """Positions from before the metric was any good say nothing of how slowly the chains forget."""
        self._seen = []

    def settle(self) -> None:
        if len(self._seen) >= _LEAST:
            time = float(autocorrelation_times(self.seen).clamp(min=1.0).mean())
            self.length = _MEMORY * time * self.thinning * self.last_step
        self._seen = []


@algorithm("mclmc")
@dataclass(frozen=True)
class MCLMC(ChainSampler):
    """Microcanonical Langevin Monte Carlo: fast, tuned across chains, and slightly biased, since nothing is rejected.

    Each chain has a direction u of unit length that the gradient turns (see `isokinetic_trajectory`) and that is refreshed
    in part at each step, so that it is forgotten over the length L. Exact dynamics would keep the energy; the
    step size is the one at which the squared energy change of a step, per dimension, is `energy_variance`. The bias
    falls with it and does not vanish in longer runs: with the default, variances of a Gaussian are about 2 % small.

    Arguments:
        chains: chains that run at once.
        warmup: steps that learn, thrown away.
        draws: draws kept of each chain.
        energy_variance: E[change^2] / d of a step, in nats^2, that the step size is held to.
        length: L, in units in which each coordinate of the metric moves by about one (multiplied with sqrt(d), it is
            that of the source); None to learn it: 0.4 times the mean autocorrelation time of the coordinates.
        integrator: "minimal-norm" (two gradients a step), or "leapfrog" (one).
        thinning: integrator steps for each draw, also in warm-up.
        metric: "dense", "diagonal", or "auto": dense up to 512 coordinates.
        step_size: fixes the step size, in the units of `length`, instead of learning it.
        backend, dtype, checkpoint: see `HMC`.

    Returns, in `Posterior.stats`, for each draw: `lp`, `step_size`, `length`, `energy_change` (of the last step, nats per
    dimension), `energy_variance` (its square averaged over the steps of a draw, times d), `diverging` (the energy error
    was above 1000 nats, and the chain stayed where it was); `acceptance_rate` is one.

    Raises:
        TaskUnavailable: there is one coordinate only, on which a direction cannot turn.

    Source: Robnik, De Luca, Silverstein and Seljak (2023), Microcanonical Hamiltonian Monte Carlo; Robnik and
    Seljak (2024), Fluctuation without dissipation. There, one chain is tuned, with its draws' variances as metric; here all
    chains are, with the metric of `fisher_metric`.
    """

    chains: int = 64
    warmup: int = 300
    draws: int = 1000
    energy_variance: float = 5e-4
    length: float | None = None
    integrator: str = "minimal-norm"
    thinning: int = 1
    metric: str = "auto"
    step_size: float | None = None
    kind: ClassVar[str] = "approximate"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("energy_variance", 0 < self.energy_variance < 1, "between 0 and 1"),
            ("length", self.length is None or self.length > 0, "positive, or None to learn it"),
            ("integrator", self.integrator in INTEGRATORS, f"one of {', '.join(map(repr, INTEGRATORS))}"),
            ("thinning", self.thinning >= 1, "at least 1"),
            ("metric", self.metric in METRICS, f"one of {', '.join(map(repr, METRICS))}"),
            ("step_size", self.step_size is None or self.step_size > 0, "positive, or None to learn it"),
        )

    def adaptation(self, density: Density) -> Adaptation:
        require_two("MCLMC", density.dim)
        form = metric_form(self.metric, density.dim)
        return MicrocanonicalWarmup(self.warmup, self.energy_variance, fixed_step=self.step_size, **form)

    def kernel(self) -> Kernel:
        return MicrocanonicalLangevin(self.length, self.integrator, self.thinning)
