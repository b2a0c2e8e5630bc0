"""InverseAutoregressivePosterior: a Gaussian through autoregressive layers that see the observation as a context."""

from torch import Tensor, nn

from ppl_dgm.distributions import Pushforward
from ppl_dgm.errors import ProgramError
from ppl_dgm.options import is_count
from ppl_dgm.transforms import InverseAutoregressive, autoregressive_network

from .posterior import AmortisedPosterior, factorised_normal

__all__ = ["InverseAutoregressivePosterior"]


class InverseAutoregressivePosterior(AmortisedPosterior):
    """z_t = g_t z_{t-1} + (1 - g_t) m_t entry by entry, z_0 ~ N(loc, diag exp(log_variance)), with g_t and m_t of
    masked networks (MADE) of the earlier entries of z_{t-1} and a context.

    The context is among the features; the networks' weights are parameters of the posterior, the same for all x. Every
    second layer reverses the order of the entries.

    Arguments:
        latent: dimensions L of z.
        steps: how many layers.
        context: numbers that the encoder hands to the networks; 2 L unless given.
        hidden: units of each hidden layer of a network.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved variational inference with inverse
    autoregressive flow.

    Example:
        >>> import torch
        >>> posterior = InverseAutoregressivePosterior(3, steps=2)
        >>> posterior(torch.randn(5, posterior.features)).rsample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self, latent: int, steps: int = 4, context: int | None = None, hidden: tuple[int, ...] = (64,)
    ) -> None:
        context = 2 * latent if context is None else context
        super().__init__(latent, latent, latent, context)
        for name, value in {"steps": steps, "context": context, **{"hidden": min(hidden, default=0)}}.items():
            if not is_count(value, 1):
                raise ProgramError(
                    f"InverseAutoregressivePosterior: {name} is {value!r}; give whole numbers, at least 1."
                )
        self.networks = nn.ModuleList(
            autoregressive_network(latent, context, hidden, reverse=step % 2 == 1) for step in range(steps)
        )

    def forward(self, features: Tensor) -> Pushforward:
        loc, log_variance, context = self.parts(features)
        steps = [InverseAutoregressive(network, context) for network in self.networks]
        return Pushforward(factorised_normal(loc, log_variance), steps)
