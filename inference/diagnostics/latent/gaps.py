"""What a guide costs: how much its family loses against the posterior, and how much the encoder loses against its family."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics.latent.codes import Codes, Layout, at_rest, encode, rows_of, traces
from ppl_dgm.inference.diagnostics.latent.densities import joint_log_density
from ppl_dgm.program import Program, as_program
from ppl_dgm.randomness import seeded
from ppl_dgm.tasks import evaluating, score

__all__ = ["InferenceGaps", "inference_gaps"]


def inference_gaps(
    program: Any,
    x: Tensor,
    *,
    family: str = "diagonal",
    rows: int = 100,
    steps: int = 400,
    lr: float = 0.03,
    samples: int = 8,
    draws: int = 1000,
    evidence_draws: int = 5000,
    seed: int | None = 0,
) -> "InferenceGaps":
    """The gap between log p(x) and the guide's evidence lower bound, in two parts:

        log p(x) - ELBO(best Gaussian for this x)             approximation gap: what the family cannot express
        ELBO(best Gaussian for this x) - ELBO(encoder's)      amortisation gap: what one encoder for all rows loses

    The best Gaussian of each row is searched for by gradients from the encoder's moments, with its own mean and scale for
    each row, levels apart. A large first part asks for a richer posterior, a large second one for a larger encoder, more
    data or a few local steps.

    Arguments:
        program: with an amortised guide; every latent site is real.
        x: [N, D].
        family: "diagonal", or "full" covariance of all latents together.
        rows: N, at most.
        steps: of Adam; the step size falls to zero, so that the draws' noise is averaged out.
        lr: its first step size, in standard deviations of the encoder's posterior.
        samples: draws of each row in a step.
        draws: of each row for the bounds that are compared.
        evidence_draws: for the importance-weighted evidence, where the program has no exact one.
        seed: of all draws.

    Returns:
        An `InferenceGaps`. Where the evidence is a lower bound, the first part is too.

    Raises:
        TaskUnavailable: no guide, or a latent site that is not real.
        ProgramError: an unknown family.

    Source: C. Cremer, X. Li and D. Duvenaud (2018), Inference suboptimality in variational autoencoders.
    """
    if family not in ("diagonal", "full"):
        raise ProgramError(f"family must be 'diagonal' or 'full', but it is {family!r}.")
    made = as_program(program)
    with at_rest(made, seed):
        x = rows_of(x, rows)
        codes = encode(made, x, draws)
        _check_real(made, codes)
        local = _Local(codes, family)
    with seeded(None if seed is None else seed + 1), made.running(), evaluating(made), pyro.validation_enabled(False):
        _refine(made, codes.layout, codes.x, local, steps, lr, samples)
    with at_rest(made, None if seed is None else seed + 2):
        best = _bound(made, codes.layout, codes.x, local, draws)
    exact = hasattr(made, "log_density") and made.default_method("score") is None
    from ppl_dgm.inference.importance import ImportanceWeighted

    method = None if exact else ImportanceWeighted(draws=evidence_draws)
    evidence = score(made, codes.x, method=method, seed=seed)
    encoder = codes.elbo
    return InferenceGaps(
        evidence.value.double().cpu(), best.double().mean(0).cpu(), encoder.double().mean(0).cpu(), evidence.kind,
        family, _error(evidence.stderr), _error(best.double().std(0) / math.sqrt(draws)),
        _error(encoder.double().std(0) / math.sqrt(draws)),
    )  # fmt: skip


def _error(each: Tensor | None) -> float:
    """The Monte Carlo standard error of an average of independent values."""
    return 0.0 if each is None else float(each.double().square().sum().sqrt() / len(each))


def _check_real(program: Program, codes: Codes) -> None:
    _, story = traces(program, codes.x[:2])
    for name in codes.layout.names:
        support = story.nodes[name]["fn"].support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is not constraints.real and support is not constraints.real_vector:
            raise TaskUnavailable(
                f"the latent site {name!r} lies in {support}, where there is no Gaussian to compare with; the gaps are "
                "for real latents."
            )


class _Local(nn.Module):
    """A Gaussian for each row: mean and scale (log standard deviations, or a triangular factor) as parameters.

    Arguments:
        codes: whose first two moments are the start.
        family: "diagonal" or "full".
    """

    def __init__(self, codes: Codes, family: str) -> None:
        super().__init__()
        joined = codes.layout.joined(codes.draws)  # [draw, N, dim]
        self.centre, self.spread = joined.mean(0), joined.std(0).clamp_min(1e-4)  # [N, dim]
        self.shift = nn.Parameter(torch.zeros_like(self.centre))  # in standard deviations of the start
        self.log_scale = nn.Parameter(torch.zeros_like(self.centre))
        dim = codes.layout.dim
        self.below = nn.Parameter(self.centre.new_zeros(len(codes), dim, dim)) if family == "full" else None

    def draw(self, samples: int) -> tuple[Tensor, Tensor]:
        """[sample, N, dim] reparameterised draws and their log densities, [sample, N]."""
        noise = torch.randn((samples, *self.centre.shape), dtype=self.centre.dtype, device=self.centre.device)
        step = self.log_scale.exp() * noise
        if self.below is not None:  # z = centre + spread * (shift + (diag + strictly lower) noise)
            step = step + torch.einsum("nij,snj->sni", self.below.tril(-1), noise)
        z = self.centre + self.spread * (self.shift + step)
        log_q = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - (self.log_scale + self.spread.log()).sum(-1)
        return z, log_q


def _bound(program: Program, known: Layout, x: Tensor, local: _Local, samples: int) -> Tensor:
    """[sample, N] terms of the evidence lower bound under the local Gaussians."""
    parts = []
    for begin in range(0, samples, most := max(1, 2**13 // len(x))):
        count = min(most, samples - begin)
        z, log_q = local.draw(count)
        rows = x.repeat(count, *(1,) * (x.dim() - 1))
        joint = joint_log_density(program, known, z.flatten(0, 1), rows)
        parts.append(joint.unflatten(0, (count, len(x))) - log_q)
    return torch.cat(parts)


def _refine(program: Program, known: Layout, x: Tensor, local: _Local, steps: int, lr: float, samples: int) -> None:
    """Climb the bound of every row at once; the rows' objectives share nothing."""
    optimiser = torch.optim.Adam(local.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        loss = -_bound(program, known, x, local, samples).mean(0).sum()
        grads = torch.autograd.grad(loss, list(local.parameters()))
        for parameter, grad in zip(local.parameters(), grads):
            parameter.grad = grad
        optimiser.step()
        schedule.step()


def _apart(gap: float, error: float) -> str:
    """How far a bound lies below something, or above it, in words."""
    return f"{abs(gap):.2f} ± {error:.2f} nats {'above' if gap < 0 else 'below'}"


@dataclass(frozen=True)
class InferenceGaps:
    """Evidence, the best local bound and the encoder's bound of each row, in nats.

    Attributes:
        evidence: [N], log p(x), or a lower bound of it.
        local: [N], the bound under the best Gaussian of each row.
        encoder: [N], the bound under the guide.
        kind: of the evidence: "exact" or "lower_bound".
        family: "diagonal" or "full".
        evidence_stderr, local_stderr, encoder_stderr: Monte Carlo standard errors of the three averages.
    """

    evidence: Tensor = field(repr=False)
    local: Tensor = field(repr=False)
    encoder: Tensor = field(repr=False)
    kind: str
    family: str
    evidence_stderr: float = 0.0
    local_stderr: float = 0.0
    encoder_stderr: float = 0.0

    @property
    def approximation(self) -> float:
        """The average approximation gap, in nats."""
        return float((self.evidence - self.local).mean())

    @property
    def amortisation(self) -> float:
        """The average amortisation gap, in nats (negative where the guide's family is richer than the Gaussian)."""
        return float((self.local - self.encoder).mean())

    @property
    def table(self) -> pd.DataFrame:
        """Averages, gaps and their Monte Carlo standard errors."""
        e, lo, en = self.evidence_stderr, self.local_stderr, self.encoder_stderr
        rows = {
            "evidence": (float(self.evidence.mean()), e),
            f"best {self.family} Gaussian": (float(self.local.mean()), lo),
            "encoder": (float(self.encoder.mean()), en),
            "approximation gap": (self.approximation, math.hypot(e, lo)),
            "amortisation gap": (self.amortisation, math.hypot(lo, en)),
        }
        return pd.DataFrame(rows, index=["value", "stderr"]).T

    @property
    def verdict(self) -> str:
        """Both gaps, and which one to work on."""
        errors = self.table["stderr"]
        least = "at least " if self.kind == "lower_bound" and self.approximation >= 0 else ""
        said = (
            f"The encoder's bound lies {_apart(self.amortisation, errors['amortisation gap'])} that of the best "
            f"{self.family} Gaussians (amortisation), which lie {least}"
            f"{_apart(self.approximation, errors['approximation gap'])} the evidence (approximation)"
        )
        if self.amortisation < -max(0.1, 2 * errors["amortisation gap"]):
            return f"{said}; the guide's family is richer than these Gaussians, so that the two parts are not its own."
        if max(self.amortisation, self.approximation) < 0.1:
            return f"{said}; both are small."
        if self.amortisation > self.approximation:
            return f"{said}; a larger encoder or local steps gain more than a richer posterior."
        return f"{said}; a richer posterior gains more than a larger encoder."

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(4).to_string()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Both gaps of every row, in order of their sum."""
        from ppl_dgm.plots import save

        order = (self.evidence - self.encoder).argsort()
        first = (self.evidence - self.local)[order].clamp_min(0).numpy()
        second = (self.local - self.encoder)[order].clamp_min(0).numpy()
        places = list(range(len(order)))
        figure = Figure(figsize=(6.5, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(places, first, width=1.0, color="0.7", label="approximation gap")
        axes.bar(places, second, width=1.0, bottom=first, color="black", label="amortisation gap")
        axes.set_xlabel("rows, in order of the gap")
        axes.set_ylabel("nats")
        axes.legend(frameon=False, loc="upper left")
        if path is not None:
            save(figure, path)
        return figure
