"""The index beside a shard: labels and a checksum per row, so that rows are balanced over ranks without reading their tokens.

An ordinary `.npy` file of `INDEX_DTYPE`, 16 bytes per row.

Letters: R rows, T slots of a row.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels, json_member
from mose.errors import MoseError, first_line
from mose.files.mapped_file import MappedFile
from mose.files.npy_file import read_npy

try:
    # The same CRC-32 at 4 times the speed of zlib: .35 against 1.6 us for a row of 4 KiB, which counts where every row is read.
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

INDEX_DTYPE = np.dtype([("num_tokens", "<u4"), ("num_snippets", "<u4"), ("mixed", "<u4"), ("crc32", "<u4")])
# Offset of entry 0. numpy leaves room for a row count of any length, so the header of every index has this size.
INDEX_OFFSET = 192


def index_bytes(index_R: NDArray[np.void]) -> bytes:
    """The bytes of an index file with these entries [R] of `INDEX_DTYPE`."""
    buffer = io.BytesIO()
    np.save(buffer, index_R, allow_pickle=False)
    return buffer.getvalue()


def index_header(rows: int) -> bytes:
    """The header of an index file of `rows` rows, `INDEX_OFFSET` bytes."""
    buffer = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(INDEX_DTYPE), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def make_index(rows_RT: TOKENS, labels: RowLabels) -> NDArray[np.void]:
    """The index entries [R] of these rows."""
    index_R = np.zeros(len(rows_RT), dtype=INDEX_DTYPE)
    index_R["mixed"], index_R["num_tokens"], index_R["num_snippets"] = labels.mixed, labels.num_tokens, labels.num_snippets
    index_R["crc32"] = token_checksums(rows_RT)
    return index_R


def token_checksums(rows_RT: TOKENS) -> NDArray[np.uint32]:
    """CRC-32 of the token bytes of each row, [R]."""
    return np.array(_checksums(rows_RT), dtype=np.uint32)


def _checksums(rows_RT: TOKENS) -> list[int]:
    return list(map(crc32, np.ascontiguousarray(rows_RT)))


class RowIndex:
    """The labels and checksums of one shard's rows, as a memory map."""

    def __init__(self, path: Path, rows: int):
        """Map `path`, an index of `rows` rows.

        Raises:
            MoseError: the file is missing, is no index, or has another number of rows.
        """
        self.path = path
        try:
            self._file = MappedFile(path)
        except FileNotFoundError:
            raise MoseError(f"{path}: no such index, but the manifest lists it") from None
        except (ValueError, OSError) as error:
            raise MoseError(f"{path}: not a readable index of rows: {first_line(error)}") from None
        # Comparing bytes: numpy's parser of the header takes 20 times as long, and a data set has thousands of these files.
        mapped = self._file.data
        if mapped[:INDEX_OFFSET] != index_header(rows) or len(mapped) != INDEX_OFFSET + rows * INDEX_DTYPE.itemsize:
            raise MoseError(f"{path}: {_difference(path, rows)}")
        self._entries: NDArray[np.void] = np.frombuffer(mapped, INDEX_DTYPE, rows, INDEX_OFFSET)

    def entries(self, rows_R: NDArray[np.int64]) -> NDArray[np.void]:
        """A copy of the entries of these rows [R].

        Raises:
            MoseError: the file was truncated since it was opened.
        """
        self._file.check_size()
        entries_R: NDArray[np.void] = self._entries[rows_R]
        return entries_R

    def labels(self, rows_R: NDArray[np.int64]) -> RowLabels:
        """Labels of these rows [R]."""
        return labels_of(self.entries(rows_R))

    def checksums(self, rows_R: NDArray[np.int64]) -> NDArray[np.uint32]:
        """CRC-32 of the token bytes of these rows [R]."""
        checksums: NDArray[np.uint32] = self.entries(rows_R)["crc32"]
        return checksums


def first_wrong_row(tokens_RT: TOKENS, members_R: NDArray[np.bytes_], index_R: NDArray[np.void]) -> tuple[int, str] | None:
    """Compare rows [R] as read from a shard, tokens and `.json` members, with their index entries [R].

    Returns the place of the first row that differs and what differs in it; None if all are as their index says.
    """
    # Lists, because numpy's cost per call exceeds that of the comparison for the 32 rows that a loader reads at a time.
    entries = index_R.tolist()
    checksums, expected = _checksums(tokens_RT), [entry[3] for entry in entries]
    if checksums != expected:
        place = next(place for place, pair in enumerate(zip(checksums, expected, strict=True)) if pair[0] != pair[1])
        return place, "CRC-32 of its tokens is not that in its index: damaged or replaced"
    # Comparing with the text that a row should have is several times as fast as parsing the text that it has.
    members, texts = members_R.tolist(), [json_member(mixed, tokens, snippets) for tokens, snippets, mixed, _ in entries]
    if members != texts:
        place = next(place for place, pair in enumerate(zip(members, texts, strict=True)) if pair[0] != pair[1])
        found, text = members[place].decode("ascii", "replace"), texts[place].decode()
        return place, f"its .json member is {found!a}, expected {text!r} as in its index: damaged"
    return None


def _difference(path: Path, rows: int) -> str:
    """How a file differs from an index of `rows` rows, in words."""
    try:
        found = read_npy(path, mapped=True)
    except (ValueError, OSError) as error:
        return f"not a readable index of rows: {first_line(error)}"
    return f"holds {found.shape} of {found.dtype}, expected ({rows},) of {INDEX_DTYPE}"


def labels_of(index_R: NDArray[np.void]) -> RowLabels:
    """The labels in index entries [R]."""
    return RowLabels(*(index_R[name].astype(np.int64) for name in ("mixed", "num_tokens", "num_snippets")))
