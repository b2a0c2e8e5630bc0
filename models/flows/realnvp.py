"""RealNVP: affine couplings and permutations, with dequantisation written as part of the story."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform, Permute
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.inference.svi import SVI
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score
from ppl_dgm.transforms import BoundedCoupling, HistogramQuantile, coupling_network

from .dequantisation import UniformCell

__all__ = ["RealNVP"]

_DRAWS = 64  # dequantisation draws of the default score
_ROWS = 16384  # rows that go through the flow at once when scoring, so that memory stays flat
_GAIN = 20.0  # the marginals' parameters take steps this much larger than the networks'


class RealNVP(Program):
    """Real-valued non-volume-preserving flow: for categories x_d in {0, ..., V - 1},

        z ~ N(0, I),   v = f(z),   x = floor(v) (at most V - 1, at least 0),   q(v | x) = Uniform(x, x + 1),

    so that the evidence lower bound of this story is the uniform dequantisation bound, E_u log p_v(x + u) <=
    log P(x), with noise of the full width of a cell. Noise of half that width would let the density pile up
    where it is looked at: the figure would no longer be a bound, too high by up to D ln 2. For continuous
    data (values=None), x = f(z) and its density is exact.

    f alternates affine couplings (t and s by networks, |s| < bound) with permutations, half swaps and random
    orders in turn, and ends in one learned elementwise map that brings the scale of the data:

    - "histogram": normal quantiles of a learned histogram for each dimension (see `HistogramQuantile`). With
      untrained couplings the program is the independent categorical model, exactly; all draws lie in the
      range of the data. For categories only.
    - "affine": v_d = loc_d + scale_d z_d, the textbook's flow. Mass can leave the range of the data; what
      falls below 0 or above V - 1 counts as that category, but the bound does not credit it.

    Every coupling starts as the identity.

    Arguments:
        observed: D, at least 2.
        values: V, for categories; None for continuous data.
        flows: number of coupling layers.
        hidden: units of each of a network's two hidden layers.
        dropout: probability of dropping a hidden unit while learning.
        bound: largest |s|.
        marginals: "histogram" or "affine"; None takes the first for categories, the second for continuous
            data.

    Sites: `v` [D] (categories only), `x` [D].

    Raises:
        ProgramError: a size or option is out of range.

    Source: Dinh, Sohl-Dickstein and Bengio (2017); Tomczak (2024), section 4.1, with dequantisation of unit
    width.

    Example:
        >>> import torch
        >>> import ppl_dgm as dgm
        >>> flow = RealNVP(observed=4, values=3)
        >>> score = dgm.score(flow, torch.tensor([[0, 1, 2, 1]]), seed=0)
        >>> score.kind, round(float(score.value), 3)
        ('lower_bound', -4.394)
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        flows: int = 12,
        hidden: int = 128,
        dropout: float = 0.4,
        bound: float = 2.0,
        marginals: str | None = None,
    ) -> None:
        super().__init__()
        marginals = marginals or ("affine" if values is None else "histogram")
        _check(observed, values, flows, marginals)
        self.observed, self.values, self.marginals = observed, values, marginals
        self.support = constraints.real if values is None else constraints.integer_interval(0, values - 1)
        if values is None:
            self.guide = None  # type: ignore[method-assign, assignment]  # nothing is latent
        kept = observed // 2
        self.couplings = nn.ModuleList(
            BoundedCoupling(kept, coupling_network(kept, observed - kept, (hidden, hidden), dropout=dropout), bound)
            for _ in range(flows)
        )
        orders = _orders(observed, flows)
        self.register_buffer("orders", orders)
        self.register_buffer("inverse_orders", orders.argsort(-1))
        if marginals == "histogram":
            assert values is not None
            self.histogram = HistogramQuantile(observed, values, _GAIN)
        else:
            self.loc = nn.Parameter(torch.zeros(observed))  # both in units of _GAIN and of the range of the data
            self.log_scale = nn.Parameter(torch.zeros(observed))
        self.register_buffer("zeros", torch.zeros(observed), persistent=False)

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """v = f(z) with z ~ N(0, I); x = floor(v)."""
        with pyro.plate("data", n if x is None else len(x)):
            if self.values is None:
                return pyro.sample("x", self.flow(), obs=None if x is None else x.to(self.dtype))
            v = pyro.sample("v", self.flow())  # [batch, D]
            cell = v.detach().floor().long().clamp(0, self.values - 1)
            return pyro.sample("x", dist.Delta(cell, event_dim=1), obs=None if x is None else x.long())

    def guide(self, x: Tensor, n: int = 1) -> Tensor:  # type: ignore[override]
        """v ~ Uniform(x, x + 1): dequantisation."""
        low = x.to(self.dtype)
        with pyro.plate("data", len(x)):
            return pyro.sample("v", UniformCell(low, low + 1).to_event(1))

    def flow(self) -> dist.TransformedDistribution:
        """The density of v (of x, for continuous data), event shape [D]."""
        return dist.TransformedDistribution(
            dist.Normal(self.zeros, torch.ones_like(self.zeros)).to_event(1), self.layers()
        )

    def layers(self) -> list[Transform]:
        """f as bijections, from z to data."""
        found: list[Transform] = []
        couplings: Any = self.couplings
        for coupling, order, inverse in zip(couplings, self.orders, self.inverse_orders, strict=True):
            permute = Permute(order, cache_size=0)
            permute.inv_permutation = inverse
            found += [coupling, permute]
        return [*found, self._marginal()]

    def _marginal(self) -> Transform:
        if self.marginals == "histogram":
            return self.histogram
        unit = 1.0 if self.values is None else self.values / 4
        loc = unit * _GAIN * self.loc + (0.0 if self.values is None else self.values / 2)
        return AffineTransform(loc, unit * torch.exp(_GAIN * self.log_scale), event_dim=1)

    # -- exact inference -------------------------------------------------------------------------------------

    def encode(self, v: Tensor) -> Tensor:
        """z = f^{-1}(v) for points v [batch, D] of the continuous space (a category x has the cell [x, x +
        1)).

        Raises:
            DataError: the shape is wrong, or a point lies outside the range of the histogram.
        """
        v = self._points(v, "encode")
        if self.marginals == "histogram" and not bool(((v > 0) & (v < float(self.values or 0))).all()):
            raise DataError(
                f"encode: points must lie strictly between 0 and {self.values}, but they run from "
                f"{float(v.min()):g} to {float(v.max()):g}; "
                "a category x has the cell x to x + 1, so add noise or 0.5."
            )
        for layer in reversed(self.layers()):
            v = layer.inv(v)
        return v

    def decode(self, z: Tensor) -> Tensor:
        """v = f(z), [batch, D]; `floor` of it for categories.

        Raises:
            DataError: the shape is wrong.
        """
        z = self._points(z, "decode")
        for layer in self.layers():
            z = layer(z)
        return z

    def _points(self, points: Tensor, name: str) -> Tensor:
        if points.shape[-1:] != (self.observed,):
            raise DataError(
                f"{name}: points have shape {tuple(points.shape)}, but the last dimension must be {self.observed}."
            )
        return points.to(self.device, self.dtype)

    # -- density ---------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor) -> Tensor:
        """Continuous data: log p(x), [batch] nats, exact. Categories: log p_v(x + u) for one draw of u, whose
        mean is a lower bound.
        """
        if self.values is None:
            return self.flow().log_prob(x.to(self.dtype))
        low = x.to(self.dtype)
        return self.flow().log_prob(UniformCell(low, low + 1).rsample())

    def log_density(self, x: Tensor, draws: int = _DRAWS) -> Score:
        """log p(x) for continuous data; for categories the dequantisation bound, averaged over draws.

        Arguments:
            x: [batch, D].
            draws: noise draws per example; the bound's standard error falls with their square root, the bound
                itself does not change. `method="importance-weighted"` tightens it.

        Returns:
            A `Score` of kind `exact`, or `lower_bound` with its Monte Carlo standard error.
        """
        if self.values is None:
            value = torch.cat([self.log_prob(part) for part in x.split(_ROWS)])
            return Score(value, "exact", how="change of variables")
        if draws < 2:
            raise ProgramError(f"log_density: draws must be at least 2, for a standard error, but it is {draws}.")
        each = (
            torch.cat([self.log_prob(part) for part in self._repeated(x, draws)]).view(draws, len(x)).double()
        )  # [draw, batch]
        stderr = each.std(0) / math.sqrt(draws)
        return Score(
            each.mean(0).to(self.dtype),
            "lower_bound",
            stderr.to(self.dtype),
            f"uniform dequantisation, {draws} draws",
        )

    @staticmethod
    def _repeated(x: Tensor, draws: int) -> Iterator[Tensor]:
        """x, `draws` times over, in pieces of about `_ROWS` rows."""
        at_once = max(1, _ROWS // max(1, len(x)))
        for begin in range(0, draws, at_once):
            yield x.repeat(min(at_once, draws - begin), 1)

    # -- learning --------------------------------------------------------------------------------------------

    def fit_marginals(self, x: Tensor, pseudo_count: float = 0.1) -> None:
        """Set the last layer from data x [n, D] in closed form, where learning then starts: frequencies with
        `pseudo_count` added for a histogram, mean and standard deviation (of the dequantised data) for the
        affine map.
        """
        if self.marginals == "histogram":
            self.histogram.fit(x, pseudo_count)
            return
        unit, centre, cell = (1.0, 0.0, 0.0) if self.values is None else (self.values / 4, self.values / 2, 1.0)
        data = x.to(self.dtype) + cell / 2
        spread = (data.var(0, unbiased=False) + cell / 12).sqrt()
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))  # a constant column has no scale of its own
        with torch.no_grad():
            self.loc.copy_((data.mean(0) - centre) / (unit * _GAIN))
            self.log_scale.copy_((spread / unit).log() / _GAIN)

    def start(self, x: Tensor) -> None:
        """Where learning begins: the marginals of the data, unless they have been set or learned before."""
        if self.untouched:
            self.fit_marginals(x)

    @property
    def untouched(self) -> bool:
        """Whether the last layer still is as it was made."""
        own = [self.histogram.raw] if self.marginals == "histogram" else [self.loc, self.log_scale]
        return not any(bool(parameter.any()) for parameter in own)

    def default_method(self, task: str) -> Any:
        if task == "learn":
            return SVI(
                epochs=100,
                batch_size=128,
                lr=3e-3,
                optim="adamw",
                weight_decay=0.01,
                schedule="cosine",
                average=0.99,
                clip=50.0,
                patience=40,
            )
        return None

    def answers(self) -> dict[str, Answer]:
        score = Answer("exact", "change of variables")
        if self.values is not None:
            score = Answer("lower_bound", f"uniform dequantisation, {_DRAWS} draws", passes=_DRAWS, depth=1)
        infer = Answer("unavailable", "nothing is latent; encode(v) is the exact inverse", None, None)
        if self.values is not None:
            infer = Answer("approximate", "v uniform in its cell; encode(v) is then exact")
        kind = "exact" if self.values is None else "lower_bound"
        return {
            "sample": Answer("exact", "one pass, v = f(z)"),
            "score": score,
            "infer": infer,
            "learn": Answer(kind, "gradient on log p" if self.values is None else "SVI on the dequantisation bound"),
        }


def _check(observed: int, values: int | None, flows: int, marginals: str) -> None:
    if observed < 2:
        raise ProgramError(f"RealNVP: observed is {observed!r}, but a coupling needs at least 2 dimensions.")
    if values is not None and values < 2:
        raise ProgramError(f"RealNVP: values is {values!r}; give at least 2 categories, or None for continuous data.")
    if flows < 1:
        raise ProgramError(f"RealNVP: flows is {flows!r}; give at least one coupling layer.")
    if marginals not in ("histogram", "affine"):
        raise ProgramError(f"RealNVP: marginals must be 'histogram' or 'affine', but it is {marginals!r}.")
    if marginals == "histogram" and values is None:
        raise ProgramError(
            "RealNVP: marginals='histogram' needs values, the number of categories; continuous data take "
            "marginals='affine'."
        )


def _orders(observed: int, flows: int) -> Tensor:
    """[flows, D]: half swaps and random orders in turn, the same for every program of this size."""
    generator = torch.Generator().manual_seed(0)
    swap = torch.arange(observed).roll(observed // 2)
    return torch.stack([swap if k % 2 == 0 else torch.randperm(observed, generator=generator) for k in range(flows)])
