"""NGram: a Markov chain over the characters or words of a text."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_dgm.errors import DataError, ProgramError
from ppl_dgm.results import Score

from .sequence import SequenceTables

__all__ = ["NGram", "TextScore"]

_UNITS = ("character", "word")
_UNKNOWN = "<unk>"


class TextScore(NamedTuple):
    """How well a text is predicted, symbol by symbol.

    Attributes:
        perplexity: exp of the mean negative log probability of a symbol; V for the uniform distribution.
        bits_per_symbol: its logarithm to base two.
        bits_per_character: all bits over all characters of the text, which compares programs of different units.
        symbols: characters or words scored.
    """

    perplexity: float
    bits_per_symbol: float
    bits_per_character: float
    symbols: int


class NGram(SequenceTables):
    """p(text) = prod_t p(symbol_t | the n - 1 symbols before it), smoothed by adding to each count.

    The table of fewer than n - 1 symbols before is counted at every place of the text, so that a text is taken for a stretch
    of a longer one. Symbols that the program does not know become `<unk>`.

    Arguments:
        symbols: the known characters or words.
        n: symbols in a window: 1 ignores what came before, 2 looks at one symbol back.
        unit: "character" or "word" (runs of letters, digits and apostrophes in lower case, and single punctuation marks).
        pseudo_count: added to each count when learning. None: chosen by the likelihood of the validation text, or, where
            there is none, by leaving out one window at a time.
        length: symbols of a sequence that is drawn.

    Raises:
        ProgramError: an argument out of range, or a table of more than 2^24 numbers.

    Source: C. Shannon (1948), A mathematical theory of communication, 3; G. Lidstone (1920) for the added counts.

    Example:
        >>> import ppl_dgm as dgm
        >>> program = dgm.models.NGram.of_text("the cat sat on the mat. the cat ate the rat.", n=3)
        >>> program.generate(12, "the ", temperature=0.2, seed=0)
        'the cat sat '
        >>> program.score_text("the rat sat.").perplexity < len(program.symbols)
        True
    """

    def __init__(
        self,
        symbols: Sequence[str] = ("a", "b", " "),
        n: int = 2,
        unit: str = "character",
        pseudo_count: float | None = None,
        length: int = 80,
    ) -> None:
        if unit not in _UNITS:
            raise ProgramError(f"NGram: unit must be one of {', '.join(_UNITS)}, but it is {unit!r}.")
        if not isinstance(n, int) or n < 1:
            raise ProgramError(f"NGram: n must be a whole number from 1, but it is {n!r}.")
        known = list(dict.fromkeys([*symbols, _UNKNOWN]))
        super().__init__(max(length, n), len(known), n - 1, True, pseudo_count)
        self.symbols, self.n, self.unit = known, n, unit
        self.observed = None  # texts of any length
        self._index = {symbol: i for i, symbol in enumerate(known)}

    @classmethod
    def of_text(
        cls, text: str, n: int = 3, unit: str = "character", valid: str | None = None, pseudo_count: float | None = None,
        rarest: int = 1,
    ) -> "NGram":  # fmt: skip
        """A program learned from a text.

        Arguments:
            text: at least n symbols.
            n, unit, pseudo_count: as in the class.
            valid: another text, which decides the pseudo-count where it is None.
            rarest: symbols that occur less often than this are unknown ones.
        """
        counts = Counter(_split(text, unit))
        program = cls([s for s, count in sorted(counts.items()) if count >= rarest], n, unit, pseudo_count)
        program.fit_closed_form(program.encode(text), None if valid is None else program.encode(valid))
        return program

    # -- texts -----------------------------------------------------------------------------------------------

    def encode(self, text: str) -> Tensor:
        """The numbers of the text's symbols, [1, T].

        Raises:
            DataError: fewer than n symbols.
        """
        parts, unknown = _split(text, self.unit), self._index[_UNKNOWN]
        if len(parts) < self.n:
            raise DataError(
                f"the text has {len(parts)} {self.unit}s, but n={self.n} needs at least as many; give more."
            )
        return torch.tensor([[self._index.get(part, unknown) for part in parts]], device=self.device)

    def decode(self, x: Tensor) -> str:
        """The text of a row of numbers [T]; words are joined by spaces."""
        return ("" if self.unit == "character" else " ").join(self.symbols[i] for i in x.tolist())

    def generate(self, length: int, prompt: str = "", temperature: float = 1.0, seed: int | None = None) -> str:
        """A text of `length` symbols that goes on from the prompt, each symbol from p(symbol | context)^(1 / temperature)."""
        from ppl_dgm.randomness import seeded

        row = [self._index.get(part, self._index[_UNKNOWN]) for part in _split(prompt, self.unit)]
        with torch.no_grad(), seeded(seed):
            while len(row) < length:
                past = torch.tensor(row[len(row) - min(len(row), self.order) :], device=self.device)
                logits = self._logits(len(past), list(past)) / temperature
                row.append(int(torch.distributions.Categorical(logits=logits).sample()))
        return self.decode(torch.tensor(row))

    @torch.no_grad()
    def score_text(self, text: str) -> TextScore:
        """Perplexity and bits of a text; the first n - 1 symbols are predicted from as many as there are before them."""
        x = self.encode(text)
        nats = -float(self.log_prob(x))
        bits = nats / math.log(2)
        return TextScore(math.exp(nats / x.shape[1]), bits / x.shape[1], bits / len(text), x.shape[1])

    # -- what differs from sequences of one length -----------------------------------------------------------

    def log_density(self, x: Tensor) -> Score:
        """log p(text) in nats, [batch], for numbers x [batch, T] of any T."""
        if x.ndim != 2 or not bool(((x >= 0) & (x < self.values)).all()):
            raise DataError(
                f"x must hold numbers of symbols from 0 to {self.values - 1}, [batch, T]; see encode(text)."
            )
        return super().log_density(x)

    def counts(self, x: Tensor) -> list[Tensor]:
        """How often each window of 1, ..., n symbols occurs anywhere in x [N, T], [V^m, V] each, in float64."""
        x, found = x.long(), []
        for width, table in enumerate(self.tables):
            cells = self._cells(x, range(width, x.shape[1])).flatten()
            found.append(torch.bincount(cells, minlength=table.numel()).double().reshape(table.shape))
        return found

    def most_likely(self, context: str, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest next symbols after a context, with their probabilities."""
        parts = [self._index.get(part, self._index[_UNKNOWN]) for part in _split(context, self.unit)]
        past = torch.tensor(parts[len(parts) - min(len(parts), self.order) :], device=self.device)
        top: Any = self._logits(len(past), list(past)).softmax(-1).topk(min(count, self.values))
        return [(self.symbols[i], p) for p, i in zip(top.values.tolist(), top.indices.tolist())]


def _split(text: str, unit: str) -> list[str]:
    return list(text) if unit == "character" else re.findall(r"[\w']+|[^\w\s]", text.lower())
