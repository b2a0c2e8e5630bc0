"""SGLD and SGHMC: Langevin and Hamiltonian dynamics driven by gradients of minibatches, without a Metropolis step."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.inference.chains.adaptation import Adaptation, DualAveraging, Warmup, descend, fisher_metric
from ppl_dgm.inference.chains.hamiltonian import Metric, Point
from ppl_dgm.inference.chains.minibatches import FullBatch, MinibatchDensity, rows_of
from ppl_dgm.inference.chains.sampling import ChainSampler, Drawn, Kernel, Run
from ppl_dgm.options import require
from ppl_dgm.program import as_program
from ppl_dgm.registry import algorithm

__all__ = ["SGHMC", "SGLD", "StochasticHamiltonian", "StochasticLangevin", "StochasticWarmup", "inverse_information"]

PRECONDITIONERS = ("auto", "dense", "diagonal", "rmsprop", "none")
_DENSE = 512  # coordinates up to which "auto" is dense
_SEARCH, _RATE = 300, 0.1  # steps of Adam from dispersed points to a mode, and its first rate
_LAMBDA = 1e-5  # of RMSprop, as in its source
_MEMORY = 0.98  # of the average of the gradient's noise


def inverse_information(spread: Tensor, ratio: float, dense: bool) -> Metric:
    """A preconditioner near the posterior's covariance, from the noise of minibatch gradients alone.

        G = (B / N cov(noise) + 1)^-1.

    A gradient from B of N rows has noise of covariance N^2 / B times that of a row's gradient, so that B / N of it is the
    data's Fisher information. The one is the curvature of a standard normal prior.

    Arguments:
        spread: draws of the noise, [n, d].
        ratio: B / N.
        dense: learn d^2 numbers, shrunk to the diagonal by d / (n + d); otherwise d.

    Source: Ahn, Korattikara and Welling (2012), Bayesian posterior sampling via stochastic gradient Fisher scoring.
    """
    dtype, rows = spread.dtype, spread.double()
    diagonal = ratio * rows.square().mean(0)
    if not dense:
        return Metric((diagonal + 1).rsqrt().to(dtype))
    n, d = rows.shape
    weight = d / (n + d)
    information = (1 - weight) * ratio * (rows.T @ rows) / n + (weight * diagonal + 1).diag_embed()
    root = torch.linalg.cholesky(information)
    identity = torch.eye(d, dtype=root.dtype, device=root.device)
    return Metric(torch.linalg.solve_triangular(root.T, identity, upper=True).to(dtype))  # S S^T = (R R^T)^-1


class StochasticWarmup(Warmup):
    """What warm-up learns from noisy gradients: where the posterior is, and a preconditioner G = S S^T.

    With minibatches G is the `inverse_information`; without noise it is that of `fisher_metric`; with "rmsprop", its
    entries are 1 / (lambda + sqrt(v)) with v the mean of squared gradients per row. It is learned anew after each window,
    from what the kernel leaves as the points' gradients, and fixed after warm-up: the term Gamma that the dynamics of a
    changing G need, and that RMSprop's source leaves out, is then exactly zero.

    Arguments:
        sampler: the options.
        density: what is sampled.
    """

    def __init__(self, sampler: "StochasticGradient", density: Any) -> None:
        form = sampler.preconditioner
        dense = form == "dense" or (form == "auto" and density.dim <= _DENSE)
        super().__init__(sampler.warmup, 0.5, dense, fixed_step=sampler.step_size or 1.0)
        self._density = density
        self.form, self.search = form, sampler.start is None
        self.anchored = sampler.control_variates and not density.whole
        self.whole = density.whole
        self.total = 1 if density.whole else density.total
        self.ratio = 1.0 if density.whole else density.batch_size / density.total

    def begin(self, density: Any, point: Point) -> Point:
        """From dispersed starts to a mode; the first preconditioner, from batches there; the anchor."""
        self.metric = Metric.identity(density)
        self.averaging = DualAveraging(self.fixed_step or 1.0, self.target)  # which is never asked to learn
        if self.length >= 10:
            point = self._found(density, point)
        if self.anchored:
            density.use_control_variates(point.z.mean(0))
        return point

    def _found(self, density: Any, point: Point) -> Point:
        value, z = point.value, point.z
        if self.whole:
            end, seen = descend(density, Point.at(density, z), 10) if self.search else (point, [])
            seen = seen or [Point.at(density, z)]
            self.metric = self.estimate(torch.cat([p.z for p in seen]), torch.cat([p.gradient for p in seen]))
            return Point(end.z, value, torch.zeros_like(z))
        z = _mode(density, z) if self.search else z
        looks = []
        for _ in range(max(10, 4 * density.dim // len(z))):
            gradient = density.minibatch(z)[1]
            looks.append(gradient if self.form == "rmsprop" else density.spread)
        self.metric = self.estimate(z, torch.cat(looks))
        if self.search and self.form not in ("rmsprop", "none"):
            z = z.mean(0) + self.metric.push(torch.randn_like(z))
        return Point(z, value, torch.zeros_like(z))

    def estimate(self, z: Tensor, gradient: Tensor) -> Metric:
        if self.form == "none":
            return Metric(torch.ones_like(z[0]))
        if self.form == "rmsprop":
            size = (gradient / self.total).square().mean(0).sqrt()
            return Metric((_LAMBDA + size).rsqrt())
        if self.whole:
            return fisher_metric(z, gradient, self.dense)
        return inverse_information(gradient, self.ratio, self.dense)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, notes = super().state()
        if self.anchored:
            tensors |= {"anchor": self._density.anchor, "at anchor": self._density.at_anchor}
        return tensors, notes

    def restore(self, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        super().restore(tensors, notes)
        if self.anchored:
            self._density.use_control_variates(tensors["anchor"], tensors["at anchor"])


def _mode(density: MinibatchDensity, z: Tensor) -> Tensor:
    """From each point to a mode, by Adam on minibatches with a rate that falls to zero."""
    mean, square = torch.zeros_like(z), torch.zeros_like(z)
    for t in range(1, _SEARCH + 1):
        gradient = density.minibatch(z)[1].nan_to_num(nan=0.0)
        mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.01)
        step = mean / (1 - 0.9**t) / ((square / (1 - 0.99**t)).sqrt() + 1e-8 * density.total)
        z = z + _RATE * (1 - (t - 1) / _SEARCH) * step
    return z


class StochasticLangevin(Kernel):
    """z' = z + e / 2 G grad + sqrt(e) S xi, thinned, with the average noise of the gradient on the way."""

    name = "stochastic-gradient Langevin dynamics"
    remembered: tuple[str, ...] = ("noise", "looks", "size")

    def __init__(self, sampler: "StochasticGradient") -> None:
        self.sampler = sampler
        self.noise, self.looks, self.size = torch.empty(0), 0, 0.0

    def step(self, density: Any, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        z, value, gradient, size = point.z, point.value, point.gradient, step
        for i in range(self.sampler.thinning):
            value, gradient = density.minibatch(z)
            if learning:
                self._look(metric.pull(density.noise))
                self.size = self.chosen(step)
            size = self.size if self.size else step
            at = t * self.sampler.thinning + i
            size *= (1 + at / self.sampler.offset) ** -self.sampler.decay
            z = self.move(metric, z, metric.pull(gradient), size)
        noise = metric.pull(density.noise).square().mean(1)
        kept = gradient if density.whole or self.sampler.preconditioner == "rmsprop" else density.spread
        stats = {"lp": value, "step_size": size, "gradient_noise": noise}
        return Drawn(Point(z, point.value, kept), torch.ones_like(value), stats)

    def _look(self, noise: Tensor) -> None:
        """One more batch for the variance of the gradient's estimate, [d], in the metric's coordinates."""
        found = noise.square().mean(0)
        self.looks += 1
        weight = max(1 - _MEMORY, 1 / self.looks)
        self.noise = found if self.looks == 1 else self.noise.lerp(found, weight)

    def chosen(self, step: float) -> float:
        """The step size e with e / 4 (1 + v) = tolerance, or the one that is given."""
        if self.sampler.step_size is not None:
            return step
        return 4 * self.sampler.tolerance / (1 + float(self.noise.mean()))

    def move(self, metric: Metric, z: Tensor, force: Tensor, size: float) -> Tensor:
        """One step; force is S^T grad, [chain, d]."""
        return z + metric.push(size / 2 * force + math.sqrt(size) * torch.randn_like(z))

    def restart(self) -> None:
        """The noise is another in other coordinates."""
        self.looks = 0


class StochasticHamiltonian(StochasticLangevin):
    """v' = (1 - a) v + e S^T grad + sqrt(2 (a - b) e) xi,  z' = z + S v',  with b = e v / 2 for the gradient's own noise."""

    name = "stochastic-gradient Hamiltonian Monte Carlo"
    remembered = (*StochasticLangevin.remembered, "velocity")

    def __init__(self, sampler: "SGHMC") -> None:
        super().__init__(sampler)
        self.friction, self.velocity = sampler.friction, torch.empty(0)

    def chosen(self, step: float) -> float:
        if self.sampler.step_size is not None:
            return step
        return min(4 * self.sampler.tolerance, self.friction / (1e-12 + float(self.noise.max())))

    def move(self, metric: Metric, z: Tensor, force: Tensor, size: float) -> Tensor:
        if self.velocity.shape != z.shape:
            self.velocity = math.sqrt(size) * torch.randn_like(z)
        own = (size / 2 * self.noise).clamp(max=self.friction) if self.looks else torch.zeros_like(z[0])
        noise = (2 * (self.friction - own) * size).sqrt() * torch.randn_like(z)
        self.velocity = (1 - self.friction) * self.velocity + size * force + noise
        return z + metric.push(self.velocity)


@dataclass(frozen=True)
class StochasticGradient(ChainSampler):
    """Options that SGLD and SGHMC share."""

    chains: int = 16
    warmup: int = 500
    draws: int = 1000
    batch_size: int | None = 100
    step_size: float | None = None
    tolerance: float = 0.05
    decay: float = 0.0
    offset: float = 1000.0
    preconditioner: str = "auto"
    control_variates: bool = False
    thinning: int = 10
    kind: ClassVar[str] = "approximate"

    def __post_init__(self) -> None:
        super().__post_init__()
        b = self.batch_size
        learned = self.warmup >= 10 and self.preconditioner in ("auto", "dense", "diagonal")
        require(
            self,
            ("batch_size", b is None or (b >= 2 and b % 2 == 0), "an even number, or None for all rows at each step"),
            (
                "preconditioner",
                self.preconditioner in PRECONDITIONERS,
                f"one of {', '.join(map(repr, PRECONDITIONERS))}",
            ),
            ("step_size", self.step_size is None or self.step_size > 0, "positive, or None to choose it"),
            ("step_size", self.step_size is not None or learned, "given where the posterior's scale is not learned"),
            ("tolerance", 0 < self.tolerance < 1, "between 0 and 1"),
            ("decay", 0 <= self.decay <= 1, "between 0 and 1"),
            ("offset", self.offset > 0, "positive"),
            ("thinning", self.thinning >= 1, "at least 1"),
        )

    def density(self, program: Any, *args: Any, **kwargs: Any) -> Any:
        options = {**kwargs, "dtype": self.dtype, "backend": self.backend}
        program = as_program(program)
        if self.batch_size is None or self.batch_size >= rows_of(program, args, kwargs):
            return FullBatch(program, *args, **options)
        return MinibatchDensity(program, *args, batch_size=self.batch_size, **options)

    def point(self, density: Any, z: Tensor) -> Point:
        """The value is that of a few rows at the origin, by which a checkpoint knows its data: there is no other that is exact."""
        value = density.value_and_grad(torch.zeros_like(z[:1]))[0] / getattr(density, "total", 1)
        return Point(z, value.expand(len(z)).contiguous(), density.gradient(z))

    def adaptation(self, density: Any) -> Adaptation:
        return StochasticWarmup(self, density)

    def remark(self, density: Any, run: Run) -> str:
        size, noise = run.rows[-1]["step_size"], float(run.rows[-1]["gradient_noise"].mean())
        text = (
            f", {self.thinning} steps a draw; a last step size of {size:.2g} without Metropolis test, whose bias stays"
        )
        if density.whole:
            return text
        anchored = " with control variates" if self.control_variates else ""
        return (
            f"{text}; minibatches of {density.batch_size} of {density.total} rows{anchored}, {density.rows_used:.3g} rows "
            f"in all, gradient noise of variance {noise:.2g} in the preconditioner's coordinates"
        )


@algorithm("sgld")
@dataclass(frozen=True)
class SGLD(StochasticGradient):
    """Stochastic-gradient Langevin dynamics: a step along the gradient of a minibatch, and noise; no step is rejected.

        z' = z + e / 2 G grad + sqrt(e) S xi,        G = S S^T,    xi standard normal.

    The gradient's estimate is unbiased (see `MinibatchDensity`). Where the posterior is normal with covariance G, and
    the estimate has variance v in the preconditioner's coordinates, the draws have the variance

        (1 + e v / 4) / (1 - e / 4)

    instead of one: the bias falls with the step size e, and a longer run does not cure it. With `batch_size=None` all
    rows are used, v is zero, and this is the unadjusted Langevin algorithm (ULA).

    Arguments:
        chains: chains that run at once, each with its own minibatches.
        warmup: draws that learn, thrown away. Before it, unless `start` is given, Adam looks for a mode from
            dispersed points, and the chains are dispersed around it like the preconditioner.
        draws: draws kept of each chain.
        batch_size: rows of a minibatch, even; None for all rows. The program needs a plate `data`, with no continuous
            latent site in it, but for None.
        step_size: e. None chooses the one at which e (1 + v) / 4, the relative error of variances, is `tolerance`.
        tolerance: see `step_size`.
        decay, offset: step t, from 0, has the size e (1 + t / offset)^-decay: a (b + t)^-gamma with b = offset.
        preconditioner: "dense" or "diagonal" (the inverse of the data's information, see `inverse_information`; without
            minibatches the metric of `fisher_metric`), "rmsprop", "none", or "auto": dense up to 512 coordinates. It
            is fixed after warm-up.
        control_variates: correct the exact gradient at the mode by the minibatch's, which takes two gradients of it and
            has far less noise where rows are many: SGLD-CV.
        thinning: steps for each draw, also in warm-up.
        start, superchains, radius, backend, dtype, checkpoint: see `ChainSampler`.

    Returns, in `Posterior.stats`, for each draw: `lp` (estimated by the last minibatch, one step before the draw, so
    noisy), `step_size`, `gradient_noise` (v of that chain's last batch, averaged over coordinates); `acceptance_rate`
    is one. `Posterior.cost.gradients` counts full gradients: rows used / N, rounded up; `Posterior.how` says how many rows.

    Raises:
        TaskUnavailable: a continuous latent site inside the plate `data`.
        ProgramError: no such plate, or a density that is no sum over its rows.

    Source: Welling and Teh (2011), Bayesian learning via stochastic gradient Langevin dynamics; Li, Chen, Carlson and Carin
    (2016) for "rmsprop"; Baker, Fearnhead, Fox and Nemeth (2019) for control variates.
    """

    def kernel(self) -> Kernel:
        return StochasticLangevin(self)


@algorithm("sghmc")
@dataclass(frozen=True)
class SGHMC(StochasticGradient):
    """Stochastic-gradient Hamiltonian Monte Carlo: a velocity with friction, driven by minibatches; no step is rejected.

        v' = (1 - a) v + e S^T grad + sqrt(2 (a - b) e) xi,        z' = z + S v',        b = e V / 2.

    The noise of the gradient stands for a part b of the noise that the friction a calls for, so that it biases nothing as
    long as V, its variance in each of the preconditioner's coordinates, is well known and the same everywhere. V is averaged over
    all chains in warm-up; b is at most a. What remains is an error of the order e.

    Arguments:
        friction: a, the share of the velocity that is lost in a step.
        step_size: e, the rate of the source. None chooses the smaller of 4 `tolerance` and a / max V, which leaves at least
            half of the noise to be drawn.
        tolerance: see `step_size`.
        Others, statistics and errors: see `SGLD`.

    Source: Chen, Fox and Guestrin (2014), Stochastic gradient Hamiltonian Monte Carlo, equation 15.
    """

    friction: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("friction", 0 < self.friction < 1, "between 0 and 1"))

    def kernel(self) -> Kernel:
        return StochasticHamiltonian(self)
