"""QuadraticDiscriminant: a Gaussian with a full covariance for each class."""

from typing import Any

import torch
from torch import Tensor

from .gaussian_classifier import GaussianClassifier

__all__ = ["QuadraticDiscriminant"]


class QuadraticDiscriminant(GaussianClassifier):
    """y ~ Categorical(w), x ~ N(mean_y, S_y); the boundary between two classes is a quadric.

    Arguments:
        observed: D, entries of an example.
        classes: how many; labels are 0, ..., classes - 1.
        floor: smallest conditional variance, in squared data units.

    Source: R. Fisher (1936); T. Hastie, R. Tibshirani and J. Friedman (2009), The Elements of Statistical Learning, 4.3.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x, y = torch.randn(100, 2, generator=torch.manual_seed(0)), torch.arange(100) % 2
        >>> method = dgm.ClosedForm({"unbiased": True})
        >>> program = dgm.learn(dgm.models.QuadraticDiscriminant(2), x * (1 + y[:, None]), y, method=method).program
        >>> program.decide(torch.tensor([[0.1, 0.0], [4.0, 4.0]])).label
        tensor([0, 1])
    """

    def __init__(self, observed: int = 2, classes: int = 2, floor: float = 1e-6) -> None:
        super().__init__(observed, classes, "full", floor)

    @torch.no_grad()
    def fit_closed_form(
        self, train: Tensor, y: Any = None, *, valid: Tensor | None = None, unbiased: bool = False
    ) -> dict[str, Any]:
        """As for every classifier.

        Arguments:
            train, y, valid: [N, D], [N]; not needed.
            unbiased: each covariance divides by its class's count less one, not by the count (maximum likelihood).
        """
        notes = super().fit_closed_form(train, y, valid=valid)
        if unbiased:
            counts = torch.tensor(notes["examples_of_class"], device=self.device, dtype=self.dtype)
            scale = (counts / (counts - 1).clamp_min(1))[:, None, None]
            self.mixture.assign(self.mixture.weights, self.mixture.means, self.mixture.covariances * scale)
        return notes
