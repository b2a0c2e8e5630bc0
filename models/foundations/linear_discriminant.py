"""LinearDiscriminant: Gaussian classes that share one covariance."""

from typing import Any

import torch
from torch import Tensor

from .gaussian_classifier import GaussianClassifier

__all__ = ["LinearDiscriminant"]


class LinearDiscriminant(GaussianClassifier):
    """y ~ Categorical(w), x ~ N(mean_y, S), so that p(y | x) = softmax(x A^T + b): log odds are linear in x.

    Arguments:
        observed: D, entries of an example.
        classes: how many; labels are 0, ..., classes - 1.
        floor: smallest conditional variance, in squared data units.

    Source: R. Fisher (1936), The use of multiple measurements in taxonomic problems.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> y = torch.arange(90) % 3
        >>> x = torch.randn(90, 2, generator=torch.manual_seed(0)) + 4 * torch.stack([y == 1, y == 2], -1)
        >>> program = dgm.learn(dgm.models.LinearDiscriminant(2, 3), x, y).program
        >>> float((program.decide(x).label == y).float().mean()) > 0.95
        True
    """

    def __init__(self, observed: int = 2, classes: int = 2, floor: float = 1e-6) -> None:
        super().__init__(observed, classes, "tied", floor)

    @property
    def coefficients(self) -> tuple[Tensor, Tensor]:
        """A [classes, D] and b [classes] of p(y | x) = softmax(x A^T + b): A_y = S^-1 mean_y, b_y = log w_y - mean_y A_y / 2."""
        means, factor = self.mixture.means, self.mixture.scale_trils[0]
        weights = torch.cholesky_solve(means.mT, factor).mT
        return weights, self.mixture.weight_logits.log_softmax(-1) - 0.5 * (means * weights).sum(-1)

    @torch.no_grad()
    def fit_closed_form(
        self, train: Tensor, y: Any = None, *, valid: Tensor | None = None, unbiased: bool = False
    ) -> dict[str, Any]:
        """As for every classifier.

        Arguments:
            train, y, valid: [N, D], [N]; not needed.
            unbiased: the covariance divides by the examples less the classes, not by the examples (maximum likelihood).
        """
        notes = super().fit_closed_form(train, y, valid=valid)
        if unbiased:
            scale = len(train) / max(1, len(train) - self.classes)
            self.mixture.assign(self.mixture.weights, self.mixture.means, self.mixture.covariances[0] * scale)
        return notes
