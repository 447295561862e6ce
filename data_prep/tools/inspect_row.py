"""`mose-data inspect`: prints one row as text, with the boundaries and the origin of its snippets.

Letters: R rows, T slots of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.text import Text

from data_prep.console import counted, visible
from data_prep.shards.lineage import LineageTable
from data_prep.shards.rows import StoredRow, key_of, locate, read_row, row_of_key
from mose.command import Command
from mose.dataset.manifest import SPLITS, ShardEntry, read_manifest
from mose.dataset.packed_sequence import check_row, snippet_bounds
from mose.errors import MoseError
from mose.files.storage import storage_path
from mose.files.streams import escaped, make_console
from mose.tokenizer import Tokenizer, opened_tokenizer

_COLOURS = ("cyan", "magenta")
_TOKENS_A_LINE = 8


@dataclass(frozen=True)
class ShownRow:
    """A row with its location, its record and the lineage of its snippets."""

    split: str
    row: int
    entry: ShardEntry
    place: int
    stored: StoredRow
    lines: list[dict[str, Any]]


def read_shown_row(dataset: Path, split: str, row: int, tokenizer: Tokenizer) -> ShownRow:
    """Row `row` of a split.

    Raises:
        MoseError: no such split or row, a file cannot be read, or the row is damaged or does not match its lineage.
    """
    manifest = read_manifest(dataset)
    entry, place = locate(manifest, split, row)
    stored = read_row(dataset, manifest, entry, place)
    with LineageTable(entry.lineage_in(dataset)) as table:
        lines = [line for part in table.of_rows(np.array([place])) for line in part.to_pylist()]
    wrong = check_row(stored.tokens_T, stored.num_tokens, stored.num_snippets, tokenizer.special)
    if wrong is None and len(lines) != stored.num_snippets:
        wrong = f"{stored.num_snippets} snippets, {entry.lineage_path} has {len(lines)} lines for it"
    if wrong:
        raise MoseError(f"{dataset / entry.path}: row {place}: {wrong}; `mose-data verify` finds other damage")
    return ShownRow(split, row, entry, place, stored, lines)


def show_row(dataset: Path, split: str, row: int, *, with_tokens: bool = False, console: Console | None = None) -> None:
    """Print one row of a split: with a colour per repository on a terminal, as plain text elsewhere.

    Characters that would move the cursor or change the terminal are written as `\\x1b`, `\\r` and so on.

    Raises:
        MoseError: see `read_shown_row`.
    """
    console = console or make_console(soft_wrap=True)
    with opened_tokenizer(dataset) as tokenizer:
        parts = render_row(read_shown_row(dataset, split, row, tokenizer), tokenizer, with_tokens=with_tokens)
    for part in parts:
        # Not through rich when piped, because it would expand tabs.
        console.print(part) if console.is_terminal else print(part.plain)


def render_row(shown: ShownRow, tokenizer: Tokenizer, *, with_tokens: bool = False) -> list[Text]:
    """The parts that `show_row` prints, from top to bottom."""
    stored = shown.stored
    parts = [Text(line, style="bold" if number == 0 else "") for number, line in enumerate(summary_lines(shown))]
    if not stored.num_snippets:
        return parts
    first = len(stored.tokens_T) - stored.num_tokens
    if first:
        parts.append(Text(f"<pad> in slots 0 to {first - 1}", style="dim"))
    repositories = list(dict.fromkeys(line["repository"] for line in shown.lines))
    bounds = snippet_bounds(stored.tokens_T, stored.num_tokens, tokenizer.special)
    for line, (start, end) in zip(shown.lines, bounds, strict=True):
        colour = _COLOURS[repositories.index(line["repository"]) % len(_COLOURS)]
        parts.append(visible(_heading(line, start, end), f"bold {colour}"))
        parts.append(visible(tokenizer.decode(stored.tokens_T[start:end]), colour))
        parts += token_lines(stored.tokens_T[start:end].tolist(), start, tokenizer) if with_tokens else []
    return [*parts, Text("<cls>", style="bold")]


def summary_lines(shown: ShownRow) -> list[str]:
    """Location, labels and fill of the row."""
    stored, slots = shown.stored, len(shown.stored.tokens_T)
    where = f"{shown.split} row {shown.row}: {shown.entry.path} row {shown.place}, key {key_of(shown.entry, shown.place)}"
    if not stored.num_snippets:
        return [where, f"emptied: its files were removed; all {slots} slots are <pad>"]
    repositories = len({line["repository"] for line in shown.lines})
    files = len({(line["repository"], line["path"]) for line in shown.lines})
    held = " of ".join([counted(stored.num_snippets, "snippet"), counted(files, "file"), counted(repositories, "repository")])
    fill = f"{stored.num_tokens} of {slots} slots filled ({stored.num_tokens / slots:.1%}), {slots - stored.num_tokens} padding"
    return [where, f"label: mixed {stored.mixed}; {held}; {fill}"]


def token_lines(ids: Sequence[int], first_slot: int, tokenizer: Tokenizer) -> list[Text]:
    """Token ids with their texts, a few per line; each line begins with its first slot."""
    lines = []
    for start in range(0, len(ids), _TOKENS_A_LINE):
        cells = [f"{token}:{escaped(tokenizer.piece(token))!s}" for token in ids[start : start + _TOKENS_A_LINE]]
        shown = "  ".join(cell.replace("\n", "\\n").replace("\t", "\\t") for cell in cells)
        lines.append(Text(f"  slot {first_slot + start:>5}  {shown}", style="dim"))
    return lines


def _heading(line: dict[str, Any], start: int, end: int) -> str:
    what = f"{line['language']}, {line['licence']}, bytes {line['start_byte']} to {line['end_byte']} of the file"
    heading = f"<sep> {line['repository']} {line['path']} ({what}, {end - start} tokens in slots {start} to {end - 1})"
    return heading.replace("\n", "\\n").replace("\t", "\\t")


def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("dataset", type=str, help="Folder or URL of the data set.")
    parser.add_argument("--split", type=str, default=SPLITS[0], help="train or held_out.")
    parser.add_argument("--row", type=int | None, default=None, help="Row number in the split, from 0 (the default).")
    parser.add_argument("--key", type=str | None, default=None, help="The row by its webdataset key, e.g. 000003-000000123.")
    parser.add_argument("--tokens", action="store_true", help="Show token ids and their pieces below each snippet.")


def _run(parsed: Namespace) -> None:
    dataset = storage_path(parsed.dataset)
    if parsed.row is not None and parsed.key is not None:
        raise MoseError("row: and key: are both given, expected one of them")
    row = parsed.row or 0
    if parsed.key is not None:
        row = row_of_key(read_manifest(dataset), parsed.split, parsed.key)
    show_row(dataset, parsed.split, row, with_tokens=parsed.tokens)


COMMAND = Command("Print one row as text, with where its snippets come from.", _add_arguments, _run)
