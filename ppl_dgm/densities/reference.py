"""Pyro's own value of a log density at one point, to check ours against."""

import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from ppl_dgm.densities.coordinates import Layout, Start
from ppl_dgm.densities.joint import Joint

__all__ = ["reference"]


def reference(joint: Joint, z: Tensor) -> Tensor | None:
    """log p(x, z) + log |det J| as Pyro computes it, or None where it cannot.

    The potential of Pyro's Hamiltonian kernels; where a support depends on other sites, which that potential
    ignores,
    the log density of a conditioned trace and the Jacobians at that point.
    """
    layout = joint.layout
    with torch.no_grad():
        if any(site.depends for site in layout.sites.values()) or layout.latent_points:
            return None if layout.summed else _conditioned(joint, z)
        return -_potential(joint, layout, z)


def _potential(joint: Joint, layout: Layout, z: Tensor) -> Tensor:
    story = Start()(
        joint.story
    )  # for the run that Pyro makes to see the sites: flat priors cannot be drawn from
    _, potential, _, _ = initialize_model(story, (), {}, initial_params={})
    params = {name: z[site.place].reshape(site.shape) for name, site in layout.sites.items()}
    return torch.as_tensor(potential(params))


def _conditioned(joint: Joint, z: Tensor) -> Tensor:
    trace, jacobian = joint.trace(z)
    values = {name: trace.nodes[name]["value"] for name in joint.layout.sites}
    again = poutine.trace(poutine.condition(joint.story, values)).get_trace()
    return again.log_prob_sum() + jacobian
