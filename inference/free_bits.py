"""FreeBits: the ELBO with a floor under what each part of the latent code may cost."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.inference.learning.bounds import GuideLearner, check_gradient
from ppl_dgm.inference.learning.particles import Drawn, Particles, in_parts, row_count
from ppl_dgm.inference.learning.training import Objective
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm

__all__ = ["FreeBits", "divergences"]

_ROWS = 2**14  # rows of one pass in validation


@algorithm("free-bits")
@dataclass(frozen=True)
class FreeBits(GuideLearner):
    """Ascent of the ELBO whose divergences cost nothing below `nats`,

        mean_x E_q [ log p(x | z) ] - sum_j max( nats, mean_x KL( q(z_j | x) || p(z_j) ) ),

    averages over the examples of a batch, j over latent sites or their dimensions: the posterior has no reason to
    collapse below `nats`. The objective is no bound on log p(x) larger than the ELBO: it is below the ELBO, and equal to it
    for nats = 0 or where every divergence is above the floor. Validation is by the ELBO.

    Divergences are analytic where torch registers one for the two distributions, else averages of log q - log p over
    the draws. A site whose prior depends on other latent sites has its divergence given what was drawn for these.

    Arguments:
        nats: lambda, the floor under each divergence.
        per: "dimension" of each latent site (its entries must be independent in guide and model), or whole "site".
        particles: draws for each example.
        Others: see `GradientLearner`.

    Raises:
        TaskUnavailable: no guide; sites outside the plate `data`; a guide that is not reparameterised; per="dimension" with
            dependent entries.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), appendix C.8.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.FreeBits(nats=0.1, epochs=50)
    """

    nats: float = 0.1
    per: str = "dimension"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            ("nats", self.nats >= 0, "a number of nats, at least 0"),
            ("per", self.per in ("dimension", "site"), "'dimension' or 'site'"),
        )

    @property
    def aim(self) -> str:
        return f"-ELBO with {self.nats:g} free nats per {self.per}, nats per example"

    def check(self, program: Program, particles: Particles, batch: tuple) -> None:
        check_gradient("standard", program, particles, batch)
        with torch.no_grad():
            divergences(particles(*batch), self.per)

    def objective(self, program: Program, total: int) -> "_FlooredELBO":
        return _FlooredELBO(Particles(program, self.particles), self.nats, self.per)

    def validation(self, program: Program, total: int) -> Objective:
        return _FlooredELBO(Particles(program, self.particles), 0.0, self.per).value


class _FlooredELBO:
    """Minus the ELBO with floors, averaged over the examples of a batch."""

    def __init__(self, particles: Particles, nats: float, per: str) -> None:
        self.particles, self.nats, self.per = particles, nats, per

    def __call__(self, *batch: Any) -> Tensor:
        found = self.particles(*batch)
        loss = -sum(found.likelihood.values(), torch.zeros((), device=batch[0].device)).mean()
        for kl in divergences(found, self.per).values():
            mean = kl.mean(0)  # [] or [dimension, ...]
            loss = loss + (mean.clamp(min=self.nats) if self.nats else mean).sum()
        return loss

    def value(self, *batch: Any) -> Tensor:
        """The same for many examples, some at a time; for validation, where there is no floor."""
        parts = list(in_parts(batch, max(1, _ROWS // self.particles.count)))
        return sum(self(*part) * row_count(part) for part in parts) / row_count(batch)  # type: ignore[return-value]


def divergences(found: Drawn, per: str = "site") -> dict[str, Tensor]:
    """KL( q(z | x) || p(z) ) of each latent site, {site: [row]}, or {site: [row, *event]} of each dimension.

    Raises:
        TaskUnavailable: per="dimension" for a site whose entries are not independent in guide or model.
    """
    result = {}
    for name, node in found.nodes.items():
        told = found.story[name]
        plain = all(
            n["mask"] is None and isinstance(n["scale"], (int, float)) and n["scale"] == 1 for n in (node, told)
        )
        if per == "site":
            analytic = _analytic(node["fn"], told["fn"]) if plain else None
            sampled = found.proposal[name] - found.prior[name]
            result[name] = sampled if analytic is None or analytic.shape != sampled.shape else analytic
            continue
        q, p = _entries(node["fn"]), _entries(told["fn"])
        if q is None or p is None or not plain or len(node["fn"].batch_shape) > 1:
            raise TaskUnavailable(
                f"the entries of {name!r} are not independent of each other in guide and model, so that they have no divergences "
                "of their own; use per='site'."
            )
        analytic = _analytic(q, p)
        result[name] = q.log_prob(node["value"]) - p.log_prob(node["value"]) if analytic is None else analytic
    return result


def _entries(fn: Any) -> Any:
    """The distribution of single entries under `to_event`, or None where they are dependent."""
    while type(fn).__name__ in ("Independent", "ExpandedDistribution") and fn.event_dim:
        fn = fn.base_dist
    return fn if not fn.event_dim else None


def _analytic(q: Any, p: Any) -> Tensor | None:
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None
