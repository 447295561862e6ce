"""What a command shows on a terminal: progress of long work, counts with their nouns, names without control characters."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.text import Text

from mose.files.streams import escaped_parts, make_console, progress_bar

INTERVAL_SECONDS = 30.0


@contextlib.contextmanager
def show_progress(title: str, total: int, unit: str, detail: Callable[[], str] = str) -> Iterator[Callable[[int], None]]:
    """Show work of `total` units on standard error: a bar on a terminal, one line per interval elsewhere.

    Yields the function to call with the number of units just done. `detail` gives a text that is shown behind the numbers.
    """
    with _bar(title, total, unit, detail) if sys.stderr.isatty() else _lines(title, total, unit, detail) as advance:
        yield advance


@contextlib.contextmanager
def _bar(title: str, total: int, unit: str, detail: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    # Slow to import, and most commands show no bar.
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    numbers = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), *numbers, TextColumn("{task.fields[detail]}", markup=False))
    with progress_bar(*columns, console=make_console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total, detail=detail())
        yield lambda units: progress.update(task, advance=units, detail=detail())


@contextlib.contextmanager
def _lines(title: str, total: int, unit: str, detail: Callable[[], str]) -> Iterator[Callable[[int], None]]:
    done = 0
    due = time.monotonic() + INTERVAL_SECONDS

    def advance(units: int) -> None:
        nonlocal done, due
        done += units
        if time.monotonic() >= due:
            due = time.monotonic() + INTERVAL_SECONDS
            more = detail()
            print(f"{title}: {done:,} of {total:,} {unit}{f', {more}' if more else ''}", file=sys.stderr, flush=True)

    yield advance


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows, 3 repositories."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def visible(text: str, style: str) -> Text:
    """`text` with unsafe characters written out, so that no text of a repository can control the terminal."""
    shown = Text(style=style)
    for part, is_escape in escaped_parts(text):
        shown.append(part, style="reverse" if is_escape else "")
    return shown
