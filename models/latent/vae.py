"""VAE: the variational auto-encoder with one level of latent variables, made of exchangeable parts."""

from typing import Any

import pyro
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.networks import make_network
from ppl_dgm.models.latent.parts import make_posterior, make_prior
from ppl_dgm.nn import make_likelihood
from ppl_dgm.program import Answer, Program

__all__ = ["DRAWS", "VAE", "variational_method"]

DRAWS = 512  # importance-weighted draws of the default score
_OTHER_SPACES = {"sphere", "categorical", "hyperbolic"}  # priors that are not over real vectors


class VAE(Program):
    """The variational auto-encoder,

        z ~ p(z),   x ~ p(x | decoder(z)),   q(z | x) = posterior(encoder(x)),

    whose four parts are exchanged by name or for modules of one's own. Unless told otherwise, p(z) = N(0, I) and
    q(z | x) = N(loc(x), diag exp(log_variance(x))).

    Arguments:
        observed: D, the number of observed dimensions.
        values: number of categories V of each dimension, for likelihoods of whole numbers 0 to V - 1.
        latent: dimensions of z.
        hidden: units of each hidden layer, encoder and decoder alike.
        likelihood: a name of `ppl_dgm.nn.LIKELIHOODS`: "categorical", "discretised-logistic" or "logistic-mixture" (entries
            0 to V - 1), "chained-logistic" or "autoregressive" (entries that see those before them), "bernoulli" (0 or 1),
            "gaussian" (real numbers, best standardised; one learned standard deviation for each dimension), "mixed"
            (columns of a table); or a module like those.
        prior: a name of `ppl_dgm.models.latent.priors.PRIORS` ("standard", "mixture-of-gaussians", "vamp", "flow", ...), a
            distribution over z, or a module; see `make_prior`. None is the posterior's usual one.
        posterior: a name of `ppl_dgm.models.latent.posteriors.POSTERIORS` ("gaussian", "full-gaussian", "householder",
            "inverse-autoregressive", "von-mises-fisher", ...), or a module; see `make_posterior`.
        encoder: a module from [batch, D], categories and bits mapped onto [-1, 1], to the features of the posterior
            [batch, posterior.features]; a multi-layer perceptron unless given.
        decoder: a module from z [batch, latent] to the features of the likelihood [batch, likelihood.features]; likewise.
        depth: hidden layers of encoder and decoder; 0 makes them linear.
        activation: of the hidden layers; see `ppl_dgm.nn.mlp`.
        encoder_dropout: probability of dropping an input or a hidden unit of the encoder while learning.
        decoder_dropout: probability of dropping a hidden unit of the decoder while learning.
        floor: the smallest scale of likelihoods that have one, in the units of x; None is their own default.
        prior_options, posterior_options, likelihood_options: of the named parts, {"components": 16} say.

    Sites: `z` [latent], `x` [D], and those of a prior with a story of its own. Score: a lower bound by importance weighting with
    512 draws. Posterior: the encoder's.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.

    Source: Kingma and Welling 2014; Rezende et al. 2014; Tomczak 2024, section 5.3, eq. (5.26)-(5.31), and 5.4.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> vae = VAE(observed=64, values=17, latent=16, prior="vamp", prior_options={"components": 10})
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
        likelihood: Any = "categorical",
        prior: Any = None,
        posterior: Any = "gaussian",
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.4,
        floor: float | None = None,
        prior_options: dict[str, Any] | None = None,
        posterior_options: dict[str, Any] | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.latent = latent
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        self.posterior_of_z = make_posterior(posterior, latent, posterior_options or {})
        # what the encoder sees of a row; categories of a table are several numbers each
        inputs: int = getattr(self.likelihood, "inputs", observed)
        usual = getattr(self.posterior_of_z, "prior", "standard")
        if isinstance(prior, str) and prior != usual and {prior, usual} & _OTHER_SPACES:
            raise ProgramError(
                f"VAE: prior {prior!r} and posterior {posterior!r} are over different spaces; the posterior's own is {usual!r}."
            )
        self.prior_of_z = make_prior(
            prior, latent, usual, inputs, self._prior_options(prior, usual, prior_options or {})
        )
        # discrete latent variables are several numbers each
        code: int = getattr(self.posterior_of_z, "code", latent)
        features: int = self.posterior_of_z.features
        self.corruption = nn.Dropout(encoder_dropout)
        shape = hidden, depth, activation
        self.encoder = make_network(encoder, "encoder", inputs, features, *shape, encoder_dropout)
        self.decoder = make_network(decoder, "decoder", code, self.likelihood.features, *shape, decoder_dropout)
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ prior; x ~ likelihood(decoder(z))."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            z = self.draw_z(n if x is None else len(x))  # [batch, latent]
            return pyro.sample("x", self.likelihood(self.decode(z)), obs=observation)  # [batch, D]

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ posterior(encoder(x)), amortised."""
        q = self.encode(self.corruption(self.likelihood.scaled(x, self.dtype)))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", q)
            if hasattr(self.prior_of_z, "guide"):
                self.prior_of_z.guide(z)
            return z

    def draw_z(self, n: int) -> Tensor:
        """The statement z ~ prior, inside the plate of n examples; a prior with latent sites of its own draws them first."""
        if hasattr(self.prior_of_z, "model"):
            return self.prior_of_z.model(n)
        return pyro.sample("z", self.prior_of_z.distribution(self.encode))

    def encode(self, inputs: Tensor) -> Any:
        """q(z | x), batch shape [batch], for inputs [batch, D] on the encoder's scale."""
        return self.posterior_of_z(self.encoder(inputs))

    def decode(self, z: Tensor) -> Tensor:
        """Features of the likelihood, [batch, features], for z [batch, latent]."""
        return self.decoder(z.flatten(1))

    def start(self, x: Tensor) -> None:
        """Where learning begins: units of the columns, and pseudo-inputs of the prior at rows of the training data."""
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)
        if hasattr(self.prior_of_z, "start"):
            self.prior_of_z.start(self.likelihood.scaled(x, self.dtype))

    def _prior_options(self, prior: Any, usual: str, options: dict[str, Any]) -> dict[str, Any]:
        """The options of the prior, with those that the posterior's usual one takes from the posterior."""
        if prior is None or prior == usual:
            return {**getattr(self.posterior_of_z, "prior_options", {}), **options}
        return options

    def default_method(self, task: str) -> Any:
        # the divergence from a prior that draws sites of its own has no closed form
        return variational_method(task, "trace" if hasattr(self.prior_of_z, "model") else "mean_field")

    def answers(self) -> dict[str, Answer]:
        how = f"importance weighting, K = {DRAWS}" + getattr(self.prior_of_z, "caveat", "")
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", how, passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised posterior (encoder)"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound"),
        }


def variational_method(task: str, elbo: str = "mean_field") -> Any:
    """The usual learner and score of programs with an amortised guide: the ELBO with a slow KL warm-up, importance weighting."""
    if task == "score":
        from ppl_dgm.inference.importance import ImportanceWeighted

        return ImportanceWeighted(draws=DRAWS)
    if task == "learn":
        from ppl_dgm.inference.svi import SVI

        # chosen on the validation split of the digits: averaged weights and a slow KL warm-up count
        return SVI(
            elbo=elbo,
            epochs=120,
            batch_size=32,
            lr=2e-3,
            schedule="cosine",
            average=0.99,
            patience=25,
            kl_weight=lambda epoch: min(1.0, epoch / 70),
        )
    return None
