"""SequenceVAE: one code for a whole sequence of tokens, read and written by recurrent networks."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.models.latent.networks import check_count
from ppl_dgm.models.latent.posteriors import GaussianPosterior
from ppl_dgm.models.latent.vae import DRAWS, variational_method
from ppl_dgm.options import is_count
from ppl_dgm.program import Answer, Program
from ppl_dgm.tasks import evaluating

__all__ = ["SequenceVAE", "TokenSequence"]


class SequenceVAE(Program):
    """z ~ N(0, I),  x_t ~ Categorical(softmax(W h_t)),  h_t = LSTM(h_{t-1}; x_{t-1}, z),  q(z | x) from an LSTM that reads x.

    z holds what is global in a sequence: topic, style, length. The writer sees the tokens before, so that it could do without
    z, and a plain fit then ends in posterior collapse. Two things are against that, both of the source: the divergence is warmed
    up (the default learner), and while learning each token before is hidden from the writer with probability `word_dropout`.

    Sequences of different lengths are rows of the same length T, in which the token `end` closes a sequence and fills up the rest:
    after it nothing else has any probability, and costs none. A sequence without it fills its row.

    Arguments:
        observed: T, the most tokens.
        values: V; tokens are 0 to V - 1, `end` included.
        latent: dimensions of z.
        hidden: units of both LSTMs.
        embedding: numbers for each token.
        end: the token that ends a sequence; None: all have T tokens.
        word_dropout: probability that the writer does not hear a token, while learning; 1 makes tokens independent given z and
            their place.

    Sites: `z` [latent], `x` [T].

    Raises:
        ProgramError: an argument out of range.
        DataError: a token after the end.

    Source: S. Bowman, L. Vilnis, O. Vinyals, A. Dai, R. Jozefowicz and S. Bengio (2016), Generating sentences from a continuous
        space; S. Hochreiter and J. Schmidhuber (1997) for the LSTM.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> program = SequenceVAE(6, values=5, end=4, latent=2, hidden=8)
        >>> x = torch.tensor([[0, 1, 4, 4, 4, 4], [3, 3, 2, 1, 0, 0]])
        >>> dgm.score(program, x, seed=0).kind, program.most_likely(torch.zeros(3, 2)).shape
        ('lower_bound', torch.Size([3, 6]))
    """

    observed: int
    values: int

    def __init__(
        self,
        observed: int,
        values: int,
        latent: int = 16,
        hidden: int = 128,
        embedding: int = 32,
        end: int | None = None,
        word_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        for name, count in (("observed", observed), ("latent", latent), ("hidden", hidden), ("embedding", embedding)):
            check_count(self.name, name, count)
        if not is_count(values, 2):
            raise ProgramError(f"{self.name}: values is {values!r}; give the number of tokens, at least 2.")
        if end is not None and not (is_count(end, 0) and end < values):
            raise ProgramError(f"{self.name}: end is {end!r}; give a token from 0 to {values - 1}, or None.")
        if not 0 <= word_dropout <= 1:
            raise ProgramError(f"{self.name}: word_dropout must be from 0 to 1, but it is {word_dropout!r}.")
        self.observed, self.values, self.latent, self.end, self.word_dropout = (
            observed,
            values,
            latent,
            end,
            word_dropout,
        )
        self.support = constraints.integer_interval(0, values - 1)
        self.posterior_of_z = GaussianPosterior(latent)
        self.read = _LSTM(values, embedding, hidden)
        self.encoder = nn.Linear(hidden, self.posterior_of_z.features)
        self.write = _Writer(values, embedding, hidden, latent)
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)

    zeros: Tensor

    def model(self, x: Tensor | None = None, n: int = 1) -> Tensor:
        """z ~ N(0, I); the tokens of x one after another."""
        rows = n if x is None else len(x)
        heard = torch.ones(rows, self.observed, dtype=self.dtype, device=self.device)
        # numbers are dropped, and what is left is told from what is not, so that learning draws it anew in each step
        heard = nn.functional.dropout(heard, self.word_dropout, self.training) > 0
        with pyro.plate("data", rows):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            return pyro.sample("x", self.tokens(z, heard), obs=None if x is None else x.long())

    def guide(self, x: Tensor, n: int = 1) -> Tensor:
        """z ~ q(z | x), amortised."""
        with pyro.plate("data", len(x)):
            return pyro.sample("z", self.encode(x))

    def tokens(self, z: Tensor, heard: Tensor | None = None) -> "TokenSequence":
        """p(x | z), batch shape [batch], for z [batch, latent]."""
        return TokenSequence(z, self.write, self.observed, self.end, heard)

    def encode(self, x: Tensor) -> Any:
        """q(z | x), batch shape [batch], from the reader's state after the last token (the first `end` included)."""
        x = x.long()
        state = self.read.state(x.shape[:-1])
        steps, over = self.read.inputs(x), _after(x, self.end)
        for t in range(x.shape[-1]):
            after = self.read(steps[..., t, :], state)
            state = tuple(torch.where(over[..., t, None], old, new) for old, new in zip(state, after, strict=True))
        return self.posterior_of_z(self.encoder(state[0]))

    @torch.no_grad()
    def most_likely(self, z: Tensor) -> Tensor:
        """The tokens that one gets by taking the most probable next one at each place, int64 [batch, T], for z [batch, latent]."""
        with evaluating(self):
            return self.tokens(z.to(self.device, self.dtype)).drawn((), greedy=True)

    def check_arguments(self, x: Tensor, *rest: Any) -> tuple:
        """x, where nothing but `end` comes after the end."""
        x = torch.as_tensor(x)
        wrong = _after(x, self.end) & (x != self.end) if self.end is not None else torch.zeros_like(x, dtype=torch.bool)
        if bool(wrong.any()):
            row, column = wrong.nonzero()[0].tolist()
            raise DataError(
                f"x[{row}, {column}] is {x[row, column].item()}, but the sequence has ended before; fill the row up with {self.end}."
            )
        return (x, *rest)

    def default_method(self, task: str) -> Any:
        return variational_method(task)

    def answers(self) -> dict[str, Answer]:
        steps = self.observed  # each waits for the one before
        return {
            "sample": Answer("exact", "z, then one token after another", steps, steps),
            "score": Answer("lower_bound", f"importance weighting, K = {DRAWS}", DRAWS * steps, steps),
            "infer": Answer("approximate", "amortised posterior, a recurrent encoder", steps, steps),
            "learn": Answer(
                "lower_bound", "SVI on the evidence lower bound, with a KL warm-up and word dropout", steps, steps
            ),
        }


def _after(x: Tensor, end: int | None) -> Tensor:
    """Which places come after the first `end`, [..., T], bool."""
    if end is None:
        return torch.zeros_like(x, dtype=torch.bool)
    ended = (x == end).long()
    return ended.cumsum(-1) - ended > 0


class _LSTM(nn.Module):
    """One step of an LSTM over embedded tokens, written out so that it broadcasts and can be batched and recorded.

    Arguments:
        values: tokens; one more stands for a token that is not heard.
        embedding, hidden: sizes.
        more: numbers beside the token, the same at every step.
    """

    def __init__(self, values: int, embedding: int, hidden: int, more: int = 0) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(values + 1, embedding)
        self.taken = nn.Linear(embedding, 4 * hidden)
        self.kept = nn.Linear(hidden, 4 * hidden, bias=False)
        self.more = nn.Linear(more, 4 * hidden, bias=False) if more else None
        with torch.no_grad():
            self.taken.bias[hidden : 2 * hidden].fill_(1.0)  # what the state holds is not forgotten at first

    def state(self, batch: Any) -> tuple[Tensor, ...]:
        """Output and memory before the first step, [*batch, hidden] each."""
        zeros = self.taken.weight.new_zeros(*batch, self.hidden)
        return zeros, zeros

    def inputs(self, tokens: Tensor) -> Tensor:
        """What tokens add to the gates, [..., 4 hidden]."""
        return self.taken(self.embedding(tokens))

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Output and memory after a step, for inputs to the gates [..., 4 hidden]."""
        output, memory = state
        enter, keep, new, leave = (inputs + self.kept(output)).chunk(4, -1)
        memory = keep.sigmoid() * memory + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * memory.tanh(), memory


class _Writer(_LSTM):
    """An LSTM that is told z at every step and begins in a state made of it, and the logits of the next token."""

    def __init__(self, values: int, embedding: int, hidden: int, latent: int) -> None:
        super().__init__(values, embedding, hidden, latent)
        self.unheard = values
        self.first = nn.Linear(latent, 2 * hidden)
        self.logits = nn.Linear(hidden, values)

    def begin(self, z: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The state before the first token, and what z adds to the gates."""
        assert self.more is not None
        return self.first(z).tanh().chunk(2, -1), self.more(z)


class TokenSequence(TorchDistribution):
    """p(x | z) of T tokens, each given z and those before; after `end` there is nothing but `end`.

    Arguments:
        z: [..., latent].
        write: the writer.
        length: T.
        end: the token that ends a sequence, or None.
        heard: [..., T], whether the writer hears the token at that place; None: every one.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, z: Tensor, write: Any, length: int, end: int | None, heard: Tensor | None = None) -> None:
        self.z, self.write, self.end, self.heard = z, write, end, heard
        super().__init__(z.shape[:-1], torch.Size([length]), validate_args=False)

    @property
    def support(self) -> Any:
        """Whole numbers."""
        return constraints.independent(constraints.integer_interval(0, self.write.unheard - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "TokenSequence":
        batch = torch.Size(batch_shape)
        heard = None if self.heard is None else self.heard.expand(*batch, *self.event_shape)
        return TokenSequence(self.z.expand(*batch, -1), self.write, self.event_shape[0], self.end, heard)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats, [...]; minus infinity where a token follows the end."""
        value = value.long()
        # the first step hears nothing, the others the token before
        before = value[..., :-1] if self.heard is None else torch.where(
            self.heard[..., :-1], value[..., :-1], self.write.unheard
        )  # fmt: skip
        steps = self.write.inputs(nn.functional.pad(before, (1, 0), value=self.write.unheard))
        state, told = self.write.begin(self.z)
        outputs = []
        for t in range(self.event_shape[0]):
            state = self.write(steps[..., t, :] + told, state)
            outputs.append(state[0])
        log_p = self.write.logits(torch.stack(outputs, -2)).log_softmax(-1)  # [..., T, V]
        shape = torch.broadcast_shapes(log_p.shape[:-1], value.shape)
        log_p = log_p.expand(*shape, -1).gather(-1, value.expand(shape)[..., None])[..., 0]
        if self.end is not None:
            impossible = torch.where(value == self.end, 0.0, -torch.inf).to(log_p.dtype)
            log_p = torch.where(_after(value, self.end), impossible, log_p)
        return log_p.sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """int64 [*sample_shape, ..., T]."""
        with torch.no_grad():
            return self.drawn(sample_shape)

    def drawn(self, sample_shape: Any, greedy: bool = False) -> Tensor:
        """One token after another, drawn or, if `greedy`, the most probable."""
        batch = torch.Size(sample_shape) + self.batch_shape
        state, told = self.write.begin(self.z.expand(*batch, -1))
        token = torch.full(batch, self.write.unheard, device=self.z.device)
        over, tokens = torch.zeros_like(token, dtype=torch.bool), []
        for t in range(self.event_shape[0]):
            state = self.write(self.write.inputs(token) + told, state)
            logits = self.write.logits(state[0])
            if not greedy:
                logits = logits - torch.empty_like(logits).exponential_().log()  # Gumbel noise
            token = logits.argmax(-1)
            if self.end is not None:
                token = torch.where(over, self.end, token)
                over = over | (token == self.end)
            tokens.append(token)
            if self.heard is not None:
                token = torch.where(self.heard[..., t], token, self.write.unheard)
        return torch.stack(tokens, -1)
