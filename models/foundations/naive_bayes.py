"""NaiveBayes: a classifier whose columns are independent given the class."""

from collections.abc import Sequence

from ..mixtures.mixed import MixtureOfMixedColumns
from .classifier import GenerativeClassifier

__all__ = ["NaiveBayes"]


class NaiveBayes(GenerativeClassifier):
    """y ~ Categorical(w), x_d ~ p_d(x_d | y) independently, each column of its own kind.

    Arguments:
        columns: the kind of each column: "gaussian", "bernoulli", "poisson", or "categorical-V" with V values 0, ..., V - 1.
        classes: how many; labels are 0, ..., classes - 1.
        pseudo_count: added to the counts of each value of a Bernoulli, categorical or Poisson column; 1 is Laplace's rule.
        floor: smallest variance of a Gaussian column, in its squared units.
        missing: whether the table may have holes, marked by NaN; a hole leaves its column's factor out.

    Source: M. Maron (1961), Automatic indexing; P. Domingos and M. Pazzani (1997) on why it works where it is wrong.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.tensor([[0, 1.2], [0, 0.8], [1, -0.9], [1, -1.4]])
        >>> program = dgm.models.NaiveBayes(["bernoulli", "gaussian"])
        >>> dgm.learn(program, x, torch.tensor([0, 0, 1, 1])).program.decide(torch.tensor([[1, -1.0]])).label
        tensor([1])
    """

    mixture: MixtureOfMixedColumns

    def __init__(
        self,
        columns: Sequence[str] = ("gaussian", "gaussian", "bernoulli", "categorical-3"),
        classes: int = 2,
        pseudo_count: float = 1.0,
        floor: float = 1e-6,
        missing: bool = False,
    ) -> None:
        super().__init__(MixtureOfMixedColumns(columns, classes, pseudo_count, floor, missing))
        self.columns = list(columns)
