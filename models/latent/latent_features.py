"""LatentFeatureModel: every example has some of very many binary features, whose effects add up."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.options import is_count
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Posterior

__all__ = ["LatentFeatureModel"]


class LatentFeatureModel(Program):
    """The Beta-Bernoulli feature model of K features, which for K to infinity is the Indian buffet process,

        pi_k ~ Beta(alpha / K, 1),       z_nk ~ Bernoulli(pi_k),       weights_k ~ N(0, weight_scale^2 I_D),
        precision ~ Gamma(shape, rate),  x_n ~ N(sum_k z_nk weights_k, I / precision).

    Unlike the components of a mixture, features do not exclude each other. K need only be large enough: most pi_k are next to
    nothing, and the number of features that n examples have among them has a limit in distribution for large K, Poisson with
    mean alpha (1 + 1/2 + ... + 1/n). So the data decide how many there are, and more of them as more data come.

    `infer` is Gibbs sampling, all conditionals known: the features of an example jointly where 2^K allows, else in groups or one
    by one; pi from Betas, weights from their joint Gaussian, precision from its Gamma. Features are known up to their order.
    Columns should be centred: nothing but features moves the mean of x.

    Arguments:
        observed: D, entries of an example.
        features: K, the most features.
        alpha: features that an example has on average (for K large against it).
        weight_scale: standard deviation of the weights, in data units.
        shape, rate: of the precision's Gamma.

    Sites: `pi` [K], `weights` [K, D], `precision` [], `z_0`, ..., `z_{K-1}` [], `x` [D].

    Raises:
        ProgramError: an argument out of range.

    Source: T. Griffiths and Z. Ghahramani (2011), The Indian buffet process: an introduction and review, JMLR 12.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = dgm.models.LatentFeatureModel(2, features=3, alpha=1.0)
        >>> x = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 5.0], [0.0, 0.0]])
        >>> posterior = dgm.infer(program, x, method=dgm.Gibbs(chains=1, warmup=5, draws=10), seed=0)
        >>> program.assignments(posterior).shape  # chain, draw, example, feature
        torch.Size([1, 10, 4, 3])
    """

    observed: int
    support = constraints.real

    def __init__(
        self,
        observed: int,
        features: int = 10,
        alpha: float = 2.0,
        weight_scale: float = 1.0,
        shape: float = 1.0,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        for name, count in (("observed", observed), ("features", features)):
            if not is_count(count, 1):
                raise ProgramError(f"{name} must be a whole number, at least 1, but it is {count!r}.")
        for name, value in (("alpha", alpha), ("weight_scale", weight_scale), ("shape", shape), ("rate", rate)):
            if not 0 < value < math.inf:
                raise ProgramError(f"{name} must be a positive number, but it is {value!r}.")
        self.observed, self.features, self.alpha = observed, features, alpha
        self.weight_scale, self.shape, self.rate = weight_scale, shape, rate

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """How common features are, and what they do; which of them each example has; x around the sum of their effects."""
        one = self._one(x)
        commonness = dist.Beta(self.alpha / self.features * one, one).expand((self.features,)).to_event(1)
        pi = pyro.sample("pi", commonness)
        zeros = one.new_zeros(self.features, self.observed)
        weights = pyro.sample("weights", dist.Normal(zeros, self.weight_scale).to_event(2))
        precision = pyro.sample("precision", dist.Gamma(self.shape * one, self.rate))
        # a draw of so skew a Beta may be too small for the number type, and a probability of zero has no logarithm
        pi = pi.clamp_min(torch.finfo(one.dtype).tiny)
        mean = zeros[0]
        with pyro.plate("data", n if x is None else len(x)):
            for k in range(self.features):
                z = pyro.sample(f"z_{k}", dist.Bernoulli(pi[k]), infer={"enumerate": "parallel"})
                mean = mean + z.unsqueeze(-1) * weights[k]
            noise = precision.rsqrt().expand(self.observed)
            return pyro.sample("x", dist.Normal(mean, noise).to_event(1), obs=None if x is None else x.to(one.dtype))

    def _one(self, x: Tensor | None) -> Tensor:
        """A one of the number type and on the device that the model runs in."""
        if x is not None and x.is_floating_point():
            return torch.ones((), dtype=x.dtype, device=x.device)
        return torch.ones((), dtype=self.dtype, device=self.device if x is None else x.device)

    def default_method(self, task: str) -> Any:
        """Gibbs sampling for `infer`."""
        return "gibbs" if task == "infer" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "features, then examples"),
            "score": Answer("unavailable", "examples are tied by the unknown features; see log_collapsed"),
            "infer": Answer("asymptotic", "Gibbs sampling"),
            "learn": Answer("unavailable", "all that is unknown is a latent site; use infer"),
        }

    # -- what can be said in closed form ---------------------------------------------------------------------------

    def expected_features(self, n: int) -> float:
        """E of the number of features that n examples have among them before x is seen.

        K (1 - prod_{i=1}^n i / (i + alpha / K)),       for K to infinity alpha (1 + 1/2 + ... + 1/n).
        """
        a = self.alpha / self.features
        log_none = sum(-math.log1p(a / i) for i in range(1, n + 1))  # E (1 - pi)^n
        return -self.features * math.expm1(log_none)

    def log_collapsed(self, z: Tensor, x: Tensor, precision: float | Tensor) -> Tensor:
        """log p(x, z | precision) in nats, pi and weights integrated out, [...].

        Arguments:
            z: [..., n, K], zeros and ones.
            x: [n, D].
            precision: of the noise, a number or [...].

        Source: Griffiths and Ghahramani (2011), eq. (10) and (26).
        """
        z, x = z.to(torch.float64), x.to(torch.float64)
        a, n, count = self.alpha / self.features, len(x), z.sum(-2)  # [..., K]
        prior = math.log(a) + torch.lgamma(a + count) + torch.lgamma(n - count + 1.0) - math.lgamma(n + a + 1)
        # the columns of x are independent, each N(0, weight_scale^2 z z^T + I / precision)
        inverse = torch.as_tensor(precision, dtype=torch.float64, device=x.device).reciprocal()[..., None, None]
        covariance = self.weight_scale**2 * z @ z.mT + inverse * torch.eye(n, dtype=torch.float64, device=x.device)
        factor = torch.linalg.cholesky(covariance)
        white = torch.linalg.solve_triangular(factor, x.expand(*factor.shape[:-2], *x.shape), upper=False)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        fit = -0.5 * (white.square().sum((-1, -2)) + self.observed * (log_det + n * math.log(2 * math.pi)))
        return prior.sum(-1) + fit

    # -- reading a posterior -----------------------------------------------------------------------------------

    def assignments(self, posterior: Posterior) -> Tensor:
        """Which features each example has, in every draw, [chain, draw, n, K], bool."""
        names = [f"z_{k}" for k in range(self.features)]
        missing = [name for name in names if name not in posterior.draws]
        if missing:
            raise DataError(f"the posterior has no site {missing[0]!r}; give one of this program with its features.")
        return torch.stack([posterior.draws[name] for name in names], -1) > 0.5

    def active(self, posterior: Posterior) -> Tensor:
        """How many features the examples have among them in every draw, [chain, draw]."""
        return self.assignments(posterior).any(-2).sum(-1)

    def reconstruction(self, posterior: Posterior) -> Tensor:
        """E[sum_k z_nk weights_k | x], [n, D], the data without their noise; the order of the features does not matter."""
        has = self.assignments(posterior)
        return (has.to(posterior.draws["weights"].dtype) @ posterior.draws["weights"]).mean((0, 1))
