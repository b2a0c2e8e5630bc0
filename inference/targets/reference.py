"""Stored references: moments of long runs as small JSON files, made from a posterior and checked against the data."""

import json
import math
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arviz
import pyro
import torch
from torch import Tensor

import ppl_dgm
from ppl_dgm.errors import FileError, ProgramError
from ppl_dgm.inference.comparing.references import weighted_moments
from ppl_dgm.results import Posterior

__all__ = ["FOLDER", "checksum", "read_reference", "reference_moments", "write_reference"]

FOLDER = Path(__file__).parent / "references"
KEYS = ("mean", "square", "variance", "square_variance", "mcse_mean", "mcse_square")
_DIGITS = {"mcse_mean": 3, "mcse_square": 3, "square_variance": 4}  # of the others six


def reference_moments(posterior: Posterior, sites: Sequence[str] | None = None) -> dict[str, dict[str, Tensor]]:
    """The moment fields of a `Target` from the draws of a long run.

    Arguments:
        posterior: draws of several chains.
        sites: latent or deterministic sites; by default all.

    Returns:
        {field: {site: [*shape]}}, float64, for `mean`, `square` (E[x^2]), `variance`, `square_variance` (Var[x^2]), and
        the Monte Carlo standard errors `mcse_mean` and `mcse_square` (ArviZ's, from all chains).

    Raises:
        ProgramError: there is no such site, or a moment is not finite.
    """
    table = {**posterior.draws, **posterior.deterministic}
    names = list(table) if sites is None else list(sites)
    found: dict[str, dict[str, Tensor]] = {key: {} for key in KEYS}
    for site in names:
        if site not in table:
            raise ProgramError(f"there are no draws of site {site!r}; there are {', '.join(map(repr, table))}.")
        x = table[site].detach().cpu().double()
        rows = x.reshape(*x.shape[:2], -1)  # [chain, draw, d]
        first = weighted_moments(rows, None)  # mean, variance, MCSE
        second = weighted_moments(rows.square(), None)
        for key, value in zip(KEYS, (first[0], second[0], first[1], second[1], first[2], second[2])):
            found[key][site] = value.reshape(x.shape[2:])
        bad = [key for key in KEYS if not bool(found[key][site].isfinite().all())]
        if bad:
            raise ProgramError(f"the {bad[0]} of site {site!r} is not finite; leave the site out of the reference.")
    return found


def checksum(args: Sequence[Any]) -> float:
    """A number that tells whether two targets have the same data: a sum of all entries with weights of their own."""
    total = 0.0
    for a in args:
        if isinstance(a, Tensor):
            flat = a.detach().cpu().double().flatten()
            total += float((flat * (1 + torch.arange(len(flat)) % 97)).sum()) + 3 * float(flat.square().sum())
    return total


def write_reference(
    name: str,
    args: Sequence[Any],
    posterior: Posterior,
    made: dict[str, Any],
    sites: Sequence[str] | None = None,
    folder: Path = FOLDER,
) -> Path:
    """Store the moments of a long run as `folder/name.json`.

    Arguments:
        name: the file's.
        args: the target's arguments, for the checksum of the data.
        posterior: several chains.
        made: how, in words and options; the diagnostics of the run are added.
        sites: see `reference_moments`.
    """
    moments = reference_moments(posterior, sites)
    relative = [
        (moments[f"mcse_{k}"][site] / moments[v][site].sqrt()).nan_to_num(0.0).max()
        for k, v in (("mean", "variance"), ("square", "square_variance"))
        for site in moments["mean"]
    ]
    kept = list(moments["mean"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = {**posterior.draws, **posterior.deterministic}
        data = arviz.convert_to_dataset({s: table[s].detach().cpu().numpy() for s in kept})
        r_hat, bulk, tail = arviz.rhat(data), arviz.ess(data, method="bulk"), arviz.ess(data, method="tail")
    divergences = posterior.stats["diverging"] if "diverging" in posterior.stats else torch.zeros(1)
    chains, draws = next(iter(table.values())).shape[:2]
    made = {
        **made,
        "chains": chains,
        "draws_of_each": draws,
        "dtype": str(next(iter(table.values())).dtype).removeprefix("torch."),
        "largest_mcse_over_sd": _rounded(float(max(relative)), 3),
        "largest_r_hat": _rounded(max(float(r_hat[s].max()) for s in kept), 5),
        "smallest_ess_bulk": round(min(float(bulk[s].min()) for s in kept)),
        "smallest_ess_tail": round(min(float(tail[s].min()) for s in kept)),
        "divergences": int(divergences.sum()),
        "gradients": posterior.cost.gradients,
        "versions": {
            "ppl_dgm": ppl_dgm.__version__,
            "torch": torch.__version__.split("+")[0],
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
    }
    record = {
        "format": 1,
        "name": name,
        "made": made,
        "data_checksum": checksum(args),
        "shapes": {site: list(moments["mean"][site].shape) for site in kept},
        **{
            key: {
                site: [_rounded(v, _DIGITS.get(key, 6)) for v in moments[key][site].flatten().tolist()] for site in kept
            }
            for key in KEYS
        },
    }
    path = folder / f"{name}.json"
    text = json.dumps(record, separators=(",", ":"))
    path.write_text(text.replace(',"data_checksum"', ',\n"data_checksum"').replace('},"', '},\n"') + "\n")
    return path


def read_reference(name: str, args: Sequence[Any], folder: Path = FOLDER) -> dict[str, Any]:
    """The moment fields and `made` of a `Target` from `folder/name.json`; empty when there is no such file.

    Raises:
        FileError: the file is damaged, or was made with other data.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
        shapes, expected, made = record["shapes"], record["data_checksum"], record["made"]
        fields = {
            key: {
                site: torch.tensor(values, dtype=torch.float64).reshape(shapes[site])
                for site, values in record[key].items()
            }
            for key in KEYS
        }
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileError(
            f"{path} is no reference ({error}); make it again with benchmarks/targets.py --write."
        ) from None
    if not math.isclose(checksum(args), expected, rel_tol=1e-5, abs_tol=1e-5):
        raise FileError(
            f"{path} was made with other data than the target has (checksum {expected:.8g}, not {checksum(args):.8g}); "
            "make it again with benchmarks/targets.py --write."
        )
    return {**fields, "made": made}


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
