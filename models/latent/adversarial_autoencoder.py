"""AdversarialAutoencoder: a VAE whose codes are moved onto the prior by a game instead of a divergence."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.vae import DRAWS, VAE, variational_method
from ppl_dgm.nn import mlp
from ppl_dgm.program import Answer

__all__ = ["AdversarialAutoencoder"]

_DRAWS = 1000  # of the default score of a deterministic encoder


class AdversarialAutoencoder(VAE):
    """The program of `VAE`, learned by reconstructions and a discriminator D of codes,

        z ~ p(z),   x ~ p(x | decoder(z)),
        minimise  E_q[ -log p(x | z) ] + weight D-game( q(z) against p(z) ),     q(z) = mean_n q(z | x_n),

    so that all codes together, the aggregated posterior, get the law of the prior, which need only be drawn from. No single q(z | x)
    is held to the prior, as the KL divergence of a VAE does, and the objective is no bound on log p(x). The score is one
    nevertheless: it weights draws of q(z | x), whatever q was learned by.

    Arguments:
        deterministic: the code is the mean of q(z | x), while learning too. Then there is no density q to weight draws with: the score
            is an estimate by draws of the prior, and the posterior is sampled.
        prior: as of `VAE`, but without parameters to learn, which the game does not reach: "standard", "sphere", or a distribution
            of one's own.
        judge_hidden: units of each of the two hidden layers of D.
        discriminator: a module from codes [batch, latent] to log odds [batch, 1], instead of that.
        Others: as of `VAE`.

    Sites: `z` [latent], `x` [D]. Score: a lower bound by importance weighting with 512 draws; for a deterministic encoder an estimate
    by simple Monte Carlo with 1000.

    Raises:
        ProgramError: parts that do not go together.

    Source: Makhzani, Shlens, Jaitly, Goodfellow and Frey (2016), Adversarial autoencoders.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = AdversarialAutoencoder(observed=6, values=3, latent=2, hidden=8)
        >>> fit = dgm.learn(program, torch.randint(0, 3, (40, 6)), method=dgm.Adversarial(epochs=2), seed=0)
        >>> list(fit.history)
        ['epoch', 'objective', 'lr', 'discriminator', 'seconds']
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = None,
        posterior: Any = "gaussian",
        deterministic: bool = False,
        judge_hidden: int = 128,
        discriminator: nn.Module | None = None,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.0,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        posterior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            observed, values, latent, hidden, likelihood, prior, posterior, encoder, decoder, depth, activation,
            encoder_dropout, decoder_dropout, floor, prior_options, posterior_options, likelihood_options,
        )  # fmt: skip
        self._check_prior(prior)
        self.deterministic = deterministic
        if deterministic:
            if posterior != "gaussian":
                raise ProgramError(
                    f"{self.name}: a deterministic encoder gives the mean of posterior 'gaussian', not of {posterior!r}."
                )
            self.guide = None  # type: ignore[assignment]
        code: int = getattr(self.posterior_of_z, "code", latent)
        self.discriminator = mlp(code, 1, (judge_hidden, judge_hidden)) if discriminator is None else discriminator

    def _check_prior(self, prior: Any) -> None:
        learned = any(p.requires_grad for p in self.prior_of_z.parameters())
        if learned or self.prior_of_z.needs_encoder or not hasattr(self.prior_of_z, "distribution"):
            raise ProgramError(
                f"{self.name}: the prior {prior!r} has parameters or sites of its own, which the game does not learn; choose "
                "'standard', 'sphere', or a distribution."
            )

    def play(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of the prior and codes of x, both [batch, latent], and -log p(x | code), [batch]."""
        q = self.encode(self.corruption(self.likelihood.scaled(x, self.dtype)))
        z = q.mean if self.deterministic else q.rsample()
        loss = -self.likelihood(self.decode(z)).log_prob(self.likelihood.observation(x, self.dtype))
        with torch.no_grad():
            wanted = self.prior_of_z.distribution().sample(torch.Size([len(x)]))
        return wanted.flatten(1), z.flatten(1), loss

    def default_method(self, task: str) -> Any:
        if task == "learn":
            from ppl_dgm.inference.adversarial import Adversarial

            return Adversarial(epochs=120, lr=1e-3, schedule="cosine", weight=10.0, gradient_penalty=1.0)
        if task == "score" and self.deterministic:
            from ppl_dgm.inference.importance import SimpleMonteCarlo

            return SimpleMonteCarlo(draws=_DRAWS)
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        learned = Answer("approximate", "reconstructions, and a game of codes against the prior")
        if self.deterministic:
            return {
                "sample": Answer("exact", "ancestral sampling"),
                "score": Answer("estimate", f"simple Monte Carlo, K = {_DRAWS}", passes=_DRAWS, depth=1),
                "infer": Answer("asymptotic", "NUTS", passes=None, depth=None),
                "learn": learned,
            }
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised posterior (encoder)"),
            "learn": learned,
        }
