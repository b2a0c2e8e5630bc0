"""Replica exchange: chains at a ladder of temperatures that swap places, all in one leading dimension."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.inference.annealed.annealing import equal_barriers, interpolated
from ppl_dgm.inference.annealed.tempering import (
    Parts,
    Path,
    PowerPath,
    Reference,
    Tempered,
    improper_site,
    leapfrogs,
    move,
    path_from,
)
from ppl_dgm.inference.chains.adaptation import descend, fisher_metric, windows
from ppl_dgm.inference.chains.hamiltonian import Density, Metric, Point
from ppl_dgm.inference.chains.sampling import Drawn, Kernel
from ppl_dgm.inference.tempered_smc import Annealing, TemperedSMC

__all__ = ["LadderMetric", "ReplicaExchange", "swap_probabilities", "tempering_path"]

_DENSE = 64  # coordinates up to which each temperature has a dense metric
_KEPT = 60  # steps of a window that a metric is learned from
_FRESH = 32  # steps for which draws of the reference are made ahead
_GAMMA, _T0, _KAPPA = 0.05, 10.0, 0.75  # of dual averaging, see `DualAveraging`


def tempering_path(density: Any, reference: Reference) -> Path:
    """As `path_from`, and besides "power", and "auto": the prior where it can be drawn from, else powers of the density."""
    if reference == "auto":
        reference = "power" if improper_site(density) is not None else "prior"
    if reference == "power":
        return PowerPath(density)
    return path_from(density, reference)


def swap_probabilities(betas: Tensor, rest: Tensor) -> Tensor:
    """With which probability neighbours exchange places, [temperature - 1, chain].

        min(1, exp((beta_{k+1} - beta_k) (rest_k - rest_{k+1})))

    Arguments:
        betas: ascending, [temperature].
        rest: of each replica, [temperature, chain], nats.
    """
    gained = betas.diff()[:, None] * (rest[:-1] - rest[1:]).double()
    return torch.nan_to_num(gained, nan=-torch.inf).exp().clamp(max=1.0)


class LadderMetric:
    """A metric for each temperature: rows of z are temperatures times chains, the chains of a temperature together.

    Arguments:
        scale: square roots of covariances, diagonal [temperature, d] or dense [temperature, d, d].
    """

    def __init__(self, scale: Tensor) -> None:
        self.scale = scale

    def push(self, r: Tensor) -> Tensor:
        """S r, [temperature * chain, d]."""
        return self._times(r, self.scale.mT if self.scale.dim() == 3 else self.scale)

    def pull(self, gradient: Tensor) -> Tensor:
        """S^T times a gradient."""
        return self._times(gradient, self.scale)

    def _times(self, rows: Tensor, scale: Tensor) -> Tensor:
        blocks = rows.reshape(len(scale), -1, rows.shape[1])  # [temperature, chain, d]
        blocks = blocks @ scale if scale.dim() == 3 else blocks * scale[:, None]
        return blocks.reshape(rows.shape)


def stacked_scales(metrics: list[Metric]) -> Tensor:
    """The scales of metrics, diagonal [m, d] where all are, else dense [m, d, d]."""
    if not any(metric.dense for metric in metrics):
        return torch.stack([metric.scale for metric in metrics])
    return torch.stack([metric.scale if metric.dense else metric.scale.diag_embed() for metric in metrics])


class ReplicaExchange(Kernel):
    """One step: a Hamiltonian trajectory of every replica, then swaps of neighbours, even and odd pairs in turn.

    Row k * chains + c of every tensor is the replica at temperature k (the hottest first) of chain c. Where the reference can
    be drawn from, the hottest replicas are fresh draws of it at each step.

    In warm-up, at the end of each window, every temperature gets a metric from its own replicas, and the temperatures are
    spaced anew so that all pairs of neighbours reject swaps alike. Step sizes are adapted by dual averaging, each
    temperature's to its own mean acceptance.

    Arguments:
        temperatures, warmup, target, max_steps, reference, hottest: as in `ParallelTempering`.
    """

    name = "parallel tempering"
    z: Tensor  # the `Parts` of all replicas
    reference: Tensor
    rest: Tensor
    reference_gradient: Tensor
    rest_gradient: Tensor
    betas: Tensor  # [temperature], float64, as are the next five
    log_step: Tensor
    log_average: Tensor
    centre: Tensor
    error: Tensor
    swapped: Tensor  # [temperature - 1]: sums of swap probabilities in this window
    swaps: int
    count: int
    scale: Tensor  # see `LadderMetric`
    visited: (
        Tensor  # [temperature, chain]: 1 for a replica that was at the cold end last, 2 for one hot since, 0 before
    )
    trips: Tensor  # [chain]
    remembered = (
        "betas", "z", "reference", "rest", "reference_gradient", "rest_gradient", "scale",
        "log_step", "log_average", "centre", "error", "count", "visited", "trips",
        "window_z", "window_gradients", "swapped", "swaps", "frozen", "fresh", "begun",
    )  # fmt: skip

    def __init__(
        self, temperatures: int, warmup: int, target: float, max_steps: int, from_where: Reference, hottest: float
    ) -> None:
        self.temperatures, self.warmup, self.target, self.max_steps = temperatures, warmup, target, max_steps
        self.from_where, self.hottest = from_where, hottest
        self.ends = windows(warmup)
        self.path: Path | None = None
        self.begun = False
        self.window_z: Tensor | None = None
        self.window_gradients: Tensor | None = None
        self.fresh: Tensor | None = None
        self.frozen = False

    # -- where the replicas are ------------------------------------------------------------------------------

    @property
    def parts(self) -> Parts:
        """All replicas, [temperature * chain]."""
        return Parts(self.z, self.reference, self.rest, self.reference_gradient, self.rest_gradient)

    @parts.setter
    def parts(self, parts: Parts) -> None:
        self.z, self.reference, self.rest = parts.z, parts.reference, parts.rest
        self.reference_gradient, self.rest_gradient = parts.reference_gradient, parts.rest_gradient

    def _rows(self, values: Tensor) -> Tensor:
        """One value for each temperature as one for each replica."""
        return values.to(self.z.dtype).repeat_interleave(len(self.z) // self.temperatures)

    def _begin(self, point: Point) -> None:
        """First temperatures, metrics and places: a pilot population of particles along the path, else a short descent."""
        assert self.path is not None
        path, chains = self.path, len(point.z)
        like: dict[str, Any] = {"dtype": torch.float64, "device": path.device}
        self.z = point.z.repeat(self.temperatures, 1)
        if path.normalised:
            options = TemperedSMC(particles=128, chains=1, max_moves=4, max_steps=self.max_steps)
            stages = Annealing(path, 1, 128, options).run().stages
            self.betas = equal_barriers(stages, self.temperatures - 1).to(**like)
            knots = torch.tensor([stage.beta for stage in stages], **like)
            nearest = torch.searchsorted(knots, self.betas).clamp(max=len(stages) - 1).tolist()
            self.scale = stacked_scales([stages[i].metric for i in nearest])
            self.log_step = torch.tensor([math.log(stages[i].step) for i in nearest], **like)
        else:
            self.betas = torch.linspace(-math.log(self.hottest), 0.0, self.temperatures, **like).exp()
        tempered = Tempered(path, self._rows(self.betas))
        end, seen = descend(tempered, Point.at(tempered, self.z), 10)
        if not path.normalised:
            self.scale = self._learned(torch.stack([p.z for p in seen]), torch.stack([p.gradient for p in seen]))
            self.log_step = torch.full((self.temperatures,), math.log(0.5 * path.dim**-0.25), **like)
        self.parts = Parts.at(path, end.z)
        self._restart()
        self.begun = True
        self.visited = torch.zeros(self.temperatures, chains, dtype=torch.long, device=path.device)
        self.trips = torch.zeros(chains, dtype=torch.long, device=path.device)

    # -- one step --------------------------------------------------------------------------------------------

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        if self.path is None:
            self.path = tempering_path(density, self.from_where)
            if self.begun:
                self._warm(len(point.z))
        if not self.begun:
            self._begin(point)
        chains, betas = len(point.z), self._rows(self.betas)
        logs = self.log_average if self.frozen else self.log_step
        steps = leapfrogs(float(logs.mean().exp()), self.max_steps)
        sizes = self._rows(logs.exp())[:, None] * torch.empty_like(self.z[:, :1]).uniform_(0.8, 1.2)
        moved, accept, diverging = move(self.path, LadderMetric(self.scale), self.parts, betas, sizes, steps)
        self.parts = self._refreshed(moved, chains)
        rest = self.rest.reshape(-1, chains).T.clone()  # [chain, temperature], before the swaps
        probabilities = self._swap(t)
        rates = accept.reshape(-1, chains)
        if learning:
            self._learn(rates.double().mean(1), probabilities, t)
        cold = slice(-chains, None)
        here = self.parts.point(betas)
        stats = {
            "diverging": diverging[cold],
            "n_steps": steps,
            "step_size": sizes[cold, 0],
            "swap_rate": probabilities.mean(0).to(rest),
            "round_trips": self.trips.clone(),
            "_rest": rest,
            "_swaps": probabilities.T.to(rest).contiguous(),
            "_rates": rates.T.contiguous(),
            "_betas": self.betas.expand(chains, -1).contiguous(),
        }
        return Drawn(Point(*(value[cold].clone() for value in vars(here).values())), rates[-1].clone(), stats)

    def _warm(self, chains: int) -> None:
        """After a checkpoint: the run that records a graph rounds otherwise than its replays, so let it be one for nothing."""
        assert self.path is not None
        counted = self.path.gradients
        self.path.parts(self.z)
        self.path.gradient(self.z, self._rows(self.betas))
        if self.path.normalised:
            self.path.parts(self.z[:1].expand(_FRESH * chains, -1).contiguous())
        if hasattr(self.path.density, "gradients"):
            self.path.density.gradients = counted

    def _refreshed(self, parts: Parts, chains: int) -> Parts:
        """With the hottest replicas drawn anew from the reference: many at a time, since the program runs for them."""
        assert self.path is not None
        if not self.path.normalised:
            return parts
        if self.fresh is None or not len(self.fresh):
            drawn = Parts.at(self.path, self.path.draw(_FRESH * chains))
            columns = [value if value.dim() == 2 else value[:, None] for value in vars(drawn).values()]
            self.fresh = torch.cat(columns, 1)
        d = self.path.dim
        z, reference, rest, first, second = self.fresh[:chains].split([d, 1, 1, d, d], 1)
        self.fresh = self.fresh[chains:]
        new = (z, reference[:, 0], rest[:, 0], first, second)
        return Parts(*(torch.cat([a, b[chains:]]) for a, b in zip(new, vars(parts).values(), strict=True)))

    def _swap(self, t: int) -> Tensor:
        """Exchange neighbours, every second pair; returns the probabilities of all pairs, [temperature - 1, chain]."""
        rest = self.rest.reshape(self.temperatures, -1)
        probabilities = swap_probabilities(self.betas, rest)
        chains = rest.shape[1]
        accepted = torch.rand_like(probabilities) < probabilities
        accepted[1 - t % 2 :: 2] = False  # a pair can only swap where its neighbours do not
        places = torch.arange(self.temperatures, device=rest.device)[:, None].repeat(1, chains)
        places[:-1] += accepted.long()
        places[1:] -= accepted.long()
        self.visited = self.visited.gather(0, places)
        self.parts = self.parts.take((places * chains + torch.arange(chains, device=rest.device)).flatten())
        # 1: was at the cold end last; 2: has been there, and at the hot end since
        self.visited[0] = torch.where(self.visited[0] == 1, 2, self.visited[0])
        self.trips = self.trips + (self.visited[-1] == 2).long()
        self.visited[-1] = 1
        return probabilities

    # -- warm-up ---------------------------------------------------------------------------------------------

    def _learn(self, rates: Tensor, probabilities: Tensor, t: int) -> None:
        """Step sizes at every step; metrics and temperatures at the end of each window."""
        self.count += 1
        weight = 1 / (self.count + _T0)
        self.error = (1 - weight) * self.error + weight * (self.target - rates)
        self.log_step = self.centre - math.sqrt(self.count) / _GAMMA * self.error
        weight = self.count**-_KAPPA
        self.log_average = weight * self.log_step + (1 - weight) * self.log_average
        if not self.ends or t >= self.ends[-1]:
            return
        self.swapped, self.swaps = self.swapped + probabilities.mean(1), self.swaps + 1
        begun = max([0, *[end for end in self.ends if end <= t]])
        stop = min(end for end in self.ends if end > t)
        if (t - begun) % (1 + (stop - begun) // _KEPT) == 0:
            self._remember()
        if t + 1 == stop:
            assert self.window_z is not None and self.window_gradients is not None
            self.scale = self._learned(self.window_z, self.window_gradients)
            self._space()
            self._restart()

    def _remember(self) -> None:
        z, gradient = self.z[None], self.parts.point(self._rows(self.betas)).gradient[None]
        self.window_z = z if self.window_z is None else torch.cat([self.window_z, z])
        self.window_gradients = (
            gradient if self.window_gradients is None else torch.cat([self.window_gradients, gradient])
        )

    def _learned(self, z: Tensor, gradients: Tensor) -> Tensor:
        """The scale of each temperature, from its replicas at several steps, [step, temperature * chain, d]."""
        d = z.shape[2]
        blocks = [values.reshape(len(z), self.temperatures, -1, d).transpose(0, 1) for values in (z, gradients)]
        pairs = zip(*blocks, strict=True)
        return stacked_scales([fisher_metric(a.reshape(-1, d), b.reshape(-1, d), d <= _DENSE) for a, b in pairs])

    def _space(self) -> None:
        """Temperatures between which swaps are rejected alike, with the metrics and step sizes of the nearest old ones."""
        assert self.path is not None
        rejected = (1 - self.swapped / self.swaps).clamp(min=0.01)
        way = torch.cat([rejected.new_zeros(1), rejected.cumsum(0)])
        old = self.betas if self.path.normalised else self.betas.log()
        new = interpolated(way.cpu(), old.cpu(), self.temperatures - 1).to(self.betas.device)
        self.betas = new if self.path.normalised else new.exp()
        places = torch.linspace(0, 1, self.temperatures, dtype=way.dtype, device=way.device) * way[-1]
        nearest = (way[None] - places[:, None]).abs().argmin(1)
        self.scale, self.log_average = self.scale[nearest], self.log_average[nearest]
        self.log_step = self.log_average

    def _restart(self) -> None:
        """Step sizes from where they are, and a new window."""
        self.centre = self.log_step + math.log(2)
        self.log_average, self.error, self.count = self.log_step, torch.zeros_like(self.log_step), 0
        self.swapped, self.swaps = torch.zeros_like(self.log_step[1:]), 0
        self.window_z = self.window_gradients = None

    def settle(self) -> None:
        self.frozen = True
        self.trips = torch.zeros_like(self.trips)
