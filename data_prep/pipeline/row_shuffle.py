"""External shuffle of a task's rows: written to disk in sorted runs, merged into one random order of all rows.

Readers take blocks of consecutive rows, so neighbours must not come from the same sample of the shuffle buffer. Each row gets a
random key. Each run is sorted by key, so a block of the final order is one contiguous slice of every run: reads are sequential,
and memory holds one block instead of all rows.

Letters: R rows, T slots of a row.
"""

import contextlib
import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from data_prep.packing.rows import first_of_each
from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels
from mose.files.atomic_file import TEMPORARY_MARK
from mose.files.storage import is_local
from mose.seeding import UINT64_ARRAY, counter_random

# 16 MB with rows of 2,048 tokens: small enough for malloc to reuse its memory, large enough that a slice of one of 64 runs still
# has 64 rows.
BLOCK_ROWS = 4096
# Larger writes are several times slower in the kernel, see mose.dataset.shard_format.
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class RowBlock:
    """Rows with their labels and lineage; `lines` has one line per snippet, in the order of the rows."""

    tokens_RT: TOKENS
    labels: RowLabels
    lines: pa.Table


@dataclass(frozen=True)
class _Run:
    """Keys and labels of one sorted run, and its offsets in the file."""

    keys_R: UINT64_ARRAY
    labels: RowLabels
    first_lines_R: INT64_ARRAY
    tokens_offset: int
    lines_offset: int
    lines_bytes: int


class RowShuffle(contextlib.AbstractContextManager["RowShuffle"]):
    """The rows of one split of one task, in an unnamed file that the kernel removes when it is closed or its process dies."""

    def __init__(self, shard: Path, key: int):
        """The file is in the folder of `shard` if that is local, else in TMPDIR; `key` decides the order of rows."""
        self._shard = shard
        self._key = key
        self._file: IO[bytes] | None = None
        self._runs: list[_Run] = []
        self.rows = 0

    def order(self, number: int) -> tuple[INT64_ARRAY, UINT64_ARRAY]:
        """The order in which the next `number` rows must be passed to `write`, and their keys in that order, both [R]."""
        keys_R = counter_random(self._key, np.arange(self.rows, self.rows + number, dtype=np.uint64))
        order_R: INT64_ARRAY = np.argsort(keys_R, kind="stable")
        return order_R, keys_R[order_R]

    def write(self, keys_R: UINT64_ARRAY, rows: RowBlock) -> None:
        """Append one run of rows, sorted as `order` returned with these keys.

        Raises:
            OSError: the disk is full; the line names the shard.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.lines.schema) as stream:
            stream.write_table(rows.lines)
        lines = sink.getvalue()
        with self._opened() as file:
            offset = file.tell()
            tokens = np.ascontiguousarray(rows.tokens_RT).reshape(-1).view(np.uint8).data
            for start in range(0, len(tokens), _WRITE_BYTES):
                file.write(tokens[start : start + _WRITE_BYTES])
            # Arrow needs its buffers at multiples of 8 bytes.
            file.write(b"\0" * (-file.tell() % 8))
            first_lines_R = first_of_each(rows.labels.num_snippets)
            self._runs.append(_Run(keys_R, rows.labels, first_lines_R, offset, file.tell(), lines.size))
            file.write(lines)
            file.flush()
        self.rows += len(keys_R)

    def blocks(self, sequence_length: int, dtype: np.dtype[np.unsignedinteger]) -> Iterator[RowBlock]:
        """All rows in ascending order of key."""
        if not self._runs:
            return
        with self._opened() as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        sources = [_Source(run, mapped, sequence_length, dtype) for run in self._runs]
        keys_R = np.sort(np.concatenate([run.keys_R for run in self._runs]))
        for start in range(0, self.rows, BLOCK_ROWS):
            last_key = keys_R[min(start + BLOCK_ROWS, self.rows) - 1]
            parts = [source.take(last_key) for source in sources]
            # Rows with equal keys are read together, so the block before may have read this one.
            if any(len(part.keys_R) for part in parts):
                yield _merged([part for part in parts if len(part.keys_R)])
            # Pages are read once. Without this they would count as memory of this process.
            mapped.madvise(mmap.MADV_DONTNEED)

    def __exit__(self, *error: Any) -> None:
        """Close and thereby remove the file."""
        if self._file is not None:
            # Closing flushes the buffer, which fails again on a full disk; its content is not needed any more.
            with contextlib.suppress(OSError):
                self._file.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """The file; adds the shard's name to errors, which otherwise only say that the disk is full."""
        if self._file is None:
            folder = self._shard.parent if is_local(self._shard) else None
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            # On a file system without unnamed files a kill may leave this name, which is removed like other partial files.
            suffix = f".{socket.gethostname()}-{os.getpid()}{TEMPORARY_MARK}"
            name = f".{self._shard.name}.rows"
            self._file = tempfile.TemporaryFile(dir=folder, prefix=name, suffix=suffix)  # noqa: SIM115 (closed by __exit__)
        try:
            yield self._file
        except OSError as error:
            error.filename = str(self._shard)
            raise


@dataclass(frozen=True)
class _Part:
    """Consecutive rows of one run."""

    keys_R: UINT64_ARRAY
    tokens_RT: TOKENS
    labels: RowLabels
    lines: pa.Table


class _Source:
    """Reads one run from its beginning to its end."""

    def __init__(self, run: _Run, mapped: mmap.mmap, sequence_length: int, dtype: np.dtype[np.unsignedinteger]):
        self._run = run
        rows = len(run.keys_R)
        tokens_N = np.frombuffer(mapped, dtype, rows * sequence_length, run.tokens_offset)
        self._tokens_RT = tokens_N.reshape(rows, sequence_length)
        self._lines = pa.ipc.open_stream(pa.py_buffer(mapped).slice(run.lines_offset, run.lines_bytes)).read_all()
        self._next = 0

    def take(self, last_key: np.uint64) -> _Part:
        """The rows that follow those read so far, up to key `last_key`."""
        run = self._run
        taken = slice(self._next, int(np.searchsorted(run.keys_R, last_key, side="right")))
        self._next = taken.stop
        labels = RowLabels(*(column[taken] for column in (run.labels.mixed, run.labels.num_tokens, run.labels.num_snippets)))
        first_line = int(run.first_lines_R[taken.start]) if taken.start < taken.stop else 0
        lines = self._lines.slice(first_line, int(labels.num_snippets.sum()))
        return _Part(run.keys_R[taken], self._tokens_RT[taken], labels, lines)


def _merged(parts: list[_Part]) -> RowBlock:
    """The rows of all parts in ascending order of key."""
    order_R = np.argsort(np.concatenate([part.keys_R for part in parts]), kind="stable")
    names = ("mixed", "num_tokens", "num_snippets")
    unordered = [np.concatenate([getattr(part.labels, name) for part in parts]) for name in names]
    snippets_R = unordered[2]
    lines = pa.concat_tables([part.lines for part in parts]).combine_chunks()
    lines = lines.take(pa.array(spread(first_of_each(snippets_R)[order_R], snippets_R[order_R])))
    return RowBlock(_ordered_tokens(parts, order_R), RowLabels(*(column[order_R] for column in unordered)), lines)


def _ordered_tokens(parts: list[_Part], order_R: INT64_ARRAY) -> TOKENS:
    sequence_length, dtype = parts[0].tokens_RT.shape[1], parts[0].tokens_RT.dtype
    places_R = np.empty_like(order_R)
    places_R[order_R] = np.arange(len(order_R))
    tokens_RT = np.empty((len(order_R), sequence_length), dtype)
    # With a row as one element numpy copies whole rows.
    row_type = f"V{sequence_length * dtype.itemsize}"
    rows_R = tokens_RT.view(row_type)[:, 0]
    first = 0
    for part in parts:
        rows_R[places_R[first : first + len(part.keys_R)]] = part.tokens_RT.view(row_type)[:, 0]
        first += len(part.keys_R)
    return tokens_RT


def spread(firsts_R: INT64_ARRAY, counts_R: INT64_ARRAY) -> INT64_ARRAY:
    """The concatenated ranges `first, first + 1, ..., first + count - 1`."""
    return np.repeat(firsts_R - first_of_each(counts_R), counts_R) + np.arange(counts_R.sum())
