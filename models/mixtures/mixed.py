"""MixtureOfMixedColumns: a mixture for tables whose columns are real, binary, counts and categories."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.distributions import Columns
from ppl_dgm.errors import ProgramError

from .bernoulli import MixtureOfBernoullis
from .categorical import MixtureOfCategoricals
from .gaussian import MixtureOfGaussians
from .mixture import Mixture, filled
from .poisson import MixtureOfPoissons

__all__ = ["MixtureOfMixedColumns"]


class MixtureOfMixedColumns(Mixture):
    """p(x) = sum_k w_k prod_d p(x_d | k), each column of its own kind; given k the columns are independent.

    Arguments:
        columns: the kind of each column: "gaussian", "bernoulli", "poisson", or "categorical-V" with V values 0, ..., V - 1.
        components: K.
        pseudo_count: added to the expected counts of each value (Bernoulli, categorical, Poisson).
        floor: smallest variance of a Gaussian column, in its squared units.
        missing: whether the table may have holes, marked by NaN; they are summed or integrated out.

    Attributes:
        blocks: the mixtures of each kind, whose components are this one's; `block_columns` says of which columns.

    Raises:
        ProgramError: an unknown kind of column.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> table = torch.stack([torch.randn(50), torch.randint(0, 3, (50,)).float()], -1)
        >>> program = dgm.models.MixtureOfMixedColumns(["gaussian", "categorical-3"], 2)
        >>> dgm.score(dgm.learn(program, table, seed=0).program, table).kind
        'exact'
    """

    density_of = "the columns of numbers, probability of the others"

    def __init__(
        self,
        columns: Sequence[str] = ("gaussian", "gaussian", "bernoulli", "categorical-3"),
        components: int = 2,
        pseudo_count: float = 0.1,
        floor: float = 1e-3,
        missing: bool = False,
    ) -> None:
        super().__init__(len(columns), components, missing)
        self.columns = list(columns)
        self.blocks, self.block_columns = nn.ModuleList(), []
        support: list[Any] = [None] * len(columns)
        for kind in dict.fromkeys(columns):
            places = [d for d, other in enumerate(columns) if other == kind]
            block = _block(kind, len(places), components, pseudo_count, floor, missing)
            del block.weight_logits  # one set of weights for all
            block.register_buffer("weight_logits", torch.zeros(components), persistent=False)
            self.blocks.append(block)
            self.block_columns.append(places)
            for d in places:
                support[d] = block.support
        self.support = constraints.stack(support, -1)

    def _parts(self) -> list[tuple[Mixture, list[int]]]:
        return list(zip(self.blocks, self.block_columns))  # type: ignore[arg-type]

    @property
    def components_free_count(self) -> int:
        return sum(block.components_free_count for block, _ in self._parts())

    def component(self, k: Tensor) -> TorchDistributionMixin:
        """The product of the blocks' components."""
        return Columns([(block.component(k), torch.tensor(places)) for block, places in self._parts()], self.dtype)

    def component_of_seen(self, k: Tensor, seen: Tensor) -> TorchDistributionMixin:
        return Columns(
            [(block.component_of_seen(k, seen[..., places]), torch.tensor(places)) for block, places in self._parts()],
            self.dtype,
        )

    def component_log_prob(self, x: Tensor) -> Tensor:
        """log p(x | k) in nats, [batch, K]."""
        values = [block.component_log_prob(block.as_data(x[:, places])) for block, places in self._parts()]
        return torch.stack(values).sum(0)

    # -- expectation maximisation ----------------------------------------------------------------------------

    def log_prior(self) -> Tensor:
        """Log density of the pseudo-counts' priors up to a constant, in nats, []; EM adds it."""
        priors = [block.log_prior() for block, _ in self._parts() if hasattr(block, "log_prior")]
        return torch.stack(priors).sum() if priors else torch.zeros((), dtype=self.dtype)

    @torch.no_grad()
    def em_start(self, x: Tensor) -> None:
        """Components from the rows nearest to k-means++ seeds among standardised columns."""
        x = self.as_data(x)
        complete = filled(x)
        spread = complete.std(0, correction=0)
        groups = self.near_seeds((complete - complete.mean(0)) / torch.where(spread > 0, spread, 1.0))
        for block, places in self._parts():
            block.em_start(x[:, places])
            block.maximise(block.as_data(x[:, places]), groups)

    @torch.no_grad()
    def maximise(self, x: Tensor, responsibilities: Tensor) -> None:
        """The M-step of each block."""
        for block, places in self._parts():
            block.maximise(block.as_data(x[:, places]), responsibilities)

    @torch.no_grad()
    def statistics(self, x: Tensor, responsibilities: Tensor, about: Any = None) -> tuple[Tensor, ...]:
        """Those of the blocks, one after another, each about its own origin."""
        found: list[Tensor] = []
        for block, places in self._parts():
            part = block.as_data(x[:, places])
            part = part.to(x.dtype) if part.is_floating_point() else part
            found += block.statistics(part, responsibilities, block.origin())
        return tuple(found)

    @torch.no_grad()
    def maximise_from(self, statistics: tuple[Tensor, ...], about: Any = None) -> None:
        """The M-step of each block from its own statistics."""
        rest = list(statistics)
        for block, _ in self._parts():
            count = _STATISTICS[type(block)]
            block.maximise_from(tuple(rest[:count]), block.origin())
            rest = rest[count:]


# how many tensors `statistics` of a block has
_STATISTICS = {MixtureOfGaussians: 3, MixtureOfBernoullis: 2, MixtureOfPoissons: 2, MixtureOfCategoricals: 1}


def _block(kind: str, observed: int, components: int, count: float, floor: float, missing: bool) -> Mixture:
    name, _, values = kind.partition("-")
    if name == "gaussian" and not values:
        return MixtureOfGaussians(observed, components, floor=floor, missing=missing)
    if name == "bernoulli" and not values:
        return MixtureOfBernoullis(observed, components, count, count, missing=missing)
    if name == "poisson" and not values:
        return MixtureOfPoissons(observed, components, count, missing=missing)
    if name == "categorical" and values.isdecimal() and int(values) > 0:
        return MixtureOfCategoricals(observed, int(values), components, count, missing=missing)
    raise ProgramError(
        f"columns: a column's kind is 'gaussian', 'bernoulli', 'poisson' or 'categorical-V' (as in 'categorical-3'), "
        f"not {kind!r}."
    )
