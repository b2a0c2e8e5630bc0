"""ParallelTempering: chains at many temperatures that swap places, for posteriors with far modes."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.inference.annealed.tempering import Reference, StagedPosterior, check_reference
from ppl_dgm.inference.chains.adaptation import Adaptation
from ppl_dgm.inference.chains.hamiltonian import Density
from ppl_dgm.inference.chains.replica_exchange import ReplicaExchange
from ppl_dgm.inference.chains.sampling import ChainSampler, Kernel
from ppl_dgm.options import require
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Posterior, Score

__all__ = ["ParallelTempering", "stepping_stones"]

_BATCHES, _SHORTEST = 20, 20  # batches of draws that the evidence's error is told from, and the draws of one, at least


@algorithm("parallel-tempering")
@dataclass(frozen=True)
class ParallelTempering(ChainSampler):
    """Replica exchange: every chain has a replica at each of several temperatures,

        p_beta(z) = prior(z) likelihood(z)^beta / Z_beta,        0 = beta_1 < ... < beta_K = 1,

    and neighbours exchange places. Hot replicas cross from mode to mode; what they find comes down to beta = 1, whose
    replicas are the draws. Swaps are deterministic even-odd, all even pairs and all odd pairs in turn, so that replicas go up and
    down without diffusing back and forth. Moves are Hamiltonian trajectories; the replicas at beta = 0 are fresh prior draws.
    Warm-up spaces the temperatures so that all pairs reject swaps alike, and learns for each a metric and a step size.

    Programs without a proper prior are tempered as a whole, p(z)^beta with beta from 1 / hottest to 1.

    Arguments:
        chains: independent ladders; each step moves chains * temperatures replicas in one call.
        temperatures: K. About twice the barrier (the sum of the rejection rates, see `how`) is best; too few show in
            low swap rates.
        target_accept: mean acceptance that each temperature's step size is adapted to.
        max_steps: leapfrog steps of a trajectory, at most.
        reference: the density at beta = 0: "prior"; a normal distribution of the unconstrained coordinates as in
            `TemperedSMC`; "power" for p(z)^beta; "auto": the prior where it can be drawn from, else "power".
        hottest: with powers, the highest temperature 1 / beta: modes a distance r apart, each s wide, want (r / 2 s)^2.
        warmup, draws, backend, dtype, checkpoint, superchains, radius, start: see `HMC`.

    Returns:
        A `StagedPosterior`. `stats`, for each draw: `lp`, `acceptance_rate`, `diverging`, `n_steps`, `step_size` of the replica
        at beta = 1; `swap_rate` (mean over pairs of the swap probability), `lowest_swap_rate` (that of the pair with the lowest,
        over the whole run), `round_trips` (how often, so far, a replica of the chain went from the cold end to the hot one and
        back). `stages`, for each temperature: `beta`, `acceptance`, `swap_rate` (with the next colder one), `log_ratio` (of Z to
        the next colder one). `log_evidence`: by stepping stones, an estimate, its standard error from batches of draws and
        from the chains' spread; None with powers, whose Z at the hot end is not known.

    Source: Syed, Bouchard-Côté, Deligiannidis and Doucet (2022), Non-reversible parallel tempering; Okabe, Kawata, Okamoto
    and Mikami (2001) for the even-odd scheme.

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def square(y):
        ...     x = pyro.sample("x", dist.Normal(0.0, 3.0))
        ...     pyro.sample("y", dist.Normal(x**2, 0.5), obs=y)  # x is about 2, or about -2
        >>> post = dgm.infer(square, torch.tensor(4.0), method=ParallelTempering(warmup=100, draws=100), seed=0)
        >>> 0.3 < float((post.draws["x"] > 0).float().mean()) < 0.7
        True
    """

    chains: int = 4
    warmup: int = 300
    draws: int = 1000
    temperatures: int = 12
    target_accept: float = 0.8
    max_steps: int = 32
    reference: Reference = "auto"
    hottest: float = 1000.0
    kind: ClassVar[str] = "asymptotic"

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.reference in ("auto", "power") if isinstance(self.reference, str) else False
        require(
            self,
            ("warmup", self.warmup >= 10, "at least 10, since nothing is known of the temperatures before"),
            (
                "temperatures",
                isinstance(self.temperatures, int) and self.temperatures >= 2,
                "a whole number, at least 2",
            ),
            ("target_accept", 0 < self.target_accept < 1, "between 0 and 1"),
            ("max_steps", isinstance(self.max_steps, int) and self.max_steps >= 1, "a whole number, at least 1"),
            (
                "reference",
                known or check_reference(self.reference),
                "'auto', 'prior', 'power', a positive number, or (mean, spread)",
            ),
            ("hottest", self.hottest > 1, "a number above 1"),
        )

    def kernel(self) -> Kernel:
        return ReplicaExchange(
            self.temperatures, self.warmup, self.target_accept, self.max_steps, self.reference, self.hottest
        )

    def adaptation(self, density: Density) -> Adaptation:
        return Adaptation()

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Posterior:
        """Draw from the posterior; see `ppl_dgm.infer`.

        Raises:
            TaskUnavailable: the program has no density on R^d; the message names the site and what can be done.
            NumericalError: no starting point has a finite density and gradient.
            FileError: `checkpoint` is damaged or belongs to another run.
        """
        post = super().run(program, *args, **kwargs)
        # per draw and temperature; statistics of a posterior are one number per draw
        rest, swaps, rates, betas = (post.stats.pop(name).double() for name in ("_rest", "_swaps", "_rates", "_betas"))
        beta, swap = betas[0, 0], swaps.mean((0, 1))  # [temperature], [temperature - 1]
        ratios, value, stderr = stepping_stones(beta, rest)
        nothing = swap.new_full((1,), math.nan)
        stages = {"beta": beta, "acceptance": rates.mean((0, 1)), "swap_rate": torch.cat([swap, nothing])}
        evidence = None
        if float(beta[0]) == 0.0:
            dtype = post.stats["lp"].dtype
            how = f"stepping stones over {self.temperatures} temperatures"
            evidence = Score(value.to(dtype), "estimate", stderr.to(dtype), how)
            stages["log_ratio"] = torch.cat([ratios, nothing])
        lowest = torch.full_like(post.stats["swap_rate"], float(swap.min()))
        trips = int(post.stats["round_trips"][:, -1].sum())
        how = (
            f"{post.how}, {self.temperatures} temperatures, barrier {float((1 - swap).sum()):.2g}, {trips} round trips"
        )
        plain = {name: value for name, value in vars(post).items() if not name.startswith("_")}
        posterior = StagedPosterior(
            **plain, stages=pd.DataFrame({name: column.tolist() for name, column in stages.items()})
        )
        return replace(posterior, log_evidence=evidence, stats={**post.stats, "lowest_swap_rate": lowest}, how=how)


def stepping_stones(betas: Tensor, rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Z_1 - log Z_0 from draws at each temperature, each step from both of its sides,

        Z_{k+1} / Z_k = E_k[exp(D rest / 2)] / E_{k+1}[exp(-D rest / 2)],        D = beta_{k+1} - beta_k.

    Arguments:
        betas: ascending, [temperature].
        rest: log of what is tempered, [chain, draw, temperature], nats.

    Returns:
        the log of each ratio [temperature - 1], their sum, and its standard error: the larger of those that batches of draws
        and whole chains show; infinite where there are neither.

    Source: Xie, Lewis, Fan, Kuo and Chen (2011), with the bridge of Meng and Wong (1996).
    """

    def ratios(rest: Tensor) -> Tensor:
        """Averaged over the first two dimensions."""
        half = betas.diff() / 2
        up = torch.where(half > 0, half * rest[..., :-1], 0.0)
        down = torch.where(half > 0, -half * rest[..., 1:], 0.0)
        return up.flatten(0, 1).logsumexp(0) - down.flatten(0, 1).logsumexp(0)

    chains, draws = rest.shape[:2]
    found = ratios(rest)
    errors = [rest.new_tensor(math.inf if chains == 1 and draws < 2 * _SHORTEST else 0.0)]
    batches = min(_BATCHES, draws // _SHORTEST)
    if batches > 1:
        size = draws // batches
        pieces = [ratios(chain[None, i * size : (i + 1) * size]).sum() for chain in rest for i in range(batches)]
        errors.append(torch.stack(pieces).std() / math.sqrt(len(pieces)))
    if chains > 1:
        errors.append(torch.stack([ratios(chain[None]).sum() for chain in rest]).std() / math.sqrt(chains))
    return found, found.sum(), torch.stack(errors).max()
