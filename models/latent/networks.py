"""The encoder and the decoder of auto-encoders: multi-layer perceptrons unless others are given."""

from collections.abc import Callable
from typing import Any

from torch import nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.models.latent.parts import check_network
from ppl_dgm.nn import mlp

__all__ = ["check_count", "check_weight", "make_network"]


def make_network(
    own: nn.Module | None,
    name: str,
    inputs: int,
    outputs: int,
    hidden: int,
    depth: int,
    activation: str,
    dropout: float = 0.0,
) -> nn.Module:
    """A network from [batch, inputs] to [batch, outputs].

    Arguments:
        own: a module of the caller's own, which is looked at; None for a multi-layer perceptron.
        name: "encoder" or "decoder", for messages.
        inputs, outputs: its sizes.
        hidden, depth, activation, dropout: of the perceptron; a depth of 0 makes it linear.

    Raises:
        ProgramError: the sizes do not fit.
    """
    if own is not None:
        return check_network(own, name, inputs, outputs)
    if not isinstance(depth, int) or depth < 0:
        raise ProgramError(f"{name}: depth is {depth!r}; give the number of hidden layers, 0 or more.")
    return mlp(inputs, outputs, (hidden,) * depth, activation, dropout)


def check_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """A size of a program.

    Raises:
        ProgramError: it is no whole number, or less than `least`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ProgramError(f"{owner}: {name} is {value!r}; give a whole number of at least {least}.")
    return value


def check_weight(owner: str, name: str, value: Any, good: Callable[[float], bool] = lambda value: value >= 0) -> float:
    """A weight or a scale of a program, at least 0 unless `good` says otherwise.

    Raises:
        ProgramError: it is not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not good(float(value)):
        raise ProgramError(f"{owner}: {name} is {value!r}, which is out of range; see its documentation.")
    return float(value)
