"""HybridVAE: a VAE of x and a classifier of x that share the encoder, p(x, y) = p(x) p(y | x)."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.conditions import Condition
from ppl_dgm.models.latent.vae import DRAWS, VAE, variational_method
from ppl_dgm.nn import mlp
from ppl_dgm.program import Answer
from ppl_dgm.tasks import evaluating

__all__ = ["HybridVAE"]


class HybridVAE(VAE):
    """The joint model of an example and its class,

        z ~ p(z),  x ~ p(x | decoder(z)),  y ~ Categorical(softmax(classifier(h(x)))),

    where h(x) are the numbers that the encoder gives for the posterior q(z | x). Learning maximises

        log p(y | x) + weight * E_q [ log p(x | z) + log p(z) - log q(z | x) ],

    over the labelled examples, and the second term alone over those without a label (-1). A weight of 1 is the bound on
    log p(x, y); as x has many dimensions and y one, a weight near 1 / D lets the class count. Such an objective is a
    compromise of two aims, and no distribution: `score` always answers for p(x, y) itself, with weight 1.

        learn(program, x, y)       score(program, x, y)      a bound on log p(x, y); of log p(x) where y is -1
        program.classify(x)        score(program, x)         a bound on log p(x)

    No x is drawn given y: y depends on x here (`ConditionalVAE` and `SemiSupervisedVAE` are the other way about).

    Arguments:
        observed, values, latent, hidden, likelihood, ...: as of `VAE`.
        classes: K; labels are 0, ..., K - 1.
        weight: lambda, at least 0; None is 1 / observed.

    Sites: `z`, `x`, and `y`, where it is drawn with x or given; `infer` is of z alone, and `classify` gives the exact p(y | x).

    Raises:
        ProgramError: parts that do not go together.
        DataError: a label that there is not.

    Source: Nalisnick et al. (2019), Hybrid models with deep and invertible features, for the weight; Tomczak 2024, 6.2 and 6.5.

    Example:
        >>> import ppl_dgm as dgm
        >>> program = HybridVAE(observed=64, classes=10, values=17)
        >>> {site: tuple(value.shape) for site, value in dgm.sample(program, 5, seed=0).items()}
        {'z': (5, 16), 'x': (5, 64), 'y': (5,)}
    """

    def __init__(
        self,
        observed: int,
        classes: int,
        values: int | None = None,
        latent: int = 16,
        hidden: int = 256,
        weight: float | None = None,
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
        super().__init__(
            observed, values, latent, hidden, likelihood, prior, posterior, encoder, decoder, depth, activation,
            encoder_dropout, decoder_dropout, floor, prior_options, posterior_options, likelihood_options,
        )  # fmt: skip
        if weight is not None and not weight >= 0:
            raise ProgramError(f"HybridVAE: weight must be at least 0, or None, but it is {weight!r}.")
        self.condition = Condition("HybridVAE", classes, missing=True)
        self.classes, self.weight = classes, 1 / observed if weight is None else weight
        self.classifier = mlp(self.posterior_of_z.features, classes, (hidden,) if depth else (), activation)

    def model(self, x: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> Tensor:  # type: ignore[override]
        """z ~ prior; x ~ likelihood(decoder(z)); y ~ Categorical(classifier(x))."""
        rows = n if x is None else len(x)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", rows):
            z = self.draw_z(rows)
            drawn = pyro.sample("x", self.likelihood(self.decode(z)), obs=observation)
            if x is None:
                pyro.sample("y", dist.Categorical(logits=self.logits(drawn)))
            elif y is not None:  # else p(y | x) is summed over all y, to one
                given_x = dist.Categorical(logits=self.logits(x))
                pyro.sample("y", given_x.mask(y >= 0), obs=y.clamp(min=0))
            return drawn

    def guide(self, x: Tensor, y: Tensor | None = None, n: int = 1) -> Tensor:  # type: ignore[override]
        """z ~ posterior(encoder(x)), amortised."""
        return super().guide(x)  # y says nothing of z that x has not said

    def logits(self, x: Tensor) -> Tensor:
        """log p(y | x) up to a constant, [batch, classes]."""
        return self.classifier(self.encoder(self.corruption(self.likelihood.scaled(x, self.dtype))))

    def penalty(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """What the weighted objective has beside weight times the negative bound: -(1 - weight) log p(y | x), averaged, []."""
        if y is None:
            return torch.zeros((), dtype=self.dtype, device=x.device)
        log_p = self.logits(x).log_softmax(-1)
        return -(1 - self.weight) * (log_p * self.condition.code(y)).sum() / len(x)

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """p(y | x), [batch, classes]."""
        with evaluating(self):
            return self.logits(x.to(self.device)).softmax(-1)

    def check_arguments(self, x: Tensor, y: Any = None, *rest: Any) -> tuple:
        """x, and where there are labels y, one for each."""
        return (x,) if y is None else (x, self.condition.checked(y, len(x), "y"), *rest)

    def default_method(self, task: str) -> Any:
        if task != "learn":
            return variational_method(task)
        from ppl_dgm.inference.penalised import PenalisedSVI

        return PenalisedSVI(**vars(variational_method("learn")), weight=self.weight)

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised Gaussian posterior of z (encoder)"),
            "learn": Answer("lower_bound", "SVI on the weighted bound and the labelled examples' classification"),
        }
