"""From messages to a Posterior: marginals as distributions of the sites' own values, joint draws, the evidence."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppl_dgm.inference.messages.enumeration import support_values
from ppl_dgm.program import Program
from ppl_dgm.results import Cost, Posterior, Score

from .cluster_tree import ClusterTree, Passing
from .factor_graph import FactorGraph
from .loopy import LoopyPassing
from .record import Messages

__all__ = ["MessagePosterior", "loopy_posterior", "native", "tree_evidence", "tree_posterior"]


@dataclass(repr=False)
class MessagePosterior(Posterior):
    """A posterior that keeps the messages it was computed from.

    Attributes:
        messages: all of them, in order; print them, or `messages["rain", "wet"]`.
        graph: the factor graph.
        tables: {site: probabilities [*batch, values]}, for every site, also where no distribution has its values.
        bethe: of loopy propagation, the Bethe approximation of log p(x) in nats.
    """

    messages: Messages = field(default_factory=Messages, repr=False)
    graph: FactorGraph | None = field(default=None, repr=False)
    tables: dict[str, Tensor] = field(default_factory=dict, repr=False)
    bethe: float | None = None

    def explain(self, **options: Any) -> str:
        """The messages as a table; see `Messages.explain`."""
        return self.messages.explain(**options)


def tree_posterior(program: Program, tree: ClusterTree, draws: int, how: str, begun: float) -> MessagePosterior:
    """Marginals, draws and evidence by messages on a tree."""
    graph, passing = tree.graph, Passing(tree)
    evidence = _score(graph, passing, how)
    exact: dict[str, Distribution] = {}
    values: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    if bool(evidence.value.isfinite().all()):
        tables = _tables(graph, passing.marginals())
        exact = _families(graph, tables)
        values = {site: value.unsqueeze(0) for site, value in native(graph, passing.sample(draws)).items()}
    else:
        how = "the observations have probability zero, so there is no posterior"
    return MessagePosterior(
        values,
        exact or None,
        log_evidence=evidence,
        cost=Cost(draws, time.perf_counter() - begun),
        how=how,
        kind="exact",
        program=program,
        messages=passing.messages,
        graph=graph,
        tables=tables,
    )


def tree_evidence(tree: ClusterTree, how: str) -> Score:
    """log p(x) by the messages towards the roots alone."""
    return _score(tree.graph, Passing(tree), how)


def loopy_posterior(program: Program, passing: LoopyPassing, draws: int, how: str, begun: float) -> MessagePosterior:
    """Beliefs of loopy propagation; the draws are of each variable by itself."""
    graph = passing.graph
    beliefs = passing.marginals()
    picks = {variable: torch.distributions.Categorical(b).sample((draws,)) for variable, b in beliefs.items()}
    return MessagePosterior(
        {site: value.unsqueeze(0) for site, value in native(graph, picks).items()},
        cost=Cost(passing.rounds, time.perf_counter() - begun),
        how=how,
        kind="approximate",
        program=program,
        messages=passing.messages,
        graph=graph,
        tables=_tables(graph, beliefs),
        bethe=float(passing.bethe()),
    )


def native(graph: FactorGraph, indices: dict[str, Tensor]) -> dict[str, Tensor]:
    """Indices {variable: [draws]} as values of the program's sites, {site: [draws, *batch, *event]}."""
    found = {}
    for site, variables in graph.sites.items():
        if not all(variable in indices for variable in variables):
            continue
        index = torch.stack([indices[variable] for variable in variables], -1)  # [draws, elements]
        if graph.enumeration is None:
            found[site] = index.squeeze(-1)
            continue
        fn = graph.enumeration.latent[site]
        found[site] = support_values(fn)[index.reshape(len(index), *fn.batch_shape)]
    return found


def _tables(graph: FactorGraph, marginals: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for site, variables in graph.sites.items():
        table = torch.stack([marginals[variable] for variable in variables])  # [elements, values]
        batch = () if graph.enumeration is None else tuple(graph.enumeration.latent[site].batch_shape)
        found[site] = table.reshape(*batch, table.shape[-1])
    return found


def _families(graph: FactorGraph, tables: dict[str, Tensor]) -> dict[str, Distribution]:
    if graph.enumeration is None:
        return {site: torch.distributions.Categorical(table) for site, table in tables.items()}
    families = {site: graph.enumeration.family(site, table) for site, table in tables.items()}
    return {site: family for site, family in families.items() if family is not None}


def _score(graph: FactorGraph, passing: Passing, how: str) -> Score:
    return Score(passing.log_evidence(), "exact" if graph.normalised else "unnormalised", how=how)
