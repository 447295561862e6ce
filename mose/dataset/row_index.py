"""The index beside a shard: labels and a checksum per row, so that rows are balanced over ranks without reading their tokens.

An ordinary `.npy` file of `INDEX_DTYPE`, 16 bytes per row.

Letters: R rows, T slots of a row.
"""

import io
import mmap
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.dataset.packed_sequence import TOKENS
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError, first_line
from mose.files.npy_file import read_npy

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
    return np.array([zlib.crc32(row) for row in np.ascontiguousarray(rows_RT)], dtype=np.uint32)


class RowIndex:
    """The labels and checksums of one shard's rows, as a memory map."""

    def __init__(self, path: Path, rows: int):
        """Map `path`, an index of `rows` rows.

        Raises:
            MoseError: the file is missing, is no index, or has another number of rows.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise MoseError(f"{path}: no such index, but the manifest lists it") from None
        except (ValueError, OSError) as error:
            raise MoseError(f"{path}: not a readable index of rows: {first_line(error)}") from None
        # Comparing bytes: numpy's parser of the header takes 20 times as long, and a data set has thousands of these files.
        if mapped[:INDEX_OFFSET] != index_header(rows) or len(mapped) != INDEX_OFFSET + rows * INDEX_DTYPE.itemsize:
            raise MoseError(f"{path}: {_difference(path, rows)}")
        self._entries: NDArray[np.void] = np.frombuffer(mapped, INDEX_DTYPE, rows, INDEX_OFFSET)

    def entries(self, rows_R: NDArray[np.int64]) -> NDArray[np.void]:
        """A copy of the entries of these rows [R]."""
        entries_R: NDArray[np.void] = self._entries[rows_R]
        return entries_R

    def labels(self, rows_R: NDArray[np.int64]) -> RowLabels:
        """Labels of these rows [R]."""
        return labels_of(self.entries(rows_R))

    def checksums(self, rows_R: NDArray[np.int64]) -> NDArray[np.uint32]:
        """CRC-32 of the token bytes of these rows [R]."""
        checksums: NDArray[np.uint32] = self._entries["crc32"][rows_R]
        return checksums


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
