"""HierarchicalPrior: a Gaussian whose mean and variance hang on latent variables of their own."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.kl import register_kl

from ppl_dgm.errors import TaskUnavailable
from ppl_dgm.nn import mlp

from .prior import Encode, Prior, log_variance_to_scale, positive_count

__all__ = ["Given", "HierarchicalPrior"]


class Given(dist.Independent):
    """An independent distribution given latent variables that the guide draws *after* its own value.

    The guide draws z and then u given z, while the model draws z given u. The divergence of q(z | x) from p(z | u) at that u
    is not the term of the evidence lower bound, since u is no longer independent of z; so `kl_divergence` refuses, and an
    estimator that would use it falls back on log q(z) - log p(z | u) at the draws.
    """


@register_kl(Independent, Given)
def _no_divergence(p: Independent, q: Given) -> Tensor:
    raise NotImplementedError("z and u are dependent under the guide: no divergence at a given u is the bound's term.")


class HierarchicalPrior(Prior):
    """u ~ N(0, I),  z ~ N(mu(u), diag s^2(u)),  so that p(z) is a continuous mixture of Gaussians, without a closed form.

    It is a story with a guide of its own, q(u | z) = N(m(z), diag t^2(z)), instead of a `distribution`: the bound of the
    program is over u and z.

    Arguments:
        latent: L.
        auxiliary: entries of u; L / 2, rounded up, unless given.
        hidden: units of each hidden layer.
        depth: hidden layers of the two networks; 0 makes them linear.

    Sites: `u` [auxiliary], `z` [latent].

    Raises:
        ProgramError: a size is not positive.

    Source: Ranganath, Tran and Blei (2016), Hierarchical variational models; Tomczak (2024), sections 5.4.1.9 and 5.5.
    """

    start_of_u: Tensor

    def __init__(self, latent: int, auxiliary: int | None = None, hidden: int = 128, depth: int = 2) -> None:
        super().__init__(latent)
        auxiliary = positive_count("auxiliary", (latent + 1) // 2 if auxiliary is None else auxiliary)
        positive_count("depth", depth, 0)
        self.auxiliary = auxiliary
        self.down = mlp(auxiliary, 2 * latent, (hidden,) * depth, "silu")
        self.up = mlp(latent, 2 * auxiliary, (hidden,) * depth, "silu")
        self.register_buffer("start_of_u", torch.zeros(auxiliary), persistent=False)

    def distribution(self, encode: Encode | None = None) -> Any:
        """There is none in closed form.

        Raises:
            TaskUnavailable: always; `model` and `guide` are this prior's way.
        """
        raise TaskUnavailable("the hierarchical prior has no density in closed form; use its model(n) and guide(z).")

    def model(self, n: int = 1) -> Tensor:
        """u and z of each example, inside the plate of n examples."""
        u = pyro.sample("u", dist.Normal(self.start_of_u, 1.0).to_event(1))
        return pyro.sample("z", self.given(u))

    def guide(self, z: Tensor) -> Tensor:
        """u ~ q(u | z), inside the plate of the examples."""
        loc, log_variance = self.up(z).chunk(2, -1)
        return pyro.sample("u", dist.Normal(loc, log_variance_to_scale(log_variance)).to_event(1))

    def given(self, u: Tensor) -> Given:
        """p(z | u), batch shape that of u."""
        loc, log_variance = self.down(u).chunk(2, -1)
        return Given(dist.Normal(loc, log_variance_to_scale(log_variance)), 1)
