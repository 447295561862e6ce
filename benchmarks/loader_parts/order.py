"""How often two rows of a global batch share a repository, in the loader's order and in a full shuffle of all rows.

Letters: R rows, L lines of a lineage table, G rows of a global batch.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mose.array_types import INT64_ARRAY
from mose.dataset.manifest import read_manifest
from pretrain.data.order import BLOCK_ROWS, rows_of_run

BATCH_ROWS = 256
WINDOW_ROWS = 2048
# A model of a run over The Stack v2, 128 times smaller: 32 tasks and windows of 8,192 rows stand for 4,096 and 1,048,576.
MODEL_TASKS, MODEL_WINDOW_ROWS, MODEL_ROWS, MODEL_REPOSITORIES = 32, 8192, 131072, 8000


def measure_order(dataset: Path) -> dict[str, object]:
    """Ratios on a real data set, as packed and with each shard's rows shuffled, and on the model of many tasks."""
    rng = np.random.default_rng(0)
    pairs_R2, sizes = repositories_of_rows(dataset)
    starts = np.cumsum([0, *sizes])
    shuffled_R2 = pairs_R2[np.concatenate([start + rng.permutation(size) for start, size in zip(starts, sizes, strict=False)])]
    model_R2 = modelled_rows(rng)
    blocks = (1, BLOCK_ROWS, 4 * BLOCK_ROWS)
    full = {"data set": full_shuffle(pairs_R2, rng), "model": full_shuffle(model_R2, rng)}
    return {
        "measure": "pairs of rows of a global batch that share a repository, mean over batches, against a full shuffle",
        "batch_rows": BATCH_ROWS,
        "data_set": {"rows": len(pairs_R2), "shards": len(sizes), "window_rows": WINDOW_ROWS, "pairs_full": full["data set"]},
        "rows_as_packed_by_block_rows": ratios(pairs_R2, WINDOW_ROWS, blocks, full["data set"]),
        "rows_shuffled_in_shard_by_block_rows": ratios(shuffled_R2, WINDOW_ROWS, blocks, full["data set"]),
        "model": {"rows": MODEL_ROWS, "tasks": MODEL_TASKS, "window_rows": MODEL_WINDOW_ROWS, "pairs_full": full["model"]},
        "model_by_block_rows": ratios(model_R2, MODEL_WINDOW_ROWS, blocks, full["model"]),
        "block_rows_default": BLOCK_ROWS,
    }


def repositories_of_rows(dataset: Path) -> tuple[INT64_ARRAY, list[int]]:
    """The (at most two) repositories of each training row [R, 2], -1 for no second one, and the rows of each shard."""
    manifest = read_manifest(dataset)
    columns = ["row", "repository"]
    tables = [pq.read_table(dataset / s.lineage_path, columns=columns, partitioning=None) for s in manifest.shards("train")]
    names = pc.unique(pa.chunked_array([chunk for table in tables for chunk in table["repository"].cast(pa.string()).chunks]))
    parts = []
    for table, entry in zip(tables, manifest.shards("train"), strict=True):
        rows_L = table["row"].to_numpy().astype(np.int64)
        ids_L = pc.index_in(table["repository"].cast(pa.string()).combine_chunks(), value_set=names).to_numpy()
        pairs_R2 = np.full((entry.rows, 2), -1, dtype=np.int64)
        pairs_R2[rows_L, 0] = ids_L
        other = pairs_R2[rows_L, 0] != ids_L
        pairs_R2[rows_L[other], 1] = ids_L[other]
        parts.append(pairs_R2)
    return np.concatenate(parts), [len(part) for part in parts]


def modelled_rows(rng: np.random.Generator) -> INT64_ARRAY:
    """Rows of tasks that share no repository, in random order within each; sizes of repositories fall as 1 / rank."""
    rows = MODEL_ROWS // MODEL_TASKS
    task_of = rng.integers(0, MODEL_TASKS, MODEL_REPOSITORIES)
    weights = 1 / (np.arange(MODEL_REPOSITORIES) + 20)
    parts = []
    for task in range(MODEL_TASKS):
        own = np.flatnonzero(task_of == task)
        pairs_R2 = rng.choice(own, (rows, 2), p=weights[own] / weights[own].sum())
        alone = (rng.random(rows) < 0.5) | (pairs_R2[:, 0] == pairs_R2[:, 1])
        pairs_R2[alone, 1] = -1
        parts.append(pairs_R2)
    return np.concatenate(parts)


def pairs_sharing(pairs_G2: INT64_ARRAY) -> int:
    """Pairs of rows [G, 2] with a repository in common; two rows with the same two repositories are one pair."""
    counts = np.bincount(pairs_G2[pairs_G2 >= 0])
    _, same = np.unique(np.sort(pairs_G2[pairs_G2[:, 1] >= 0], axis=1), axis=0, return_counts=True)
    return int((counts * (counts - 1) // 2).sum() - (same * (same - 1) // 2).sum())


def _mean_over_batches(pairs_R2: INT64_ARRAY, numbers: Callable[[int], INT64_ARRAY]) -> float:
    batches = len(pairs_R2) // BATCH_ROWS
    return float(np.mean([pairs_sharing(pairs_R2[numbers(batch)]) for batch in range(batches)]))


def full_shuffle(pairs_R2: INT64_ARRAY, rng: np.random.Generator, shuffles: int = 8) -> float:
    """The mean of a few full shuffles of all rows."""
    orders = [rng.permutation(len(pairs_R2)) for _ in range(shuffles)]
    means = [_mean_over_batches(pairs_R2, lambda k, o=order: o[k * BATCH_ROWS : (k + 1) * BATCH_ROWS]) for order in orders]  # type: ignore[misc]
    return float(np.mean(means))


def ratios(pairs_R2: INT64_ARRAY, window_rows: int, blocks: tuple[int, ...], full: float, epochs: int = 8) -> dict[str, float]:
    """The loader's mean over that of full shuffles, by rows of a block; mean over the seeds of as many epochs."""
    rows = len(pairs_R2)
    found = {}
    for block in blocks:
        orders = [rows_of_run(seed, 0, rows, rows, block, window_rows)[0] for seed in range(epochs)]
        means = [_mean_over_batches(pairs_R2, lambda k, o=order: o[k * BATCH_ROWS : (k + 1) * BATCH_ROWS]) for order in orders]  # type: ignore[misc]
        found[str(block)] = round(float(np.mean(means)) / full, 4)
    return found
