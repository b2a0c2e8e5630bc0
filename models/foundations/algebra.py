"""The algebra of programs: mixture, product, transformation and composition, each a program whose score is as exact as its parts'."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score

from .parts import Anywhere, Chosen, Law, as_part, columns_of, joint_kind, shape_of, width_of

__all__ = [
    "Composition", "MixtureOfPrograms", "ProductOfPrograms", "TotalVariance", "Transformed", "composed", "mixture_of",
    "product_of", "total_variance", "transformed",
]  # fmt: skip

Part = Any  # a Program with `log_density`, or a distribution


def mixture_of(parts: Sequence[Part], weights: Sequence[float] | None = None) -> "MixtureOfPrograms":
    """p(x) = sum_k w_k p_k(x) of programs or distributions; equal weights by default. See `MixtureOfPrograms`."""
    return MixtureOfPrograms(parts, weights)


def product_of(parts: Sequence[Part], scopes: Sequence[Any]) -> "ProductOfPrograms":
    """p(x) = prod_i p_i(x[scope_i]) / Z of programs or distributions. See `ProductOfPrograms`."""
    return ProductOfPrograms(parts, scopes)


def transformed(part: Part, *transforms: Any) -> "Transformed":
    """x = f(u), u ~ the part, f one or more of torch's transforms. See `Transformed`."""
    return Transformed(part, transforms)


def composed(prior: Part, conditional: Callable[[Tensor], Any]) -> "Composition":
    """z ~ the prior, x ~ conditional(z). See `Composition`."""
    return Composition(prior, conditional)


class MixtureOfPrograms(Program):
    """k ~ Categorical(w), x ~ the k-th part: p(x) = sum_k w_k p_k(x), p(k | x) = w_k p_k(x) / p(x).

    Its score is exact where those of the parts are, and a lower bound where some are lower bounds.

    Arguments:
        parts: programs with a `log_density`, or distributions, over the same x.
        weights: [K], positive; normalised to one. Equal by default.

    Attributes:
        parts: the programs.
        weight_logits: [K], w = softmax(weight_logits).

    Raises:
        ProgramError: a part without a density, or other numbers of weights or columns.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> program = mixture_of([dist.Normal(0.0, 1.0), dist.Laplace(3.0, 1.0)], [0.75, 0.25])
        >>> round(program.log_density(torch.tensor([0.0])).value.exp().item(), 3)
        0.305
    """

    def __init__(self, parts: Sequence[Part], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(as_part(part) for part in parts)
        shapes = {shape_of(part) for part in self.parts}
        if len(shapes) != 1:
            raise ProgramError(
                f"mixture_of: all parts must have examples of one shape, but they have {sorted(shapes)}."
            )
        values = torch.ones(len(self.parts)) if weights is None else torch.as_tensor(weights, dtype=self.dtype)
        if values.shape != (len(self.parts),) or not bool((values > 0).all()):
            raise ProgramError(
                f"mixture_of: weights must be {len(self.parts)} positive numbers, but they are {weights!r}."
            )
        self.shape = next(iter(shapes))
        self.observed = width_of(self.shape)
        self.support: Any = self.parts[0].support
        self.weight_logits = nn.Parameter((values / values.sum()).log())

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """k ~ Categorical(w); x ~ the k-th part."""
        with pyro.plate("data", n if x is None else len(x)):
            k = pyro.sample("k", dist.Categorical(logits=self.weight_logits), infer={"enumerate": "parallel"})
            return pyro.sample("x", Chosen(list(self.parts), k), obs=x)

    def log_joint(self, x: Tensor) -> Tensor:
        """log w_k + log p_k(x) in nats, [batch, K]."""
        values = [part.log_density(x).value for part in self.parts]
        return torch.stack(values, -1) + self.weight_logits.log_softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch], for `MaximumLikelihood`."""
        return self.log_joint(x).logsumexp(-1)

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [batch].

        Raises:
            TaskUnavailable: a part's score is unnormalised, so that weights between parts mean nothing.
        """
        kind = joint_kind([part.log_density(x) for part in self.parts])
        if kind == "unnormalised":
            raise TaskUnavailable(
                "mixture_of: a part's score is unnormalised, so the weights between the parts mean nothing."
            )
        return Score(self.log_prob(x), kind, how=f"sum over {len(self.parts)} programs")

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(k | x), batch shape [len(x)]."""
        return {"k": dist.Categorical(logits=self.log_joint(x).log_softmax(-1))}

    def default_method(self, task: str) -> Any:
        """Gradients of the likelihood for `learn`."""
        return "maximum-likelihood" if task == "learn" else None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a program, then an example of it"),
            "score": Answer("exact", f"sum over {len(self.parts)} programs, as exact as they are"),
            "infer": Answer("exact", "responsibilities"),
            "learn": Answer("approximate", "gradients of the likelihood"),
        }


class ProductOfPrograms(Program):
    """p(x) = prod_i p_i(x[scope_i]) / Z: an example must please every factor.

    Factors over different columns are independent, Z = 1, and every answer is exact. Where scopes overlap the score is
    unnormalised, log Z being an integral over x, and x is drawn by `dgm.infer(program)`: in closed form where the
    product is Gaussian (then its `log_evidence` is log Z), else by the No-U-Turn sampler.

    Arguments:
        parts: programs with a `log_density`, or distributions.
        scopes: which columns of x each part is over: a list of columns, or one number for a distribution of a single number.

    Raises:
        ProgramError: scopes that do not fit the parts, or leave a column out.

    Source: G. Hinton (2002), Training products of experts by minimizing contrastive divergence.

    Example:
        >>> import torch, pyro.distributions as dist, ppl_dgm as dgm
        >>> program = product_of([dist.Normal(0.0, 1.0), dist.Normal(3.0, 0.5)], [0, 0])
        >>> dgm.score(program, torch.tensor([[1.0]])).kind
        'unnormalised'
        >>> round(float(dgm.infer(program, seed=0).exact["x"].mean), 2)  # precisions 1 and 4 add up
        2.4
    """

    def __init__(self, parts: Sequence[Part], scopes: Sequence[Any]) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(as_part(part) for part in parts)
        if len(scopes) != len(self.parts):
            raise ProgramError(f"product_of: {len(self.parts)} parts need as many scopes, not {len(scopes)}.")
        self.scopes = [scope if isinstance(scope, int) else list(scope) for scope in scopes]
        columns: list[int] = []
        for part, scope in zip(self.parts, self.scopes):
            columns += [scope] if isinstance(scope, int) else scope
            wanted = () if isinstance(scope, int) else (len(scope),)
            if shape_of(part) != wanted:
                raise ProgramError(
                    f"product_of: scope {scope!r} takes examples of shape {wanted}, but those of {part.name!r} have {shape_of(part)}."
                )
        if sorted(set(columns)) != list(range(max(columns) + 1)):
            raise ProgramError(
                f"product_of: the scopes must cover columns 0, 1, ..., but they cover {sorted(set(columns))}."
            )
        self.overlapping, self.observed = len(set(columns)) < len(columns), max(columns) + 1
        self.support = constraints.real if self.overlapping else None

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """Each part over its own columns; or, where they overlap, any x, weighed by every part."""
        with pyro.plate("data", n if x is None else len(x)):
            if self.overlapping:
                anywhere = Anywhere(constraints.independent(constraints.real, 1), (), (self.observed,))
                x = pyro.sample("x", anywhere, obs=x)
                for i, (part, scope) in enumerate(zip(self.parts, self.scopes)):
                    pyro.factor(f"factor_{i + 1}", part.log_density(x[..., scope]).value)
                return x
            pieces: dict[int, Tensor] = {}
            for i, (part, scope) in enumerate(zip(self.parts, self.scopes)):
                seen = None if x is None else x[..., scope]
                piece = pyro.sample(f"x_{i + 1}", Law(part), obs=seen)
                pieces.update(zip([scope] if isinstance(scope, int) else scope, columns_of(piece, scope)))
            return pyro.deterministic("x", torch.stack([pieces[c] for c in sorted(pieces)], -1), event_dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        """sum_i log p_i(x[scope_i]) in nats, [batch]: log p(x) + log Z."""
        return torch.stack([part.log_density(x[..., scope]).value for part, scope in zip(self.parts, self.scopes)]).sum(
            0
        )

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [batch]; up to log Z where scopes overlap."""
        kind = joint_kind([part.log_density(x[..., scope]) for part, scope in zip(self.parts, self.scopes)])
        if self.overlapping and kind not in ("exact", "unnormalised"):
            raise TaskUnavailable(f"product_of: a factor's score is a {kind.replace('_', ' ')}, known up to Z at best.")
        how = f"product of {len(self.parts)} programs"
        return Score(self.log_prob(x), "unnormalised" if self.overlapping else kind, how=how)

    def answers(self) -> dict[str, Answer]:
        if self.overlapping:
            return {
                "sample": Answer(
                    "unavailable", "nothing to draw forward: use infer(program), whose draws of x are the samples"
                ),
                "score": Answer("unnormalised", "sum of the factors' log densities, up to log Z"),
                "infer": Answer("asymptotic", "x itself: closed form if Gaussian, else NUTS"),
                "learn": Answer("unavailable", "the likelihood needs Z"),
            }
        return {
            "sample": Answer("exact", "each part by itself"),
            "score": Answer("exact", "sum of the parts' log densities, as exact as they are"),
            "infer": Answer("unavailable", "nothing is latent"),
            "learn": Answer("approximate", "gradients of the likelihood"),
        }

    def default_method(self, task: str) -> Any:
        """Gradients of the likelihood for `learn`, where it is known."""
        return "maximum-likelihood" if task == "learn" and not self.overlapping else None


class Transformed(Program):
    """x = f(u), u ~ p_u: log p(x) = log p_u(f^-1(x)) + log |det df^-1 / dx|.

    A transformation moves mass, and may also make or merge modes: the sigmoid of N(0, s^2) has two modes as soon as s^2 > 2.

    Arguments:
        part: a program with a `log_density`, or a distribution.
        transforms: of torch or Pyro, applied one after another. One that cannot be inverted leaves x without a score.

    Raises:
        ProgramError: the part has no density.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from torch.distributions.transforms import ExpTransform
        >>> program, x = transformed(dist.Normal(0.0, 1.0), ExpTransform()), torch.tensor([0.5, 2.0])
        >>> torch.allclose(program.log_density(x).value, dist.LogNormal(0.0, 1.0).log_prob(x))
        True
    """

    def __init__(self, part: Part, transforms: Sequence[Any]) -> None:
        super().__init__()
        self.part, self.transforms = as_part(part), list(transforms)
        self.modules_of = nn.ModuleList(t for t in self.transforms if isinstance(t, nn.Module))
        self.invertible = all(t.bijective for t in self.transforms)
        self.observed = width_of(shape_of(self.part))
        self.support = None

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """x = f(u), u ~ the part."""
        if not self.invertible:
            if x is not None:
                raise self._refusal()
            with pyro.plate("data", n):
                value = pyro.sample("u", Law(self.part))
                for transform in self.transforms:
                    value = transform(value)
                return pyro.deterministic("x", value, event_dim=len(shape_of(self.part)))
        with pyro.plate("data", n if x is None else len(x)):
            return pyro.sample("x", dist.TransformedDistribution(Law(self.part), self.transforms), obs=x)

    def _pull(self, x: Tensor) -> tuple[Score, Tensor]:
        """The part's score of u = f^-1(x), and log |det du / dx|, [batch]."""
        if not self.invertible:
            raise self._refusal()
        event, volume = len(shape_of(self.part)), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for transform in reversed(self.transforms):
            u = transform.inv(x)
            change = transform.log_abs_det_jacobian(u, x)
            volume = volume - change.reshape(len(x), -1).sum(-1) if event else volume - change
            x = u
        return self.part.log_density(x), volume

    @staticmethod
    def _refusal() -> TaskUnavailable:
        return TaskUnavailable(
            "transformed: the transformation cannot be inverted, so x has no score by change of variables."
        )

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, [batch]."""
        score, volume = self._pull(x)
        return score.value + volume

    def log_density(self, x: Tensor) -> Score:
        """log p(x) in nats, [batch].

        Raises:
            TaskUnavailable: f cannot be inverted.
        """
        score, volume = self._pull(x)
        return Score(score.value + volume, score.kind, how="change of variables")

    def default_method(self, task: str) -> Any:
        """Gradients of the likelihood for `learn`."""
        return "maximum-likelihood" if task == "learn" and self.invertible else None

    def answers(self) -> dict[str, Answer]:
        score = Answer("exact", "change of variables, as exact as the part")
        return {
            "sample": Answer("exact", "push a draw of the part forward"),
            "score": score if self.invertible else Answer("unavailable", "the transformation cannot be inverted"),
            "infer": Answer("unavailable", "nothing is latent"),
            "learn": Answer("approximate" if self.invertible else "unavailable", "gradients of the likelihood"),
        }


class Composition(Program):
    """z ~ p(z), x ~ p(x | z), so that p(x) = integral of p(z) p(x | z) over z.

    There is no closed form in general: `score` and `infer` find one where the program is conjugate or linear-Gaussian, and
    ask for a method or guide elsewhere.

    Arguments:
        prior: a program with a `log_density`, or a distribution.
        conditional: a function from z [n, ...] to the distribution of x, batch shape [n]; a module brings its parameters.

    Example:
        >>> import torch, pyro.distributions as dist, ppl_dgm as dgm
        >>> program = composed(dist.Normal(0.0, 1.0), lambda z: dist.Normal(2 * z, 1.0))
        >>> score = dgm.score(program, torch.tensor([1.0]))  # N(0, 2^2 + 1)
        >>> score.kind, round(float(score.value), 4), round(float(dist.Normal(0.0, 5**0.5).log_prob(torch.tensor(1.0))), 4)
        ('exact', -1.8237, -1.8237)
    """

    def __init__(self, prior: Part, conditional: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.prior = as_part(prior)
        self.modules_of = nn.ModuleList([conditional] if isinstance(conditional, nn.Module) else [])
        object.__setattr__(self, "conditional", conditional)

    conditional: Callable[[Tensor], Any]

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ the prior; x ~ conditional(z)."""
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", Law(self.prior))
            return pyro.sample("x", self.conditional(z), obs=x)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "z, then x given z"),
            "score": Answer(
                "estimate", "method='simple-monte-carlo'; in closed form where it is linear-Gaussian or conjugate"
            ),
            "infer": Answer("asymptotic", "NUTS; in closed form where it is linear-Gaussian or conjugate"),
            "learn": Answer("approximate", "variational, with a guide"),
        }


class TotalVariance(NamedTuple):
    """Var x = E Var(x | k) + Var E(x | k) of a mixture.

    Attributes:
        within: sum_k w_k variance_k, [...], in squared units.
        between: sum_k w_k (mean_k - mean)^2, [...].
    """

    within: Tensor
    between: Tensor

    @property
    def total(self) -> Tensor:
        """Var x, [...]."""
        return self.within + self.between


def total_variance(weights: Any, means: Any, variances: Any) -> TotalVariance:
    """The law of total variance for components of given weights [K], means [K, ...] and variances [K, ...].

    Example:
        >>> total_variance([0.5, 0.5], [-1.0, 1.0], [1.0, 4.0]).total
        tensor(3.5000)
    """
    weights, means, variances = (torch.as_tensor(value) for value in (weights, means, variances))
    shares = (weights / weights.sum()).reshape(-1, *[1] * (means.ndim - 1)).to(means.dtype)
    return TotalVariance((shares * variances).sum(0), (shares * (means - (shares * means).sum(0)).square()).sum(0))
