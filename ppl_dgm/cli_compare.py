"""The command `ppl-dgm compare`: many algorithms on one program, against a reference."""

import difflib
import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_arguments import Data, Device, Json, Options, function_of_file, named_program, say
from .errors import DataError, ProgramError

__all__ = ["compare_command"]


def compare_command(
    program: Annotated[
        str | None, typer.Argument(help="A target (see --list), file.py:function, a program of the zoo, or a run folder.")
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(help="Further methods.", metavar="[METHOD]...")] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Algorithms, e.g. --methods nuts chees laplace, or nuts,chees; nuts, chees, laplace, pathfinder by default."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="A target, an algorithm, or a .json file (a reference, or an entry of posteriordb).")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs of each.")] = 3,
    budget: Annotated[float | None, typer.Option(help="Gradients of each run, warm-up included.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Instead, seconds of each run.")] = None,
    out: Annotated[Path | None, typer.Option(help="A folder for table.csv, comparison.json and comparison.png.")] = None,
    arguments: Annotated[
        Path | None, typer.Option("--args", help="A .json file: an object of the function's arguments, lists becoming tensors.")
    ] = None,
    data: Data = None, options: Options = None, device: Device = None, as_json: Json = False,
    listed: Annotated[bool, typer.Option("--list", help="List targets and algorithms, and do nothing else.")] = False,
) -> None:  # fmt: skip
    """Compare algorithms on one program against a reference, under equal budgets, several seeds each."""
    if listed:
        _list(as_json)
        return
    if program is None:
        raise ProgramError(
            "compare needs a target or a program, e.g. ppl-dgm compare funnel; ppl-dgm compare --list names them."
        )
    from ppl_dgm.inference.comparing.comparison import METHODS, compare

    chosen = [name for text in [*(methods or []), *(more or [])] for name in text.split(",") if name]
    target, args, kwargs = _target(program, data, options, arguments)
    if device is not None and hasattr(target, "to") and hasattr(target, "args"):
        target = target.to(device)
    result = compare(
        target, *args, methods=chosen or METHODS, reference=reference, seeds=seeds, budget=budget, seconds=seconds,
        device=device, **kwargs,
    )  # fmt: skip
    text, record = str(result), {"notes": result.notes, "table": result.table.reset_index().to_dict(orient="records")}
    if out is not None:
        from .files import write_atomically

        write_atomically(out / "table.csv", result.table.to_csv().encode())
        result.save(out / "comparison.json")
        result.plot(out / "comparison.png")
        text, record = f"{text}\n\nwritten: {out}", record | {"out": str(out)}
    say(record, text, as_json)
    if not bool((result.table["seeds"] > 0).any()):
        raise typer.Exit(1)


def _target(name: str, data: str | None, options: list[str] | None, arguments: Path | None) -> tuple[Any, tuple, dict]:
    """What the argument names, a target or a program, and the program's arguments."""
    import ppl_dgm.models as zoo
    from ppl_dgm.inference.targets import TARGETS, find
    from ppl_dgm.registry import algorithms

    key = name.lower().replace("_", "-").replace(" ", "-")
    if key in TARGETS:
        return find(key), (), {}
    kwargs = {} if arguments is None else _read(arguments)
    if ".py:" in name and data is None:
        return function_of_file(name), (), kwargs
    if ".py:" not in name and not (Path(name) / "run.json").exists():
        if key in algorithms():
            raise ProgramError(
                f"{name!r} is an algorithm; name the target or program first: ppl-dgm compare funnel --methods {name} ...."
            )
        try:
            zoo.find(name)
        except ProgramError:
            close = difflib.get_close_matches(key, [*TARGETS, *zoo.names()], 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ProgramError(
                f"there is no target or program {name!r}; {hint}give file.py:function, or one of {', '.join(TARGETS)}."
            ) from None
    program, args = named_program(name, data, options)
    return program, args, kwargs


def _read(path: Path) -> dict[str, Any]:
    """The arguments that a JSON file holds; numbers and lists become tensors, floats where any is one."""
    import torch

    from .files import load_json

    content = load_json(path)
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must hold a JSON object, the function's arguments by name, but it holds a {type(content).__name__}."
        )
    read = {}
    for name, value in content.items():
        try:
            read[name] = (
                torch.tensor(value) if isinstance(value, (int, float, list)) and not isinstance(value, bool) else value
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{path}: argument {name!r} is no array of numbers ({error}); give nested lists of equal length."
            ) from None
    return read


def _list(as_json: bool) -> None:
    from ppl_dgm.inference.targets import TARGETS
    from ppl_dgm.registry import algorithms

    from .text import table

    targets = [
        {"target": name, "summary": (inspect.getdoc(make) or "").split("\n")[0]} for name, make in TARGETS.items()
    ]
    text = f"{table(('target', 'what it is'), [list(row.values()) for row in targets])}\n\nalgorithms: {', '.join(algorithms())}"
    say({"targets": targets, "algorithms": algorithms()}, text, as_json)
