"""FactorAnalysis: linear Gaussian latents, with noise of its own in each column; exact but for learning, which climbs."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.program import Answer

from .linear import LinearGaussian

__all__ = ["FactorAnalysis"]


class FactorAnalysis(LinearGaussian):
    """z ~ N(0, I_M), x = W z + b + e, e ~ N(0, diag(v)); so that p(x) = N(b, W W^T + diag(v)).

    The factors explain what columns have in common, v_d what column d has alone (its uniqueness). Unlike probabilistic PCA the
    answer does not depend on the columns' units: rescaling a column rescales its row of W and its v_d, and nothing else. W
    is known up to a rotation of the latents.

    The likelihood may be greatest where some v_d is zero (a Heywood case): the column is then a factor. The floor keeps
    v_d positive; `heywood` names the columns that have come down to it.

    Arguments:
        observed: D, entries of an example.
        latent: M < D.
        floor: smallest noise variance v_d, in squared data units.
        missing: whether the data may have holes, marked by NaN; they are integrated out exactly by every verb, and EM learns
            from what is seen.

    Attributes:
        weight: W, the loadings, [D, M].
        bias: b, [D].
        log_variances: log v, [D].

    Raises:
        ProgramError: an argument out of range.

    Source: D. Rubin and D. Thayer (1982), EM algorithms for ML factor analysis; C. Liu and D. Rubin (1998), Maximum
        likelihood estimation of factor analysis using the ECME algorithm.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> x = torch.randn(200, 1) * torch.tensor([1.0, 2.0, -1.0]) + torch.randn(200, 3)
        >>> fit = dgm.learn(dgm.models.FactorAnalysis(3, 1), x, seed=0)
        >>> fit.program.communalities.shape
        torch.Size([3])
    """

    def __init__(self, observed: int, latent: int, floor: float = 1e-6, missing: bool = False) -> None:
        super().__init__(observed, latent, floor, missing)
        self.log_variances = nn.Parameter(torch.zeros(observed))

    @property
    def variances(self) -> Tensor:
        """v, [D], never below the floor."""
        return self.log_variances.exp().clamp_min(self.floor)

    def set_variances(self, variances: Tensor) -> None:
        """Take noise variances, [D]."""
        self.log_variances.copy_(variances.clamp_min(self.floor).log())

    @property
    def communalities(self) -> Tensor:
        """The share of each column's variance that the factors explain, [D]."""
        shared = self.weight.square().sum(-1)
        return shared / (shared + self.variances)

    @property
    def heywood(self) -> list[int]:
        """Columns whose noise variance has come down to the floor (within one per cent)."""
        return (self.variances <= 1.01 * self.floor).nonzero().flatten().tolist()

    def _complete_step(self, x: Tensor) -> None:
        """W of greatest likelihood given v, from the eigenvectors U of V^-1/2 S V^-1/2 with S the covariance of x:
        W = V^1/2 U (Lambda - I)^(1/2); then EM's step in v, which at this W is diag(S - W W^T). Far fewer steps than EM's own
        in W and v (C. Liu and D. Rubin 1998)."""
        self.bias.copy_(x.mean(0))
        centred, deviation = x - self.bias, self.variances.sqrt()
        scaled = centred / deviation
        eigenvalues, vectors = torch.linalg.eigh(scaled.mT @ scaled / len(x))  # ascending
        lengths = (eigenvalues[-self.latent :] - 1).clamp_min(0).sqrt()
        weight = deviation[:, None] * vectors[:, -self.latent :] * lengths
        self.weight.copy_(weight)
        self.set_variances(centred.square().mean(0) - weight.square().sum(-1))

    def default_method(self, task: str) -> Any:
        """EM with small steps to the end for `learn`: it is slow near the top, where a column's noise is small."""
        if task != "learn":
            return None
        from ppl_dgm.inference.em import EM

        return EM(steps=3000, tolerance=1e-7)

    def answers(self) -> dict[str, Answer]:
        return {**super().answers(), "learn": Answer("exact", "EM to maximum likelihood")}
