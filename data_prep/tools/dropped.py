"""`mose-data dropped`: lists the files and pieces that a data set dropped, with the reasons."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.filters.decontamination import CONTAMINATED
from data_prep.filters.dropped_log import DROPPED_SCHEMA, FOLDER, GROUP_LINES, Line
from data_prep.filters.filters import REASONS, REPLACED
from mose.command import Command
from mose.errors import MoseError, first_line
from mose.files.parquet_errors import PARQUET_ERRORS
from mose.files.storage import storage_path
from mose.files.streams import make_console

_TERMINAL_LINES = 50
# Characters that would break a tab-separated line, escaped as in Python.
_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def read_dropped(dataset: Path, reason: str = "") -> Iterator[Line]:
    """The lines of all finished tasks in task order, or those with one reason; holds one batch in memory.

    Raises:
        MoseError: the data set has no logs, one cannot be read, or nothing was dropped for `reason`.
    """
    reasons: set[str] = set()
    found = False
    for batch in _batches(_paths(dataset)):
        reasons.update(batch.column("reason").unique().to_pylist())
        wanted = batch.filter(pc.equal(batch.column("reason"), reason)) if reason else batch
        found = found or wanted.num_rows > 0
        yield from zip(*(column.to_pylist() for column in wanted.columns), strict=True)
    if reason and not found:
        raise MoseError(f"reason: nothing was dropped as {reason!r}; expected one of: {', '.join(sorted(reasons)) or 'none'}")


def print_dropped(dataset: Path, reason: str, limit: int) -> None:
    """Print a table of `limit` (0 means 50) lines on a terminal, else all lines (0) or `limit`, tab-separated with a header.

    Raises:
        MoseError: see `read_dropped`.
    """
    console = make_console()
    if console.is_terminal:
        _print_table(console, read_dropped(dataset, reason), limit or _TERMINAL_LINES)
        return
    for number, line in enumerate(read_dropped(dataset, reason)):
        if number == 0:
            print("\t".join(DROPPED_SCHEMA.names))
        if limit and number == limit:
            return
        print("\t".join(str(value).translate(_ESCAPES) for value in line))


def _print_table(console: Console, lines: Iterator[Line], limit: int) -> None:
    table = Table(*DROPPED_SCHEMA.names[:3], "reason", "bytes", "detail", title="dropped", title_justify="left")
    table.columns[4].justify = "right"
    for column in table.columns[3:5]:
        column.no_wrap = True
    shown = total = 0
    for repository, path, blob_id, reason, num_bytes, detail in lines:
        total += 1
        if shown < limit:
            shown += 1
            # As Text, because rich would interpret markup in a path.
            table.add_row(*map(Text, (repository, path, blob_id[:12], reason, f"{num_bytes:,}", detail)))
    console.print(table)
    if shown < total:
        console.print(f"{shown:,} of {total:,} lines; --limit N shows more, a pipe gets all of them")


def _paths(dataset: Path) -> list[Path]:
    paths = sorted((dataset / FOLDER).glob("dropped-*.parquet"))
    if not paths:
        raise MoseError(f"{dataset}: has no {FOLDER}/dropped-*.parquet; expected a data set of which a task is finished")
    return paths


def dropped_batches(dataset: Path) -> Iterator[pa.RecordBatch]:
    """The lines of all finished tasks in task order, as record batches; see `read_dropped` for what it raises."""
    return _batches(_paths(dataset))


def _batches(paths: list[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        try:
            with path.open("rb") as file:
                table = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
                if not table.schema_arrow.equals(DROPPED_SCHEMA):
                    raise MoseError(f"{path}: has other columns than {', '.join(DROPPED_SCHEMA.names)}; expected a task's list")
                yield from table.iter_batches(GROUP_LINES, use_threads=False)
        except PARQUET_ERRORS as error:
            raise MoseError(f"{path}: not a readable list of dropped files: {first_line(error)}") from None


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder of the data set.")
    reasons = ", ".join((*REASONS, CONTAMINATED))
    parser.add_argument(
        "--reason", type=str, default="", help=f"Only what was dropped for this reason: {reasons}, or a problem of the source."
    )
    parser.add_argument(
        "--limit", type=int, default=0, help="At most this many lines; 0 means 50 on a terminal, and all of them in a pipe."
    )
    parser.add_argument(
        "--sample",
        type=int,
        default=0,
        help="Print a page (Markdown) of this many random files with their first lines, read from the sources, to judge by eye.",
    )


def _run(parsed: Namespace) -> None:
    for name in ("limit", "sample"):
        if getattr(parsed, name) < 0:
            raise MoseError(f"{name}: is {getattr(parsed, name)}, expected 0 or more")
    dataset = storage_path(parsed.dataset)
    if parsed.sample:
        # Imported late, because only the sample reads sources again.
        from data_prep.tools.dropped_sample import sample_page

        # Files in which something was replaced are listed, too, but were not dropped.
        lines = (line for line in read_dropped(dataset, parsed.reason) if parsed.reason or line[3] != REPLACED)
        print(sample_page(dataset, lines, parsed.sample))
        return
    print_dropped(dataset, parsed.reason, parsed.limit)


COMMAND = Command("List the files and pieces that were dropped, each with its reason.", _add_arguments, _run)
