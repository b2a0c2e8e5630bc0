"""choose_components: how many components a mixture should have, by held-out score, BIC and evidence."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from torch import Tensor

from ppl_dgm.errors import ProgramError
from ppl_dgm.tasks import infer, learn, score

from .mixture import Mixture

__all__ = ["choose_components"]


def choose_components(
    make: Callable[[int], Mixture],
    data: Tensor,
    candidates: Iterable[int],
    valid: Tensor | None = None,
    *,
    method: Any = None,
    bayesian: Callable[[int], Any] | None = None,
    evidence: Any = "tempered-smc",
    seed: int = 0,
) -> pd.DataFrame:
    """Learn a mixture of each size and compare.

        BIC = log p(data) - free / 2 log N,        with p(free) the number of free parameters; higher is better here

    in nats, Schwarz's approximation of the log evidence. The held-out score is the one to trust where there are data to
    hold out; the evidence needs priors, and then weighs them.

    Arguments:
        make: makes a program with so many components, e.g. `lambda k: MixtureOfGaussians(2, k)`.
        data: [N, D].
        candidates: numbers of components.
        valid: [M, D], held out; None leaves that column out.
        method: a learner, by default the program's own.
        bayesian: makes a program with priors, e.g. `lambda k: BayesianMixture(2, k)`; None leaves the evidence out.
        evidence: a method of `infer` that gives `log_evidence`.
        seed: of every fit.

    Returns:
        One row per candidate: `components`, `free` parameters, `train` and `valid` (nats per example), `valid_stderr`,
        `bic` and `log_evidence` (nats, of all data). `attrs["best"]` has {column: components} of the highest `valid`,
        `bic` and `log_evidence`.

    Raises:
        ProgramError: there are no candidates.

    Source: G. Schwarz (1978), Estimating the dimension of a model.

    Example:
        >>> import torch, ppl_dgm as dgm
        >>> from ppl_dgm.models import MixtureOfGaussians, choose_components
        >>> x = torch.cat([torch.randn(60, 1) - 5, torch.randn(60, 1) + 5])
        >>> choose_components(lambda k: MixtureOfGaussians(1, k), x, [1, 2, 3]).attrs["best"]
        {'bic': 2}
    """
    rows = []
    for size in candidates:
        program = make(size)
        learn(program, data, method=method, seed=seed)
        train = score(program, data).mean().value
        bic = len(data) * train - program.free_count / 2 * math.log(len(data))
        row: dict[str, float] = {"components": size, "free": program.free_count, "train": train}
        if valid is not None:
            held_out = score(program, valid).mean()
            row |= {"valid": held_out.value, "valid_stderr": held_out.stderr}
        row["bic"] = bic
        if bayesian is not None:
            found = infer(bayesian(size), data, method=evidence, seed=seed).log_evidence
            if found is None:
                raise ProgramError(f"evidence: {evidence!r} gives no log evidence; take 'tempered-smc' or 'ais'.")
            row["log_evidence"] = float(found.value.sum())
        rows.append(row)
    if not rows:
        raise ProgramError("candidates is empty; give numbers of components, such as range(1, 6).")
    table = pd.DataFrame(rows)
    judges = [name for name in ("valid", "bic", "log_evidence") if name in table]
    table.attrs["best"] = {name: int(table["components"][table[name].idxmax()]) for name in judges}
    return table
