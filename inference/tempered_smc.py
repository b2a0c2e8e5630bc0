"""TemperedSMC: sequential Monte Carlo from the prior to the posterior, with the evidence on the way."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError
from ppl_dgm.inference.annealed.by_example import examples_of, stacked_score
from ppl_dgm.inference.annealed.tempering import (
    Parts,
    Path,
    Reference,
    StagedPosterior,
    check_reference,
    leapfrogs,
    move,
    path_from,
)
from ppl_dgm.inference.chains.adaptation import fisher_metric
from ppl_dgm.inference.chains.hamiltonian import Metric
from ppl_dgm.options import is_count, require
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

__all__ = ["Annealing", "Stage", "TemperedSMC", "next_beta", "systematic"]

_DENSE = 128  # coordinates up to which the metric of a stage is dense
_BISECTIONS = 60
_STAGES = 1000  # more temperatures than that are not a path but a wall
_ALIKE = 0.2  # correlation with where a particle began a stage, below which it has forgotten it
_STALLED = 0.02  # what a move must take from the mean correlation to be worth another one


@dataclass
class Stage:
    """What was learned at one temperature.

    Attributes:
        beta: inverse temperature.
        metric: of p_beta, from the particles there.
        step: step size that was adapted to.
        row: its row of the table `StagedPosterior.stages`.
    """

    beta: float
    metric: Metric
    step: float
    row: dict[str, float]


def next_beta(rest: Tensor, beta: float, ess: float) -> float:
    """The largest next inverse temperature at which the incremental weights keep this effective sample size.

        w_i = exp((next - beta) rest_i),        (sum w)^2 / (n sum w^2) = ess, averaged over chains,

    found by bisection on the logarithm of the increment; 1 if the weights never get so uneven. Particles of no
    density at all, lost whatever the increment, do not count.

    Arguments:
        rest: [chain, n], nats.
        beta: where the particles are.
        ess: a fraction of n.
    """
    alive = (rest > -torch.inf).double()
    rest = torch.where(alive > 0, rest.double(), 0.0)

    def size(increment: Tensor) -> Tensor:
        logs = torch.where(alive > 0, increment * rest, -torch.inf)
        return ((2 * logs.logsumexp(1) - (2 * logs).logsumexp(1)).exp() / alive.sum(1)).mean()

    high = torch.tensor(math.log(1 - beta), dtype=torch.float64, device=rest.device)
    low = high - 50.0  # e^-50 of the way
    if bool(size(high.exp()) >= ess):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = size(middle.exp()) >= ess
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return beta + math.exp(float(low))


def systematic(weights: Tensor) -> Tensor:
    """Systematic resampling: how many descendants a particle has differs from n times its weight by less than one.

    Arguments:
        weights: [chain, n], summing to one.

    Returns:
        [chain, n], ascending: whose copy each new particle is.

    Source: Carpenter, Clifford and Fearnhead (1999).
    """
    n = weights.shape[1]
    ladder = weights.double().cumsum(1)
    ladder = ladder / ladder[:, -1:]
    places = torch.arange(n, dtype=ladder.dtype, device=ladder.device)
    offset = torch.rand(len(weights), 1, dtype=ladder.dtype, device=ladder.device)
    return torch.searchsorted(ladder, (places + offset) / n, right=True).clamp_(max=n - 1)


class Annealing:
    """Several populations of particles on their way along a path, in lock step: what TemperedSMC runs.

    They share temperatures, metrics and step sizes; weights, resampling and evidence are each population's own.

    Arguments:
        path: from where to where.
        chains, particles: populations, and particles of each.
        options: the `TemperedSMC` with the other options.

    Attributes:
        parts: the particles, [chains * particles].
        ancestor: [chain, particle], the prior draw that each descends from.
        log_z: [chain], log Z of the present temperature over that of the reference, float64.
        variance: [chain], estimated variance of exp(log_z) relative to its square, from the genealogy.
        stages: what was learned so far.
    """

    def __init__(self, path: Path, chains: int, particles: int, options: "TemperedSMC") -> None:
        self.path, self.chains, self.particles, self.options = path, chains, particles, options
        self.parts = Parts.at(path, path.draw(chains * particles))
        like: dict[str, Any] = {"dtype": torch.float64, "device": path.device}
        self.log_z, self.variance = torch.zeros(chains, **like), torch.zeros(chains, **like)
        self.ancestor = torch.arange(particles, device=path.device).repeat(chains, 1)
        self.beta, self.step = 0.0, path.dim**-0.25
        self.accept = torch.ones(chains * particles, dtype=path.dtype, device=path.device)
        self.stages: list[Stage] = []

    def run(self) -> "Annealing":
        """To beta = 1.

        Raises:
            NumericalError: no particle of a chain has a finite density, or the temperatures do not get anywhere.
        """
        with progress("tempered SMC", 100) as report:
            done = 0
            while self.beta < 1:
                if len(self.stages) == _STAGES:
                    raise NumericalError(
                        f"tempered SMC: beta is {self.beta:.2g} after {_STAGES} temperatures, since the likelihood has "
                        "a far larger range over the particles than they can follow; take more particles, or a "
                        "reference nearer to the posterior."
                    )
                self.advance()
                while done < int(100 * self.beta):
                    report(beta=self.beta, acceptance=self.stages[-1].row["acceptance"])
                    done += 1
        return self

    def advance(self) -> None:
        """One temperature: weigh, resample, move."""
        rest = self.parts.rest.reshape(self.chains, self.particles)
        if not bool((rest > -torch.inf).any(1).all()):
            raise NumericalError(
                f"tempered SMC: none of {self.particles} particles of a chain has a finite density at beta = "
                f"{self.beta:.3g}; look for observations that the program cannot produce, or take more particles."
            )
        beta = next_beta(rest, self.beta, self.options.ess)
        logs = torch.where(rest > -torch.inf, (beta - self.beta) * rest.double(), -torch.inf)
        total = logs.logsumexp(1)
        weights = (logs - total[:, None]).exp()
        log_ratio = total - math.log(self.particles)
        self.log_z += log_ratio
        mass = torch.zeros_like(weights).scatter_add_(1, self.ancestor, weights)  # of each prior draw's descendants
        self.variance = (mass - 1 / self.particles).square().sum(1)
        rows = systematic(weights)
        self.ancestor = self.ancestor.gather(1, rows)
        self.parts = self.parts.take(
            (rows + torch.arange(self.chains, device=rows.device)[:, None] * self.particles).flatten()
        )
        self.beta = beta
        numbers = {
            "beta": beta,
            "ess": float((1 / weights.square().sum(1)).mean()) / self.particles,
            "log_ratio": float(log_ratio.logsumexp(0)) - math.log(self.chains),
            "distinct": float((mass > 0).double().mean()),
        }
        self._move(numbers)

    def _move(self, numbers: dict[str, float]) -> None:
        """Trajectories at the present temperature until the particles have forgotten where they began, within bounds."""
        options, point = self.options, self.parts.point(self.beta)
        metric = fisher_metric(point.z, point.gradient, self.path.dim <= _DENSE)
        before, last = metric.whiten(self.parts.z), 1.0
        moves, rates = 0, []
        jitter = torch.empty(len(before), 1, dtype=before.dtype, device=before.device)
        while moves < options.max_moves:
            step = self.step * jitter.uniform_(0.6, 1.4)
            steps = leapfrogs(self.step, options.max_steps)
            self.parts, self.accept, _ = move(self.path, metric, self.parts, self.beta, step, steps)
            rate = float(self.accept.mean())
            self.step *= math.exp(min(max(rate - options.target_accept, -0.5), 0.5) * 2 / (1 + moves) ** 0.5)
            rates.append(rate)
            moves += 1
            alike = _correlation(before, metric.whiten(self.parts.z))
            mean = float(alike.clamp(min=0.0).mean())
            forgotten = float(alike.max()) < _ALIKE or (rate > 0.3 and last - mean < _STALLED)
            if moves >= options.min_moves and forgotten:
                break
            last = mean
        numbers |= {"acceptance": sum(rates) / moves, "step_size": self.step, "moves": moves}
        self.stages.append(Stage(self.beta, metric, self.step, numbers))


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Of each coordinate over particles, [d]; zero for one that does not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    return ((x * y).sum(0) / (x.square().sum(0) * y.square().sum(0)).sqrt()).nan_to_num(0.0)


@algorithm("tempered-smc")
@dataclass(frozen=True)
class TemperedSMC:
    """Adaptive tempered sequential Monte Carlo: particles go from the prior to the posterior through

        p_beta(z) = prior(z) likelihood(z)^beta / Z_beta,        0 = beta_0 < beta_1 < ... < beta_T = 1.

    At each temperature particles are weighted with likelihood^(beta_t - beta_{t-1}), resampled systematically, and moved by
    Hamiltonian trajectories that leave p_beta as it is. Each next temperature is the one at which the weights' effective
    sample size is the fraction `ess` of the particles. The log evidence is the sum of the logarithms of the mean weights.

    Several populations run at once and in lock step. They share temperatures, metrics and step sizes, which are learned
    from all particles, and nothing else: they are the chains of the result, and show whether it depends on the run.

    Arguments:
        particles: of each chain.
        chains: independent populations.
        ess: effective sample size of the weights from one temperature to the next, as a fraction of the particles.
        target_accept: mean acceptance that the step size is adapted to, at each temperature.
        min_moves, max_moves: trajectories at each temperature. Between the two, they end when no coordinate is
            correlated above 0.2 with what it was, or one more trajectory would take less than 0.02 from the mean correlation.
        max_steps: leapfrog steps of a trajectory, at most; with 1 the moves are Langevin steps (MALA).
        reference: where particles begin: "prior"; or, for programs with flat priors, a normal distribution of the
            unconstrained coordinates: its standard deviation about zero (a number), or (mean [d], standard deviations
            [d] or covariance [d, d]). It must be wider than the posterior in every direction.
        backend: "eager" replays the recorded graph; "inductor" compiles it.
        dtype: float64 where the data is, else float32; give one to choose.

    Returns:
        A `StagedPosterior`: unweighted draws [chain, particle], `log_evidence` an estimate whose standard error is the
        larger of two: that of the chains' spread, and that of the genealogy (how unevenly prior draws have descendants).
        With flat priors it is the log integral of the density that the program writes. `stats`: `lp`, `ancestor` (the prior draw
        that a particle descends from), `acceptance_rate` (of the last trajectory). `stages`: for each temperature `beta`,
        `ess` (of the incremental weights, a fraction of the particles), `log_ratio` (log Z over that of the temperature
        before, nats), `distinct` (fraction of the prior draws that have descendants), `acceptance`, `step_size`, `moves`.
        Particles with one ancestor lie next to each other, so that an effective sample size that takes their order for
        time counts those that are still alike as it should.

    Raises:
        TaskUnavailable: a prior that cannot be drawn from; the message names the site and the remedy.
        NumericalError: no particle has a finite likelihood.

    Source: Del Moral, Doucet and Jasra (2006); Zhou, Johansen and Aston (2016) for the temperatures; Chan and Lai (2013) and
    Lee and Whiteley (2018) for the variance from the genealogy; the metric is as in `ppl_dgm.inference.chains.adaptation.fisher_metric`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> post = dgm.infer(coin, torch.tensor(7.0), method=TemperedSMC(particles=500), seed=0)
        >>> abs(float(post.log_evidence.value + torch.tensor(11.0).log())) < 0.1  # p(7 heads) = 1 / 11
        True
    """

    particles: int = 1000
    chains: int = 4
    ess: float = 0.5
    target_accept: float = 0.8
    min_moves: int = 1
    max_moves: int = 10
    max_steps: int = 32
    reference: Reference = "prior"
    backend: str = "eager"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require(
            self,
            ("particles", is_count(self.particles, 2), "a whole number, at least 2"),
            ("chains", is_count(self.chains, 1), "a whole number, at least 1"),
            ("ess", 0 < self.ess < 1, "between 0 and 1"),
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
            ("min_moves", is_count(self.min_moves, 1), "a whole number, at least 1"),
            ("max_moves", is_count(self.max_moves, self.min_moves), "a whole number, at least min_moves"),
            ("max_steps", is_count(self.max_steps, 1), "a whole number, at least 1"),
            ("reference", check_reference(self.reference), "'prior', a positive number, or (mean, spread)"),
            ("backend", self.backend in ("eager", "inductor"), "'eager' or 'inductor'"),
            ("dtype", self.dtype in (None, torch.float32, torch.float64), "torch.float32 or torch.float64"),
        )

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        begun = time.perf_counter()
        density = LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)
        made = time.perf_counter() - begun
        with torch.no_grad():
            path = path_from(density, self.reference)
            annealing = Annealing(path, self.chains, self.particles, self).run()
            shape = (self.chains, self.particles)
            draws, deterministic = density.constrain(annealing.parts.z.reshape(*shape, density.dim))
        seconds = time.perf_counter() - begun
        point = annealing.parts.point(1.0)
        how = f"tempered SMC from {path.name}, {len(annealing.stages)} temperatures, {self.chains} x {self.particles} particles"
        return StagedPosterior(
            draws,
            deterministic=deterministic,
            log_evidence=self._evidence(annealing, density.dtype, how),
            stats={
                "lp": point.value.reshape(shape),
                "ancestor": annealing.ancestor,
                "acceptance_rate": annealing.accept.reshape(shape),
            },
            cost=Cost(
                steps=self.chains * self.particles,
                seconds=seconds,
                compile_seconds=made,
                gradients=density.gradients,
                sampling_seconds=seconds - made,
                path=density.path,
            ),
            how=how,
            kind="asymptotic",
            program=program,
            stages=pd.DataFrame([stage.row for stage in annealing.stages]),
        )

    def evidence(self, program: Any, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`: one example after another where they share no latent site, else all together."""
        examples = examples_of(program, args, kwargs)
        found = [(args, kwargs)] if examples is None else [examples.arguments(i) for i in range(examples.size)]
        scores = []
        for own_args, own_kwargs in found:
            score = self.run(program, *own_args, **own_kwargs).log_evidence
            assert score is not None
            scores.append(score)
        return scores[0] if examples is None else stacked_score(scores)

    def _evidence(self, annealing: Annealing, dtype: torch.dtype, how: str) -> Score:
        """log of the mean of the chains' Z, and its standard error."""
        log_z = annealing.log_z
        value = log_z.logsumexp(0) - math.log(self.chains)
        share = (log_z - value).exp()  # each chain's Z over their mean
        variance = (share.square() * annealing.variance).sum() / self.chains**2
        if self.chains > 1:
            variance = torch.maximum(variance, share.var() / self.chains)
        return Score(value.to(dtype), "estimate", variance.sqrt().to(dtype), how)
