"""Messages: what was sent from where to where, kept to be read."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.text import table

__all__ = ["Message", "Messages"]


@dataclass(frozen=True, eq=False)
class Message:
    """One message.

    Attributes:
        sender, receiver: names of variables, factors or clusters; the receiver of a final sum is "evidence".
        over: the variables that it is a function of.
        table: its logarithm in nats, one dimension for each of them.
        round: 1 for messages towards the roots, 2 for those back; the iteration of loopy propagation.
    """

    sender: str
    receiver: str
    over: tuple[str, ...]
    table: Tensor
    round: int = 1


@dataclass
class Messages:
    """Messages in the order in which they were sent; printed as a table.

    Attributes:
        sent: the messages.
        maximise: whether they are maxima (max-product) rather than sums (sum-product).
    """

    sent: list[Message] = field(default_factory=list)
    maximise: bool = False

    def __iter__(self) -> Iterator[Message]:
        return iter(self.sent)

    def __len__(self) -> int:
        return len(self.sent)

    def __getitem__(self, link: tuple[str, str]) -> Message:
        """The last message from one name to another."""
        found = [message for message in self.sent if (message.sender, message.receiver) == link]
        if not found:
            raise ProgramError(
                f"there is no message from {link[0]!r} to {link[1]!r}; print the messages to see which there are."
            )
        return found[-1]

    def explain(self, normalise: bool = False, most: int = 60, entries: int = 8) -> str:
        """A table with one line per message: number, from, to, over, values.

        Arguments:
            normalise: print values that sum to one (or, of maxima, whose largest is one).
            most: messages printed.
            entries: values printed of each, the last variable of `over` changing fastest.
        """
        rows = []
        for number, message in enumerate(self.sent[:most], 1):
            values = self._values(message, normalise)
            text = " ".join(f"{value:.4g}" for value in values[:entries].tolist())
            more = f" ... ({len(values)} in all)" if len(values) > entries else ""
            rows.append((number, message.sender, message.receiver, ", ".join(message.over) or "-", text + more))
        body = table(("", "from", "to", "over", "values"), rows)
        left = len(self.sent) - len(rows)
        return body + (f"\n... and {left} more" if left else "")

    def _values(self, message: Message, normalise: bool) -> Tensor:
        logs = message.table.reshape(-1)
        if normalise:
            return (logs - logs.max()).exp() if self.maximise else logs.softmax(0)
        return logs.exp()

    def __str__(self) -> str:
        return self.explain()
