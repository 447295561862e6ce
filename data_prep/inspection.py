"""`mose-data inspect`: one row as text, with its snippets' boundaries and where they come from."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from mose.errors import MoseError
from mose.manifest import Manifest, ShardEntry, read_manifest
from mose.packed_sequence import snippet_bounds
from mose.shard_format import ShardReader
from mose.tokenizer import load_tokenizer

_COLOURS = ("cyan", "magenta")


def show_row(dataset: Path, split: str, row: int) -> None:
    """Print one row of a split; on a terminal each repository has its colour.

    Raises:
        MoseError: no such split or row, or its files cannot be read.
    """
    manifest = read_manifest(dataset)
    entry, place = locate(manifest, split, row)
    tokenizer = load_tokenizer(dataset)
    reader = ShardReader(dataset / entry.path, manifest.layout(), entry.rows)
    labels = reader.labels(np.array([place]))
    row_T = reader.tokens(np.array([place]))[0]
    reader.close()
    lines = _lineage(dataset / entry.lineage_path, place)
    num_tokens = int(labels.num_tokens[0])
    console = Console(highlight=False, soft_wrap=True)
    filled = num_tokens / manifest.sequence_length
    kind = "two repositories" if labels.mixed[0] else "one repository"
    console.print(f"{entry.path} row {place}: mixed {labels.mixed[0]} ({kind}), {num_tokens} tokens ({filled:.0%} filled)")
    repositories = list(dict.fromkeys(line["repository"] for line in lines))
    for line, (start, end) in zip(lines, snippet_bounds(row_T, num_tokens, tokenizer.special), strict=True):
        colour = _COLOURS[repositories.index(line["repository"]) % len(_COLOURS)]
        console.print(Text(_heading(line), style=f"bold {colour}"))
        console.print(Text(tokenizer.decode(row_T[start:end]), style=colour))
    console.print(Text("<cls>", style="bold"))


def locate(manifest: Manifest, split: str, row: int) -> tuple[ShardEntry, int]:
    """The shard that holds row `row` of a split, and the row's number in it.

    Raises:
        MoseError: the split is empty or has fewer rows.
    """
    shards = manifest.shards(split)
    if not 0 <= row < manifest.rows(split):
        raise MoseError(f"row: is {row}, expected 0 to {manifest.rows(split) - 1}, the rows of {split}")
    for entry in shards:
        if row < entry.rows:
            break
        row -= entry.rows
    return entry, row


def _heading(line: dict[str, Any]) -> str:
    place = f"bytes {line['start_byte']}-{line['end_byte']}"
    return (
        f"<sep> {line['repository']} {line['path']} ({line['language']}, {line['licence']}, {place}, {line['num_tokens']} tokens)"
    )


def _lineage(path: Path, row: int) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(path, partitioning=None, filters=pc.field("row") == row)
    except (OSError, ValueError) as error:
        raise MoseError(f"{path}: not a readable lineage table: {str(error).splitlines()[0]}") from None
    return list(table.to_pylist())
