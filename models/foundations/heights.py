"""Heights: a Gaussian fitted by maximum likelihood, then sampled."""

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

__all__ = ["BayesianHeights", "Heights"]


class Heights(Program):
    """x ~ N(mean, variance), one independent Gaussian for each column.

    Maximum likelihood is the sample's mean and its variance with divisor N, whose expectation is (N - 1) / N of the true
    one; `ClosedForm({"correction": 1})` divides by N - 1 instead.

    Arguments:
        observed: D, columns.
        floor: smallest variance, in squared data units; the likelihood of a constant column has no maximum without it.

    Attributes:
        mean: [D], in data units.
        log_variance: [D].

    Raises:
        ProgramError: an argument out of range.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 3.1.1.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> heights = torch.tensor([[171.0], [165.0], [180.0], [176.0]])
        >>> program = dgm.learn(dgm.models.Heights(), heights).program
        >>> program.mean.tolist(), [round(v, 2) for v in program.variance.tolist()]
        ([173.0], [31.5])
        >>> dgm.sample(program, 3, seed=0)["x"].shape
        torch.Size([3, 1])
    """

    observed: int
    support = constraints.real

    def __init__(self, observed: int = 1, floor: float = 1e-6) -> None:
        super().__init__()
        if observed < 1:
            raise ProgramError(f"Heights: observed must be at least 1, but it is {observed!r}.")
        if not 0 < floor < math.inf:
            raise ProgramError(f"Heights: floor must be a positive variance, but it is {floor!r}.")
        self.observed, self.floor = observed, floor
        self.mean = nn.Parameter(torch.zeros(observed))
        self.log_variance = nn.Parameter(torch.zeros(observed))

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """x ~ N(mean, variance)."""
        with pyro.plate("data", n if x is None else len(x)):
            x = None if x is None else x.to(self.dtype)
            return pyro.sample("x", dist.Normal(self.mean, self.variance.sqrt()).to_event(1), obs=x)

    @property
    def variance(self) -> Tensor:
        """[D], never below the floor."""
        return self.log_variance.exp().clamp_min(self.floor)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x | mean, variance) in nats, [batch]."""
        return dist.Normal(self.mean, self.variance.sqrt()).to_event(1).log_prob(x.to(self.dtype))

    def log_density(self, x: Tensor) -> Score:
        """log N(x | mean, variance) in nats, [batch]."""
        return Score(self.log_prob(x), "exact", how="Gaussian density of continuous x")

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None, correction: int = 0) -> dict[str, Any]:
        """The sample's mean and variance.

        Arguments:
            train: [N, D].
            valid: not needed.
            correction: the variance divides by N - correction; 0 is maximum likelihood, 1 is unbiased.

        Returns:
            The standard error of each mean, sqrt(variance / N), in data units.
        """
        if len(train) <= correction:
            raise ProgramError(f"a variance with correction={correction} needs more than {len(train)} examples.")
        x = train.to(self.dtype)
        self.mean.copy_(x.mean(0))
        self.log_variance.copy_(x.var(0, correction=correction).clamp_min(self.floor).log())
        return {"stderr": (self.variance / len(x)).sqrt().tolist()}

    def default_method(self, task: str) -> Any:
        """The closed form for `learn`."""
        return "closed-form" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "one Gaussian draw for each column"),
            "score": Answer("exact", "Gaussian density of continuous x"),
            "infer": Answer("unavailable", "nothing is latent; BayesianHeights has a posterior of mean and variance"),
            "learn": Answer("exact", "closed-form maximum likelihood"),
        }


class BayesianHeights(Program):
    """The same with an unknown mean and variance under their conjugate prior, for each column:

        variance ~ InverseGamma(shape, rate),   mean ~ N(centre, variance / strength),   x_n ~ N(mean, variance).

    The posterior is of the same family; `infer` recognises it. `updated` gives it as a program, so that data may come in
    parts, `predictive` is Student's t, and `log_evidence` is that of all examples together.

    Arguments:
        observed: D, columns.
        centre: prior mean, in data units; one number, or one for each column.
        strength: how many examples the prior mean is worth.
        shape: half of how many examples the prior variance is worth.
        rate: shape times the prior's harmonic mean of the variance, in squared data units; one number, or D.

    Raises:
        ProgramError: an argument out of range.

    Source: K. Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, 6.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.tensor([[171.0], [165.0], [180.0], [176.0]])
        >>> prior = dgm.models.BayesianHeights(centre=170.0, strength=1.0, shape=2.0, rate=50.0)
        >>> round(prior.updated(x).centre[0], 1), dgm.infer(prior, x, seed=0).kind
        (172.4, 'exact')
    """

    observed: int
    support = constraints.real

    def __init__(
        self,
        observed: int = 1,
        centre: float | list[float] = 0.0,
        strength: float = 1.0,
        shape: float = 1.0,
        rate: float | list[float] = 1.0,
    ) -> None:
        super().__init__()
        for name, value in (("observed", observed), ("strength", strength), ("shape", shape)):
            if not 0 < value < math.inf:
                raise ProgramError(f"BayesianHeights: {name} must be a positive number, but it is {value!r}.")
        self.observed, self.strength, self.shape = observed, strength, shape
        self.centre, self.rate = _each(centre, observed, "centre"), _each(rate, observed, "rate")
        if min(self.rate) <= 0:
            raise ProgramError(f"BayesianHeights: rate must be positive, but it is {rate!r}.")

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """variance ~ InverseGamma; mean ~ N(centre, variance / strength); x ~ N(mean, variance)."""
        centre, rate = self._like(self.centre, x), self._like(self.rate, x)
        variance = pyro.sample("variance", dist.InverseGamma(torch.full_like(rate, self.shape), rate).to_event(1))
        mean = pyro.sample("mean", dist.Normal(centre, (variance / self.strength).sqrt()).to_event(1))
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample(
                "x", dist.Normal(mean, variance.sqrt()).to_event(1), obs=None if x is None else x.to(rate.dtype)
            )

    def updated(self, x: Tensor) -> "BayesianHeights":
        """The posterior given x [N, D], as the prior of what comes next.

        strength' = strength + N, shape' = shape + N / 2, centre' = (strength centre + sum x) / strength',
        rate' = rate + (sum (x - xbar)^2 + strength N / strength' (xbar - centre)^2) / 2.
        """
        count, centre, rate = len(x), self._like(self.centre, x), self._like(self.rate, x)
        x = x.to(rate.dtype)
        average, strength = x.mean(0), self.strength + count
        spread = (x - average).square().sum(0) + self.strength * count / strength * (average - centre).square()
        after = (self.strength * centre + count * average) / strength
        return BayesianHeights(
            self.observed, after.tolist(), strength, self.shape + count / 2, (rate + spread / 2).tolist()
        )

    def predictive(self) -> Any:
        """p(x) of one example, mean and variance integrated out: Student's t with 2 shape degrees of freedom, event shape [D].

        Its squared scale is rate (1 + 1 / strength) / shape.
        """
        scale = (self._like(self.rate) * (1 + 1 / self.strength) / self.shape).sqrt()
        return dist.StudentT(2 * self.shape, self._like(self.centre), scale).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x_1, ..., x_N) in nats, []: from the normalising constants of prior and posterior."""
        after, rate = self.updated(x), self._like(self.rate, x)
        return (
            math.lgamma(after.shape) - math.lgamma(self.shape) + 0.5 * math.log(self.strength / after.strength)
            - 0.5 * len(x) * math.log(2 * math.pi) + self.shape * rate.log() - after.shape * self._like(after.rate, x).log()
        ).sum()  # fmt: skip

    def _like(self, values: list[float], x: Tensor | None = None) -> Tensor:
        """The values, [D], in the type and on the device of floating-point data."""
        dtype = x.dtype if x is not None and x.is_floating_point() else self.dtype
        return torch.tensor(values, dtype=dtype, device=self.device if x is None else x.device)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "mean and variance from their prior, then examples"),
            "score": Answer("exact", "evidence of all examples together, mean and variance integrated out"),
            "infer": Answer("exact", "normal-inverse-gamma posterior"),
            "learn": Answer("unavailable", "there are no parameters; see infer, or updated(x)"),
        }


def _each(value: float | list[float], count: int, name: str) -> list[float]:
    values = [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * count
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise ProgramError(
            f"{name} must be one finite number, or one for each of {count} columns, but it is {value!r}."
        )
    return values
