"""Densities on R^d written by hand, for samplers to be tested on, and a plain recursive No-U-Turn sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_dgm.inference.chains.hamiltonian import Metric, Point, trajectory

__all__ = ["Handmade", "gaussian", "recursive_nuts"]


class Handmade:
    """A log density from a function [chain, d] -> [chain]."""

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int, dtype: torch.dtype = torch.float64) -> None:
        self.function, self.dim, self.dtype, self.device = function, dim, dtype, torch.device("cpu")
        self.gradients = self.evaluations = 0

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.gradients += len(z)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.function(z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def gradient(self, z: Tensor) -> Tensor:
        return self.value_and_grad(z)[1]

    def log_prob(self, z: Tensor) -> Tensor:
        self.evaluations += len(z)
        return self.function(z)

    def initial(self, chains: int, seed: int | None = None, radius: float = 2.0, gradient: bool = True) -> Tensor:
        return (2 * torch.rand(chains, self.dim, dtype=self.dtype) - 1) * radius


def gaussian(covariance: Tensor, mean: float = 0.0) -> Handmade:
    """A normal density with its constant."""
    exact = torch.distributions.MultivariateNormal(
        torch.full((len(covariance),), mean, dtype=covariance.dtype), covariance
    )
    return Handmade(exact.log_prob, len(covariance), covariance.dtype)


def turned(r_first: Tensor, r_last: Tensor, momenta: Tensor) -> bool:
    """Whether a stretch with these momenta [point, d] has turned back."""
    rho = momenta.sum(0) - (r_first + r_last) / 2
    return bool(r_first @ rho <= 0) or bool(r_last @ rho <= 0)


def recursive_nuts(
    density: Handmade,
    metric: Metric,
    z: Tensor,
    r: Tensor,
    step: float,
    forwards: list[bool],
    leaf_draws: list[Tensor],
    merge_draws: list[float],
) -> tuple[Tensor, int, int, bool]:
    """One draw of one chain by the textbook's recursion, with the random numbers given.

    Arguments:
        z, r: [d].
        forwards, merge_draws: for each doubling its direction and the log uniform number of its merge.
        leaf_draws: for each doubling the log uniform numbers of its leaves.

    Returns:
        the draw [d], the number of steps, the depth, whether it diverged.
    """
    start = Point.at(density, z[None])
    energy = float(r @ r / 2 - start.value[0])
    steps, diverged = 0, False
    leaves: list[tuple[Tensor, Tensor, float]] = []  # of this doubling: z, momentum, energy lost

    def build(height: int, point: Point, r: Tensor) -> tuple[list[Tensor], Point, Tensor, bool]:
        """Momenta of 2^height more points, the last of them, and whether they are free of U-turns."""
        nonlocal steps, diverged
        if height == 0:
            point, moved = trajectory(density, metric, point, r[None], step, 1)
            steps += 1
            lost = energy + float(point.value[0]) - float(moved[0] @ moved[0] / 2)
            leaves.append((point.z[0], moved[0], lost))
            diverged = diverged or not lost >= -1000
            return [moved[0]], point, moved[0], not diverged
        left, point, r, good = build(height - 1, point, r)
        if not good:
            return left, point, r, False
        right, point, r, good = build(height - 1, point, r)
        return left + right, point, r, good and not merged(left, right)

    def merged(left: list[Tensor], right: list[Tensor]) -> bool:
        whole = torch.stack(left + right)
        if turned(whole[0], whole[-1], whole):
            return True
        if len(left) == len(right) == 1:
            return False
        return turned(left[0], right[0], torch.stack([*left, right[0]])) or turned(
            left[-1], right[-1], torch.stack([left[-1], *right])
        )

    momenta, draw, weight, depth = [r], z, 0.0, 0
    ends = {True: (start, r), False: (start, r)}
    for level, forward in enumerate(forwards):
        depth += 1
        leaves.clear()
        point, r_end = ends[forward]
        sign = 1.0 if forward else -1.0
        new, point, r_last, good = build(level, point, sign * r_end)
        if not good:
            break
        total = torch.tensor(leaves[0][2]).double()
        chosen = leaves[0][0]
        for i, (place, _, lost) in enumerate(leaves[1:], 1):
            total = torch.logaddexp(total, torch.tensor(lost).double())
            if leaf_draws[level][i] < lost - total:
                chosen = place
        if merge_draws[level] < total - weight:
            draw = chosen
        weight = torch.logaddexp(torch.as_tensor(weight).double(), total)
        new = [sign * r for r in new]
        left, right = (momenta, new) if forward else (new[::-1], momenta)
        momenta = left + right
        ends[forward] = (point, sign * r_last)
        if merged(left, right):
            break
    return draw, steps, depth, diverged
