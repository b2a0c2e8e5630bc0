"""FairVAE: a VAE whose code is to know nothing of a sensitive attribute."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.conditional import ConditionalVAE
from ppl_dgm.models.latent.vae import variational_method
from ppl_dgm.options import is_count

__all__ = ["FairVAE"]


class FairVAE(ConditionalVAE):
    """A VAE of x given a sensitive attribute s, with one prior p(z) for all s,

        z ~ p(z),   x ~ p(x | decoder(z, s)),   q(z | x, s) = posterior(encoder(x, s)).

    In the model z and s are independent, and the decoder is told s, so that z need not hold it. The posterior averaged over the
    data may still depend on s; learning subtracts the distance of its averages for each s,

        mmd * sum_s || m_s - m ||^2,    m_s the mean of psi(z) over examples with s, m over all,

    the squared maximum mean discrepancy of a Gaussian kernel, by random Fourier features psi. A predictor that is given z and
    not x is then about as good for every group as one that knows nothing of s; `s` is what fairness, or the invariance to a
    nuisance (a domain, a batch of measurements), is wanted for. This is the unsupervised model of the source.

        learn(program, x, s)     score(program, x, s)     a lower bound on log p(x | s)
        infer(program, x, s)     sample(program, n, given={"s": s})

    Arguments:
        observed, values, latent, hidden, likelihood, ...: as of `ConditionalVAE`.
        groups: number of values of s, 0, ..., groups - 1.
        mmd: weight of the discrepancy, nats for each example; 0 leaves it out. It is estimated from each batch, so that batches
            should be large.
        bandwidth: of the kernel exp(-|z - z'|^2 / (2 bandwidth^2)); None is sqrt(latent).
        directions: number of random Fourier features.

    Sites: `s` (where it is not given as an argument: any group alike), `z`, `x`.

    Raises:
        ProgramError: parts that do not go together.
        DataError: s is missing or does not fit.

    Source: Louizos, Swersky, Li, Welling and Zemel (2016), The variational fair autoencoder, 2.1 and 2.3; Rahimi and Recht
    (2007) for the features.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = FairVAE(observed=4, groups=2, likelihood="gaussian", latent=2, hidden=8)
        >>> dgm.score(program, torch.zeros(3, 4), torch.tensor([0, 1, 1]), seed=0).value.shape
        torch.Size([3])
    """

    told: ClassVar[str] = "s"
    directions: Tensor
    phases: Tensor

    def __init__(
        self,
        observed: int,
        groups: int = 2,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        mmd: float = 10.0,
        bandwidth: float | None = None,
        directions: int = 500,
        likelihood: Any = "categorical",
        prior: Any = None,
        posterior: Any = "gaussian",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.1,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        posterior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        if prior == "conditional":
            raise ProgramError("FairVAE: prior 'conditional' makes the code depend on s, which is what must not be.")
        super().__init__(
            observed, values, groups, None, latent, hidden, likelihood, prior, posterior, encoder, decoder, depth, activation,
            encoder_dropout, decoder_dropout, floor, prior_options, posterior_options, likelihood_options,
        )  # fmt: skip
        if not mmd >= 0:
            raise ProgramError(f"FairVAE: mmd must be at least 0, but it is {mmd!r}.")
        if bandwidth is not None and not bandwidth > 0:
            raise ProgramError(f"FairVAE: bandwidth must be positive, but it is {bandwidth!r}.")
        if not is_count(directions, 1):
            raise ProgramError(f"FairVAE: directions must be a whole number, at least 1, but it is {directions!r}.")
        self.mmd, self.bandwidth = mmd, math.sqrt(latent) if bandwidth is None else bandwidth
        self.register_buffer("directions", torch.randn(self.code, directions))
        self.register_buffer("phases", 2 * math.pi * torch.rand(directions))

    def discrepancy(self, z: Tensor, s: Tensor) -> Tensor:
        """sum_s || m_s - m ||^2 for codes z [batch, latent] of groups s [batch], [].

        With m_r the mean over all other groups it is sum_s (1 - share_s)^2 || m_s - m_r ||^2, whose squares are estimated without
        bias, by pairs of different examples; so it can be negative. A group of fewer than two examples does not count.
        """
        count = self.directions.shape[1]
        psi = math.sqrt(2 / count) * torch.cos(z.flatten(1) @ (self.directions / self.bandwidth) + self.phases)
        member = self.condition.code(s)  # [batch, groups]
        size, sums, own = member.sum(0), member.mT @ psi, member.mT @ psi.square().sum(-1)
        others, other_sums, other_own = len(z) - size, psi.sum(0) - sums, psi.square().sum() - own
        cross = (sums * other_sums).sum(-1) / (size * others).clamp(min=1)
        squared = _square_of_mean(sums, own, size) + _square_of_mean(other_sums, other_own, others) - 2 * cross
        enough = (size > 1) & (others > 1)
        return ((others / len(z)) ** 2 * squared * enough).sum()

    def penalty(self, x: Tensor, s: Tensor) -> Tensor:
        """mmd times the discrepancy of codes drawn for the batch, []."""
        q = self.encode_given(self.corruption(self.likelihood.scaled(x, self.dtype)), s)
        return self.mmd * self.discrepancy(q.rsample(), s)

    def default_method(self, task: str) -> Any:
        if task != "learn" or self.mmd == 0:
            return variational_method(task)
        from ppl_dgm.inference.penalised import PenalisedSVI

        return PenalisedSVI(**{**vars(variational_method("learn")), "batch_size": 128})


def _square_of_mean(total: Tensor, own: Tensor, size: Tensor) -> Tensor:
    """|| E psi ||^2 without bias from sums of psi [group, D] and of || psi ||^2 [group] over `size` examples."""
    return (total.square().sum(-1) - own) / (size * (size - 1)).clamp(min=1)
