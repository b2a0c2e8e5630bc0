"""The driver that every sampler on a LogDensity shares: warm-up, draws, statistics, resumption, Posterior."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import NumericalError
from ppl_dgm.inference.chains.adaptation import Adaptation, Warmup, metric_form
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point
from ppl_dgm.inference.chains.resuming import read_run, write_run
from ppl_dgm.inference.chains.starting import Start, starting_points, superchain_of
from ppl_dgm.options import is_count, require
from ppl_dgm.progress import progress
from ppl_dgm.results import Cost, Posterior
from ppl_dgm.text import listed

__all__ = ["ChainSampler", "Drawn", "HamiltonianSampler", "Kernel", "Run"]

METRICS = ("auto", "dense", "low-rank", "diagonal")
CHECKPOINT_SECONDS = 10.0  # at least so long between two checkpoints
_ROUNDING = 0.05  # nats by which rounding may blur an acceptance before a warning


@dataclass
class Drawn:
    """One step of all chains.

    Attributes:
        point: where they are now.
        acceptance: the acceptance statistic of each, [chain].
        stats: what else to keep of it, {name: [chain] or a number for all chains}.
    """

    point: Point
    acceptance: Tensor
    stats: dict[str, Any]


class Kernel:
    """How the chains take one step, and what it learns in warm-up besides step size and metric.

    All that changes from step to step is an attribute named in `remembered` (a tensor, or what JSON can hold), so that
    a run can be resumed.
    """

    name = ""
    remembered: tuple[str, ...] = ()

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        """One transition that leaves the density invariant; t counts steps from the start of warm-up."""
        raise NotImplementedError

    def restart(self) -> None:
        """The metric is another now, and far from final."""

    def settle(self) -> None:
        """Warm-up is over."""


@dataclass
class Run:
    """All that changes while sampling; what a checkpoint holds."""

    point: Point
    warmup: Adaptation
    kernel: Kernel
    t: int
    draws: list[Tensor]
    rows: list[dict[str, Any]]
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    gradients: int = 0
    warmup_gradients: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class ChainSampler:
    """Many chains at once on a LogDensity: the options that all share. A sampler adds its own, its kernel and its adaptation.

    Arguments:
        chains: chains that run at once.
        warmup: steps that learn, thrown away.
        draws: draws kept of each chain.
        backend: "eager" replays the recorded graph; "inductor" compiles it.
        dtype: float64 where the data is, else float32; give one to choose.
        checkpoint: a file, written every ten seconds; a run that finds it there goes on from it, to the same draws.
        superchains: groups of chains, each of which starts at one point; for the nested R-hat of many short chains,
            which compares these groups. Each draw's group is the statistic `superchain`.
        radius: starting points are uniform on [-radius, radius] in each unconstrained coordinate.
        start: where to start instead: a `Posterior` (a draw at random for each chain), "guide" (draws of the program's guide),
            {site: value} with one value for all chains or one for each, or points of R^d, [d] or [chain, d].

    Attributes:
        kind: what its draws converge to: "asymptotic" (the posterior), or "approximate" (something near it).
        needs_gradient: whether the density must have one.
    """

    chains: int = 4
    warmup: int = 500
    draws: int = 1000
    backend: str = "eager"
    dtype: torch.dtype | None = None
    checkpoint: str | Path | None = None
    superchains: int | None = None
    radius: float = 2.0
    start: Start = None
    kind: ClassVar[str] = "asymptotic"
    needs_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(
            self,
            ("chains", is_count(self.chains, 1), "a whole number, at least 1"),
            ("warmup", is_count(self.warmup, 0), "a whole number, at least 0"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
            ("backend", self.backend in ("eager", "inductor"), "'eager' or 'inductor'"),
            ("dtype", self.dtype in (None, torch.float32, torch.float64), "torch.float32 or torch.float64"),
            ("superchains", self._divides(self.superchains), f"a divisor of the {self.chains} chains, at least 2"),
            ("radius", self.radius > 0, "positive"),
        )

    def _divides(self, groups: int | None) -> bool:
        return groups is None or (is_count(groups, 2) and self.chains % groups == 0)

    def kernel(self) -> Kernel:
        """A fresh kernel with these options."""
        raise NotImplementedError

    def adaptation(self, density: Density) -> Adaptation:
        """What warm-up is to learn of this density."""
        raise NotImplementedError

    def point(self, density: Density, z: Tensor) -> Point:
        """The density at z, with its gradient; a sampler that needs none leaves that at zero."""
        return Point.at(density, z)

    def density(self, program: Any, *args: Any, **kwargs: Any) -> Any:
        """What is sampled: the program's log density, or an estimate of it."""
        return LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)

    def remark(self, density: Any, run: Run) -> str:
        """What `Posterior.how` should say besides."""
        return ""

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`.

        Raises:
            TaskUnavailable: the program has no density on R^d; the message names the site and what can be done.
            NumericalError: no starting point has a finite density and gradient.
            FileError: `checkpoint` is damaged or belongs to another run.
        """
        begun = time.perf_counter()
        density = self.density(program, *args, **kwargs)
        made = time.perf_counter() - begun
        with torch.no_grad():
            run = self.sample(density)
            stats = stacked(run.rows, self.chains)
            if self.superchains is not None:
                group = superchain_of(self.chains, self.superchains).to(density.device)
                stats["superchain"] = group[:, None].expand(-1, self.draws).contiguous()
            z = torch.stack(run.draws, 1)  # [chain, draw, d]
            draws, deterministic = density.constrain(z)
        cost = Cost(
            steps=self.chains * self.draws,
            seconds=time.perf_counter() - begun,
            compile_seconds=made + _recording_seconds(density),
            gradients=run.gradients,
            evaluations=run.evaluations,
            warmup_seconds=run.warmup_seconds,
            sampling_seconds=run.sampling_seconds,
            warmup_gradients=run.warmup_gradients,
            path=density.path,
        )
        how = f"{run.kernel.name}, {self.chains} chain{'s' if self.chains > 1 else ''} of {self.warmup} + {self.draws}"
        if self.superchains is not None:
            how += f" in {self.superchains} superchains"
        if density.summed:
            how += f"; {listed([repr(name) for name in density.summed])} summed out, so without draws"
        how += self.remark(density, run)
        moved = run.warmup.relocated
        if moved:
            how += f"; {moved} time{'s' if moved > 1 else ''} in warm-up a chain was moved from where the density is negligible"
        return Posterior(
            draws,
            deterministic=deterministic,
            stats=stats,
            cost=cost,
            how=how,
            kind=self.kind,
            program=program,
        )

    def sample(self, density: Any, initial: Tensor | None = None) -> Run:
        """Warm up and draw on any density on R^d.

        Arguments:
            density: a `LogDensity`, or an object with `dim`, `dtype`, `device`, `value_and_grad` and `gradient`.
            initial: starting points, [chain, d]; by default the density's own dispersed ones.

        Returns:
            the run, with `draws` a list of positions [chain, d] and `rows` one dictionary of statistics per draw.
        """
        with torch.no_grad():
            before = _counts(density)
            run = self._begin(density, initial)
            if run.t:  # a resumed run: what was counted then is in it
                before = [now - then for now, then in zip(_counts(density), (run.gradients, run.evaluations))]
            saved, total = time.perf_counter(), self.warmup + self.draws
            with progress(run.kernel.name, total, run.t) as report:
                while run.t < total:
                    self._advance(density, run, report)
                    run.gradients, run.evaluations = (n - m for n, m in zip(_counts(density), before))
                    if run.t <= self.warmup:
                        run.warmup_gradients = run.gradients
                    if self.checkpoint is not None and (
                        run.t == total or time.perf_counter() - saved > CHECKPOINT_SECONDS
                    ):
                        write_run(self.checkpoint, self, density, run)
                        saved = time.perf_counter()
        return run

    def _begin(self, density: Any, initial: Tensor | None) -> Run:
        """A new run, or the one that the checkpoint holds."""
        begun, counted = time.perf_counter(), _counts(density)[0]
        warmup = self.adaptation(density)
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            return read_run(self.checkpoint, self, density, warmup)
        z = starting_points(self, density) if initial is None else initial
        point = warmup.begin(density, self.point(density, z))
        _check_rounding(point)
        run = Run(point, warmup, self.kernel(), 0, [], [])
        run.warmup_seconds = time.perf_counter() - begun
        run.gradients = run.warmup_gradients = _counts(density)[0] - counted
        return run

    def _advance(self, density: Any, run: Run, report: Any) -> None:
        """One step of all chains, and what is learned from it or kept of it."""
        begun = time.perf_counter()
        warmup, learning = run.warmup, run.t < self.warmup
        step = warmup.step
        drawn = run.kernel.step(density, warmup.metric, run.point, step, run.t, learning)
        run.point = drawn.point
        if learning:
            acceptance = float(drawn.acceptance.mean())
            run.point, renewed = warmup.update(density, run.point, acceptance, run.t)
            if renewed and 2 * run.t < self.warmup:
                run.kernel.restart()
            if run.t + 1 == self.warmup:
                self._finish_warmup(run)
            report(step_size=step, acceptance=acceptance)
            run.warmup_seconds += time.perf_counter() - begun
        else:
            run.draws.append(run.point.z)
            run.rows.append(
                {
                    "lp": run.point.value,
                    "acceptance_rate": drawn.acceptance,
                    "step_size": step,
                    **drawn.stats,
                }
            )
            report(step_size=step)
            run.sampling_seconds += time.perf_counter() - begun
        run.t += 1

    def _finish_warmup(self, run: Run) -> None:
        run.warmup.finish()
        run.kernel.settle()
        if not run.warmup.step > 1e-12:
            raise NumericalError(
                f"{run.kernel.name}: the step size fell to {run.warmup.step:.1g}, since hardly any step is accepted; "
                "look for jumps in the density, use dtype=torch.float64, or rescale the program's sites."
            )


@dataclass(frozen=True)
class HamiltonianSampler(ChainSampler):
    """Options of the samplers with a step size adapted to an acceptance, and a metric learned from all chains."""

    target_accept: float = 0.8
    metric: str = "auto"
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
            ("metric", self.metric in METRICS, f"one of {', '.join(map(repr, METRICS))}"),
            ("step_size", self.step_size is None or self.step_size > 0, "positive, or None to learn it"),
        )

    def adaptation(self, density: Density) -> Adaptation:
        form = metric_form(self.metric, density.dim)
        return Warmup(self.warmup, self.target_accept, fixed_step=self.step_size, **form)


def stacked(rows: list[dict[str, Any]], chains: int) -> dict[str, Tensor]:
    """Statistics of each draw as tensors, {name: [chain, draw]}."""
    table = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, Tensor):
            table[name] = torch.stack(values, 1)
        else:
            table[name] = torch.tensor(values).expand(chains, -1).contiguous()
    return table


def _counts(density: Any) -> list[int]:
    """Evaluations so far: with gradients, and of the log density alone."""
    return [getattr(density, "gradients", 0), getattr(density, "evaluations", 0)]


def _check_rounding(point: Point) -> None:
    blur = float(point.value.abs().median()) * torch.finfo(point.value.dtype).eps
    if blur > _ROUNDING:
        warnings.warn(
            f"the log density is about {float(point.value.median()):.2g}, which {point.value.dtype} knows only to "
            f"{blur:.2g} nats, so that acceptances are blurred; use dtype=torch.float64.",
            RuntimeWarning,
            stacklevel=6,
        )


def _recording_seconds(density: Any) -> float:
    return float(sum(recorder.seconds for recorder in getattr(density, "_graphs", {}).values()))
