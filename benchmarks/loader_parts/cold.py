"""Rows per second and page faults with a cold page cache: single rows at random through a map, and blocks through staging."""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mose.dataset.manifest import Manifest, ShardEntry, read_manifest, write_manifest
from mose.dataset.row_index import index_bytes, make_index
from mose.dataset.shard_format import RecordLayout, RowLabels
from pretrain.data.order import BLOCK_ROWS, rows_of_run
from pretrain.data.rows import Rows
from pretrain.storage.local_rows import LocalRows, SplitTable
from pretrain.storage.range_rows import RangeReader, Retry
from pretrain.storage.staged_rows import StagedRows, StagingPlan
from pretrain.storage.window_file import RunOrder

SHARDS, SHARD_ROWS, LENGTH = 4, 25_000, 2048
WINDOW_ROWS = 1 << 14
READ_ROWS = 256


def measure_cold(scratch: Path | None = None) -> dict[str, object]:
    """Both ways over the same positions of the order; shards were dropped from the page cache before each."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        dataset = _write(Path(folder) / "data")
        table = SplitTable(dataset, "train")
        mapped = _timed(dataset, lambda: LocalRows(dataset, "train"), WINDOW_ROWS)
        order = RunOrder(0, len(table), BLOCK_ROWS, WINDOW_ROWS)
        plan = StagingPlan(Path(folder) / "staged", 1 << 30)

        def staged() -> Rows:
            return StagedRows(RangeReader(table, Retry()), order, plan, READ_ROWS)

        return {
            "bytes": sum(entry.num_bytes for entry in table.shards),
            "block_rows": BLOCK_ROWS,
            "window_rows": WINDOW_ROWS,
            "mapped_at_random": mapped,
            "staged_blocks": _timed(dataset, staged, 3 * WINDOW_ROWS),
            "load_average": os.getloadavg()[0],
        }


def _timed(dataset: Path, opened: Callable[[], Rows], count: int) -> dict[str, float]:
    _drop_from_cache(dataset)
    faults, began = resource.getrusage(resource.RUSAGE_SELF).ru_majflt, time.perf_counter()
    cpu = time.process_time()
    rows = opened()
    for start in range(0, count, READ_ROWS):
        rows.reach(start, READ_ROWS)
        numbers, _ = rows_of_run(0, start, READ_ROWS, len(rows), BLOCK_ROWS, WINDOW_ROWS)
        rows.tokens(numbers)
    seconds = time.perf_counter() - began
    found = {
        "rows": count,
        "rows_per_second": round(count / seconds),
        "rows_per_cpu_second": round(count / (time.process_time() - cpu)),
        "major_faults_per_1000_rows": round((resource.getrusage(resource.RUSAGE_SELF).ru_majflt - faults) / count * 1000, 2),
    }
    rows.close()
    return found


def _drop_from_cache(dataset: Path) -> None:
    for path in (dataset / entry.path for entry in read_manifest(dataset).shards("train")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _write(dataset: Path) -> Path:
    """Shards of random tokens; only what the loader reads of a record is filled in."""
    layout, rng = RecordLayout(LENGTH, np.dtype(np.uint16)), np.random.default_rng(0)
    (dataset / "train").mkdir(parents=True)
    entries = []
    for number in range(SHARDS):
        names = [f"train/shard-{number:06d}.tar", f"train/index-{number:06d}.npy"]
        tokens_RT = rng.integers(5, 1000, (SHARD_ROWS, LENGTH), dtype=np.uint16)
        ones = np.ones(SHARD_ROWS, dtype=np.int64)
        index = make_index(tokens_RT, RowLabels(ones, ones * LENGTH, ones))
        (dataset / names[1]).write_bytes(index_bytes(index))
        records = np.zeros((SHARD_ROWS, layout.stride), dtype=np.uint8)
        records[:, 512 : layout.token_offset] = np.frombuffer(layout.npy_header, dtype=np.uint8)
        records[:, layout.token_offset : layout.token_offset + 2 * LENGTH] = tokens_RT.view(np.uint8)
        with (dataset / names[0]).open("wb") as file:
            records.tofile(file)
            file.write(bytes(layout.file_size(0)))
            file.flush()
            os.fsync(file.fileno())
        size = layout.file_size(SHARD_ROWS)
        entries.append(ShardEntry(names[0], SHARD_ROWS, SHARD_ROWS * LENGTH, size, "0", names[1], "0", "", ""))
    write_manifest(dataset, Manifest("0" * 16, "0" * 16, 1000, LENGTH, {"train": tuple(entries)}))
    return dataset
