"""Densities of the ladder computed through the rung below: by convolution, enumeration and quadrature, in float64."""

import math
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError

__all__ = [
    "by_choices", "compositions", "convolved", "geometric", "of_shares", "of_waits", "over_coins", "over_dice", "over_rates",
    "over_sequences", "simplex",
]  # fmt: skip

_NODES = 60


def _legendre(low: Tensor, high: Tensor, nodes: int = _NODES) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and log weights between two tensors of bounds, [..., nodes] each."""
    points, weights = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(nodes))
    half = (high - low).unsqueeze(-1) / 2
    return low.unsqueeze(-1) + half * (points + 1), half.log() + weights.log()


def _laguerre(nodes: int = _NODES) -> tuple[Tensor, Tensor]:
    """Points u and log weights for the integral of f(u) over u > 0, exact where f is a polynomial times exp(-u)."""
    points, weights = (torch.as_tensor(part) for part in np.polynomial.laguerre.laggauss(nodes))
    kept = weights > 0
    return points[kept], weights[kept].log() + points[kept]


def convolved(probabilities: Tensor, count: int, x: Tensor) -> Tensor:
    """log P(sum of `count` independent numbers = x), each from 0, 1, ... with these probabilities."""
    total = torch.ones(1, dtype=torch.float64)
    for _ in range(count):
        total = torch.nn.functional.conv1d(
            total[None, None], probabilities.flip(0)[None, None], padding=len(probabilities) - 1
        )[0, 0]
    return total[x.long()].log()


def geometric(p: float, count: int) -> Tensor:
    """Probabilities of 0, ..., count - 1 failures before the first success."""
    return (1 - p) ** torch.arange(count, dtype=torch.float64) * p


def by_choices(probs: Tensor, x: Tensor) -> Tensor:
    """log P(no to every value before x, yes to x): each question asks for p_v among the values that are left."""
    left = probs.flip(0).cumsum(0).flip(0)  # sum of p_v, p_{v+1}, ...
    yes = probs / left
    no = torch.cat([torch.zeros(1, dtype=torch.float64), (1 - yes[:-1]).log().cumsum(0)])
    return (no + yes.log())[x.long()]


def over_sequences(probs: Tensor, trials: int, x: Tensor) -> Tensor:
    """log P(counts = x), by adding up the probabilities of all K^trials sequences."""
    if len(probs) ** trials > 2**20:
        raise ProgramError(
            f"built: {len(probs)}^{trials} sequences are too many to add up; take fewer trials, or ask the law itself."
        )
    sequences = torch.cartesian_prod(*[torch.arange(len(probs))] * trials).reshape(-1, trials)
    weight = probs.log()[sequences].sum(-1)
    counts = torch.nn.functional.one_hot(sequences, len(probs)).sum(1)
    same = (counts == x.long().unsqueeze(-2)).all(-1)  # [batch, sequences]
    return torch.where(same, weight, -torch.inf).logsumexp(-1)


def compositions(settings: dict[str, Any]) -> Tensor:
    """Every vector of counts that adds up to `trials`."""
    width = len(settings.get("probs", settings.get("concentration", ())))
    every = torch.cartesian_prod(*[torch.arange(settings["trials"] + 1.0, dtype=torch.float64)] * width)
    return every[every.sum(-1) == settings["trials"]]


def simplex(settings: dict[str, Any]) -> Tensor:
    """Points of the simplex, none on its border."""
    width = len(settings["concentration"])
    every = torch.cartesian_prod(*[torch.arange(1.0, 12.0, dtype=torch.float64)] * width)
    return every / every.sum(-1, keepdim=True)


def of_waits(count: int, rate: float, x: Tensor) -> Tensor:
    """log density of the sum of `count` exponential waits: one convolution after another, f_k(x) = int f_{k-1}(t) f_1(x - t) dt."""
    wait = dist.Exponential(torch.tensor(rate, dtype=torch.float64))
    if count == 1:
        return wait.log_prob(x)
    t, weight = _legendre(torch.zeros_like(x), x, nodes=12)
    return (of_waits(count - 1, rate, t) + wait.log_prob(x.unsqueeze(-1) - t) + weight).logsumexp(-1)


def of_shares(shapes: Tensor, x: Tensor) -> Tensor:
    """log density of independent Gamma(shape_k, 1) numbers divided by their sum r: int prod_k Gamma(r x_k) r^(K-1) dr."""
    r, weight = _laguerre()
    parts = dist.Gamma(shapes, torch.ones_like(shapes)).log_prob(r[:, None] * x.unsqueeze(-2)).sum(-1)  # [batch, nodes]
    return (parts + (len(shapes) - 1) * r.log() + weight).logsumexp(-1)


def over_rates(shape: float, rate: float, x: Tensor) -> Tensor:
    """log of int Gamma(r) Poisson(x | r) dr, with r = u / (rate + 1)."""
    u, weight = _laguerre()
    r = u / (rate + 1)
    prior = dist.Gamma(torch.tensor(shape, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64)).log_prob(r)
    terms = prior + dist.Poisson(r).log_prob(x.unsqueeze(-1)) + weight
    return terms.logsumexp(-1) - math.log(rate + 1)


def over_coins(settings: dict[str, Any], x: Tensor) -> Tensor:
    """log of int Beta(p) Binomial(x | p) dp."""
    p, weight = _legendre(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    a, b = (torch.tensor(settings[name], dtype=torch.float64) for name in "ab")
    likelihood = dist.Binomial(settings["trials"], p).log_prob(x.unsqueeze(-1))
    return (dist.Beta(a, b).log_prob(p) + likelihood + weight).logsumexp(-1)


def over_dice(settings: dict[str, Any], x: Tensor) -> Tensor:
    """log of int Dirichlet(p) Multinomial(x | p) dp, by breaking a stick: p_k = v_k prod_{j<k} (1 - v_j)."""
    concentration = torch.tensor(settings["concentration"], dtype=torch.float64)
    free = len(concentration) - 1
    v, weight = _legendre(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64), nodes=20)
    sticks = torch.cartesian_prod(*[v] * free).reshape(-1, free)
    weights = torch.cartesian_prod(*[weight] * free).reshape(-1, free).sum(-1)
    left = (1 - sticks).log().cumsum(-1)  # log of what is left after each break
    before = torch.cat([torch.zeros_like(left[:, :1]), left], -1)
    log_p = torch.cat([sticks.log(), torch.zeros_like(sticks[:, :1])], -1) + before
    jacobian = left[:, :-1].sum(-1)  # dp = prod_k (what was left before the k-th break) dv
    p = log_p.exp()
    prior = dist.Dirichlet(concentration).log_prob(p / p.sum(-1, keepdim=True))
    likelihood = dist.Multinomial(settings["trials"], p).log_prob(x.unsqueeze(-2))  # [batch, nodes]
    return (likelihood + prior + jacobian + weights).logsumexp(-1)
