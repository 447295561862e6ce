"""A set of blob ids in 8 bytes each, mapped from a file: the files of the held-out repositories."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.npy_file import read_npy
from mose.seeding import UINT64_ARRAY

# The first 64 bits of a SHA-1: among 10^7 held-out files, one of 10^9 others is taken for a copy with p = 5e-4.
_DIGITS = 16


class BlobSet:
    """Blob ids by their first 64 bits."""

    def __init__(self, prefixes_B: UINT64_ARRAY):
        """`prefixes_B` [B], ascending and without repetitions."""
        self._prefixes_B = prefixes_B

    @staticmethod
    def of(blob_ids: Iterable[str]) -> "BlobSet":
        """The set of these ids; those that are no SHA-1 are passed over."""
        found = (prefix for blob_id in blob_ids if (prefix := blob_prefix(blob_id)) is not None)
        return BlobSet(np.unique(np.fromiter(found, np.uint64)))

    @staticmethod
    def read(path: Path) -> "BlobSet":
        """The set that `write` wrote.

        Raises:
            MoseError: the file is missing or is not such a set.
        """
        try:
            return BlobSet(read_npy(path, mapped=True))
        except (OSError, ValueError) as error:
            raise MoseError(
                f"{path}: not a readable set of blob ids: {error}; expected it as `mose-data pack` wrote it"
            ) from None

    def write(self, path: Path) -> None:
        """Write the set atomically."""
        with atomic_write(path) as file:
            np.save(file, self._prefixes_B, allow_pickle=False)

    def __len__(self) -> int:
        return len(self._prefixes_B)

    def __contains__(self, blob_id: str) -> bool:
        prefix = blob_prefix(blob_id)
        if prefix is None or not len(self._prefixes_B):
            return False
        place = int(np.searchsorted(self._prefixes_B, np.uint64(prefix)))
        return place < len(self._prefixes_B) and int(self._prefixes_B[place]) == prefix


def blob_prefix(blob_id: str) -> int | None:
    """The first 64 bits of a blob id; None if it is no SHA-1."""
    try:
        prefix = bytes.fromhex(blob_id[:_DIGITS])
    except ValueError:
        return None
    # A text with blanks gives fewer bytes.
    return int.from_bytes(prefix, "big") if 2 * len(prefix) == _DIGITS else None
