"""Checks of a log density: against Pyro's own value, and that it is the same at every run."""

from contextlib import suppress

import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from ppl_dgm.densities.coordinates import Layout, Start
from ppl_dgm.densities.joint import Joint
from ppl_dgm.errors import ProgramError, TaskUnavailable

__all__ = ["check_noise", "check_reference", "close", "reference"]


def check_noise(name: str, joint: Joint, points: Tensor, single: Tensor) -> None:
    """Refuses a density that is another at the next run at the same points.

    Raises:
        TaskUnavailable: it is.
    """
    again = torch.stack([joint.log_joint(point) for point in points]).detach()
    if not close(again, single, 1e-6):
        raise TaskUnavailable(
            f"the density of {name!r} is another at every run at the same point, so something in it draws "
            "random numbers outside of pyro.sample; turn dropout off with .eval(), and give every random "
            "number a site."
        )


def check_reference(name: str, joint: Joint, points: Tensor, single: Tensor, relative: float) -> None:
    """Compares with Pyro's values at these points.

    Raises:
        ProgramError: they differ.
    """
    for point, mine in zip(points, single, strict=True):
        theirs = reference(joint, point)
        if theirs is not None and not close(mine, theirs.to(mine.dtype), relative):
            raise ProgramError(
                f"the density of {name!r} is {float(mine):.6g} nats where Pyro's own potential has "
                f"{float(theirs):.6g}, so it is not safe to use; a site's log_prob may depend on Python "
                "state, or report it."
            )


def close(a: Tensor, b: Tensor, relative: float) -> bool:
    """Whether values agree, infinities and NaN included."""
    same = torch.isclose(a, b, rtol=relative, atol=relative, equal_nan=True)
    return bool(same.all())


def reference(joint: Joint, z: Tensor) -> Tensor | None:
    """log p(x, z) + log |det J| as Pyro computes it, or None where it cannot.

    The potential of Pyro's Hamiltonian kernels; where it ignores that a support depends on other sites, or has no bijection
    (mixtures), the log density of a conditioned trace and the Jacobians at that point.
    """
    layout = joint.layout
    with torch.no_grad():
        if not any(site.depends for site in layout.sites.values()) and not layout.latent_points:
            with suppress(NotImplementedError):
                return -_potential(joint, layout, z)
        return None if layout.summed else _conditioned(joint, z)


def _potential(joint: Joint, layout: Layout, z: Tensor) -> Tensor:
    story = Start()(joint.story)  # for the run that Pyro makes to see the sites: flat priors cannot be drawn from
    _, potential, _, _ = initialize_model(story, (), {}, initial_params={})
    params = {name: z[site.place].reshape(site.shape) for name, site in layout.sites.items()}
    return torch.as_tensor(potential(params))


def _conditioned(joint: Joint, z: Tensor) -> Tensor:
    trace, jacobian = joint.trace(z)
    values = {name: trace.nodes[name]["value"] for name in joint.layout.sites}
    again = poutine.trace(poutine.condition(joint.story, values)).get_trace()
    return again.log_prob_sum() + jacobian
