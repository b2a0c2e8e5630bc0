"""What the commands of the command line share: how an argument names a program, data or options, and how results are told."""

import dataclasses
import importlib.util
import inspect
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import DataError, FileError, ProgramError

__all__ = [
    "Data",
    "Device",
    "Json",
    "Options",
    "Seed",
    "Split",
    "chosen_split",
    "constructor_arguments",
    "first_line",
    "function_of_file",
    "load_run",
    "named_dataset",
    "named_program",
    "parse",
    "say",
    "small",
]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[str | None, typer.Option(help="Where to run, e.g. cpu or cuda.")]
Data = Annotated[
    str | None, typer.Option(help="digits, moons, ..., mnist, nltcs, ..., or a .csv, .npy, .npz or .parquet file.")
]
Split = Annotated[str, typer.Option(help="train, valid or test.")]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="Constructor argument, e.g. --set latent=8; may be repeated.")
]


def say(record: Any, text: str, as_json: bool) -> None:
    """Print a record as JSON, or a text."""
    print(json.dumps(_finite(record), allow_nan=False) if as_json else text)


def _finite(record: Any) -> Any:
    """The record with null for what JSON has no number for."""
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def first_line(thing: Any) -> str:
    """What its module says that it is."""
    return (inspect.getdoc(inspect.getmodule(thing)) or "").split("\n")[0].rstrip(".").split(": ", 1)[-1]


def parse(options: list[str] | None) -> dict[str, Any]:
    """The options name=value as a dictionary; values are read as JSON where they are that."""
    parsed = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise ProgramError(f"--set {option}: expected name=value, e.g. --set latent=8.")
        try:
            parsed[name] = json.loads(value)
        except json.JSONDecodeError:
            parsed[name] = value
    return parsed


def constructor_arguments(program: Any, given: dict[str, Any], **from_data: Any) -> dict[str, Any]:
    """Constructor arguments: what the user set, and what the data tell."""
    known = inspect.signature(program).parameters
    for name in given:
        if name not in known:
            raise ProgramError(f"--set {name}: {program.__name__} has no such argument; it has {', '.join(known)}.")
    told = {name: value for name, value in from_data.items() if name in known and value is not None}
    missing = [n for n, p in known.items() if p.default is p.empty and n not in told and n not in given]
    if missing:
        raise ProgramError(
            f"{program.__name__} needs {missing[0]!r}, which the data do not tell; pass --set {missing[0]}=...."
        )
    return {**told, **given}


def small(program: Any, given: dict[str, Any]) -> Any:
    """A program of some size, where there are no data to tell it; what it answers does not depend on it."""
    known = inspect.signature(program).parameters
    needed = {n: 2 for n, p in known.items() if p.default is p.empty}
    told = {"observed": 8, "values": 4, "length": 4, "parents": {"a": [], "b": ["a"]}}
    sizes = needed | {n: v for n, v in told.items() if n in known}
    return program(**constructor_arguments(program, sizes | given))


def named_dataset(name: str, binarise: float | None = None) -> Any:
    """A data set by name or from a file, made binary where that is asked for."""
    from ppl_dgm import data

    dataset = data.load(name)
    if binarise is None:
        return dataset
    cut = {
        split: (getattr(dataset, split) >= binarise).to(getattr(dataset, split).dtype)
        for split in ("train", "valid", "test")
    }
    return dataclasses.replace(dataset, **cut, values=2)


def chosen_split(dataset: Any, split: str) -> Any:
    """The rows of a split by its name."""
    if split not in ("train", "valid", "test"):
        raise DataError(f"--split must be train, valid or test, not {split!r}.")
    return getattr(dataset, split)


def load_run(run: Path, data: str | None) -> tuple[Any, Any, str]:
    """A learned program, its data and their name, from a run folder."""
    from ppl_dgm.data import check_observations
    from ppl_dgm.files import load_json
    from ppl_dgm.results import Fit

    if not (run / "run.json").exists():
        raise FileError(f"{run} is no run folder; make one with: ppl-dgm learn MODEL --data digits --out {run}.")
    about = load_json(run / "run.json")
    if not isinstance(about, dict) or not isinstance(about.get("data"), str):
        raise FileError(f"{run / 'run.json'} does not name the data of a run; learn it again with ppl-dgm learn.")
    name = data or about["data"]
    program, dataset = Fit.load(run).program, named_dataset(name, about.get("binarise"))
    if data is not None:  # other data than those it was learned on
        dataset = check_observations(dataset, observed=program.observed, support=program.support, site=program.site)
    return program, dataset, name


def named_program(model: str, data: str | None, options: list[str] | None) -> tuple[Any, tuple]:
    """What the argument names, a run folder, a file's function or a program of the zoo, and its arguments."""
    import ppl_dgm.models as zoo

    if (Path(model) / "run.json").exists():
        program, dataset, _ = load_run(Path(model), data)
        return program, (dataset.test,)
    dataset = named_dataset(data) if data else None
    args = () if dataset is None else (dataset.train,)
    if ".py:" in model:
        return function_of_file(model), args
    program = zoo.find(model)
    if dataset is None:
        return small(program, parse(options)), args
    return program(
        **constructor_arguments(program, parse(options), observed=dataset.observed, values=dataset.values)
    ), args


def function_of_file(place: str) -> Any:
    """file.py:function, imported (which runs that file, as `python file.py` would)."""
    path, _, name = place.rpartition(":")
    if not Path(path).is_file():
        raise FileError(f"there is no file {path}; give file.py:function.")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise FileError(f"{path} is no Python file; give file.py:function.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ProgramError(
            f"{path} has no function {name!r}; it has {', '.join(k for k, v in vars(module).items() if callable(v))}."
        )
    return getattr(module, name)
