"""How far a small change of x moves its code."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.diagnostics.latent.codes import at_rest, checked, rows_of
from ppl_dgm.options import is_count

__all__ = ["Attack", "attack", "check_encoder"]

_NORMS, _MEASURES = ("l2", "linf"), ("kl", "distance")


def attack(
    program: Any,
    x: Tensor,
    radius: float,
    *,
    norm: str = "l2",
    measure: str = "kl",
    steps: int = 50,
    restarts: int = 4,
    rows: int = 200,
    seed: int | None = 0,
) -> "Attack":
    """The change of each row, no larger than a radius, that moves its code most:

        max_{|e| <= radius} d( q(z | x + e), q(z | x) ),     d = [ KL(q' || q) + KL(q || q') ] / 2,  or | E q' - E q |^2,

    by gradient steps on e, each followed by a projection onto the ball, from random starts in it; the best e of all steps and
    starts is kept, so that the maximum is at least what is reported. No label is needed. A random change of the same size is
    the control.

    The change is made to what the encoder sees, where the levels of whole numbers lie on [-1, 1], and is kept in that box;
    real numbers are as they are. For whole numbers the row x + e is no row of data until it is rounded, which may undo it:
    `Attack.attacked` is the rounded row, `Attack.inputs` the unrounded one, and `Attack.shift` is that of the unrounded.

    Arguments:
        program: a `VAE`.
        x: [N, D].
        radius: of the ball, in the units of the encoder's inputs.
        norm: "l2", Euclidean length; "linf", the largest entry.
        measure: "kl", nats, where the posterior has a divergence in closed form; "distance", squared, of the posterior means.
        steps: of each start.
        restarts: random starts.
        rows: N, at most.
        seed: of the starts.

    Returns:
        An `Attack`.

    Raises:
        ProgramError: an option out of range.
        TaskUnavailable: the program is no VAE, its inputs are columns of a table, or its posterior lacks what d needs.

    Source: A. Kuzina, M. Welling and J. Tomczak (2022), Alleviating adversarial attacks on variational autoencoders with MCMC;
        G. Gondim-Ribeiro, P. Tabacof and E. Valle (2018).
    """
    if not 0 < radius < math.inf or not is_count(steps, 1) or not is_count(restarts, 1):
        raise ProgramError(
            "attack: radius must be positive, steps and restarts whole numbers of at least 1, but they are "
            f"{radius!r}, {steps!r} and {restarts!r}."
        )
    if norm not in _NORMS or measure not in _MEASURES:
        raise ProgramError(
            f"attack: norm must be 'l2' or 'linf' and measure 'kl' or 'distance', but they are {norm!r} and {measure!r}."
        )
    with at_rest(program, seed) as resting:
        check_encoder(resting)
        x = rows_of(checked(resting, x), rows).detach()
        clean: Tensor = resting.likelihood.scaled(x, resting.dtype)
        search = _Search(resting, clean.repeat(restarts, 1), radius, norm, measure)
        start = search.inside(search.noise())
        control = search.shift(start).unflatten(0, (restarts, -1)).mean(0)
        change, shift = search.ascend(start, steps)
        best = shift.unflatten(0, (restarts, -1)).argmax(0)
        each = torch.arange(len(x), device=x.device)
        inputs = clean + change.unflatten(0, (restarts, -1))[best, each]
        shift = shift.unflatten(0, (restarts, -1))[best, each]
        return Attack(x, _as_rows(resting, inputs, x), inputs, shift, control, radius, norm, measure)


def check_encoder(program: Any) -> None:
    """Whether there is an encoder of one row's inputs, number by number."""
    if not all(hasattr(program, part) for part in ("encode", "likelihood")):
        raise TaskUnavailable(
            f"{program.name!r} has no encode(inputs) and likelihood, so that there is no encoder to attack; pass a VAE."
        )
    if program.likelihood.inputs != program.observed:
        raise TaskUnavailable(
            f"the inputs of {program.name!r} are columns of a table, of which a small change is not defined; attack a VAE "
            "of real or whole numbers."
        )


def _whole(program: Any) -> int | None:
    """The largest value of an entry that is a whole number, else None."""
    if not program.likelihood.support.is_discrete:
        return None
    return 1 if program.likelihood.values is None else int(program.likelihood.values) - 1


def _as_rows(program: Any, inputs: Tensor, x: Tensor) -> Tensor:
    """Rows of data from inputs of the encoder, rounded where entries are whole numbers."""
    top = _whole(program)
    return inputs if top is None else ((inputs + 1) * (top / 2)).round().clamp(0, top).to(x.dtype)


class _Search:
    """The ball around each row's inputs, and how far the code moves inside.

    Arguments:
        program: a VAE, at rest.
        clean: [rows, D], inputs of the encoder.
        radius, norm, measure: see `attack`.
    """

    def __init__(self, program: Any, clean: Tensor, radius: float, norm: str, measure: str) -> None:
        self.program, self.clean, self.radius, self.norm, self.measure = program, clean, radius, norm, measure
        self.boxed = _whole(program) is not None
        self.code = program.encode(clean)

    def noise(self) -> Tensor:
        """Changes of the full size in random directions, [rows, D]."""
        noise = torch.randn_like(self.clean)
        if self.norm == "linf":
            return self.radius * noise.sign()
        return self.radius * torch.nn.functional.normalize(noise, dim=-1)

    def inside(self, change: Tensor) -> Tensor:
        """The change, taken back into the box and the ball."""
        if self.boxed:
            change = (self.clean + change).clamp(-1, 1) - self.clean
        if self.norm == "linf":
            return change.clamp(-self.radius, self.radius)
        length = change.norm(dim=-1, keepdim=True)
        return change * (self.radius / length.clamp_min(torch.finfo(length.dtype).tiny)).clamp_max(1.0)

    def shift(self, change: Tensor) -> Tensor:
        """d of the code from the clean one, [rows]."""
        try:
            return _apart(self.program.encode(self.clean + change), self.code, self.measure)
        except NotImplementedError as error:
            lacks, instead = (
                ("divergence in closed form", "measure='distance'")
                if self.measure == "kl"
                else ("mean", "another posterior")
            )
            raise TaskUnavailable(
                f"the posterior of {self.program.name!r} has no {lacks}, which the attack maximises; use {instead}."
            ) from error

    def ascend(self, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The best change that was met, [rows, D], and its shift, [rows]."""
        change, best = start, start
        found = self.shift(start)
        for _ in range(steps):
            with torch.enable_grad():
                at = change.detach().requires_grad_()
                slope = torch.autograd.grad(self.shift(at).sum(), at)[0].nan_to_num()
            way = slope.sign() if self.norm == "linf" else torch.nn.functional.normalize(slope, dim=-1)
            # large enough to cross the ball, small enough to settle
            change = self.inside(change + max(2.5 / steps, 0.1) * self.radius * way)
            now = self.shift(change)
            better = now > found
            best, found = torch.where(better[:, None], change, best), torch.where(better, now, found)
        return best, found


def _apart(first: Any, second: Any, measure: str) -> Tensor:
    """The symmetric divergence of two posteriors in nats, or the squared distance of their means, [rows]."""
    if measure == "distance":
        return (first.mean - second.mean).flatten(1).square().sum(-1)
    return 0.5 * (kl_divergence(first, second) + kl_divergence(second, first))


@dataclass(frozen=True)
class Attack:
    """Rows, their worst changes, and how far the codes moved.

    Attributes:
        x: [N, D].
        attacked: [N, D], rows of data: the changed ones, rounded where entries are whole numbers.
        inputs: [N, D], the changed rows as the encoder sees them.
        shift: [N], the distance between the codes of `inputs` and of x, in nats or squared units of z.
        control: [N], the same for random changes of the same size.
        radius, norm, measure: of the search.
    """

    x: Tensor = field(repr=False)
    attacked: Tensor = field(repr=False)
    inputs: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)
    control: Tensor = field(repr=False)
    radius: float
    norm: str = "l2"
    measure: str = "kl"

    @property
    def table(self) -> pd.DataFrame:
        """Quartiles of the shift over rows, of the attack and of random changes."""
        levels = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
        parts = {"attack": self.shift, "random change": self.control}
        rows = {name: value.double().cpu().quantile(levels).tolist() for name, value in parts.items()}
        return pd.DataFrame(rows, index=["lower quartile", "median", "upper quartile", "largest"]).T

    @property
    def undone(self) -> float:
        """The share of rows whose change rounding takes back entirely; zero for real numbers."""
        return float((self.attacked == self.x).all(-1).double().mean())

    @property
    def verdict(self) -> str:
        """How much more an attack does than chance."""
        worst, chance = float(self.shift.double().median()), float(self.control.double().median())
        unit = "nats" if self.measure == "kl" else "squared units"
        times = f", {worst / chance:.3g} times as far as a random change of that size" if chance > 0 else ""
        size = "length" if self.norm == "l2" else "largest entry"
        said = f"A change of {size} {self.radius:.3g} moves a row's code by {worst:.3g} {unit} (median){times}."
        return said if self.undone == 0 else f"{said} Rounding takes back the change of {self.undone:.0%} of the rows."

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self.table.to_string(float_format=lambda value: f'{value:.4g}')}"

    def plot(self, path: str | Path | None = None) -> Figure:
        """The shift of every row, in order, under the attack and under random changes."""
        from ppl_dgm.plots import save

        figure = Figure(figsize=(6.0, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for value, colour, name in ((self.shift, "black", "attack"), (self.control, "0.6", "random change")):
            ordered = value.double().cpu().sort().values.clamp_min(1e-12)
            axes.plot(range(len(ordered)), ordered.numpy(), ".", color=colour, label=name)
        axes.set_yscale("log")
        axes.set_xlabel("rows, in order")
        axes.set_ylabel("symmetric KL, nats" if self.measure == "kl" else "squared distance of codes")
        axes.legend(frameon=False)
        if path is not None:
            save(figure, path)
        return figure
