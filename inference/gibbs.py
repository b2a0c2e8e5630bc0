"""Gibbs: each latent site from its full conditional in turn, the conditionals found from the program itself."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import FileError, NumericalError, TaskUnavailable
from ppl_dgm.files import load_tensors, save_tensors
from ppl_dgm.inference.chains.sampling import CHECKPOINT_SECONDS, stacked
from ppl_dgm.inference.conjugate.conjugacy import Conditional, Slopes, gaussian_blocks, recognise
from ppl_dgm.inference.conjugate.discrete import Flips, discrete_blocks
from ppl_dgm.inference.conjugate.factors import Factors, Values
from ppl_dgm.inference.conjugate.within_gibbs import Rest
from ppl_dgm.options import is_count, require
from ppl_dgm.progress import progress
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior
from ppl_dgm.text import listed

__all__ = ["Gibbs", "Sweep", "plan"]

_ROWS = 1024  # draws whose deterministic sites are computed at a time


@dataclass
class Sweep:
    """What one sweep does: the updates, in the order of the program's sites.

    Attributes:
        updates: each with `sites`, `label`, `sample(state)` and `holds(state)`.
        rest: the Metropolis update of the remaining continuous sites, or None.
    """

    updates: list[Any]
    rest: Rest | None

    def described(self) -> str:
        """Which site gets which update, in words."""
        parts = [f"{listed(u.sites)}: {u.label}" for u in [*self.updates, *([self.rest] if self.rest else [])]]
        return "; ".join(parts)


class _Misjudged(Exception):
    """Some sites' conditional is not what it was taken for."""

    def __init__(self, sites: tuple[str, ...]) -> None:
        super().__init__(sites)
        self.sites = sites


def plan(factors: Factors, state: Values, options: "Gibbs", plain: frozenset[str] = frozenset()) -> Sweep:
    """Find the full conditional of each site.

    Arguments:
        factors: the program.
        state: several points, {site: [chain, *shape]}, at which conditionals are put to the test.
        options: the sampler.
        plain: sites for which nothing is to be taken for granted.

    Raises:
        TaskUnavailable: a discrete site has no finite list of values.
    """
    discrete = [name for name, site in factors.latent.items() if site.discrete]
    continuous = [name for name, site in factors.latent.items() if not site.discrete]
    updates: list[Any] = discrete_blocks(factors, [name for name in discrete if name not in plain], state)
    for name in plain.intersection(discrete):
        lone = Flips(factors, factors.latent[name], state)
        lone.colours = [[i] for i in range(lone.count)]
        updates.append(lone)
    open_ = [name for name in continuous if name not in plain and options.conjugate]
    if options.blocks:
        updates += gaussian_blocks(factors, open_, state)
    done = {name for update in updates for name in update.sites}
    for name in open_:
        found = None if name in done else recognise(factors, factors.latent[name], state)
        if found is not None:
            updates.append(found)
            done.add(name)
    order = list(factors.latent)
    updates.sort(key=lambda update: min(order.index(name) for name in update.sites))
    left = [name for name in continuous if name not in done]
    rest = Rest(factors, left, state, options.rest, options.warmup, options.target_accept) if left else None
    return Sweep(updates, rest)


@dataclass
class _Run:
    """All that changes while sampling; what a checkpoint holds."""

    state: Values
    t: int = 0
    draws: list[Values] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    warmup_seconds: float = 0.0
    sampling_seconds: float = 0.0
    warmup_gradients: int = 0


@algorithm("gibbs")
@dataclass(frozen=True)
class Gibbs:
    """Gibbs sampling of any program: one sweep draws each latent site, or block of sites, from its full conditional.

    What a site's full conditional is, is found out from the program, with no table of conjugate pairs:

    - discrete sites of finite support are enumerated and drawn jointly given all else, through plates, chains and
      trees; elements that one factor ties together (a lattice) are drawn one by one, or in groups that do not interact;
    - real sites whose log density is quadratic are drawn from their Gaussian, several sites together where it is joint;
    - positive, unit-interval and simplex sites from a Gamma, InverseGamma, Beta or Dirichlet where the log density is
      linear in its sufficient statistics;
    - all other continuous sites move together by a Hamiltonian trajectory, or by slice sampling, given the rest.

    Conditionals are tested again, at the states that the chains have reached, at sweeps 1, 2, 4, 8, ...; one that
    turns out to be of another form is replaced and the run begins again. `Posterior.how` says which site got which
    update.

    Arguments:
        chains: chains that run at once.
        warmup: sweeps thrown away; step size, metric and slice widths of the remaining sites are learned in them.
        draws: sweeps kept of each chain.
        rest: how sites without a known conditional move: "hmc" or "slice".
        blocks: draw real sites that are jointly Gaussian together.
        conjugate: look for conjugate conditionals at all; otherwise every continuous site belongs to the rest.
        target_accept: mean acceptance that the step size of "hmc" is adapted to.
        radius: continuous sites start uniformly on [-radius, radius] in their unconstrained coordinates.
        checkpoint: a file, written every ten seconds; a run that finds it there goes on from it, to the same draws.

    Returns, in `Posterior.stats`, for each draw: `lp` (log p(x, z), in the sites' own spaces), and of the rest by "hmc"
    `acceptance_rate`, `step_size`, `diverging`.

    Raises:
        TaskUnavailable: a discrete site has no finite list of values, a plate is subsampled, nothing is latent.
        NumericalError: a conditional cannot be normalised; the message names the site.

    Source: Geman and Geman (1984); Gelfand and Smith (1990).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ppl_dgm as dgm
        >>> def normal(x):
        ...     precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, precision.rsqrt()), obs=x)
        >>> dgm.infer(normal, torch.randn(20), method=Gibbs(warmup=10, draws=50), seed=0).how
        'Gibbs, 4 chains of 10 + 50; precision: Gamma (conjugate); mean: Normal (conjugate)'
    """

    chains: int = 4
    warmup: int = 200
    draws: int = 1000
    rest: str = "hmc"
    blocks: bool = True
    conjugate: bool = True
    target_accept: float = 0.8
    radius: float = 2.0
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        require(
            self,
            ("chains", is_count(self.chains, 1), "a whole number, at least 1"),
            ("warmup", is_count(self.warmup, 0), "a whole number, at least 0"),
            ("draws", is_count(self.draws, 1), "a whole number, at least 1"),
            ("rest", self.rest in ("hmc", "slice"), "'hmc' or 'slice'"),
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
            ("radius", self.radius > 0, "positive"),
        )

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`."""
        begun = time.perf_counter()
        factors = Factors(program, *args, **kwargs)
        if not factors.latent:
            raise TaskUnavailable(
                f"{factors.program.name!r} has no latent site for these arguments, so there is nothing to infer."
            )
        plain: frozenset[str] = frozenset()
        sweep, run = Sweep([], None), None
        while run is None:
            state = factors.initial(max(self.chains, 3), self.radius)  # more points make a safer test
            sweep = plan(factors, state, self, plain)
            try:
                run = self._sample(factors, sweep, {name: value[: self.chains] for name, value in state.items()})
            except _Misjudged as error:
                plain |= set(error.sites)
        return self._posterior(factors, sweep, run, program, begun)

    # -- sweeps ----------------------------------------------------------------------------------------------

    def _sample(self, factors: Factors, sweep: Sweep, state: Values) -> _Run:
        run = _Run(state)
        if sweep.rest is not None:
            run.state = {**state, **sweep.rest.begin(state)}
        if self.checkpoint is not None and Path(self.checkpoint).exists():
            self._read(factors, sweep, run)
        saved, total = time.perf_counter(), self.warmup + self.draws
        with torch.no_grad(), progress("Gibbs", total, run.t) as report:
            while run.t < total:
                self._advance(factors, sweep, run)
                report(lp=float(run.rows[-1]["lp"].mean())) if run.rows else report()
                due = run.t == total or time.perf_counter() - saved > CHECKPOINT_SECONDS
                if self.checkpoint is not None and due:
                    self._write(factors, sweep, run)
                    saved = time.perf_counter()
        return run

    def _advance(self, factors: Factors, sweep: Sweep, run: _Run) -> None:
        """One sweep of all chains."""
        begun, learning, stats = time.perf_counter(), run.t < self.warmup, dict[str, Any]()
        if run.t & (run.t - 1) == 0:
            _check(sweep, run.state)
        for update in sweep.updates:
            run.state = {**run.state, **update.sample(run.state)}
        if sweep.rest is not None:
            values, stats = sweep.rest.step(run.state, run.t, learning)
            run.state = {**run.state, **values}
            if run.t + 1 == self.warmup:
                sweep.rest.settle()
        if not learning:
            run.draws.append(run.state)
            lp = factors.log_joint(run.state)
            _check_finite(sweep, run.state, lp)
            run.rows.append({"lp": lp, **stats})
        run.t += 1
        if learning:
            run.warmup_seconds += time.perf_counter() - begun
            run.warmup_gradients = _gradients(sweep)
        else:
            run.sampling_seconds += time.perf_counter() - begun

    def _posterior(self, factors: Factors, sweep: Sweep, run: _Run, program: Any, begun: float) -> Posterior:
        draws = {name: torch.stack([state[name] for state in run.draws], 1) for name in factors.latent}
        flat = {name: value.flatten(0, 1) for name, value in draws.items()}
        count = len(next(iter(flat.values())))
        parts = [
            factors.computed({name: value[start : start + _ROWS] for name, value in flat.items()})
            for start in range(0, count, _ROWS)
        ]
        computed = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        deterministic = {name: value.reshape(self.chains, -1, *value.shape[1:]) for name, value in computed.items()}
        cost = Cost(
            steps=self.chains * self.draws,
            seconds=time.perf_counter() - begun,
            compile_seconds=factors.recording_seconds,
            gradients=_gradients(sweep),
            warmup_seconds=run.warmup_seconds,
            sampling_seconds=run.sampling_seconds,
            warmup_gradients=run.warmup_gradients,
            path=factors.path,
        )
        how = f"Gibbs, {self.chains} chain{'s' if self.chains > 1 else ''} of {self.warmup} + {self.draws}; "
        return Posterior(
            {name: factors.to_native(value) for name, value in draws.items()},
            deterministic={name: factors.to_native(value) for name, value in deterministic.items()},
            stats=stacked(run.rows, self.chains),
            cost=cost,
            how=how + sweep.described(),
            kind="asymptotic",
            program=program,
        )

    # -- resumption ------------------------------------------------------------------------------------------

    def _signature(self, factors: Factors, sweep: Sweep) -> dict[str, str]:
        """What has to be the same for a run to go on."""
        names = ("chains", "warmup", "rest", "blocks", "conjugate", "target_accept", "radius")
        shapes = ", ".join(f"{name} {list(site.shape)}" for name, site in factors.latent.items())
        return {**{n: str(getattr(self, n)) for n in names}, "sites": shapes, "updates": sweep.described()}

    def _write(self, factors: Factors, sweep: Sweep, run: _Run) -> None:
        tensors = {f"state/{name}": value for name, value in run.state.items()}
        if run.draws:
            tensors |= {f"draws/{n}": torch.stack([state[n] for state in run.draws]) for n in run.state}
            table = stacked(run.rows, self.chains)
            tensors |= {f"stats/{name}": value.mT for name, value in table.items()}
        notes: dict[str, Any] = {"run": self._signature(factors, sweep), "t": run.t}
        notes["seconds"] = [run.warmup_seconds, run.sampling_seconds]
        notes["gradients"] = [_gradients(sweep), run.warmup_gradients]
        if sweep.rest is not None:
            learned, notes["adaptation"] = sweep.rest.adaptation.state()
            tensors |= {f"adaptation/{name}": value for name, value in learned.items()}
            kernel = sweep.rest.kernel
            notes["kernel"] = {name: getattr(kernel, name) for name in kernel.remembered}
        tensors["random/cpu"] = torch.get_rng_state()
        if factors.device is not None and factors.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(factors.device)
        save_tensors(self.checkpoint, tensors, notes)  # type: ignore[arg-type]

    def _read(self, factors: Factors, sweep: Sweep, run: _Run) -> None:
        assert self.checkpoint is not None
        tensors, notes = load_tensors(self.checkpoint)
        if not isinstance(notes, dict) or "run" not in notes or "t" not in notes:
            raise FileError(f"{self.checkpoint} is no checkpoint of a sampler; give another file for checkpoint=.")
        for name, mine in self._signature(factors, sweep).items():
            if notes["run"].get(name) != mine:
                raise FileError(
                    f"checkpoint {self.checkpoint} belongs to another run ({name} was {notes['run'].get(name)} and is "
                    f"{mine}); remove it or give another file for checkpoint=."
                )

        def group(prefix: str) -> Values:
            found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            return {name: value.to(factors.device).clone() for name, value in found.items()}

        run.state, draws, stats = group("state/"), group("draws/"), group("stats/")
        count = min(len(next(iter(draws.values()), torch.empty(0))), self.draws)
        run.draws = [{name: value[i] for name, value in draws.items()} for i in range(count)]
        run.rows = [{name: value[i] for name, value in stats.items()} for i in range(count)]
        run.t = min(notes["t"], self.warmup + self.draws)
        run.warmup_seconds, run.sampling_seconds = notes["seconds"]
        if sweep.rest is not None:
            sweep.rest.adaptation.restore(group("adaptation/"), notes["adaptation"])
            sweep.rest.density.gradients, run.warmup_gradients = notes["gradients"]
            for name, value in notes["kernel"].items():
                setattr(sweep.rest.kernel, name, value)
        torch.set_rng_state(tensors["random/cpu"])
        if "random/cuda" in tensors and factors.device is not None:
            torch.cuda.set_rng_state(tensors["random/cuda"], factors.device)


def _check(sweep: Sweep, state: Values) -> None:
    """Whether the conditionals still are what they were taken for."""
    for update in sweep.updates:
        if not update.holds(state):
            raise _Misjudged(update.sites)


def _check_finite(sweep: Sweep, state: Values, lp: Tensor) -> None:
    if bool(lp.isnan().any()):
        bad = [name for name, value in state.items() if value.is_floating_point() and bool(value.isnan().any())]
        named = f"site {bad[0]!r} is not a number" if bad else "the log density is not a number"
        raise NumericalError(
            f"Gibbs: {named} after a sweep ({sweep.described()}); look for divisions by zero, or take conjugate=False."
        )


def _gradients(sweep: Sweep) -> int:
    """Gradient evaluations so far, of single chains."""
    slopes = [update.slopes for update in sweep.updates if isinstance(update, Conditional)]
    conditionals = sum(s.gradients for s in slopes if isinstance(s, Slopes))
    return conditionals + (sweep.rest.density.gradients if sweep.rest is not None else 0)
