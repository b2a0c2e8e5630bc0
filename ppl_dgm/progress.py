"""A progress bar with the current numbers, silent when the output is not a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress"]


@contextmanager
def progress(label: str, total: int | None, done: int = 0) -> Iterator[Callable[..., None]]:
    """Yields a function to call after each step, with the numbers to show: `report(objective=93.1)`; total None: unknown."""
    if not sys.stderr.isatty():
        yield lambda **numbers: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total, completed=done, numbers="")

        def report(**numbers: float) -> None:
            bar.update(task, advance=1, numbers="  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))

        yield report
