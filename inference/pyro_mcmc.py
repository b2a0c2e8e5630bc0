"""PyroNUTS, PyroHMC: Pyro's own Hamiltonian kernels behind the common face, with every draw's statistics
recorded.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_sample, init_to_uniform
from pyro.infer.mcmc import HMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.integrator import potential_grad
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.progress import progress
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior

__all__ = ["PyroHMC", "PyroNUTS"]

_TRIES = 100  # starting points tried before a program is given up


@dataclass(frozen=True)
class _PyroSampler:
    """What both kernels share: chains one after another in this process, each under a seed of its own.

    Discrete sites that can be enumerated are summed out by Pyro's own potential, and no draws of them are
    returned.
    """

    chains: int = 1
    warmup: int = 500
    draws: int = 1000
    target_accept: float = 0.8
    dense: bool | list[tuple[str, ...]] = False

    def __post_init__(self) -> None:
        require(
            self,
            ("chains", self.chains >= 1, "at least 1"),
            ("warmup", self.warmup >= 0, "at least 0"),
            ("draws", self.draws >= 1, "at least 1"),
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
        )

    @property
    def name(self) -> str:
        return "Pyro"

    def kernel(self, potential: Callable) -> "_Watched":
        """A kernel of Pyro's for that potential."""
        raise NotImplementedError

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`.

        Raises:
            TaskUnavailable: a plate is subsampled, nothing continuous is latent, or a discrete site cannot be
                summed out.
            ProgramError: no starting point has a finite density and gradient.
        """
        begun = time.perf_counter()
        summed = check_sites(program, args, kwargs)
        seeds = torch.randint(2**31, (self.chains,)).tolist()
        chains: list[_Chain] = []
        with (
            poutine.block(),
            pyro.validation_enabled(False),
            progress(self.name, self.chains * (self.warmup + self.draws)) as report,
        ):
            for seed in seeds:
                with seeded(seed):
                    chains.append(self._chain(program, args, kwargs, report))
            draws = {
                site: torch.stack([chain.draws[site] for chain in chains]) for site in chains[0].draws
            }  # [chain, draw, *shape]
            deterministic = _deterministic(program, args, kwargs, draws)
        cost = Cost(
            steps=self.chains * self.draws,
            seconds=time.perf_counter() - begun,
            gradients=sum(chain.gradients for chain in chains),
            warmup_seconds=sum(chain.warmup_seconds for chain in chains),
            sampling_seconds=sum(chain.sampling_seconds for chain in chains),
        )
        stats = {
            key: torch.stack([torch.tensor([row[key] for row in chain.rows]) for chain in chains])
            for key in chains[0].rows[0]
        }
        plural = "s" if self.chains > 1 else ""
        how = f"{self.name}, {self.chains} chain{plural} of {self.warmup} + {self.draws}"
        if summed:
            how += f"; {', '.join(map(repr, summed))} summed out, so without draws"
        return Posterior(
            draws,
            deterministic=deterministic,
            stats=stats,
            cost=cost,
            how=how,
            kind="asymptotic",
            program=program,
        )

    def _chain(self, program: Program, args: tuple, kwargs: dict, report: Callable) -> "_Chain":
        begun = time.perf_counter()
        potential, transforms, initial = prepare(program, args, kwargs)
        kernel = self.kernel(potential)
        kernel.initial_params = initial
        kernel.setup(self.warmup)
        params, rows, kept = initial, [], []
        for _ in range(self.warmup):
            params = kernel.sample(params)
            report(step_size=kernel.step_size)
        warm = time.perf_counter()
        for _ in range(self.draws):
            params = kernel.sample(params)
            rows.append(kernel.last)
            kept.append(params)
            report(step_size=kernel.step_size, acceptance=kernel.last["acceptance_rate"])
        with torch.no_grad():  # [draw, *shape], in the space of the program
            draws = {
                site: transforms[site].inv(torch.stack([params[site] for params in kept])).detach() for site in initial
            }
        return _Chain(draws, rows, potential.gradients, warm - begun, time.perf_counter() - warm)


@algorithm("pyro-nuts")
@dataclass(frozen=True)
class PyroNUTS(_PyroSampler):
    """The No-U-Turn sampler as Pyro has it: multinomial sampling along the trajectory, dual averaging,
    windowed mass matrix.

    Arguments:
        chains: run one after another, each under a seed of its own; four or more let R-hat see what one chain
            cannot.
        warmup: draws per chain that adapt step size and mass matrix, and are thrown away.
        draws: draws per chain that are kept.
        target_accept: mean acceptance that the step size is adapted to; nearer to 1 means smaller steps and
            fewer divergences.
        dense: a full mass matrix, or a list of tuples of site names that share a block.
        max_tree_depth: a trajectory takes at most 2^max_tree_depth - 1 steps.

    Returns, in `Posterior.stats`, for each draw: `diverging`, `acceptance_rate` (mean over the trajectory),
    `step_size`, `n_steps` (leapfrog steps, one gradient each), `tree_depth`, `reached_max_treedepth`,
    `energy` (Hamiltonian after the momentum was drawn) and `lp` (log density in the unconstrained space, up
    to a constant, at the draw).

    Source: Hoffman and Gelman (2014); Betancourt (2017); the kernel is `pyro.infer.NUTS`.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> dgm.infer(coin, torch.tensor(7.0), method=PyroNUTS(warmup=50, draws=50), seed=0).draws["p"].shape
        torch.Size([1, 50])
    """

    max_tree_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tree_depth < 1:
            raise ProgramError(f"PyroNUTS: max_tree_depth must be at least 1, but it is {self.max_tree_depth!r}.")

    @property
    def name(self) -> str:
        return "Pyro's NUTS"

    def kernel(self, potential: Callable) -> "_Watched":
        return _WatchedNUTS(
            potential_fn=potential,
            target_accept_prob=self.target_accept,
            full_mass=self.dense,
            max_tree_depth=self.max_tree_depth,
        )


@algorithm("pyro-hmc")
@dataclass(frozen=True)
class PyroHMC(_PyroSampler):
    """Hamiltonian Monte Carlo as Pyro has it: a fixed trajectory length, a Metropolis step at its end.

    Arguments:
        trajectory_length: integration time; the number of leapfrog steps is its quotient by the adapted step
            size. With an adapted mass matrix every direction has about unit scale, where a quarter of a turn,
            pi / 2, gives nearly independent draws (Pyro's own default, 2 pi, is a full turn, which on a
            Gaussian ends where it began).
        chains, warmup, draws, target_accept, dense: see `PyroNUTS`.

    Statistics as for `PyroNUTS`, without the tree.

    Source: Neal (2011); the kernel is `pyro.infer.HMC`.
    """

    trajectory_length: float = math.pi / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.trajectory_length > 0:
            raise ProgramError(f"PyroHMC: trajectory_length must be positive, but it is {self.trajectory_length!r}.")

    @property
    def name(self) -> str:
        return "Pyro's HMC"

    def kernel(self, potential: Callable) -> "_Watched":
        return _WatchedHMC(
            potential_fn=potential,
            target_accept_prob=self.target_accept,
            full_mass=self.dense,
            trajectory_length=self.trajectory_length,
        )


@dataclass
class _Chain:
    draws: dict[str, Tensor]
    rows: list[dict[str, Any]]
    gradients: int
    warmup_seconds: float
    sampling_seconds: float


# -- watching a kernel ---------------------------------------------------------------------------------------


class _Counted:
    """A potential that counts how often its gradient is asked for (Pyro asks for it by making the inputs
    require one).
    """

    def __init__(self, potential: Callable) -> None:
        self.potential, self.gradients = potential, 0

    def __call__(self, params: dict[str, Tensor]) -> Tensor:
        self.gradients += any(value.requires_grad for value in params.values())
        return self.potential(params)


class _Watched(HMC):
    """Records each draw's statistics, of which Pyro itself keeps only running averages."""

    last: dict[str, Any]
    _potential_energy_last: Any
    _warmup_steps: Any

    def _sample_r(self, name: str) -> tuple:
        r, unscaled = super()._sample_r(name)
        self._kinetic = float(self._kinetic_energy(unscaled))
        return r, unscaled

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        mean, divergences = self._mean_accept_prob, len(self._divergences)
        potential, gradients = float(self._potential_energy_last), self.potential_fn.gradients
        step_size = self.step_size
        params = super().sample(params)
        count = self._t - self._warmup_steps if self._t > self._warmup_steps else self._t
        if count == 1:
            mean = 0.0  # Pyro begins its running mean anew after warm-up
        rate = mean + count * (self._mean_accept_prob - mean)  # which this undoes
        self.last = {
            "diverging": len(self._divergences) > divergences,
            "acceptance_rate": min(max(float(rate), 0.0), 1.0),  # rounding can leave -1e-17
            "step_size": float(step_size),
            "n_steps": self.potential_fn.gradients - gradients,
            "energy": potential + self._kinetic,
            "lp": -float(self._potential_energy_last),
        }
        return params


class _WatchedHMC(_Watched):
    """Pyro's HMC, watched."""


class _WatchedNUTS(_Watched, NUTS):
    """Pyro's NUTS, watched: `_Watched.sample` wraps `NUTS.sample`."""

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        params = super().sample(params)
        depth = int(
            self.last["n_steps"]
        ).bit_length()  # doublings begun: they take 1, 2, 4, ... steps, the last one perhaps fewer
        self.last |= {"tree_depth": depth, "reached_max_treedepth": depth >= self._max_tree_depth}
        return params


# -- preparing a program -------------------------------------------------------------------------------------


def check_sites(program: Program, args: tuple, kwargs: dict) -> list[str]:
    """Run the program once with Pyro's checks on; the names of the discrete sites that will be summed out.

    Raises:
        TaskUnavailable: Hamiltonian Monte Carlo cannot handle these sites; the message names one and what
            can.
    """
    with torch.no_grad(), poutine.block():
        trace = poutine.trace(program.run_model).get_trace(*args, **kwargs)
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, node in nodes.items():
        size = getattr(node.get("fn"), "subsample_size", None)
        if type(node.get("fn")).__name__ == "_Subsample" and size is not None and size < node["fn"].size:
            raise TaskUnavailable(
                f"plate {name!r} draws {size} of {node['fn'].size} rows anew at each run, so its density is "
                "noisy and Hamiltonian Monte Carlo "
                "would not converge to the posterior; give the plate all rows, or use method='svi'."
            )
    latent = {name: nodes[name]["fn"] for name in prune_subsample_sites(trace).stochastic_nodes}
    summed = [name for name, fn in latent.items() if fn.has_enumerate_support]
    discrete = [name for name, fn in latent.items() if fn.support.is_discrete and name not in summed]
    if discrete:
        raise TaskUnavailable(
            f"site {discrete[0]!r} is discrete and has no finite list of values to sum over, which "
            "Hamiltonian Monte Carlo needs; "
            "use a continuous or finite distribution there, or method='importance' with a guide."
        )
    if not latent:
        raise TaskUnavailable(f"{program.name!r} has no latent site for these arguments, so there is nothing to draw.")
    if len(summed) == len(latent):
        raise TaskUnavailable(
            f"every latent site ({', '.join(map(repr, summed))}) is discrete, so there is no gradient to "
            "follow; method='exact' enumerates them."
        )
    return summed


def prepare(program: Program, args: tuple, kwargs: dict) -> tuple[_Counted, dict[str, Any], dict[str, Tensor]]:
    """Pyro's potential (counted), its transforms {site: to the unconstrained space}, and a starting point
    with finite gradient.
    """
    first, potential, transforms, _ = initialize_model(program.run_model, args, kwargs, initial_params={})
    assert not first
    counted = _Counted(potential)
    story = InitMessenger(_start)(program.run_model)
    nodes: dict[str, Any] = {}
    for _ in range(_TRIES):
        with torch.no_grad():
            nodes = dict(poutine.trace(story).get_trace(*args, **kwargs).nodes)
            start = {site: to_real(nodes[site]["value"]).detach().clone() for site, to_real in transforms.items()}
        gradient, energy = potential_grad(counted, start)
        if torch.isfinite(energy) and all(bool(value.isfinite().all()) for value in gradient.values()):
            return counted, transforms, start
    raise ProgramError(_no_start(program, nodes))


def _start(site: dict) -> Tensor:
    """Continuous sites start uniformly in [-2, 2] of the unconstrained space; the others only have to have
    some value.
    """
    return init_to_sample(site) if site["fn"].has_enumerate_support else init_to_uniform(site)


def _no_start(program: Program, nodes: dict[str, Any]) -> str:
    """Which site is to blame for an infinite density at the last starting point."""
    for name, node in nodes.items():
        if node["type"] == "sample" and type(node["fn"]).__name__ != "_Subsample":
            value = node["fn"].log_prob(node["value"])
            if not bool(value.isfinite().all()):
                bad = float(value[~value.isfinite()].flatten()[0]) if value.dim() else float(value)
                kind = "observed" if node["is_observed"] else "latent"
                return (
                    f"no starting point of {_TRIES} has a finite density: at {kind} site {name!r} the log "
                    f"density is {bad}; "
                    "compare that distribution's support and parameters with its values."
                )
    return (
        f"no starting point of {_TRIES} has a finite density and gradient in {program.name!r}, though each "
        "site's own density is finite; "
        "look for a square root, logarithm or division at the edge of its domain."
    )


# -- deterministic sites -------------------------------------------------------------------------------------


def _deterministic(program: Program, args: tuple, kwargs: dict, draws: dict[str, Tensor]) -> dict[str, Tensor]:
    """{site: [chain, draw, *shape]} of the program's deterministic sites; those that depend on summed-out
    sites are left out.
    """
    flat = {site: value.flatten(0, 1) for site, value in draws.items()}
    chains, count = next(iter(draws.values())).shape[:2]

    def values(given: dict[str, Tensor]) -> dict[str, Tensor]:
        trace = poutine.trace(poutine.condition(program.run_model, given)).get_trace(*args, **kwargs)
        nodes: dict[str, Any] = dict(trace.nodes)
        return {name: node["value"] for name, node in nodes.items() if _is_deterministic(node)}

    with torch.no_grad(), _spared_randomness():
        if not values({site: value[0] for site, value in flat.items()}):
            return {}
        first, second = _mapped(values, flat, chains * count), _mapped(values, flat, chains * count)
    return {
        name: value.unflatten(0, (chains, count)) for name, value in first.items() if torch.equal(value, second[name])
    }


def _mapped(function: Callable, flat: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The function at each draw, stacked: all at once where vmap can follow the program, else one after
    another.
    """
    try:
        return torch.func.vmap(function, randomness="different")(flat)
    except (RuntimeError, ValueError, NotImplementedError):
        rows = [function({site: value[i] for site, value in flat.items()}) for i in range(count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def _is_deterministic(node: dict) -> bool:
    return (
        node["type"] == "sample"
        and node["is_observed"]
        and bool(node["infer"].get("_deterministic"))
        and isinstance(node["value"], Tensor)
    )


@contextmanager
def _spared_randomness() -> Iterator[None]:
    """The caller's random state is not advanced by runs that only read values."""
    with seeded(0):
        yield
