"""Stochastic variational inference: any Pyro ELBO over any program and guide, one step as a recorded graph."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDiscreteParallel, AutoLaplaceApproximation, AutoMultivariateNormal
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_dgm.densities.trees import number_type
from ppl_dgm.errors import DgmError, NumericalError, ProgramError
from ppl_dgm.inference.learning.training import GradientLearner, Objective, checked_run
from ppl_dgm.program import Program, as_program
from ppl_dgm.registry import algorithm
from ppl_dgm.results import Fit
from ppl_dgm.tracing import data_dim, latent_sites, sites

__all__ = ["SVI"]

_ELBOS: dict[str, Callable[..., ELBO]] = {
    "trace": Trace_ELBO,
    "mean_field": TraceMeanField_ELBO,
    "graph": TraceGraph_ELBO,
    "enum": TraceEnum_ELBO,
    "renyi": RenyiELBO,
}


@algorithm("svi")
@dataclass(frozen=True)
class SVI(GradientLearner):
    """Stochastic variational inference, max over parameters of

        ELBO(x) = E_q(z|x) [ log p(x, z) - log q(z | x) ]  <=  log p(x).

    The objective is -ELBO per example, in nats. With minibatches, the sites inside the plate `data` are rescaled, so that the objective of
    a program with global latent sites stays unbiased.

    Arguments:
        elbo: "trace" (any guide; without one the latent sites, if discrete, are summed out), "mean_field" (analytic KL; the
            guide must factorise like the model), "enum" (discrete sites summed out), "graph" (Rao-Blackwellised score function),
            "renyi" (Pyro's importance-weighted bound of `particles` draws, which weights draws of the whole batch; `IWAE` and `Renyi`
            weight those of each example), or any `pyro.infer.ELBO` object.
        particles: Monte Carlo draws per example.
        kl_weight: weight of the latent sites, a number or a function of the epoch (1, 2, ...): KL annealing, beta-VAE. Above 1 the
            objective is a looser bound than the ELBO, below 1 it is no bound on log p(x) at all; validation uses 1. A site that
            is summed out in the model, not in the guide, has no divergence to weigh.
        guide: a guide instead of the program's: one of Pyro's autoguides by name, class or `functools.partial`
            (`partial(AutoLowRankMultivariateNormal, rank=3)`), or any guide. A program without one gets "AutoNormal".
            "AutoLaplaceApproximation" is learned as a point and ends as the normal distribution there,
            "AutoDiscreteParallel" with elbo="enum".
        Others: see `GradientLearner`.

    Raises:
        ProgramError: minibatches without a plate `data`; a guide that does not match; a `kl_weight` where a latent site is
            summed out in the model.
        NumericalError: the objective left the finite numbers; the message names the site.

    Source: Hoffman et al. 2013; Kingma and Welling 2014; Burda et al. 2016 ("renyi" with alpha 0).

    Example:
        >>> import ppl_dgm as dgm
        >>> method = dgm.SVI(elbo="mean_field", epochs=100, patience=10, kl_weight=lambda epoch: min(1.0, epoch / 20))
    """

    elbo: Any = "trace"
    particles: int = 1
    kl_weight: float | Callable[[int], float] = 1.0
    guide: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.elbo, ELBO) and self.elbo not in _ELBOS:
            raise ProgramError(
                f"SVI: elbo must be one of {', '.join(_ELBOS)} or a pyro.infer.ELBO object, but it is {self.elbo!r}."
            )
        if self.particles < 1 or (self.elbo == "renyi" and self.particles < 2):
            raise ProgramError(
                f"SVI: particles must be at least {2 if self.elbo == 'renyi' else 1}, but it is {self.particles}."
            )

    @property
    def aim(self) -> str:
        name = self.elbo if isinstance(self.elbo, str) else type(self.elbo).__name__
        return f"-ELBO ({name}), nats per example"

    def run(self, program: Program, data: Any = None, *args: Any, valid: Any = None, **kwargs: Any) -> Fit:
        """Learn; see `ppl_dgm.learn`."""
        if data is None:
            raise ProgramError(
                f"SVI learns from observations that the program takes as its first argument, and {program.name!r} was given "
                "none; write def model(data): ... and pass them."
            )
        with number_type(program, (data, *args)):
            fit = super().run(program, data, *args, valid=valid, **kwargs)
            if isinstance(getattr(fit.program, "guide", None), AutoLaplaceApproximation):
                fit.program = _with_curvature(fit.program, (data, *args))
        return fit

    def prepare(self, program: Program, batch: tuple) -> Program:
        if self.guide is not None:
            program = as_program(program, self.guide)
        elif not program.has_guide and self.elbo != "enum":
            trace = checked_run(program, batch)
            latent = latent_sites(trace)
            if not all(node["fn"].has_enumerate_support for node in latent.values()):
                program = as_program(program, "AutoNormal")
        with program.running(), self._explained(program):
            trace = checked_run(program, batch, program.run_guide if program.has_guide else None)
            if self.kl_weight != 1.0:
                self._check_weighed(program, trace, batch)
        if self.batch_size is not None and isinstance(batch[0], Tensor) and batch[0].dim():
            _check_data_plate(program, trace)
        return program

    def _check_weighed(self, program: Program, trace: Any, batch: tuple) -> None:
        """Refuse a weight of divergences where the model's latent sites are summed out and not the guide's."""
        if program.has_guide and self.elbo != "enum" and not isinstance(self.elbo, TraceEnum_ELBO):
            return  # nothing is summed out, or all of it in the guide
        with torch.no_grad():
            drawn = latent_sites(pyro.poutine.trace(program.run_guide).get_trace(*batch)) if program.has_guide else {}
        alone = [name for name in latent_sites(trace) if name not in drawn]
        if alone:
            raise ProgramError(
                f"SVI: kl_weight weighs the divergence of the guide's sites from the model's, but {', '.join(alone)} of "
                f"{program.name!r} is summed out in the model and drawn by no guide; leave kl_weight at 1, or give a guide that "
                "draws it."
            )

    @contextmanager
    def _explained(self, program: Program) -> Iterator[None]:
        """What Pyro's autoguides say to a program that is not for them, as one sentence."""
        try:
            yield
        except (NotImplementedError, ValueError, AssertionError) as error:
            if isinstance(error, DgmError) or not isinstance(self.guide, str):
                raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise ProgramError(
                f"guide {self.guide!r} cannot take {program.name!r}: {reason}; choose another guide, such as 'AutoNormal' for "
                "continuous or 'AutoDiscreteParallel' for discrete sites."
            ) from error

    def objective(self, program: Program, total: int) -> Objective:
        return _NegativeELBO(self, program, total, self.kl_weight)

    def validation(self, program: Program, total: int) -> Objective:
        return _NegativeELBO(self, program, total, 1.0).value

    def gradients(self, program: Program, objective: Any, parameters: Sequence[Tensor]) -> Callable[..., tuple]:
        if hasattr(objective.elbo, "differentiable_loss"):
            return super().gradients(program, objective, parameters)
        return lambda *batch: objective.gradients(parameters, *batch)


class _NegativeELBO:
    """-ELBO per example of one batch, by a Pyro ELBO object over the program's model and guide."""

    def __init__(self, options: SVI, program: Program, total: int, kl_weight: float | Callable[[int], float]) -> None:
        self.kl_weight = kl_weight
        self.weight: Tensor | None = (
            None if kl_weight == 1.0 else torch.ones((), device=program.device, dtype=program.dtype)
        )
        self.live = [] if self.weight is None else [self.weight]
        summed = not program.has_guide or isinstance(program.guide, AutoDiscreteParallel)  # all is summed out
        name = "enum" if options.elbo == "trace" and summed else options.elbo
        self.elbo: Any = name if isinstance(name, ELBO) else _elbo(name, options.particles)
        self.joint = isinstance(
            self.elbo, RenyiELBO
        )  # its average is of weights, so that log densities must not be scaled inside it
        story = (
            config_enumerate(program.run_model, "parallel")
            if isinstance(self.elbo, TraceEnum_ELBO)
            else program.run_model
        )
        self.model = self._scaled(story, total)
        self.guide = self._scaled(program.run_guide, total) if program.has_guide else _empty_guide

    def _scaled(self, story: Callable, total: int) -> Callable:
        def run(*batch: Any) -> Any:
            rows = _rows(batch)
            with _PerExample(rows, total, self.weight, self.joint):
                return story(*batch)

        return run

    def begin_epoch(self, epoch: int) -> None:
        if self.weight is not None:
            self.weight.fill_(self.kl_weight(epoch) if callable(self.kl_weight) else self.kl_weight)

    def __call__(self, *batch: Any) -> Tensor:
        return self.elbo.differentiable_loss(self.model, self.guide, *batch)

    def value(self, *batch: Any) -> float:
        return self.elbo.loss(self.model, self.guide, *batch) / (_rows(batch) if self.joint else 1)

    def gradients(self, parameters: Sequence[Tensor], *batch: Any) -> tuple:
        """Loss and gradients of those of Pyro's objectives that call backward themselves."""
        for parameter in parameters:
            parameter.grad = None
        loss = torch.as_tensor(self.elbo.loss_and_grads(self.model, self.guide, *batch)).detach()
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        if self.joint:
            loss, gradients = loss / _rows(batch), [None if g is None else g / _rows(batch) for g in gradients]
        return (loss, *gradients)


class _PerExample(Messenger):
    """Scales log densities so that their sum estimates the data set's per-example average.

    A site inside the plate `data` counts 1 / rows of the batch; a global site 1 / rows of the data set. Latent sites count `weight` times.
    `joint` leaves the division by the batch's rows to the caller.
    """

    def __init__(self, rows: int, total: int, weight: Tensor | None, joint: bool) -> None:
        super().__init__()
        self.rows, self.total, self.weight, self.unit = rows, total, weight, rows if joint else 1

    def _pyro_sample(self, msg: Any) -> None:
        data = next((frame for frame in msg["cond_indep_stack"] if frame.name == "data"), None)
        own_subsampling = (
            data is not None and data.size != self.rows
        )  # the program draws its own minibatches and rescales them itself
        msg["scale"] = msg["scale"] * (
            self.unit / (self.rows if data is not None and not own_subsampling else self.total)
        )
        if self.weight is not None and not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.weight


def _with_curvature(program: Program, args: tuple) -> Program:
    """A program whose guide, a point of highest density, becomes the normal distribution with the curvature there."""
    with program.running():
        try:
            curved = program.guide.laplace_approximation(*args)
        except torch.linalg.LinAlgError:
            raise NumericalError(
                f"the log density of {program.name!r} is not curved downwards at the point that AutoLaplaceApproximation "
                "has found; learn for more epochs, or use method='laplace'."
            ) from None
    normal = AutoMultivariateNormal(program.guide.model)
    other = as_program(program, normal)
    root = curved.scale[:, None] * curved.scale_tril
    with other.running(), torch.no_grad():
        normal(*args)  # makes its parameters
        normal.loc.copy_(curved.loc)
        normal.scale, normal.scale_tril = root.diagonal(), root / root.diagonal()[:, None]
    return other


def _rows(batch: tuple) -> int:
    return len(batch[0]) if batch and isinstance(batch[0], Tensor) and batch[0].dim() else 1


def _elbo(name: str, particles: int) -> ELBO:
    if name == "renyi":
        return RenyiELBO(alpha=0.0, num_particles=particles, vectorize_particles=False)
    return _ELBOS[name](num_particles=particles, vectorize_particles=False)


def _empty_guide(*args: Any) -> None:
    """The guide of a program without latent sites, or one whose latent sites are all summed out."""


def _check_data_plate(program: Program, trace: Any) -> None:
    if all(data_dim(node) is None for node in sites(trace).values()):
        raise ProgramError(
            f"{program.name!r} has no plate named 'data' around its observations, so minibatches cannot be rescaled; "
            "name that plate 'data', or pass batch_size=None to use all rows at each step."
        )
