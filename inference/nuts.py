"""NUTS: the No-U-Turn sampler, iterative and for many chains at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_dgm.inference.hamiltonian import DIVERGED, Density, Metric, Point, gain, kinetic, trajectory
from ppl_dgm.inference.sampling import Drawn, HamiltonianSampler, Kernel
from ppl_dgm.registry import algorithm

__all__ = ["NUTS", "Trees", "checkpoints", "turning"]


def turning(r_first: Tensor, r_last: Tensor, total: Tensor) -> Tensor:
    """The generalised U-turn criterion of a trajectory, [...], in coordinates in which the metric is the identity.

        r_first . rho <= 0  or  r_last . rho <= 0,        rho = sum of momenta - (r_first + r_last) / 2

    The ends count half, as in the trapezoidal rule: rho is then the distance between the ends, also for the short
    trajectories of large steps, where the plain sum runs in circles.

    Arguments:
        r_first, r_last: momenta at the ends, [..., d].
        total: the sum of the momenta of all points of the trajectory, ends included, [..., d].

    Source: Betancourt (2017), appendix A.4.2; the halved ends as in TensorFlow Probability and NumPyro.
    """
    rho = total - (r_first + r_last) / 2
    return (torch.linalg.vecdot(r_first, rho) <= 0) | (torch.linalg.vecdot(r_last, rho) <= 0)


def checkpoints(leaf: int) -> tuple[int, int]:
    """Which stored momenta belong to the subtrees that leaf number `leaf` (from 0) completes.

    Leaf 2k is stored at the place that counts the one bits of k. Leaf 2k + 1 is the last of as many balanced
    subtrees as its number has one bits at the end; their first leaves are stored at the places first, ..., last.
    Only log2 of the number of leaves are ever stored.

    Returns:
        (first, last); leaf 13 = 0b1101, say, ends one subtree, that of leaves 12 and 13, and the first of them is
        stored at place 2.

    Example:
        >>> checkpoints(13), checkpoints(7), checkpoints(6)
        ((2, 2), (0, 2), (2, 2))

    Source: Phan, Pradhan and Jankowiak (2019), arXiv 1912.11554, appendix A.
    """
    last = (leaf >> 1).bit_count()
    ones = (leaf ^ (leaf + 1)).bit_length() - 1
    return (last - ones + 1 if ones else last), last


@dataclass
class _Subtree:
    """What one doubling adds to the trees.

    Attributes:
        end, r_end: the outermost point, and the momentum there (signed by the direction).
        proposal: a point of it, drawn in proportion to exp(-energy).
        log_weight: log of the sum of exp(energy lost) over its points, [chain].
        momentum: the sum of momenta (signed), [chain, d].
        whole: whether it was completed without a U-turn within it and without a divergence, [chain].
    """

    end: Point
    r_end: Tensor
    proposal: Point
    log_weight: Tensor
    momentum: Tensor
    whole: Tensor


@dataclass
class _Tally:
    """Counts over the trees of one draw, [chain] each."""

    acceptance: Tensor
    steps: Tensor
    diverging: Tensor


class Trees(Kernel):
    """One draw of every chain from its own trajectory.

    All chains double at the same time, so that depth and leaf number are plain integers; a chain whose trajectory
    has ended is masked until the last one has. `uniform` and `directions` draw the random numbers; a test
    can replace them.
    """

    name = "NUTS"

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform random numbers, [chain]."""
        return torch.rand_like(like)

    def directions(self, like: Tensor) -> Tensor:
        """Forwards or backwards with equal probability, [chain], True or False."""
        return torch.rand_like(like) < 0.5

    def momenta(self, like: Tensor) -> Tensor:
        """Standard normal momenta, [chain, d]."""
        return torch.randn_like(like)

    def step(
        self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool
    ) -> Drawn:
        r = self.momenta(point.z)
        energy = kinetic(r) - point.value
        zero = torch.zeros_like(point.value)
        tally = _Tally(zero, zero, torch.zeros_like(zero, dtype=torch.bool))
        ends, r_ends = [point, point], [r, r]  # backwards, forwards
        proposal, log_weight, momentum = point, zero, r
        going = torch.ones_like(tally.diverging)
        depth = zero
        for level in range(self.max_depth):
            forwards = self.directions(zero)
            sign = torch.where(forwards, 1.0, -1.0).to(r.dtype)[:, None]
            start = ends[0].moved(ends[1], forwards)
            signed = torch.where(forwards[:, None], r_ends[1], -r_ends[0])
            tree = self.subtree(density, metric, start, signed, step, 2**level, -energy, going, tally)
            depth = depth + going
            whole = tree.whole
            taken = whole & (self.uniform(zero).log() < tree.log_weight - log_weight)
            proposal = proposal.moved(tree.proposal, taken)
            if level + 1 == self.max_depth:
                break
            log_weight = torch.where(whole, torch.logaddexp(log_weight, tree.log_weight), log_weight)
            momentum = torch.where(whole[:, None], momentum + sign * tree.momentum, momentum)
            for side, grown in ((0, whole & ~forwards), (1, whole & forwards)):
                ends[side] = ends[side].moved(tree.end, grown)
                r_ends[side] = torch.where(grown[:, None], sign * tree.r_end, r_ends[side])
            going = whole & ~turning(r_ends[0], r_ends[1], momentum)
            if not bool(going.any()):
                break
        stats = {
            "diverging": tally.diverging,
            "energy": energy,
            "n_steps": tally.steps,
            "tree_depth": depth,
            "reached_max_treedepth": depth >= self.max_depth,
        }
        return Drawn(proposal, tally.acceptance / tally.steps, stats)

    def subtree(
        self,
        density: Density,
        metric: Metric,
        point: Point,
        r: Tensor,
        step: float,
        leaves: int,
        reference: Tensor,
        going: Tensor,
        tally: _Tally,
    ) -> _Subtree:
        """So many leapfrog steps on from (point, r), until every chain that is `going` has turned or diverged.

        Arguments:
            reference: minus the energy that weights are relative to, [chain].
        """
        proposal, whole = point, going
        log_weight = torch.full_like(point.value, -torch.inf)
        momentum = torch.zeros_like(r)
        count = max(leaves.bit_length() - 1, 1)
        firsts = [r] * count
        sums = [r] * count
        for leaf in range(leaves):
            point, r = trajectory(density, metric, point, r, step, 1)
            lost = torch.nan_to_num(point.value - kinetic(r) - reference, nan=-torch.inf, posinf=-torch.inf)
            tally.acceptance = tally.acceptance + torch.where(whole, lost.clamp(max=0.0).exp(), 0.0)
            tally.steps = tally.steps + whole
            sound = lost >= -DIVERGED
            tally.diverging = tally.diverging | (whole & ~sound)
            whole = whole & sound
            momentum = momentum + r
            log_weight = torch.logaddexp(log_weight, lost)
            taken = whole if leaf == 0 else whole & (self.uniform(lost).log() < lost - log_weight)
            proposal = proposal.moved(point, taken)
            first, last = checkpoints(leaf)
            if leaf % 2 == 0:
                firsts[last], sums[last] = r, momentum
            else:
                for i in range(last, first - 1, -1):
                    whole = whole & ~turning(firsts[i], r, momentum - sums[i] + firsts[i])
            if (leaf % 4 == 3 or leaf == 0) and leaf + 1 < leaves and not bool(whole.any()):
                break
        return _Subtree(point, r, proposal, log_weight, momentum, whole)


@algorithm("nuts")
@dataclass(frozen=True)
class NUTS(HamiltonianSampler):
    """The No-U-Turn sampler."""

    max_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("max_depth", 1 <= self.max_depth <= 20, "from 1 to 20")

    def kernel(self) -> Kernel:
        return Trees(self.max_depth)
