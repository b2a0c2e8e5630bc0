"""IWAE: learning by the importance-weighted bound of each example."""

from dataclasses import dataclass

from ppl_dgm.inference.learning.bounds import BoundLearner
from ppl_dgm.registry import algorithm

__all__ = ["IWAE"]


@algorithm("iwae")
@dataclass(frozen=True)
class IWAE(BoundLearner):
    """Ascent of the importance-weighted bound of each example,

        L_K(x) = E log (1/K) sum_k p(x, z_k) / q(z_k | x)  <=  L_(K+1)(x)  <=  log p(x),      z_k ~ q(z | x).

    The objective is -L_K per example, in nats. For any program whose sites all lie inside the plate `data`, with a
    guide. `dgm.score` with the same object gives the bound.

    Arguments:
        particles: K.
        gradient: "standard", "dreg" (doubly reparameterised; Tucker et al. 2019), "sticking-the-landing" (Roeder et al.
            2017; biased for K > 1) or "vimco" (discrete guides; Mnih and Rezende 2016). With many draws the standard
            gradient of the guide drowns in noise; that of "dreg" does not.
        Others: see `GradientLearner`.

    Raises:
        TaskUnavailable: no guide; sites outside the plate `data`; a gradient that the guide does not have.

    Source: Burda, Grosse and Salakhutdinov (2016); Tucker, Lawson, Gu and Maddison (2019), Doubly reparameterized gradient
    estimators for Monte Carlo objectives.

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.IWAE(particles=16, gradient="dreg", epochs=100, patience=10)
    """

    particles: int = 8

    @property
    def aim(self) -> str:
        return f"-importance-weighted bound of {self.particles} draws, nats per example"
