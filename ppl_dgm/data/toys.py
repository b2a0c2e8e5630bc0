"""Two-dimensional toys whose true density is known, so that a model's distance from the truth is known too.

Each toy is defined as an exact density, and the samples are drawn from that density. A model's mean score on
the test split is at most `-entropy`, up to sampling error, and the gap is the Kullback-Leibler divergence in
nats.

Sizes and placement follow the toys of Grathwohl et al. (2019), "FFJORD", and of scikit-learn.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Generator, Tensor

from ..errors import DataError
from .dataset import Dataset

__all__ = ["checkerboard", "eight_gaussians", "moons", "pinwheel"]

RADIUS, SCALE = 2 * math.sqrt(2), math.sqrt(2) / 4  # eight Gaussians: ring of centres, standard deviation
ARMS, RATE, ZOOM = 5, 0.25, 2.0  # pinwheel: arms, twist, and the factor after the twist
RADIAL, TANGENTIAL = 0.3, 0.1  # pinwheel: standard deviations of an arm along and across it
ENOUGH = 8.0  # standard deviations at which a Gaussian's tail is below float32's resolution


def moons(train: int = 2000, valid: int = 500, test: int = 1000, *, noise: float = 0.1, seed: int = 0) -> Dataset:
    """Two interleaved half circles of radius one, blurred by Gaussian noise.

    With t uniform on [0, pi] and a fair coin for the moon,

        x = (cos t, sin t) + noise * e      or      x = (1 - cos t, 1/2 - sin t) + noise * e,     e ~ N(0, I).

    The density is the average over both arcs of N(x; arc(t), noise^2 I): a one-dimensional integral over t,
    done by Gauss-Legendre quadrature in panels of twice the noise (relative error below 1e-9 within ten
    radii).

    Arguments:
        train, valid, test: number of examples of each split.
        noise: standard deviation of the blur, from 0.03 to 1 (the density costs 25 / noise terms a point).
        seed: seeds the draws; each split has its own stream, so one size does not change another split.

    Returns:
        float32 data [n, 2], the moon (0 or 1) as label, the density and its entropy (quadrature, see
        `_entropy`).

    Raises:
        DataError: a size or the noise is out of range.

    Source: `sklearn.datasets.make_moons`, which spaces t evenly where this draws it.
    """
    if not 0.03 <= noise <= 1:
        raise DataError(
            f"moons: noise is {noise}, expected 0.03 to 1; without noise the two arcs have no density in the plane."
        )

    def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        moon = torch.randint(2, (n,), generator=generator)
        t = math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        arc = torch.stack([t.cos(), t.sin()], -1)  # [n, 2]
        x = torch.where(moon[:, None] == 0, arc, _reflect(arc))
        return x + noise * torch.randn(n, 2, generator=generator, dtype=torch.float64), moon

    return _toy(
        "moons",
        (train, valid, test),
        seed,
        draw,
        partial(_moons_log_density, noise=noise),
        _moons_entropy(noise),
        "two half circles, as sklearn.datasets.make_moons",
    )


def eight_gaussians(train: int = 2000, valid: int = 500, test: int = 1000, *, seed: int = 0) -> Dataset:
    """Eight equal Gaussians on a circle: centres at radius 2 sqrt(2), standard deviation sqrt(2)/4 per axis.

        p(x) = 1/8 sum_k N(x; c_k, s^2 I),      c_k = 2 sqrt(2) (cos(k pi/4), sin(k pi/4)),      s =
        sqrt(2)/4.

    Arguments:
        train, valid, test: number of examples of each split.
        seed: seeds the draws; each split has its own stream.

    Returns:
        float32 data [n, 2], the component (0 to 7) as label, the density and its entropy (quadrature).

    Raises:
        DataError: a size is out of range.
    """

    def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        k = torch.randint(8, (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        return _ring(8, RADIUS, noise)[k] + SCALE * noise, k

    return _toy(
        "eight_gaussians",
        (train, valid, test),
        seed,
        draw,
        _eight_gaussians_log_density,
        _eight_gaussians_entropy(),
        "eight Gaussians on a ring, as Grathwohl et al. (2019)",
    )


def checkerboard(train: int = 2000, valid: int = 500, test: int = 1000, *, seed: int = 0) -> Dataset:
    """Uniform on the eight dark squares of a 4 x 4 board with squares of side 2, on [-4, 4) x [-4, 4).

    A square (i, j) = (floor(x_1 / 2), floor(x_2 / 2)) is dark where i + j is even; p(x) = 1/32 there and 0
    elsewhere, so the entropy is log 32 exactly.

    Arguments:
        train, valid, test: number of examples of each split.
        seed: seeds the draws; each split has its own stream.

    Returns:
        float32 data [n, 2], the square (0 to 7) as label, the density (minus infinity off the dark squares),
        entropy.

    Raises:
        DataError: a size is out of range.
    """

    def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        cell = torch.randint(8, (n,), generator=generator)
        i = cell // 2  # [n] column of the board, 0 to 3
        j = 2 * (cell % 2) + i % 2
        # Steps of 2^-21 are exact in float32 on the whole board: rounding carries no point over an edge.
        inside = torch.randint(2**22, (n, 2), generator=generator).double() / 2**21  # [n, 2] in [0, 2)
        return 2.0 * torch.stack([i, j], -1) - 4.0 + inside, cell

    return _toy(
        "checkerboard",
        (train, valid, test),
        seed,
        draw,
        _checkerboard_log_density,
        math.log(32),
        "eight squares of a board, as Grathwohl et al. (2019)",
    )


def pinwheel(train: int = 2000, valid: int = 500, test: int = 1000, *, seed: int = 0) -> Dataset:
    """Five Gaussian arms, twisted by an angle that grows with the radius.

        f ~ 1/5 sum_k N(R(2 pi k / 5) (1, 0), its axes 0.3 along and 0.1 across the arm),
        x = 2 R(exp(|f|) / 4) f,        R(a) the rotation by the angle a.

    The angle depends on the radius alone and a rotation keeps the radius, so the twist is inverted by the
    opposite rotation and preserves areas: p(x) = p_f(R(-exp(|x|/2) / 4) x / 2) / 4, exactly. The twist does
    not change the entropy either: that of x is that of the untwisted mixture plus log 4.

    Arguments:
        train, valid, test: number of examples of each split.
        seed: seeds the draws; each split has its own stream.

    Returns:
        float32 data [n, 2], the arm (0 to 4) as label, the density and its entropy (quadrature).

    Raises:
        DataError: a size is out of range.

    Source: M. J. Johnson et al. (2016), "Composing graphical models with neural networks"; there the angle
    grows with the coordinate along the arm, which is neither invertible nor of constant area, hence has no
    exact density.
    """

    def draw(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
        arm = torch.randint(ARMS, (n,), generator=generator)
        scale = torch.tensor([RADIAL, TANGENTIAL], dtype=torch.float64)
        along = scale * torch.randn(n, 2, generator=generator, dtype=torch.float64)  # [n, 2] in the arm's frame
        along[:, 0] += 1
        f = _rotate(along, arm * (2 * math.pi / ARMS))
        return ZOOM * _rotate(f, _twist(f)), arm

    return _toy(
        "pinwheel",
        (train, valid, test),
        seed,
        draw,
        _pinwheel_log_density,
        _pinwheel_entropy(),
        "twisted Gaussian arms, after Johnson et al. (2016)",
    )


def _toy(
    name: str,
    sizes: tuple[int, int, int],
    seed: int,
    draw: Callable[[int, Generator], tuple[Tensor, Tensor]],
    log_density: Callable[[Tensor], Tensor],
    entropy: float,
    source: str,
) -> Dataset:
    """Draw the three splits, each from its own stream."""
    splits: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    for index, (split, n) in enumerate(zip(("train", "valid", "test"), sizes, strict=True)):
        if n < (split == "train"):
            raise DataError(f"{name}: {split} is {n}, expected a number of examples; draw at least one to train on.")
        generator = Generator().manual_seed(3 * seed + index)
        x, labels[split] = draw(n, generator)
        splits[split] = x.float()
    return Dataset(
        name,
        splits["train"],
        splits["valid"],
        splits["test"],
        labels=labels,
        source=source,
        licence="none needed: drawn on the spot",
        entropy=entropy,
        log_density=log_density,
    )


# The densities. Each takes x [..., 2] and returns [...] nats, in the dtype and on the device of x.


def _moons_log_density(x: Tensor, noise: float) -> Tensor:
    x = _planar(x)
    nodes, weights = _arc_quadrature(noise)
    t = torch.as_tensor(nodes, dtype=x.dtype, device=x.device)
    log_weight = torch.as_tensor(np.log(weights / math.pi), dtype=x.dtype, device=x.device)  # [node]
    arc = torch.stack([t.cos(), t.sin()], -1)  # [node, 2]
    constant = math.log(2 * math.pi * noise**2)

    def one(x: Tensor) -> Tensor:  # [n, 2] -> [n]
        square = ((x[:, None] - arc) / noise).square().sum(-1)  # [n, node]
        return torch.logsumexp(log_weight - square / 2, -1) - constant

    rows = max(1, 2**21 // len(nodes))  # keeps [n, node] small
    flat = x.reshape(-1, 2)
    parts = [torch.logaddexp(one(part), one(_reflect(part))) for part in flat.split(rows)]
    return (torch.cat(parts) - math.log(2)).reshape(x.shape[:-1])


def _eight_gaussians_log_density(x: Tensor) -> Tensor:
    x = _planar(x)
    square = ((x[..., None, :] - _ring(8, RADIUS, x)) / SCALE).square().sum(-1)  # [..., component]
    return torch.logsumexp(-square / 2, -1) - math.log(8 * 2 * math.pi * SCALE**2)


def _checkerboard_log_density(x: Tensor) -> Tensor:
    x = _planar(x)
    dark = (x / 2).floor().sum(-1) % 2 == 0
    board = ((x >= -4) & (x < 4)).all(-1)
    return torch.where(dark & board, -math.log(32), -math.inf).to(x.dtype)


def _pinwheel_log_density(x: Tensor) -> Tensor:
    f = _planar(x) / ZOOM
    return _arms_log_density(_rotate(f, -_twist(f))) - 2 * math.log(ZOOM)


def _arms_log_density(f: Tensor) -> Tensor:
    """The pinwheel before its twist."""
    angles = torch.arange(ARMS, dtype=f.dtype, device=f.device) * (2 * math.pi / ARMS)
    along = _rotate(f[..., None, :], -angles)  # [..., arm, 2] in each arm's frame
    square = ((along[..., 0] - 1) / RADIAL).square() + (along[..., 1] / TANGENTIAL).square()
    return torch.logsumexp(-square / 2, -1) - math.log(ARMS * 2 * math.pi * RADIAL * TANGENTIAL)


# The entropies, by quadrature where there is no closed form.


def _entropy(log_density: Callable[[Tensor], Tensor], low: tuple, high: tuple, step: float) -> float:
    """-sum p log p step^2 over a grid.

    The trapezoidal rule converges faster than any power of the step on a density that is blurred by a
    Gaussian: with a step of 0.6 of its standard deviation the error is below 1e-6 (a test refines the grid).
    """
    x, y = (torch.arange(a, b + step, step, dtype=torch.float64) for a, b in zip(low, high, strict=True))
    log_p = log_density(torch.cartesian_prod(x, y))
    return -float((log_p.exp() * log_p).sum()) * step**2


@lru_cache
def _moons_entropy(noise: float) -> float:
    tail = ENOUGH * noise
    density = partial(_moons_log_density, noise=noise)
    return _entropy(density, (-1 - tail, -0.5 - tail), (2 + tail, 1 + tail), 0.6 * noise)


@lru_cache
def _eight_gaussians_entropy() -> float:
    edge = RADIUS + ENOUGH * SCALE
    return _entropy(_eight_gaussians_log_density, (-edge, -edge), (edge, edge), 0.6 * SCALE)


@lru_cache
def _pinwheel_entropy() -> float:
    edge = 1 + ENOUGH * RADIAL
    untwisted = _entropy(_arms_log_density, (-edge, -edge), (edge, edge), 0.6 * TANGENTIAL)
    return untwisted + 2 * math.log(ZOOM)


# Geometry.


def _planar(x: Tensor) -> Tensor:
    if x.shape[-1:] != (2,):
        raise DataError(f"x has shape {tuple(x.shape)}, but the toy lives in the plane; give points as [n, 2].")
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _reflect(x: Tensor) -> Tensor:
    """The point reflection that swaps the two moons."""
    return torch.tensor([1.0, 0.5], dtype=x.dtype, device=x.device) - x


def _ring(n: int, radius: float, like: Tensor) -> Tensor:
    """n points spread evenly on a circle, [n, 2]."""
    angle = torch.arange(n, dtype=like.dtype, device=like.device) * (2 * math.pi / n)
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Each point [..., 2] turned about the origin by its angle [...]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], -1)


def _twist(f: Tensor) -> Tensor:
    """The pinwheel's angle at each point; held beyond radius 8 (23 standard deviations) lest exp overflow."""
    return RATE * f.square().sum(-1).sqrt().clamp(max=8).exp()


@lru_cache
def _arc_quadrature(noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, pi]: 16 Gauss-Legendre nodes in each panel, which is at most 2 noise wide."""
    panels = math.ceil(math.pi / (2 * noise))
    node, weight = np.polynomial.legendre.leggauss(16)
    half = math.pi / panels / 2
    centres = half * (2 * np.arange(panels) + 1)
    return (centres[:, None] + half * node).ravel(), np.tile(half * weight, panels)
