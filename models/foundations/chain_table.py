"""ChainTable: the full chain rule, with a table for every step given all steps before it."""

from .sequence import SequenceTables

__all__ = ["ChainTable"]


class ChainTable(SequenceTables):
    """p(x) = prod_t p(x_t | x_1, ..., x_{t-1}) without any assumption: V^T - 1 free parameters.

    It can be any distribution over the V^T sequences, and it needs a number for each of them: the cost, and the data
    needed, grow exponentially with T. More than 2^24 numbers are refused.

    Arguments:
        observed: T, the length of a sequence.
        values: V, each step is an integer from 0 to V - 1.
        pseudo_count: added to each count when learning; None leaves the choice to validation.

    Raises:
        ProgramError: the tables would be too large.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 3.2.2.

    Example:
        >>> import ppl_dgm as dgm
        >>> dgm.models.ChainTable(10, 2).free_count
        1023
        >>> dgm.models.ChainTable(64, 2)
        Traceback (most recent call last):
            ...
        ppl_dgm.errors.ProgramError: ChainTable: 64 steps of 2 values with order 63 need tables of about 10^19.6 numbers, ...
    """

    def __init__(self, observed: int, values: int, pseudo_count: float | None = 0.0) -> None:
        super().__init__(observed, values, observed - 1, False, pseudo_count)
