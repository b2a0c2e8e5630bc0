"""IIDSequence: steps drawn independently from one distribution."""

from torch import Tensor

from .sequence import SequenceTables

__all__ = ["IIDSequence"]


class IIDSequence(SequenceTables):
    """p(x) = prod_t p(x_t), one categorical distribution for all steps; the order of the steps says nothing.

    Arguments:
        observed: T, the length of a sequence.
        values: V, each step is an integer from 0 to V - 1.
        pseudo_count: added to each count when learning; None leaves the choice to validation.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 3.2.1.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 1]])
        >>> fit = dgm.learn(dgm.models.IIDSequence(4, 2, pseudo_count=0.0), x)
        >>> [round(p, 3) for p in fit.program.probabilities.tolist()]
        [0.375, 0.625]
    """

    def __init__(self, observed: int, values: int, pseudo_count: float | None = 0.0) -> None:
        super().__init__(observed, values, 0, True, pseudo_count)

    @property
    def probabilities(self) -> Tensor:
        """Of the values, [V]."""
        return self.tables[0][0].softmax(-1)
