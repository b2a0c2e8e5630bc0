"""A Posterior as ArviZ's groups, for both of its dialects, and ArviZ's summary of it."""

import inspect
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .results import Posterior

__all__ = ["from_groups", "summary", "to_arviz"]


def to_arviz(posterior: Posterior, predictive: bool, log_likelihood: bool, seed: int | None) -> Any:
    """See `Posterior.to_arviz`."""
    if log_likelihood:
        posterior.log_likelihood  # noqa: B018  computed before weighted draws are drawn again
    posterior = posterior.unweighted(seed)
    groups = {"posterior": posterior.draws | posterior.deterministic}
    if posterior.stats:
        groups["sample_stats"] = posterior.stats
    if log_likelihood or posterior.has_log_likelihood:
        groups["log_likelihood"] = posterior.log_likelihood
    if posterior.program is not None and posterior.arguments is not None and posterior.draws:
        from .inference.diagnostics.pointwise import Replay

        seen = Replay(posterior).observations()
        groups["observed_data"] = {name: node["value"] for name, node in seen.items()}
        if predictive:
            args, kwargs = posterior.arguments
            lead = next(iter(posterior.draws.values())).shape[:2]
            drawn = posterior.predict(*args, seed=seed, **kwargs)
            groups["posterior_predictive"] = {
                name: drawn[name].reshape(*lead, *drawn[name].shape[1:]) for name in seen if name in drawn
            }
    elif predictive:
        posterior.predict(seed=seed)  # says what is missing
    return from_groups({group: values for group, values in groups.items() if values})


def from_groups(groups: dict[str, dict[str, Tensor]]) -> Any:
    """ArviZ's object of these groups of tensors."""
    import arviz

    arrays = {group: {name: _numpy(value) for name, value in values.items()} for group, values in groups.items()}
    if "data" in inspect.signature(arviz.from_dict).parameters:  # ArviZ 1.x takes one dictionary of groups
        return arviz.from_dict(arrays)
    return arviz.from_dict(**arrays)  # type: ignore[arg-type]


def summary(posterior: Posterior, **kwargs: Any) -> pd.DataFrame:
    """See `Posterior.summary`."""
    import arviz

    plain = posterior.unweighted()
    data = from_groups({"posterior": plain.draws | plain.deterministic})
    table = arviz.summary(data, **kwargs)
    if posterior.log_weights is not None and "var_names" not in kwargs:
        _weigh(table, posterior)
    return table


def _weigh(table: pd.DataFrame, posterior: Posterior) -> None:
    """Replace what ArviZ says of the error of resampled draws, which count some draws many times over."""
    errors, sizes = [], []
    weights = torch.softmax(posterior.log_weights.double(), 0)  # type: ignore[union-attr]
    for values in (posterior.draws | posterior.deterministic).values():
        x = values.flatten(0, 1).double()
        w = weights.reshape(weights.shape + (1,) * (x.dim() - weights.dim()))
        mean = (w * x).sum(0)
        errors.append((w * (x - mean)).square().sum(0).sqrt().flatten())
        sizes.append((1 / w.square().sum(0)).expand(mean.shape).flatten())
    known = {"mcse_mean": torch.cat(errors), "ess_bulk": torch.cat(sizes)}
    for column in ("mcse_mean", "mcse_sd", "ess_bulk", "ess_tail", "r_hat"):
        if column in table:
            table[column] = _numpy(known[column]) if column in known else np.nan


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
