"""CategoricalPosterior: what the posteriors of categorical latent variables share."""

import torch
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count

from .posterior import AmortisedPosterior

__all__ = ["CategoricalPosterior"]


class CategoricalPosterior(AmortisedPosterior):
    """L variables of K classes each: event shape [L, K], of which a decoder gets all L K numbers.

    Arguments:
        latent: L.
        classes: K, at least 2.
        temperature: positive; a buffer, which may change as learning goes on.

    Raises:
        ProgramError: an option is out of range.
    """

    prior = "categorical"
    temperature: Tensor

    def __init__(self, latent: int, classes: int = 10, temperature: float = 2 / 3) -> None:
        name = type(self).__name__
        if not is_count(classes, 2):
            raise ProgramError(f"{name}: classes is {classes!r}; give a whole number, at least 2.")
        if not temperature > 0:
            raise ProgramError(f"{name}: temperature is {temperature!r}; make it positive.")
        super().__init__(latent, latent * classes)
        self.classes, self.code = classes, latent * classes
        self.prior_options = {"classes": classes}
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def logits(self, features: Tensor) -> Tensor:
        """[batch, L, K]."""
        return features.unflatten(-1, (self.latent, self.classes))
