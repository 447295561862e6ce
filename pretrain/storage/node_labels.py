"""The labels of all rows of a split in memory that the ranks of a node share: indexes are read once per node, in order.

Every rank needs the labels of a whole global batch, whose rows lie all over the split. Without this table each of the ranks
opens every index and reads its pages at random: at 512 ranks and 1,000 shards 450,000 opens in the first step.

Letters: R rows.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.config import fingerprint
from mose.dataset.row_index import RowIndex
from pretrain.storage.local_rows import SplitTable

# 5 bytes in place of the index's 16: a row has at most 65,535 tokens, and never more snippets than tokens.
LABELS_DTYPE = np.dtype([("num_tokens", "<u2"), ("num_snippets", "<u2"), ("mixed", "u1")])
MOST_TOKENS = 65535
SHARED_MEMORY = Path("/dev/shm")
# Below this the page cache of a node holds the indexes anyway, and they are few.
LEAST_ROWS = 10_000_000
# Share of the free memory of the file system that the table may take: pages of files compete for the same memory.
_SHARE_OF_FREE = 0.5


class NodeLabels:
    """The table of one split, as a read-only map; the first rank of the node that asks for it writes it, the others wait."""

    def __init__(self, table: SplitTable, folder: Path):
        """Map the table of this data set's content below `folder`, and write it if it is not there.

        Raises:
            MoseError: an index is missing, or is not what the manifest lists.
            OSError: the folder cannot be written.
        """
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        name = f"labels-{fingerprint([str(table.dataset), table.split, [shard.index_sha256 for shard in table.shards]])}"
        self.path = folder / name
        self._lock = _shared_lock(self.path)
        try:
            # A lock of its own, since the shared one is held to the end. Who waits for it finds the table written.
            with Path(f"{self.path}.build").open("wb") as build:
                fcntl.flock(build, fcntl.LOCK_EX)
                if not self.path.is_file():
                    _write(table, self.path)
            self._entries: NDArray[np.void] = np.memmap(self.path, LABELS_DTYPE, "r", shape=(len(table),))
        except BaseException:
            _delete_unlocked(self.path, self._lock)
            raise

    def entries(self, rows_R: INT64_ARRAY) -> NDArray[np.void]:
        """A copy of the entries [R] of these rows, of `LABELS_DTYPE`."""
        return np.asarray(self._entries[rows_R])

    def close(self) -> None:
        """Release the map; the last rank of the node deletes the table."""
        del self._entries
        _delete_unlocked(self.path, self._lock)


def open_node_labels(table: SplitTable, local_ranks: int, memory: Path = SHARED_MEMORY) -> NodeLabels | None:
    """The shared table, or None where it does not pay or does not fit: one rank per node, few rows, no memory file system.

    Tables that killed runs left are deleted first.
    """
    needed = len(table) * LABELS_DTYPE.itemsize
    if local_ranks == 1 or len(table) < LEAST_ROWS or table.layout.sequence_length > MOST_TOKENS:
        return None
    folder = memory / f"mose-{os.getuid()}"
    try:
        if folder.is_dir() and folder.lstat().st_uid != os.getuid():
            return None
        for path in _tables(folder):
            _delete_unlocked(path, _open_lock(path))
        facts = os.statvfs(memory)
        if needed > _SHARE_OF_FREE * facts.f_bavail * facts.f_frsize:
            return None
        return NodeLabels(table, folder)
    except OSError:
        # Another rank of the node may have it; without it a rank reads the indexes itself, and the numbers are the same.
        return None


def _tables(folder: Path) -> Iterator[Path]:
    # By their locks: a rank that was killed while it wrote left a lock and a part of a table.
    yield from (path.with_suffix("") for path in folder.glob("*.lock"))


def _open_lock(path: Path) -> int:
    return os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _shared_lock(path: Path) -> int:
    """A lock that keeps the table from being deleted, as a descriptor."""
    while True:
        lock = _open_lock(path)
        fcntl.flock(lock, fcntl.LOCK_SH)
        # Between `open` and `flock` the last rank that left may have deleted the lock.
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)


def _delete_unlocked(path: Path, lock: int) -> None:
    """Delete a table that no process uses, and close the lock's descriptor; the kernel releases locks of killed processes."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for one in (path, *(Path(f"{path}.{end}") for end in ("partial", "build", "lock"))):
            one.unlink(missing_ok=True)
    os.close(lock)


def _write(table: SplitTable, path: Path) -> None:
    """Write the table index after index, then rename it: it is there as a whole or not at all."""
    partial = Path(f"{path}.partial")
    with partial.open("wb") as file:
        for shard in table.shards:
            index_R = RowIndex(shard.index_in(table.dataset), shard.rows).entries(np.arange(shard.rows))
            # Checked here, because a larger number would be cut to 16 bits.
            table.labels_of(index_R)
            labels_R = np.empty(shard.rows, LABELS_DTYPE)
            for name in LABELS_DTYPE.names or ():
                labels_R[name] = index_R[name]
            file.write(labels_R.tobytes())
    partial.rename(path)
