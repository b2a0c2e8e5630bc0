"""Deep generative models as Pyro programs: sample, score, infer and learn any of them, and say how exact the answer is."""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> the module that defines it; imported on first use, so that `import ppl_dgm` is fast
_NAMES = {
    "Answer": "program", "FunctionProgram": "program", "Program": "program", "as_program": "program",
    "infer": "tasks", "learn": "tasks", "sample": "tasks", "score": "tasks",
    "Fit": "results", "Posterior": "results", "Score": "results",
    "card": "cards", "check": "checking", "LogDensity": "density",
    "Structure": "graphical.structure", "structure": "graphical.structure",
    "Diagram": "diagrams.diagram", "diagram": "diagrams.diagram",
    "algorithm": "registry", "algorithms": "registry",
    "calibrate": "inference.diagnostics.calibration", "Calibration": "inference.diagnostics.calibration",
    "PredictiveCheck": "inference.diagnostics.predictive_checks", "compare": "inference.comparing.comparison", "Comparison": "inference.comparing.comparison",
    "DataError": "errors", "DgmError": "errors", "FileError": "errors", "NumericalError": "errors",
    "ProgramError": "errors", "TaskUnavailable": "errors",
    "SVI": "inference.svi", "MaximumLikelihood": "inference.maximum_likelihood", "EM": "inference.em",
    "CAVI": "inference.cavi", "diagnose_latents": "inference.diagnostics.latent.report",
    "OnlineEM": "inference.online_em", "Ensemble": "inference.ensemble", "SplitMergeEM": "inference.split_merge",
    "ClosedForm": "inference.closed_form", "ContrastiveDivergence": "inference.contrastive_divergence",
    "Denoising": "inference.denoising", "Exact": "inference.exact", "ELBO": "inference.elbo",
    "VariableElimination": "inference.variable_elimination", "BeliefPropagation": "inference.belief_propagation",
    "JunctionTree": "inference.junction_tree", "map_configuration": "inference.map_configuration",
    "Configuration": "inference.map_configuration", "FactorGraph": "inference.messages.factor_graph",
    "ImportanceWeighted": "inference.importance", "Importance": "inference.importance",
    "SimpleMonteCarlo": "inference.importance", "Amortised": "inference.amortised",
    "HMC": "inference.hmc", "NUTS": "inference.nuts", "ChEES": "inference.chees", "MALA": "inference.mala",
    "RandomWalk": "inference.random_walk", "MEADS": "inference.meads", "MCLMC": "inference.mclmc",
    "AdjustedMCLMC": "inference.adjusted_mclmc", "SGLD": "inference.stochastic_gradient",
    "SGHMC": "inference.stochastic_gradient", "Gibbs": "inference.gibbs",
    "MixtureEM": "models.mixtures.mode", "CollapsedMixtureGibbs": "models.mixtures.collapsed",
    "CollapsedTopicGibbs": "models.graphical.topic_gibbs",
    "ParallelTempering": "inference.parallel_tempering", "TemperedSMC": "inference.tempered_smc", "AIS": "inference.ais",
    "Laplace": "inference.laplace", "Pathfinder": "inference.pathfinder", "SVGD": "inference.svgd",
    "PyroNUTS": "inference.pyro_mcmc", "PyroHMC": "inference.pyro_mcmc",
    "IWAE": "inference.iwae", "Renyi": "inference.renyi", "CUBO": "inference.cubo",
    "FreeBits": "inference.free_bits", "WakeSleep": "inference.wake_sleep", "Aggressive": "inference.aggressive",
    "SemiAmortised": "inference.semi_amortised", "Refined": "inference.refined",
    "PenalisedSVI": "inference.penalised", "GreedyLayerwise": "inference.greedy",
    "impute": "inference.imputation", "Imputation": "inference.imputation",
    "TwoStage": "inference.two_stage", "Adversarial": "inference.adversarial",
}  # fmt: skip
_MODULES = ("data", "distributions", "evaluate", "inference", "models", "nn", "plots")

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
