"""The command `ppl-dgm`: the four verbs on the zoo, and a run folder for what they give."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_arguments import (
    Data,
    Device,
    Json,
    Options,
    Seed,
    Split,
    chosen_split,
    constructor_arguments,
    first_line,
    load_run,
    named_dataset,
    named_program,
    parse,
    say,
    small,
)
from .cli_compare import compare_command
from .errors import DataError, DgmError, FileError, ProgramError

app = typer.Typer(
    name="ppl-dgm",
    help="Deep generative models as Pyro programs: learn them, score data, draw samples, infer latent variables.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip

_INTERRUPTED = "interrupted; a learner with a checkpoint goes on when the same command is given again."


@app.command()
def models(as_json: Json = False) -> None:
    """List the zoo: every program with what it answers, and how exactly."""
    import ppl_dgm.models as zoo
    from ppl_dgm.cards import card
    from ppl_dgm.text import table

    rows = []
    for name in zoo.names():
        program = zoo.find(name)
        answers = card(small(program, {})).answers
        rows.append(
            {
                "model": name,
                "summary": first_line(program),
                **{task: a.kind.replace("_", " ") for task, a in answers.items()},
            }
        )
    text = table(
        ("model", "sample", "score", "infer", "what it is"),
        [[r["model"], r["sample"], r["score"], r["infer"], r["summary"]] for r in rows],
    )
    say(rows, text, as_json)


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
    dataset = named_dataset(data, binarise)
    program_class = dgm.models.find(model)
    with seeded(seed):  # initial weights
        program = program_class(
            **constructor_arguments(program_class, parse(options), observed=dataset.observed, values=dataset.values)
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
    say(
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

    program, dataset, name = load_run(run, data)
    result = dgm.score(program, chosen_split(dataset, split), method=method, seed=seed, device=device)
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
    say(
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

    program, dataset, name = load_run(run, None)
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
    say({"out": str(path), "n": n, "shape": list(x.shape)}, f"{n} samples: {path}", as_json)


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
    program, dataset, name = load_run(run, data)
    x = chosen_split(dataset, split)[:rows]
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
    say({"kind": posterior.kind, "how": posterior.how, "posterior": records}, text, as_json)


@app.command("card")
def card_command(
    model: Annotated[str, typer.Argument(help="A program of the zoo, a run folder, or file.py:function.")],
    data: Data = None, options: Options = None, as_json: Json = False,
) -> None:  # fmt: skip
    """What a program can answer, how exactly, and at what cost (measured, given data)."""
    from ppl_dgm.cards import card

    program, args = named_program(model, data, options)
    result = card(program, *args)
    say({"program": result.program, "parameters": result.parameters, "tasks": result.rows()}, str(result), as_json)


@app.command("check")
def check_command(
    model: Annotated[str, typer.Argument(help="A program of the zoo, a run folder, or file.py:function.")],
    data: Data = None, options: Options = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Run a program once; list its sites, and say in words what is wrong. Exit status 1 if something is."""
    from ppl_dgm.checking import check

    program, args = named_program(model, data, options)
    report = check(program, *args)
    say(dataclasses.asdict(report), str(report), as_json)
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

    program, args = named_program(model, data, options)
    drawn = diagram(program, *args, guide=guide, distributions=distributions, orientation=orientation)
    path = drawn.save(out)
    record = {
        "out": str(path),
        "nodes": list(drawn.scene.nodes),
        "edges": len(drawn.scene.edges),
        "plates": sorted({p.name for p in drawn.scene.plates}),
    }
    say(record, f"{drawn}: {path}", as_json)


app.command("compare")(compare_command)


# -- details -----------------------------------------------------------------------------------------------------------


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
