"""Exact copies of a file in several train repositories: which repository keeps it, decided before any task runs.

A first pass writes (blob id, repository) of every file into buckets by the id's first bits, so that all copies of a file meet in
one bucket and the memory is that of one bucket. The copy in the repository with the smallest hash stays. So the outcome
depends on the sources and the seed alone, not on the number of tasks.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_prep.filters.blob_set import blob_prefix
from data_prep.sources.repositories import unnumbered
from mose.errors import MoseError
from mose.files.atomic_file import atomic_write
from mose.files.npy_file import read_npy
from mose.seeding import derive_key

_BUCKETS = 256
_WAITING = 1 << 14
# First 64 bits of a blob id, and a hash of the repository.
_PAIR = np.dtype([("blob", np.uint64), ("keeper", np.uint64)])
PAIRS = NDArray[np.void]


class Duplicates:
    """The blobs that stand in several train repositories, each with the repository that keeps it: 16 bytes per blob."""

    def __init__(self, pairs_B: PAIRS, seed: int):
        """`pairs_B` [B], ascending by blob, which occurs once."""
        self._blobs_B = np.ascontiguousarray(pairs_B["blob"])
        self._keepers_B = pairs_B["keeper"]
        self._seed = seed
        self._keeper: tuple[str, int] = ("", 0)

    @staticmethod
    def read(path: Path, seed: int) -> "Duplicates":
        """What `write_duplicates` wrote.

        Raises:
            MoseError: the file is missing or is no such table.
        """
        try:
            return Duplicates(read_npy(path, mapped=True), seed)
        except (OSError, ValueError, IndexError) as error:
            raise MoseError(
                f"{path}: not a readable table of duplicates: {error}; remove it, and `mose-data pack` writes it"
            ) from None

    @staticmethod
    def none() -> "Duplicates":
        """No duplicates."""
        return Duplicates(np.zeros(0, _PAIR), 0)

    def __len__(self) -> int:
        return len(self._blobs_B)

    def is_copy(self, repository: str, blob_id: str) -> bool:
        """Whether another repository keeps this file."""
        prefix = blob_prefix(blob_id)
        if prefix is None or not len(self._blobs_B):
            return False
        place = int(np.searchsorted(self._blobs_B, np.uint64(prefix)))
        if place == len(self._blobs_B) or int(self._blobs_B[place]) != prefix:
            return False
        if self._keeper[0] != repository:
            self._keeper = repository, keeper_key(repository, self._seed)
        return int(self._keepers_B[place]) != self._keeper[1]


def keeper_key(repository: str, seed: int) -> int:
    """The hash by which one of several repositories keeps a file; a second row of the same name counts as the same one."""
    return derive_key(seed, "keeper", unnumbered(repository))


def write_duplicates(path: Path, files: Iterable[tuple[str, str]], seed: int) -> None:
    """Write the table of duplicates among `files`, pairs of a repository and a blob id that may be repeated."""
    with tempfile.TemporaryDirectory(prefix="mose-duplicates-") as folder, contextlib.ExitStack() as stack:
        buckets = [stack.enter_context((Path(folder) / f"{number}").open("w+b")) for number in range(_BUCKETS)]
        _spread(files, buckets, seed)
        # Buckets follow each other by the first bits of the ids, so the table is sorted as a whole.
        parts = [_repeated(np.frombuffer(_content(bucket), _PAIR)) for bucket in buckets]
    with atomic_write(path) as file:
        np.save(file, np.concatenate(parts), allow_pickle=False)


def _spread(files: Iterable[tuple[str, str]], buckets: Sequence[BinaryIO], seed: int) -> None:
    waiting: list[tuple[int, int]] = []
    name, key = "", 0
    for repository, blob_id in files:
        prefix = blob_prefix(blob_id)
        if prefix is None:
            continue
        if repository != name:
            name, key = repository, keeper_key(repository, seed)
        waiting.append((prefix, key))
        if len(waiting) == _WAITING:
            _write(waiting, buckets)
            waiting = []
    _write(waiting, buckets)


def _write(waiting: list[tuple[int, int]], buckets: Sequence[BinaryIO]) -> None:
    pairs = np.sort(np.array(waiting, _PAIR), order=["blob", "keeper"])
    bounds = np.searchsorted(pairs["blob"] >> np.uint64(56), np.arange(_BUCKETS + 1))
    for number, bucket in enumerate(buckets):
        bucket.write(pairs[bounds[number] : bounds[number + 1]].tobytes())


def _content(bucket: BinaryIO) -> bytes:
    bucket.seek(0)
    return bucket.read()


def _repeated(pairs_P: PAIRS) -> PAIRS:
    """The blobs with several repositories, each with the smallest of their hashes."""
    if not len(pairs_P):
        return pairs_P
    distinct = np.unique(pairs_P)
    _, firsts, counts = np.unique(distinct["blob"], return_index=True, return_counts=True)
    # Sorted by blob and then by hash, so the first of a blob has the smallest.
    kept: PAIRS = distinct[firsts[counts > 1]]
    return kept
