"""Algorithms and programs by name: looked up lazily, so that naming one imports nothing else."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from .errors import ProgramError

__all__ = ["Algorithm", "algorithm", "algorithms", "find", "resolve"]

# name -> where it lives; the module is imported when the name is first used
_BUILT_IN = {
    "svi": "ppl_dgm.inference.svi:SVI",
    "penalised-svi": "ppl_dgm.inference.penalised:PenalisedSVI",
    "greedy-layerwise": "ppl_dgm.inference.greedy:GreedyLayerwise",
    "iwae": "ppl_dgm.inference.iwae:IWAE",
    "renyi": "ppl_dgm.inference.renyi:Renyi",
    "cubo": "ppl_dgm.inference.cubo:CUBO",
    "free-bits": "ppl_dgm.inference.free_bits:FreeBits",
    "wake-sleep": "ppl_dgm.inference.wake_sleep:WakeSleep",
    "two-stage": "ppl_dgm.inference.two_stage:TwoStage",
    "adversarial": "ppl_dgm.inference.adversarial:Adversarial",
    "aggressive": "ppl_dgm.inference.aggressive:Aggressive",
    "semi-amortised": "ppl_dgm.inference.semi_amortised:SemiAmortised",
    "refined": "ppl_dgm.inference.refined:Refined",
    "maximum-likelihood": "ppl_dgm.inference.maximum_likelihood:MaximumLikelihood",
    "em": "ppl_dgm.inference.em:EM",
    "cavi": "ppl_dgm.inference.cavi:CAVI",
    "online-em": "ppl_dgm.inference.online_em:OnlineEM",
    "split-merge-em": "ppl_dgm.inference.split_merge:SplitMergeEM",
    "mixture-em": "ppl_dgm.models.mixtures.mode:MixtureEM",
    "collapsed-mixture-gibbs": "ppl_dgm.models.mixtures.collapsed:CollapsedMixtureGibbs",
    "collapsed-topic-gibbs": "ppl_dgm.models.graphical.topic_gibbs:CollapsedTopicGibbs",
    "ensemble": "ppl_dgm.inference.ensemble:Ensemble",
    "closed-form": "ppl_dgm.inference.closed_form:ClosedForm",
    "contrastive-divergence": "ppl_dgm.inference.contrastive_divergence:ContrastiveDivergence",
    "denoising": "ppl_dgm.inference.denoising:Denoising",
    "exact": "ppl_dgm.inference.exact:Exact",
    "variable-elimination": "ppl_dgm.inference.variable_elimination:VariableElimination",
    "belief-propagation": "ppl_dgm.inference.belief_propagation:BeliefPropagation",
    "junction-tree": "ppl_dgm.inference.junction_tree:JunctionTree",
    "elbo": "ppl_dgm.inference.elbo:ELBO",
    "importance-weighted": "ppl_dgm.inference.importance:ImportanceWeighted",
    "importance": "ppl_dgm.inference.importance:Importance",
    "amortised": "ppl_dgm.inference.amortised:Amortised",
    "simple-monte-carlo": "ppl_dgm.inference.importance:SimpleMonteCarlo",
    "hmc": "ppl_dgm.inference.hmc:HMC",
    "nuts": "ppl_dgm.inference.nuts:NUTS",
    "chees": "ppl_dgm.inference.chees:ChEES",
    "mala": "ppl_dgm.inference.mala:MALA",
    "random-walk": "ppl_dgm.inference.random_walk:RandomWalk",
    "meads": "ppl_dgm.inference.meads:MEADS",
    "mclmc": "ppl_dgm.inference.mclmc:MCLMC",
    "adjusted-mclmc": "ppl_dgm.inference.adjusted_mclmc:AdjustedMCLMC",
    "sgld": "ppl_dgm.inference.stochastic_gradient:SGLD",
    "sghmc": "ppl_dgm.inference.stochastic_gradient:SGHMC",
    "gibbs": "ppl_dgm.inference.gibbs:Gibbs",
    "parallel-tempering": "ppl_dgm.inference.parallel_tempering:ParallelTempering",
    "tempered-smc": "ppl_dgm.inference.tempered_smc:TemperedSMC",
    "ais": "ppl_dgm.inference.ais:AIS",
    "laplace": "ppl_dgm.inference.laplace:Laplace",
    "pathfinder": "ppl_dgm.inference.pathfinder:Pathfinder",
    "svgd": "ppl_dgm.inference.svgd:SVGD",
    "pyro-nuts": "ppl_dgm.inference.pyro_mcmc:PyroNUTS",
    "pyro-hmc": "ppl_dgm.inference.pyro_mcmc:PyroHMC",
}
_registered: dict[str, type] = {}
A = TypeVar("A", bound=type)


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass of options with one method.

    `run(program, *args, **kwargs)` returns a `Fit` (it learns), a `Posterior` (it infers) or a `Score` (it scores).
    The verbs hand over between them: `infer` draws from the guide of a `Fit`, `score` reads the evidence of a `Posterior`.
    """

    def run(self, program: Any, *args: Any, **kwargs: Any) -> Any: ...


def algorithm(name: str) -> Callable[[A], A]:
    """Register an algorithm under a name, so that `method="name"` finds it.

    Example:
        >>> from dataclasses import dataclass
        >>> @algorithm("my-sampler")
        ... @dataclass(frozen=True)
        ... class MySampler:
        ...     draws: int = 100
        ...     def run(self, program, *args, **kwargs): ...
    """

    def register(cls: A) -> A:
        if not is_dataclass(cls) or not hasattr(cls, "run"):
            raise ProgramError(
                f"algorithm {name!r}: {cls.__name__} must be a dataclass with a method run(program, *args)."
            )
        _registered[name] = cls
        return cls

    return register


def algorithms() -> list[str]:
    """Names of every algorithm that `method=` understands."""
    return sorted({*_BUILT_IN, *_registered})


def find(name: str) -> type:
    """The algorithm class of that name.

    Raises:
        ProgramError: there is none; the message lists those that there are.
    """
    key = name.lower().replace("_", "-").replace(" ", "-")
    if key in _registered:
        return _registered[key]
    if key not in _BUILT_IN:
        close = difflib.get_close_matches(key, algorithms(), 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ProgramError(f"method {name!r} is unknown; {hint}there are: {', '.join(algorithms())}.")
    module, attribute = _BUILT_IN[key].split(":")
    return getattr(importlib.import_module(module), attribute)


def resolve(method: Any, **options: Any) -> Any:
    """An algorithm object from a name, a class or an object; `options` fill fields of a named one."""
    if isinstance(method, str):
        method = find(method)
    if isinstance(method, type):
        known = {field.name for field in fields(method)} if is_dataclass(method) else set()
        return method(**{name: value for name, value in options.items() if name in known})
    if not hasattr(method, "run"):
        raise ProgramError(
            f"method must be a name or an object with a method run, but it is a {type(method).__name__}."
        )
    return method
