"""Prior: what the priors over the latent variables of a VAE share."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count

__all__ = ["Encode", "Prior", "log_variance_to_scale", "positive_count"]

Encode = Callable[[Tensor], Any]


class Prior(nn.Module):
    """p(z), a module of its own that a VAE learns along with its networks.

    Arguments:
        latent: L, the number of entries of z.

    Attributes:
        needs_encoder: whether the density is made of the encoder's: the constructor then also takes `observed`, the number of
            inputs of the encoder, `distribution` needs `encode`, and `start`, where there is one, takes training rows.

    Raises:
        ProgramError: latent is not a positive whole number.
    """

    needs_encoder: ClassVar[bool] = False
    zeros: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = positive_count("latent", latent)
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)  # carries type and device

    def distribution(self, encode: Encode | None = None) -> Any:
        """The density of z.

        Arguments:
            encode: from inputs [K, D] on the encoder's scale to q(z | x), batch shape [K]; for the priors that need it.

        Returns:
            A distribution with batch shape [] and event shape [latent].
        """
        raise NotImplementedError


def positive_count(name: str, value: Any, least: int = 1) -> int:
    """An option that counts something.

    Raises:
        ProgramError: it is no whole number, or less than `least`.
    """
    if not is_count(value, least):
        raise ProgramError(f"{name} is {value!r}; give a whole number of at least {least}.")
    return int(value)


def log_variance_to_scale(log_variance: Tensor) -> Tensor:
    """The standard deviation exp(log variance / 2), between e^-7 and e^3, so that densities stay finite."""
    return (0.5 * log_variance.clamp(-14.0, 6.0)).exp()
