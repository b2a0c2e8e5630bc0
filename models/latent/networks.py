"""The networks of programs with latent variables, multi-layer perceptrons unless others are given, and checks of their sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.nn import mlp
from ppl_dgm.options import is_count
from ppl_dgm.tasks import evaluating

__all__ = ["check_count", "check_levels", "check_network", "check_weight", "make_network"]


def make_network(
    own: nn.Module | None,
    name: str,
    inputs: int,
    outputs: int,
    hidden: int,
    depth: int,
    activation: str,
    dropout: float = 0.0,
    norm: str | None = None,
) -> nn.Module:
    """A network from [batch, inputs] to [batch, outputs].

    Arguments:
        own: a module of the caller's own, which is looked at; None for a multi-layer perceptron.
        name: "encoder" or "decoder", for messages.
        inputs, outputs: its sizes.
        hidden, depth, activation, dropout, norm: of the perceptron; a depth of 0 makes it linear.

    Raises:
        ProgramError: the sizes do not fit.
    """
    if own is not None:
        return check_network(own, name, inputs, outputs)
    if not is_count(depth, 0):
        raise ProgramError(f"{name}: depth is {depth!r}; give the number of hidden layers, 0 or more.")
    return mlp(inputs, outputs, (hidden,) * depth, activation, dropout, norm)


@torch.no_grad()
def check_network(network: nn.Module, name: str, inputs: int, outputs: int) -> nn.Module:
    """A stranger's encoder or decoder, run once on zeros.

    Arguments:
        network: maps [batch, inputs] to [batch, outputs].
        name: for the message.

    Raises:
        ProgramError: it is no module, or its output has another shape.
    """
    if not isinstance(network, nn.Module):
        raise ProgramError(
            f"{name} is a {type(network).__name__}; give a torch module from {inputs} to {outputs} numbers."
        )
    parameter = next(network.parameters(), torch.zeros(()))
    try:
        with evaluating(network):
            found = tuple(network(torch.zeros(2, inputs, device=parameter.device, dtype=parameter.dtype)).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ProgramError(f"{name} cannot take [batch, {inputs}]: {str(error).splitlines()[0]}") from error
    if found != (2, outputs):
        raise ProgramError(
            f"{name} gives the shape {found} for an input of shape (2, {inputs}); its last layer must have {outputs} units, "
            f"so that the shape is (2, {outputs})."
        )
    return network


def check_levels(owner: str, latents: Sequence[int], depth: int) -> tuple[int, ...]:
    """The sizes of z1, z2, ... of a hierarchy, and the depth of its networks.

    Raises:
        ProgramError: they are fewer than two, or not positive, or the depth is negative.
    """
    check_count(owner, "depth", depth, 0)
    if isinstance(latents, int) or len(latents) < 2 or not all(is_count(size, 1) for size in latents):
        raise ProgramError(
            f"{owner}: latents is {latents!r}; give the sizes of z1, z2, ..., at least two positive numbers (one level is a VAE)."
        )
    return tuple(latents)


def check_count(owner: str, name: str, value: Any, least: int = 1) -> int:
    """A size of a program.

    Raises:
        ProgramError: it is no whole number, or less than `least`.
    """
    if not is_count(value, least):
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
