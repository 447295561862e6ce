"""Rows read by byte ranges from an object store, a slow file system or a local disk; verified, and read again on failure.

Letters: R rows, T slots of a row.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_DTYPE, INDEX_OFFSET, token_checksums
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError
from mose.files.storage import is_local
from mose.seeding import counter_random, derive_key
from pretrain.storage.local_rows import SplitTable


def read_range(path: Path, start: int, length: int) -> bytes:
    """Bytes [start, start + length) of a file, local or on an object store; fewer where it ends before that."""
    if is_local(path):
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return b"".join(_pieces(file, length))
    store = cast(Any, path)
    return cast(bytes, store.fs.cat_file(store.path, start=start, end=start + length))


def _pieces(file: Any, length: int) -> Iterator[bytes]:
    """A single read may return fewer bytes than requested, above all on a network file system."""
    while length and (piece := file.read(length)):
        length -= len(piece)
        yield piece


@dataclass(frozen=True)
class Retry:
    """Retries with exponential backoff: attempts in all, and the wait before the second one, doubled for each further one."""

    attempts: int = 5
    first_wait_seconds: float = 0.5

    def wait_seconds(self, what: str, attempt: int) -> float:
        """The wait before retry 1, 2, ..., with jitter (half to all of it), so that ranks do not retry at the same moment."""
        share = float(counter_random(derive_key("retry", what), np.array([attempt], dtype=np.uint64))[0]) / 2.0**64
        return self.first_wait_seconds * 2.0 ** (attempt - 1) * (1 + share) / 2


class _DamagedError(Exception):
    """The bytes read do not match the manifest or the index; reading them again may help."""


class RangeReader:
    """Reads consecutive rows with their index entries; thread-safe."""

    def __init__(self, table: SplitTable, retry: Retry):
        """Read nothing yet."""
        self.table = table
        self._retry = retry
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make reads that wait for their next attempt give up."""
        self._stopped.set()

    def read(self, first_row: int, count: int) -> tuple[TOKENS, NDArray[np.void]]:
        """Tokens [R, T] and index entries [R] of rows first_row..first_row+count-1; each row is verified by its CRC-32.

        Raises:
            MoseError: a file is missing or cannot be read, or a row differs from its checksum, after all attempts.
        """
        self.table.check_generation()
        parts = [self._read_with_retries(shard, inside, rows) for shard, inside, rows in self._segments(first_row, count)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([tokens for tokens, _ in parts]), np.concatenate([index for _, index in parts])

    def _segments(self, first_row: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(shard, first row in it, number of rows) for each shard that a range of rows touches."""
        row, end = first_row, first_row + count
        while row < end:
            shard = int(np.searchsorted(self.table.first_rows, row, side="right")) - 1
            stop = min(end, int(self.table.first_rows[shard + 1]))
            yield shard, row - int(self.table.first_rows[shard]), stop - row
            row = stop

    def _read_with_retries(self, shard: int, inside: int, count: int) -> tuple[TOKENS, NDArray[np.void]]:
        path = self.table.shards[shard].shard_in(self.table.dataset)
        what = f"{path}: rows {inside}..{inside + count - 1}"
        reason = ""
        for attempt in range(self._retry.attempts):
            if attempt and self._stopped.wait(self._retry.wait_seconds(what, attempt)):
                break
            try:
                return self._read_once(shard, inside, count)
            except MoseError:
                raise
            except FileNotFoundError as error:
                raise MoseError(f"{error.filename or error}: no such file, but the manifest lists it") from None
            except _DamagedError as error:
                reason = str(error)
            except Exception as error:
                # Each object-store library raises its own exceptions; any of them may be transient.
                reason = f"{what}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        raise MoseError(f"{reason}; read {self._retry.attempts} times, expected the rows that the manifest lists")

    def _read_once(self, shard: int, inside: int, count: int) -> tuple[TOKENS, NDArray[np.void]]:
        layout, entry, dataset = self.table.layout, self.table.shards[shard], self.table.dataset
        size = INDEX_DTYPE.itemsize
        index_R = np.frombuffer(_whole(entry.index_in(dataset), INDEX_OFFSET + size * inside, size * count), dtype=INDEX_DTYPE)
        path = entry.shard_in(dataset)
        data = _whole(path, layout.stride * inside, layout.stride * count)
        strides = (layout.stride, layout.dtype.itemsize)
        in_place: TOKENS = np.ndarray((count, layout.sequence_length), layout.dtype, data, layout.token_offset, strides)
        tokens_RT = np.ascontiguousarray(in_place)
        wrong = np.flatnonzero(token_checksums(tokens_RT) != index_R["crc32"])
        if len(wrong):
            raise _DamagedError(
                f"{path}: row {inside + int(wrong[0])}: its tokens differ from the checksum in {entry.index_path}"
            )
        return tokens_RT, index_R


def _whole(path: Path, start: int, length: int) -> bytes:
    data = read_range(path, start, length)
    if len(data) != length:
        raise _DamagedError(f"{path}: {len(data)} bytes from byte {start}, expected {length}: truncated")
    return data


class RangeRows:
    """The rows of a split, one range read per run of consecutive rows: for rows read in order, e.g. held-out ones."""

    def __init__(self, reader: RangeReader, most_rows: int | None = None):
        """Take the first `most_rows` rows of the split (default: all)."""
        self._reader = reader
        self.table = reader.table
        self._count = len(self.table) if most_rows is None else min(most_rows, len(self.table))

    def __len__(self) -> int:
        return self._count

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self.table.layout.sequence_length

    def reach(self, start: int, count: int) -> None:
        """Nothing is read ahead."""

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows.

        Raises:
            MoseError: see `RangeReader.read`; or a token is out of range.
        """
        return self.table.check_tokens(self._read(rows_R)[0], rows_R)

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows.

        Raises:
            MoseError: see `RangeReader.read`; or a label is out of range.
        """
        return self.table.labels_of(self._read(rows_R)[1])

    def _read(self, rows_R: INT64_ARRAY) -> tuple[TOKENS, NDArray[np.void]]:
        wanted, places_R = np.unique(rows_R, return_inverse=True)
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)
        parts = [self._reader.read(int(run[0]), len(run)) for run in runs if len(run)]
        if not parts:
            return np.empty((0, self.sequence_length), self.table.layout.dtype), np.empty(0, INDEX_DTYPE)
        tokens_RT, index_R = (np.concatenate([part[i] for part in parts]) for i in range(2))
        return tokens_RT[places_R], index_R[places_R]

    def close(self) -> None:
        """Nothing is held open."""


class LoadedRows(RangeRows):
    """The first rows of a split, read once and kept in memory: for validation, which reads the same rows each time."""

    def __init__(self, reader: RangeReader, most_rows: int):
        """Read them.

        Raises:
            MoseError: see `RangeReader.read`.
        """
        super().__init__(reader, most_rows)
        self._tokens_RT, self._index_R = reader.read(0, len(self))

    def _read(self, rows_R: INT64_ARRAY) -> tuple[TOKENS, NDArray[np.void]]:
        return self._tokens_RT[rows_R], self._index_R[rows_R]
