"""How far long work is: a bar on a terminal, one line an interval elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

INTERVAL_SECONDS = 30.0


@contextlib.contextmanager
def show_progress(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show work of `total` units on standard error; yields the function to call with the number of units just done."""
    with _bar(title, total, unit) if sys.stderr.isatty() else _lines(title, total, unit) as advance:
        yield advance


@contextlib.contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda units: progress.advance(task, units)


@contextlib.contextmanager
def _lines(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done = 0
    due = time.monotonic() + INTERVAL_SECONDS

    def advance(units: int) -> None:
        nonlocal done, due
        done += units
        if time.monotonic() >= due:
            due = time.monotonic() + INTERVAL_SECONDS
            print(f"{title}: {done:,} of {total:,} {unit}", file=sys.stderr, flush=True)

    yield advance
