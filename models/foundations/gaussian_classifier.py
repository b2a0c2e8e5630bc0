"""GaussianClassifier: a Gaussian for each class, and Bayes' rule."""

from ..mixtures.gaussian import MixtureOfGaussians
from .classifier import GenerativeClassifier

__all__ = ["GaussianClassifier"]


class GaussianClassifier(GenerativeClassifier):
    """y ~ Categorical(w), x ~ N(mean_y, covariance_y).

    With equal covariances the log odds of two classes are linear in x, else quadratic.

    Arguments:
        observed: D, entries of an example.
        classes: how many; labels are 0, ..., classes - 1.
        covariance: "diagonal" (independent columns, Gaussian naive Bayes), "spherical", "tied", "full", or "low-rank".
        floor: smallest variance along any axis, in squared data units.
        missing: whether x may have holes, marked by NaN; they are integrated out.

    Source: I. Bhattacharya (2025), The Foundations of Generative AI, 3.3.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x, y = torch.tensor([[-1.5], [-0.5], [0.7], [1.1]]), torch.tensor([0, 0, 1, 1])
        >>> program = dgm.learn(dgm.models.GaussianClassifier(1), x, y).program
        >>> program.decide(torch.tensor([[-2.0], [0.9]])).label
        tensor([0, 1])
        >>> dgm.sample(program, 4, given={"y": 1}, seed=0)["x"].shape
        torch.Size([4, 1])
    """

    mixture: MixtureOfGaussians

    def __init__(
        self,
        observed: int = 1,
        classes: int = 2,
        covariance: str = "diagonal",
        floor: float = 1e-6,
        missing: bool = False,
    ) -> None:
        super().__init__(MixtureOfGaussians(observed, classes, covariance, floor, missing=missing))
