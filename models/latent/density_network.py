"""DensityNetwork: a latent-variable program learned by the Monte Carlo likelihood, without an encoder."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.models.latent.networks import check_count, make_network
from ppl_dgm.nn import make_likelihood
from ppl_dgm.program import Answer, Program

__all__ = ["DensityNetwork"]


class DensityNetwork(Program):
    """z ~ N(0, I_L),  x ~ p(x | decoder(z)),  learned by

        log p(x) ~ log (1/K) sum_k p(x | z_k),   z_k ~ N(0, I),

    which is the importance-weighted bound whose guide is the prior itself: `guide` is that, and the learner `IWAE`, so that no other
    algorithm is needed. The average inside the logarithm is unbiased for p(x); its logarithm is low on average, by about half the
    variance of the weights over K, and so a lower bound in expectation that does not decrease in K. What x says about z
    makes that variance grow exponentially in L: with more than a few latent variables learn a `VAE` instead, whose encoder looks
    where x points.

    Arguments:
        observed, values, likelihood, floor, likelihood_options: as of `VAE`.
        latent: L, few.
        particles: K while learning.
        draws: K of score and posterior.
        hidden, depth, activation: of the decoder.
        decoder: a module from z [batch, L] to [batch, likelihood.features].

    Sites: `z` [L], `x` [D]. Posterior: weighted draws of the prior.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.

    Source: MacKay (1995), Bayesian neural networks and density networks; Tomczak 2024, section 8.1, eq. (8.5).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = DensityNetwork(observed=6, values=3, latent=2, hidden=8)
        >>> dgm.score(program, torch.zeros(3, 6), seed=0).kind
        'lower_bound'
    """

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        latent: int = 2,
        hidden: int = 64,
        likelihood: Any = "categorical",
        particles: int = 64,
        draws: int = 4096,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        floor: float | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latent = check_count(self.name, "latent", latent)
        self.particles = check_count(self.name, "particles", particles)
        self.draws = check_count(self.name, "draws", draws)
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        self.decoder = make_network(decoder, "decoder", latent, self.likelihood.features, hidden, depth, activation)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ N(0, I); x ~ likelihood(decoder(z))."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = self._draw_z()  # [batch, L]
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=observation)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ N(0, I), whatever x is."""
        with pyro.plate("data", len(x)):
            return self._draw_z()

    def _draw_z(self) -> Tensor:
        zeros = torch.zeros(self.latent, dtype=self.dtype, device=self.device)
        return pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))

    def start(self, x: Tensor) -> None:
        """Units of the columns, for likelihoods that have them."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)

    def default_method(self, task: str) -> Any:
        from ppl_dgm.inference.importance import Importance, ImportanceWeighted
        from ppl_dgm.inference.iwae import IWAE

        if task == "learn":
            return IWAE(particles=self.particles, epochs=120, batch_size=32, lr=2e-3, schedule="cosine", patience=25)
        return ImportanceWeighted(draws=self.draws) if task == "score" else Importance(draws=self.draws)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"draws of the prior, K = {self.draws}", passes=self.draws, depth=1),
            "infer": Answer("approximate", f"weighted draws of the prior, K = {self.draws}", self.draws, 1),
            "learn": Answer("lower_bound", f"Monte Carlo likelihood, K = {self.particles}"),
        }
