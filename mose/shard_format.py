"""Shards: plain webdataset tars in which every record has the same stride, so that row i lies at a computable offset.

A record is two USTAR members, `<key>.npy` (tokens) and `<key>.json` (mixed, num_tokens, num_snippets), each a 512-byte
header and its content padded to 512. Any webdataset reader takes the file; `ShardReader` maps it into memory.

Letters: R rows, T slots of a row, C characters of a `.json` member.
"""

import io
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mose.errors import MoseError
from mose.packed_sequence import TOKENS

BLOCK = 512
_NUMBER_WIDTH = 6
_EMPTY_CHECKSUM = b" " * 8


@dataclass(frozen=True)
class RowLabels:
    """What the `.json` member says of rows [R]: the ICC label, real tokens, snippets."""

    mixed: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    num_snippets: NDArray[np.int64]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _ustar_header(name: str, size: int) -> bytes:
    """A POSIX USTAR header with mode 0644, owner 0 and modification time 0, so that equal rows give equal bytes."""
    fields = [name.encode("ascii").ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0"]
    fields += [b"%011o\0" % size, b"%011o\0" % 0, _EMPTY_CHECKSUM, b"0", b"\0" * 100, b"ustar\x0000"]
    header = b"".join(fields).ljust(BLOCK, b"\0")
    checksum = b"%06o\0 " % sum(header)
    return header[:148] + checksum + header[156:]


def _json_member(mixed: int, num_tokens: int, num_snippets: int) -> bytes:
    w = _NUMBER_WIDTH
    return f'{{"mixed": {mixed:d}, "num_tokens": {num_tokens:>{w}d}, "num_snippets": {num_snippets:>{w}d}}}'.encode()


def row_key(shard: int, row: int) -> str:
    """The webdataset key of one row: shard number and row number, of fixed width."""
    return f"{shard:06d}-{row:09d}"


@dataclass(frozen=True)
class RecordLayout:
    """Where things lie in a record of T = `sequence_length` slots of type `dtype`; all sizes in bytes."""

    sequence_length: int
    dtype: np.dtype[np.unsignedinteger]

    @cached_property
    def npy_header(self) -> bytes:
        """numpy's own header for an array [T] of this type."""
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(self.sequence_length, self.dtype))
        return buffer.getvalue()[: -self.sequence_length * self.dtype.itemsize]

    @property
    def npy_size(self) -> int:
        """Bytes of the `.npy` member's content."""
        return len(self.npy_header) + self.sequence_length * self.dtype.itemsize

    @property
    def token_offset(self) -> int:
        """Offset of the first token in a record."""
        return BLOCK + len(self.npy_header)

    @property
    def json_offset(self) -> int:
        """Offset of the `.json` member's content in a record."""
        return BLOCK + _padded(self.npy_size) + BLOCK

    @property
    def stride(self) -> int:
        """Bytes of one record."""
        return self.json_offset + _padded(len(_json_member(0, 0, 0)))

    def file_size(self, rows: int) -> int:
        """Bytes of a shard of `rows` records: the records and tar's two closing blocks."""
        return rows * self.stride + 2 * BLOCK

    def record(self, key: str, row: TOKENS, mixed: int, num_tokens: int, num_snippets: int) -> bytes:
        """The bytes of one record for a row [T].

        Raises:
            MoseError: a token id does not fit the type that the data set's vocabulary asked for.
        """
        largest = int(row.max(initial=0))
        if largest > np.iinfo(self.dtype).max:
            raise MoseError(
                f"{key}: token id {largest} does not fit {self.dtype}; expected ids below the manifest's vocabulary_size"
            )
        tokens = self.npy_header + row.astype(self.dtype, copy=False).tobytes()
        labels = _json_member(mixed, num_tokens, num_snippets)
        parts = [_ustar_header(f"{key}.npy", len(tokens)), tokens.ljust(_padded(len(tokens)), b"\0")]
        parts += [_ustar_header(f"{key}.json", len(labels)), labels.ljust(_padded(len(labels)), b"\0")]
        return b"".join(parts)


class ShardWriter:
    """Writes records to an open file; `close()` adds tar's end. The caller owns the file and its atomic publishing."""

    def __init__(self, file: IO[bytes], layout: RecordLayout, shard: int, observe: Callable[[bytes], object] | None = None):
        """`observe` sees every byte string written, in order (a running checksum)."""
        self._file = file
        self._layout = layout
        self._shard = shard
        self._observe = observe
        self.rows = 0

    def write(self, row: TOKENS, mixed: int, num_tokens: int, num_snippets: int) -> None:
        """Append one row [T]."""
        self._put(self._layout.record(row_key(self._shard, self.rows), row, mixed, num_tokens, num_snippets))
        self.rows += 1

    def close(self) -> None:
        """Write the two zero blocks that end a tar."""
        self._put(b"\0" * (2 * BLOCK))

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        if self._observe is not None:
            self._observe(data)


class ShardReader:
    """Random access to the rows of one shard through a memory map; opening reads one header, not the file."""

    def __init__(self, path: Path, layout: RecordLayout, rows: int):
        """Map `path`, which should hold `rows` records.

        Raises:
            MoseError: the file is missing, has another size than its manifest says, or is not one of our shards.
        """
        self.path = path
        self.rows = rows
        self._layout = layout
        size, expected = _file_size(path), layout.file_size(rows)
        if size != expected:
            raise MoseError(f"{path}: {size} bytes, its manifest says {expected} ({rows} rows): truncated or not this data set's")
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._check_first_record()

    def _check_first_record(self) -> None:
        header = self._layout.npy_header
        if self.rows and self._map[BLOCK : BLOCK + len(header)] != header:
            raise MoseError(f"{self.path}: first record is not an array of {self._layout.sequence_length} {self._layout.dtype}")

    def tokens(self, rows: NDArray[np.int64]) -> TOKENS:
        """A copy of the tokens of these rows, [R, T]."""
        layout = self._layout
        view: TOKENS = np.ndarray(
            (self.rows, layout.sequence_length),
            layout.dtype,
            self._map,
            layout.token_offset,
            (layout.stride, layout.dtype.itemsize),
        )
        return view[rows]

    def labels(self, rows: NDArray[np.int64]) -> RowLabels:
        """The labels of these rows, read from their `.json` members.

        Raises:
            MoseError: a member is not of the fixed form that `RecordLayout.record` writes.
        """
        size = len(_json_member(0, 0, 0))
        view = np.ndarray((self.rows,), f"S{size}", self._map, self._layout.json_offset, (self._layout.stride,))
        return _parse_labels(view[rows], self.path)

    def expect_random_access(self) -> None:
        """Tell the kernel not to read ahead: rows are wanted in shuffled order, and a cold file would be read many times over."""
        if hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)

    def close(self) -> None:
        """Release the memory map."""
        self._map.close()


def _parse_labels(members_R: NDArray[np.bytes_], path: Path) -> RowLabels:
    """Read fixed-width members as columns of digits; `json.loads` on each took most of the loader's time."""
    form = np.frombuffer(_json_member(0, 0, 0), dtype=np.uint8)
    characters_RC = np.frombuffer(members_R.tobytes(), dtype=np.uint8).reshape(len(members_R), len(form))
    ends = np.flatnonzero(form == ord("0")) + 1
    fields = [slice(end - width, end) for end, width in zip(ends, (1, _NUMBER_WIDTH, _NUMBER_WIDTH), strict=True)]
    digits = [np.where(characters_RC[:, field] == ord(" "), 0, characters_RC[:, field] - np.uint8(ord("0"))) for field in fields]
    fixed = np.ones(len(form), dtype=bool)
    for field in fields:
        fixed[field] = False
    if (characters_RC[:, fixed] != form[fixed]).any() or any((column > 9).any() for column in digits):
        raise MoseError(f"{path}: a .json member is damaged: expected the form {_json_member(0, 0, 0).decode()}")
    return RowLabels(*(column.astype(np.int64) @ 10 ** np.arange(column.shape[1] - 1, -1, -1) for column in digits))


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise MoseError(f"{path}: no such shard, but the manifest lists it") from None
