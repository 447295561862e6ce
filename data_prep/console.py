"""What a command shows on a terminal: progress of long work, counts with their nouns, names without control characters."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator

from rich.text import Text

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
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    numbers = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), *numbers, TextColumn("{task.fields[detail]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
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


# What would move the cursor, ring, change colours or turn the direction of writing; line feed and tab stay.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows, 3 repositories."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def visible(text: str, style: str) -> Text:
    """`text` with unsafe characters written out, so that no text of a repository can control the terminal."""
    shown = Text(style=style)
    end = 0
    for match in _UNSAFE.finditer(text):
        shown.append(text[end : match.start()])
        shown.append(escaped(match.group()), style="reverse")
        end = match.end()
    return shown.append(text[end:])


def escaped(text: str) -> str:
    """`text` with each unsafe character as a Python escape; for cells of a table, where no style marks it."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)
