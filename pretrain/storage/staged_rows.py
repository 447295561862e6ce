"""Rows of a data set on an object store or a slow file system, staged on the node's own disk, window after window.

A batch takes single rows from all over the split, which a remote store serves at milliseconds per row. But all rows of a
shuffle window lie in the same read blocks. Each block is therefore fetched once, by one sequential read, into the window's
local file, and rows are read from that file at random. Background threads read ahead in the order of first use; a block that
is still missing is read on demand; windows that the run has passed are deleted, so disk use is bounded whatever the size of
the data set. The ranks of a node share the folder and divide the blocks among them.

Letters: R rows, T slots of a row.
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mose.array_types import INT64_ARRAY
from mose.config import fingerprint, require
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_DTYPE
from mose.dataset.shard_format import RowLabels
from mose.errors import MoseError
from pretrain.storage.local_rows import raise_descriptor_limit
from pretrain.storage.range_rows import RangeReader
from pretrain.storage.window_file import RunOrder, WindowFile

_FOLDER_MARK = "staged-"
_LOCK_NAME = "lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Positions whose blocks are computed together when reading ahead.
_LOOK_AHEAD = 8192
# How long to wait without progress for blocks that the node's other ranks should stage, before this rank reads them itself.
_PATIENCE_SECONDS = 2.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True)
class StagingPlan:
    """Where rows are staged, with how many reads at a time; `local_rank` reads ahead every `local_ranks`-th block."""

    folder: Path
    max_bytes: int
    concurrency: int = 8
    read_ahead_windows: int = 1
    local_rank: int = 0
    local_ranks: int = 1


class StagedRows:
    """The rows of one split through a staging folder; only rows of the windows that `reach` announced can be read."""

    def __init__(self, reader: RangeReader, order: RunOrder, plan: StagingPlan, batch_rows: int):
        """Open the staging folder of this data set and order, with what is staged there; `batch_rows` is the global batch size.

        Raises:
            MoseError: `max_bytes` is too small for the windows that a batch can touch, or the folder cannot be written.
        """
        # On rank 0 the store of the process group takes two sockets per rank besides: 1,024 at 512 ranks, the usual soft limit.
        raise_descriptor_limit()
        self.table = reader.table
        self._reader = reader
        self._order = order
        self._plan = plan
        layout = self.table.layout
        self._row_dtype = np.dtype((np.void, layout.sequence_length * layout.dtype.itemsize))
        self._windows_kept = self._affordable(batch_rows)
        self._folder, self._lock_file = _take_folder(plan.folder, self._name())
        self._windows: dict[int, WindowFile] = {}
        self._in_flight: dict[tuple[int, int], Future[None]] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._next_position = 0
        self._pool = ThreadPoolExecutor(plan.concurrency, thread_name_prefix="staging")
        self._ahead = threading.Thread(target=self._read_ahead, name="staging-ahead", daemon=True)
        self._ahead.start()

    def _affordable(self, batch_rows: int) -> int:
        """Windows that fit into `max_bytes`.

        Raises:
            MoseError: fewer than two, or fewer than a batch can touch.
        """
        order, row_bytes = self._order, self._row_dtype.itemsize + INDEX_DTYPE.itemsize
        window_bytes = order.most_blocks * (order.block_rows * row_bytes + 1)
        windows = max(2, order.most_windows(batch_rows))
        sizes = f"{windows} windows of {order.most_blocks * order.block_rows:,} rows x {row_bytes:,} bytes"
        needed = windows * window_bytes
        where = f"data.staging.max_bytes: leaves {self._plan.max_bytes:,} to {self.table.dataset}"
        require(self._plan.max_bytes >= needed, f"{where}, expected at least {needed:,}: {sizes} (see data.window_rows)")
        return self._plan.max_bytes // window_bytes

    def _name(self) -> str:
        """A folder per data set, order and boot: after a power cut a flag may be on disk without its block."""
        manifest, order = self.table.manifest, self._order
        shards = [[shard.path, shard.rows, shard.sha256] for shard in self.table.shards]
        boot = _BOOT_ID.read_text("ascii") if _BOOT_ID.is_file() else ""
        parts = [str(self.table.dataset), manifest.config_fingerprint, manifest.tokenizer_fingerprint, shards, boot]
        return _FOLDER_MARK + fingerprint([*parts, order.seed, order.block_rows, order.window_rows])

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self.table.layout.sequence_length

    def reach(self, start: int, count: int) -> None:
        """Open the windows of positions start..start+count-1 of the run, delete those before, and read ahead from there.

        Raises:
            MoseError: a window's file cannot be made.
        """
        first, last = (int(window) for window in self._order.window_of(np.array([start, start + max(count, 1) - 1])))
        ahead = min(last + self._plan.read_ahead_windows, first + self._windows_kept - 1)
        wanted = range(first, ahead + 1)
        with self._changed:
            going_back = bool(self._windows) and first < min(self._windows)
            if not self._windows or going_back:
                self._delete_windows(wanted)
            for window in [window for window in self._windows if window not in wanted]:
                self._windows.pop(window).path.unlink(missing_ok=True)
            for window in wanted:
                if window not in self._windows:
                    self._windows[window] = WindowFile(self._folder, self._order, window, self._row_dtype)
            self._next_position = start
            self._changed.notify_all()

    def _delete_windows(self, wanted: range) -> None:
        """Delete windows that an earlier run, or this run at another position, left in the folder; wanted ones are reused."""
        for path in self._folder.glob("window-*"):
            if int(path.name.rpartition("-")[2]) not in wanted:
                path.unlink(missing_ok=True)

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        """Tokens [R, T] of these rows, in the requested order; they must lie in the windows that `reach` announced.

        Raises:
            MoseError: a block cannot be read or is damaged, or a token cannot be.
        """
        rows_as_one_R = np.empty(len(rows_R), dtype=self._row_dtype)
        for window, places, slots, inside in self._placed(rows_R):
            rows_as_one_R[places] = window.tokens(slots, inside)
        tokens_RT = rows_as_one_R.view(self.table.layout.dtype).reshape(len(rows_R), self.sequence_length)
        return self.table.check_tokens(tokens_RT, rows_R)

    def labels(self, rows_R: INT64_ARRAY) -> RowLabels:
        """Labels [R] of these rows; see `tokens`.

        Raises:
            MoseError: a block cannot be read or is damaged, or a label is out of range.
        """
        index_R = np.empty(len(rows_R), dtype=INDEX_DTYPE)
        for window, places, slots, inside in self._placed(rows_R):
            index_R[places] = window.index(slots, inside)
        return self.table.labels_of(index_R)

    def _placed(self, rows_R: INT64_ARRAY) -> Iterator[tuple[WindowFile, INT64_ARRAY, INT64_ARRAY, INT64_ARRAY]]:
        """For each window of these rows, once its blocks are staged: places in the request, slots, places in their blocks."""
        blocks_R, inside_R = np.divmod(rows_R, self._order.block_rows)
        left = np.arange(len(rows_R))
        for number in sorted(self._windows):
            window = self._windows[number]
            slots = window.slots_of(blocks_R[left])
            here = slots >= 0
            if here.any():
                self._bring(window, slots[here])
                yield window, left[here], slots[here], inside_R[left[here]]
                left = left[~here]
            if not len(left):
                return
        raise ValueError(f"row {rows_R[left[0]]} is in none of the windows {sorted(self._windows)} that were reached")

    def _bring(self, window: WindowFile, slots: INT64_ARRAY) -> None:
        """Wait until all of these blocks are staged: this rank reads its own part, then what the other ranks fail to stage."""
        missing = window.missing(slots)
        if not len(missing):
            return
        mine = missing % self._plan.local_ranks == self._plan.local_rank
        self._fetch_all(window, missing[mine])
        others, last_arrival = missing[~mine], time.monotonic()
        while len(others):
            time.sleep(_POLL_SECONDS)
            still = window.missing(others)
            if len(still) < len(others):
                others, last_arrival = still, time.monotonic()
            elif time.monotonic() - last_arrival > _PATIENCE_SECONDS:
                self._fetch_all(window, still)
                return

    def _fetch_all(self, window: WindowFile, slots: INT64_ARRAY) -> None:
        for future in [self._fetch(window, int(slot)) for slot in slots]:
            future.result()

    def _fetch(self, window: WindowFile, slot: int) -> Future[None]:
        """The read of one block: the one in flight, or a new one."""
        key = (window.window, slot)
        with self._changed:
            if key not in self._in_flight:
                self._in_flight[key] = self._pool.submit(self._read_block, window, slot)
            return self._in_flight[key]

    def _read_block(self, window: WindowFile, slot: int) -> None:
        try:
            if len(window.missing(np.array([slot]))):
                window.put(slot, *self._reader.read(*window.rows_of(slot)))
        finally:
            with self._changed:
                self._in_flight.pop((window.window, slot), None)
                self._changed.notify_all()

    def _read_ahead(self) -> None:
        """The background thread: keep reads in flight, in the order of first use, until every open window is complete."""
        done: set[int] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or not done.issuperset(self._windows))
                if self._closed:
                    return
                done.intersection_update(self._windows)
                number = min(set(self._windows) - done)
                window = self._windows[number]
            for slot in self._slots_ahead(window):
                if not self._await_turn(number):
                    break
                with contextlib.suppress(RuntimeError):  # the pool was shut down in between
                    self._fetch(window, slot)
            done.add(number)

    def _await_turn(self, number: int) -> bool:
        """Wait until fewer reads are in flight than `concurrency`; False when the window is no longer wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or number not in self._windows or len(self._in_flight) < self._plan.concurrency
            )
            return not self._closed and number in self._windows

    def _slots_ahead(self, window: WindowFile) -> Iterator[int]:
        """This rank's slots of a window that are not staged yet, in the order in which the run will read them."""
        epoch, first, end = self._order.span(window.window)
        begun = self._next_position - (epoch * self._order.num_rows + first)
        for start in range(max(0, begun), end - first, _LOOK_AHEAD):
            slots = self._order.slots_used(window.window, start, _LOOK_AHEAD)
            mine = slots[slots % self._plan.local_ranks == self._plan.local_rank]
            yield from window.missing(mine).tolist()

    def close(self) -> None:
        """End the threads; staged blocks stay for a resumed run, until another run clears the folder."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._reader.stop()
        self._ahead.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._windows.clear()
        os.close(self._lock_file)


def _take_folder(parent: Path, name: str) -> tuple[Path, int]:
    """Make the folder and take a shared lock on it, as the node's other ranks do; returns it and the lock's descriptor.

    Raises:
        MoseError: it cannot be made.
    """
    folder = parent / name
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_SH)
            # Between `open` and `flock` another process may have deleted the folder as abandoned.
            if (folder / _LOCK_NAME).exists():
                return folder, lock
            os.close(lock)
    except OSError as error:
        raise MoseError(f"{folder}: data.staging.folder: {error.strerror}, expected a local folder to write to") from None


def clear_abandoned(parent: Path) -> None:
    """Delete the staging folders of runs that have ended: nobody holds their locks, which the kernel releases with a process."""
    for folder in parent.glob(f"{_FOLDER_MARK}*"):
        try:
            lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
