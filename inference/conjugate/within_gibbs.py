"""Metropolis within Gibbs: what updates the continuous sites whose full conditional is in no known family."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.graphs import short_bernoulli
from ppl_dgm.inference.chains.adaptation import Adaptation, Warmup, metric_form
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point
from ppl_dgm.inference.chains.sampling import Drawn, Kernel
from ppl_dgm.inference.conjugate.conjugacy import rows
from ppl_dgm.inference.conjugate.factors import Factors, Values
from ppl_dgm.inference.hmc import JitteredTrajectory

__all__ = ["ConditionalDensity", "Rest", "SliceKernel"]

_HALVINGS = 200  # shrinkages of an interval before a chain stays where it is
_STEPS_OUT = 32  # widths that a slice's interval may have


class ConditionalDensity:
    """log p of some sites given all others, on R^d in their unconstrained coordinates, Jacobians included.

    It has what the samplers ask of a density; `given` is the state of all sites, which changes from sweep to sweep.

    Arguments:
        factors: the program.
        sites: the sites.
        state: {site: [chain, *shape]}.
    """

    def __init__(self, factors: Factors, sites: Sequence[str], state: Values) -> None:
        self.factors, self.sites, self.given = factors, list(sites), state
        self.others = [name for name in factors.latent if name not in sites]
        self.blanket = factors.blanket(sites, rows(state, 4))
        self.dtype, self.device = factors.dtype, state[self.sites[0]].device
        self.gradients = self.evaluations = 0
        point = rows(state, 1)[0]
        with factors.context(), torch.no_grad():
            self.shapes = {name: u.shape for name, u in factors.coordinates(point, self.sites).items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.dim = sum(self.sizes)
        self._value = factors.recorded(factors.mapped(lambda *row: self._at(*row)[0]))
        self._both = factors.recorded(self._differentiated)
        self._slope = factors.recorded(lambda *inputs: self._differentiated(*inputs)[1])
        self._constrain = factors.recorded(factors.mapped(lambda *row: tuple(self._at(*row)[1].values())))
        self._invert = factors.recorded(factors.mapped(self._coordinates))

    def _at(self, z: Tensor, *others: Tensor) -> tuple[Tensor, Values]:
        parts = zip(self.shapes.items(), z.split(self.sizes), strict=True)
        placed = {name: part.reshape(shape) for (name, shape), part in parts}
        return self.factors.transformed(dict(zip(self.others, others, strict=True)), placed, self.blanket)

    def _coordinates(self, *row: Tensor) -> Tensor:
        values = dict(zip([*self.others, *self.sites], row, strict=True))
        found = self.factors.coordinates(values, self.sites)
        return torch.cat([found[name].reshape(-1) for name in self.sites])

    def _differentiated(self, z: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), short_bernoulli():
            z = z.detach().requires_grad_()
            values = self.factors.mapped(lambda *row: self._at(*row)[0])(z, *others)
            (slopes,) = torch.autograd.grad(values.sum(), z)
        return values.detach(), slopes

    def _rest(self) -> list[Tensor]:
        return [self.given[name] for name in self.others]

    def log_prob(self, z: Tensor) -> Tensor:
        """[chain] at z [chain, d]."""
        self.evaluations += len(z)
        return self._value(z, *self._rest())

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """[chain] and [chain, d]."""
        self.gradients += len(z)
        return self._both(z, *self._rest())

    def gradient(self, z: Tensor) -> Tensor:
        """[chain, d]."""
        self.gradients += len(z)
        return self._slope(z, *self._rest())

    def coordinates(self) -> Tensor:
        """Where the chains are, z [chain, d]."""
        return self._invert(*self._rest(), *[self.given[name] for name in self.sites])

    def constrain(self, z: Tensor) -> Values:
        """{site: [chain, *shape]} at z."""
        return dict(zip(self.sites, self._constrain(z, *self._rest()), strict=True))


class SliceKernel(Kernel):
    """Univariate slice sampling of each coordinate in turn: stepping out, then shrinking; nothing is ever rejected.

    Widths follow the typical move of each coordinate, learned in warm-up from all chains.

    Source: Neal (2003), Slice sampling, figures 3 and 5.
    """

    name = "slice"
    remembered = ("width", "moved", "count")

    def __init__(self, dim: int) -> None:
        self.width, self.moved, self.count = [1.0] * dim, [0.0] * dim, 0

    def step(self, density: Any, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        z, value = point.z.clone(), point.value
        before = z.clone()
        for j in range(z.shape[1]):
            z, value = self._coordinate(density, z, value, j)
        if learning:
            self.count += 1
            moves = (z - before).abs().mean(0).tolist()
            self.moved = [old + move for old, move in zip(self.moved, moves, strict=True)]
            self.width = [max(3 * moved / self.count, 1e-6) for moved in self.moved]
        return Drawn(Point(z, value, point.gradient), torch.ones_like(value), {})

    def _coordinate(self, density: Any, z: Tensor, value: Tensor, j: int) -> tuple[Tensor, Tensor]:
        def at(x: Tensor) -> Tensor:
            return density.log_prob(torch.cat([z[:, :j], x[:, None], z[:, j + 1 :]], 1))

        x, width = z[:, j], self.width[j]
        level = value + torch.log(torch.rand_like(value))
        left = x - width * torch.rand_like(x)
        right = left + width
        outward = torch.randint(0, _STEPS_OUT, x.shape, device=x.device)
        left = self._out(at, left, -width, outward, level)
        right = self._out(at, right, width, _STEPS_OUT - 1 - outward, level)
        new, new_value = x, value
        open_ = torch.ones_like(x, dtype=torch.bool)
        for _ in range(_HALVINGS):
            trial = torch.where(open_, left + (right - left) * torch.rand_like(x), new)
            trial_value = at(trial)
            inside = open_ & (trial_value > level)
            new, new_value = torch.where(inside, trial, new), torch.where(inside, trial_value, new_value)
            open_ = open_ & ~inside
            if not bool(open_.any()):
                break
            left = torch.where(open_ & (trial < x), trial, left)
            right = torch.where(open_ & (trial >= x), trial, right)
        return torch.cat([z[:, :j], new[:, None], z[:, j + 1 :]], 1), new_value

    @staticmethod
    def _out(at: Any, end: Tensor, width: float, budget: Tensor, level: Tensor) -> Tensor:
        """Step out while the end is above the level, each chain within its budget."""
        for _ in range(_STEPS_OUT):
            above = (budget > 0) & (at(end) > level)
            if not bool(above.any()):
                break
            end, budget = torch.where(above, end + width, end), budget - above.long()
        return end


class _InPlace(Warmup):
    """A warm-up that moves no chain to the place of another: the sites that it does not hold differ between them."""

    def _learn(self, point: Point, z: list[Tensor], gradients: list[Tensor], move: bool) -> Point:
        return super()._learn(point, z, gradients, False)


class Rest:
    """The update of all continuous sites that have no conjugate conditional, jointly given the others.

    Arguments:
        factors: the program.
        sites: the sites.
        state: where the chains are.
        method: "hmc" or "slice".
        warmup: sweeps that learn.
        target_accept: mean acceptance that HMC's step size is adapted to.
    """

    def __init__(
        self, factors: Factors, sites: Sequence[str], state: Values, method: str, warmup: int, target_accept: float
    ) -> None:
        self.sites, self.method = tuple(sites), method
        self.density = ConditionalDensity(factors, sites, state)
        self.kernel: Kernel = JitteredTrajectory(math.pi / 2, 0.5, 64)
        self.adaptation: Adaptation = _InPlace(warmup, target_accept, **metric_form("auto", self.density.dim))
        if method == "slice":
            self.kernel, self.adaptation = SliceKernel(self.density.dim), Adaptation()

    @property
    def label(self) -> str:
        """In words, for reports."""
        return "HMC" if self.method == "hmc" else "slice sampling"

    def point(self, state: Values) -> Point:
        """The density where the chains are, all else as in `state`."""
        self.density.given = state
        z = self.density.coordinates()
        if self.method == "slice":
            return Point(z, self.density.log_prob(z), torch.zeros_like(z))
        return Point.at(self.density, z)

    def begin(self, state: Values) -> Values:
        """Before the first sweep; where the sites are now."""
        with torch.no_grad():
            point = self.adaptation.begin(self._as_density(), self.point(state))
            return self.density.constrain(point.z)

    def _as_density(self) -> Density:
        return self.density

    def step(self, state: Values, t: int, learning: bool) -> tuple[Values, dict[str, Any]]:
        """One transition of all chains: the sites' new values, and statistics."""
        with torch.no_grad():
            point = self.point(state)
            size = self.adaptation.step
            drawn = self.kernel.step(self._as_density(), self.adaptation.metric, point, size, t, learning)
            new = drawn.point
            if learning:
                new, _ = self.adaptation.update(self._as_density(), new, float(drawn.acceptance.mean()), t)
            values = self.density.constrain(new.z)
        if self.method == "slice":
            return values, {}
        step_size = torch.full_like(drawn.acceptance, size)
        return values, {
            "acceptance_rate": drawn.acceptance,
            "step_size": step_size,
            "diverging": drawn.stats["diverging"],
        }

    def settle(self) -> None:
        """Warm-up is over."""
        self.adaptation.finish()
        self.kernel.settle()
