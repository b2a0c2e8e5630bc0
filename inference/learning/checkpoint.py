"""A checkpoint of the training loop: one file, replaced whole, from which a run goes on bit for bit."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ppl_dgm.errors import FileError
from ppl_dgm.files import load_tensors, save_tensors
from ppl_dgm.program import Program

__all__ = ["read_checkpoint", "write_checkpoint"]


def write_checkpoint(
    path: str | Path,
    program: Program,
    parameters: Sequence[Tensor],
    optimiser: Any,
    state: Any,
    live: Sequence[Tensor] = (),
) -> None:
    """Weights, best weights, moving average, the objective's live tensors, optimiser and random state, in one safetensors file."""
    tensors = {f"now/{k}": v for k, v in program.state_dict().items()} | {
        f"best/{k}": v for k, v in state.best_state.items()
    }
    tensors |= {f"average/{i}": v for i, v in enumerate(state.average)} | {f"live/{i}": v for i, v in enumerate(live)}
    numbers: dict[str, Any] = {}
    for i, (optimiser_, parameter) in enumerate(_optimisers(optimiser, parameters)):
        for name, value in optimiser_.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{i}/{name}"] = value
            elif value is not None:
                numbers[f"optimiser/{i}/{name}"] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors |= {f"random/cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, *rest = np.random.get_state()
    tensors["random/numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    notes = {
        "format": 1, "epoch": state.epoch, "steps": state.steps, "best": state.best, "best_epoch": state.best_epoch, "rows": state.rows,
        "seconds": state.seconds, "numbers": numbers, "numpy": [kind, *map(float, rest)], "python": _listed(random.getstate()),
    }  # fmt: skip
    save_tensors(path, tensors, notes)


def read_checkpoint(
    path: str | Path,
    program: Program,
    parameters: Sequence[Tensor],
    optimiser: Any,
    state: Any,
    live: Sequence[Tensor] = (),
) -> None:
    """Put everything back where `write_checkpoint` took it from.

    Raises:
        FileError: the file is damaged, or belongs to another program.
    """
    tensors, notes = load_tensors(path)
    if not isinstance(notes, dict) or "best_epoch" not in notes:
        raise FileError(f"{path} is no checkpoint of a learner; give another file for checkpoint=.")

    def group(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(name + "/"): v for k, v in tensors.items() if k.startswith(name + "/")}

    now, mine = group("now"), program.state_dict()
    differing = [k for k in {*now, *mine} if k not in now or k not in mine or now[k].shape != mine[k].shape]
    if differing:
        raise FileError(
            f"checkpoint {path} belongs to another program ({min(differing)} differs); remove it or give another file for checkpoint=."
        )
    program.load_state_dict(now)
    state.best_state = {k: v.to(program.device) for k, v in group("best").items()}
    state.average = (
        [tensors[f"average/{i}"].to(p.device) for i, p in enumerate(parameters)] if "average/0" in tensors else []
    )
    for i, tensor in enumerate(live):
        tensor.copy_(tensors[f"live/{i}"])
    for i, (optimiser_, parameter) in enumerate(_optimisers(optimiser, parameters)):
        prefix = f"optimiser/{i}/"
        values: dict[str, Any] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        values = {k: v.to(parameter.device) if v.dim() else v for k, v in values.items()}
        values |= {k.removeprefix(prefix): v for k, v in notes["numbers"].items() if k.startswith(prefix)}
        if values:
            optimiser_.state[parameter] = values
    torch.set_rng_state(tensors["random/cpu"])
    if torch.cuda.is_available() and "random/cuda/0" in tensors:
        torch.cuda.set_rng_state_all([tensors[f"random/cuda/{i}"] for i in range(torch.cuda.device_count())])
    kind, *rest = notes["numpy"]
    np.random.set_state((kind, tensors["random/numpy"].numpy().astype(np.uint32), int(rest[0]), int(rest[1]), rest[2]))
    version, inner, gauss = notes["python"]
    random.setstate((version, tuple(inner), gauss))
    for name in ("epoch", "steps", "best", "best_epoch", "rows", "seconds"):
        setattr(state, name, notes[name])


def _listed(state: tuple) -> list:
    version, inner, gauss = state
    return [version, list(inner), gauss]


def _optimisers(optimiser: Any, parameters: Sequence[Tensor]) -> list[tuple[Any, Tensor]]:
    """Each parameter with the torch optimiser that holds its state (Pyro's optimisers keep one for each parameter)."""
    if not isinstance(optimiser, PyroOptim):
        return [(optimiser, p) for p in parameters]
    for p in parameters:
        if p not in optimiser.optim_objs:
            optimiser.optim_objs[p] = optimiser._get_optim(p)
            optimiser.grad_clip[p] = optimiser._get_grad_clip(p)  # type: ignore[arg-type]
    return [(getattr(optimiser.optim_objs[p], "optimizer", optimiser.optim_objs[p]), p) for p in parameters]
