"""map_configuration: the most probable values of discrete sites, by max-product; of some of them, the rest summed out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError, TaskUnavailable
from ppl_dgm.inference.messages.answers import native
from ppl_dgm.inference.messages.cluster_tree import Passing
from ppl_dgm.inference.messages.elimination import plan_elimination
from ppl_dgm.inference.messages.factor_graph import FactorGraph
from ppl_dgm.inference.messages.log_factor import LogFactor, product, reduced
from ppl_dgm.inference.messages.record import Message, Messages
from ppl_dgm.program import as_program
from ppl_dgm.registry import resolve
from ppl_dgm.results import Score
from ppl_dgm.tasks import evaluating

__all__ = ["Configuration", "map_configuration"]


@dataclass
class Configuration:
    """The most probable configuration.

    Attributes:
        values: {site: its values, [*batch, *event]}.
        log_joint: log p(x, z*) in nats, [examples] or []; of some sites, log of the sum over all others.
        log_evidence: log p(x).
        messages: of max-product, with those of the sums before it.
        how: the method, in words.
    """

    values: dict[str, Tensor]
    log_joint: Score
    log_evidence: Score
    messages: Messages = field(repr=False)
    how: str = ""

    @property
    def log_posterior(self) -> Tensor:
        """log p(z* | x) in nats."""
        return self.log_joint.value - self.log_evidence.value

    def __str__(self) -> str:
        parts = [f"{site} = {value.tolist()}" for site, value in self.values.items()]
        return f"{', '.join(parts)}; p(z* | x) = {float(self.log_posterior.sum().exp()):.4g} ({self.how})"


@torch.no_grad()
def map_configuration(
    program: Any, *args: Any, over: Sequence[str] | None = None, method: Any = "variable-elimination", **kwargs: Any
) -> Configuration:
    """argmax_z p(z | x) over all discrete latent sites at once, or over some of them.

    The best value of all sites together is not the best value of each: a mixture's most probable x is not the mode of
    its most probable component, max_x sum_k w_k p_k(x) <= sum_k w_k max_x p_k(x), often with strict inequality and at another x. With
    `over=["x"]` all else is summed out first (marginal MAP), which is the harder question: sums and maxima do not commute,
    so that the order of elimination is no longer free.

    Arguments:
        program: a `Program` or any callable Pyro model over discrete latent sites.
        *args, **kwargs: go to the model, observations first.
        over: sites to maximise over, the others summed out; all by default.
        method: "variable-elimination", "junction-tree" or "belief-propagation", or such an algorithm with options.

    Returns:
        A `Configuration`; of several equally probable ones, one of them.

    Raises:
        TaskUnavailable: a latent site cannot be listed, a table would be too large, or the observations have
            probability zero.
        ProgramError: `over` names no latent site.

    Source: J. Pearl (1988), chapter 5; J. Park and A. Darwiche (2004) for marginal MAP.

    Example:
        >>> import ppl_dgm as dgm
        >>> best = dgm.map_configuration(dgm.models.BayesianNetwork.sprinkler(), grass=1)
        >>> {site: int(value) for site, value in best.values.items()}
        {'cloudy': 1, 'sprinkler': 0, 'rain': 1}
    """
    algorithm = resolve(method)
    if not hasattr(algorithm, "tree"):
        raise ProgramError(
            f"map_configuration passes messages, which {type(algorithm).__name__} does not; take 'variable-elimination', "
            "'junction-tree' or 'belief-propagation'."
        )
    program = as_program(program)
    with program.running(), evaluating(program):
        graph = FactorGraph.from_program(program, *args, **kwargs)
    if not graph.sizes:
        raise TaskUnavailable(
            f"{program.name!r} has no latent discrete site for these arguments; leave one unobserved."
        )
    evidence = Passing(algorithm.tree(graph)[0]).log_evidence()
    if not bool(evidence.isfinite().all()):
        raise TaskUnavailable(f"the observations of {program.name!r} have probability zero, so no values are probable.")
    smaller, sums = _summed(graph, over, getattr(algorithm, "largest", 2**24))
    tree, how = algorithm.tree(smaller)
    passing = Passing(tree, maximise=True)
    kind = "exact" if graph.normalised else "unnormalised"
    how = f"max-product, {how}" + (f", {len(sums)} variables summed out first" if sums else "")
    return Configuration(
        {site: value[0] for site, value in native(smaller, passing.best()).items()},
        Score(passing.log_evidence(), kind, how=how),
        Score(evidence, kind, how=how),
        Messages([*sums, *passing.messages], maximise=True),
        how,
    )


def _summed(graph: FactorGraph, over: Sequence[str] | None, largest: int) -> tuple[FactorGraph, list[Message]]:
    """The factors that are left when all but the variables of some sites are summed out."""
    over = list(graph.sites) if over is None else [over] if isinstance(over, str) else list(over)
    unknown = [site for site in over if site not in graph.sites]
    if unknown or not over:
        raise ProgramError(
            f"over must name latent sites of {graph.name!r} ({', '.join(graph.sites)}), but it is {over!r}."
        )
    kept = {variable for site in over for variable in graph.sites[site]}
    plan = plan_elimination(graph, among=[variable for variable in graph.sizes if variable not in kept])
    plan.refuse_above(largest, graph.name)
    factors, sums = list(graph.factors), []
    for variable, scope in zip(plan.order, plan.scopes, strict=True):
        mine = [factor for factor in factors if variable in factor.scope]
        factors = [factor for factor in factors if variable not in factor.scope]
        table = reduced(product(mine, scope, graph.sizes, graph.zero), scope, scope[1:])
        row = next((factor.example for factor in mine if factor.example is not None), None)
        factors.append(LogFactor(scope[1:], table, f"sum over {variable}", row))
        sums.append(Message(variable, "maxima", scope[1:], table, 0))
    sizes = {variable: size for variable, size in graph.sizes.items() if variable in kept}
    return replace(graph, sizes=sizes, factors=factors), sums
