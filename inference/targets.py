"""Targets for comparing samplers: each a Pyro program with its data and reference moments.

The analytic ones have exact moments; those of the classics without a closed form are left None, to be compared with a
long run.

    >>> target = funnel()
    >>> target.variance["v"]
    tensor(9.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.randomness import seeded
from ppl_dgm.results import Posterior

__all__ = [
    "TARGETS",
    "Target",
    "cauchy",
    "far_modes",
    "funnel",
    "ill_conditioned_gaussian",
    "item_response",
    "squared_bias",
    "stochastic_volatility",
]


@dataclass(frozen=True)
class Target:
    """A posterior to sample.

    Attributes:
        name: what it is.
        program: a callable Pyro model.
        args: its arguments.
        dim: number of coordinates.
        mean, square, variance: {site: E[x], E[x^2], Var[x]}, elementwise and exact; empty where they are not known.
        square_variance: {site: Var[x^2]}.
        hard: what makes it hard, in words.
    """

    name: str
    program: Callable[..., Any]
    args: tuple[Any, ...]
    dim: int
    mean: dict[str, Tensor] = field(default_factory=dict)
    square: dict[str, Tensor] = field(default_factory=dict)
    variance: dict[str, Tensor] = field(default_factory=dict)
    square_variance: dict[str, Tensor] = field(default_factory=dict)
    hard: str = ""


def _normal_moments(name: str, scales: Tensor) -> dict[str, dict[str, Tensor]]:
    """Of independent zero-mean normals."""
    variance = scales.square()
    return {
        "mean": {name: torch.zeros_like(scales)},
        "square": {name: variance},
        "variance": {name: variance},
        "square_variance": {name: 2 * variance.square()},
    }


def ill_conditioned_gaussian(dim: int = 100, condition: float = 1e4) -> Target:
    """Independent normals whose variances are spaced logarithmically over `condition`."""
    scales = torch.logspace(-0.25, 0.25, dim, base=condition)

    def gaussian() -> None:
        pyro.sample("x", dist.Normal(torch.zeros_like(scales), scales).to_event(1))

    return Target("ill-conditioned Gaussian", gaussian, (), dim, **_normal_moments("x", scales), hard="scales differ")


def funnel(dim: int = 10) -> Target:
    """Neal's funnel: v ~ N(0, 3), x_i | v ~ N(0, exp(v / 2)).

    Source: Neal (2003), Slice sampling, section 8.
    """

    def neal() -> None:
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([dim - 1]).to_event(1))

    moments = {key: {"v": value["v"].squeeze()} for key, value in _normal_moments("v", torch.tensor([3.0])).items()}
    return Target("Neal's funnel", neal, (), dim, **moments, hard="curvature differs from place to place")


def far_modes(dim: int = 2, distance: float = 20.0, weight: float = 0.3) -> Target:
    """Two unit normals at -distance / 2 (of that weight) and +distance / 2 in every coordinate."""
    half = distance / 2

    def modes() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), (dim,)))
        squares = torch.stack([(x + half).square().sum(-1), (x - half).square().sum(-1)], -1)
        logits = torch.tensor([math.log(weight), math.log(1 - weight)], dtype=x.dtype) - squares / 2
        pyro.factor("density", torch.logsumexp(logits, -1) - dim / 2 * math.log(2 * math.pi))

    mean, square = (1 - 2 * weight) * half, 1 + half**2
    fourth = half**4 + 6 * half**2 + 3
    return Target(
        "far modes",
        modes,
        (),
        dim,
        mean={"x": torch.full((dim,), mean)},
        square={"x": torch.full((dim,), square)},
        variance={"x": torch.full((dim,), square - mean**2)},
        square_variance={"x": torch.full((dim,), fourth - square**2)},
        hard="no path between the modes",
    )


def cauchy(dim: int = 10) -> Target:
    """Independent standard Cauchy variables: they have no moments; their medians are zero."""

    def tails() -> None:
        pyro.sample("x", dist.Cauchy(0.0, 1.0).expand([dim]).to_event(1))

    return Target("Cauchy", tails, (), dim, hard="heavy tails, no moments")


def item_response(students: int = 400, questions: int = 100, seed: int = 0) -> Target:
    """Who answered which question rightly: logit P = mean + ability of the student - difficulty of the question.

    With the defaults 501 coordinates, all standard normal a priori but for mean ~ N(0.75, 1); made data.
    """
    with seeded(seed):
        ability, difficulty = torch.randn(students), torch.randn(questions)
        right = torch.bernoulli(torch.sigmoid(0.75 + ability[:, None] - difficulty))

    def irt(right: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.75, 1.0))
        ability = pyro.sample("ability", dist.Normal(right.new_zeros(right.shape[0]), 1.0).to_event(1))
        difficulty = pyro.sample("difficulty", dist.Normal(right.new_zeros(right.shape[1]), 1.0).to_event(1))
        logits = mean + ability[..., :, None] - difficulty[..., None, :]
        pyro.sample("right", dist.Bernoulli(logits=logits).to_event(2), obs=right)

    return Target("item response", irt, (right,), 1 + students + questions, hard="many coordinates")


def stochastic_volatility(days: int = 200, seed: int = 0) -> Target:
    """Returns whose log scale is an autoregression, non-centred: made data.

    sigma ~ Exponential(1); mean ~ StudentT(3, -5, 2); persistence: (phi + 1) / 2 ~ Beta(20, 1.5);
    h_1 = mean + sigma / sqrt(1 - phi^2) e_1; h_t = mean + phi (h_{t-1} - mean) + sigma e_t; y_t ~ N(0, exp(h_t / 2)).
    """
    with seeded(seed):
        h = torch.zeros(days)
        for t in range(1, days):
            h[t] = 0.95 * h[t - 1] + 0.3 * torch.randn(())
        returns = torch.randn(days) * (h / 2 - 2.5).exp()
    lags = (torch.arange(days)[:, None] - torch.arange(days)).clamp(min=0)
    past = torch.ones(days, days).tril()

    def volatility(y: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Exponential(1.0))
        mean = pyro.sample("mean", dist.StudentT(3.0, -5.0, 2.0))
        half = pyro.sample("half", dist.Beta(20.0, 1.5))
        phi = pyro.deterministic("phi", 2 * half - 1)
        noise = pyro.sample("noise", dist.Normal(y.new_zeros(len(y)), 1.0).to_event(1))
        first = noise[..., :1] / (1 - phi.square()).sqrt()
        shocks = sigma * torch.cat([first, noise[..., 1:]], -1)
        weights = past.to(y) * phi ** lags.to(y)  # phi^(t - s)
        h = mean + (weights @ shocks[..., None])[..., 0]
        pyro.sample("y", dist.Normal(torch.zeros_like(h), (h / 2).exp()).to_event(1), obs=y)

    return Target("stochastic volatility", volatility, (returns,), 3 + days, hard="many dependent coordinates")


def squared_bias(posterior: Posterior, target: Target) -> dict[str, float]:
    """b^2 of the first and second moments: (estimate - truth)^2 / variance, the largest over coordinates.

    Returns:
        {"mean": ..., "square": ...}; below 0.01 the average is worth a hundred independent draws.
    """
    found = {"mean": 0.0, "square": 0.0}
    for site, truth in target.mean.items():
        x = posterior.draws[site].double()
        bias = (x.mean((0, 1)) - truth).square() / target.variance[site]
        found["mean"] = max(found["mean"], float(bias.max()))
        bias = (x.square().mean((0, 1)) - target.square[site]).square() / target.square_variance[site]
        found["square"] = max(found["square"], float(bias.max()))
    return found


# name -> a function that makes it
TARGETS: dict[str, Callable[..., Target]] = {
    "ill-conditioned-gaussian": ill_conditioned_gaussian,
    "funnel": funnel,
    "far-modes": far_modes,
    "cauchy": cauchy,
    "item-response": item_response,
    "stochastic-volatility": stochastic_volatility,
}
