"""`mose-data lineage`: finds the files in a row, and the rows that hold a file or a repository.

Letters: R rows.
"""

import itertools
import json
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jsonargparse import ArgumentParser, Namespace
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from data_prep.console import show_progress
from data_prep.filters.name_list import read_entries
from data_prep.shards.lineage import REPLACED_COLUMN, LineageTable
from data_prep.shards.rows import key_of, row_of_key
from mose.command import Command
from mose.dataset.manifest import SPLITS, Manifest, ShardEntry, read_manifest
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.files.streams import escaped, make_console

NOTHING_FOUND = 1
COLUMNS = (
    "split",
    "row",
    "key",
    "snippet",
    "repository",
    "path",
    "blob_id",
    "licence",
    "language",
    "num_tokens",
    "start_byte",
    "end_byte",
    "replaced",
)
_TERMINAL_LINES = 200
_NUMBERS = ("row", "snippet", "num_tokens", "start_byte", "end_byte")
# Enough digits to identify a blob on a terminal; --json and pipes have all of them.
_SHOWN_BLOB = 12

Line = dict[str, Any]
LINES = Generator[Line, None, None]


@dataclass(frozen=True)
class Search:
    """A query: rows by split and number, or values of a lineage column in some splits."""

    rows: dict[str, NDArray[np.int64]] | None = None
    """Row numbers [R] of a split, ascending."""
    column: str = ""
    values: tuple[str, ...] = ()
    splits: tuple[str, ...] = SPLITS


def find_lines(dataset: Path, manifest: Manifest, search: Search) -> LINES:
    """The lineage lines that match a query, one line per snippet, in the order of splits, rows and snippets.

    Reads tables one row group at a time. A query for rows opens only the shards that hold them, and skips row groups by their
    statistics; one for values scans its column in all tables, because a file can be in any row.

    Raises:
        MoseError: a lineage table is missing or damaged, or the split has no row of this number.
    """
    if search.rows is not None:
        yield from _of_rows(dataset, manifest, search.rows)
        return
    values = pa.array(search.values, pa.string())
    shards = [(split, *found) for split in search.splits for found in _with_first_rows(manifest, split)]
    with show_progress("searching", len(shards), "lineage tables") as advance:
        for split, entry, first in shards:
            with LineageTable(entry.lineage_in(dataset)) as table:
                for part in table.of_values(search.column, values):
                    yield from _as_lines(part, split, entry, first)
            advance(1)


def _of_rows(dataset: Path, manifest: Manifest, wanted: dict[str, NDArray[np.int64]]) -> Iterator[Line]:
    for split, rows_R in wanted.items():
        if len(rows_R) and not 0 <= rows_R[0] <= rows_R[-1] < manifest.rows(split):
            wrong = rows_R[0] if rows_R[0] < 0 else rows_R[-1]
            raise MoseError(f"row: is {wrong}, expected 0 to {manifest.rows(split) - 1}, the rows of {split}")
        with show_progress("reading", len(rows_R), "rows") as advance:
            for entry, first in _with_first_rows(manifest, split):
                # The rows are ascending, so those of one shard are a slice.
                start, end = np.searchsorted(rows_R, [first, first + entry.rows])
                if start == end:
                    continue
                with LineageTable(entry.lineage_in(dataset)) as table:
                    for part in table.of_rows(rows_R[start:end] - first):
                        yield from _as_lines(part, split, entry, first)
                advance(int(end - start))


def _with_first_rows(manifest: Manifest, split: str) -> Iterator[tuple[ShardEntry, int]]:
    entries = manifest.splits.get(split, ())
    firsts = itertools.accumulate((entry.rows for entry in entries), initial=0)
    yield from zip(entries, firsts, strict=False)


def _as_lines(part: Any, split: str, entry: ShardEntry, first_row: int) -> Iterator[Line]:
    for line in part.to_pylist():
        place = line["row"]
        yield {
            **dict.fromkeys(COLUMNS),
            REPLACED_COLUMN: "",
            **line,
            "split": split,
            "row": first_row + place,
            "key": key_of(entry, place),
        }


def read_row_list(path: Path, manifest: Manifest, split: str) -> NDArray[np.int64]:
    """Row numbers or keys of a split, one per line, `#` begins a comment; returns them ascending, without repetitions.

    Raises:
        MoseError: the file is missing or empty, or a line is neither number nor key.
    """
    rows = []
    for entry in read_entries(path):
        try:
            rows.append(int(entry.text) if entry.text.isdecimal() else row_of_key(manifest, split, entry.text))
        except MoseError as error:
            raise MoseError(f"{path}: line {entry.line}: {error}") from None
    if not rows:
        raise MoseError(f"{path}: holds no row, expected one row number or key per line")
    return np.unique(np.array(rows, dtype=np.int64))


def print_table(lines: LINES, limit: int) -> int:
    """Print at most `limit` lines as a table for a terminal; returns how many were printed."""
    shown = list(itertools.islice(lines, limit + 1))
    lines.close()
    table = Table("split", box=box.SIMPLE_HEAD)
    for name in COLUMNS[1:]:
        is_number = name in _NUMBERS
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number or name == "key", overflow="fold")
    for line in shown[:limit]:
        table.add_row(*(_cell(line, name)[: _SHOWN_BLOB if name == "blob_id" else None] for name in COLUMNS))
    if shown:
        make_console().print(table)
    if len(shown) > limit:
        print(f"the first {limit} snippets; more with --limit, all when piped", file=sys.stderr)
    return min(len(shown), limit)


def print_lines(lines: LINES, limit: int | None, *, as_json: bool) -> int:
    """Print one line per snippet: tab-separated below a header (tabs and line feeds as \\t and \\n), or JSON objects."""
    # Bound before the search starts: its progress bar replaces sys.stdout and would redirect the lines to the terminal.
    output, count = sys.stdout, 0
    for line in itertools.islice(lines, limit):
        if not count and not as_json:
            print("\t".join(COLUMNS), file=output)
        print(json.dumps(line) if as_json else "\t".join(_cell(line, name) for name in COLUMNS), file=output)
        count += 1
    lines.close()
    return count


def _cell(line: Line, name: str) -> str:
    return escaped(str(line[name])).replace("\t", "\\t").replace("\n", "\\n")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument("--split", type=str | None, default=None, help="train or held_out; default: train for rows, else both.")
    parser.add_argument("--row", type=int | None, default=None, help="Files of this row of the split, from 0.")
    parser.add_argument("--key", type=str | None, default=None, help="Files of this row by webdataset key, 000003-000000123.")
    parser.add_argument("--rows", type=str | None, default=None, help="Text file of row numbers or keys, one per line.")
    parser.add_argument("--blob", type=str, nargs="+", default=[], help="Rows that hold a file of these SHA-1 blob ids.")
    parser.add_argument("--repository", type=str | None, default=None, help="Rows that hold a file of this repository.")
    parser.add_argument("--json", action="store_true", help="One JSON object per line, with full blob ids.")
    parser.add_argument("--limit", type=int | None, default=None, help="Stop after this many snippets; on a terminal 200.")


def read_search(parsed: Namespace, manifest: Manifest) -> Search:
    """The query that the options describe.

    Raises:
        MoseError: none or several of the options are given, or a split or a list of rows is invalid.
    """
    given = [name for name in ("row", "key", "rows", "blob", "repository") if parsed[name] not in (None, [])]
    if len(given) != 1:
        raise MoseError(f"lineage: {' and '.join(given) or 'nothing'} given, expected one of row, key, rows, blob, repository")
    if parsed.split is not None:
        manifest.shards(parsed.split)
    splits = (parsed.split,) if parsed.split else SPLITS
    if given == ["blob"]:
        return Search(column="blob_id", values=tuple(blob.lower() for blob in parsed.blob), splits=splits)
    if given == ["repository"]:
        return Search(column="repository", values=(parsed.repository,), splits=splits)
    split = parsed.split or SPLITS[0]
    if given == ["rows"]:
        return Search(rows={split: read_row_list(storage_path(parsed.rows), manifest, split)})
    row = parsed.row if given == ["row"] else row_of_key(manifest, split, parsed.key)
    return Search(rows={split: np.array([row], dtype=np.int64)})


def _run(parsed: Namespace) -> int:
    if parsed.limit is not None and parsed.limit < 1:
        raise MoseError(f"limit: is {parsed.limit}, expected 1 or more")
    dataset = storage_path(parsed.dataset)
    manifest = read_manifest(dataset)
    lines = find_lines(dataset, manifest, read_search(parsed, manifest))
    if sys.stdout.isatty() and not parsed.json:
        count = print_table(lines, parsed.limit or _TERMINAL_LINES)
    else:
        count = print_lines(lines, parsed.limit, as_json=parsed.json)
    if not count:
        print("nothing found: " + _asked(parsed), file=sys.stderr)
    return 0 if count else NOTHING_FOUND


def _asked(parsed: Namespace) -> str:
    names: Sequence[str] = parsed.blob or [parsed.repository or "the row was emptied"]
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''} in {parsed.dataset}"


COMMAND = Command("Show which files a row holds, or which rows hold a file or a repository.", _add_arguments, _run)
