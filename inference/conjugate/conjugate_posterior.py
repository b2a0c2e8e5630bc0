"""The exact posterior of conjugate and linear-Gaussian programs, recognised from the program's densities.

Sites are integrated out one block after another. As long as a block's conditional given the others is in a family,

    log p(x, z_rest) = log p(x, z) - log p(z_block | z_rest, x)        for any value of z_block,

and the marginal on the left is again put to the test. A program whose every block passes has its whole posterior as a
product of conditionals, and its evidence; both sides of the identity are compared at several random points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import DgmError
from ppl_dgm.inference.conjugate.conjugacy import Conditional, improper, is_real, shared_groups
from ppl_dgm.inference.conjugate.factors import Factors, Latent, Values
from ppl_dgm.inference.conjugate.families import Family, Gaussian, family_of
from ppl_dgm.program import Program
from ppl_dgm.randomness import seeded

__all__ = ["ConjugatePosterior", "recognise_posterior"]

_POINTS = 4  # random points that have to agree
_LARGEST = 2048  # coordinates of a Gaussian block
_DEEPEST = 3  # blocks that depend on one another
_CHUNK = 2048  # points whose density is computed at once


@dataclass
class _Stage:
    """One block of the posterior: its conditional given the blocks of later stages.

    Attributes:
        conditional: in its family.
        alone: whether it depends on no other site, so that it is the marginal.
    """

    conditional: Conditional
    alone: bool


class _Level:
    """A log density of some sites, at many points, differentiable as often as need be.

    Arguments:
        factors: the program.
        fixed: values, [*shape], for all sites that are integrated out or that make no difference.
        names: the sites that `density` takes.
        below: the level with one more block, and the conditional of that block there; None for the program itself.
    """

    def __init__(
        self,
        factors: Factors,
        fixed: Values,
        names: frozenset[str],
        below: "tuple[_Level, Conditional] | None" = None,
    ) -> None:
        self.factors, self.fixed, self.names, self.below = factors, fixed, names, below

    def density(self, values: Values) -> Tensor:
        """log p at {site: [row, *shape]}, [row], but for a constant that the fixed sites add."""
        if self.below is None:
            names = list(values)

            def one(*row: Tensor) -> Tensor:
                return self.factors.total(dict(zip(names, row, strict=True)))

            return self.factors.mapped(one)(*values.values())
        level, conditional = self.below
        count = len(next(iter(values.values())))
        fixed = {n: self.fixed[n].expand(count, *self.fixed[n].shape) for n in level.names if n not in values}
        everything = {**values, **fixed}
        eta = conditional.eta(everything)
        return level.density(everything) - conditional.family.log_prob(eta, everything)

    def slopes(self, points: Values, state: Values) -> tuple[Tensor, Values]:
        """Values [chain, point] and gradients where some sites are at {site: [chain, point, *shape]}."""
        chains, count = next(iter(points.values())).shape[:2]
        rest = [name for name in self.names if name not in points]
        at_once = max(1, _CHUNK // chains)
        found = []
        with torch.enable_grad():
            for start in range(0, count, at_once):
                leaves = {name: x[:, start : start + at_once].detach().requires_grad_() for name, x in points.items()}
                some = next(iter(leaves.values())).shape[1]
                flat = {name: x.flatten(0, 1) for name, x in leaves.items()}
                flat |= {name: state[name].repeat_interleave(some, 0) for name in rest}
                values = self.density(flat)
                deep = any(state[name].requires_grad for name in rest)
                gradients: Any = [None] * len(leaves)
                if values.requires_grad:
                    leaves_ = list(leaves.values())
                    gradients = torch.autograd.grad(values.sum(), leaves_, create_graph=deep, allow_unused=True)
                pairs = zip(gradients, leaves.values(), strict=True)
                found.append((values.reshape(chains, some), *(_or_zero(g, x) for g, x in pairs)))
        values, *gradients_ = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return values, dict(zip(points, gradients_, strict=True))


def _or_zero(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


@dataclass
class ConjugatePosterior:
    """p(z | x) = prod_i p(z_i | z_{i+1}, ..., x), each factor in a family.

    Attributes:
        factors: the program.
        stages: the blocks, first the one that depends on all others.
        evidence: log p(x) in nats, [] or, where every site lies in the plate `data`, one for each example.
        normalised: whether the program's density has its constant.
        start: some values of all sites, {site: [point, *shape]}.
    """

    factors: Factors
    stages: list[_Stage]
    evidence: Tensor
    normalised: bool
    start: Values

    @torch.no_grad()
    def sample(self, draws: int) -> Values:
        """Joint draws, {site: [draw, *shape]}."""
        found: Values = {}
        for stage in reversed(self.stages):
            conditional = stage.conditional
            sites = [self.factors.latent[name] for name in conditional.sites]
            if stage.alone:
                eta = conditional.eta(_first(self.start, 1))
                eta = tuple(part.expand(draws, *part.shape[1:]) for part in eta)
                found |= conditional.family.sample(eta)
                continue
            width = 1 + sum(site.shape.numel() for site in sites)
            parts = []
            for start in range(0, draws, max(1, _CHUNK // width)):
                rows = {name: value[start : start + max(1, _CHUNK // width)] for name, value in found.items()}
                count = len(next(iter(rows.values())))
                state = {**_first(self.start, 1, count), **rows}
                parts.append(conditional.sample(state))
            found |= {name: torch.cat([part[name] for part in parts]) for name in conditional.sites}
        return {name: self.factors.to_native(found[name]) for name in self.factors.latent}

    @torch.no_grad()
    def marginals(self) -> dict[str, Any]:
        """{site: distribution} of the sites whose marginal is in a family."""
        found: dict[str, Any] = {}
        for stage in self.stages:
            if stage.alone:
                eta = stage.conditional.eta(_first(self.start, 1))
                found |= stage.conditional.family.marginals(eta, self.factors.native)
        return {name: found[name] for name in self.factors.latent if name in found}

    def described(self) -> str:
        """Which site has which conditional, in words."""
        parts = []
        for stage in self.stages:
            given = "" if stage.alone else " given the rest"
            parts.append(f"{', '.join(stage.conditional.sites)}: {stage.conditional.family.label}{given}")
        return "conjugate; " + "; ".join(parts)


def _first(state: Values, count: int, times: int = 1) -> Values:
    return {name: value[:count].expand(times, *value.shape[1:]) for name, value in state.items()}


def recognise_posterior(
    program: Program, *args: Any, largest: int | None = None, **kwargs: Any
) -> ConjugatePosterior | None:
    """The exact posterior of a program whose sites are conjugate or jointly Gaussian, or None.

    Nothing is drawn from the caller's random numbers.

    Arguments:
        program: call inside `program.running()`.
        largest: give up at once where the program has more coordinates.

    Raises:
        NumericalError: the posterior cannot be normalised; the message names the site.
    """
    with seeded(0):
        try:
            factors = Factors(program, *args, **kwargs)
        except (DgmError, RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, KeyError):
            return None
        sites = list(factors.latent.values())
        size = sum(site.shape.numel() for site in sites)
        if not sites or factors.scaled or factors.dtype != torch.float64 or any(site.discrete for site in sites):
            return None
        if not all(family_of(site) for site in sites):
            return None
        if largest is not None and size > (largest if factors.vectorised else largest // 8):
            return None
        return _Search(factors).posterior()


class _Search:
    """Integrates out block after block until none is left, or one resists."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        try:
            self.state: Values | None = factors.initial(_POINTS, 1.0)
        except DgmError:
            self.state = None
        self.stages: list[_Stage] = []

    def posterior(self) -> ConjugatePosterior | None:
        if self.state is None:
            return None
        level = _Level(self.factors, {}, frozenset(self.factors.latent))
        for _ in range(_DEEPEST):
            blocks = self._blocks(level)
            if blocks is None:
                return None
            alone = [block for block in blocks if self._is_alone(level, block)]
            left = [block for block in blocks if block not in alone]
            self.stages += [_Stage(block, True) for block in alone]
            if not left:
                return self._certified()
            self.stages.append(_Stage(left[-1], False))
            level = self._beneath(level, left[-1], alone)
        return None

    def _blocks(self, level: _Level) -> list[Conditional] | None:
        """The conditional of each positive or bounded site, and last of all real ones together; None if one has none."""
        sites = [site for name, site in self.factors.latent.items() if name in level.names]
        families: list[Sequence[Family]] = [family_of(site) for site in sites if not is_real(site)]
        real = [site for site in sites if is_real(site)]
        if len(real) == 1:
            families.append(family_of(real[0]))
        elif real:
            families.append([Gaussian(real, groups) for groups in shared_groups(real)])
        found = []
        for choices in families:
            conditional = self._recognised(level, choices)
            if conditional is None:
                return None
            found.append(conditional)
        return found

    def _recognised(self, level: _Level, families: Sequence[Family]) -> Conditional | None:
        assert self.state is not None
        for family in families:
            if isinstance(family, Gaussian) and family.dim > _LARGEST:
                continue
            conditional = Conditional(family, level.slopes, self.factors.dtype)
            if conditional.holds(self.state):
                return conditional
        return None

    def _is_alone(self, level: _Level, conditional: Conditional) -> bool:
        """Whether the conditional is the same wherever the other sites are."""
        assert self.state is not None
        if level.names <= set(conditional.sites):
            return True
        same = {name: value[:1].expand_as(value) for name, value in self.state.items() if name in conditional.sites}
        with torch.no_grad():
            eta = conditional.eta({**self.state, **same})
        return all(bool(((part - part[:1]).abs() <= 1e-9 * (1 + part.abs().amax())).all()) for part in eta)

    def _beneath(self, level: _Level, block: Conditional, alone: list[Conditional]) -> _Level:
        """What is left when a block is integrated out; sites that nothing depends on stay where they are."""
        assert self.state is not None
        gone = [name for conditional in (block, *alone) for name in conditional.sites]
        fixed = {**level.fixed, **{name: self.state[name][0] for name in gone}}
        return _Level(self.factors, fixed, level.names - set(gone), (level, block))

    def _certified(self) -> ConjugatePosterior | None:
        """The posterior, if log p(x, z) - log p(z | x) is the same at every point."""
        assert self.state is not None
        keep = self._data_dim()
        with torch.no_grad():
            for stage in self.stages:
                eta = stage.conditional.eta(self.state)
                if not stage.conditional.family.proper(eta):
                    raise improper(stage.conditional.sites, stage.conditional.family.label)
            evidence = self._evidence(keep)
        spread = (evidence - evidence[:1]).abs().amax()
        scale = 1 + self.factors.log_joint(self.state).abs().amax()
        if not bool(spread <= 1e-7 * scale):
            return None
        return ConjugatePosterior(self.factors, self.stages, evidence[0], self.factors.normalised, self.state)

    def _evidence(self, keep: int | None) -> Tensor:
        """[point], or [point, example]."""
        assert self.state is not None
        state = self.state

        def joint(*row: Tensor) -> Tensor:
            terms = self.factors.terms(dict(zip(self.factors.latent, row, strict=True)))
            if keep is None:
                return sum((term.sum() for term in terms.values()), torch.zeros((), dtype=self.factors.dtype))
            return sum(term.movedim(keep, 0).reshape(term.shape[keep], -1).sum(1) for term in terms.values())  # type: ignore[return-value]

        total = self.factors.mapped(joint)(*[state[name] for name in self.factors.latent])
        for stage in self.stages:
            total = total - stage.conditional.family.log_prob(stage.conditional.eta(state), state, keep)
        return total

    def _data_dim(self) -> int | None:
        """The dimension of the plate `data` where every site is inside of it and every block treats its rows apart."""
        if self.factors.data_dim is None:
            return None
        for stage in self.stages:
            family = stage.conditional.family
            if isinstance(family, Gaussian):
                site: Latent = family.latent[0]
                axis = len(site.fn.batch_shape) + self.factors.data_dim
                if axis not in family.axes[0].groups:
                    return None
        return self.factors.data_dim
