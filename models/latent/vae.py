"""VAE: the variational auto-encoder with one level of Gaussian latent variables."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.nn import Likelihood, mlp
from ppl_dgm.program import Answer, Program

__all__ = ["DRAWS", "VAE", "variational_method"]

DRAWS = 512  # importance-weighted draws of the default score


class VAE(Program):
    """The variational auto-encoder,

        z ~ N(0, I),   x ~ p(x | decoder(z)),   q(z | x) = N(loc(x), diag exp(log_variance(x))).

    Arguments:
        observed: D, the number of observed dimensions.
        values: number of categories V of each dimension, for the categorical likelihood.
        latent: dimensions of z.
        hidden: units of each hidden layer, encoder and decoder alike.
        likelihood: "categorical" (entries 0 to V - 1), "bernoulli" (0 or 1) or "gaussian" (real numbers, best
            standardised; one learned standard deviation for each dimension).
        depth: hidden layers of encoder and decoder; 0 makes them linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        encoder_dropout: probability of dropping an input or a hidden unit of the encoder while learning.
        decoder_dropout: probability of dropping a hidden unit of the decoder while learning.
        floor: the smallest standard deviation of the gaussian likelihood, in the units of x.

    Sites: `z` [latent], `x` [D]. Score: a lower bound by importance weighting with 512 draws. Posterior: the
    encoder's.

    Raises:
        ProgramError: likelihood and values do not go together, or a size is not positive.

    Source: Kingma and Welling 2014; Rezende et al. 2014; Tomczak 2024, section 5.3, eq. (5.26)-(5.31).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> vae = VAE(observed=64, values=17, latent=16)
        >>> dgm.sample(vae, 5, seed=0)["x"].shape
        torch.Size([5, 64])
        >>> dgm.score(vae, torch.zeros(3, 64), seed=0).kind
        'lower_bound'
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        likelihood: str = "categorical",
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.4,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ProgramError(f"VAE: depth is {depth!r}; give the number of hidden layers, 0 or more.")
        layers = (hidden,) * depth
        self.latent = latent
        self.likelihood = Likelihood(likelihood, observed, values, floor)
        self.corruption = nn.Dropout(encoder_dropout)
        self.encoder = mlp(observed, 2 * latent, layers, activation, encoder_dropout)
        self.decoder = mlp(latent, self.likelihood.features, layers, activation, decoder_dropout)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ N(0, I); x ~ likelihood(decoder(z))."""
        zero = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = pyro.sample("z", dist.Normal(zero, 1.0).to_event(1))  # [batch, latent]
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ N(encoder(x)), the amortised posterior."""
        seen = self.corruption(self.likelihood.scaled(x, self.dtype))
        loc, log_variance = self.encoder(seen).chunk(2, -1)  # [batch, latent] each
        # the clamp keeps densities finite, far outside of what a trained encoder says
        scale = (0.5 * log_variance.clamp(-14.0, 6.0)).exp()
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised Gaussian posterior (encoder)"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound"),
        }


def variational_method(task: str) -> Any:
    """The usual learner and score of programs with an amortised guide: the ELBO with a slow KL warm-up, importance weighting."""
    if task == "score":
        from ppl_dgm.inference.importance import ImportanceWeighted

        return ImportanceWeighted(draws=DRAWS)
    if task == "learn":
        from ppl_dgm.inference.svi import SVI

        # chosen on the validation split of the digits: averaged weights and a slow KL warm-up count
        return SVI(
            elbo="mean_field",
            epochs=120,
            batch_size=32,
            lr=2e-3,
            schedule="cosine",
            average=0.99,
            patience=25,
            kl_weight=lambda epoch: min(1.0, epoch / 70),
        )
    return None
