"""RBM: the restricted Boltzmann machine, binary on both sides."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from ppl_dgm.errors import DataError, ProgramError, TaskUnavailable
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

__all__ = ["RBM"]

_ENUMERABLE = 20  # units on the smaller side up to which log Z is summed exactly
_NUMBERS = 2**18  # numbers held at once while enumerating: what a core's cache holds


class RBM(Program):
    """The restricted Boltzmann machine: two layers of bits, with weights between the layers and none within,

        p(x, h) = exp(-E(x, h)) / Z,   E(x, h) = -x' W h - b' x - c' h.

    Given one layer, the units of the other are independent: p(h_j = 1 | x) = sigmoid(c_j + x' W_j), p(x_i = 1
        | h) = sigmoid(b_i + W_i h).
    Summing h out leaves the free energy F(x) = -b' x - sum_j softplus(c_j + x' W_j) with p(x) = exp(-F(x)) /
    Z.

    Arguments:
        observed: D, the number of observed bits.
        hidden: M, the number of hidden bits.
        sweeps: sweeps of block Gibbs sampling, from fair coin flips, before `sample` returns.

    Sites: `x` [D], `h` [M]. Score: exact where one side has at most 20 units (log Z is a sum over its
    states), else unnormalised, -F(x); with `method="ais"` an estimate at any size. Posterior: exact. The values
    are log probabilities of bits: after grey levels have been turned into bits they are not comparable with log
    probabilities of the grey levels.

    Raises:
        ProgramError: a size is not a positive whole number.

    Source: Smolensky 1986; Hinton 2002; Tomczak 2024, section 7.5.1.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> rbm = RBM(observed=6, hidden=4)
        >>> dgm.score(rbm, torch.zeros(3, 6)).kind
        'exact'
        >>> dgm.sample(rbm, 2, given={"x": torch.tensor([1.0, 0, 1, float("nan"), 0, 0])}, seed=0)["x"].shape
        torch.Size([2, 6])
    """

    def __init__(self, observed: int, hidden: int, sweeps: int = 1000) -> None:
        super().__init__()
        for name, size in (("observed", observed), ("hidden", hidden), ("sweeps", sweeps)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ProgramError(f"RBM: {name} is {size!r}; give a positive whole number.")
        self.observed, self.hidden, self.sweeps = observed, hidden, sweeps
        self.support = constraints.boolean
        self.weight = torch.nn.Parameter(0.01 * torch.randn(observed, hidden))
        self.bias = torch.nn.Parameter(torch.zeros(observed))
        self.hidden_bias = torch.nn.Parameter(torch.zeros(hidden))

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Every pair of layers has mass one (a measure, not a distribution); the factor makes it exp(-E)."""
        with pyro.plate("data", n if x is None else len(x)):
            x = pyro.sample("x", self._counting(self.bias), obs=None if x is None else x.to(self.dtype))  # [batch, D]
            h = pyro.sample("h", self._counting(self.hidden_bias))  # [batch, M]
            pyro.factor("energy", -self.energy(x, h))
        return x

    def _counting(self, like: Tensor) -> dist.TorchDistribution:
        """Bits of log density zero: coin flips whose density is masked out."""
        return dist.Bernoulli(logits=torch.zeros_like(like)).mask(False).to_event(1)

    def energy(self, x: Tensor, h: Tensor) -> Tensor:
        """E(x, h) = -x' W h - b' x - c' h; x [..., D], h [..., M] -> [...]."""
        return -((x @ self.weight) * h).sum(-1) - x @ self.bias - h @ self.hidden_bias

    def free_energy(self, x: Tensor) -> Tensor:
        """F(x) = -ln sum_h exp(-E(x, h)); x [..., D] -> [...] nats."""
        x = x.to(self.dtype)
        return -x @ self.bias - softplus(self.hidden_bias + x @ self.weight).sum(-1)

    # -- conditionals and sampling ---------------------------------------------------------------------------

    def given_x(self, x: Tensor) -> Tensor:
        """P(h_j = 1 | x), [..., M]."""
        return torch.sigmoid(self.hidden_bias + x.to(self.dtype) @ self.weight)

    def given_h(self, h: Tensor) -> Tensor:
        """P(x_i = 1 | h), [..., D]."""
        return torch.sigmoid(self.bias + h @ self.weight.T)

    def gibbs(self, x: Tensor, sweeps: int = 1) -> Tensor:
        """Block Gibbs sampling: h ~ p(h | x), x ~ p(x | h), `sweeps` times, which leaves p(x) as it is.

        Arguments:
            x: [..., D] where the chains stand.
            sweeps: how often.

        Returns:
            [..., D] where they stand then; no gradient.
        """
        with torch.no_grad():
            x = x.to(self.dtype)
            for _ in range(sweeps):
                x = torch.bernoulli(self.given_h(torch.bernoulli(self.given_x(x))))
        return x

    def posterior(self, x: Tensor) -> dict[str, dist.TorchDistribution]:
        """p(h | x), exact: independent bits."""
        return {"h": dist.Bernoulli(logits=self.hidden_bias + x.to(self.dtype) @ self.weight).to_event(1)}

    def simulate(self, n: int, given: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Draw x and h by block Gibbs sampling from coin flips, with any units held fixed.

        Arguments:
            n: number of draws (independent chains).
            given: {"x": [D] or [n, D], "h": [M] or [n, M]}; units to be drawn are NaN, or -1.

        Returns:
            {"x": [n, D], "h": [n, M]}.

        Raises:
            ProgramError: an unknown site. DataError: a wrong shape, or a fixed unit that is not 0 or 1.
        """
        given = given or {}
        unknown = [name for name in given if name not in ("x", "h")]
        if unknown:
            raise ProgramError(f"given: RBM has no site {unknown[0]!r}; it has x and h.")
        x, x_free = self._clamped("x", given.get("x"), n, self.bias)
        h, h_free = self._clamped("h", given.get("h"), n, self.hidden_bias)
        with torch.no_grad():
            for _ in range(self.sweeps):
                h = torch.where(h_free, torch.bernoulli(self.given_x(x)), h)
                x = torch.where(x_free, torch.bernoulli(self.given_h(h)), x)
            h = torch.where(h_free, torch.bernoulli(self.given_x(x)), h)
        return {"x": x, "h": h}

    def _clamped(self, site: str, value: Tensor | None, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Starting bits [n, units] and which of them are free to move."""
        start = torch.bernoulli(torch.full((n, len(like)), 0.5, dtype=like.dtype, device=like.device))
        if value is None:
            return start, torch.ones_like(start, dtype=torch.bool)
        if value.shape not in ((len(like),), (n, len(like))):
            raise DataError(
                f"given {site!r} has shape {tuple(value.shape)}, expected ({len(like)},) or "
                f"({n}, {len(like)}); mark missing units by NaN or -1."
            )
        value = value.to(like.dtype).expand(n, -1)
        free = value.isnan() | (value == -1)
        wrong = value[~(free | (value == 0) | (value == 1))]
        if len(wrong):
            raise DataError(f"given {site!r} holds {wrong[0]:g}, expected bits; mark missing units by NaN or -1.")
        return torch.where(free, start, value), free

    # -- densities -------------------------------------------------------------------------------------------

    @property
    def states(self) -> int:
        """Number of terms in the sum that is Z: the states of the smaller side."""
        return 2 ** min(self.observed or 0, self.hidden)

    def log_partition(self) -> Tensor | None:
        """ln Z as a sum over the states of the smaller side; None where that side has more than 20 units.

        Z = sum_h exp(c' h) prod_i (1 + exp(b_i + W_i h)), or the same with the layers exchanged. Each term is
        computed in the parameters' type, their sum in float64.
        """
        return None if self.states > 2**_ENUMERABLE else self._log_masses().logsumexp(0)

    def _log_masses(self) -> Tensor:
        """Of each state of the smaller side, the log of its unnormalised probability, [2^units], float64.

        State k has the binary digits of k as its bits, the lowest first.
        """
        layers: tuple[Tensor, Tensor, Tensor] = (self.weight, self.hidden_bias, self.bias)
        if self.weight.shape[0] < self.weight.shape[1]:
            layers = (self.weight.T, self.bias, self.hidden_bias)
        weight, small, large = layers
        # weight [large, small]; the states are the binary digits of their number
        size = max(1, _NUMBERS // len(large))
        places = torch.arange(len(small), device=small.device)
        parts = []
        for begin in range(0, self.states, size):
            number = torch.arange(begin, min(begin + size, self.states), device=small.device)
            bits = ((number[:, None] >> places) & 1).to(self.dtype)  # [states, small]
            parts.append((bits @ small + softplus(large + bits @ weight.T).sum(-1)).double())
        return torch.cat(parts)

    def log_prob(self, x: Tensor) -> Tensor:
        """Exact log p(x) = -F(x) - ln Z, [batch] nats, differentiable.

        Raises:
            TaskUnavailable: both sides have more than 20 units.
        """
        log_z = self.log_partition()
        if log_z is None:
            raise TaskUnavailable(
                f"log Z of an RBM with {self.observed} and {self.hidden} units is a sum of more than "
                f"2^{_ENUMERABLE} terms; dgm.score gives -F(x), log p(x) up to a constant, or with method='ais' an "
                "estimate, and dgm.learn works with method='contrastive-divergence'."
            )
        return (-self.free_energy(x).double() - log_z).to(self.dtype)

    def log_density(self, x: Tensor) -> Score:
        """Exact where ln Z can be summed, else -F(x), unnormalised."""
        if self.states > 2**_ENUMERABLE:
            return Score(
                -self.free_energy(x), "unnormalised", how="-F(x); log Z is not known: method='ais' estimates it"
            )
        return Score(self.log_prob(x), "exact", how=f"log Z summed over {self.states} states")

    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        """sum_i log p(x_i | all other x), [batch] nats: needs no Z, and is no log likelihood."""
        x = x.to(self.dtype)
        field = self.hidden_bias + x @ self.weight  # [batch, M]
        here, total = softplus(field).sum(-1), torch.zeros(len(x), dtype=self.dtype, device=self.device)
        for i in range(self.observed or 0):
            change = 1 - 2 * x[:, i]  # what flipping bit i adds to it
            flipped = softplus(field + change[:, None] * self.weight[i]).sum(-1)
            total = total - softplus(change * self.bias[i] + flipped - here)
        return total

    # -- annealing -------------------------------------------------------------------------------------------

    # What `dgm.AIS` asks of an undirected program: the path from independent units to this machine,
    #
    #     p_beta(x, h) = exp(b' x + beta (x' W h + c' h)) / Z_beta,        0 <= beta <= 1,
    #
    # whose start, the base-rate model with the visible biases, can be drawn from and has a known Z.

    def tempered_start(self, n: int) -> Tensor:
        """Exact draws of x at beta = 0, [n, D]."""
        return torch.bernoulli(torch.sigmoid(self.bias).expand(n, -1))

    def tempered_log_partition(self) -> Tensor:
        """ln Z at beta = 0, sum_i softplus(b_i) + M ln 2, float64."""
        return softplus(self.bias.double()).sum() + self.hidden * math.log(2)

    def tempered_free_energy(self, x: Tensor, beta: float) -> Tensor:
        """-ln sum_h exp(b' x + beta (x' W h + c' h)), [...] nats."""
        return -x @ self.bias - softplus(beta * (self.hidden_bias + x @ self.weight)).sum(-1)

    def tempered_gibbs(self, x: Tensor, beta: float) -> Tensor:
        """h ~ p_beta(h | x), x ~ p_beta(x | h): reversible with respect to p_beta(x)."""
        h = torch.bernoulli(torch.sigmoid(beta * (self.hidden_bias + x @ self.weight)))
        return torch.bernoulli(torch.sigmoid(self.bias + beta * (h @ self.weight.T)))

    def tempered_end(self, n: int) -> tuple[Tensor, bool]:
        """Draws of x at beta = 1, [n, D], and whether they are exact.

        Exact where the states of the smaller side can be listed, else the end of `sweeps` sweeps of Gibbs sampling.
        """
        if self.states > 2**_ENUMERABLE:
            return self.simulate(n)["x"], False
        number = torch.multinomial(self._log_masses().softmax(0), n, replacement=True)
        bits = ((number[:, None] >> torch.arange(min(self.weight.shape), device=number.device)) & 1).to(self.dtype)
        if self.weight.shape[0] < self.weight.shape[1]:
            return bits, True
        return torch.bernoulli(self.given_h(bits)), True

    # -- learning --------------------------------------------------------------------------------------------

    def start(self, x: Tensor) -> None:
        """Set biases of observed units that are still zero to the data's log odds, best without weights."""
        with torch.no_grad():
            ones = (x.to(self.dtype).sum(0) + 0.5) / (len(x) + 1)
            self.bias.copy_(torch.where(self.bias == 0, torch.logit(ones), self.bias))

    def default_method(self, task: str) -> Any:
        if task == "learn":
            from ppl_dgm.inference.contrastive_divergence import ContrastiveDivergence

            return ContrastiveDivergence(persistent=True, k=5, batch_size=50, lr=0.02)
        return None

    def answers(self) -> dict[str, Answer]:
        score = Answer("unnormalised", "free energy; log Z is not known, and estimated by method='ais'")
        if self.states <= 2**_ENUMERABLE:
            terms = f"2^{int(math.log2(self.states))}"
            score = Answer("exact", f"free energy; log Z = sum of {terms} terms (of bits, not grey levels)")
        return {
            "sample": Answer(
                "asymptotic",
                f"block Gibbs, {self.sweeps} sweeps; any units clamped",
                2 * self.sweeps,
                2 * self.sweeps,
            ),
            "score": score,
            "infer": Answer("exact", "the hidden units are independent given x"),
            "learn": Answer("approximate", "contrastive divergence"),
        }
