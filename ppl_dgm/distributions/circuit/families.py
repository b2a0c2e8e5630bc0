"""Leaf families: the univariate distributions that a region circuit's leaves are of, the user's own included."""

import math
from dataclasses import dataclass
from typing import Any, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, biject_to, constraints
from torch.distributions.utils import lazy_property

from ...errors import ProgramError
from .climbing import climb, fitted

__all__ = [
    "CategoricalLeaf",
    "DiscretisedLogisticLeaf",
    "GaussianLeaf",
    "LeafFamily",
    "PyroLeaf",
    "leaf_family",
]

Parameters = dict[str, Tensor]
_LARGEST = 30.0  # of a bounded parameter on the real line: a scale of e^-30 to e^30
_POINTS = 32  # quantiles that stand for a variable's data


class LeafFamily:
    """A family of distributions of one variable, for the leaves of a circuit.

    A subclass names its parameters and says what distribution they give; that is enough to learn it, by gradients.
    With sufficient statistics it is learned by closed-form M-steps, and by `OnlineEM` too:

        E:  the expected count of each leaf's use, and the expected sum of statistics(x) over its uses,
        M:  parameters = update(count, sums, parameters).

    Parameters are free real numbers: a positive one is kept as its logarithm. All but `names` and `distribution` may be
    left as they are. Two objects are the same family where they compare equal (a frozen dataclass).

    Attributes:
        names: of the parameters.
        support: of the variable.

    Example:
        >>> class PoissonLeaf(LeafFamily):
        ...     names, support = ("log_rate",), constraints.nonnegative_integer
        ...     def distribution(self, log_rate):
        ...         return dist.Poisson(log_rate.exp())
        ...     def statistics(self, x):
        ...         return x.unsqueeze(-1)
        ...     def update(self, count, sums, parameters):
        ...         return {"log_rate": (sums[..., 0] / count).clamp_min(1e-6).log()}
        >>> round(float(PoissonLeaf().start(torch.tensor([1.0, 3.0]))["log_rate"].exp()), 3)
        2.0
    """

    names: tuple[str, ...] = ()
    support: constraints.Constraint = constraints.real

    def distribution(self, **parameters: Tensor) -> Distribution:
        """The distribution with these parameters, of their batch shape and event shape []."""
        raise NotImplementedError

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """log p(x | unit) in nats.

        Arguments:
            x: [region, row], in the support.
            parameters: each [region, unit, ...].

        Returns:
            [region, row, unit].
        """
        rows = {name: value.unsqueeze(1) for name, value in parameters.items()}
        return self.distribution(**rows).log_prob(x.unsqueeze(-1))

    def log_table(self, parameters: Parameters) -> Tensor:
        """log p(k | unit) of each value, [region, unit, K], where there are `values` of them."""
        first = next(iter(parameters.values()))
        values = torch.arange(self.values or 0, device=first.device).to(first)
        return self.log_prob(values.expand(len(first), -1), parameters).transpose(1, 2)

    def statistics(self, x: Tensor) -> Tensor | None:
        """Sufficient statistics of each x, [...] -> [..., T]; None: there are none of fixed size."""
        return None

    def update(self, count: Tensor, sums: Tensor, parameters: Parameters) -> Parameters:
        """The M-step: parameters of greatest expected log likelihood, or at least of no lower one than before.

        Arguments:
            count: [region, unit] expected uses, above 0; float64.
            sums: [region, unit, T] expected sums of `statistics`; float64.
            parameters: the present ones.
        """
        raise NotImplementedError

    def initial(self) -> Parameters:
        """Parameters before any data, each without region and unit."""
        return {name: torch.zeros(()) for name in self.names}

    def start(self, x: Tensor) -> Parameters:
        """Parameters for the entries of one variable, [rows], each without region and unit: where learning begins."""
        x = x.double()
        begin = {name: value.to(x) for name, value in self.initial().items()}
        known = self.statistics(x)
        if known is None:
            return fitted(self, x, begin)
        found = self.update(x.new_full((1, 1), len(x)), known.sum(0)[None, None], _one(begin))
        return {name: value[0, 0] for name, value in found.items()}

    def split(self, parameters: Parameters, noise: float) -> Parameters:
        """The same parameters apart by noise of this size, so that a unit's two halves part."""
        return {name: value + noise * torch.randn_like(value) for name, value in parameters.items()}

    def points(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values that stand for one variable's entries x [rows], and their weights, [P] each, which sum to one.

        Pseudo-counts are spread over them. As they stand, quantiles.
        """
        levels = (torch.arange(_POINTS, device=x.device, dtype=torch.float64) + 0.5) / _POINTS
        place = (levels * len(x)).long().clamp(max=len(x) - 1)
        return x.double().sort().values[place], torch.full_like(levels, 1 / _POINTS)

    def moments(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Mean and variance of each distribution, [...] for parameters [..., ...]."""
        made = self.distribution(**parameters)
        return made.mean, made.variance

    @property
    def values(self) -> int | None:
        """K, where the support is 0 to K - 1; else None."""
        lower, upper = (getattr(self.support, f"{end}_bound", None) for end in ("lower", "upper"))
        finite = bool(self.support.is_discrete) and lower == 0 and upper is not None
        return int(upper) + 1 if finite and upper is not None else None

    @property
    def inside(self) -> float:
        """A value in the support, which stands where an entry is missing."""
        if self.support.is_discrete:
            return float(getattr(self.support, "lower_bound", 0))
        return float(biject_to(self.support)(torch.zeros(())))


def _one(parameters: Parameters) -> Parameters:
    return {name: value[None, None] for name, value in parameters.items()}


@dataclass(frozen=True)
class GaussianLeaf(LeafFamily):
    """N(mean, variance).

    Arguments:
        floor: smallest variance, in squared units of the variable; a narrower leaf could sit on one example and have
            unbounded likelihood.
    """

    floor: float = 1e-3
    names = ("mean", "log_variance")

    def __post_init__(self) -> None:
        if not 0 < self.floor < math.inf:
            raise ProgramError(f"GaussianLeaf: floor must be a positive variance, but it is {self.floor!r}.")

    def distribution(self, mean: Tensor, log_variance: Tensor) -> Distribution:  # type: ignore[override]
        return dist.Normal(mean, log_variance.exp().clamp_min(self.floor).sqrt(), validate_args=False)

    def statistics(self, x: Tensor) -> Tensor:
        return torch.stack([x, x.square()], -1)

    def update(self, count: Tensor, sums: Tensor, parameters: Parameters) -> Parameters:
        """mean = E[x], variance = E[x^2] - mean^2, raised to the floor, which is where it is best below it."""
        mean, square = (sums / count.unsqueeze(-1)).unbind(-1)
        return {"mean": mean, "log_variance": (square - mean.square()).clamp_min(self.floor).log()}

    def split(self, parameters: Parameters, noise: float) -> Parameters:
        """Means move by noise in units of their standard deviations; variances stay."""
        mean, log_variance = parameters["mean"], parameters["log_variance"]
        return {
            "mean": mean + noise * torch.randn_like(mean) * (0.5 * log_variance).exp(),
            "log_variance": log_variance,
        }


@dataclass(frozen=True)
class CategoricalLeaf(LeafFamily):
    """A table over 0 to values - 1.

    Arguments:
        values: K.
    """

    values: int = 2
    names = ("logits",)

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ProgramError(f"CategoricalLeaf: values must be at least 2, but it is {self.values!r}.")

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.values - 1)

    def initial(self) -> Parameters:
        return {"logits": torch.zeros(self.values)}

    def distribution(self, logits: Tensor) -> Distribution:  # type: ignore[override]
        return dist.Categorical(logits=logits, validate_args=False)

    def log_table(self, parameters: Parameters) -> Tensor:
        return parameters["logits"].log_softmax(-1)

    def moments(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        return value_moments(self.log_table(parameters))

    def statistics(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long(), self.values).double()

    def update(self, count: Tensor, sums: Tensor, parameters: Parameters) -> Parameters:
        tiny = torch.finfo(parameters["logits"].dtype).tiny
        return {"logits": (sums / count.unsqueeze(-1)).clamp_min(tiny).log()}

    def points(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every value by its frequency, one row spread over all of them added."""
        return value_points(x, self.values)


@dataclass(frozen=True)
class DiscretisedLogisticLeaf(LeafFamily):
    """A logistic variable rounded to the nearest of 0, ..., values - 1; the end values take the whole tails.

        P(k) = sigmoid((k + 1/2 - loc) / scale) - sigmoid((k - 1/2 - loc) / scale)

    There is no closed M-step. Each one takes a few steps of scoring on the expected counts of values, halved where they
    would not raise the expected log likelihood, so that EM is generalised EM and never falls.

    Arguments:
        values: K.
        floor: smallest scale, in units of one value.

    Source: T. Salimans, A. Karpathy, X. Chen and D. Kingma (2017), PixelCNN++, for the distribution.
    """

    values: int = 256
    floor: float = 0.05
    names = ("loc", "log_scale")

    def __post_init__(self) -> None:
        if self.values < 2:
            raise ProgramError(f"DiscretisedLogisticLeaf: values must be at least 2, but it is {self.values!r}.")
        if not 0 < self.floor < math.inf:
            raise ProgramError(f"DiscretisedLogisticLeaf: floor must be a positive scale, but it is {self.floor!r}.")

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.integer_interval(0, self.values - 1)

    def initial(self) -> Parameters:
        return {
            "loc": torch.tensor((self.values - 1) / 2),
            "log_scale": torch.tensor(float(self.values) / 4).log(),
        }

    def distribution(self, loc: Tensor, log_scale: Tensor) -> Distribution:  # type: ignore[override]
        return dist.Categorical(logits=self.table(loc, log_scale), validate_args=False)

    def moments(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        return value_moments(self.table(**parameters))

    def table(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """log P(k), [..., K]."""
        x = torch.arange(self.values, device=loc.device).to(loc)
        return self._log_mass(x, loc.unsqueeze(-1), log_scale.unsqueeze(-1))

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        rows = (parameters[name].unsqueeze(1) for name in self.names)
        return self._log_mass(x.unsqueeze(-1).to(parameters["loc"]), *rows)

    def _log_mass(self, x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
        scale = log_scale.exp().clamp_min(self.floor)
        upper, lower = (x + 0.5 - loc) / scale, (x - 0.5 - loc) / scale
        left, right = nn.functional.logsigmoid(upper), nn.functional.logsigmoid(-lower)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), which loses no digits in the tails
        middle = left + right + torch.log(-torch.expm1(-1 / scale))
        return torch.where(x == 0, left, torch.where(x == self.values - 1, right, middle))

    def statistics(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x.long(), self.values).double()

    def start(self, x: Tensor) -> Parameters:
        """The moments of the entries, from which scoring goes on."""
        x = x.double()
        scale = (x.std(correction=0) * math.sqrt(3) / math.pi).clamp_min(0.3)
        begin = _one({"loc": x.mean(), "log_scale": scale.log()})
        found = climb(self, x[None], torch.ones_like(x)[None, :, None], begin, 20)
        return {name: value[0, 0] for name, value in found.items()}

    def update(self, count: Tensor, sums: Tensor, parameters: Parameters) -> Parameters:
        values = torch.arange(self.values, device=sums.device).to(sums).expand(len(sums), -1)  # [region, K]
        begin = {name: value.double() for name, value in parameters.items()}
        return climb(self, values, sums.transpose(1, 2), begin, 3)

    def split(self, parameters: Parameters, noise: float) -> Parameters:
        """Locations move by noise in units of their scales; scales stay."""
        loc, log_scale = parameters["loc"], parameters["log_scale"]
        return {"loc": loc + noise * torch.randn_like(loc) * log_scale.exp().clamp_min(1.0), "log_scale": log_scale}

    def points(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Every value by its frequency, one row spread over all of them added."""
        return value_points(x, self.values)


def value_points(x: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """0 to K - 1 and how frequent they are, with one row spread over all of them added, [K] each."""
    counts = torch.bincount(x.long(), minlength=values).double() + 1 / values
    return torch.arange(values, device=x.device).double(), counts / counts.sum()


def value_moments(log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of tables over 0 to K - 1, [..., K] -> [...] each."""
    probs, values = log_probs.exp(), torch.arange(log_probs.shape[-1], device=log_probs.device).to(log_probs)
    mean = probs @ values
    return mean, (probs * (values - mean.unsqueeze(-1)).square()).sum(-1)


class PyroLeaf(LeafFamily):
    """Any univariate family of Pyro or torch, its parameters mapped to the real line; learned by gradients.

    Arguments:
        kind: the class, e.g. `dist.StudentT`, with the names of its parameters in `arg_constraints`.
        fixed: parameters that are not learned, by name.

    Raises:
        ProgramError: the class names no parameters, or its distributions are not of one variable.

    Example:
        >>> PyroLeaf(dist.StudentT, df=4.0).names
        ('loc', 'scale')
    """

    def __init__(self, kind: type, **fixed: float) -> None:
        known = dict(getattr(kind, "arg_constraints", {}))
        if "probs" in known and "logits" in known:
            del known["probs"]
        unknown = sorted(set(fixed) - set(known))
        if not known or unknown:
            found = f"has no parameter {unknown[0]!r}" if unknown else "names no parameters in arg_constraints"
            raise ProgramError(f"PyroLeaf: {kind.__name__} {found}; give a univariate family and its own parameters.")
        self.kind, self.fixed = kind, dict(fixed)
        self.names = tuple(name for name in known if name not in fixed)
        try:
            self.maps = {name: biject_to(known[name]) for name in self.names}
            one = self.distribution(**self.initial())
            scalar = not one.event_shape and not one.batch_shape
        except (NotImplementedError, TypeError, ValueError, RuntimeError, IndexError):
            scalar = False
        if not scalar:
            raise ProgramError(
                f"PyroLeaf: {kind.__name__} is not a distribution of one variable with real parameters; a leaf needs one "
                "(or write a LeafFamily)."
            )

    @lazy_property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return cast(constraints.Constraint, self.distribution(**self.initial()).support)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, PyroLeaf) and (self.kind, self.fixed) == (other.kind, other.fixed)

    def __hash__(self) -> int:
        return hash((self.kind, tuple(sorted(self.fixed.items()))))

    def __repr__(self) -> str:
        fixed = "".join(f", {name}={value!r}" for name, value in self.fixed.items())
        return f"PyroLeaf({self.kind.__name__}{fixed})"

    def distribution(self, **parameters: Tensor) -> Distribution:
        given: dict[str, Any] = {}
        for name, value in parameters.items():
            free = self.kind.arg_constraints[name] is constraints.real  # type: ignore[attr-defined]
            given[name] = self.maps[name](value if free else value.clamp(-_LARGEST, _LARGEST))
        return self.kind(**given, **self.fixed, validate_args=False)

    def start(self, x: Tensor) -> Parameters:
        """From the median and the width of the entries, where the family has a location and a scale."""
        x = x.double()
        begin = {name: value.to(x) for name, value in self.initial().items()}
        if "loc" in begin and self.support in (constraints.real,):
            begin["loc"] = self.maps["loc"].inv(x.median())
            if "scale" in begin:
                begin["scale"] = self.maps["scale"].inv(x.std(correction=0).clamp_min(1e-3))
        return fitted(self, x, begin)


def leaf_family(leaf: Any, values: int) -> LeafFamily:
    """The family that a name, a Pyro class or an object stands for.

    Arguments:
        leaf: "gaussian", "discretised-logistic", "categorical" (with `values`), "bernoulli", "categorical-5", the name
            of a family of Pyro ("poisson", "student-t"), its class, or a `LeafFamily`.
        values: K, of "categorical" and "discretised-logistic".

    Raises:
        ProgramError: there is no such family.

    >>> leaf_family("gaussian", 2), leaf_family("categorical-5", 2), leaf_family("poisson", 2)
    (GaussianLeaf(floor=0.001), CategoricalLeaf(values=5), PyroLeaf(Poisson))
    """
    if isinstance(leaf, LeafFamily):
        return leaf
    if isinstance(leaf, type) and issubclass(leaf, Distribution):
        return PyroLeaf(leaf)
    if isinstance(leaf, str):
        name, _, number = leaf.lower().rpartition("-")
        if name in ("categorical", "discretised-logistic") and number.isdigit():
            return CategoricalLeaf(int(number)) if name == "categorical" else DiscretisedLogisticLeaf(int(number))
        plain = leaf.lower().replace("_", "-")
        built: dict[str, Any] = {
            "gaussian": lambda: GaussianLeaf(),
            "normal": lambda: GaussianLeaf(),
            "bernoulli": lambda: CategoricalLeaf(2),
            "categorical": lambda: CategoricalLeaf(values),
            "discretised-logistic": lambda: DiscretisedLogisticLeaf(values),
        }
        if plain in built:
            return built[plain]()
        wanted = plain.replace("-", "")
        for known in dir(dist):
            kind = getattr(dist, known)
            if known.lower() == wanted and isinstance(kind, type) and issubclass(kind, Distribution):
                return PyroLeaf(kind)
    raise ProgramError(
        f"leaf is {leaf!r}, but 'categorical', 'bernoulli', 'gaussian', 'discretised-logistic', the name or the class of "
        "a family of Pyro, or a LeafFamily was expected."
    )
