"""How much of an attack on its codes a Markov chain towards the true posterior takes back."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.chains.hamiltonian import Metric, Point, metropolis, reasonable_steps, trajectory
from ppl_dgm.inference.diagnostics.latent.codes import Layout, at_rest, layout, traces
from ppl_dgm.inference.diagnostics.latent.densities import decode, joint_log_density
from ppl_dgm.inference.diagnostics.latent.exploring import Walk
from ppl_dgm.inference.diagnostics.latent.robustness import Attack, check_encoder
from ppl_dgm.options import is_count
from ppl_dgm.program import Program

__all__ = ["Defence", "defend"]

_TARGET = 0.8  # acceptance of the chains
_HARM = 0.02  # share of the clean rows' error that an attack must add for it to count


def defend(
    program: Any,
    attack: Attack,
    *,
    warmup: int = 50,
    draws: int = 50,
    leapfrog: int = 10,
    shape: tuple[int, ...] | None = None,
    seed: int | None = 0,
) -> "Defence":
    """What a Markov chain towards the true posterior takes back of an attack.

    The encoder is fooled, the decoder is not: p(z | x + e) ~ p(z) p(x + e | z) is near p(z | x) where e is small. So a chain of
    Hamiltonian Monte Carlo is started at the attacked code, a draw of q(z | x + e), and run with p(z | x + e) as its target;
    its draws after warm-up take the code's place. A defender does not know which rows are attacked: the clean rows go through
    the same chain, from their own codes. The two chains of a row share their random numbers and their step size, so that what
    is left between them is the attack's doing and little of it chance.

    For whole numbers the target is made of the rounded row, the only one whose density is known; where rounding undoes the change
    it is the defence. See `attack`.

    Arguments:
        program: the `VAE` that was attacked, whose code is real.
        attack: of its rows.
        warmup, draws: trajectories for each row, in the first of which the row's step size is learned.
        leapfrog: steps of a trajectory.
        shape: of an example, for the picture.
        seed: of the chains.

    Returns:
        A `Defence`.

    Raises:
        ProgramError: an option out of range.
        TaskUnavailable: the code is not one real site.

    Source: Kuzina, Welling and Tomczak (2022).
    """
    if not (is_count(warmup, 1) and is_count(draws, 1) and is_count(leapfrog, 1)):
        raise ProgramError(
            "defend: warmup, draws and leapfrog must be whole numbers of at least 1, but they are "
            f"{warmup!r}, {draws!r} and {leapfrog!r}."
        )
    with at_rest(program, seed) as resting:
        check_encoder(resting)
        rows = torch.cat([attack.x, attack.attacked.to(attack.x.dtype)])
        known = _one_real_site(resting, rows)
        clean = resting.likelihood.scaled(attack.x, resting.dtype)
        q = resting.encode(torch.cat([clean, attack.inputs]))
        density = _Pairs(resting, known, rows, q)
        codes, accept = _chains(density, warmup, draws, leapfrog)
        first, second = density.start.split(len(clean)), codes.mean(0).split(len(clean))
        decoded = [decode(resting, known, code, attack.x) for code in (*first, *second)]
    target = attack.x.to(decoded[0].dtype)
    errors = [(part.flatten(1) - target.flatten(1)).square().mean(-1).sqrt() for part in decoded]
    shifts = [(b - a).norm(dim=-1) for a, b in (first, second)]
    return Defence(
        attack.x, attack.attacked, codes.split(len(clean), 1)[1], torch.stack(shifts), torch.stack(errors).unflatten(0, (2, 2)),
        torch.stack(decoded).unflatten(0, (2, 2)), accept, shape,
    )  # fmt: skip


def _one_real_site(program: Program, x: Tensor) -> Layout:
    """The latent sites, if they are one of real numbers, `z`."""
    known = layout(program, x)
    _, story = traces(program, x[:2])
    support = story.nodes[known.names[0]]["fn"].support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    real = (constraints.real, constraints.real_vector)
    if len(known.names) > 1 or not any(support is one for one in real):
        raise TaskUnavailable(
            f"{program.name!r} has the latent sites {', '.join(known.names)}; the defence's chain is for one site of real numbers."
        )
    return known


class _Pairs:
    """log p(x_n, z_n) of every row for itself, in the units of the encoder: z = start + scale u.

    Arguments:
        program, known: at rest, and its one site.
        x: [2 N, D], clean rows and the attacked ones in the same order.
        q: the encoder's posterior, batch shape [2 N]. Both rows of a pair have the scale of the attacked one, so that equal
            momenta are equal steps of z.
    """

    def __init__(self, program: Program, known: Layout, x: Tensor, q: Any) -> None:
        self.program, self.known, self.x = program, known, x
        drawn = q.sample((64,))  # of posteriors that know neither mean nor scale
        self.first, self.start = drawn[0], _known(q, "mean", drawn.mean(0))
        scale = _known(q, "stddev", drawn.std(0)).clamp_min(1e-4)
        self.scale = scale[len(x) // 2 :].repeat(2, 1)
        self.dim, self.dtype, self.device = known.dim, self.start.dtype, self.start.device

    def codes(self, u: Tensor) -> Tensor:
        """z of u, [2 N, dim]."""
        return self.start + self.scale * u

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log density of u, [2 N], up to a constant, and its gradient, [2 N, dim]."""
        with torch.enable_grad():
            u = z.detach().requires_grad_()
            value = joint_log_density(self.program, self.known, self.codes(u), self.x)
            return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    def gradient(self, z: Tensor) -> Tensor:
        """The gradient alone."""
        return self.value_and_grad(z)[1]


def _known(fn: Any, what: str, otherwise: Tensor) -> Tensor:
    try:
        return getattr(fn, what).expand(otherwise.shape)
    except (NotImplementedError, AttributeError):
        return otherwise


def _twice(value: Tensor) -> Tensor:
    """The same for both rows of each pair."""
    return torch.cat([value, value])


def _chains(density: _Pairs, warmup: int, draws: int, leapfrog: int) -> tuple[Tensor, Tensor]:
    """Draws of every row's chain, [draw, 2 N, dim], and their mean acceptance, [2 N]."""
    metric = Metric.identity(density)
    point = Point.at(density, (density.first - density.start) / density.scale)
    pairs = len(point.z) // 2
    found = reasonable_steps(density, metric, point, torch.ones_like(point.value))
    step = torch.minimum(*found.split(pairs))  # [N]
    kept, accepted = [], torch.zeros_like(point.value)
    for t in range(warmup + draws):
        r = _twice(torch.randn_like(point.z[:pairs]))
        shaken = step * (0.8 + 0.4 * torch.rand_like(step))  # no trajectory comes back to where it began
        end, r_end = trajectory(density, metric, point, r, _twice(shaken)[:, None], leapfrog)
        point, accept, _ = metropolis(point, r, end, r_end, _twice(torch.rand_like(step)))
        if t < warmup:
            both = accept.unflatten(0, (2, pairs)).mean(0)
            step = step * torch.exp((both - _TARGET) * (t + 1) ** -0.6)
        else:
            accepted += accept / draws
            kept.append(density.codes(point.z))
    return torch.stack(kept), accepted


@dataclass(frozen=True)
class Defence:
    """Codes and reconstructions by the encoder and by the chain, of clean and of attacked rows.

    Attributes:
        x, attacked: [N, D].
        codes: [draw, N, dim], the chain's draws for the attacked rows.
        shift: [2, N], the distance between the codes of a clean row and of its attacked one: by the encoder (posterior means), and
            by the chain (means of its draws).
        error: [2, 2, N], the root of the mean squared difference between E[x | code] and the clean row, in the units of x: by the
            encoder and by the chain, of the clean row and of the attacked.
        decoded: [2, 2, N, D], E[x | code], likewise.
        acceptance: [2 N], of the chains.
        shape: of an example, for pictures.
    """

    x: Tensor = field(repr=False)
    attacked: Tensor = field(repr=False)
    codes: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)
    error: Tensor = field(repr=False)
    decoded: Tensor = field(repr=False)
    acceptance: Tensor = field(repr=False)
    shape: tuple[int, ...] | None = None

    @property
    def table(self) -> pd.DataFrame:
        """Means over rows: the shift of the codes, and the error of clean and of attacked rows, for encoder and chain."""
        clean, attacked = self.error.double().mean(-1).cpu().unbind(1)
        columns = {
            "shift of code": self.shift.double().mean(-1).cpu(),
            "error, clean": clean,
            "error, attacked": attacked,
        }
        return pd.DataFrame({name: value.tolist() for name, value in columns.items()}, index=["encoder", "chain"])

    @property
    def harm(self) -> tuple[float, float]:
        """What the attack adds to the error, on average over rows: by the encoder, and by the chain."""
        first, second = (self.error[:, 1] - self.error[:, 0]).double().mean(-1).tolist()
        return first, second

    @property
    def repaired(self) -> float:
        """The share of the harm that the chain takes away, 1 - its own over the encoder's; NaN where the encoder has none."""
        by_encoder, by_chain = self.harm
        return 1 - by_chain / by_encoder if by_encoder > 0 else math.nan

    @property
    def verdict(self) -> str:
        """What the chain took back."""
        table = self.table
        (e_shift, e_clean, e_hit), (c_shift, c_clean, c_hit) = table.loc["encoder"], table.loc["chain"]
        said = (
            f"The attack moves the encoder's codes by {e_shift:.3g} and the chain's by {c_shift:.3g} on average; the error of "
            f"reconstructions goes from {e_clean:.3g} to {e_hit:.3g} by the encoder and from {c_clean:.3g} to {c_hit:.3g} by the chain"
        )
        low = float(self.acceptance.mean())
        stuck = f" The chains accept {low:.0%} of their steps; give them more warm-up." if low < 0.4 else ""
        if self.harm[0] < _HARM * e_clean:
            return f"{said}: an attack of that size does hardly any harm.{stuck}"
        if self.repaired > 0:
            return f"{said}: the chain takes back {self.repaired:.0%} of the harm.{stuck}"
        return f"{said}: the chain is no help.{stuck}"

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.round(4).to_string()}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """Where examples have a shape: rows, attacked rows and reconstructions; else each row's shift and error, encoder against
        chain."""
        from ppl_dgm.plots import save

        if self.shape is not None and len(self.shape) == 2:
            parts = [self.x, self.attacked, self.decoded[0, 0], self.decoded[0, 1], self.decoded[1, 1]]
            tiles = torch.stack([part[:10].to(self.decoded.dtype) for part in parts], 1)
            steps = ["row", "attacked", "encoder,\nrow", "encoder,\nattacked", "chain,\nattacked"]
            names = [f"row {i}" for i in range(len(tiles))]
            return Walk(tiles, tiles, names, steps, self.shape).plot(path)
        figure = Figure(figsize=(7.0, 3.4), layout="constrained")
        pairs = ((self.shift, "shift of code"), (self.error[:, 1], "error, attacked"))
        for axes, (values, name) in zip(figure.subplots(1, 2), pairs):
            first, second = values.double().cpu()
            top = 1.05 * float(values.max())
            axes.plot([0, top], [0, top], color="0.7", linewidth=1)
            axes.plot(first.numpy(), second.numpy(), ".", color="black")
            axes.set_xlabel(f"{name}, encoder")
            axes.set_ylabel("chain")
        if path is not None:
            save(figure, path)
        return figure
