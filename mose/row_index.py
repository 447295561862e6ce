"""The index beside a shard: labels and a checksum of each row, so that rows are dealt without touching their tokens.

An ordinary `.npy` file of `INDEX_DTYPE`, 16 bytes a row.

Letters: R rows, T slots of a row.
"""

import io
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.errors import MoseError
from mose.packed_sequence import TOKENS
from mose.shard_format import RowLabels

INDEX_DTYPE = np.dtype([("num_tokens", "<u4"), ("num_snippets", "<u4"), ("mixed", "<u4"), ("crc32", "<u4")])
# Where entry 0 lies: numpy leaves room for a row count of any length, so the header of every index is as long as this.
INDEX_OFFSET = 192


def index_bytes(index_R: NDArray[np.void]) -> bytes:
    """The file that holds these entries [R] of `INDEX_DTYPE`."""
    buffer = io.BytesIO()
    np.save(buffer, index_R, allow_pickle=False)
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
    """The labels and checksums of one shard's rows, mapped into memory."""

    def __init__(self, path: Path, rows: int):
        """Map `path`, which should describe `rows` rows.

        Raises:
            MoseError: the file is missing, is no index, or describes another number of rows.
        """
        self.path = path
        try:
            self._index: NDArray[np.void] = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise MoseError(f"{path}: no such index, but the manifest lists it") from None
        except (ValueError, OSError) as error:
            raise MoseError(f"{path}: not a readable index of rows: {str(error).splitlines()[0]}") from None
        if self._index.dtype != INDEX_DTYPE or self._index.shape != (rows,):
            raise MoseError(f"{path}: holds {self._index.shape} of {self._index.dtype}, expected ({rows},) of {INDEX_DTYPE}")

    def labels(self, rows_R: NDArray[np.int64]) -> RowLabels:
        """Labels of these rows [R]."""
        return labels_of(self._index[rows_R])

    def checksums(self, rows_R: NDArray[np.int64]) -> NDArray[np.uint32]:
        """CRC-32 of the token bytes of these rows [R]."""
        checksums: NDArray[np.uint32] = self._index["crc32"][rows_R]
        return checksums


def labels_of(index_R: NDArray[np.void]) -> RowLabels:
    """The labels in index entries [R]."""
    return RowLabels(*(index_R[name].astype(np.int64) for name in ("mixed", "num_tokens", "num_snippets")))
