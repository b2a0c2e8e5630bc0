"""VampPrior: the encoder's posteriors at learned pseudo-inputs, mixed."""

from typing import Any

import torch
from torch import Tensor, nn

from ppl_dgm.distributions import FiniteMixture
from ppl_dgm.errors import ProgramError

from .prior import Encode, Prior, positive_count

__all__ = ["VampPrior", "WeightedVampPrior", "given"]


class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k), with q the VAE's own posterior: a variational mixture of posteriors.

    The pseudo-inputs u_k live on the encoder's scale and are learned by gradient, together with the encoder. With
    `learned=False` they stay the data rows that `start` puts there; with as many of them as there are rows the prior is the
    aggregated posterior 1/N sum_n q(z | x_n), for which the divergence of the bound is least.

    Arguments:
        latent: L.
        observed: D, entries of a pseudo-input.
        components: K.
        low, high: the first pseudo-inputs are uniform between them, unless `start` gives data.
        learned: whether the pseudo-inputs are parameters.

    Raises:
        ProgramError: a size is not positive, or low is not below high.

    Source: Tomczak and Welling (2018), VAE with a VampPrior; Tomczak (2024), section 5.4.1.5, eq. (5.48).
    """

    needs_encoder = True
    weighted = False
    logits: Tensor
    started: Tensor
    pseudo_inputs: Tensor

    def __init__(
        self,
        latent: int,
        observed: int,
        components: int = 16,
        low: float = -1.0,
        high: float = 1.0,
        learned: bool = True,
    ) -> None:
        super().__init__(latent)
        positive_count("components", components)
        positive_count("observed", observed)
        if not low < high:
            raise ProgramError(
                f"low is {low!r} and high is {high!r}; give the range of the encoder's inputs, low first."
            )
        first = low + (high - low) * torch.rand(components, observed)
        if learned:
            self.pseudo_inputs = nn.Parameter(first)
        else:
            self.register_buffer("pseudo_inputs", first)
        if self.weighted:
            self.logits = nn.Parameter(torch.zeros(components))
        else:
            self.register_buffer("logits", torch.zeros(components), persistent=False)
        self.register_buffer("started", torch.tensor(False))

    def distribution(self, encode: Encode | None = None) -> Any:
        return FiniteMixture(self.logits, given(encode, type(self))(self.pseudo_inputs))

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Put the pseudo-inputs at data, unless that has been done before.

        Arguments:
            x: training rows on the encoder's scale, [n, D]; K of them are chosen at random, without repetition while there are
                enough.
        """
        if bool(self.started):
            return
        count = len(self.pseudo_inputs)
        rounds = [torch.randperm(len(x), device=x.device) for _ in range(-(-count // len(x)))]
        self.pseudo_inputs.copy_(x[torch.cat(rounds)[:count]])
        self.started.fill_(True)


class WeightedVampPrior(VampPrior):
    """p(z) = sum_k w_k q(z | u_k): a `VampPrior` whose weights are learned too.

    Arguments:
        latent, observed, components, low, high, learned: see `VampPrior`.

    Source: Alemi et al. (2018), Fixing a broken ELBO; Tomczak (2024), section 5.4.1.5, eq. (5.49).
    """

    weighted = True


def given(encode: Encode | None, prior: type[Prior]) -> Encode:
    """The encoder, which a prior made of posteriors cannot do without.

    Raises:
        ProgramError: there is none.
    """
    if encode is None:
        raise ProgramError(f"{prior.__name__} is made of the encoder's posteriors; call distribution(encode) with it.")
    return encode
