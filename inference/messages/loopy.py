"""LoopyPassing: belief propagation on a factor graph with loops, sent round and round until nothing changes."""

import torch
from torch import Tensor

from .factor_graph import FactorGraph
from .log_factor import LogFactor, product, reduced
from .record import Message, Messages
from .trees import factor_names

__all__ = ["LoopyPassing"]


class LoopyPassing:
    """All messages of a round at once, each normalised, damped in the logarithm; beliefs are approximate.

    Arguments:
        graph: the factors.
        rounds: most rounds.
        damping: share of the old message that is kept, from 0 to below 1.
        tolerance: stop when no message's probabilities change by more.
        maximise: maxima instead of sums.

    Attributes:
        rounds: how many were made.
        change: the largest change in the last round.
        messages: those of the last round.

    Source: K. Murphy, Y. Weiss and M. Jordan (1999); J. Yedidia, W. Freeman and Y. Weiss (2001) for the Bethe free energy.
    """

    def __init__(self, graph: FactorGraph, rounds: int, damping: float, tolerance: float, maximise: bool) -> None:
        self.graph, self.maximise = graph, maximise
        self.names = factor_names(graph)
        self.used = [index for index, factor in enumerate(graph.factors) if factor.scope]
        self.links = [(index, variable) for index in self.used for variable in graph.factors[index].scope]
        self.around: dict[str, list[int]] = {variable: [] for variable in graph.sizes}
        for index, variable in self.links:
            self.around[variable].append(index)
        self.to_variable = {link: self._flat(link[1]) for link in self.links}
        self.to_factor = {link: self._flat(link[1]) for link in self.links}
        self.rounds, self.change = 0, float("inf")
        while self.rounds < rounds and self.change > tolerance:
            self._round(damping)
            self.rounds += 1

    def _flat(self, variable: str) -> Tensor:
        size = self.graph.sizes[variable]
        return (self.graph.zero - torch.tensor(float(size)).log().to(self.graph.zero)).expand(size)

    def _round(self, damping: float) -> None:
        changes = []
        for link in self.links:
            index, variable = link
            heard = [self.to_variable[other, variable] for other in self.around[variable] if other != index]
            self.to_factor[link] = sum(heard, torch.zeros_like(self._flat(variable))).log_softmax(-1)
        for link in self.links:
            index, variable = link
            factor = self.graph.factors[index]
            heard_too = [LogFactor((v,), self.to_factor[index, v]) for v in factor.scope if v != variable]
            table = product((factor, *heard_too), factor.scope, self.graph.sizes, self.graph.zero)
            new = reduced(table, factor.scope, (variable,), self.maximise).log_softmax(-1)
            old = self.to_variable[link]
            mixed = new if damping == 0 else ((1 - damping) * new + damping * old).log_softmax(-1)
            changes.append((mixed.exp() - old.exp()).abs().max())
            self.to_variable[link] = mixed
        self.change = float(torch.stack(changes).max()) if changes else 0.0

    @property
    def messages(self) -> Messages:
        sent = []
        for index, variable in self.links:
            name = self.names[index]
            sent.append(Message(variable, name, (variable,), self.to_factor[index, variable], self.rounds))
            sent.append(Message(name, variable, (variable,), self.to_variable[index, variable], self.rounds))
        return Messages(sent, self.maximise)

    def marginals(self) -> dict[str, Tensor]:
        """Each variable's belief, [its values]."""
        return {
            variable: sum((self.to_variable[i, variable] for i in around), torch.zeros_like(self._flat(variable))).softmax(-1)
            for variable, around in self.around.items()
        }  # fmt: skip

    def bethe(self) -> Tensor:
        """The Bethe approximation of log p(x) in nats, []; exact on a tree.

        sum_f sum b_f (log f - log b_f)  +  sum_v (d_v - 1) sum b_v log b_v,  d_v the factors of v.
        """
        total = sum((value for _, value in self.graph.constants()), self.graph.zero)
        for index in self.used:
            factor = self.graph.factors[index]
            heard = [LogFactor((v,), self.to_factor[index, v]) for v in factor.scope]
            table = product((factor, *heard), factor.scope, self.graph.sizes, self.graph.zero).reshape(-1)
            belief = table.softmax(0)
            total = total + torch.where(belief > 0, belief * (factor.table.reshape(-1) - table.log_softmax(0)), 0).sum()
        for variable, belief in self.marginals().items():
            total = total + (len(self.around[variable]) - 1) * torch.special.xlogy(belief, belief).sum()
        return total
