"""Renyi: learning by the variational Renyi bound of each example."""

from dataclasses import dataclass

import torch

from ppl_dgm.inference.learning.bounds import BoundLearner, renyi_bound
from ppl_dgm.inference.learning.particles import Particles
from ppl_dgm.options import require
from ppl_dgm.program import Program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Score

__all__ = ["Renyi"]


@algorithm("renyi")
@dataclass(frozen=True)
class Renyi(BoundLearner):
    """Ascent of the variational Renyi bound of each example, estimated with K draws of the guide,

        L_alpha(x) = log E_q [ (p(x, z) / q(z | x))^(1 - alpha) ] / (1 - alpha)  <=  log p(x)      for alpha >= 0.

    alpha = 1 is the ELBO and alpha = 0 the importance-weighted bound; above 1 the guide covers less and less of the
    posterior. The estimate is a lower bound in expectation for every K: it lies between the ELBO and L_alpha. `dgm.score`
    with the same object gives it. For upper bounds (alpha < 0) see `CUBO`.

    Arguments:
        alpha: at least 0.
        particles: K.
        gradient: as in `IWAE`; "dreg" weights the draws with alpha v + (1 - alpha) v^2.
        Others: see `GradientLearner`.

    Raises:
        As `IWAE`.

    Source: Li and Turner (2016), Renyi divergence variational inference; the doubly reparameterised gradient is that of
    Tucker et al. (2019) carried over.
    """

    alpha: float = 0.5
    particles: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, ("alpha", self.alpha >= 0, "at least 0 (upper bounds are those of dgm.CUBO)"))

    @property
    def order(self) -> float:
        return float(self.alpha)

    @property
    def aim(self) -> str:
        return f"-Renyi bound (alpha = {self.alpha:g}) of {self.particles} draws, nats per example"

    def evidence(self, program: Program, *args: object, **kwargs: object) -> Score:
        """The bound of each example; see `ppl_dgm.score`."""
        with torch.no_grad():
            log_weights = Particles(program, self.particles).check(args).log_weights(*args)
        return Score(
            renyi_bound(log_weights, self.order),
            "lower_bound",
            how=f"Renyi bound, alpha = {self.alpha:g}, K = {self.particles}",
        )
