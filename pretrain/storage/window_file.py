"""One shuffle window staged in a node-local file that the ranks of a node share, with a flag per read block.

The file holds the token bytes of each row, then each row's index entry, then one byte per block, 1 once the block is complete.
The file is sparse: a block takes disk space when it is written. The flags make it safe without locks: a block is written
before its flag, every process writes the same bytes, and a reader waits for the flag.

Letters: W rows of the window, T slots of a row, J blocks of the window, R rows.
"""

import mmap
import os
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import INDEX_DTYPE
from mose.errors import MoseError
from pretrain.data.order import blocks_at, sequence_at

_PRESENT = b"\1"


@dataclass(frozen=True)
class RunOrder:
    """The order of one source's rows over a run, as shuffle windows numbered across epochs."""

    seed: int
    num_rows: int
    block_rows: int
    window_rows: int

    @property
    def windows_an_epoch(self) -> int:
        """Windows per epoch; the last one may be shorter."""
        return -(-self.num_rows // self.window_rows)

    @property
    def most_blocks(self) -> int:
        """Most blocks that a window touches; its first and last block may extend beyond it."""
        return min(-(-self.window_rows // self.block_rows) + 1, -(-self.num_rows // self.block_rows))

    def window_of(self, positions: INT64_ARRAY) -> INT64_ARRAY:
        """The window number of each of these positions of the run."""
        epochs, inside = np.divmod(positions, self.num_rows)
        windows: INT64_ARRAY = epochs * self.windows_an_epoch + inside // self.window_rows
        return windows

    def span(self, window: int) -> tuple[int, int, int]:
        """(epoch, first position, end) of a window; positions count within the epoch."""
        epoch, inside = divmod(window, self.windows_an_epoch)
        first = inside * self.window_rows
        return epoch, first, min(first + self.window_rows, self.num_rows)

    def blocks(self, window: int) -> INT64_ARRAY:
        """The blocks [J] of a window, in sequence order."""
        epoch, first, end = self.span(window)
        places = np.arange(first // self.block_rows, -(-end // self.block_rows), dtype=np.int64)
        return blocks_at(self.seed, epoch, places, self.num_rows, self.block_rows)

    def slots_used(self, window: int, start: int, count: int) -> INT64_ARRAY:
        """The slots (places in `blocks`) of the rows at `count` positions, the first `start` after the window's first."""
        epoch, first, end = self.span(window)
        positions = np.arange(first + start, min(first + start + count, end), dtype=np.int64)
        sequence = sequence_at(self.seed, epoch, positions, self.num_rows, self.window_rows)
        return sequence // self.block_rows - first // self.block_rows

    def most_windows(self, count: int) -> int:
        """Most windows that `count` consecutive positions of the run touch."""
        ends = np.minimum(np.arange(1, self.windows_an_epoch + 1) * self.window_rows, self.num_rows) - 1
        return int((self.window_of(ends + count - 1) - self.window_of(ends)).max()) + 1


class WindowFile:
    """A window's file, opened; several processes may fill it at the same time, and to write a block twice is harmless."""

    def __init__(self, folder: Path, order: RunOrder, window: int, row_dtype: np.dtype[np.void]):
        """Open or create it; `row_dtype` is the tokens of one row as one element.

        Raises:
            MoseError: the folder cannot be written.
        """
        self.path = folder / f"window-{window:09d}"
        self.window = window
        self.block_rows = order.block_rows
        self.num_rows = order.num_rows
        self.blocks_J = order.blocks(window)
        rows = len(self.blocks_J) * order.block_rows
        self._index_offset = rows * row_dtype.itemsize
        self._marks_offset = self._index_offset + rows * INDEX_DTYPE.itemsize
        self._row_bytes = row_dtype.itemsize
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._file)
            os.ftruncate(self._file, self._marks_offset + len(self.blocks_J))
            # Reads only: a write through the map would end in SIGBUS where the disk is full.
            self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise MoseError(f"{self.path}: data.staging.folder: {error.strerror}, expected a local folder to write to") from None
        self._rows_W = np.ndarray((rows,), row_dtype, self._map)
        self._index_W = np.ndarray((rows,), INDEX_DTYPE, self._map, self._index_offset)
        self._marks_J = np.ndarray((len(self.blocks_J),), np.uint8, self._map, self._marks_offset)

    @cached_property
    def _by_block(self) -> tuple[INT64_ARRAY, INT64_ARRAY]:
        slots = np.argsort(self.blocks_J)
        return self.blocks_J[slots], slots

    def slots_of(self, blocks_R: INT64_ARRAY) -> INT64_ARRAY:
        """The slots [R] of these blocks, -1 for blocks of other windows."""
        sorted_J, slots_J = self._by_block
        places_R = np.minimum(np.searchsorted(sorted_J, blocks_R), len(sorted_J) - 1)
        return np.where(sorted_J[places_R] == blocks_R, slots_J[places_R], -1)

    def missing(self, slots: INT64_ARRAY) -> INT64_ARRAY:
        """The slots whose blocks are not staged yet, each once, in the given order."""
        absent = slots[self._marks_J[slots] == 0]
        _, first = np.unique(absent, return_index=True)
        ordered: INT64_ARRAY = absent[np.sort(first)]
        return ordered

    def rows_of(self, slot: int) -> tuple[int, int]:
        """(first row, number of rows) of a slot's block; the last block of the split may be shorter."""
        first = int(self.blocks_J[slot]) * self.block_rows
        return first, min(self.block_rows, self.num_rows - first)

    def put(self, slot: int, tokens_RT: TOKENS, index_R: NDArray[np.void]) -> None:
        """Write one block, then its flag.

        Raises:
            MoseError: the disk is full or fails.
        """
        first = slot * self.block_rows
        try:
            _write_all(self._file, tokens_RT.tobytes(), first * self._row_bytes)
            _write_all(self._file, index_R.tobytes(), self._index_offset + first * INDEX_DTYPE.itemsize)
            _write_all(self._file, _PRESENT, self._marks_offset + slot)
        except OSError as error:
            raise MoseError(f"{self.path}: data.staging: {error.strerror}, expected room for data.staging.max_bytes") from None

    def tokens(self, slots_R: INT64_ARRAY, inside_R: INT64_ARRAY) -> NDArray[np.void]:
        """A copy of the rows [R] at these slots and places in their blocks, each as one element."""
        rows_R: NDArray[np.void] = self._rows_W[slots_R * self.block_rows + inside_R]
        return rows_R

    def index(self, slots_R: INT64_ARRAY, inside_R: INT64_ARRAY) -> NDArray[np.void]:
        """A copy of the index entries [R] of those rows."""
        index_R: NDArray[np.void] = self._index_W[slots_R * self.block_rows + inside_R]
        return index_R


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
