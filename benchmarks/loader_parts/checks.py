"""The cost of checking every row that is read (CRC-32 and labels against the index, file against its path): on against off."""

import contextlib
import time
from pathlib import Path

import numpy as np
import torch

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.dataset.row_index import crc32
from mose.tokenizer import load_tokenizer
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.storage.local_rows import LocalRows

REPEATS = 15
GLOBAL_ROWS = 8192
READ_ROWS = 32
RATE = 10_000
"""Rows per second at which the share of a loader's time is stated."""


class UncheckedRows(LocalRows):
    """Rows as they were read before rows were checked."""

    def tokens(self, rows_R: INT64_ARRAY) -> TOKENS:
        layout = self.table.layout
        tokens_RT = np.empty((len(rows_R), layout.sequence_length), dtype=layout.dtype)
        for shard, places, inside in self.table.by_shard(rows_R):
            tokens_RT[places] = self._shard(shard).reader.tokens(inside)
        return self.table.check_tokens(tokens_RT, rows_R)


def measure_checks(dataset: Path) -> dict[str, object]:
    """CPU time per row to read `READ_ROWS` random rows, checked and not, and of the whole loader that reads so.

    Each read is timed alone, on both sides in turn, and counts with the least of its repeats: a read takes some .1 ms, so that
    other load on the machine leaves at least one repeat of most reads alone. Between two repeats of a read lie all other reads,
    which are more than a core's cache holds.
    """
    torch.set_num_threads(1)
    with contextlib.closing(LocalRows(dataset, "train")) as on, contextlib.closing(UncheckedRows(dataset, "train")) as off:
        groups = np.random.default_rng(0).integers(0, len(on), (GLOBAL_ROWS // READ_ROWS, READ_ROWS))
        seconds = np.full((2, len(groups)), np.inf)
        for repeat in range(REPEATS):
            for group, numbers in enumerate(groups):
                # Who comes first alternates: the second finds the rows in the cache.
                for side in (repeat % 2, 1 - repeat % 2):
                    began = time.thread_time()
                    (off, on)[side].tokens(numbers)
                    seconds[side, group] = min(seconds[side, group], time.thread_time() - began)
        unchecked, checked = (float(times.sum()) / groups.size for times in seconds)
        loader = seconds_per_row_of_loader(off, dataset)
        cost = checked - unchecked
        return {
            "crc32": crc32.__module__,
            "rows": len(on),
            "sequence_length": on.sequence_length,
            "microseconds_per_row": {
                "read": round(unchecked * 1e6, 2),
                "read_checked": round(checked * 1e6, 2),
                "checks": round(cost * 1e6, 2),
                "loader_without_checks": round(loader * 1e6, 2),
            },
            "share_of_time_at_10000_rows_per_second": round(cost * RATE, 4),
            "ratio_of_loader_rates_on_to_off": round(loader / (loader + cost), 4),
        }


def seconds_per_row_of_loader(rows: LocalRows, dataset: Path) -> float:
    """CPU seconds per row of masked, unpadded micro-batches of 4 rows, as training takes them; the least of the repeats."""
    tokenizer = load_tokenizer(dataset)
    loader = GlobalBatchLoader(rows, BatchPlan(0, 1024, 4, tokenizer.special, tokenizer.ordinary_ids()))
    least = float("inf")
    for repeat in range(REPEATS):
        began = time.thread_time()
        count = sum(batch.num_rows for batch in loader.share(repeat * 1024))
        least = min(least, (time.thread_time() - began) / count)
    return least
