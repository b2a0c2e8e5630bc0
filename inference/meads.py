"""MEADS: generalised Hamiltonian Monte Carlo whose parameters come from the ensemble of chains, without trial steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.inference.chains.adaptation import Adaptation, descend, relocated, stranded
from ppl_dgm.inference.chains.hamiltonian import DIVERGED, Density, Metric, Point, gain
from ppl_dgm.inference.chains.sampling import ChainSampler, Drawn, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm

__all__ = ["MEADS", "Ensemble", "PersistentMomentum", "largest_eigenvalue", "tuned"]

_LONGEST = 1.0  # step size at most
_STEP = 0.5  # of the inverse root of the largest eigenvalue
_AVERAGED = 1 / 3  # of warm-up, at its end, whose parameters are averaged


def largest_eigenvalue(rows: Tensor) -> Tensor:
    """An estimate of the largest eigenvalue of the second moment of these rows, [..., n, d] -> [...].

        sum of squared eigenvalues / sum of eigenvalues

    of the rows' own second moment. With n of the order of d it lies above the truth, by about d / n of the mean
    eigenvalue: step sizes err on the small side.

    Source: Hoffman and Sountsov (2022), section 3.1.
    """
    n, d = rows.shape[-2:]
    gram = (rows @ rows.mT if n < d else rows.mT @ rows) / n  # both have the same eigenvalues
    return gram.square().sum((-2, -1)) / gram.diagonal(dim1=-2, dim2=-1).sum(-1)


@dataclass
class Ensemble:
    """Parameters of the kernel, learned from some chains; one of each, or one for each fold.

    Attributes:
        scale: standard deviation of each coordinate, [..., d].
        step: step size in units of the scales, [...].
        damping: rate at which momentum is forgotten, [...].
    """

    scale: Tensor
    step: Tensor
    damping: Tensor


def tuned(z: Tensor, gradient: Tensor, t: int) -> Ensemble:
    """The parameters that suit chains at these places, [..., n, d], after t steps.

    The step size is half the inverse root of the largest eigenvalue of the gradients in units of the scales, so
    that it is stable in the direction of most curvature; momentum is forgotten at the rate at which the longest
    direction turns over, and faster than 1 / (t step) at first, before that direction is known.

    Source: Hoffman and Sountsov (2022), algorithm 3.
    """
    z = z - z.mean(-2, keepdim=True)
    scale = z.square().mean(-2).sqrt().clamp(min=torch.finfo(z.dtype).tiny ** 0.25)  # [..., d]
    steep = largest_eigenvalue(gradient * scale.unsqueeze(-2))
    step = (_STEP * steep.rsqrt()).nan_to_num(nan=0.0).clamp(max=_LONGEST)
    long = largest_eigenvalue(z / scale.unsqueeze(-2))
    return Ensemble(scale, step, torch.maximum(long.rsqrt(), 1 / (t * step)))


class PersistentMomentum(Kernel):
    """Single leapfrog steps that keep most of the momentum, accepted by a slice variable that moves as slowly.

    In warm-up, chains are dealt into folds at random. One fold in turn rests; each other one moves with parameters from
    the fold before it, as that was before this iteration. Moving the folds one after another, last first, would
    give the same: each moves given others that stand still, so that the posterior stays invariant in
    warm-up too. Afterwards all chains move with the parameters of the whole ensemble, averaged over the last
    third of warm-up, and nothing changes any more.
    """

    name = "MEADS"
    remembered = ("momentum", "slice", "fold", "transitions", "scale", "step_size", "damping", "averaged")

    def __init__(self, folds: int, steps: int, warmup: int) -> None:
        self.folds, self.steps, self.warmup = folds, steps, warmup
        self.transitions, self.averaged = 0, 0
        self.momentum: Any = None  # [chain, d]
        self.slice: Any = None  # uniform on [-1, 1], [chain]
        self.fold: Any = None  # [chain]
        self.scale: Any = None  # running averages of the logarithms, [d]
        self.step_size: Any = None  # []
        self.damping: Any = None  # []

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        if self.momentum is None:
            self.momentum = torch.randn_like(point.z)
            self.slice = 2 * torch.rand_like(point.value) - 1
        resting = torch.zeros_like(point.value, dtype=torch.bool)
        if learning:
            ensemble, resting = self._of_folds(point, t)
            if t + 1 >= (1 - _AVERAGED) * self.warmup:
                self._average(tuned(point.z, point.gradient, self.transitions + 1))
        else:
            if self.scale is None:
                self._average(tuned(point.z, point.gradient, self.transitions + 1))
            ensemble = Ensemble(self.scale.exp(), self.step_size.exp(), self.damping.exp())
        total, diverging = torch.zeros_like(point.value), torch.zeros_like(resting)
        for _ in range(self.steps):
            point, accept, diverged = self.transition(density, point, ensemble, resting)
            total, diverging = total + accept, diverging | diverged
        self.transitions += self.steps
        size = ensemble.step.expand(len(point.z)).contiguous()
        stats = {"diverging": diverging, "n_steps": self.steps, "step_size": size}
        return Drawn(point, total / self.steps, stats)

    def _of_folds(self, point: Point, t: int) -> tuple[Ensemble, Tensor]:
        """Each chain's parameters, and which chains rest."""
        if t % self.folds == 0 or self.fold is None:
            self.fold = torch.randperm(len(point.z), device=point.z.device) % self.folds
        rows = self.fold.argsort(stable=True).reshape(self.folds, -1)  # the chains of each fold
        theirs = tuned(point.z[rows], point.gradient[rows], self.transitions + 1)
        before = (self.fold - 1) % self.folds
        mine = Ensemble(theirs.scale[before], theirs.step[before], theirs.damping[before])
        return mine, self.fold == t % self.folds

    def _average(self, ensemble: Ensemble) -> None:
        """Take one more into the running averages, on the log scale."""
        self.averaged += 1
        for name, value in (("scale", ensemble.scale), ("step_size", ensemble.step), ("damping", ensemble.damping)):
            before = getattr(self, name)
            log = value.log()
            setattr(self, name, log if before is None else before + (log - before) / self.averaged)

    def transition(
        self, density: Density, point: Point, ensemble: Ensemble, resting: Tensor
    ) -> tuple[Point, Tensor, Tensor]:
        """One leapfrog step of all chains but those that rest.

            r <- sqrt(1 - alpha) r + sqrt(alpha) xi,    u <- (u + 1 + alpha / 2) mod 2 - 1,    alpha = 1 - exp(-2 step damping)

        The step is accepted if |u| < exp(energy lost) = a, and then u <- u / a; otherwise the momentum turns back.

        Source: Horowitz (1991); the slice variable: Neal (2020), arXiv 2001.11950.
        """
        step = ensemble.step.expand(len(point.z))[:, None]
        forgotten = -torch.expm1(-2 * ensemble.step * ensemble.damping).expand(len(point.z))
        r = (1 - forgotten).sqrt()[:, None] * self.momentum + forgotten.sqrt()[:, None] * torch.randn_like(point.z)
        u = (self.slice + 1 + forgotten / 2) % 2 - 1
        pace = step * ensemble.scale  # [chain, d]
        half = r + pace / 2 * point.gradient
        end = Point.at(density, point.z + pace * half)
        r_end = half + pace / 2 * end.gradient
        lost = gain(point, r, end, r_end)
        taken = (u.abs().log() < lost) & ~resting
        self.momentum = torch.where(resting[:, None], self.momentum, torch.where(taken[:, None], r_end, -r))
        self.slice = torch.where(resting, self.slice, torch.where(taken, u * (-lost).exp(), u))
        diverged = (lost < -DIVERGED) & ~resting
        return point.moved(end, taken), lost.clamp(max=0.0).exp(), diverged


class Descent(Adaptation):
    """Chains brought to the posterior's mass before the first step, and, once, those that are left behind."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def begin(self, density: Density, point: Point) -> Point:
        point = super().begin(density, point)
        return descend(density, point, 10)[0] if self.length >= 10 else point

    def update(self, density: Density, point: Point, acceptance: float, t: int) -> tuple[Point, bool]:
        lost = stranded(point.value, point.z.shape[1])
        count = int(lost.sum())
        if t != self.length // 3 or not 0 < 2 * count <= len(lost):
            return point, False
        self.relocated += count
        return relocated(point, lost), False


@algorithm("meads")
@dataclass(frozen=True)
class MEADS(ChainSampler):
    """Maximum-eigenvalue adaptation of damping and step size: many chains that keep their momentum, tuned by each other.

    Each transition is one leapfrog step, so that a chain needs no trajectory length, and all do the same work. Scales,
    step size and damping come from where the other chains are, not from trial and error; no acceptance is aimed at.
    The preconditioner is diagonal: strongly correlated posteriors are for `ChEES`.

    Arguments:
        chains: chains that run at once; the parameters come from them, so take 64 or more, and in
            hundreds of coordinates 256.
        warmup, draws: iterations, of `steps` transitions each. The parameters are those of the last third of warm-up,
            which must not be cut short.
        steps: transitions from one kept draw to the next.
        folds: groups that tune each other in warm-up, 3 or more of at least 4 chains.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`. Chains must start apart: the scales come from
            where they are.

    Returns, in `Posterior.stats`, for each draw: `lp`, `acceptance_rate` (mean over its transitions), `diverging`, `n_steps`,
    `step_size` (in units of the scales).

    Source: Hoffman and Sountsov (2022), Tuning-free generalized Hamiltonian Monte Carlo. There the parameters follow the
    folds for as long as the run lasts; here they are held fixed after warm-up, so that every chain moves in each
    iteration and the draws are those of one Markov kernel.
    """

    chains: int = 64
    warmup: int = 300
    draws: int = 300
    steps: int = 10
    folds: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("steps", isinstance(self.steps, int) and self.steps >= 1, "a whole number, at least 1"),
            ("folds", isinstance(self.folds, int) and self.folds >= 3, "a whole number, at least 3"),
        )
        good = self.chains >= 4 * self.folds and self.chains % self.folds == 0
        require(self, ("chains", good, f"a multiple of the {self.folds} folds, with at least 4 chains in each"))

    def kernel(self) -> Kernel:
        return PersistentMomentum(self.folds, self.steps, self.warmup)

    def adaptation(self, density: Density) -> Adaptation:
        return Descent(self.warmup)
