"""posteriordb, read from a folder: data, reference moments with their errors, reference draws where there are some.

The user brings the Pyro program; those of eight posteriors are here (`PROGRAMS`).

    entry = posteriordb.read("posteriordb", "kidiq-kidscore_momiq")
    target = entry.target(my_program, torch.tensor(entry.data["kid_score"]), torch.tensor(entry.data["mom_iq"]))
    squared_bias(dgm.infer(target.program, *target.args), target)

Source: Magnusson, Torgander, Bürkner, Zhang, Carpenter and Vehtari (2024), posteriordb: testing, benchmarking and
developing Bayesian inference algorithms; https://github.com/stan-dev/posteriordb (BSD-3-Clause).
"""

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import arviz
import pandas as pd
import torch
from torch import Tensor

from ppl_dgm.density import LogDensity
from ppl_dgm.errors import FileError, ProgramError
from ppl_dgm.inference.comparing.references import weighted_moments
from ppl_dgm.inference.comparing.scalars import Values, listed_moments, place
from ppl_dgm.results import Posterior

from .posteriordb_programs import PROGRAMS
from .target import Target

__all__ = ["PROGRAMS", "Entry", "default_folder", "names", "read", "target"]


@dataclass(frozen=True)
class Entry:
    """A posterior of the database.

    Attributes:
        name: of the posterior.
        data: as the database has it, {name: number or nested list}.
        mean, mean_squared: {scalar: (value, Monte Carlo standard error)}, scalars named as Stan does: `beta[1]`, `sigma`,
            `theta[2,1]`; empty where the database has no reference.
        draws: {scalar: [chain, draw]}, float64; None where the folder has none.
        about: what else the database says (model name, keywords, licence).
    """

    name: str
    data: dict[str, Any]
    mean: Values = field(default_factory=dict)
    mean_squared: Values = field(default_factory=dict)
    draws: dict[str, Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def scalars(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The reference's scalars among values of sites.

        Arguments:
            values: {site: [..., *shape]}, draws and deterministic values together; indices count from one.

        Returns:
            {scalar: [...]}.

        Raises:
            ProgramError: there is no site of that name.
        """
        return {name: _element(name, values) for name in self.mean}

    def errors(self, posterior: Posterior) -> pd.DataFrame:
        """How draws compare with the reference, one row for each scalar.

        Columns `mean` and `square`: (average of the draws - reference) / sqrt(MCSE^2 + reference MCSE^2), of x and
        of x^2, standard normal where both are right; `r_hat`: rank-normalised, the larger of x and x^2.
        """
        found = self.scalars({**posterior.draws, **posterior.deterministic})
        rows = {}
        for name, x in found.items():
            values = x.detach().cpu().double().numpy()
            row: dict[str, float] = {"r_hat": 0.0}
            for power, key, moments in ((1, "mean", self.mean), (2, "square", self.mean_squared)):
                expected, mcse = moments[name]
                error = float((values**power).mean()) - expected
                row[key] = error / math.hypot(float(arviz.mcse(values**power)), mcse)
                row["r_hat"] = max(row["r_hat"], float(arviz.rhat(values**power)))
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "square", "r_hat"])

    def target(self, program: Callable[..., Any], *args: Any, rename: dict[str, str] | None = None) -> Target:
        """A target with these references.

        Var[x^2], which the database does not have: see `ppl_dgm.inference.comparing.scalars.listed_moments`.

        Arguments:
            program: whose latent and deterministic sites have the reference's names.
            *args: its arguments.
            rename: {name in the reference: site}, where the program calls it otherwise.
        """
        sites = rename or {}
        moments: dict[str, Any] = {
            key: {sites.get(site, site): value for site, value in table.items()}
            for key, table in listed_moments(self.mean, self.mean_squared, self.draws).items()
        }
        dim = LogDensity(program, *args, check=False).dim
        return Target(self.name, program, args, dim, **moments, made={"source": "posteriordb"})


def read(folder: str | Path, name: str) -> Entry:
    """A posterior of the database.

    Arguments:
        folder: a clone of the repository or its `posterior_database`; or a folder of files `NAME.json` with `data`,
            `mean` and `mean_squared`.
        name: of the posterior, e.g. "arK-arK".

    Raises:
        FileError: there is no such posterior in the folder (the message names the nearest), or a file is damaged.
    """
    root = Path(folder)
    try:
        if (root / f"{name}.json").is_file():
            record = _json(root / f"{name}.json")
            values = [_values(record[key], f"{key}_value") for key in ("mean", "mean_squared")]
            about = {k: v for k, v in record.items() if k not in ("data", "mean", "mean_squared")}
            return Entry(name, record["data"], values[0], values[1], None, about)
        base = _base(root)
        if not (base / "posteriors" / f"{name}.json").is_file():
            raise FileError(_unknown(root, name))
        return _official(base, name)
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(
            f"{name} in {root} cannot be read ({error!r}); get the folder from posteriordb again."
        ) from None


def _official(base: Path, name: str) -> Entry:
    """From the layout of the repository."""
    about = _json(base / "posteriors" / f"{name}.json")
    data = _json(base / "data" / "data" / f"{about['data_name']}.json")
    reference = about.get("reference_posterior_name")
    if not reference:
        return Entry(name, data, about=about)
    stored = base / "reference_posteriors"
    draws, values = None, []
    file = stored / "draws" / "draws" / f"{reference}.json"
    if file.is_file() or file.with_suffix(".json.zip").is_file():
        chains = _json(file)
        draws = {key: torch.tensor([c[key] for c in chains], dtype=torch.float64) for key in chains[0]}
    for power, key in enumerate(("mean_value", "mean_squared_value"), 1):
        file = stored / "summary_statistics" / key / key / f"{reference}.json"
        if file.is_file():
            values.append(_values(_json(file), key))
        elif draws is not None:
            values.append({scalar: _average(x**power) for scalar, x in draws.items()})
        else:
            values.append({})
    return Entry(name, data, values[0], values[1], draws, about)


def names(folder: str | Path) -> list[str]:
    """The posteriors that a folder has."""
    root = Path(folder)
    official = _base(root) / "posteriors"
    return sorted(path.stem for path in (official if official.is_dir() else root).glob("*.json"))


def default_folder() -> Path | None:
    """`$PPL_DGM_DATA/posteriordb`, if there is one."""
    root = os.environ.get("PPL_DGM_DATA")
    folder = Path(root) / "posteriordb" if root else None
    return folder if folder is not None and folder.is_dir() else None


def target(name: str, folder: str | Path | None = None, dtype: torch.dtype = torch.float64) -> Target:
    """One of the eight posteriors whose Pyro program is here (`PROGRAMS`), with data and references from a folder.

    Arguments:
        folder: see `read`; by default `$PPL_DGM_DATA/posteriordb`.
        dtype: of the data, and so of the draws.
    """
    if name not in PROGRAMS:
        raise ProgramError(
            f"no Pyro program of {name!r} is here, only of {', '.join(PROGRAMS)}; read the entry with posteriordb.read "
            "and give its target your own program."
        )
    folder = folder or default_folder()
    if folder is None:
        raise FileError("no folder of posteriordb is known; give one, or set PPL_DGM_DATA to what holds posteriordb/.")
    entry = read(folder, name)
    program, arguments = PROGRAMS[name]
    return entry.target(program, *(a.to(dtype) if isinstance(a, Tensor) else a for a in arguments(entry.data)))


# -- files ---------------------------------------------------------------------------------------------------


def _base(root: Path) -> Path:
    return root / "posterior_database" if (root / "posterior_database").is_dir() else root


def _json(path: Path) -> Any:
    """A JSON file, or the one in its zip."""
    if path.is_file():
        return json.loads(path.read_text())
    with zipfile.ZipFile(path.with_suffix(".json.zip")) as archive:
        [inner] = [n for n in archive.namelist() if n.endswith(".json") and not n.startswith("__MACOSX")]
        return json.loads(archive.read(inner))


def _values(block: dict[str, Any], key: str) -> Values:
    rows = zip(block["names"], block[key], block["mcse_mean"], strict=True)
    return {scalar: (float(value), float(mcse)) for scalar, value, mcse in rows}


def _average(x: Tensor) -> tuple[float, float]:
    mean, _, mcse = weighted_moments(x[..., None], None)
    return float(mean), float(mcse)


def _unknown(root: Path, name: str) -> str:
    known = names(root) if root.is_dir() else []
    shown = f"it has {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "it has no posteriors"
    return f"there is no posterior {name!r} in {root}: {shown}; give a clone of stan-dev/posteriordb."


# -- names of scalars ----------------------------------------------------------------------------------------


def _element(name: str, values: dict[str, Tensor]) -> Tensor:
    site, index = place(name)
    if site not in values:
        raise ProgramError(
            f"the reference has {name!r}, but there is no site {site!r}, only {', '.join(map(repr, values))}; "
            "name the program's sites as the reference does."
        )
    at: tuple[Any, ...] = (..., *index)
    return values[site][at]
