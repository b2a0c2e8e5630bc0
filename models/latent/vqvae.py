"""VQVAE: an auto-encoder whose codes are a few entries of a learned codebook."""

import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.foundations.parts import Law, apart, as_part, joint_kind, shape_of
from ppl_dgm.models.latent.networks import check_count, check_weight, make_network
from ppl_dgm.nn import make_likelihood
from ppl_dgm.program import Answer, Program
from ppl_dgm.results import Score
from ppl_dgm.tasks import evaluating

__all__ = ["VQVAE"]

_ROWS = 4096  # rows that are encoded at once
_PRIORS = ("uniform", "categorical", "markov", "mixture")
_EMPTY = 1e-5  # average count below which an entry stays where it is


class VQVAE(Program):
    """A code of P entries of a codebook e_1, ..., e_K of vectors of E numbers,

        k ~ p(k),   x ~ p(x | decoder(e_{k_1}, ..., e_{k_P})),   k_p(x) = argmin_k |encoder(x)_p - e_k|^2.

    Since k is discrete and q(k | x) a point mass, log q = 0 there and

        log p(x | k(x)) + log p(k(x))  <=  log sum_k p(x | k) p(k) = log p(x):

    the score is that number itself, a lower bound without Monte Carlo error. It is loose by -log p(k(x) | x).

    Learning has two stages. First, p(k) uniform, the networks minimise

        -log p(x | z) + sum_p |sg[encoder(x)_p] - e_{k_p}|^2 + commitment sum_p |encoder(x)_p - sg[e_{k_p}]|^2,

    where sg stops the gradient and z is e_{k(x)} with the gradient passed straight through to encoder(x). The middle term is
    replaced by moving averages where `average` is given. Then p(k) is fitted to the codes of the training rows, which alone can
    only raise the bound.

    Arguments:
        observed, values, likelihood, floor, likelihood_options: as of `VAE`.
        positions: P.
        codebook: K, at least 2.
        code_size: E.
        prior: of the codes: "categorical" (each position its own probabilities), "markov" (each given the one before), "mixture" (of
            categoricals, `components` of them), "uniform" (nothing to fit), or a program over P whole numbers from 0 to K - 1 with a
            `log_density`.
        commitment: weight of the last term.
        average: decay of the moving averages that entries follow; None learns the codebook by gradient.
        restart: an entry that is used less often than so many times a step on average moves to the encoder's output of some row;
            0 never. Only with `average`.
        components: of the prior "mixture".
        hidden, depth, activation, encoder_dropout, decoder_dropout: of both networks.
        encoder, decoder: modules from [batch, D] to [batch, P E] and from there to [batch, likelihood.features].

    Sites: `k` [P], whole numbers, and `x` [D].

    Attributes:
        vectors: the codebook, [K, E].

    Raises:
        ProgramError: parts that do not go together, or an option out of range.

    Source: van den Oord, Vinyals and Kavukcuoglu (2017), Neural discrete representation learning; restarts: Dhariwal et al. (2020),
    Jukebox.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = VQVAE(observed=6, values=3, positions=2, codebook=4, code_size=3, hidden=8)
        >>> dgm.score(program, torch.zeros(3, 6)).kind, program.indices(torch.zeros(3, 6)).shape
        ('lower_bound', torch.Size([3, 2]))
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        observed: int,
        values: int | None = None,
        positions: int = 8,
        codebook: int = 64,
        code_size: int = 8,
        hidden: int = 256,
        likelihood: Any = "categorical",
        prior: Any = "categorical",
        commitment: float = 0.25,
        average: float | None = 0.95,
        restart: float = 0.05,
        components: int = 16,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        depth: int = 2,
        activation: str = "leaky_relu",
        encoder_dropout: float = 0.0,
        decoder_dropout: float = 0.0,
        floor: float | None = None,
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.positions = check_count(self.name, "positions", positions)
        self.codebook = check_count(self.name, "codebook", codebook, 2)
        self.code_size = check_count(self.name, "code_size", code_size)
        self.commitment = check_weight(self.name, "commitment", commitment)
        self.restart = check_weight(self.name, "restart", restart)
        if average is not None:
            check_weight(self.name, "average", average, lambda decay: 0 < decay < 1)
        self.average = average
        self.likelihood = make_likelihood(likelihood, observed, values, floor, likelihood_options or {})
        inputs: int = getattr(self.likelihood, "inputs", observed)
        width = positions * code_size
        self.encoder = make_network(encoder, "encoder", inputs, width, hidden, depth, activation, encoder_dropout)
        self.decoder = make_network(
            decoder, "decoder", width, self.likelihood.features, hidden, depth, activation, decoder_dropout
        )
        vectors = torch.randn(codebook, code_size)
        if average is None:
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("sums", vectors.clone())
        self.register_buffer("counts", torch.ones(codebook))  # moving averages of how often each is used in a step
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.prior, self.learns_prior = self._prior(prior, components), prior != "uniform"
        self.observed, self.values, self.support = observed, self.likelihood.values, self.likelihood.support

    def _prior(self, prior: Any, components: int) -> Program:
        from ppl_dgm.models.foundations.markov import MarkovChain
        from ppl_dgm.models.mixtures.categorical import MixtureOfCategoricals

        size, count = self.positions, self.codebook
        if isinstance(prior, str):
            if prior not in _PRIORS:
                raise ProgramError(
                    f"{self.name}: prior {prior!r} is unknown; choose {', '.join(_PRIORS)}, or give a program."
                )
            if prior == "mixture":
                return MixtureOfCategoricals(size, count, components)
            order = min(1, size - 1) if prior == "markov" else 0
            return MarkovChain(size, count, order, homogeneous=False, pseudo_count=None)
        part = as_part(prior)
        if shape_of(part) != (size,) or part.values != count:
            raise ProgramError(
                f"{self.name}: the prior is over examples of shape {shape_of(part)} with {part.values} values, but a code has "
                f"shape ({size},) with {count}."
            )
        return part

    # -- the story -------------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """k ~ the prior of codes; x ~ likelihood(decoder(codebook[k]))."""
        observation = self.likelihood.observation(x, self.dtype)
        with pyro.plate("data", n if x is None else len(x)):
            k = pyro.sample("k", Law(self.prior))  # [batch, P]
            return pyro.sample("x", self.decode(k), obs=observation)

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """k is the nearest code."""
        nearest = self.indices(x)
        with pyro.plate("data", len(x)):
            return pyro.sample("k", dist.Delta(nearest, event_dim=1))

    def indices(self, x: Tensor) -> Tensor:
        """k(x), the nearest entries of the codebook, whole numbers [batch, P], for x [batch, D]."""
        return self._nearest(self._encoded(x))

    def decode(self, k: Tensor) -> Any:
        """p(x | k), batch shape [batch], for k [batch, P]."""
        return self.likelihood(self.decoder(self.vectors[k.long()].flatten(-2)))

    def reconstruct(self, x: Tensor) -> Any:
        """p(x' | k(x)): batch shape [batch], event shape [D]."""
        return self.decode(self.indices(x))

    def _encoded(self, x: Tensor) -> Tensor:
        out = self.encoder(self.likelihood.scaled(x, self.dtype))
        return out.unflatten(-1, (self.positions, self.code_size))  # [batch, P, E]

    def _nearest(self, outputs: Tensor) -> Tensor:
        with torch.no_grad():
            # |o - e|^2 without |o|^2, which is the same for all e
            return (self.vectors.square().sum(-1) - 2 * outputs @ self.vectors.mT).argmin(-1)

    def log_density(self, x: Tensor) -> Score:
        """log p(x | k(x)) + log p(k(x)), in nats, [batch]: a lower bound on log p(x), without Monte Carlo error."""
        values, kinds = [], []
        for rows in x.split(_ROWS):
            k = self.indices(rows)
            prior = self.prior.log_density(k)
            given = self.decode(k).log_prob(self.likelihood.observation(rows, self.dtype))
            values.append(given + prior.value.to(given))
            kinds.append(prior)
        joint_kind([*kinds, Score(values[0], "lower_bound")])  # an unnormalised prior leaves no bound
        value = torch.cat(values)
        return Score(value, "lower_bound", torch.zeros_like(value), "one code of positive probability, the nearest")

    @torch.no_grad()
    def perplexity(self, x: Tensor) -> float:
        """exp of the entropy of how often the entries are used for x [N, D], over all positions: from 1 to K."""
        used = torch.bincount(self._all_indices(x).flatten(), minlength=self.codebook)
        return _perplexity(used.to(self.dtype))

    # -- learning --------------------------------------------------------------------------------------------

    def autoencoding_loss(self, x: Tensor) -> Tensor:
        """What the first stage of learning minimises for each example, in nats, [batch]; moves the averages while learning."""
        outputs = self._encoded(x)
        k = self._nearest(outputs)
        nearest = self.vectors[k]  # [batch, P, E]
        straight = outputs + (nearest - outputs).detach()
        given = self.likelihood(self.decoder(straight.flatten(-2)))
        loss = -given.log_prob(self.likelihood.observation(x, self.dtype))
        loss = loss + self.commitment * (outputs - nearest.detach()).square().sum((-2, -1))
        if self.average is None:
            loss = loss + (outputs.detach() - nearest).square().sum((-2, -1))
        if self.training:
            self._move(outputs.detach().flatten(0, -2), k.flatten())
        return loss

    @torch.no_grad()
    def _move(self, outputs: Tensor, k: Tensor) -> None:
        """Moving averages of how often each entry is used, and of what it is used for; outputs [n, E], k [n]."""
        decay = 0.95 if self.average is None else self.average
        entries = torch.arange(self.codebook, device=k.device)
        used = (k.unsqueeze(-1) == entries).to(outputs.dtype)  # [n, K]
        self.counts.lerp_(used.sum(0), 1 - decay)
        if self.average is None:
            return
        self.sums.lerp_(used.mT @ outputs, 1 - decay)
        if self.restart:
            dead = self.counts < self.restart
            other = outputs[torch.randint(len(outputs), (self.codebook,), device=outputs.device)]  # [K, E]
            self.sums.copy_(torch.where(dead.unsqueeze(-1), other, self.sums))
            self.counts.copy_(torch.where(dead, torch.ones_like(self.counts), self.counts))
        moved = self.sums / self.counts.clamp_min(_EMPTY).unsqueeze(-1)
        self.vectors.copy_(torch.where((self.counts > _EMPTY).unsqueeze(-1), moved, self.vectors))

    def learning_columns(self) -> dict[str, float]:
        """For the history: the perplexity of the codebook in the last steps."""
        return {"perplexity": _perplexity(self.counts)}

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Units of the columns; the codebook at what the encoder gives for rows of x, the first time."""
        if bool(self.started):
            return
        if hasattr(self.likelihood, "start"):
            self.likelihood.start(x)
        with evaluating(self):
            outputs = self._encoded(x[torch.randperm(len(x), device=x.device)[:_ROWS]]).flatten(0, -2)
        rows = torch.randperm(len(outputs), device=outputs.device).repeat(self.codebook // len(outputs) + 1)
        self.vectors.copy_(outputs[rows[: self.codebook]])
        # entries that begin at the same row must part
        self.vectors.add_(1e-3 * outputs.std() * torch.randn_like(self.vectors))
        if self.average is not None:
            self.sums.copy_(self.vectors)
        self.counts.fill_(1.0)
        self.started.fill_(True)

    def fit_codes(self, x: Tensor, valid: Tensor | None = None, method: Any = None) -> dict[str, Any]:
        """The second stage: the prior of the codes of x, the networks as they are.

        Arguments:
            x: training rows [N, D].
            valid: rows that choose between fits, or None.
            method: how the prior is learned; None is its own method.

        Returns:
            `perplexity` of the codebook; `used`, how many entries occur; `prior`, how the fit ended; `seconds`.
        """
        from ppl_dgm.tasks import learn

        begun = time.perf_counter()
        k = self._all_indices(x)
        used = torch.bincount(k.flatten(), minlength=self.codebook)
        notes: dict[str, Any] = {
            "perplexity": _perplexity(used.to(self.dtype)),
            "used": int((used > 0).sum()),
            "prior": "uniform, nothing to learn",
        }
        if self.learns_prior:
            held = None if valid is None else self._all_indices(valid[0] if isinstance(valid, tuple) else valid)
            with apart(), torch.enable_grad():
                notes["prior"] = learn(self.prior, k, valid=held, method=method).stopped
        return notes | {"seconds": time.perf_counter() - begun}

    @torch.no_grad()
    def _all_indices(self, x: Tensor) -> Tensor:
        return torch.cat([self.indices(rows) for rows in x.split(_ROWS)])

    def default_method(self, task: str) -> Any:
        if task == "learn":
            from ppl_dgm.inference.two_stage import TwoStage

            return TwoStage(epochs=120, patience=25)
        if task == "infer":
            from ppl_dgm.inference.amortised import Amortised

            return Amortised(draws=1)  # all draws are the same
        return None

    def answers(self) -> dict[str, Answer]:
        return {
            "sample": Answer("exact", "a code from the prior, then the decoder"),
            "score": Answer("lower_bound", "the nearest code alone, without Monte Carlo error"),
            "infer": Answer("approximate", "the nearest code, a point mass"),
            "learn": Answer("approximate", "straight-through gradients, then a prior of the codes"),
        }


def _perplexity(used: Tensor) -> float:
    """exp of the entropy of the shares, of counts [K]."""
    shares = used / used.sum().clamp_min(torch.finfo(used.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())
