"""Rung: the ladder of distributions, from Bernoulli to Dirichlet-multinomial, each made from the one below it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import SigmoidTransform

from ppl_dgm.errors import ProgramError
from ppl_dgm.program import Answer, FunctionProgram, Program
from ppl_dgm.results import Score

from . import ladder_sums as sums

__all__ = ["Rung", "Step", "ladder"]

Settings = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """How a distribution is made from the one below it.

    Attributes:
        below: the rung below, or None at the foot.
        kind: "sum", "limit", "transform", "hierarchy" or "choices".
        how: the step in words.
        settings: the parameters and their usual values; `limit` is how far a limit is taken.
        law: the distribution in closed form, from the settings.
        story: a Pyro model of one draw that takes the step.
        built: log p(x) at the given x, computed through the rung below and not from the closed form.
        grid: values at which the two are compared.
    """

    below: str | None
    kind: str
    how: str
    settings: Settings
    law: Callable[[Settings], Any]
    story: Callable[[Settings], Tensor]
    built: Callable[[Settings, Tensor], Tensor]
    grid: Callable[[Settings], Tensor]


class Rung(Program):
    """One distribution of the ladder: its closed form as a program, and the step that makes it from the rung below.

    `story` is the step as a program, `built(x)` the log density that follows from the step by summing, integrating or
    going far towards the limit, and `gap()` the largest difference between the two densities: rounding, or for a limit
    what is left of the way. All of it is computed on the CPU.

    Arguments:
        name: one of `ladder()`.
        settings: parameters that differ from the usual ones.

    Attributes:
        step: the `Step`.
        settings: all parameters.

    Raises:
        ProgramError: an unknown name or parameter.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 1.8.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> rung = dgm.models.Rung("binomial", {"trials": 3, "p": 0.5})
        >>> rung.step.below, rung.step.kind, rung.gap() < 1e-12
        ('bernoulli', 'sum', True)
        >>> dgm.score(rung, torch.tensor([0.0, 3.0])).value.exp()
        tensor([0.1250, 0.1250])
        >>> dgm.sample(rung.story, 4, seed=0)["toss"].shape
        torch.Size([4, 3])
        >>> nearer, near = (dgm.models.Rung("poisson", {"limit": m}).gap() for m in (10_000, 1_000))
        >>> round(near / nearer)
        10
    """

    def __init__(self, name: str = "binomial", settings: Settings | None = None) -> None:
        super().__init__()
        if name not in _STEPS:
            raise ProgramError(f"Rung: {name!r} is not on the ladder; there are: {', '.join(_STEPS)}.")
        self.step = _STEPS[name]
        unknown = set(settings or {}) - set(self.step.settings)
        if unknown:
            raise ProgramError(
                f"Rung: {name} has no parameter {sorted(unknown)[0]!r}; it has {', '.join(self.step.settings)}."
            )
        self.rung, self.settings = name, {**self.step.settings, **(settings or {})}

    def __repr__(self) -> str:
        return f"Rung({self.rung!r}: below {self.step.below or 'nothing'}, by {self.step.kind}, {self.step.how})"

    @property
    def name(self) -> str:
        return self.rung

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """x ~ the closed form."""
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", self.law, obs=x)

    @property
    def law(self) -> Any:
        """The closed form, its parameters in float64."""
        return self.step.law(self.settings)

    @property
    def story(self) -> Program:
        """The step from the rung below as a program: its site or deterministic value `x` has the same law."""
        return FunctionProgram(lambda: self.step.story(self.settings), name=f"{self.rung}, by {self.step.kind}")

    def log_density(self, x: Tensor) -> Score:
        """log p(x) of the closed form in nats, [batch]."""
        return Score(self.law.log_prob(x.cpu()).to(x.device), "exact", how="closed form")

    def built(self, x: Tensor) -> Tensor:
        """log p(x) in nats as it follows from the rung below, [batch]."""
        return self.step.built(self.settings, x)

    def gap(self) -> float:
        """The largest |p_built(x) - p(x)| on a grid of x."""
        grid = self.step.grid(self.settings)
        return float((self.built(grid).exp() - self.law.log_prob(grid).exp()).abs().max())

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "the closed form; `story` draws by way of the rung below"),
            "score": Answer("exact", "closed form"),
            "infer": Answer("unavailable", "nothing is latent; ask the story"),
            "learn": Answer("unavailable", "the settings are given"),
        }


def ladder() -> dict[str, Step]:
    """Every rung by name, from the foot up.

    Example:
        >>> [name for name, step in ladder().items() if step.kind == "limit"]
        ['poisson', 'exponential', 'normal']
    """
    return dict(_STEPS)


# -- the stories -------------------------------------------------------------------------------------------------------


def _t(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _sum(name: str, plate: str, count: int, fn: Any) -> Tensor:
    with pyro.plate(plate, count):
        part = pyro.sample(name, fn)
    return pyro.deterministic("x", part.sum(0), event_dim=len(fn.event_shape))


def _first_of_two(s: Settings) -> Tensor:
    return pyro.sample("x", dist.Bernoulli(_t(s["p"])))


def _choices(s: Settings) -> Tensor:
    """Is it the first value? If not, the second? Each question is a Bernoulli trial."""
    probs, here, left = _t(s["probs"]), torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for v in range(len(probs) - 1):
        yes = pyro.sample(f"is_{v}", dist.Bernoulli(probs[v] / probs[v:].sum()))
        here, left = here + left * yes * v, left * (1 - yes)
    return pyro.deterministic("x", here + left * (len(probs) - 1))


def _wait(s: Settings) -> Tensor:
    """Failures before the first success in a row of tosses so long that it misses one in 10^12."""
    with pyro.plate("tosses", _long(s["p"])):
        toss = pyro.sample("toss", dist.Bernoulli(_t(s["p"])))
    return pyro.deterministic("x", (1 - toss).cumprod(0).sum(0))


def _long(p: float) -> int:
    return math.ceil(math.log(1e-12) / math.log1p(-p))


def _rare(s: Settings) -> Tensor:
    return pyro.sample("x", dist.Binomial(s["limit"], _t(s["rate"] / s["limit"])))


def _fine(s: Settings) -> Tensor:
    ticks = pyro.sample("ticks", dist.Geometric(_t(s["rate"] / s["limit"])))
    return pyro.deterministic("x", ticks / s["limit"])


def _many(s: Settings) -> Tensor:
    count = pyro.sample("count", dist.Binomial(s["limit"], _t(0.5)))
    return pyro.deterministic("x", s["mean"] + s["scale"] * (count - s["limit"] / 2) / math.sqrt(s["limit"] / 4))


def _squash(s: Settings) -> Tensor:
    z = pyro.sample("z", dist.Normal(_t(s["mean"]), _t(s["scale"])))
    return pyro.deterministic("x", z.sigmoid())


def _linear(s: Settings) -> Tensor:
    matrix = _t(s["matrix"])
    z = pyro.sample("z", dist.Normal(torch.zeros(len(matrix), dtype=torch.float64), 1.0).to_event(1))
    return pyro.deterministic("x", _t(s["mean"]) + matrix @ z, event_dim=1)


def _share(s: Settings) -> Tensor:
    gammas = pyro.sample("gammas", dist.Gamma(_t([s["a"], s["b"]]), 1.0).to_event(1))
    return pyro.deterministic("x", gammas[0] / gammas.sum())


def _shares(s: Settings) -> Tensor:
    gammas = pyro.sample("gammas", dist.Gamma(_t(s["concentration"]), 1.0).to_event(1))
    return pyro.deterministic("x", gammas / gammas.sum(), event_dim=1)


def _unknown_coin(s: Settings) -> Tensor:
    p = pyro.sample("p", dist.Beta(_t(s["a"]), _t(s["b"])))
    return pyro.sample("x", dist.Binomial(s["trials"], p))


def _unknown_rate(s: Settings) -> Tensor:
    rate = pyro.sample("rate", dist.Gamma(_t(s["shape"]), _t(s["rate"])))
    return pyro.sample("x", dist.Poisson(rate))


def _unknown_die(s: Settings) -> Tensor:
    probs = pyro.sample("probs", dist.Dirichlet(_t(s["concentration"])))
    return _sum("draw", "draws", s["trials"], dist.OneHotCategorical(probs))


# -- the closed forms --------------------------------------------------------------------------------------------------


def _multinomial(s: Settings) -> Any:
    return dist.Multinomial(s["trials"], _t(s["probs"]))


def _logistic_normal(s: Settings) -> Any:
    return dist.TransformedDistribution(dist.Normal(_t(s["mean"]), _t(s["scale"])), [SigmoidTransform()])


def _correlated(s: Settings) -> Any:
    return dist.MultivariateNormal(_t(s["mean"]), _t(s["matrix"]) @ _t(s["matrix"]).mT)


def _log_normal_lattice(s: Settings, x: Tensor) -> Tensor:
    """Binomial probability at the point, divided by the distance between points."""
    spread = s["scale"] / math.sqrt(s["limit"] / 4)
    count = ((x - s["mean"]) / spread + s["limit"] / 2).round()
    return dist.Binomial(s["limit"], _t(0.5)).log_prob(count) - math.log(spread)


def _lattice(s: Settings) -> Tensor:
    reach = int(3 * math.sqrt(s["limit"] / 4))
    count = torch.arange(-reach, reach + 1, dtype=torch.float64) + s["limit"] // 2
    return s["mean"] + s["scale"] * (count - s["limit"] / 2) / math.sqrt(s["limit"] / 4)


def _log_jacobian(s: Settings, x: Tensor) -> Tensor:
    """N(A^-1 (x - mean) | 0, I) / |det A|."""
    matrix = _t(s["matrix"])
    z = torch.linalg.solve(matrix, (x - _t(s["mean"])).mT).mT
    return dist.Normal(_t(0.0), 1.0).log_prob(z).sum(-1) - torch.linalg.slogdet(matrix).logabsdet


def _log_slope(s: Settings, x: Tensor) -> Tensor:
    """Logarithm of the derivative of P(x' < x) = Phi((logit x - mean) / scale)."""
    with torch.enable_grad():
        at = x.clone().requires_grad_()
        below = dist.Normal(_t(s["mean"]), _t(s["scale"])).cdf(at.logit())
        return torch.autograd.grad(below.sum(), at)[0].log()


def _counts(top: int) -> Callable[[Settings], Tensor]:
    return lambda s: torch.arange(min(top, s.get("trials", top)) + 1, dtype=torch.float64)


def _between(low: float, high: float) -> Callable[[Settings], Tensor]:
    return lambda s: torch.linspace(low, high, 41, dtype=torch.float64)


def _plane(s: Settings) -> Tensor:
    line = torch.linspace(-3, 3, 9, dtype=torch.float64)
    return torch.cartesian_prod(*[line] * len(s["mean"]))


def _ticks(s: Settings) -> Tensor:
    return (torch.linspace(0, 4 / s["rate"], 41, dtype=torch.float64) * s["limit"]).floor() / s["limit"]


_TRIALS = {"trials": 5, "p": 0.3}
_PROBS, _CONCENTRATION = [0.2, 0.5, 0.3], [2.0, 1.0, 3.0]

_STEPS: dict[str, Step] = {
    "bernoulli": Step(
        None, "foot", "one toss", {"p": 0.3}, lambda s: dist.Bernoulli(_t(s["p"])), _first_of_two,
        lambda s, x: torch.where(x > 0, _t(s["p"]), 1 - _t(s["p"])).log(), _counts(1),
    ),
    "binomial": Step(
        "bernoulli", "sum", "successes in so many tosses", _TRIALS, lambda s: dist.Binomial(s["trials"], _t(s["p"])),
        lambda s: _sum("toss", "tosses", s["trials"], dist.Bernoulli(_t(s["p"]))),
        lambda s, x: sums.convolved(_t([1 - s["p"], s["p"]]), s["trials"], x), _counts(100),
    ),
    "categorical": Step(
        "bernoulli", "choices", "is it the first? else the second? and so on", {"probs": _PROBS},
        lambda s: dist.Categorical(_t(s["probs"])), _choices, lambda s, x: sums.by_choices(_t(s["probs"]), x),
        lambda s: torch.arange(len(s["probs"])),
    ),
    "multinomial": Step(
        "categorical", "sum", "how often each value came", {"trials": 4, "probs": _PROBS}, _multinomial,
        lambda s: _sum("draw", "draws", s["trials"], dist.OneHotCategorical(_t(s["probs"]))),
        lambda s, x: sums.over_sequences(_t(s["probs"]), s["trials"], x), sums.compositions,
    ),
    "geometric": Step(
        "bernoulli", "choices", "failures before the first success", {"p": 0.3}, lambda s: dist.Geometric(_t(s["p"])),
        _wait, lambda s, x: x * math.log1p(-s["p"]) + math.log(s["p"]), _counts(20),
    ),
    "negative-binomial": Step(
        "geometric", "sum", "failures before the r-th success", {"successes": 3, "p": 0.3},
        lambda s: dist.NegativeBinomial(s["successes"], _t(1 - s["p"])),
        lambda s: _sum("wait", "waits", s["successes"], dist.Geometric(_t(s["p"]))),
        lambda s, x: sums.convolved(sums.geometric(s["p"], int(x.max()) + 1), s["successes"], x),
        _counts(20),
    ),
    "poisson": Step(
        "binomial", "limit", "ever more tosses, each ever less likely", {"rate": 2.0, "limit": 100_000},
        lambda s: dist.Poisson(_t(s["rate"])), _rare,
        lambda s, x: dist.Binomial(s["limit"], _t(s["rate"] / s["limit"])).log_prob(x), _counts(20),
    ),
    "exponential": Step(
        "geometric", "limit", "waiting in ever shorter ticks", {"rate": 0.5, "limit": 100_000},
        lambda s: dist.Exponential(_t(s["rate"])), _fine,
        lambda s, x: dist.Geometric(_t(s["rate"] / s["limit"])).log_prob((x * s["limit"]).round()) + math.log(s["limit"]),
        _ticks,
    ),
    "gamma": Step(
        "exponential", "sum", "the wait for the k-th event", {"shape": 3, "rate": 0.5},
        lambda s: dist.Gamma(_t(float(s["shape"])), _t(s["rate"])),
        lambda s: _sum("wait", "waits", s["shape"], dist.Exponential(_t(s["rate"]))),
        lambda s, x: sums.of_waits(s["shape"], s["rate"], x), _between(0.1, 15.0),
    ),
    "gamma-poisson": Step(
        "poisson", "hierarchy", "a Poisson of unknown rate: negative binomial again", {"shape": 3.0, "rate": 0.5},
        lambda s: dist.GammaPoisson(_t(s["shape"]), _t(s["rate"])), _unknown_rate,
        lambda s, x: sums.over_rates(s["shape"], s["rate"], x), _counts(20),
    ),
    "normal": Step(
        "binomial", "limit", "the standardised number of heads among ever more", {"mean": 1.0, "scale": 2.0, "limit": 100_000},
        lambda s: dist.Normal(_t(s["mean"]), _t(s["scale"])), _many, _log_normal_lattice, _lattice,
    ),
    "multivariate-normal": Step(
        "normal", "transform", "a linear map of independent ones", {"mean": [0.0, 1.0], "matrix": [[1.0, 0.0], [0.8, 0.6]]},
        _correlated, _linear, _log_jacobian, _plane,
    ),
    "logistic-normal": Step(
        "normal", "transform", "squashed into (0, 1) by the sigmoid", {"mean": 0.5, "scale": 1.5}, _logistic_normal,
        _squash, _log_slope, _between(0.01, 0.99),
    ),
    "beta": Step(
        "gamma", "transform", "one's share of the sum of two", {"a": 2.0, "b": 3.0},
        lambda s: dist.Beta(_t(s["a"]), _t(s["b"])), _share,
        lambda s, x: sums.of_shares(_t([s["a"], s["b"]]), torch.stack([x, 1 - x], -1)), _between(0.01, 0.99),
    ),
    "dirichlet": Step(
        "gamma", "transform", "the shares of the sum of several", {"concentration": _CONCENTRATION},
        lambda s: dist.Dirichlet(_t(s["concentration"])), _shares,
        lambda s, x: sums.of_shares(_t(s["concentration"]), x), sums.simplex,
    ),
    "beta-binomial": Step(
        "binomial", "hierarchy", "a coin that is itself drawn from a Beta", {"trials": 5, "a": 2.0, "b": 3.0},
        lambda s: dist.BetaBinomial(_t(s["a"]), _t(s["b"]), s["trials"]), _unknown_coin,
        lambda s, x: sums.over_coins(s, x), _counts(100),
    ),
    "dirichlet-multinomial": Step(
        "multinomial", "hierarchy", "a die that is itself drawn from a Dirichlet",
        {"trials": 4, "concentration": _CONCENTRATION},
        lambda s: dist.DirichletMultinomial(_t(s["concentration"]), s["trials"]), _unknown_die,
        lambda s, x: sums.over_dice(s, x), sums.compositions,
    ),
}  # fmt: skip
