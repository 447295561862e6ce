"""A task's rows on disk while their order is not yet known: written a pool at a time, read back in one random order of all.

Each row has a random key. A pool's rows are written as one run in ascending order of key, so each block of the final order is
one piece of each run: no file is read at random, and memory holds a block, not the rows.

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

# 16 MB of rows of 2,048 tokens: little enough for malloc to use the same memory again; of 64 runs a block takes 64 rows each.
BLOCK_ROWS = 4096
# Larger writes take the kernel several times as long, see mose.dataset.shard_format.
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class RowBlock:
    """Rows with all that is written of them; `lines` holds one line a snippet, in the order of the rows."""

    tokens_RT: TOKENS
    labels: RowLabels
    lines: pa.Table


@dataclass(frozen=True)
class _Run:
    """Where the rows of one pool lie in the file, and the labels by which they are found."""

    keys_R: UINT64_ARRAY
    labels: RowLabels
    first_lines_R: INT64_ARRAY
    tokens_offset: int
    lines_offset: int
    lines_bytes: int


class RowSpool(contextlib.AbstractContextManager["RowSpool"]):
    """The rows of one split of one task, in a nameless file that is gone when it is closed or its process is killed."""

    def __init__(self, shard: Path, key: int):
        """The file lies beside `shard` if that is local, else in TMPDIR; `key` decides the order of rows."""
        self._shard = shard
        self._key = key
        self._file: IO[bytes] | None = None
        self._runs: list[_Run] = []
        self.rows = 0

    def order(self, number: int) -> tuple[INT64_ARRAY, UINT64_ARRAY]:
        """How the next `number` rows must be given to `write`, [R]: their order, and their keys in that order."""
        keys_R = counter_random(self._key, np.arange(self.rows, self.rows + number, dtype=np.uint64))
        order_R: INT64_ARRAY = np.argsort(keys_R, kind="stable")
        return order_R, keys_R[order_R]

    def write(self, keys_R: UINT64_ARRAY, rows: RowBlock) -> None:
        """Append rows in the order that `order` gave with these keys.

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
            # Arrow wants its buffers at multiples of 8 bytes.
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
            # Equal keys stay together, so a block may have been taken with the one before.
            if any(len(part.keys_R) for part in parts):
                yield _merged([part for part in parts if len(part.keys_R)])
            # What was read is not read again; without this the mapped pages would count as this process's memory.
            mapped.madvise(mmap.MADV_DONTNEED)

    def __exit__(self, *error: Any) -> None:
        """Let go of the file."""
        if self._file is not None:
            # What a full disk left in its buffer is not wanted any more.
            with contextlib.suppress(OSError):
                self._file.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        """The file; its errors name the shard, where the system's say only that the disk is full."""
        if self._file is None:
            folder = self._shard.parent if is_local(self._shard) else None
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            # Where a file system has no nameless files, a kill may leave this name, which is cleared as other partial files are.
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
        """The rows that were not taken yet and whose key is `last_key` or less."""
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
    # A row as one element: numpy then copies whole rows.
    row_type = f"V{sequence_length * dtype.itemsize}"
    rows_R = tokens_RT.view(row_type)[:, 0]
    first = 0
    for part in parts:
        rows_R[places_R[first : first + len(part.keys_R)]] = part.tokens_RT.view(row_type)[:, 0]
        first += len(part.keys_R)
    return tokens_RT


def spread(firsts_R: INT64_ARRAY, counts_R: INT64_ARRAY) -> INT64_ARRAY:
    """The numbers of each run `first, first + 1, ...` of `count` numbers, run after run."""
    return np.repeat(firsts_R - first_of_each(counts_R), counts_R) + np.arange(counts_R.sum())
