"""MarkovChain: each step depends on the k steps before it."""

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError

from .sequence import SequenceTables

__all__ = ["MarkovChain"]


class MarkovChain(SequenceTables):
    """p(x) = p(x_1) prod_t p(x_t | x_{t-k}, ..., x_{t-1}).

    Homogeneous, it has (V - 1) sum_{m <= k} V^m free parameters, whatever T is: for k = 1, (V - 1) + V (V - 1).
    Otherwise every step has a table of its own.

    Arguments:
        observed: T, the length of a sequence.
        values: V, each step is an integer from 0 to V - 1.
        order: k.
        homogeneous: whether all steps from the (k + 1)-th on share one table.
        pseudo_count: added to each count when learning; None leaves the choice to validation.

    Raises:
        ProgramError: an argument out of range, or tables of more than 2^24 numbers.

    Source: A. Markov (1913); I. Bhattacharya (2025), The Foundations of Generative AI, 3.2.3.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> weather = torch.tensor([[0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]])
        >>> chain = dgm.learn(dgm.models.MarkovChain(6, 2), weather).program
        >>> [round(p, 3) for p in chain.transition[0].tolist()]
        [0.75, 0.25]
        >>> dgm.sample(chain, 2, temperature=0.5, given={"x_1": 1}, seed=0)["x"].shape
        torch.Size([2, 6])
    """

    def __init__(
        self, observed: int, values: int, order: int = 1, homogeneous: bool = True, pseudo_count: float | None = 0.0
    ) -> None:
        super().__init__(observed, values, order, homogeneous, pseudo_count)

    @property
    def initial(self) -> Tensor:
        """p(x_1), [V]."""
        return self.tables[0][0].softmax(-1)

    @property
    def transition(self) -> Tensor:
        """p(x_t | the k steps before) of the last steps, [V, ..., V] with k + 1 axes, the oldest step first."""
        return self.tables[-1].softmax(-1).reshape((self.values,) * (self.order + 1))

    @torch.no_grad()
    def assign(self, initial: Tensor, transition: Tensor) -> None:
        """Set the probabilities p(x_1) [V] and p(x_t | x_{t-1}) [V, V] of a homogeneous chain of order one."""
        self._first_order("assign")
        for table, value in zip(self.tables, (torch.as_tensor(initial)[None], torch.as_tensor(transition))):
            table.copy_(value.to(table).clamp_min(torch.finfo(table.dtype).tiny).log())

    @torch.no_grad()
    def stationary(self) -> Tensor:
        """The distribution that a step leaves as it is, pi P = pi, [V].

        Raises:
            ProgramError: the chain is not homogeneous of order one, or has several such distributions.
        """
        self._first_order("stationary")
        change = self.transition.double() - torch.eye(self.values, dtype=torch.float64, device=self.device)
        if int(torch.linalg.matrix_rank(change, tol=1e-9)) < self.values - 1:
            raise ProgramError(
                "stationary: the chain falls into parts that do not reach one another, each with a distribution of its own; "
                "learn it with pseudo_count=0.1 or so."
            )
        system = torch.cat([change.mT, torch.ones_like(change[:1])])  # pi (P - I) = 0 and sum pi = 1
        target = torch.zeros(self.values + 1, dtype=torch.float64, device=self.device)
        target[-1] = 1
        return torch.linalg.lstsq(system, target[:, None]).solution[:, 0].to(self.dtype)

    def _first_order(self, what: str) -> None:
        if self.order != 1 or not self.homogeneous:
            raise ProgramError(f"{what}: only for a homogeneous chain of order 1, not of order {self.order}.")

    @torch.no_grad()
    def tempered(self, temperature: float) -> "MarkovChain":
        """The law p(x)^(1 / temperature) / Z of whole sequences, which is a chain too, though not a homogeneous one.

        With b_T = 0 and b_t(context) = logsumexp_v [log p(v | context) / temperature + b_{t+1}(context, v)], its tables are
        proportional to exp(log p(v | context) / temperature + b_{t+1}).
        """
        if temperature <= 0:
            raise ProgramError(f"tempered: temperature must be positive, but it is {temperature!r}.")
        chain = MarkovChain(self.length, self.values, self.order, False).to(device=self.device, dtype=self.dtype)
        ahead = torch.zeros((), device=self.device, dtype=self.dtype)  # b_{t+1} of each context of step t + 1
        for t in range(self.length - 1, -1, -1):
            logits = self._table(t).log_softmax(-1) / temperature  # [V^m, V]
            contexts = self.values ** min(t + 1, self.order)
            after = torch.arange(logits.numel(), device=self.device) % contexts  # the oldest step falls out
            logits = logits + (ahead if t == self.length - 1 else ahead[after].reshape(logits.shape))
            ahead = logits.logsumexp(-1)
            chain.tables[t].copy_(logits - ahead[:, None])
        return chain
