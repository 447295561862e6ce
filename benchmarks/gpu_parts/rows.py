"""Synthetic rows with the lengths of real packed ones: a speed measurement needs the lengths, not the text.

Letters: R rows, T slots.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mose.dataset.packed_sequence import TOKENS, SpecialTokens, token_dtype
from mose.dataset.shard_format import RowLabels
from mose.seeding import generator
from pretrain.data.loader import BatchPlan, micro_batches
from pretrain.data.micro_batch import MicroBatch

MADE_UP = SpecialTokens(pad=0, unk=1, sep=2, cls=3, mask=4)
LENGTHS = Path(__file__).with_name("row_lengths.json")
MEASURED_SLOTS = 2048


class DrawnRows:
    """Left-padded rows of random tokens whose lengths follow those of a real data set packed `dense` or `faithful`."""

    def __init__(self, mode: str, count: int, slots: int, vocabulary_size: int):
        self._slots, self._vocabulary_size = slots, vocabulary_size
        quantiles = np.array(json.loads(LENGTHS.read_text())[mode]["quantiles"], dtype=np.float64)
        drawn_R = np.interp(generator("row lengths", mode).random(count), np.linspace(0, 1, len(quantiles)), quantiles)
        self._num_tokens_R = np.clip(np.rint(drawn_R * slots / MEASURED_SLOTS), 3, slots).astype(np.int64)

    def __len__(self) -> int:
        return len(self._num_tokens_R)

    @property
    def sequence_length(self) -> int:
        """Slots T of a row."""
        return self._slots

    def reach(self, start: int, count: int) -> None:
        """Nothing to fetch ahead."""

    def close(self) -> None:
        """Nothing is held open."""

    def tokens(self, rows_R: NDArray[np.int64]) -> TOKENS:
        """Tokens [R, T] of these rows."""
        shape = (len(rows_R), self._slots)
        tokens_RT = generator("drawn rows", int(rows_R[0])).integers(len(MADE_UP.ids()), self._vocabulary_size, shape)
        first_R = self._slots - self._num_tokens_R[rows_R]
        tokens_RT[np.arange(self._slots) < first_R[:, None]] = MADE_UP.pad
        tokens_RT[np.arange(len(rows_R)), first_R] = MADE_UP.sep
        tokens_RT[:, -1] = MADE_UP.cls
        return tokens_RT.astype(token_dtype(self._vocabulary_size))

    def labels(self, rows_R: NDArray[np.int64]) -> RowLabels:
        """Labels [R]: every other row is mixed."""
        return RowLabels(rows_R % 2, self._num_tokens_R[rows_R], np.ones_like(rows_R))


def drawn_batches(mode: str, micro_batch_rows: int, count: int, slots: int, vocabulary_size: int) -> list[MicroBatch]:
    """`count` micro-batches of made-up rows, masked and unpadded as a run's loader does it."""
    rows = DrawnRows(mode, micro_batch_rows * count, slots, vocabulary_size)
    ordinary = np.arange(len(MADE_UP.ids()), vocabulary_size).astype(token_dtype(vocabulary_size))
    plan = BatchPlan(0, micro_batch_rows, micro_batch_rows, MADE_UP, ordinary)
    numbers = np.arange(len(rows))
    sizes = [micro_batch_rows] * count
    return list(micro_batches(rows, numbers, np.zeros_like(numbers), rows.labels(numbers), sizes, plan))
