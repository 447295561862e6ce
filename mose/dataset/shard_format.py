"""Shards: plain webdataset tars in which every record has the same size, so that the offset of row i is computed.

A record is two USTAR members, `<key>.npy` (tokens) and `<key>.json` (mixed, num_tokens, num_snippets), each a 512-byte
header and its content padded to 512. Any webdataset reader takes the file; `ShardReader` maps it into memory.

Letters: R rows, T slots of a row, B bytes of a record, C characters of a `.json` member or a number.
"""

import functools
import io
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mose.dataset.packed_sequence import TOKENS
from mose.errors import MoseError
from mose.files.mapped_file import MappedFile

BLOCK = 512
_NUMBER_WIDTH = 6
_EMPTY_CHECKSUM = b" " * 8
_CHECKSUM_OFFSET, _CHECKSUM_DIGITS = 148, 6
_ROW_DIGITS = 9
# Records built and written together: .8 MB of rows of 2,048 tokens, which stay in a core's cache. Writes of 6 MB took 1.2 to
# 2.6 ms of kernel time per megabyte (ext4, Linux 6.18), writes of 1 MB .24.
_ROWS_A_WRITE = 128


@dataclass(frozen=True)
class RowLabels:
    """The fields of the `.json` members of rows [R]: the ICC label, real tokens, snippets."""

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
    return header[:_CHECKSUM_OFFSET] + checksum + header[_CHECKSUM_OFFSET + len(checksum) :]


# Most rows are nearly full, so few texts serve most rows of a reader that compares each row's text.
@functools.lru_cache(maxsize=1 << 14)
def json_member(mixed: int, num_tokens: int, num_snippets: int) -> bytes:
    """The content of a `.json` member, of the same length for all rows."""
    w = _NUMBER_WIDTH
    return f'{{"mixed": {mixed:d}, "num_tokens": {num_tokens:>{w}d}, "num_snippets": {num_snippets:>{w}d}}}'.encode()


MEMBER_DTYPE = f"S{len(json_member(0, 0, 0))}"


def row_key(shard: int, row: int) -> str:
    """The webdataset key of one row: shard number and row number, each of fixed width."""
    return f"{shard:06d}-{row:0{_ROW_DIGITS}d}"


@dataclass(frozen=True)
class RecordLayout:
    """Offsets and sizes, in bytes, of a record of T = `sequence_length` slots of type `dtype`."""

    sequence_length: int
    dtype: np.dtype[np.unsignedinteger]

    @functools.cached_property
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
        return self.json_offset + _padded(len(json_member(0, 0, 0)))

    def file_size(self, rows: int) -> int:
        """Bytes of a shard of `rows` records: the records and the two zero blocks that end a tar."""
        return rows * self.stride + 2 * BLOCK

    def record(self, key: str, row: TOKENS, mixed: int, num_tokens: int, num_snippets: int) -> bytes:
        """The bytes of one record for a row [T].

        Raises:
            MoseError: a token id does not fit the token type of the data set's vocabulary.
        """
        largest = int(row.max(initial=0))
        if largest > np.iinfo(self.dtype).max:
            raise MoseError(
                f"{key}: token id {largest} does not fit {self.dtype}; expected ids below the manifest's vocabulary_size"
            )
        tokens = self.npy_header + row.astype(self.dtype, copy=False).tobytes()
        labels = json_member(mixed, num_tokens, num_snippets)
        parts = [_ustar_header(f"{key}.npy", len(tokens)), tokens.ljust(_padded(len(tokens)), b"\0")]
        parts += [_ustar_header(f"{key}.json", len(labels)), labels.ljust(_padded(len(labels)), b"\0")]
        return b"".join(parts)


class Sink(Protocol):
    """The part of the file interface that a writer needs."""

    def write(self, data: Any, /) -> object:
        """Append bytes."""


class ShardWriter:
    """Writes records to an open file; `close()` ends the tar. The caller opens, closes and publishes the file."""

    def __init__(self, file: Sink, layout: RecordLayout, shard: int, observe: Callable[[Any], object] | None = None):
        """`observe` is called with all bytes written, in order (for a running checksum)."""
        self._file = file
        self._layout = layout
        self._shard = shard
        self._observe = observe
        self._template = layout.record(row_key(shard, 0), np.zeros(layout.sequence_length, layout.dtype), 0, 0, 0)
        self._block_RB = np.zeros((0, layout.stride), dtype=np.uint8)
        self.rows = 0

    def write(self, row: TOKENS, mixed: int, num_tokens: int, num_snippets: int) -> None:
        """Append one row [T]."""
        self.write_rows(row[None], RowLabels(*(np.array([value]) for value in (mixed, num_tokens, num_snippets))))

    def write_rows(self, rows_RT: TOKENS, labels: RowLabels) -> None:
        """Append rows [R, T] with their labels [R]: the same bytes as `RecordLayout.record`, built for many rows at once.

        Raises:
            MoseError: a token id does not fit the token type of the data set's vocabulary.
        """
        self._check(rows_RT)
        for start in range(0, len(rows_RT), _ROWS_A_WRITE):
            block = slice(start, start + _ROWS_A_WRITE)
            self._put(
                self._records(
                    rows_RT[block], RowLabels(labels.mixed[block], labels.num_tokens[block], labels.num_snippets[block])
                )
            )
            self.rows += len(rows_RT[block])

    def close(self) -> None:
        """Write the two zero blocks that end a tar."""
        self._put(b"\0" * (2 * BLOCK))

    def _check(self, rows_RT: TOKENS) -> None:
        limit = np.iinfo(self._layout.dtype).max
        if rows_RT.dtype.itemsize > self._layout.dtype.itemsize and int(rows_RT.max(initial=0)) > limit:
            place = int((rows_RT.max(axis=1) > limit).argmax())
            self._layout.record(row_key(self._shard, self.rows + place), rows_RT[place], 0, 0, 0)

    def _records(self, rows_RT: TOKENS, labels: RowLabels) -> memoryview:
        """Records as bytes: copies of a template in which tokens, row numbers, header checksums and labels are filled in."""
        layout, rows = self._layout, len(rows_RT)
        if len(self._block_RB) < rows:
            self._block_RB = np.tile(np.frombuffer(self._template, dtype=np.uint8), (rows, 1))
        block_RB = self._block_RB[:rows]
        tokens_RT = np.ascontiguousarray(rows_RT, dtype=layout.dtype)
        row_bytes = layout.sequence_length * layout.dtype.itemsize
        # One element per row, so that numpy copies whole rows.
        stored_R = np.ndarray((rows,), f"V{row_bytes}", block_RB.data, layout.token_offset, (layout.stride,))
        stored_R[:] = tokens_RT.view(f"V{row_bytes}")[:, 0]
        self._number(block_RB)
        for field, values_R, fill in zip(_label_fields(), _columns(labels), (b"0", b" ", b" "), strict=True):
            at = layout.json_offset + field.start
            block_RB[:, at : layout.json_offset + field.stop] = _digits(values_R, field.stop - field.start, 10, fill)
        return block_RB.data.cast("B")

    def _number(self, block_RB: NDArray[np.uint8]) -> None:
        """Write row numbers and checksums into the two headers of each record."""
        numbers_RC = _digits(np.arange(self.rows, self.rows + len(block_RB)), _ROW_DIGITS, 10)
        for header in (0, self._layout.json_offset - BLOCK):
            key_end = header + len(row_key(self._shard, 0))
            checksum = header + _CHECKSUM_OFFSET
            # A header's checksum is the sum of its bytes: take the template's, of row 0, without its nine digits "0".
            base = int(self._template[checksum : checksum + _CHECKSUM_DIGITS], 8) - _ROW_DIGITS * ord("0")
            block_RB[:, key_end - _ROW_DIGITS : key_end] = numbers_RC
            sums_R = base + numbers_RC.sum(axis=1, dtype=np.int64)
            block_RB[:, checksum : checksum + _CHECKSUM_DIGITS] = _digits(sums_R, _CHECKSUM_DIGITS, 8)

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        if self._observe is not None:
            self._observe(data)


def _columns(labels: RowLabels) -> tuple[NDArray[np.int64], ...]:
    return labels.mixed, labels.num_tokens, labels.num_snippets


def _label_fields() -> list[slice]:
    """The places of the three numbers in a `.json` member."""
    ends = [place + 1 for place, character in enumerate(json_member(0, 0, 0)) if character == ord("0")]
    return [slice(end - width, end) for end, width in zip(ends, (1, _NUMBER_WIDTH, _NUMBER_WIDTH), strict=True)]


def _digits(values_R: NDArray[np.int64], width: int, base: int, fill: bytes = b"0") -> NDArray[np.uint8]:
    """Numbers as ASCII digits [R, width], `fill` in place of leading zeros."""
    powers = base ** np.arange(width - 1, -1, -1)
    characters_RC = (values_R[:, None] // powers % base + ord("0")).astype(np.uint8)
    if fill != b"0":
        characters_RC[(values_R[:, None] < powers) & (powers > 1)] = ord(fill)
    return characters_RC


class ShardReader:
    """Random access to the rows of one shard through a memory map; opening reads one header, not the file."""

    def __init__(self, path: Path, layout: RecordLayout, rows: int):
        """Map `path`, a shard of `rows` records.

        Raises:
            MoseError: the file is missing, differs in size from the manifest, or is not one of our shards.
        """
        self.path = path
        self.rows = rows
        self._layout = layout
        size, expected = _file_size(path), layout.file_size(rows)
        if size != expected:
            raise MoseError(f"{path}: {size} bytes, its manifest says {expected} ({rows} rows): truncated or not this data set's")
        self._file = MappedFile(path)
        self._check_first_record()
        row_bytes = layout.sequence_length * layout.dtype.itemsize
        # One element per row, so that numpy copies whole rows instead of single tokens.
        self._tokens_V = self._column(f"V{row_bytes}", layout.token_offset)
        self._members_V = self._column(MEMBER_DTYPE, layout.json_offset)

    def _check_first_record(self) -> None:
        header = self._layout.npy_header
        if self.rows and self._file.data[BLOCK : BLOCK + len(header)] != header:
            raise MoseError(f"{self.path}: first record is not an array of {self._layout.sequence_length} {self._layout.dtype}")

    def tokens(self, rows: NDArray[np.int64]) -> TOKENS:
        """A copy of the tokens of these rows, [R, T].

        Raises:
            MoseError: the file was truncated since it was opened.
        """
        self._file.check_size()
        return self._tokens_V[rows].view(self._layout.dtype).reshape(len(rows), self._layout.sequence_length)

    def labels(self, rows: NDArray[np.int64]) -> RowLabels:
        """The labels of these rows from their `.json` members; `mose.dataset.row_index` holds the same and is faster to read.

        Raises:
            MoseError: a member differs from the fixed form that `RecordLayout.record` writes; the file was truncated.
        """
        if not len(rows):
            nothing = np.zeros(0, dtype=np.int64)
            return RowLabels(nothing, nothing, nothing)
        return _parse_labels(self.members(rows), self.path)

    def members(self, rows: NDArray[np.int64]) -> NDArray[np.bytes_]:
        """The content of the `.json` members of these rows, [R] of `MEMBER_DTYPE`.

        Raises:
            MoseError: the file was truncated since it was opened.
        """
        self._file.check_size()
        members_R: NDArray[np.bytes_] = self._members_V[rows]
        return members_R

    def _column(self, dtype: str, offset: int) -> NDArray[Any]:
        """One element of every record, without a copy; numpy takes no strides for none."""
        if not self.rows:
            return np.empty(0, dtype)
        return np.ndarray((self.rows,), dtype, self._file.data, offset, (self._layout.stride,))

    def expect_random_access(self) -> None:
        """Tell the kernel not to read ahead: rows are read in shuffled order, and each read ahead would mostly be wasted."""
        if hasattr(mmap, "MADV_RANDOM"):
            self._file.data.madvise(mmap.MADV_RANDOM)

    def is_replaced(self) -> bool:
        """Whether another file, or changed content, stands under the path since it was opened.

        Raises:
            MoseError: nothing stands there any more.
        """
        return self._file.is_replaced()

    def close(self) -> None:
        """Release the memory map."""
        del self._tokens_V, self._members_V
        self._file.close()


def _parse_labels(members_R: NDArray[np.bytes_], path: Path) -> RowLabels:
    """Parse fixed-width members as columns of digits; `json.loads` per member took most of the loader's time."""
    form = np.frombuffer(json_member(0, 0, 0), dtype=np.uint8)
    characters_RC = np.frombuffer(members_R.tobytes(), dtype=np.uint8).reshape(len(members_R), len(form))
    fields = _label_fields()
    digits = [np.where(characters_RC[:, field] == ord(" "), 0, characters_RC[:, field] - np.uint8(ord("0"))) for field in fields]
    fixed = np.ones(len(form), dtype=bool)
    for field in fields:
        fixed[field] = False
    if (characters_RC[:, fixed] != form[fixed]).any() or any((column > 9).any() for column in digits):
        raise MoseError(f"{path}: a .json member is damaged: expected the form {json_member(0, 0, 0).decode()}")
    return RowLabels(*(column.astype(np.int64) @ 10 ** np.arange(column.shape[1] - 1, -1, -1) for column in digits))


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise MoseError(f"{path}: no such shard, but the manifest lists it") from None
