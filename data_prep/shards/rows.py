"""Reads rows of a finished data set by number, by key or shard by shard, from a local folder or an object store.

Letters: R rows of a block, T slots of a row.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.dataset.manifest import MANIFEST_NAME, Manifest, ShardEntry
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_DTYPE
from mose.dataset.shard_format import BLOCK, RecordLayout, row_key
from mose.errors import MoseError, first_line
from mose.files.json_file import parse_json
from mose.files.npy_file import read_npy

BLOCK_ROWS = 1024
_KEY = re.compile(r"(\d{6})-(\d{9})")
_SHARD_NUMBER = re.compile(r"shard-(\d{6})\.tar$")


@dataclass(frozen=True)
class StoredRow:
    """The content of one record."""

    tokens_T: TOKENS
    mixed: int
    num_tokens: int
    num_snippets: int


@dataclass(frozen=True)
class RecordBlock:
    """Consecutive records of a shard: their bytes [R, stride] and tokens [R, T]."""

    first_row: int
    records: NDArray[np.uint8]
    tokens_RT: TOKENS


def shard_number(entry: ShardEntry) -> int:
    """The number in a shard's name: the task that wrote it.

    Raises:
        MoseError: the manifest lists a shard with another kind of name.
    """
    found = _SHARD_NUMBER.search(entry.path)
    if found is None:
        raise MoseError(f"{MANIFEST_NAME}: splits: shard {entry.path!r}, expected a name such as shard-000000.tar")
    return int(found.group(1))


def locate(manifest: Manifest, split: str, row: int) -> tuple[ShardEntry, int]:
    """The shard of row `row` of a split, and the row's number in that shard.

    Raises:
        MoseError: the split has no such row.
    """
    shards = manifest.shards(split)
    if not 0 <= row < manifest.rows(split):
        raise MoseError(f"row: is {row}, expected 0 to {manifest.rows(split) - 1}, the rows of {split}")
    for entry in shards:
        if row < entry.rows:
            break
        row -= entry.rows
    return entry, row


def row_of_key(manifest: Manifest, split: str, key: str) -> int:
    """The row's number in its split from its webdataset key, e.g. `000003-000000123`.

    Raises:
        MoseError: the key is malformed, or no row of this split has it.
    """
    match = _KEY.fullmatch(key)
    if match is None:
        raise MoseError(f"key: is {key!r}, expected shard and row such as 000003-000000123")
    number, place = int(match.group(1)), int(match.group(2))
    first = 0
    for entry in manifest.shards(split):
        if shard_number(entry) == number and place < entry.rows:
            return first + place
        first += entry.rows
    raise MoseError(f"key: {key}: no such row in {split}; expected a shard that {MANIFEST_NAME} lists, and one of its rows")


def key_of(entry: ShardEntry, place: int) -> str:
    """The webdataset key of row `place` of a shard."""
    return row_key(shard_number(entry), place)


def read_row(dataset: Path, manifest: Manifest, entry: ShardEntry, place: int) -> StoredRow:
    """Read one record without the rest of its shard.

    Raises:
        MoseError: the shard is missing or shorter than the manifest says, or the record is damaged.
    """
    path, layout = entry.shard_in(dataset), manifest.layout()
    check_size(path, layout, entry.rows)
    with path.open("rb") as file:
        file.seek(place * layout.stride)
        record = file.read(layout.stride)
    tokens_T = np.frombuffer(record, layout.dtype, layout.sequence_length, layout.token_offset)
    try:
        labels = parse_json(record[layout.json_offset :].rstrip(b"\0"))
        return StoredRow(tokens_T, int(labels["mixed"]), int(labels["num_tokens"]), int(labels["num_snippets"]))
    except (ValueError, KeyError, TypeError):
        raise MoseError(f"{path}: row {place}: its .json member is damaged; expected mixed, num_tokens, num_snippets") from None


def check_size(path: Path, layout: RecordLayout, rows: int) -> None:
    """Check that a shard has the size of `rows` records.

    Raises:
        MoseError: the shard is missing or of another size.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise MoseError(f"{path}: no such shard, but the manifest lists it") from None
    expected = layout.file_size(rows)
    if size != expected:
        raise MoseError(f"{path}: {size} bytes, its manifest says {expected} ({rows} rows): truncated or not this data set's")


def read_blocks(
    path: Path, layout: RecordLayout, rows: int, observe: Callable[[bytes], object] = lambda data: None
) -> Iterator[RecordBlock]:
    """The records of a shard in order, at most `BLOCK_ROWS` at a time; calls `observe` with every byte of the file.

    Raises:
        MoseError: the shard is missing or of another size.
    """
    check_size(path, layout, rows)
    with path.open("rb") as file:
        for start in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - start)
            data = file.read(count * layout.stride)
            if len(data) != count * layout.stride:
                raise MoseError(f"{path}: ends in rows {start} to {start + count - 1}, its manifest says {rows} rows")
            observe(data)
            records = np.frombuffer(data, np.uint8).reshape(count, layout.stride)
            strides = (layout.stride, layout.dtype.itemsize)
            shape = (count, layout.sequence_length)
            tokens_RT: TOKENS = np.ndarray(shape, layout.dtype, data, layout.token_offset, strides)
            yield RecordBlock(start, records, np.ascontiguousarray(tokens_RT))
        observe(file.read(2 * BLOCK))


def read_index(path: Path, rows: int) -> NDArray[np.void]:
    """A copy of the index [R] of a shard's rows, 16 bytes per row.

    Raises:
        MoseError: the file is missing, not an index, or has another number of rows.
    """
    try:
        index_R: NDArray[np.void] = read_npy(path)
    except FileNotFoundError:
        raise MoseError(f"{path}: no such index, but the manifest lists it") from None
    except (ValueError, OSError) as error:
        raise MoseError(f"{path}: not a readable index of rows: {first_line(error)}") from None
    if index_R.dtype != INDEX_DTYPE or index_R.shape != (rows,):
        raise MoseError(f"{path}: holds {index_R.shape} of {index_R.dtype}, expected ({rows},) of {INDEX_DTYPE}")
    return index_R
