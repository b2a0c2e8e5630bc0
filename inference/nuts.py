"""NUTS: the No-U-Turn sampler, iterative and for many chains at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.inference.chains.hamiltonian import DIVERGED, Density, Metric, Point, kinetic, trajectory
from ppl_dgm.inference.chains.sampling import Drawn, HamiltonianSampler, Kernel
from ppl_dgm.options import require
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
    """What one doubling adds to the trees; momenta are signed by the direction.

    Attributes:
        end: the outermost point.
        r_first, r_last: the momenta next to the old tree and at `end`.
        momentum: the sum of all momenta, [chain, d].
        proposal: a point of it, drawn in proportion to exp(-energy).
        log_weight: log of the sum of exp(energy lost) over its points, [chain].
        whole: whether it was completed without a U-turn within it and without a divergence, [chain].
        acceptance: the sum of acceptance probabilities of its points, [chain].
        steps: how many points it has, [chain].
        diverged: whether it ended in a divergence, [chain].
    """

    end: Point
    r_first: Tensor
    r_last: Tensor
    momentum: Tensor
    proposal: Point
    log_weight: Tensor
    whole: Tensor
    acceptance: Tensor
    steps: Tensor
    diverged: Tensor


class Trees(Kernel):
    """One draw of every chain from its own trajectory.

    All chains double at the same time, so that depth and leaf number are plain integers; a chain whose trajectory
    has ended is masked until the last one has. The three methods that draw random numbers can be replaced by
    a test.
    """

    name = "NUTS"

    def __init__(self, max_depth: int) -> None:
        self.max_depth = max_depth

    def momenta(self, like: Tensor) -> Tensor:
        """Standard normal momenta, [chain, d]."""
        return torch.randn_like(like)

    def directions(self, like: Tensor) -> Tensor:
        """Forwards or backwards with equal probability, [chain], True or False."""
        return torch.rand_like(like) < 0.5

    def log_uniforms(self, count: int, like: Tensor) -> Tensor:
        """Logarithms of uniform random numbers, [count, chain]."""
        return torch.rand(count, len(like), dtype=like.dtype, device=like.device).log()

    def step(self, density: Density, metric: Metric, point: Point, step: float, t: int, learning: bool) -> Drawn:
        r = self.momenta(point.z)
        energy = kinetic(r) - point.value
        zero = torch.zeros_like(energy)
        acceptance, steps, depth, log_weight = zero, zero, zero, zero
        going = torch.ones_like(energy, dtype=torch.bool)
        diverging = ~going
        ends, r_ends = (point, point), (r, r)  # backwards, forwards
        proposal, momentum = point, r
        for level in range(self.max_depth):
            forwards = self.directions(zero)
            sign = (2 * forwards - 1).to(r.dtype)[:, None]
            start = ends[0].moved(ends[1], forwards)
            near = torch.where(forwards[:, None], r_ends[1], r_ends[0])
            tree = self.subtree(density, metric, start, sign * near, step, 2**level, -energy, going)
            acceptance, steps, depth = acceptance + tree.acceptance, steps + tree.steps, depth + going
            diverging = diverging | tree.diverged
            taken = tree.whole & (self.log_uniforms(1, zero)[0] < tree.log_weight - log_weight)
            proposal = proposal.moved(tree.proposal, taken)
            if level + 1 == self.max_depth:
                break
            log_weight = torch.logaddexp(log_weight, tree.log_weight)  # those of broken trees have done
            first, last, added = sign * tree.r_first, sign * tree.r_last, sign * tree.momentum
            far = torch.where(forwards[:, None], r_ends[0], r_ends[1])
            total = momentum + added
            turned = _any_turning([(far, last, total), (far, first, momentum + first), (near, last, added + near)])
            going = tree.whole & ~turned
            if not bool(going.any()):
                break
            momentum = total
            ends = (tree.end.moved(ends[0], forwards), ends[1].moved(tree.end, forwards))
            r_ends = (
                torch.where(forwards[:, None], r_ends[0], last),
                torch.where(forwards[:, None], last, r_ends[1]),
            )
        stats = {
            "diverging": diverging,
            "energy": energy,
            "n_steps": steps.int(),
            "tree_depth": depth.int(),
            "reached_max_treedepth": depth >= self.max_depth,
        }
        return Drawn(proposal, acceptance / steps, stats)

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
    ) -> _Subtree:
        """So many leapfrog steps on from (point, r), until every chain that is `going` has turned or diverged.

        Arguments:
            reference: minus the energy that weights are relative to, [chain].
        """
        draws = self.log_uniforms(leaves, reference) if leaves > 1 else reference
        passed = _Passed(leaves)
        proposal, whole, momentum = point, going, torch.zeros_like(r)
        log_weight, r_first = torch.full_like(reference, -torch.inf), r
        gains, masks = [], []
        for leaf in range(leaves):
            point, r = trajectory(density, metric, point, r, step, 1)
            lost = point.value - kinetic(r) - reference
            lost = torch.where(whole & (lost < torch.inf), lost, -torch.inf)  # also where it is not a number
            gains.append(lost)
            masks.append(whole)
            momentum = momentum + r
            whole = whole & (lost >= -DIVERGED)
            if leaf == 0:
                proposal, log_weight, r_first = point, lost, r
            else:
                log_weight = torch.logaddexp(log_weight, lost)
                proposal = proposal.moved(point, draws[leaf] < lost - log_weight)
            spans = passed.spans(leaf, r, momentum)
            if spans:
                whole = whole & ~_any_turning(spans)
            if leaf + 1 < leaves and not bool(whole.any()):
                break
        gain, alive = torch.stack(gains), torch.stack(masks)
        return _Subtree(
            end=point,
            r_first=r_first,
            r_last=r,
            momentum=momentum,
            proposal=proposal,
            log_weight=log_weight,
            whole=whole,
            acceptance=gain.clamp(max=0.0).exp().sum(0),
            steps=alive.sum(0),
            diverged=(alive & (gain < -DIVERGED)).any(0),
        )


class _Passed:
    """The few momenta of a subtree that its later leaves are compared with."""

    def __init__(self, leaves: int) -> None:
        places = max(leaves.bit_length() - 1, 1)
        self.firsts: list[Any] = [None] * places  # momenta of first leaves, and the sums there
        self.lasts: list[Any] = [None] * places  # of the last leaves of left halves

    def spans(self, leaf: int, r: Tensor, total: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The stretches that end with this leaf, each as (first momentum, last momentum, sum of momenta).

        A balanced subtree has three: all of it, its left half with the first leaf of the right, and its right
        half with the last leaf of the left. Without the latter two, a trajectory whose halves are just short of
        half a turn is not seen to turn, and runs in circles.
        """
        low, high = checkpoints(leaf)
        if leaf % 2 == 0:
            self.firsts[high] = (r, total)
            return []
        found = []
        for place in range(high, low - 1, -1):
            first, at_first = self.firsts[place]
            found.append((first, r, total - at_first + first))
            if place < high:  # of two leaves, the halves are the ends
                middle, at_middle = self.lasts[place]
                after, _ = self.firsts[place + 1]
                found.append((first, after, at_middle - at_first + first + after))
                found.append((middle, r, total - at_middle + middle))
        self.lasts[low] = (r, total)
        return found


def _any_turning(spans: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Whether any of these stretches has turned, [chain]."""
    if len(spans) == 1:
        return turning(*spans[0])
    first, last, total = (torch.stack(column) for column in zip(*spans, strict=True))
    return turning(first, last, total).any(0)


@algorithm("nuts")
@dataclass(frozen=True)
class NUTS(HamiltonianSampler):
    """The No-U-Turn sampler: trajectories that double until they turn back, many chains at once, without recursion.

    A draw is taken from the whole trajectory in proportion to its density (multinomial within a subtree, biased to the
    new one between). The U-turn criterion is the generalised one, across the subtrees too. All chains wait for the
    deepest tree of a step, so that for many chains `ChEES` does the same for less.

    Arguments:
        chains: chains that run at once.
        warmup: steps that learn step size and metric, thrown away.
        draws: draws kept of each chain.
        target_accept: mean acceptance over a trajectory that the step size is adapted to; nearer to 1 means smaller
            steps and fewer divergences.
        metric: "dense", "low-rank", "diagonal" or "auto", see `HMC`.
        step_size: fixes the step size instead of learning it.
        max_depth: a trajectory takes at most 2^max_depth - 1 steps.
        backend, dtype, checkpoint, superchains, radius, start: see `ChainSampler`.

    Returns, in `Posterior.stats`, for each draw: `lp` (log density in the unconstrained space), `energy` (Hamiltonian
    after the momentum was drawn), `acceptance_rate` (mean over the trajectory), `diverging` (energy error above
    1000), `n_steps` (leapfrog steps of that chain's own tree), `tree_depth`, `reached_max_treedepth`, `step_size`.
    `Posterior.cost.gradients` counts the evaluations of waiting chains too.

    Source: Hoffman and Gelman (2014); Betancourt (2017); iterative form: Phan, Pradhan and Jankowiak (2019).

    Example:
        >>> import pyro, pyro.distributions as dist, torch
        >>> import ppl_dgm as dgm
        >>> def coin(heads):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     pyro.sample("heads", dist.Binomial(10, p), obs=heads)
        >>> dgm.infer(coin, torch.tensor(7.0), method=NUTS(warmup=50, draws=50), seed=0).draws["p"].shape
        torch.Size([4, 50])
    """

    max_depth: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("max_depth", 1 <= self.max_depth <= 20, "from 1 to 20"))

    def kernel(self) -> Kernel:
        return Trees(self.max_depth)
