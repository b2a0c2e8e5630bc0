"""Which site is to blame: for an error, and for a density or gradient that is not finite."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.densities.joint import Joint

__all__ = ["LastSite", "worst_site"]


class LastSite(Messenger):
    """Remembers the last sample statement that began."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if type(msg["fn"]).__name__ != "_Subsample":
            self.name = msg["name"]

    def place(self) -> str:
        """Words for where an error came."""
        return f"at or after site {self.name!r}" if self.name else "before the first site"


def worst_site(joint: Joint, z: Tensor) -> str:
    """The first site whose log density, or its gradient, is not finite at z [d], in words."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        nodes = joint.sites_at(z)
        for name, node in nodes.items():
            log_prob = node["log_prob"]
            if node["infer"].get("_enumerate_dim") is None and not bool(log_prob.detach().isfinite().all()):
                bad = float(log_prob.detach()[~log_prob.detach().isfinite()].flatten()[0])
                kind = "observed" if node["is_observed"] else "latent"
                return (
                    f"at {kind} site {name!r} the log density is {bad}; compare that distribution's support "
                    "and parameters "
                    "with its values, and look for NaN in the data"
                )
        for name, node in nodes.items():
            if not node["log_prob"].requires_grad:
                continue
            (gradient,) = torch.autograd.grad(node["log_prob"].sum(), z, retain_graph=True, allow_unused=True)
            if gradient is not None and not bool(gradient.isfinite().all()):
                return (
                    f"at site {name!r} the log density is finite but its gradient is not; look for a square "
                    "root, logarithm "
                    "or division at the edge of its domain"
                )
    return "each site's own density is finite, but not their sum; look for values that overflow"
