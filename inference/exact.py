"""Exact: posterior and evidence in closed form, or summed over every value of the discrete latent sites."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ppl_dgm.errors import ProgramError
from ppl_dgm.inference.conjugate.conjugate_posterior import ConjugatePosterior, recognise_posterior
from ppl_dgm.inference.conjugate.factors import latent_distributions
from ppl_dgm.inference.messages.enumeration import Enumeration, not_summable
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Cost, Posterior, Score

__all__ = ["Exact", "Recognised"]


@algorithm("exact")
@dataclass(frozen=True)
class Exact:
    """p(z | x) and log p(x) without approximation.

    A program that knows its `posterior` (and `log_density`) is asked. Of any other program the latent sites must be
    all discrete or all continuous.

    Discrete ones are summed out by tensor variable elimination, through plates and `pyro.markov`:

        log p(x) = log sum_z p(x, z),        p(z_s | x) for each site s,        z ~ p(z | x) jointly.

    Continuous ones must be conjugate or linear-Gaussian, which is recognised from the program's densities, to rounding,
    and not declared: Beta, Dirichlet, Gamma, InverseGamma and jointly Gaussian posteriors, also where one block is so
    given another, as in the normal-gamma model. Then log p(x) = log p(x, z) - log p(z | x) at any z.

    The evidence has one value per example where every site lies in the plate `data`, else one value for all.
    A program without latent sites has its log density. With `pyro.factor` the evidence is `unnormalised`; the
    posterior is exact all the same.

    Arguments:
        draws: joint posterior draws.

    Raises:
        TaskUnavailable: a latent site is continuous, and the posterior is no closed form that is known or recognised;
            the message names it and what works.

    Source: F. Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs; Chib (1995), Marginal
    likelihood from the Gibbs output, for the identity.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ppl_dgm as dgm
        >>> def alarm(rang):
        ...     burglar = pyro.sample("burglar", dist.Bernoulli(0.01))
        ...     pyro.sample("rang", dist.Bernoulli(0.05 + 0.9 * burglar), obs=rang)
        >>> round(float(dgm.infer(alarm, torch.tensor(1.0), method="exact").exact["burglar"].probs), 3)
        0.161
    """

    draws: int = 1000

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ProgramError(f"Exact: draws must be at least 1, but it is {self.draws}.")

    @torch.no_grad()
    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """The posterior; see `ppl_dgm.infer`. Observations of probability zero get no draws."""
        begun = time.perf_counter()
        knows = _owner(program, "posterior")
        if knows is not None:
            exact = knows.posterior(*args, **kwargs)
            draws = {
                site: fn.sample((self.draws,)).unsqueeze(0) for site, fn in exact.items()
            }  # [1, draws, batch, ...]
            evidence = knows.log_density(*args, **kwargs) if hasattr(knows, "log_density") else None
            cost = Cost(self.draws, time.perf_counter() - begun, path="closed form")
            return Posterior(
                draws,
                exact,
                log_evidence=evidence,
                cost=cost,
                how="closed form",
                kind="exact",
                program=program,
            )
        if _owner(program, "log_density") is not None and not _latent(program, args, kwargs):
            return Posterior(
                {},
                log_evidence=self.evidence(program, *args, **kwargs),
                how="no latent sites",
                kind="exact",
                program=program,
            )
        found = _recognised(program, args, kwargs)
        return self._enumerate(program, args, kwargs, begun) if found is None else self.conjugate(program, found, begun)

    @torch.no_grad()
    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """log p(x) alone, [batch] or [], without the cost of marginals and draws."""
        knows = _owner(program, "log_density")
        if knows is not None:
            return knows.log_density(*args, **kwargs)
        found = _recognised(program, args, kwargs)
        return _evidence(Enumeration(program, *args, **kwargs)) if found is None else _conjugate_evidence(found)

    @torch.no_grad()
    def conjugate(self, program: Program, found: ConjugatePosterior, begun: float) -> Posterior:
        """The answer for a recognised program; `begun` is when the clock was started."""
        values = found.sample(self.draws)
        computed = found.factors.computed({name: value.to(found.factors.dtype) for name, value in values.items()})
        return Posterior(
            {name: value.unsqueeze(0) for name, value in values.items()},
            found.marginals() or None,
            deterministic={name: found.factors.to_native(value).unsqueeze(0) for name, value in computed.items()},
            log_evidence=_conjugate_evidence(found),
            cost=Cost(self.draws, time.perf_counter() - begun, path="closed form"),
            how=found.described(),
            kind="exact",
            program=program,
        )

    def _enumerate(self, program: Program, args: tuple, kwargs: dict, begun: float) -> Posterior:
        sums = Enumeration(program, *args, **kwargs)
        evidence = _evidence(sums)
        possible = bool(evidence.value.isfinite().all())
        exact, draws = {}, {}
        if possible and sums.latent:
            tables = {site: sums.family(site, table) for site, table in sums.marginals().items()}
            exact = {site: family for site, family in tables.items() if family is not None}
            draws = {site: value.unsqueeze(0) for site, value in sums.sample(self.draws).items()}
        how = evidence.how if possible else "the observations have probability zero, so there is no posterior"
        cost = Cost(self.draws, time.perf_counter() - begun)
        return Posterior(draws, exact or None, log_evidence=evidence, cost=cost, how=how, kind="exact", program=program)


@dataclass(frozen=True)
class Recognised:
    """`Exact` for a program that has been recognised already, so that it is not put to the test twice."""

    found: ConjugatePosterior

    def run(self, program: Program, *args: Any, **kwargs: Any) -> Posterior:
        """The posterior."""
        return Exact().conjugate(program, self.found, time.perf_counter())

    def evidence(self, program: Program, *args: Any, **kwargs: Any) -> Score:
        """log p(x)."""
        return _conjugate_evidence(self.found)


def _latent(program: Program, args: tuple, kwargs: dict) -> dict[str, Any]:
    """{site: distribution} of what the program does not observe for these arguments."""
    with seeded(0):
        return latent_distributions(program, args, kwargs)


def _recognised(program: Program, args: tuple, kwargs: dict) -> ConjugatePosterior | None:
    """The posterior of a program with continuous sites alone, if it is a closed form."""
    latent = _latent(program, args, kwargs)
    if all(fn.has_enumerate_support for fn in latent.values()):
        return None
    found = None
    if not any(fn.has_enumerate_support for fn in latent.values()):
        found = recognise_posterior(program, *args, **kwargs)
    if found is None:
        name, fn = next((name, fn) for name, fn in latent.items() if not fn.has_enumerate_support)
        raise not_summable(program.name, name, fn)
    return found


def _conjugate_evidence(found: ConjugatePosterior) -> Score:
    kind = "exact" if found.normalised else "unnormalised"
    return Score(found.factors.to_native(found.evidence), kind, how=found.described())


def _owner(program: Program, answer: str) -> Any:
    """The program, or under another guide the original one, if it knows that answer."""
    return next(
        (p for p in (program, getattr(program, "original", None)) if p is not None and hasattr(p, answer)),
        None,
    )


def _evidence(sums: Enumeration) -> Score:
    sites = ", ".join(sums.latent)
    how = (
        f"sum over {sites if len(sums.latent) <= 5 else f'{len(sums.latent)} sites'}"
        if sums.latent
        else "no latent sites"
    )
    return Score(sums.log_evidence(), "exact" if sums.normalised else "unnormalised", how=how)
