"""An external sort of rows by (key, repository, path, position in the input), in bounded memory.

It is a recursive bucket sort rather than a merge sort: keys are hashes, so equal ranges of keys are of similar size, and the
next level reads only buckets that are still too large.
"""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.sources.ingest.grouping.bucket_file import Assign, Batch, BucketWriter, read_batches
from data_prep.sources.ingest.grouping.columns import KEY, NAME, ORDER, SIZE

_PLACE_COLUMNS = (NAME, "path", ORDER)
# With more buckets at a time, their batches would be too small to compress well.
_MAX_BUCKETS = 64


def sorted_tables(batches: Sequence[Batch], schema: pa.Schema, budget_bytes: int, scratch: Path) -> Iterator[pa.Table]:
    """The sorted rows of `batches`, in consecutive tables of at most about `budget_bytes`.

    Rows above the budget are partitioned into narrower buckets in files under `scratch`, recursively. A single repository above
    the budget is partitioned by path; only such a repository spans several tables.

    Raises:
        MoseError: a bucket file is damaged.
        OSError: the disk is full.
    """
    total = sum(batch.bytes for batch in batches)
    if not batches:
        return
    if total <= budget_bytes:
        yield _sort(pa.concat_tables(read_batches(batches)))
        return
    # Rows of one key cannot be separated by key any further; they are, but for a hash collision, one repository.
    low, high = min(batch.first_key for batch in batches), max(batch.last_key for batch in batches)
    is_one = low == high
    assign = _by_path(batches, budget_bytes) if is_one else _by_key(low, high, min(_MAX_BUCKETS, 2 * total // budget_bytes + 2))
    path = scratch / f"split-{low:016x}-{high:016x}.arrow"
    batches = _partition(batches, path, schema, assign, budget_bytes)
    for bucket in sorted({batch.bucket for batch in batches}):
        mine = [batch for batch in batches if batch.bucket == bucket]
        if is_one:
            yield _sort(pa.concat_tables(read_batches(mine)))
        else:
            yield from sorted_tables(mine, schema, budget_bytes, scratch / "deeper")
    path.unlink()


def _sort(table: pa.Table) -> pa.Table:
    return table.take(pc.sort_indices(table, sort_keys=[(name, "ascending") for name in (KEY, *_PLACE_COLUMNS)]))


def _partition(batches: Sequence[Batch], path: Path, schema: pa.Schema, assign: Assign, budget_bytes: int) -> list[Batch]:
    with BucketWriter(path, schema, assign, budget_bytes) as writer:
        for table in read_batches(batches):
            writer.add(table)
        return writer.close()


def _by_key(low: int, high: int, num_buckets: int) -> Assign:
    step = np.uint64((high - low) // num_buckets + 1)
    return lambda table: ((table.column(KEY).to_numpy() - np.uint64(low)) // step).astype(np.int64)


def _by_path(batches: Sequence[Batch], budget_bytes: int) -> Assign:
    """Assigns buckets of about half the budget, in order of (repository, path, position in the input)."""
    places = [place for table in read_batches(batches, (*_PLACE_COLUMNS, SIZE)) for place in _places(table, SIZE)]
    bounds, held = [], 0
    for *place, size in sorted(places):
        held += size
        if held > budget_bytes // 2:
            bounds.append(tuple(place))
            held = size
    return lambda table: np.array([bisect.bisect_right(bounds, place) for place in _places(table)], np.int64)


def _places(table: pa.Table, *more: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table.column(name).to_pylist() for name in (*_PLACE_COLUMNS, *more)), strict=True)
