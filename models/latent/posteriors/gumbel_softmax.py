"""GumbelSoftmaxPosterior: categorical latent variables, learned through relaxed draws and scored by exact ones."""

from typing import Any

from torch import Tensor

from ppl_dgm.distributions import RelaxedCategories, StraightThroughGumbel
from ppl_dgm.errors import ProgramError

from .categories import CategoricalPosterior

__all__ = ["GumbelSoftmaxPosterior"]


class GumbelSoftmaxPosterior(CategoricalPosterior):
    """q(z | x) = prod_l Categorical(z_l; softmax(logits_l)), L one-hot vectors of K entries.

    In training mode, draws are softmax((logits + g) / temperature), g ~ Gumbel(0, 1), so that gradients pass, and the
    divergence from the prior "categorical" is that of the categories, in closed form under `SVI(elbo="mean_field")`. The
    objective on training rows is then no bound on any evidence: the decoder sees points between the corners that carry more
    than a category. In evaluation mode (validation while learning, `score`, `infer`) draws are one-hot and log q is that of
    the categories, so that every bound that is reported is below the evidence of the discrete program.

    As learning goes on the temperature falls geometrically from `temperature` in the first epoch to `last` in the last one.

    Arguments:
        latent: variables L.
        classes: K of each.
        temperature: of the draws in training mode at first, positive.
        last: their temperature in the learner's last epoch, positive, at most `temperature`.

    Raises:
        ProgramError: an option is out of range.

    Source: Jang, Gu and Poole (2017), Categorical reparameterization with Gumbel-softmax.

    Example:
        >>> import torch
        >>> posterior, features = GumbelSoftmaxPosterior(2, classes=3), torch.randn(5, 6)
        >>> bool((posterior(features).rsample().amax(-1) < 1).all())
        True
        >>> posterior.eval()(features).rsample().amax(-1)[0]
        tensor([1., 1.])
    """

    support: Any = StraightThroughGumbel.support

    def __init__(self, latent: int, classes: int = 10, temperature: float = 1.0, last: float = 0.3) -> None:
        super().__init__(latent, classes, temperature)
        if not 0 < last <= temperature:
            raise ProgramError(
                f"GumbelSoftmaxPosterior: last is {last!r}; make it positive and at most the first temperature {temperature:g}."
            )
        self.first, self.last = float(temperature), float(last)

    def forward(self, features: Tensor) -> Any:  # [batch, L K]
        kind = RelaxedCategories if self.training else StraightThroughGumbel
        return kind(self.temperature, logits=self.logits(features)).to_event(1)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the temperature of an epoch (1, 2, ..., epochs); learners call it."""
        share = (epoch - 1) / max(1, epochs - 1)
        self.temperature.fill_(self.first * (self.last / self.first) ** share)
