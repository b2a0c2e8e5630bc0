"""DomainInvariantVAE: a code in three parts, of the domain, of the class and of the rest, so that the class is told in new domains."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.conditions import Condition
from ppl_dgm.models.latent.networks import check_count, check_weight, make_network
from ppl_dgm.models.latent.posteriors import GaussianPosterior
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.nn import make_likelihood, mlp
from ppl_dgm.program import Answer, Program
from ppl_dgm.tasks import evaluating

__all__ = ["DomainInvariantVAE"]

_CERTAIN = 1e4  # log odds of a label that is known: its component has all the weight, and no logarithm is infinite


class DomainInvariantVAE(Program):
    """Examples x of classes y from domains d (hospitals, cameras, batches), with one code for each cause,

        z_d ~ p(z_d | d),   z_y ~ p(z_y | y),   z_x ~ N(0, I),   x ~ p(x | decoder(z_d, z_x, z_y)),
        q(z | x) = q(z_d | x) q(z_x | x) q(z_y | x),  an encoder each.

    Priors given a label are Gaussians with learned means and scales, one for each label. Where a label is missing (-1) its prior
    is their mixture with equal weights, summed exactly, which bounds log p(x) more tightly than a sum under q(y | z_y). Two
    classifiers see one part of the code each, and learning adds for every known label

        - domain_weight log q(d | z_d) - class_weight log q(y | z_y),      z ~ q(z | x),

    a penalty, no part of the model. The encoders are given no label, so that an x from a domain that was never seen can be
    classified by its z_y, which has nothing to gain from what tells domains apart.

        learn(program, x, d, y)         score(program, x, d, y)     a lower bound on log p(x | d, y)
        program.classify(x)             score(program, x)           on log p(x), every label as likely
        infer(program, x)               sample(program, n, given={"d": 0, "y": 3})

    Arguments:
        observed, values, likelihood, floor, likelihood_options: as of `VAE`.
        domains, classes: how many; labels are 0, 1, ..., and -1 where there is none.
        latents: dimensions of z_d, z_x and z_y.
        domain_weight, class_weight: of the classifications, nats per nat; 0 leaves one out.
        hidden, depth, activation: of the encoders and the decoder.
        encoder_dropout, decoder_dropout: as of `VAE`.

    Sites: `d`, `y` (only where x is not given), `z_d`, `z_x`, `z_y`, `x`.

    Raises:
        ProgramError: parts that do not go together, or a size that is not positive.
        DataError: a label that there is not.

    Source: M. Ilse, J. Tomczak, C. Louizos and M. Welling (2020), DIVA: domain invariant variational autoencoders, eq. (1)-(4).

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = DomainInvariantVAE(4, domains=3, classes=2, likelihood="gaussian", latents=(2, 2, 2), hidden=8)
        >>> x, d, y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, -1, -1])
        >>> dgm.score(program, x, d, y, seed=0).kind, program.classify(x).shape
        ('lower_bound', torch.Size([6, 2]))
    """

    def __init__(
        self,
        observed: int,
        domains: int,
        classes: int,
        values: int | None = None,
        latents: Sequence[int] = (8, 8, 8),
        hidden: int = 256,
        domain_weight: float = 50.0,
        class_weight: float = 50.0,
        likelihood: Any = "categorical",
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.1,
        decoder_dropout: float = 0.1,
        floor: float | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(latents) != 3:
            raise ProgramError(f"{self.name}: latents are {latents!r}; give three sizes, of z_d, z_x and z_y.")
        sizes = [check_count(self.name, "latents", size) for size in latents]
        self.domain_weight = check_weight(self.name, "domain_weight", domain_weight)
        self.class_weight = check_weight(self.name, "class_weight", class_weight)
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support
        self.d, self.y = (Condition(self.name, count, missing=True) for count in (domains, classes))
        self.priors = nn.ModuleList([_LabelPrior(domains, sizes[0]), _LabelPrior(classes, sizes[2])])
        self.posteriors = nn.ModuleList([GaussianPosterior(size) for size in sizes])
        inputs: int = getattr(self.likelihood, "inputs", observed)
        shape = hidden, depth, activation
        self.corruption = nn.Dropout(encoder_dropout)
        self.encoders = nn.ModuleList(
            [make_network(None, "encoder", inputs, 2 * size, *shape, encoder_dropout) for size in sizes]
        )
        self.decoder = make_network(None, "decoder", sum(sizes), self.likelihood.features, *shape, decoder_dropout)
        self.classifiers = nn.ModuleList([mlp(sizes[0], domains, (), "relu"), mlp(sizes[2], classes, (), "relu")])
        self.register_buffer("zeros", torch.zeros(sizes[1]), persistent=False)

    zeros: Tensor

    def model(self, x: Tensor | None = None, d: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> Tensor:
        """d and y given; their codes from their priors, the rest's from N(0, I); x ~ likelihood(decoder(codes))."""
        rows = n if x is None else len(x)
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", rows):
            if x is None:
                d = pyro.sample("d", self.d.distribution()) if d is None else self.d.checked(d, rows, "d")
                y = pyro.sample("y", self.y.distribution()) if y is None else self.y.checked(y, rows, "y")
            z_d = pyro.sample("z_d", self.priors[0](d, self.d, rows))
            z_x = pyro.sample("z_x", dist.Normal(self.zeros, 1.0).to_event(1))
            z_y = pyro.sample("z_y", self.priors[1](y, self.y, rows))
            features = self.decoder(torch.cat([z_d, z_x, z_y], -1))
            return pyro.sample("x", self.likelihood(features), obs=observation)

    def guide(self, x: Tensor, d: Tensor | None = None, y: Tensor | None = None, n: int = 1) -> None:
        """Each part of the code from its own encoder, which sees x alone."""
        codes = self.encode(self.corruption(self.likelihood.scaled(x, self.dtype)))
        with pyro.plate("data", len(x)):
            for name, q in zip(("z_d", "z_x", "z_y"), codes, strict=True):
                pyro.sample(name, q)

    def encode(self, inputs: Tensor) -> list[Any]:
        """q(z_d | x), q(z_x | x) and q(z_y | x), batch shape [batch] each, for inputs [batch, D] on the encoders' scale."""
        return [posterior(encoder(inputs)) for posterior, encoder in zip(self.posteriors, self.encoders, strict=True)]

    def penalty(self, x: Tensor, d: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """The weighted -log q(d | z_d) - log q(y | z_y) of known labels, for each example of the batch, in nats, []."""
        q_d, _, q_y = self.encode(self.corruption(self.likelihood.scaled(x, self.dtype)))
        total = torch.zeros((), dtype=self.dtype, device=x.device)
        parts = ((self.domain_weight, self.d, d, q_d), (self.class_weight, self.y, y, q_y))
        for (weight, condition, label, q), classifier in zip(parts, self.classifiers, strict=True):
            if label is not None and weight > 0:
                log_q = classifier(q.rsample()).log_softmax(-1)
                known = condition.code(label)  # zero where a label is missing
                total = total - weight * (log_q * known).sum() / len(x)
        return total

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """q(y | z_y) at the mean of q(z_y | x), [batch, classes]."""
        return self._told(x, 2, 1)

    @torch.no_grad()
    def domain(self, x: Tensor) -> Tensor:
        """q(d | z_d) at the mean of q(z_d | x), [batch, domains]: of the domains that were learned."""
        return self._told(x, 0, 0)

    def _told(self, x: Tensor, part: int, classifier: int) -> Tensor:
        with evaluating(self):
            q = self.encode(self.likelihood.scaled(x.to(self.device), self.dtype))[part]
            return self.classifiers[classifier](q.mean).softmax(-1)

    def start(self, x: Tensor) -> None:
        """Units of the columns, where the likelihood has them."""
        self.likelihood.start(x)

    def check_arguments(self, x: Tensor, d: Any = None, y: Any = None, *rest: Any) -> tuple:
        """x, and a label of each kind for every row where there are any."""
        d = None if d is None else self.d.checked(d, len(x), "d")
        y = None if y is None else self.y.checked(y, len(x), "y")
        if y is None:
            return (x,) if d is None else (x, d)
        return (x, torch.full_like(y, -1) if d is None else d, y, *rest)

    def default_method(self, task: str) -> Any:
        if task != "learn":
            return variational_method(task)
        from ppl_dgm.inference.penalised import PenalisedSVI

        # no patience: it would hold out rows
        return PenalisedSVI(
            **{**vars(variational_method("learn", "trace")), "batch_size": 100, "epochs": 60, "patience": None}
        )

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "ancestral sampling, also given d and y"),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", passes=DRAWS, depth=1),
            "infer": Answer("approximate", "amortised posterior, three encoders"),
            "learn": Answer("lower_bound", "SVI on the evidence lower bound, and the known labels' classification"),
        }


class _LabelPrior(nn.Module):
    """p(z | label) = N(loc_label, diag s^2_label); for a missing label their mixture with equal weights.

    Arguments:
        labels: K.
        latent: dimensions of z.
    """

    def __init__(self, labels: int, latent: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(labels, latent))
        self.log_variance = nn.Parameter(torch.zeros(labels, latent))

    def forward(self, label: Tensor | None, condition: Condition, rows: int) -> Any:
        """Batch shape [rows], event shape [latent]; of labels that are all missing where `label` is None."""
        parts = dist.Normal(self.loc, (0.5 * self.log_variance.clamp(-14.0, 6.0)).exp()).to_event(1)
        weights = condition.zeros.expand(rows, -1) if label is None else _CERTAIN * condition.code(label)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), parts.expand((rows, len(self.loc))))
