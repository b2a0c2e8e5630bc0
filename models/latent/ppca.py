"""ProbabilisticPCA: a linear map of Gaussian latents plus Gaussian noise; every answer is exact. PCA is its limit."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError

from .linear import LinearGaussian

__all__ = ["ProbabilisticPCA"]


class ProbabilisticPCA(LinearGaussian):
    """z ~ N(0, I_M), x = W z + b + e, e ~ N(0, s^2 I_D); so that, with B = W^T W + s^2 I_M,

        p(x) = N(b, W W^T + s^2 I_D),        p(z | x) = N(B^-1 W^T (x - b), s^2 B^-1).

    The guide is that posterior, so that one draw gives the ELBO without variance and equal to log p(x). Only
    M x M matrices are factorised. As s^2 goes to 0 the posterior mean becomes the projection of principal components; see
    `principal_components`.

    Arguments:
        observed: D, entries of an example.
        latent: M < D.
        floor: smallest noise variance s^2, in squared data units.
        missing: whether the data may have holes, marked by NaN; they are integrated out exactly by every verb, and EM learns
            from what is seen.

    Attributes:
        weight: W, [D, M].
        bias: b, [D].
        log_variance: log s^2, [].

    Raises:
        ProgramError: an argument out of range.

    Source: M. Tipping and C. Bishop (1999), Probabilistic principal component analysis; J. Tomczak (2024),
        Deep Generative Modeling, 5.2, whose equation (5.7) prints the covariance as s^-2 B.

    Example:
        >>> import ppl_dgm as dgm
        >>> digits = dgm.data.digits()
        >>> fit = dgm.learn(dgm.models.ProbabilisticPCA(64, 16), digits)
        >>> dgm.infer(fit.program, digits.test[:5]).exact["z"].mean.shape
        torch.Size([5, 16])
    """

    def __init__(self, observed: int, latent: int, floor: float = 1e-6, missing: bool = False) -> None:
        super().__init__(observed, latent, floor, missing)
        self.log_variance = nn.Parameter(torch.zeros(()))

    @property
    def variance(self) -> Tensor:
        """s^2, [], never below the floor."""
        return self.log_variance.exp().clamp_min(self.floor)

    @property
    def variances(self) -> Tensor:
        """s^2 for each entry, [D]."""
        return self.variance.expand(self.observed)

    def set_variances(self, variances: Tensor) -> None:
        """Take the noise variance, the same in each entry, [D]."""
        self.log_variance.copy_(variances.mean().clamp_min(self.floor).log())

    def _shared(self, variances: Tensor, count: Tensor | None) -> Tensor:
        weight = torch.ones_like(variances) if count is None else count
        return ((variances * weight).sum() / weight.sum()).expand(self.observed)

    def default_method(self, task: str) -> Any:
        """The closed form for `learn`; EM where entries may be missing."""
        if task != "learn":
            return None
        return "em" if self.allows_missing else "closed-form"

    @torch.no_grad()
    def principal_components(self) -> tuple[Tensor, Tensor]:
        """PCA, which the program becomes as s^2 goes to 0: W's columns rotated onto the axes of greatest variance.

        Returns:
            Orthonormal directions, [D, M], the first of greatest variance (each with its largest entry positive); and the
            variance along each that the program has, |w_j|^2 + s^2, [M]. The projection (x - b) @ directions is
            what p(z | x) tends to, up to the lengths of the columns of W.
        """
        directions, lengths, _ = torch.linalg.svd(self.weight, full_matrices=False)
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))  # [1, M]
        return directions * torch.where(largest < 0, -1.0, 1.0), lengths.square() + self.variance

    # -- learning --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_closed_form(self, train: Tensor, valid: Tensor | None = None, correction: int = 0) -> dict[str, Any]:
        """Maximum likelihood, from the eigenvalues Lambda and eigenvectors U of the covariance.

        b is the mean, s^2 the mean of the D - M smallest eigenvalues, W = U_M (Lambda_M - s^2 I)^(1/2).

        Arguments:
            train: [N, D], N at least 2.
            valid: not needed.
            correction: the covariance divides by N - correction; 0 is maximum likelihood, 1 what
                scikit-learn's `PCA` does.

        Returns:
            The share of the variance that the M directions explain.
        """
        if bool(train.isnan().any()):
            raise ProgramError("the closed form needs every entry, but some are missing; learn with method='em'.")
        if len(train) < 2:
            raise ProgramError(f"a covariance needs at least 2 examples, but there is {len(train)}.")
        x = train.to(self.dtype)
        bias = x.mean(0)
        _, singular, directions = torch.linalg.svd(x - bias, full_matrices=False)
        eigenvalues = torch.zeros_like(bias)  # [D]; with fewer examples than dimensions the rest are zero
        eigenvalues[: len(singular)] = singular.square() / (len(x) - correction)
        kept = min(self.latent, len(singular))
        variance = eigenvalues[self.latent :].mean().clamp_min(self.floor)
        lengths = (eigenvalues[:kept] - variance).clamp_min(0).sqrt()
        self.weight.zero_()
        self.weight[:, :kept] = directions[:kept].mT * lengths
        self.bias.copy_(bias)
        self.log_variance.copy_(variance.log())
        return {"explained_variance": float(eigenvalues[: self.latent].sum() / eigenvalues.sum())}
