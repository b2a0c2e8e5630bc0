"""The command `ppl-dgm`: the four verbs on the zoo, and a run folder for what they give."""

import dataclasses
import importlib.util
import inspect
import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import DataError, DgmError, FileError, ProgramError

app = typer.Typer(
    name="ppl-dgm",
    help="Deep generative models as Pyro programs: learn them, score data, draw samples, infer latent variables.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

_INTERRUPTED = "interrupted; a learner with a checkpoint goes on when the same command is given again."
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


@app.command()
def models(as_json: Json = False) -> None:
    """List the zoo: every program with what it answers, and how exactly."""
    import ppl_dgm.models as zoo
    from ppl_dgm.cards import card
    from ppl_dgm.text import table

    rows = []
    for name in zoo.names():
        program = zoo.find(name)
        answers = card(_small(program, {})).answers
        rows.append(
            {
                "model": name,
                "summary": _first_line(program),
                **{task: a.kind.replace("_", " ") for task, a in answers.items()},
            }
        )
    text = table(
        ("model", "sample", "score", "infer", "what it is"),
        [[r["model"], r["sample"], r["score"], r["infer"], r["summary"]] for r in rows],
    )
    _say(rows, text, as_json)


@app.command()
def learn(
    model: Annotated[str, typer.Argument(help="A program of the zoo; see `ppl-dgm models`.")],
    data: Annotated[str, typer.Option(help="digits, moons, ..., mnist, nltcs, ..., or a .csv, .npy, .npz or .parquet file.")],
    out: Annotated[Path, typer.Option(help="The run folder to make.")],
    method: Annotated[str | None, typer.Option(help="Learner, e.g. svi, em; the program's own by default.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data, at most.")] = None,
    binarise: Annotated[float | None, typer.Option(help="Replace x by 1 where x >= this, else 0.")] = None,
    options: Options = None, seed: Seed = 0, device: Device = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a finished run in that folder.")] = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Learn a program from data; an interrupted run goes on where it was."""
    import ppl_dgm as dgm
    from ppl_dgm import plots
    from ppl_dgm.files import load_json, save_json
    from ppl_dgm.randomness import seeded

    if (out / "config.json").exists() and not overwrite:
        raise FileError(f"{out} already holds a finished run; choose another --out, or pass --overwrite.")
    dataset = _dataset(data, binarise)
    program_class = dgm.models.find(model)
    with seeded(seed):  # initial weights
        program = program_class(
            **_arguments(program_class, _parse(options), observed=dataset.observed, values=dataset.values)
        )
    learner = _learner(program, method, epochs, out)
    about = {
        "model": type(program).__name__,
        "data": data,
        "binarise": binarise,
        "seed": seed,
        "config": program.config,
        "learner": type(learner).__name__,
    }
    if (
        (out / "checkpoint.safetensors").exists()
        and (out / "run.json").exists()
        and load_json(out / "run.json") != about
    ):
        raise FileError(
            f"{out / 'checkpoint.safetensors'} belongs to another run than this command's; remove it, or choose another --out."
        )
    save_json(out / "run.json", about)
    fit = dgm.learn(program, dataset, method=learner, seed=seed, device=device)
    fit.save(out)
    for stale in ("checkpoint.safetensors", "scores.json", "posterior.safetensors", "samples.png", "samples.csv"):
        (out / stale).unlink(missing_ok=True)  # of the run that this one replaces
    if len(fit.history) > 1:
        plots.save(plots.curves(fit.history, f"{program.name} on {data}"), out / "history.png")
    best = fit.history.iloc[-1] if "valid" not in fit.history else fit.history.loc[fit.history["valid"].idxmin()]
    summary = {"out": str(out), "objective": fit.objective, "stopped": fit.stopped, **vars(fit.cost), **best.to_dict()}
    numbers = ", ".join(f"{k} {best[k]:.3f}" for k in ("objective", "valid") if k in best)
    _say(
        summary,
        f"{program.name}: {fit.stopped}; best epoch {best['epoch']:.0f}: {numbers} ({fit.objective}); {fit.cost.seconds:.1f} s; {out}",
        as_json,
    )


@app.command()
def score(
    run: Annotated[Path, typer.Argument(help="A run folder.")], data: Data = None, split: Split = "test",
    method: Annotated[str | None, typer.Option(help="e.g. elbo, importance-weighted; the program's best answer by default.")] = None,
    seed: Seed = 0, device: Device = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Log density of a split under a learned program, in nats per example, with what kind of number it is."""
    import ppl_dgm as dgm
    from ppl_dgm.files import load_json, save_json

    program, dataset, name = _load(run, data)
    result = dgm.score(program, _split(dataset, split), method=method, seed=seed, device=device)
    mean = result.mean()
    row = {
        "data": name,
        "split": split,
        "examples": len(result),
        "kind": mean.kind,
        "nats": mean.value,
        "stderr": mean.stderr,
        "how": result.how,
        "seed": seed,
    }
    scores = load_json(run / "scores.json") if (run / "scores.json").exists() else []
    save_json(run / "scores.json", [*scores, row])
    _say(
        row,
        f"{name} {split} ({len(result)} examples): {mean} nats per example{', ' + result.how if result.how else ''}",
        as_json,
    )


@app.command()
def sample(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    n: Annotated[int, typer.Option("-n", help="How many.")] = 64,
    out: Annotated[Path | None, typer.Option(help="A .png, .svg, .pdf, .csv or .npy file; samples.png or samples.csv in the run folder by default.")] = None,
    seed: Seed = 0, device: Device = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Draw samples: a grid of images, a scatter in the plane, or a table."""
    import ppl_dgm as dgm
    from ppl_dgm import plots

    program, dataset, name = _load(run, None)
    x = dgm.sample(program, n, seed=seed, device=device)[program.site]
    figure = plots.picture(
        x, dataset.shape, dataset.values, f"{n} samples of {program.name} learned on {name}", dataset.test
    )
    path = out or run / ("samples.png" if figure is not None else "samples.csv")
    if path.suffix in (".csv", ".npy"):
        dgm.data.write(path, x, dataset.columns)
    elif figure is not None:
        plots.save(figure, path)
    else:
        raise DataError(
            f"samples with {x.shape[-1]} columns have no picture; give --out a name that ends in .csv or .npy."
        )
    _say({"out": str(path), "n": n, "shape": list(x.shape)}, f"{n} samples: {path}", as_json)


@app.command()
def infer(
    run: Annotated[Path, typer.Argument(help="A run folder.")], data: Data = None, split: Split = "test",
    rows: Annotated[int, typer.Option(help="How many examples, from the first.")] = 5,
    method: Annotated[str | None, typer.Option(help="e.g. exact, amortised, importance; the program's best by default.")] = None,
    seed: Seed = 0, device: Device = None, as_json: Json = False,
) -> None:  # fmt: skip
    """The posterior over the latent sites of some examples: means and standard deviations; draws go to the run folder."""
    import ppl_dgm as dgm
    from ppl_dgm.text import table

    if rows < 1:
        raise DataError(f"--rows must be at least 1, but it is {rows}.")
    program, dataset, name = _load(run, data)
    x = _split(dataset, split)[:rows]
    rows = len(x)
    posterior = dgm.infer(program, x, method=method, seed=seed, device=device)
    posterior.save(run)
    lines, records = [], []
    for site, draws in posterior.draws.items():
        spread = draws.flatten(0, 1).double().std(0).reshape(rows, -1)
        for i, (mean, sd) in enumerate(zip(posterior.mean(site).double().reshape(rows, -1), spread, strict=True)):
            records.append({"site": site, "example": i, "mean": mean.tolist(), "sd": sd.tolist()})
            shown = " ".join(f"{m:.2f}±{s:.2f}" for m, s in zip(mean[:6].tolist(), sd[:6].tolist(), strict=True))
            lines.append((site, i, shown + (" ..." if len(mean) > 6 else "")))
    text = f"{name} {split}, {posterior.kind}, {posterior.how}\n{table(('site', 'example', 'mean ± sd'), lines)}\ndraws: {run / 'posterior.safetensors'}"
    _say({"kind": posterior.kind, "how": posterior.how, "posterior": records}, text, as_json)


@app.command("card")
def card_command(
    model: Annotated[str, typer.Argument(help="A program of the zoo, a run folder, or file.py:function.")],
    data: Data = None, options: Options = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What a program can answer, how exactly, and at what cost (measured, given data)."""
    from ppl_dgm.cards import card

    program, args = _program(model, data, options)
    result = card(program, *args)
    _say({"program": result.program, "parameters": result.parameters, "tasks": result.rows()}, str(result), as_json)


@app.command("check")
def check_command(
    model: Annotated[str, typer.Argument(help="A program of the zoo, a run folder, or file.py:function.")],
    data: Data = None, options: Options = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run a program once; list its sites, and say in words what is wrong. Exit status 1 if something is."""
    from ppl_dgm.checking import check

    program, args = _program(model, data, options)
    report = check(program, *args)
    _say(dataclasses.asdict(report), str(report), as_json)
    if not report.ok:
        raise typer.Exit(1)


@app.command("diagram")
def diagram_command(
    model: Annotated[str, typer.Argument(help="A program of the zoo, a run folder, or file.py:function.")],
    out: Annotated[Path, typer.Option(help="A .svg, .png, .pdf, .tex, .dot or .mmd file.")],
    data: Data = None, options: Options = None,
    guide: Annotated[bool, typer.Option(help="Draw what the guide conditions on, dashed.")] = True,
    distributions: Annotated[bool, typer.Option(help="Write each site's distribution beside it.")] = False,
    orientation: Annotated[str, typer.Option(help="down or right.")] = "down",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw a program as a plate diagram."""
    from ppl_dgm.diagrams.diagram import diagram

    program, args = _program(model, data, options)
    drawn = diagram(program, *args, guide=guide, distributions=distributions, orientation=orientation)
    path = drawn.save(out)
    record = {
        "out": str(path),
        "nodes": list(drawn.scene.nodes),
        "edges": len(drawn.scene.edges),
        "plates": sorted({p.name for p in drawn.scene.plates}),
    }
    _say(record, f"{drawn}: {path}", as_json)


# -- details -----------------------------------------------------------------------------------------------------------


def _say(record: Any, text: str, as_json: bool) -> None:
    print(json.dumps(_finite(record), allow_nan=False) if as_json else text)


def _finite(record: Any) -> Any:
    """The record with null for what JSON has no number for."""
    if isinstance(record, dict):
        return {name: _finite(value) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def _first_line(thing: Any) -> str:
    """What its module says that it is."""
    return (inspect.getdoc(inspect.getmodule(thing)) or "").split("\n")[0].rstrip(".").split(": ", 1)[-1]


def _parse(options: list[str] | None) -> dict[str, Any]:
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


def _arguments(program: Any, given: dict[str, Any], **from_data: Any) -> dict[str, Any]:
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


def _small(program: Any, given: dict[str, Any]) -> Any:
    """A program of some size, where there are no data to tell it; what it answers does not depend on it."""
    known = inspect.signature(program).parameters
    sizes = {n: 2 for n, p in known.items() if p.default is p.empty} | {
        n: v for n, v in (("observed", 8), ("values", 4)) if n in known
    }
    return program(**_arguments(program, sizes | given))


def _learner(program: Any, method: str | None, epochs: int | None, out: Path) -> Any:
    """The learner, with the command line's options and a checkpoint where it knows them."""
    from ppl_dgm.registry import resolve

    learner = resolve(method or program.default_method("learn") or "svi")
    known = {field.name for field in dataclasses.fields(learner)}
    changes: dict[str, Any] = {"checkpoint": out / "checkpoint.safetensors"} if "checkpoint" in known else {}
    if epochs is not None:
        name = next((n for n in ("epochs", "steps") if n in known), None)
        if name is None:
            raise ProgramError(f"--epochs: {type(learner).__name__} learns in closed form and takes none.")
        changes[name] = epochs
    return dataclasses.replace(learner, **changes)


def _dataset(name: str, binarise: float | None = None) -> Any:
    from ppl_dgm import data

    dataset = data.load(name)
    if binarise is None:
        return dataset
    cut = {
        split: (getattr(dataset, split) >= binarise).to(getattr(dataset, split).dtype)
        for split in ("train", "valid", "test")
    }
    return dataclasses.replace(dataset, **cut, values=2)


def _split(dataset: Any, split: str) -> Any:
    if split not in ("train", "valid", "test"):
        raise DataError(f"--split must be train, valid or test, not {split!r}.")
    return getattr(dataset, split)


def _load(run: Path, data: str | None) -> tuple[Any, Any, str]:
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
    program, dataset = Fit.load(run).program, _dataset(name, about.get("binarise"))
    if data is not None:  # other data than those it was learned on
        dataset = check_observations(dataset, observed=program.observed, support=program.support, site=program.site)
    return program, dataset, name


def _program(model: str, data: str | None, options: list[str] | None) -> tuple[Any, tuple]:
    """What the argument names, a run folder, a file's function or a program of the zoo, and its arguments."""
    import ppl_dgm.models as zoo

    if (Path(model) / "run.json").exists():
        program, dataset, _ = _load(Path(model), data)
        return program, (dataset.test,)
    dataset = _dataset(data) if data else None
    args = () if dataset is None else (dataset.train,)
    if ".py:" in model:
        return _function(model), args
    program = zoo.find(model)
    if dataset is None:
        return _small(program, _parse(options)), args
    return program(**_arguments(program, _parse(options), observed=dataset.observed, values=dataset.values)), args


def _function(place: str) -> Any:
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


def main() -> None:
    """Entry point: errors are one sentence on stderr and a non-zero exit status, never a traceback (unless PPL_DGM_DEBUG is set)."""
    try:
        status = app(standalone_mode=False)
    except (DgmError, OSError) as error:
        problem = str(error)
    except KeyboardInterrupt:
        problem = _INTERRUPTED
    except Exception as error:  # a mistake in the command, or a fault of ours or of a library: still one line
        if os.environ.get("PPL_DGM_DEBUG"):
            raise
        text = " ".join(str(error).split())
        if type(error).__name__ == "NoArgsIsHelpError":
            app(["--help"])
        if type(error).__name__ == "Abort":
            problem = _INTERRUPTED
        elif hasattr(error, "format_message"):  # Typer's own errors of usage
            problem = f"{' '.join(error.format_message().split())} See ppl-dgm --help."
        else:
            problem = f"{type(error).__name__}: {text} (set PPL_DGM_DEBUG=1 to see where)."
    else:
        sys.exit(status if isinstance(status, int) else 0)
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
