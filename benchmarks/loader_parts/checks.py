"""The cost of checking every row that is read (CRC-32 and labels against the index, file against its path): on against off."""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mose.array_types import INT64_ARRAY
from mose.dataset.packed_sequence import TOKENS
from mose.tokenizer import load_tokenizer
from pretrain.data.loader import BatchPlan, GlobalBatchLoader
from pretrain.storage import local_rows
from pretrain.storage.local_rows import LocalRows

REPEATS = 21
GLOBAL_ROWS = 1024
READ_ROWS = 32
RATE = 10_000
"""Rows per second at which the share of a loader's time is stated: one core feeds several devices at that rate."""


class UncheckedRows(LocalRows):
    """Rows as they were read before rows were checked."""

    def _check(self, shard: object, inside_R: INT64_ARRAY, tokens_RT: TOKENS) -> None:
        pass

    def _current_shard(self, number: int) -> "local_rows._OpenShard":
        return self._shard(number)


def measure_checks(dataset: Path) -> dict[str, object]:
    """CPU time per row with checks and without, in turn in each repeat; medians of the pairs, so that other load cancels."""
    torch.set_num_threads(1)
    kinds = {"on": LocalRows(dataset, "train"), "off": UncheckedRows(dataset, "train")}
    figures: dict[str, object] = {"rows": len(kinds["on"]), "sequence_length": kinds["on"].sequence_length, "repeats": REPEATS}
    with contextlib.ExitStack() as stack:
        for rows in kinds.values():
            stack.callback(rows.close)
        for name, work in (("raw", raw), ("masked", masked_by(dataset))):
            figures[name] = compared(
                {kind: lambda repeat, rows=rows, work=work: work(rows, repeat) for kind, rows in kinds.items()}
            )
    return figures


def raw(rows: LocalRows, repeat: int) -> int:
    """Rows at random, `READ_ROWS` at a time as the loader reads them, the same ones for both sides."""
    numbers = np.random.default_rng(repeat).integers(0, len(rows), GLOBAL_ROWS)
    for start in range(0, GLOBAL_ROWS, READ_ROWS):
        rows.tokens(numbers[start : start + READ_ROWS])
    return GLOBAL_ROWS


def masked_by(dataset: Path) -> Callable[[LocalRows, int], int]:
    """Masked, unpadded micro-batches of 4 rows, as training takes them."""
    tokenizer = load_tokenizer(dataset)

    def masked(rows: LocalRows, repeat: int) -> int:
        loader = GlobalBatchLoader(rows, BatchPlan(0, GLOBAL_ROWS, 4, tokenizer.special, tokenizer.ordinary_ids()))
        return sum(batch.num_rows for batch in loader.share(repeat * GLOBAL_ROWS))

    return masked


def compared(works: dict[str, Callable[[int], int]]) -> dict[str, float]:
    """Microseconds of CPU per row of both kinds, the cost of the checks, and its share at `RATE` rows per second."""
    seconds: dict[str, list[float]] = {kind: [] for kind in works}
    for repeat in range(REPEATS):
        # Who comes first alternates: the second finds the rows in the processor's cache.
        for kind in list(works)[:: 1 if repeat % 2 else -1]:
            began = time.process_time()
            rows = works[kind](repeat)
            seconds[kind].append((time.process_time() - began) / rows)
    cost = statistics.median(on - off for on, off in zip(seconds["on"], seconds["off"], strict=True))
    on, off = (statistics.median(seconds[kind]) for kind in ("on", "off"))
    return {
        "microseconds_per_row_on": round(on * 1e6, 2),
        "microseconds_per_row_off": round(off * 1e6, 2),
        "microseconds_per_row_of_the_checks": round(cost * 1e6, 2),
        "share_of_time_at_10000_rows_per_second": round(cost * RATE, 4),
        "ratio_of_rates_on_to_off": round(off / (off + cost), 4),
    }
