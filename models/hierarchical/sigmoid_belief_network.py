"""SigmoidBeliefNetwork: layers of bits, each a logistic regression on the layer above; with its recognition network, a Helmholtz machine."""

import itertools
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.models.latent.vae import DRAWS
from ppl_dgm.nn import mlp
from ppl_dgm.options import is_count
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["SigmoidBeliefNetwork"]


class SigmoidBeliefNetwork(Program):
    """L layers of hidden bits over D observed bits,

        z_L ~ Bernoulli(sigmoid(b_L)),  z_l ~ Bernoulli(sigmoid(W_l z_{l+1} + b_l)),  x ~ Bernoulli(sigmoid(W_0 z_1 + b_0)),

    every bit of a layer independent given the layer above. The density of (x, z) has no partition function. Given x the bits of
    a layer depend on one another ("explaining away"), so that the posterior is no product; the recognition network

        q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}),   each a product of Bernoullis,

    makes of it a Helmholtz machine. Deep latent Gaussian models (nonlinear Gaussian belief networks) are `BottomUpVAE`.

    log p(x) is a sum over layers, one after another,

        log p(z_l) = log sum_{z_{l+1}} p(z_{l+1}) p(z_l | z_{l+1}),

    exact as long as no two neighbouring hidden layers have more than `exact_up_to` bits together; else `score` is a lower bound.

    Ways to learn it: `WakeSleep` (the default; several particles make it reweighted wake-sleep), `IWAE(gradient="vimco",
    particles=10)` or `SVI(elbo="graph")` (score functions), `GreedyLayerwise`, and where the sum is exact,
    `MaximumLikelihood`, which leaves the recognition network as it was.

    Arguments:
        observed: D.
        latents: bits of z_1, ..., z_L, from the layer next to x upwards; at least one layer.
        recognition: hidden units of each network of q; () makes them logistic regressions, as in the source.
        activation: of those; see `ppl_dgm.nn.mlp`.
        exact_up_to: see above.

    Sites: `zL`, ..., `z1`, `x` [D].

    Raises:
        ProgramError: a size that is not positive.

    Source: Neal (1992), Connectionist learning of belief networks; Dayan, Hinton, Neal and Zemel (1995), The Helmholtz machine.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = SigmoidBeliefNetwork(observed=6, latents=(3, 2))
        >>> sorted(dgm.sample(program, 5, seed=0))
        ['x', 'z1', 'z2']
        >>> dgm.score(program, torch.zeros(2, 6)).kind
        'exact'
    """

    support = constraints.boolean

    def __init__(
        self,
        observed: int,
        latents: Sequence[int] = (32, 16),
        recognition: Sequence[int] = (),
        activation: str = "tanh",
        exact_up_to: int = 14,
    ) -> None:
        super().__init__()
        if not is_count(observed, 1):
            raise ProgramError(f"SigmoidBeliefNetwork: observed is {observed!r}; give the number of observed bits.")
        if isinstance(latents, int) or not latents or not all(is_count(size, 1) for size in latents):
            raise ProgramError(
                f"SigmoidBeliefNetwork: latents is {latents!r}; give the bits of z1, z2, ..., at least one positive number."
            )
        if not is_count(exact_up_to, 0):
            raise ProgramError(
                f"SigmoidBeliefNetwork: exact_up_to is {exact_up_to!r}; give a number of bits, 0 or more."
            )
        self.observed, self.latents, self.levels, self.exact_up_to = observed, tuple(latents), len(latents), exact_up_to
        sizes = (observed, *latents)
        # layer l is z_l given z_{l+1}, with x as layer 0; the topmost has a bias alone
        self.down = nn.ModuleList([nn.Linear(above, below) for below, above in itertools.pairwise(sizes)])
        self.top = nn.Parameter(torch.zeros(latents[-1]))
        self.up = nn.ModuleList(
            [mlp(below, above, tuple(recognition), activation) for below, above in itertools.pairwise(sizes)]
        )

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z_L ~ Bernoulli(b_L); z_l ~ Bernoulli(W_l z_{l+1} + b_l); x ~ Bernoulli(W_0 z_1 + b_0)."""
        observation = None if x is None else x.to(self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample(f"z{self.levels}", _bits(self.top))
            for level in range(self.levels - 1, 0, -1):
                z = pyro.sample(f"z{level}", _bits(self.down[level](z)))  # [batch, latents[level - 1]]
            return pyro.sample("x", _bits(self.down[0](z)), obs=observation)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z_1 ~ q(z_1 | x); z_l ~ q(z_l | z_{l-1}), bottom-up."""
        below = x.to(self.dtype)
        with pyro.plate("data", len(x)):
            for level, network in enumerate(self.up, 1):
                below = pyro.sample(f"z{level}", _bits(network(below)))
        return below

    # -- exact answers ---------------------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether log p(x) is summed over every state."""
        return max(sum(pair) for pair in zip(self.latents, (*self.latents[1:], 0), strict=True)) <= self.exact_up_to

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], summed over the states of the layers, from the top down.

        Raises:
            TaskUnavailable: there are too many states.
        """
        if not self.exact:
            raise TaskUnavailable(
                f"SigmoidBeliefNetwork: layers of {', '.join(map(str, self.latents))} bits have too many states to sum "
                f"(exact_up_to={self.exact_up_to} bits in two neighbouring layers); use method='importance-weighted'."
            )
        states = _states(self.latents[-1], self.top)
        log_p = _bits(self.top).log_prob(states)  # [state]
        for level in range(self.levels - 1, 0, -1):
            below = _states(self.latents[level - 1], self.top)
            log_p = _summed(log_p, self.down[level](states), below)
            states = below
        return _summed(log_p, self.down[0](states), x.to(self.dtype))

    def log_density(self, x: Tensor) -> Score:
        """log p(x), exact."""
        return Score(self.log_prob(x), "exact", how="sum over the states of each layer in turn")

    # -- levels, for greedy learning -------------------------------------------------------------------------

    def stage(self, level: int) -> "SigmoidBeliefNetwork":
        """The network of the lowest `level` layers, with this network's own parameters.

        Its topmost layer has the bias that the layer has given the next one, so that a next layer without weights changes nothing.
        """
        if level == self.levels:
            return self
        part = type(self)(**{**self.config, "latents": self.latents[:level]})
        part.down, part.up = self.down[:level], self.up[:level]
        part.top = self._bias(level)
        return part.train(self.training)

    def stage_parameters(self, level: int) -> list[nn.Parameter]:
        """What stage `level` has that the stages below do not: the weights into the layer below, its bias, and q of the layer."""
        below: list[Any] = [self.down[0].weight, self.down[0].bias] if level == 1 else [self.down[level - 1].weight]
        return [*below, self._bias(level), *self.up[level - 1].parameters()]

    @torch.no_grad()
    def begin_stage(self, level: int) -> None:
        """Put layer `level` on top of what is there so that the density of x and the bound stay as they are."""
        network: Any = self.up[level - 1]
        for values in (self.down[level - 1].weight, self._bias(level), network[-1].weight, network[-1].bias):
            values.zero_()  # type: ignore[operator]

    def _bias(self, level: int) -> Any:
        """b_l, a parameter of the layer l + 1 where there is one."""
        return self.top if level == self.levels else self.down[level].bias

    # -- answers ---------------------------------------------------------------------------------------------

    def default_method(self, task: str) -> Any:
        if task == "score" and not self.exact:
            from ppl_dgm.inference.importance import ImportanceWeighted

            return ImportanceWeighted(draws=DRAWS)
        if task == "learn":
            from ppl_dgm.inference.wake_sleep import WakeSleep

            return WakeSleep(
                particles=10, guide="wake", epochs=100, batch_size=32, lr=5e-3, schedule="cosine", patience=25
            )
        return None

    def answers(self) -> dict[str, Answer]:
        score = (
            Answer("exact", "sum over the states of each layer in turn")
            if self.exact
            else Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1)
        )
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": score,
            "infer": Answer("approximate", "recognition network, layer by layer upwards"),
            "learn": Answer("approximate", "reweighted wake-sleep"),
        }


def _bits(logits: Tensor) -> dist.TorchDistribution:
    """Independent bits, event shape [size]."""
    return dist.Bernoulli(logits=logits).to_event(1)


def _states(size: int, like: Tensor) -> Tensor:
    """Every state of so many bits, [2^size, size]."""
    numbers = torch.arange(2**size, device=like.device)[:, None]
    return (numbers.bitwise_right_shift(torch.arange(size, device=like.device)) & 1).to(like.dtype)


def _summed(log_p: Tensor, logits: Tensor, below: Tensor) -> Tensor:
    """log sum_s p(s) p(b | s), [b], for states s with logits [s, size] and values b [b, size] of the layer below.

    log Bernoulli(b; logits) = b . logits - sum softplus(logits), so that all pairs are one matrix product.
    """
    log_given = below @ logits.mT - nn.functional.softplus(logits).sum(-1)  # [b, s]
    return (log_given + log_p).logsumexp(-1)
