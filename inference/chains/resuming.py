"""A checkpoint of a sampler: one file, replaced whole, from which a run goes on to the same draws."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_dgm.errors import FileError
from ppl_dgm.files import load_tensors, save_tensors
from ppl_dgm.inference.chains.adaptation import Adaptation
from ppl_dgm.inference.chains.hamiltonian import Point

if TYPE_CHECKING:
    from ppl_dgm.inference.chains.sampling import Run

__all__ = ["read_run", "write_run"]

_FREE = ("checkpoint", "draws")  # options that may differ: a run can be resumed for more draws


def write_run(path: str | Path, sampler: Any, density: Any, run: "Run") -> None:
    """Everything that the rest of the run depends on, the random state included, in one safetensors file."""
    tensors = {f"point/{name}": value for name, value in vars(run.point).items()}
    learned, adaptation = run.warmup.state()
    kernel = {name: getattr(run.kernel, name) for name in run.kernel.remembered}
    tensors |= {f"adaptation/{name}": value for name, value in learned.items()}
    tensors |= {f"kernel/{name}": value for name, value in kernel.items() if isinstance(value, Tensor)}
    if run.draws:
        tensors["draws"] = torch.stack(run.draws)
    numbers: dict[str, list[Any]] = {}
    for name in run.rows[0] if run.rows else ():
        column = [row[name] for row in run.rows]
        if isinstance(column[0], Tensor):
            tensors[f"stats/{name}"] = torch.stack(column)
        else:
            numbers[name] = column
    tensors["random/cpu"] = torch.get_rng_state()
    if density.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(density.device)
    notes = {
        "format": 3,
        "run": _signature(sampler, density),
        "t": run.t,
        "numbers": numbers,
        "adaptation": adaptation,
        "kernel": {name: value for name, value in kernel.items() if not isinstance(value, Tensor)},
        "seconds": [run.warmup_seconds, run.sampling_seconds],
        "gradients": [run.gradients, run.warmup_gradients, run.evaluations],
    }
    save_tensors(path, tensors, notes)


def read_run(path: str | Path, sampler: Any, density: Any, warmup: Adaptation) -> "Run":
    """The run that `write_run` wrote, with torch's random state as it was then.

    Raises:
        FileError: the file is damaged, or belongs to another run.
    """
    from ppl_dgm.inference.chains.sampling import Run

    tensors, notes = load_tensors(path)
    if not isinstance(notes, dict) or "adaptation" not in notes or "run" not in notes:
        raise FileError(f"{path} is no checkpoint of a sampler; give another file for checkpoint=.")
    _compare(path, notes["run"], _signature(sampler, density))
    device = density.device

    def group(prefix: str) -> dict[str, Tensor]:
        # copies, since sums depend on how memory is aligned, which a file does not keep
        found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        return {name: value.to(device).clone() for name, value in found.items()}

    point = Point(**group("point/"))
    _check_density(path, sampler, density, point)
    warmup.restore(group("adaptation/"), notes["adaptation"])
    draws = list(tensors["draws"].to(device).unbind(0)) if "draws" in tensors else []
    columns = {
        name.removeprefix("stats/"): value.to(device).unbind(0)
        for name, value in tensors.items()
        if name.startswith("stats/")
    }
    columns |= notes["numbers"]
    rows = [{name: column[i] for name, column in columns.items()} for i in range(len(draws))]
    kernel = sampler.kernel()
    for name, value in {**notes["kernel"], **group("kernel/")}.items():
        setattr(kernel, name, value)
    torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    run = Run(point, warmup, kernel, notes["t"], draws[: sampler.draws], rows[: sampler.draws])
    run.warmup_seconds, run.sampling_seconds = notes["seconds"]
    run.gradients, run.warmup_gradients, run.evaluations = notes["gradients"]
    return run


def _signature(sampler: Any, density: Any) -> dict[str, Any]:
    options = {f.name: str(getattr(sampler, f.name)) for f in fields(sampler) if f.name not in _FREE}
    return {
        "method": type(sampler).__name__,
        **options,
        "dim": density.dim,
        "number type": str(density.dtype),
    }


def _compare(path: str | Path, theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    for name in {**theirs, **mine}:
        if theirs.get(name) != mine.get(name):
            raise FileError(
                f"checkpoint {path} belongs to another run ({name} was {theirs.get(name)} and is {mine.get(name)}); remove it "
                "or give another file for checkpoint=."
            )


def _check_density(path: str | Path, sampler: Any, density: Any, point: Point) -> None:
    counted = {name: getattr(density, name) for name in ("gradients", "evaluations") if hasattr(density, name)}
    value = sampler.point(density, point.z).value
    if sampler.needs_gradient:
        density.gradient(point.z)  # the run that records a graph rounds otherwise than its replays: let it be this one
    for name, number in counted.items():
        setattr(density, name, number)
    if not torch.allclose(value, point.value, rtol=1e-4, atol=1e-3):
        raise FileError(
            f"checkpoint {path} belongs to another program or other data (the log density at its points is another); "
            "remove it or give another file for checkpoint=."
        )
