"""FactorialMixture: several independent discrete causes whose effects add up."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from ..mixtures.mixture import spread_rows

__all__ = ["FactorialMixture"]

_ENTRIES = 2**24
_INNER = 200  # most sweeps of mean field


class FactorialMixture(Program):
    """z_m ~ Categorical(w_m) for each cause m,  x_d = b_d + sum_m effect_{m, z_m, d} + N(0, r_d).

    M causes of K values make K^M means from M K rows of parameters. Observing x makes the causes dependent. Up to
    `exact_up_to` joint states are summed one by one, exactly; above, `score` and `learn` use the mean-field bound

        log p(x) >= E_q [ log p(x, z) - log q(z) ],        q(z) = prod_m q(z_m),

    found by coordinate ascent, and `infer` draws by Gibbs sampling. Each cause is a site z_0, z_1, ...

    Arguments:
        observed: D.
        causes: M.
        values: K, of each cause.
        exact_up_to: most joint states K^M that are summed.
        floor: smallest noise variance.

    Attributes:
        weight_logits: [M, K]. effects: [M, K, D]. bias: [D]. log_noise: log r, [D].

    Raises:
        ProgramError: an argument out of range.

    Source: Z. Ghahramani (1995), Factorial learning and the EM algorithm; R. Zemel (1993).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = FactorialMixture(3, causes=2)
        >>> dgm.infer(program, torch.randn(5, 3), seed=0).exact["z_1"].probs.shape
        torch.Size([5, 2])
    """

    support = constraints.real
    observed: int

    def __init__(
        self, observed: int, causes: int, values: int = 2, exact_up_to: int = 4096, floor: float = 1e-4
    ) -> None:
        super().__init__()
        for name, number, least in (("observed", observed, 1), ("causes", causes, 1), ("values", values, 2),
                                    ("exact_up_to", exact_up_to, 1)):  # fmt: skip
            if not isinstance(number, int) or number < least:
                raise ProgramError(f"{name} must be a whole number, at least {least}, but it is {number!r}.")
        if floor <= 0:
            raise ProgramError(f"floor must be a positive variance, but it is {floor!r}.")
        self.observed, self.causes, self.size, self.floor = observed, causes, values, floor
        self.exact_up_to = exact_up_to
        self.weight_logits = nn.Parameter(torch.zeros(causes, values))
        self.effects = nn.Parameter(torch.randn(causes, values, observed))
        self.bias = nn.Parameter(torch.zeros(observed))
        self.log_noise = nn.Parameter(torch.zeros(observed))
        self._kept: Tensor | None = None  # q(z) of the last variational step

    @property
    def is_exact(self) -> bool:
        """Whether all joint states are summed."""
        return self.size**self.causes <= self.exact_up_to

    @property
    def noise(self) -> Tensor:
        """r, [D], never below the floor."""
        return self.log_noise.exp().clamp_min(self.floor)

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Every cause, then x around the sum of their effects."""
        x = None if x is None else x.to(self.dtype)
        mean: Tensor = self.bias
        with pyro.plate("data", n if x is None else len(x)):
            for m in range(self.causes):
                fn = dist.Categorical(logits=self.weight_logits[m])
                mean = mean + self.effects[m][pyro.sample(f"z_{m}", fn, infer={"enumerate": "parallel"})]
            return pyro.sample("x", dist.Normal(mean, self.noise.sqrt()).to_event(1), obs=x)

    # -- exact answers ---------------------------------------------------------------------------------------

    def states(self) -> Tensor:
        """Every joint state, [K^M, M]."""
        ranges = [torch.arange(self.size, device=self.device)] * self.causes
        return torch.cartesian_prod(*ranges).reshape(-1, self.causes)

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x, z) of every joint state in nats, [n, K^M]."""
        states = self.states()
        which = torch.arange(self.causes, device=self.device)
        mean = self.bias + self.effects[which, states].sum(1)  # [K^M, D]
        prior = self.weight_logits.log_softmax(-1)[which, states].sum(-1)  # [K^M]
        rows = max(1, _ENTRIES // (len(states) * self.observed))
        fn = dist.Normal(mean, self.noise.sqrt())
        return torch.cat([fn.log_prob(part.unsqueeze(1)).sum(-1) + prior for part in x.to(self.dtype).split(rows)])

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [n]: exact over all joint states, or the mean-field bound."""
        if self.is_exact:
            how = f"sum over {self.size}^{self.causes} states, Gaussian density of continuous x"
            return Score(self.log_joint(x).logsumexp(-1), "exact", how=how)
        return Score(self.bound(x, self.mean_field(x)), "lower_bound", how="mean-field bound")

    # -- mean field ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mean_field(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        """q(z_m), [n, M, K], by coordinate ascent from `start` (the causes' prior) until nothing moves by 1e-6."""
        x = x.to(self.dtype)
        prior = self.weight_logits.log_softmax(-1)
        q = prior.exp().expand(len(x), -1, -1).clone() if start is None else start.clone()
        size = (self.effects.square() / self.noise).sum(-1)  # [M, K]
        total = torch.einsum("nmk,mkd->nd", q, self.effects)
        for _ in range(_INNER):
            moved = 0.0
            for m in range(self.causes):
                without = total - q[:, m] @ self.effects[m]
                residual = (x - self.bias - without) / self.noise  # [n, D]
                new = (prior[m] + residual @ self.effects[m].mT - 0.5 * size[m]).softmax(-1)
                moved = max(moved, float((new - q[:, m]).abs().max()))
                q[:, m] = new
                total = without + new @ self.effects[m]
            if moved < 1e-6:
                break
        return q

    def bound(self, x: Tensor, q: Tensor) -> Tensor:
        """E_q [ log p(x, z) - log q(z) ] in nats, [n], for q [n, M, K]."""
        x, prior = x.to(self.dtype), self.weight_logits.log_softmax(-1)
        parts = torch.einsum("nmk,mkd->nmd", q, self.effects)
        spread = torch.einsum("nmk,mkd->nmd", q, self.effects.square()) - parts.square()  # variances add up
        squares = (x - self.bias - parts.sum(1)).square() + spread.sum(1)
        fit = -0.5 * (squares / self.noise + self.noise.log() + math.log(2 * math.pi)).sum(-1)
        return fit + (q * prior).sum((-1, -2)) - torch.special.xlogy(q, q).sum((-1, -2))

    def default_method(self, task: str) -> Any:
        """EM for `learn`; for `infer` the exact sum, or Gibbs sampling where there are too many states."""
        if task == "infer":
            return "exact" if self.is_exact else "gibbs"
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        return EM(restarts=5)

    def answers(self) -> dict[str, Answer]:
        states = f"{self.size}^{self.causes} states"
        return {
            "sample": Answer("exact", "every cause, then x"),
            "score": Answer("exact", f"sum over {states}") if self.is_exact
            else Answer("lower_bound", "mean field, coordinate ascent"),
            "infer": Answer("exact", f"sum over {states}") if self.is_exact
            else Answer("asymptotic", "Gibbs sampling, one cause after another"),
            "learn": Answer("approximate", "expectation maximisation, a local optimum" if self.is_exact
                            else "variational expectation maximisation, a local optimum"),
        }  # fmt: skip

    # -- expectation maximisation ----------------------------------------------------------------------------

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Effects from differences of spread-out rows, shared between the causes."""
        x = x.to(self.dtype)
        rows = x[spread_rows(x, self.causes * self.size)].reshape(self.causes, self.size, -1)
        self.bias.copy_(x.mean(0))
        self.effects.copy_((rows - x.mean(0)) / math.sqrt(self.causes) * (0.5 + torch.rand(self.causes, 1, 1).to(rows)))
        self.weight_logits.zero_()
        self._kept = None
        self.log_noise.copy_(x.var(0, correction=0).clamp_min(self.floor).log())

    @torch.no_grad()
    def em_step(self, x: Tensor) -> Tensor:
        """One E- and M-step in place; returns the mean log likelihood (or bound) in nats before it, []."""
        x = x.to(self.dtype)
        value, first, second = self._moments(x)
        flat = self.causes * self.size
        share = first.mean(0).reshape(self.causes, self.size)
        self.weight_logits.copy_(share.clamp_min(torch.finfo(share.dtype).tiny).log())
        ones = torch.ones(len(x), 1).to(x)
        design = torch.cat([first, ones], -1)  # [n, M K + 1]
        gram = x.new_zeros(flat + 1, flat + 1)
        gram[:flat, :flat] = second
        gram[flat, :] = gram[:, flat] = design.sum(0)
        # each cause's indicators add up to one, so that the effects are known up to a shift: the shortest solution
        found = torch.linalg.pinv(gram, hermitian=True) @ (design.mT @ x)  # [M K + 1, D]
        left = x.square().sum(0) - 2 * (found * (design.mT @ x)).sum(0) + (found * (gram @ found)).sum(0)
        self.effects.copy_(found[:flat].reshape(self.causes, self.size, -1))
        self.bias.copy_(found[flat])
        self.log_noise.copy_((left / len(x)).clamp_min(self.floor).log())
        return value

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean objective, [], E[indicators], [n, M K], and the sum over n of E[indicators indicators^T]."""
        flat = self.causes * self.size
        if not self.is_exact:
            # from where the last step ended, so that the bound cannot fall
            q = self.mean_field(x, self._kept if self._kept is not None and len(self._kept) == len(x) else None)
            self._kept = q
            first = q.reshape(len(x), flat)
            second = first.mT @ first
            for m in range(self.causes):  # of one cause with itself only the diagonal is left
                block = slice(m * self.size, (m + 1) * self.size)
                second[block, block] = torch.diag(q[:, m].sum(0))
            return self.bound(x, q).mean(), first, second
        log_joint = self.log_joint(x)
        evidence = log_joint.logsumexp(-1, keepdim=True)
        weights = (log_joint - evidence).exp()  # [n, K^M]
        indicators = nn.functional.one_hot(self.states(), self.size).reshape(-1, flat).to(x)  # [K^M, M K]
        return evidence.mean(), weights @ indicators, (indicators.mT * weights.sum(0)) @ indicators
