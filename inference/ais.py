"""AIS: annealed importance sampling, forward and reverse: the evidence between two stochastic bounds."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.annealed.annealing import (
    GibbsAnnealer,
    PathAnnealer,
    backward,
    equal_barriers,
    forward,
    sigmoidal,
)
from ppl_dgm.inference.annealed.by_example import Examples, examples_of, stacked_score
from ppl_dgm.inference.annealed.tempering import Parts, Reference, check_reference, path_from
from ppl_dgm.inference.annealed.together import ExamplesPath, examples_path
from ppl_dgm.inference.approximating.weighing import LogMean
from ppl_dgm.inference.diagnostics.psis import pareto_shape
from ppl_dgm.inference.tempered_smc import Annealing, TemperedSMC
from ppl_dgm.options import is_count, require
from ppl_dgm.program import Program, as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

__all__ = ["AIS", "Sandwich"]

_ROWS = 2**15  # examples x particles annealed at once
_SCHEDULES = ("sigmoidal", "linear", "adaptive")


@dataclass(frozen=True, repr=False)
class Sandwich(Score):
    """An estimate of a log density between two stochastic bounds on it.

    Attributes:
        value, kind, stderr, how: as in `Score`; `stderr` is at least half of what the chains forward and backward differ by.
        lower: a `Score` of kind `lower_bound`: some standard errors (three, unless `AIS` was told otherwise) below what the
            chains forward give.
        upper: a `Score` of kind `upper_bound`: as many above what the chains backward give; None where there are none.
    """

    lower: Score | None = None
    upper: Score | None = None

    @property
    def gap(self) -> Tensor:
        """upper - lower, nats, of the value's shape; NaN where there is no upper bound."""
        if self.lower is None or self.upper is None:
            return torch.full_like(self.value, math.nan)
        return self.upper.value - self.lower.value

    def contains(self, value: Any) -> Tensor:
        """Whether a value lies between the bounds, True or False, of the score's shape."""
        if self.lower is None or self.upper is None:
            raise TaskUnavailable("there is no upper bound, since no chain was run backward; give AIS posterior=....")
        return (self.lower.value <= value) & (value <= self.upper.value)

    def __repr__(self) -> str:
        text = super().__repr__()
        if self.lower is None or self.upper is None or len(self) > 1:
            return text
        return f"{text[:-1]}; between {float(self.lower.value):.3f} and {float(self.upper.value):.3f})"


@algorithm("ais")
@dataclass(frozen=True)
class AIS:
    """Annealed importance sampling: chains that move from the prior to the posterior while it is made colder step by step,

        log w = sum_t (beta_t - beta_{t-1}) log p(x | z_{t-1}),     z_t ~ a transition that leaves prior * likelihood^beta_t,

    with E[w] = p(x): a stochastic lower bound log mean(w) of log p(x), whose expectation is below it and which exceeds it
    by b nats with probability at most e^-b. Chains from exact posterior draws back to the prior give E[1 / w] = 1 / p(x)
    and so a stochastic upper bound. The two meet as temperatures get more: a sandwich, whose gap says how much to
    trust either (bidirectional Monte Carlo).

    Transitions are Hamiltonian trajectories whose metrics and step sizes a pilot run of tempered SMC has learned before, so
    that the bounds hold for any number of particles.

    Programs whose sites all lie inside the plate `data` (a VAE) have a value, and weights, for each example. Their examples are
    annealed together where the program follows the number of rows it is given: they share temperatures, metric and step
    sizes, which the bounds do not depend on. Otherwise it is one after another. All other programs have one value for all
    observations together.

    Undirected programs with tempered Gibbs transitions (`dgm.models.RBM`) are annealed from independent units with the
    visible biases; `score` gives log p(x) = -F(x) - log Z with the estimated log Z, and `log_partition` log Z itself. Chains
    run back from exact draws where the states can be listed, else from the end of a long Gibbs run, which `how` says.

    Arguments:
        particles: chains, forward and (as many) backward.
        temperatures: T, steps from beta = 0 to 1.
        schedule: "sigmoidal", "linear", or "adaptive": equal unevenness of the weights at each step, from the pilot (not
            for undirected programs).
        posterior: where chains backward begin: {site: [n, *shape]} (or [*shape] for one draw), or a `Posterior`, such as a
            long run of NUTS. The upper bound is one only if these are exact draws, each by itself; they may depend
            on each other. For data simulated from the program, the latent values that the data were simulated
            with are one. For undirected programs, {site: [n, *shape]} of the visible site. None: no upper bound.
        pilot: particles of the pilot run.
        max_steps: leapfrog steps of a trajectory, at most.
        sigmas: standard errors by which the bounds are moved outward, so that with many temperatures, where the two meet,
            the truth still lies in between; 0 gives the plain averages.
        reference: as in `TemperedSMC`.
        backend, dtype: as in `HMC`.

    Returns:
        `infer`: a `Posterior` of weighted draws [1, particle] with log weights [particle] (or [particle, batch]), its
        `log_evidence` a `Sandwich`. `score`: the `Sandwich`, with `lower`, `upper`, `gap`.

    Raises:
        TaskUnavailable: a prior that cannot be drawn from.

    Source: Neal (2001); Grosse, Ghahramani and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte
    Carlo; Salakhutdinov and Murray (2008) for RBMs; Wu, Burda, Salakhutdinov and Grosse (2017) for decoders.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> exact = {"p": dist.Beta(8.0, 4.0).sample((100,))}
        >>> found = dgm.score(coin, torch.tensor(7.0), method=AIS(temperatures=50, posterior=exact), seed=0)
        >>> bool(found.contains(-torch.tensor(11.0).log()))  # p(7 heads) = 1 / 11
        True
    """

    particles: int = 256
    temperatures: int = 300
    schedule: str = "sigmoidal"
    posterior: Any = field(default=None, repr=False, compare=False)
    pilot: int = 256
    max_steps: int = 16
    sigmas: float = 3.0
    reference: Reference = "prior"
    backend: str = "eager"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        require(
            self,
            ("particles", is_count(self.particles, 2), "a whole number, at least 2"),
            ("temperatures", is_count(self.temperatures, 1), "a whole number, at least 1"),
            ("schedule", self.schedule in _SCHEDULES, f"one of {', '.join(map(repr, _SCHEDULES))}"),
            ("pilot", is_count(self.pilot, 16), "a whole number, at least 16"),
            ("max_steps", is_count(self.max_steps, 1), "a whole number, at least 1"),
            ("sigmas", self.sigmas >= 0, "a number, at least 0"),
            ("reference", check_reference(self.reference), "'prior', a positive number, or (mean, spread)"),
            ("backend", self.backend in ("eager", "inductor"), "'eager' or 'inductor'"),
            ("dtype", self.dtype in (None, torch.float32, torch.float64), "torch.float32 or torch.float64"),
        )
        if self.posterior is not None and not isinstance(self.posterior, (dict, Posterior)):
            raise ProgramError(
                f"AIS: posterior must be a Posterior or draws {{site: tensor}}, but it is a {type(self.posterior).__name__}."
            )

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """See `ppl_dgm.infer`."""
        if hasattr(program, "tempered_gibbs"):
            raise TaskUnavailable(
                f"AIS anneals the undirected {program.name!r} for its log Z alone; use dgm.score, or dgm.infer with the "
                "program's own method."
            )
        begun = time.perf_counter()
        examples = examples_of(program, args, kwargs)
        with torch.no_grad():
            if examples is None:
                post = self._anneal(program, args, kwargs, _draws(self.posterior))
            else:
                post = self._together(program, args, kwargs, examples) or self._each(program, examples)
        post.cost.seconds = time.perf_counter() - begun
        post.cost.sampling_seconds = post.cost.seconds - post.cost.compile_seconds
        return post

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """See `ppl_dgm.score`."""
        if hasattr(program, "tempered_gibbs"):
            return self._undirected(program, args[0])
        evidence = self.run(program, *args, **kwargs).log_evidence
        assert evidence is not None
        return evidence

    # -- directed programs -----------------------------------------------------------------------------------

    def _together(self, program: Program, args: tuple, kwargs: dict, examples: Examples) -> Posterior | None:
        """All examples at once, some thousand rows at a time, or None where the program cannot be run so."""
        if self.reference != "prior":
            return None
        start, most = _draws(self.posterior), max(1, _ROWS // max(self.particles, self.pilot))
        posts = []
        for begin in range(0, examples.size, most):
            rows = slice(begin, begin + most)
            part = examples.part(rows)
            found = examples_path(program, part.args, part.kwargs, part, dtype=self.dtype, backend=self.backend)
            if found is None:
                return None
            own = None if start is None else {k: v.to(program.device) for k, v in part.rows_of(start, rows).items()}
            posts.append(self._anneal_examples(program, found, own))
        whole = posts[0]
        if len(posts) == 1:
            return whole
        costs = [post.cost for post in posts]
        return replace(
            whole,
            draws=examples.joined([post.draws for post in posts]),
            log_weights=torch.cat([post.log_weights for post in posts if post.log_weights is not None], 1),
            log_evidence=_beside([post.log_evidence for post in posts if isinstance(post.log_evidence, Sandwich)]),
            stats={name: torch.cat([post.stats[name] for post in posts], 2) for name in whole.stats},
            cost=replace(costs[0], steps=sum(c.steps for c in costs), gradients=sum(c.gradients for c in costs)),
        )

    def _anneal_examples(self, program: Program, path: ExamplesPath, start: dict[str, Tensor] | None) -> Posterior:
        """Pilot, chains forward and chains backward of every example at once."""
        size, dtype = path.size, path.dtype
        ends = None if start is None else path.ends(self._given(start, path), self.particles)
        pilot = TemperedSMC(particles=self.pilot, chains=1, max_steps=self.max_steps)
        stages = Annealing(path, size, self.pilot, pilot).run().stages
        betas = equal_barriers(stages, self.temperatures) if self.schedule == "adaptive" else self._schedule()
        annealer = PathAnnealer(path, stages, self.max_steps)
        state, up = forward(annealer, betas.tolist(), size * self.particles)
        acceptance = torch.stack(annealer.accepted).mean() if annealer.accepted else torch.ones(())
        log_weights = up.unflatten(0, (size, self.particles)).mT.contiguous()  # [particle, example]
        down, note = None, ""
        if ends is not None:
            down = backward(annealer, betas.tolist(), Parts.at(path, ends)).unflatten(0, (size, self.particles)).mT
            count = min(len(next(iter(start.values()))), self.particles)  # type: ignore[union-attr]
            note = f" from {count} given draw{'s' * (count > 1)}"
        how = f"annealed importance sampling from {path.name}, {self.temperatures} temperatures, {self.particles} particles"
        lp = state.point(1.0).value.unflatten(0, (size, self.particles)).mT
        return Posterior(
            {name: value[None] for name, value in path.constrain(state.z).items()},
            log_weights=log_weights.to(dtype),
            log_evidence=_sandwich(log_weights, down, self.sigmas, dtype, how, note),
            stats={"lp": lp[None], "acceptance_rate": acceptance.to(dtype).expand(1, *lp.shape).contiguous()},
            cost=Cost(self.particles * size, gradients=path.gradients, path=path.density.path),
            how=f"{how}, {size} examples at once",
            program=program,
        )

    def _given(self, start: dict[str, Tensor], path: ExamplesPath) -> dict[str, Tensor]:
        """The given posterior draws, {site: [n, *shape]}."""
        shapes = {name: value.shape[1:] for name, value in path.constrain(path.draw(path.size)).items()}
        return {name: _fitting(start, name, shape) for name, shape in shapes.items()}

    def _each(self, program: Program, examples: Examples) -> Posterior:
        """One example after another, joined."""
        start = _draws(self.posterior)
        posts = []
        for i in range(examples.size):
            args, kwargs = examples.arguments(i)
            posts.append(self._anneal(program, args, kwargs, None if start is None else examples.draws(start, i)))
        scores = [post.log_evidence for post in posts if isinstance(post.log_evidence, Sandwich)]
        middle = stacked_score(list(scores))
        evidence = Sandwich(
            middle.value, middle.kind, middle.stderr, f"{middle.how} (first example)", middle.stats,
            lower=stacked_score([score.lower for score in scores if score.lower is not None]),
            upper=None if start is None else stacked_score([score.upper for score in scores if score.upper is not None]),
        )  # fmt: skip
        costs = [post.cost for post in posts]
        return replace(
            posts[0],
            draws=examples.joined([post.draws for post in posts]),
            deterministic=examples.joined([post.deterministic for post in posts]) if posts[0].deterministic else {},
            log_weights=torch.stack([post.log_weights for post in posts if post.log_weights is not None], 1),
            log_evidence=evidence,
            cost=replace(
                costs[0],
                steps=sum(cost.steps for cost in costs),
                compile_seconds=sum(cost.compile_seconds for cost in costs),
                gradients=sum(cost.gradients for cost in costs),
            ),
        )

    def _anneal(self, program: Program, args: tuple, kwargs: dict, start: dict[str, Tensor] | None) -> Posterior:
        """All observations together: pilot, chains forward, chains backward."""
        begun = time.perf_counter()
        density = LogDensity(program, *args, dtype=self.dtype, backend=self.backend, **kwargs)
        made = time.perf_counter() - begun
        path = path_from(density, self.reference)
        ends = None if start is None else self._ends(density, start)
        pilot = TemperedSMC(particles=self.pilot, chains=1, max_steps=self.max_steps)
        stages = Annealing(path, 1, self.pilot, pilot).run().stages
        betas = equal_barriers(stages, self.temperatures) if self.schedule == "adaptive" else self._schedule()
        annealer = PathAnnealer(path, stages, self.max_steps)
        state, log_weights = forward(annealer, betas.tolist(), self.particles)
        acceptance = torch.stack(annealer.accepted).mean() if annealer.accepted else torch.ones(())
        down, note = None, ""
        if ends is not None:
            repeats = torch.arange(self.particles, device=ends.device) % len(ends)
            down = backward(annealer, betas.tolist(), Parts.at(path, ends[repeats]))
            note = f" from {min(len(ends), self.particles)} given draw{'s' * (len(ends) > 1)}"
        how = f"annealed importance sampling from {path.name}, {self.temperatures} temperatures, {self.particles} particles"
        draws, deterministic = density.constrain(state.z[None])
        shape = (1, self.particles)
        return Posterior(
            draws,
            deterministic=deterministic,
            log_weights=log_weights.to(density.dtype),
            log_evidence=_sandwich(log_weights, down, self.sigmas, density.dtype, how, note),
            stats={
                "lp": state.point(1.0).value[None],
                "acceptance_rate": acceptance.to(density.dtype).expand(shape).contiguous(),
            },
            cost=Cost(self.particles, compile_seconds=made, gradients=density.gradients, path=density.path),
            how=how,
            program=program,
        )

    def _schedule(self) -> Tensor:
        if self.schedule == "linear":
            return torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64)
        return sigmoidal(self.temperatures)

    def _ends(self, density: LogDensity, start: dict[str, Tensor]) -> Tensor:
        """The given posterior draws as points, at most `particles` of them, [n, d]."""
        draws = {name: _fitting(start, name, site.event) for name, site in density.sites.items()}
        ends = density.unconstrain(draws)
        if len(ends) <= self.particles:
            return ends
        return ends[torch.randperm(len(ends), device=ends.device)[: self.particles]]

    # -- undirected programs ---------------------------------------------------------------------------------

    def log_partition(self, program: Any, seed: int | None = None) -> Sandwich:
        """log Z of an undirected program with tempered Gibbs transitions, of shape [], between its bounds.

        Arguments:
            program: such as `dgm.models.RBM`.
            seed: as in `ppl_dgm.score`.
        """
        if not hasattr(program, "tempered_gibbs"):
            raise TaskUnavailable(
                f"{as_program(program).name!r} is no undirected program with tempered Gibbs transitions (as RBM is); "
                "dgm.score(..., method='ais') gives the log evidence of observations."
            )
        if self.schedule == "adaptive":
            raise ProgramError("AIS: schedule='adaptive' needs a density on R^d; take 'sigmoidal' or 'linear'.")
        betas = self._schedule().tolist()
        with torch.no_grad(), seeded(seed), program.running():
            annealer = GibbsAnnealer(program)
            _, up = forward(annealer, betas, self.particles)
            if self.posterior is None:
                ends, exact = program.tempered_end(self.particles)
                note = (
                    " from exact draws"
                    if exact
                    else f" from {program.sweeps} sweeps of Gibbs sampling (no strict bound)"
                )
            else:
                ends, note = self._visible(program), " from given draws"
            down = backward(annealer, betas, ends)
        how = f"annealed importance sampling from independent units, {self.temperatures} temperatures, {self.particles} particles"
        return _sandwich(up, down, self.sigmas, torch.float64, how, note)

    def _visible(self, program: Any) -> Tensor:
        draws = _draws(self.posterior) or {}
        if program.site not in draws:
            raise ProgramError(
                f"AIS: posterior has no draws of site {program.site!r}; give {{{program.site!r}: [n, D]}}."
            )
        ends = draws[program.site].to(program.device, program.dtype)
        return ends[torch.arange(self.particles, device=ends.device) % len(ends)]

    def _undirected(self, program: Any, x: Tensor) -> Sandwich:
        """log p(x) = -F(x) - log Z, [batch]: what bounds log Z from above bounds it from below."""
        log_z = self.log_partition(program)
        assert log_z.lower is not None and log_z.upper is not None and log_z.stderr is not None
        mass, dtype = -program.free_energy(x), program.dtype

        def score(z: Score, kind: str) -> Score:
            assert z.stderr is not None
            return Score((mass.double() - z.value).to(dtype), kind, z.stderr.to(dtype).expand(len(mass)).clone(), z.how)

        middle = score(log_z, "estimate")
        return Sandwich(
            middle.value, "estimate", middle.stderr, f"-F(x) - log Z; log Z by {log_z.how}",
            lower=score(log_z.upper, "lower_bound"), upper=score(log_z.lower, "upper_bound"),
        )  # fmt: skip


def _fitting(start: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    """The given draws of a site, [n, *shape]."""
    if name not in start:
        raise ProgramError(f"AIS: posterior has no draws of site {name!r}; it has {', '.join(start) or 'none'}.")
    value = start[name]
    value = value[None] if value.shape == shape else value
    if value.shape[1:] != shape:
        raise ProgramError(
            f"AIS: posterior has draws of site {name!r} of shape {tuple(value.shape)}; give {('n', *shape)} for n draws."
        )
    return value


def _beside(parts: list[Sandwich]) -> Sandwich:
    """The examples of all parts."""

    def joined(scores: list[Any]) -> Score:
        first = scores[0]
        stats = {name: torch.cat([score.stats[name] for score in scores]) for name in first.stats}
        stderr = torch.cat([score.stderr for score in scores])
        return Score(torch.cat([score.value for score in scores]), first.kind, stderr, first.how, stats)

    middle = joined(parts)
    upper = None if parts[0].upper is None else joined([part.upper for part in parts])
    return Sandwich(
        middle.value, middle.kind, middle.stderr, middle.how, middle.stats,
        lower=joined([part.lower for part in parts]), upper=upper,
    )  # fmt: skip


def _sandwich(up: Tensor, down: Tensor | None, sigmas: float, dtype: torch.dtype, how: str, note: str) -> Sandwich:
    """From the log weights of chains forward, and of those backward where there are any."""
    value, stderr, ess = _log_mean(up)
    lower = Score(
        (value - sigmas * stderr).to(dtype), "lower_bound", stderr.to(dtype), f"{how}, less {sigmas:g} stderr"
    )
    how = f"{how}, {'median ' * ess.dim()}ESS {float(ess.median()):.3g}"
    stats = {"ess": ess.to(dtype)}
    if len(up) >= 21:
        stats["pareto_k"] = pareto_shape(up).to(dtype)
    if down is None:
        return Sandwich(value.to(dtype), "estimate", stderr.to(dtype), how, stats, lower=lower)
    inverse, error, _ = _log_mean(-down)
    upper = Score(
        (sigmas * error - inverse).to(dtype),
        "upper_bound",
        error.to(dtype),
        f"chains backward{note}, plus {sigmas:g} stderr",
    )
    gap = (upper.value - lower.value).median()
    how = f"{how}; chains backward{note}: {'median ' * ess.dim()}gap {float(gap):.3g} nats"
    # uneven weights understate their own error; what the two directions differ by does not
    stderr = torch.maximum(stderr, (-inverse - value).abs() / 2)
    return Sandwich(value.to(dtype), "estimate", stderr.to(dtype), how, stats, lower=lower, upper=upper)


def _log_mean(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = LogMean()
    mean.add(log_weights)
    value, stderr, ess = mean.result()
    assert stderr is not None  # there are at least two
    return value, stderr, ess


def _draws(posterior: Any) -> dict[str, Tensor] | None:
    """{site: [n, *shape]} of what the option `posterior` may be."""
    if isinstance(posterior, Posterior):
        return {name: value.flatten(0, 1) for name, value in posterior.unweighted().draws.items()}
    return posterior
